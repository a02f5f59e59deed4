"""The dual's losses against float64 NumPy and SciPy's own maximisation, and projections against linear algebra."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.flatten_util import ravel_pytree
from scipy import optimize

from jaxrl_gen.losses import dual

MODES = pytest.mark.parametrize("mode", [lambda f: f, jax.jit], ids=["eager", "jit"])
DIRECTIONS = {"orthogonal": dual.orthogonal, "semi": dual.semi_gradient, "true": dual.true_gradient}


def draw(count, seed=0, size=64, scale=1.0):
    rng = np.random.default_rng(seed)
    return [(scale * rng.normal(size=size)).astype(np.float32) for _ in range(count)]


def tree(seed, scale=1.0):
    rng = np.random.default_rng(seed)
    leaf = lambda *shape: jnp.asarray(scale * rng.normal(size=shape), jnp.float32)
    return {"kernel": leaf(4, 3), "inner": [leaf(5), leaf(2, 2, 2)], "bias": leaf()}


def vector(params):
    return np.asarray(ravel_pytree(params)[0], np.float64)


# -------------------------------------------------------------------------------------------------------- residuals


@MODES
def test_residual(mode):
    reward, value, next_value = draw(3)
    discount = np.where(np.arange(64) % 3 == 0, 0.0, 0.9).astype(np.float32)
    expected = reward.astype(np.float64) + discount * next_value.astype(np.float64) - value
    np.testing.assert_allclose(mode(dual.residual)(reward, discount, value, next_value), expected, rtol=1e-5, atol=1e-6)


def test_a_residual_has_gradients_on_both_sides():
    arrays = [jnp.asarray(x) for x in draw(4, 1, size=5)]
    of_value, of_next = jax.grad(lambda *a: jnp.sum(dual.residual(*a)), (2, 3))(*arrays)
    np.testing.assert_allclose(of_value, -1.0)
    np.testing.assert_allclose(of_next, arrays[1])


def test_refuses_a_broadcasting_head():
    rows = [jnp.asarray(x) for x in draw(4, 2, size=5)]
    for i in range(4):
        wrong = [x[:, None] if i == k else x for k, x in enumerate(rows)]
        with pytest.raises(AssertionError):
            dual.residual(*wrong)
    with pytest.raises(AssertionError):
        dual.pearson_conjugate(rows[0][:, None])
    for wrong in ((rows[0][:, None], rows[1]), (rows[0], rows[1][:, None])):
        with pytest.raises(AssertionError):
            dual.residual_weighted(*wrong, largest=1.0)
    with pytest.raises(AssertionError):
        dual.residual_weighted(*rows[:2], largest=jnp.ones((5, 1)))


# -------------------------------------------------------------------------------------------------------- conjugate


@MODES
def test_pearson_conjugate(mode):
    (u,) = draw(1, 3, scale=3.0)
    loss, metrics = mode(dual.pearson_conjugate)(u)
    w = np.maximum(u.astype(np.float64) / 2 + 1, 0.0)
    assert np.any(w == 0) and np.any(w > 0)
    np.testing.assert_allclose(loss, u * w - (w - 1) ** 2, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["value/ratio"], w.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["value/residual"], u.astype(np.float64).mean(), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("u", [-7.0, -2.5, -2.0, -1.9, -0.3, 0.0, 0.4, 3.0, 20.0])
def test_it_is_the_conjugate_of_the_chi_square_generator_over_ratios(u):
    """max over w >= 0 of u w - (w - 1)^2, and the w that attains it, found by SciPy; w is the derivative."""
    found = optimize.minimize_scalar(
        lambda w: (w - 1.0) ** 2 - u * w, bounds=(0.0, 100.0), method="bounded", options={"xatol": 1e-9}
    )
    value = float(dual.pearson_conjugate(jnp.array([u]))[0][0])
    slope = jax.grad(lambda u: dual.pearson_conjugate(u[None])[0][0])(jnp.float32(u))
    assert value == pytest.approx(-found.fun, abs=1e-4)
    assert float(slope) == pytest.approx(found.x, abs=1e-4)


@given(st.floats(0.0, 20.0), st.floats(-20.0, 20.0))
def test_fenchel_and_young(w, u):
    """f(w) + f*(u) >= u w for every ratio, not only for the best."""
    conjugate = float(dual.pearson_conjugate(jnp.array([u], jnp.float32))[0][0])
    assert (w - 1.0) ** 2 + conjugate >= u * w - 1e-4 * (1.0 + abs(u * w) + abs(conjugate))


# ------------------------------------------------------------------------------------------------------- extraction


@MODES
def test_residual_weighted(mode):
    log_prob, residual = draw(2, 4)
    loss, metrics = mode(lambda *a: dual.residual_weighted(*a, largest=0.8))(log_prob, residual)
    weight = np.minimum(np.maximum(residual.astype(np.float64), 0.0), 0.8)
    assert np.any(weight == 0) and np.any(weight == 0.8) and np.any((weight > 0) & (weight < 0.8))
    np.testing.assert_allclose(loss, -weight * log_prob, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["actor/weight"], weight.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["actor/cloned"], np.mean(residual > 0))


def test_only_the_policy_learns_from_the_weights():
    log_prob, residual = (jnp.asarray(x) for x in draw(2, 5, size=8))
    loss = lambda *a: jnp.sum(dual.residual_weighted(*a, largest=100.0)[0])
    of_log_prob, of_residual = jax.grad(loss, (0, 1))(log_prob, residual)
    np.testing.assert_allclose(of_log_prob, -np.maximum(residual, 0.0))
    assert not np.any(of_residual)


# ------------------------------------------------------------------------------------------------------- projection


@MODES
@pytest.mark.parametrize("scale", [1e-2, 1.0, 1e3])
def test_projection_equals_linear_algebra_and_is_at_right_angles(mode, scale):
    gradient, reference = tree(0, scale), tree(1, scale)
    found = mode(dual.project_orthogonal)(gradient, reference)
    assert jax.tree.map(jnp.shape, found) == jax.tree.map(jnp.shape, gradient)
    g, h, p = vector(gradient), vector(reference), vector(found)
    basis = h / np.linalg.norm(h)
    np.testing.assert_allclose(p, g - basis * (basis @ g), atol=2e-6 * scale)
    assert abs(p @ h) <= 1e-6 * np.linalg.norm(p) * np.linalg.norm(h)
    assert np.linalg.norm(p) <= np.linalg.norm(g) * (1 + 1e-6)


@given(st.floats(-3.0, 3.0), st.floats(-3.0, 3.0), st.integers(0, 1000))
def test_projection_is_linear_in_the_gradient(a, b, seed):
    one, two, reference = tree(seed), tree(seed + 1001), tree(seed + 2002)
    mixed = jax.tree.map(lambda x, y: a * x + b * y, one, two)
    parts = [vector(dual.project_orthogonal(x, reference)) for x in (one, two)]
    np.testing.assert_allclose(
        vector(dual.project_orthogonal(mixed, reference)), a * parts[0] + b * parts[1], atol=1e-5
    )


def test_projection_leaves_what_is_orthogonal_and_removes_what_is_parallel():
    gradient, reference = tree(2), tree(3)
    once = dual.project_orthogonal(gradient, reference)
    np.testing.assert_allclose(vector(dual.project_orthogonal(once, reference)), vector(once), atol=1e-6)
    parallel = jax.tree.map(lambda x: -2.5 * x, reference)
    np.testing.assert_allclose(vector(dual.project_orthogonal(parallel, reference)), 0.0, atol=1e-5)
    nothing = jax.tree.map(jnp.zeros_like, reference)
    np.testing.assert_array_equal(vector(dual.project_orthogonal(gradient, nothing)), vector(gradient))


@MODES
def test_cosine(mode):
    one, two = tree(4), tree(5, 7.0)
    x, y = vector(one), vector(two)
    expected = x @ y / np.linalg.norm(x) / np.linalg.norm(y)
    np.testing.assert_allclose(mode(dual.cosine)(one, two), expected, rtol=1e-4)
    np.testing.assert_allclose(mode(dual.cosine)(one, jax.tree.map(lambda x: -3.0 * x, one)), -1.0, rtol=1e-6)
    assert float(mode(dual.cosine)(one, jax.tree.map(jnp.zeros_like, one))) == 0.0
    for size in (1e-16, 1e16):  # whose fourth powers are no float32
        scaled = [jax.tree.map(lambda x: size * x, tree) for tree in (one, two)]
        np.testing.assert_allclose(mode(dual.cosine)(*scaled), expected, rtol=1e-4)


@MODES
def test_directions(mode):
    forward, backward = tree(6), tree(7)
    f, b = vector(forward), vector(backward)
    expected = {"orthogonal": f + b - f * (f @ b) / (f @ f), "semi": f, "true": f + b}
    for name, direction in DIRECTIONS.items():
        np.testing.assert_allclose(vector(mode(direction)(forward, backward)), expected[name], atol=1e-5)


def test_an_orthogonal_step_descends_what_a_true_one_may_climb():
    """Where the gradients fight, g_f . g stays |g_f|^2; of the sum it can be negative."""
    forward = tree(8)
    backward = jax.tree.map(lambda x, y: -2.0 * x + 0.1 * y, forward, tree(9))
    f = vector(forward)
    along = {name: vector(direction(forward, backward)) @ f / (f @ f) for name, direction in DIRECTIONS.items()}
    assert along["true"] < 0
    assert along["orthogonal"] == pytest.approx(1.0, abs=1e-5) and along["semi"] == 1.0


@pytest.mark.parametrize("function", [dual.project_orthogonal, dual.cosine, *DIRECTIONS.values()])
def test_unlike_trees_are_refused(function):
    one = tree(10)
    for wrong in ({**one, "bias": jnp.zeros(3)}, {"kernel": one["kernel"]}, {**one, "kernel": one["kernel"][:1]}):
        with pytest.raises(AssertionError):
            function(one, wrong)
