"""Codec, contexts and soft advantages against loops in float64 NumPy, and whole actions counted one by one."""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrl_gen.losses import autoregressive as ar

MODES = pytest.mark.parametrize("mode", [lambda f: f, jax.jit], ids=["eager", "jit"])
CONTEXTS = {"sequential": ar.sequential, "factorised": ar.factorised}
EVERY_CONTEXT = pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS)
SIZES = pytest.mark.parametrize("levels, bins", [(1, 2), (2, 3), (3, 7), (4, 5), (20, 2)])


def intervals(tokens, bins):
    """(low, high) of one coordinate, by halving (or so) the interval level after level."""
    low, high = -1.0, 1.0
    for token in tokens:
        width = (high - low) / bins
        low, high = low + token * width, low + (token + 1) * width
    return low, high


def numpy_context(tokens, place, bins, sees_earlier=True):
    """Of one action's tokens [L, A], by loops."""
    levels, size = tokens.shape
    level, coordinate = divmod(place, size)
    centres = [np.mean(intervals(tokens[:level, a], bins)) for a in range(size)]
    chosen = np.zeros((size, bins))
    for a in range(coordinate if sees_earlier else 0):
        chosen[a, tokens[level, a]] = 1.0
    return np.concatenate([centres, chosen.ravel(), np.arange(levels * size) == place])


def draw_tokens(levels, size, bins, batch=(), seed=0):
    return np.random.default_rng(seed).integers(0, bins, (*batch, levels, size)).astype(np.int32)


# ------------------------------------------------------------------------------------------------------------ codec


@MODES
@SIZES
def test_codec_equals_a_loop(mode, levels, bins):
    tokens = draw_tokens(levels, 3, bins, (4,))
    action = mode(partial(ar.decode, bins=bins))(tokens)
    expected = [[np.mean(intervals(row[:, a], bins)) for a in range(3)] for row in tokens]
    np.testing.assert_allclose(action, expected, atol=3e-7)
    back = mode(partial(ar.encode, levels=levels, bins=bins))(action)
    assert back.dtype == jnp.int32
    np.testing.assert_array_equal(back, tokens)


@SIZES
@given(st.lists(st.floats(-1.0, 1.0, width=32), min_size=2, max_size=2))
def test_a_cell_s_centre_is_within_half_its_width(levels, bins, action):
    action = np.array(action, np.float32)
    tokens = ar.encode(jnp.asarray(action), levels=levels, bins=bins)
    assert tokens.shape == (levels, 2) and np.all((tokens >= 0) & (tokens < bins))
    error = np.abs(np.asarray(ar.decode(tokens, bins=bins), np.float64) - action)
    assert np.all(error <= bins**-levels + 2e-7)


def test_coarser_tokens_are_the_first_of_finer_ones():
    action = jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (50, 2)), jnp.float32)
    fine = ar.encode(action, levels=3, bins=5)
    for levels in (1, 2):
        np.testing.assert_array_equal(ar.encode(action, levels=levels, bins=5), fine[:, :levels])


def test_the_edges_and_what_is_no_number():
    action = jnp.array([-1.0, 1.0, -7.0, 7.0, jnp.nan, jnp.inf])
    tokens = np.asarray(ar.encode(action, levels=2, bins=3))
    np.testing.assert_array_equal(tokens, [[0, 2, 0, 2, 3, 2], [0, 2, 0, 2, 3, 2]])


@pytest.mark.parametrize("levels, bins", [(0, 3), (2, 1), (21, 2)])
def test_codecs_that_cannot_be_are_refused(levels, bins):
    with pytest.raises(ValueError, match=f"{levels} levels of {bins} bins; allowed"):
        ar.encode(jnp.zeros(2), levels=levels, bins=bins)


# --------------------------------------------------------------------------------------------------------- contexts


@MODES
@EVERY_CONTEXT
def test_context_equals_a_loop(mode, context):
    tokens = draw_tokens(3, 2, 4, (5,))
    of = mode(partial(context, bins=4))
    for place in range(6):
        expected = [numpy_context(row, place, 4, context is ar.sequential) for row in tokens]
        np.testing.assert_allclose(of(tokens, place), expected, atol=1e-6)


