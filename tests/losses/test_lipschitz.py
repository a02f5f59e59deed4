"""Spectral norms against NumPy's singular values, and adversaries and slopes against closed forms."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen import nets
from jaxrl_gen.losses import lipschitz

MODES = pytest.mark.parametrize("mode", [lambda f: f, jax.jit], ids=["eager", "jit"])
OBS, ACTIONS, BATCH = 3, 2, 12


def draw(*shapes, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return [(scale * rng.normal(size=shape)).astype(np.float32) for shape in shapes]


def norms(kernel):
    """Largest singular values, in float64, over any leading axes."""
    return np.linalg.svd(kernel.astype(np.float64), compute_uv=False)[..., 0]


# ------------------------------------------------------------------------------------------------------ spectral norms


@MODES
@pytest.mark.parametrize("shape", [(7, 5), (5, 7), (3, 6, 4), (2, 3, 4, 4)], ids=str)
def test_power_iteration_finds_the_largest_singular_value(mode, shape):
    kernel, start = draw(shape, shape[:-1], seed=1)
    sigma, u = mode(lambda k, d: lipschitz.power_iteration(k, d, iterations=200))(kernel, start)
    np.testing.assert_allclose(sigma, norms(kernel), rtol=1e-4)
    np.testing.assert_allclose(np.linalg.norm(u, axis=-1), 1.0, rtol=1e-5)
    stretched = np.linalg.norm(np.einsum("...io,...i->...o", kernel.astype(np.float64), u), axis=-1)
    np.testing.assert_allclose(stretched, norms(kernel), rtol=1e-4)


def test_it_is_an_estimate_from_below_that_grows_where_it_is_carried_on():
    (kernel,), (u,) = draw((64, 64), seed=2), draw((64,), seed=3)
    step, truth, found = jax.jit(lipschitz.power_iteration), float(norms(kernel)), []
    for _ in range(60):
        sigma, u = step(kernel, u)
        found.append(float(sigma))
    assert np.all(np.diff(found) >= -1e-4) and max(found) <= truth * (1 + 1e-5)
    assert found[0] < 0.95 * truth and found[-1] > 0.97 * truth


def test_its_gradient_is_that_of_the_singular_value():
    """d sigma / d W = u v^T, of NumPy's decomposition."""
    kernel, start = draw((6, 4), (6,), seed=4)
    slope = jax.grad(lambda k: lipschitz.power_iteration(k, start, iterations=200)[0])(kernel)
    left, _, right = np.linalg.svd(kernel.astype(np.float64))
    np.testing.assert_allclose(slope, np.outer(left[:, 0], right[0]), atol=1e-3)


