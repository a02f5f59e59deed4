"""Distributions of returns against rlax, float64 NumPy, and the returns of a chain that is solved by simulation."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import rlax

from jaxrl_gen.losses import distributional, value

MODES = pytest.mark.parametrize("mode", [lambda f: f, jax.jit], ids=["eager", "jit"])
N, B, K = 3, 6, 11
ATOMS = jnp.linspace(-2.0, 3.0, K)


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def softmax(x):
    exponents = np.exp(x - x.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


# -------------------------------------------------------------------------------------------------------- projection


@MODES
def test_project_equals_rlax(mode):
    probabilities = softmax(draw(B, K))
    places = 2.0 * draw(B, K, seed=1)
    places[0], places[1, :4] = np.asarray(ATOMS), [-9.0, 9.0, -2.0, 3.0]  # on atoms, beyond them, at the ends
    places = np.sort(places, -1)
    found = mode(distributional.project)(probabilities, places, ATOMS)
    theirs = jax.vmap(rlax.categorical_l2_project, in_axes=(0, 0, None))(places, probabilities, ATOMS)
    np.testing.assert_allclose(found, theirs, atol=1e-6)
    np.testing.assert_allclose(found[0], probabilities[0], atol=1e-6)
    np.testing.assert_allclose(jnp.sum(found, -1), 1.0, rtol=1e-6)


def test_project_keeps_the_mean_of_what_is_inside():
    probabilities, places = softmax(draw(B, K)), np.clip(draw(B, K, seed=1), -1.9, 2.9)
    found = distributional.project(probabilities, places, ATOMS)
    np.testing.assert_allclose(found @ ATOMS, np.sum(probabilities * places, -1), atol=1e-5)


def test_project_asks_for_products_that_are_not_rounded():
    """As accelerators do by default, by which the mass would not be kept; processors do not show it."""
    program = jax.make_jaxpr(distributional.project)(softmax(draw(B, K)), draw(B, K, seed=1), ATOMS)
    assert str(program).count("dot_general") == 1 and "HIGHEST" in str(program)


def test_project_refuses_broadcasting():
    with pytest.raises(AssertionError):
        distributional.project(jnp.ones((B, K)), jnp.ones((1, K)), ATOMS)


# --------------------------------------------------------------------------------------------------------- quantiles


@MODES
@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_quantile_huber(mode, threshold):
    quantiles, samples = draw(B, 4), draw(B, 7, seed=1)
    loss, _ = mode(lambda *x: distributional.quantile_huber(*x, threshold=threshold))(quantiles, samples)
    oracle = np.zeros(B)
    for b in range(B):
        for i in range(4):
            for sample in samples[b].astype(np.float64):
                u = sample - quantiles[b, i]
                huber = u**2 / 2 if abs(u) <= threshold else threshold * (abs(u) - threshold / 2)
                oracle[b] += abs((i + 0.5) / 4 - (u < 0)) * huber / threshold / 7
    np.testing.assert_allclose(loss, oracle, rtol=1e-5)


def test_quantile_huber_equals_rlax():
    """Theirs is of one sample; its threshold is not divided by."""
    quantiles, samples = draw(B, 4), draw(B, 7, seed=1)
    tau = (jnp.arange(4) + 0.5) / 4
    theirs = jax.vmap(lambda q, s: rlax.quantile_regression_loss(q, tau, s, 1.0))(quantiles, samples)
    np.testing.assert_allclose(distributional.quantile_huber(quantiles, samples)[0], theirs, rtol=1e-5)


def test_the_minimiser_is_the_quantiles():
    samples = jnp.asarray(np.random.default_rng(2).exponential(size=(1, 2001)), jnp.float32)
    slope = jax.jit(jax.grad(lambda q: jnp.sum(distributional.quantile_huber(q, samples, threshold=1e-3)[0])))
    found = jax.lax.fori_loop(0, 8000, lambda i, q: q - 0.03 / (1 + i / 2000) * slope(q), jnp.ones((1, 4)))
    np.testing.assert_allclose(found[0], np.quantile(samples, (np.arange(4) + 0.5) / 4), atol=0.02)


def test_quantile_huber_refuses_broadcasting():
    with pytest.raises(AssertionError):
        distributional.quantile_huber(jnp.ones((B, K)), jnp.ones((1, K)))


# ---------------------------------------------------------------------------------------------------------- readouts

READOUTS = pytest.mark.parametrize(
    "readout", [distributional.categorical(-2.0, 3.0, K), distributional.quantiles(K)], ids=["categorical", "quantiles"]
)


@MODES
def test_the_target_of_a_categorical_critic_is_c51s(mode):
    readout, outputs, reward = distributional.categorical(-2.0, 3.0, K), draw(1, B, K), draw(B, seed=1)
    discount = np.array([0.9, 0.0, 0.9, 0.81, 0.9, 0.5], np.float32)
    found = mode(lambda *x: readout.target(*x, value.minimum))(outputs, reward, discount)
    moved = reward[:, None] + discount[:, None] * np.asarray(ATOMS)
    theirs = jax.vmap(rlax.categorical_l2_project, in_axes=(0, 0, None))(moved, softmax(outputs[0]), ATOMS)
    np.testing.assert_allclose(found, theirs[None], atol=1e-5)


@READOUTS
def test_the_minimum_takes_the_member_with_the_smallest_mean(readout):
    outputs, reward, discount = draw(N, B, K), draw(B, seed=1), np.full(B, 0.5, np.float32)
    found = readout.target(outputs, reward, discount, value.minimum)
    smallest = np.argmin(np.asarray(readout.value(outputs)), 0)
    assert len(set(smallest)) > 1
    alone = readout.target(outputs[smallest, np.arange(B)][None], reward, discount, value.mean)
    np.testing.assert_allclose(found, alone, atol=1e-6)


@READOUTS
def test_each_member_can_learn_from_itself(readout):
    outputs, reward, discount = draw(N, B, K), draw(B, seed=1), np.full(B, 0.5, np.float32)
    found = readout.target(outputs, reward, discount, value.own)
    assert found.shape == (N, B, K)
    for i in range(N):
        np.testing.assert_allclose(
            found[i], readout.target(outputs[i : i + 1], reward, discount, value.mean)[0], atol=1e-6
        )
    losses, _ = value.ensemble_loss(readout.loss, outputs, found)
    alone = sum(readout.loss(outputs[i], found[i])[0] for i in range(N))
    np.testing.assert_allclose(losses, alone, rtol=1e-5)


@READOUTS
def test_the_mean_of_members_has_the_mean_of_their_values(readout):
    outputs, zero, one = 0.3 * draw(N, B, K), jnp.zeros(B), jnp.ones(B)
    found = readout.target(outputs, zero, one, partial(value.mean))[0]
    mean = found @ ATOMS if readout.size == K and found.min() >= 0 and np.allclose(found.sum(-1), 1) else found.mean(-1)
    np.testing.assert_allclose(mean, np.mean(readout.value(outputs), 0), atol=1e-5)


@READOUTS
def test_targets_are_constants(readout):
    outputs, reward, discount = draw(N, B, K), draw(B, seed=1), np.full(B, 0.5, np.float32)
    slopes = jax.grad(lambda *x: jnp.sum(readout.target(*x, value.minimum) ** 2), (0, 1, 2))(outputs, reward, discount)
    assert not any(np.any(slope) for slope in slopes)


def test_bad_sizes_are_refused():
    with pytest.raises(ValueError, match="atoms is 1; allowed: 2 and more"):
        distributional.categorical(-1.0, 1.0, 1)
    with pytest.raises(ValueError, match="count of quantiles is 0; allowed: 1 and more"):
        distributional.quantiles(0)


# ------------------------------------------------------------------------------------- the fixed point on a known chain

GAMMA, STATES = 0.8, 3
PASS = np.array([[0.1, 0.9, 0.0], [0.0, 0.2, 0.8], [0.5, 0.0, 0.5]])  # a chain, with rewards of the state left
REWARD = np.array([0.0, 1.0, -0.5])


def fixed_point(readout, updates=4000):
    """Tabular outputs [STATES, K] after learning from all transitions, weighted by their probabilities."""

    def loss(outputs, slow):
        def of_one(state, following):
            reward, discount = jnp.array([REWARD[state]]), jnp.array([GAMMA])
            target = readout.target(slow[following][None, None], reward, discount, value.mean)
            return readout.loss(outputs[state][None], target[0])[0][0]

        return sum(PASS[s, t] * of_one(s, t) for s in range(STATES) for t in range(STATES) if PASS[s, t] > 0)

    adam = optax.adam(optax.exponential_decay(0.05, updates, 0.02))

    def update(_, carry):
        outputs, state = carry
        moves, state = adam.update(jax.grad(loss)(outputs, outputs), state)
        return outputs + moves, state

    start = jnp.zeros((STATES, readout.size))
    return jax.jit(lambda: jax.lax.fori_loop(0, updates, update, (start, adam.init(start))))()[0]


EXACT = np.linalg.solve(np.eye(STATES) - GAMMA * PASS, REWARD)


@pytest.mark.parametrize(
    "readout",
    [distributional.categorical(-2.5, 5.0, 61), distributional.quantiles(101, threshold=0.01)],
    ids=["categorical", "quantiles"],
)
def test_the_fixed_point_has_the_chains_values_and_spread(readout):
    """Quantiles lose what lies beyond the outermost ones, which for 101 of them is little."""
    outputs = fixed_point(readout)
    np.testing.assert_allclose(readout.value(outputs), EXACT, atol=0.03)
    # The second moment solves a linear system too: E G^2 = r^2 + 2 gamma r P V + gamma^2 P E G^2.
    second = np.linalg.solve(
        np.eye(STATES) - GAMMA**2 * PASS, REWARD**2 + 2 * GAMMA * REWARD * (PASS @ EXACT)
    )  # fmt: skip
    exact = np.sqrt(second - EXACT**2)
    if readout.size == 101:
        found = np.std(outputs, -1)
    else:
        places, p = np.linspace(-2.5, 5.0, 61), softmax(np.asarray(outputs))
        found = np.sqrt(p @ places**2 - (p @ places) ** 2)
    np.testing.assert_allclose(found, exact, rtol=0.15)