@EVERY_CONTEXT
def test_a_context_knows_nothing_of_its_own_place_or_later(context):
    tokens, other = (draw_tokens(2, 3, 4, (20,), seed) for seed in (0, 1))
    flat = lambda x: x.reshape(20, 6)
    for place in range(6):
        mixed = np.concatenate([flat(tokens)[:, :place], flat(other)[:, place:]], 1).reshape(20, 2, 3)
        np.testing.assert_array_equal(context(tokens, place, bins=4), context(mixed, place, bins=4))


def test_a_factorised_context_knows_nothing_of_its_own_level():
    tokens = draw_tokens(2, 3, 4, (20,))
    mixed = tokens.copy()
    mixed[:, 1] = draw_tokens(1, 3, 4, (20,), 1)[:, 0]
    np.testing.assert_array_equal(ar.factorised(tokens, 5, bins=4), ar.factorised(mixed, 5, bins=4))
    assert np.any(ar.sequential(tokens, 5, bins=4) != ar.sequential(mixed, 5, bins=4))
    mixed[:, 0] = draw_tokens(1, 3, 4, (20,), 2)[:, 0]
    assert np.any(ar.factorised(tokens, 5, bins=4) != ar.factorised(mixed, 5, bins=4))


# -------------------------------------------------------------------------------------------------- soft advantages


@MODES
@pytest.mark.parametrize("temperature", [0.01, 0.3, 4.0])
def test_soft_advantages(mode, temperature):
    logits = np.random.default_rng(0).normal(size=(6, 2, 5)).astype(np.float32)
    advantages = mode(partial(ar.soft_advantages, temperature=temperature))(logits)
    x = logits.astype(np.float64)
    largest = x.max(-1, keepdims=True)
    total = largest + temperature * np.log(np.sum(np.exp((x - largest) / temperature), -1, keepdims=True))
    np.testing.assert_allclose(advantages, x - total, atol=1e-5)
    np.testing.assert_allclose(np.sum(np.exp(np.asarray(advantages, np.float64) / temperature), -1), 1.0, rtol=1e-4)


def test_soft_advantages_refuse_a_temperature_that_would_broadcast():
    with pytest.raises(AssertionError):
        ar.soft_advantages(jnp.zeros((4, 3)), temperature=jnp.ones((4, 1)))


@EVERY_CONTEXT
def test_the_product_of_conditionals_is_the_softmax_over_whole_actions(context):
    """All 2^(2 x 2) actions of a tiny codec, with conditionals of NumPy's own: a random function of each context."""
    levels, size, bins, temperature = 2, 2, 2, 0.3
    every = np.array(list(itertools.product(range(bins), repeat=levels * size)), np.int32).reshape(-1, levels, size)
    weights = np.random.default_rng(1).normal(size=(len(numpy_context(every[0], 0, bins)), bins))
    predict = lambda x: np.tanh(3.0 * x) @ weights
    contexts = [
        [numpy_context(row, place, bins, context is ar.sequential) for place in range(levels * size)] for row in every
    ]
    logits = predict(np.array(contexts)).reshape(*every.shape, bins)
    advantages = ar.soft_advantages(jnp.asarray(logits, jnp.float32), temperature=temperature)
    joint = np.asarray(ar.joint_advantage(advantages, every), np.float64)
    product = np.ones(len(every))
    for i, row in enumerate(every):
        for place in range(levels * size):
            x = logits[i].reshape(-1, bins)[place] / temperature
            product[i] *= np.exp(x[row.ravel()[place]]) / np.sum(np.exp(x))
    softmax = np.exp(joint / temperature) / np.sum(np.exp(joint / temperature))
    np.testing.assert_allclose(product.sum(), 1.0, rtol=1e-9)
    np.testing.assert_allclose(softmax, product, rtol=1e-4, atol=1e-9)
    np.testing.assert_allclose(temperature * np.log(np.sum(np.exp(joint / temperature))), 0.0, atol=1e-5)


# ----------------------------------------------------------------------------------------------------------- losses