@MODES
@pytest.mark.parametrize("limit", [0.5, 100.0])
def test_clip_spectral(mode, limit):
    (kernel,) = draw((3, 6, 4), seed=5)
    clipped = np.asarray(mode(lipschitz.clip_spectral)(kernel, norms(kernel).astype(np.float32), jnp.float32(limit)))
    np.testing.assert_allclose(norms(clipped), np.minimum(norms(kernel), limit), rtol=1e-5)
    directions = clipped / np.linalg.norm(clipped, axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(directions, kernel / np.linalg.norm(kernel, axis=(1, 2), keepdims=True), rtol=1e-4)


def test_a_zero_matrix_stays_zero():
    sigma, u = lipschitz.power_iteration(jnp.zeros((4, 3)), jnp.ones(4))
    assert float(sigma) == 0.0 and np.all(np.isfinite(u))
    assert not np.any(lipschitz.clip_spectral(jnp.zeros((4, 3)), sigma, 1.0))


def test_layers_are_brought_under_the_limit_but_for_the_last():
    """Carried on, one iteration at a time, on an ensemble of perceptrons with more than ten layers."""
    net = nets.ensemble(nets.mlp((8,) * 11 + (1,)), 3)
    params = net.init(jax.random.key(0), jax.ShapeDtypeStruct((5,), jnp.float32))
    params = jax.tree.map(lambda x: 4.0 * x, params)
    directions = lipschitz.first_directions(params, jax.random.key(1))
    assert len(directions) == 11 and directions["Dense_10"].shape == (3, 8)
    step, first = jax.jit(lipschitz.clip_layers), params
    for _ in range(300):
        params, directions, norm = step(params, directions, jnp.float32(1.5))
    for i in range(12):
        kernel, before = (np.asarray(x[f"Dense_{i}"]["kernel"]) for x in (params, first))
        if i < 11:
            assert np.all(norms(before) > 1.5) and np.all(norms(kernel) < 1.5 * 1.01)
        else:
            np.testing.assert_array_equal(kernel, before)
        np.testing.assert_array_equal(params[f"Dense_{i}"]["bias"], first[f"Dense_{i}"]["bias"])
    assert float(norm) == pytest.approx(1.5, rel=1e-2)


@pytest.mark.parametrize("wrong", [{"head": {"kernel": jnp.ones((2, 2))}}, {"Dense_0": jnp.ones(3)}, jnp.ones(3)])
def test_other_networks_are_refused(wrong):
    with pytest.raises(ValueError, match="spectral norms are of a perceptron's layers"):
        lipschitz.first_directions(wrong, jax.random.key(0))


# ------------------------------------------------------------------------------------------------------- adversaries


def linear(weight, bias=0.0):
    """Q_n(s, a) = w_n . (s, a), of N members."""
    return lambda obs, action: (jnp.concatenate([obs, action], -1) @ weight.T + bias).T


def judged(values, seed=6):
    obs, action = draw((BATCH, OBS), (BATCH, ACTIONS), seed=seed)
    steps = SimpleNamespace(obs=jnp.asarray(obs), action=jnp.asarray(action))
    return SimpleNamespace(values=values, steps=steps)


@MODES
def test_an_adversary_of_a_linear_value_moves_it_by_the_sum_of_its_weights(mode):
    """max over ||d||_inf <= e of (w.d)^2 is (e ||w||_1)^2, wherever it starts."""
    weight, epsilon = draw((1, OBS + ACTIONS), seed=7)[0], 0.3
    term = lipschitz.robustness(epsilon=epsilon, coefficient=2.0)
    loss, metrics = mode(lambda key: term(judged(linear(weight)), key))(jax.random.key(0))
    oracle = (epsilon * np.abs(weight[0, :OBS].astype(np.float64)).sum()) ** 2
    np.testing.assert_allclose(loss, np.full(BATCH, 2.0 * oracle), rtol=1e-3)
    np.testing.assert_allclose(metrics["critic/moved"], np.sqrt(oracle), rtol=1e-3)


def test_one_adversary_pushes_all_members():
    """Of Q_1 = w.s and Q_2 = 2 w.s, (1 + 4) (e ||w||_1)^2."""
    (row,), epsilon = draw((1, OBS + ACTIONS), seed=8), 0.2
    loss, _ = lipschitz.robustness(epsilon=epsilon)(judged(linear(np.concatenate([row, 2 * row]))), jax.random.key(1))
    np.testing.assert_allclose(loss, 5 * (epsilon * np.abs(row[0, :OBS]).sum()) ** 2, rtol=1e-3)


def test_it_never_finds_more_than_the_worst_corner_and_mostly_that():
    """Of a curved value, against all corners of the box."""
    first, second = (jnp.asarray(x) for x in draw((OBS + ACTIONS, 16), (16,), seed=9))
    values = lambda obs, action: (jnp.tanh(jnp.concatenate([obs, action], -1) @ first) @ second)[None]
    it, epsilon = judged(values), 0.05
    found, _ = lipschitz.robustness(epsilon=epsilon)(it, jax.random.key(2))
    corners = epsilon * np.stack(np.meshgrid(*[[-1.0, 1.0]] * OBS), -1).reshape(-1, OBS)
    calm = values(it.steps.obs, it.steps.action)[0]
    moved = [(values(it.steps.obs + corner, it.steps.action)[0] - calm) ** 2 for corner in corners]
    worst = np.max(np.asarray(moved, np.float64), 0)
    assert np.all(found <= worst * (1 + 1e-3)) and np.mean(found) > 0.9 * np.mean(worst)
    noise = np.random.default_rng(10).uniform(-epsilon, epsilon, (BATCH, OBS)).astype(np.float32)
    at_random = (values(it.steps.obs + noise, it.steps.action)[0] - calm) ** 2
    assert np.mean(found) > 2.0 * np.mean(at_random)


def test_the_term_flattens_the_value_and_not_the_adversary():
    """Its gradient in the weights is that of (e ||w||_1)^2, with the push held constant."""
    weight, epsilon = jnp.asarray(draw((1, OBS + ACTIONS), seed=11)[0]), 0.3
    term = lipschitz.robustness(epsilon=epsilon)
    slope = jax.grad(lambda w: jnp.mean(term(judged(linear(w)), jax.random.key(3))[0]))(weight)
    w = np.asarray(weight, np.float64)[0, :OBS]
    oracle = 2.0 * epsilon**2 * np.abs(w).sum() * np.sign(w)
    np.testing.assert_allclose(slope[0, :OBS], oracle, rtol=1e-2)
    np.testing.assert_allclose(slope[0, OBS:], 0.0, atol=1e-5)


def test_an_observation_may_be_a_dictionary():
    (weight,) = draw((2,), seed=12)
    values = lambda obs, action: (weight[0] * obs["x"][:, 0] + weight[1] * obs["y"][:, 0])[None]
    x, y, action = (jnp.asarray(x) for x in draw((BATCH, 1), (BATCH, 1), (BATCH, ACTIONS), seed=13))
    it = SimpleNamespace(values=values, steps=SimpleNamespace(obs={"x": x, "y": y}, action=action))
    loss, _ = lipschitz.robustness(epsilon=0.5)(it, jax.random.key(4))
    np.testing.assert_allclose(loss, (0.5 * np.abs(weight).sum()) ** 2, rtol=1e-3)


def test_a_value_of_another_shape_is_refused():
    it = judged(lambda obs, action: jnp.zeros((BATCH, 1)))
    with pytest.raises(AssertionError):
        lipschitz.robustness(epsilon=0.1)(it, jax.random.key(5))


# -------------------------------------------------------------------------------------------------------- diagnostics


@MODES
def test_steepness_of_linear_and_round_values(mode):
    """||w|| for w.s, and 2 ||s|| for ||s||^2."""
    weight, obs = draw((OBS,), (BATCH, OBS), seed=14)
    predict = lambda obs: jnp.stack([obs @ weight, jnp.sum(obs**2, -1)])
    slopes = mode(lambda obs: lipschitz.steepness(predict, obs))(obs)
    norm = np.linalg.norm(weight.astype(np.float64))
    oracle = np.stack([np.full(BATCH, norm), 2 * np.linalg.norm(obs.astype(np.float64), axis=-1)])
    np.testing.assert_allclose(slopes, oracle, rtol=1e-5)


@MODES
def test_a_flat_value_forgives_a_wrong_prediction(mode):
    """|V(x) - V(y)| = |w.(x - y)|, at most ||w|| ||x - y||."""
    weight, x, y = (z.astype(np.float64) for z in draw((OBS,), (BATCH, OBS), (BATCH, OBS), seed=15))
    error = mode(lipschitz.value_aware_error)(jnp.float32(x @ weight), jnp.float32(y @ weight))
    np.testing.assert_allclose(error, np.abs((x - y) @ weight), rtol=1e-4, atol=1e-5)
    assert np.all(error <= np.linalg.norm(weight) * np.linalg.norm(x - y, axis=-1) * (1 + 1e-4))


def test_refuses_what_would_broadcast():
    rows = jnp.zeros(5)
    for wrong in ((rows[:, None], rows), (rows[:1], rows), (rows, rows[:, None])):
        with pytest.raises(AssertionError):
            lipschitz.value_aware_error(*wrong)
    with pytest.raises(AssertionError):
        lipschitz.power_iteration(jnp.ones((4, 3)), jnp.ones(3))
    with pytest.raises(AssertionError):
        lipschitz.clip_spectral(jnp.ones((2, 4, 3)), jnp.ones(()), 1.0)
    with pytest.raises(AssertionError):
        lipschitz.clip_spectral(jnp.ones((4, 3)), jnp.ones(()), jnp.ones(3))
    with pytest.raises(ValueError, match="iterations is 0; allowed: 1 and more"):
        lipschitz.power_iteration(jnp.ones((4, 3)), jnp.ones(4), iterations=0)
    with pytest.raises(AssertionError):
        lipschitz.steepness(lambda obs: jnp.sum(obs, -1), jnp.ones((4, 3)))