def numbers(seed=0, batch=6, levels=2, size=3, bins=4):
    rng = np.random.default_rng(seed)
    advantages = rng.normal(size=(batch, levels, size, bins)).astype(np.float32)
    return advantages, draw_tokens(levels, size, bins, (batch,), seed)


@MODES
def test_joint_advantage(mode):
    advantages, tokens = numbers()
    joint = [sum(float(a[i][tokens[b][i]]) for i in np.ndindex(2, 3)) for b, a in enumerate(advantages)]
    np.testing.assert_allclose(mode(ar.joint_advantage)(advantages, tokens), joint, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("function", [ar.joint_advantage, lambda *a: ar.demonstration_margin(*a, margin=0.1)[0]])
def test_a_token_that_is_no_bin_is_not_mistaken_for_one(function):
    advantages, tokens = numbers()
    tokens[2, 0, 1] = 4
    np.testing.assert_array_equal(np.isnan(function(advantages, tokens)), np.arange(6) == 2)


@MODES
def test_soft_q_loss(mode):
    rng = np.random.default_rng(2)
    values, advantage, target = (rng.normal(size=shape).astype(np.float32) for shape in ((2, 7), 7, 7))
    loss, metrics = mode(ar.soft_q_loss)(values, advantage, target)
    error = (values.astype(np.float64) + advantage - target) ** 2 / 2
    np.testing.assert_allclose(loss, error.sum(0), rtol=1e-5)
    np.testing.assert_allclose(metrics["critic/loss"], error.mean(), rtol=1e-5)
    arrays = [jnp.asarray(x) for x in (values, advantage, target)]
    gradients = jax.grad(lambda *a: jnp.sum(ar.soft_q_loss(*a)[0]), (0, 1, 2))(*arrays)
    residual = values.astype(np.float64) + advantage - target
    np.testing.assert_allclose(gradients[0], residual, atol=1e-5)
    np.testing.assert_allclose(gradients[1], residual.sum(0), atol=1e-5)
    assert not np.any(gradients[2])


@MODES
def test_demonstration_margin(mode):
    advantages, tokens = numbers(3)
    loss, _ = mode(partial(ar.demonstration_margin, margin=0.7))(advantages, tokens)
    expected = np.zeros(6)
    for b, level, a, k in np.ndindex(advantages.shape):
        shown = tokens[b, level, a]
        behind = float(advantages[b, level, a, k]) - float(advantages[b, level, a, shown]) + 0.7
        expected[b] += (k != shown) * max(0.0, behind) / 4
    np.testing.assert_allclose(loss, expected, rtol=1e-5)


def test_a_demonstration_that_is_ahead_costs_nothing_and_teaches_nothing():
    tokens = numbers(4)[1]
    ahead = jnp.asarray(np.eye(4, dtype=np.float32)[tokens])
    of = lambda x, margin: jnp.sum(ar.demonstration_margin(x, tokens, margin=margin)[0])
    assert of(ahead, 0.9) == 0.0 and not np.any(jax.grad(of)(ahead, 0.9))
    assert of(ahead, 1.1) > 0.0 and np.all(jax.grad(of)(ahead, 1.1) != 0.0)
    assert float(ar.demonstration_margin(ahead, tokens, margin=0.9)[1]["actor/beaten"]) == 1.0


def test_refuses_what_would_broadcast():
    advantages, tokens = numbers()
    for wrong in ((advantages[:1], tokens), (advantages, tokens[:1]), (advantages[..., 0], tokens)):
        for function in (ar.joint_advantage, partial(ar.demonstration_margin, margin=0.1)):
            with pytest.raises(AssertionError):
                function(*wrong)
    with pytest.raises(AssertionError):
        ar.demonstration_margin(advantages, tokens, margin=jnp.ones((6, 1)))
    values, rows = jnp.zeros((2, 5)), jnp.zeros(5)
    for wrong in ((values[..., None], rows, rows), (values, rows[:, None], rows), (values, rows, rows[:, None]),
                  (values[:, :1], rows, rows), (rows, rows, rows)):  # fmt: skip
        with pytest.raises(AssertionError):
            ar.soft_q_loss(*wrong)
