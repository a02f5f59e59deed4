"""Surrogates against float64 NumPy, token by token: which tokens they push, which they hold back, which they drop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen.losses import group, surrogates
from tests.losses.test_group import MODES, WEIGHTS, draw, name, objective, per_row

SURROGATES = [surrogates.clipped, surrogates.dual_clipped, surrogates.detached_clip, surrogates.unclipped]
APART = [surrogates.clip_cov, surrogates.kl_cov]  # those that treat some tokens apart
WALLS = {"low": 0.2, "high": 0.3}


@MODES
@pytest.mark.parametrize("surrogate", SURROGATES, ids=name)
def test_surrogates_token_by_token(mode, surrogate):
    log_prob, old, advantage, _ = draw(seed=6, scale=1.0)
    found = mode(lambda r, a: surrogate(r, a, low=0.2, high=0.3))(log_prob - old, advantage)
    ratio = np.exp((log_prob - old).astype(np.float64))
    wall = np.clip(ratio, 0.8, 1.3)
    ppo = np.maximum(-advantage * ratio, -advantage * wall)
    expected = {
        surrogates.clipped: ppo,
        surrogates.dual_clipped: np.where(advantage < 0, np.minimum(ppo, -advantage * 3.0), ppo),
        surrogates.detached_clip: -wall * advantage * np.log(ratio),
        surrogates.unclipped: -advantage * ratio,
    }[surrogate]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_surrogates_push_only_where_they_should():
    """Gradients with respect to the log ratio, at ratios below, at and above the walls, for both signs of A."""
    ratio = jnp.array([[0.5, 0.5, 1.0, 1.0, 2.0, 2.0, 4.0]])
    advantage = jnp.array([[1.0, -1.0, 1.0, -1.0, 1.0, -1.0, -1.0]])
    expected = {
        surrogates.clipped: [-0.5, 0.0, -1.0, 1.0, 0.0, 2.0, 4.0],
        surrogates.dual_clipped: [-0.5, 0.0, -1.0, 1.0, 0.0, 2.0, 0.0],
        surrogates.detached_clip: [-0.8, 0.8, -1.0, 1.0, -1.2, 1.2, 1.2],
        surrogates.unclipped: [-0.5, 0.5, -1.0, 1.0, -2.0, 2.0, 4.0],
    }
    for surrogate, gradient in expected.items():
        loss = lambda x: jnp.sum(surrogate(x, advantage, low=0.2, high=0.2))  # noqa: B023, E731
        np.testing.assert_allclose(jax.grad(loss)(jnp.log(ratio))[0], gradient, atol=1e-5)


def test_on_policy_all_surrogates_and_the_token_levels_have_the_gradient_of_reinforce():
    """At log_prob = old_log_prob the gradient of each token is -weight A, and whole rows share theirs."""
    log_prob, _, advantage, mask = per_row(7)
    for weights in WEIGHTS:
        expected = -weights(mask) * advantage
        for surrogate in SURROGATES:
            for log_ratio in group.token_log_ratio, group.mean_log_ratio_per_token:
                loss = objective(log_ratio, surrogate, weights, advantage, mask, log_prob)
                np.testing.assert_allclose(jax.grad(loss)(log_prob), expected, rtol=1e-5, atol=1e-6)
    loss = objective(
        group.sequence_log_ratio, surrogates.clipped, group.sequence_mean_token_mean, advantage, mask, log_prob
    )
    np.testing.assert_allclose(jax.grad(loss)(log_prob), -advantage / len(mask), rtol=1e-5, atol=1e-6)


def test_outside():
    ratio = jnp.log(jnp.array([0.5, 0.79, 0.81, 1.0, 1.29, 1.31]))
    np.testing.assert_array_equal(surrogates.outside(ratio, low=0.2, high=0.3), [1, 1, 0, 0, 0, 1])


# ---------------------------------------------------------------------------------------------- a few tokens apart


def some_tokens(seed=0):
    """(log ratio, advantage, log-probability, mask), of which covariances lie on both sides of the usual bounds."""
    rng = np.random.default_rng(seed)
    log_prob, advantage = -3.0 * np.abs(rng.normal(size=(12, 5))), 1.5 * rng.normal(size=(12, 5))
    mask = np.arange(5) < rng.integers(1, 6, 12)[:, None]
    found = rng.normal(size=(12, 5), scale=0.3) * mask, advantage * mask, log_prob * mask, mask
    return [x.astype(np.float32) for x in found]


def by_hand(advantage, log_prob, mask):
    """{token: its covariance}, of those that count."""
    places = [tuple(at) for at in np.argwhere(mask > 0)]
    a, p = (np.mean([float(x[at]) for at in places]) for x in (advantage, log_prob))
    return {at: (float(advantage[at]) - a) * (float(log_prob[at]) - p) for at in places}


@MODES
def test_covariance(mode):
    _, advantage, log_prob, mask = some_tokens()
    found = mode(surrogates.covariance)(advantage, log_prob, mask)
    expected = by_hand(advantage, log_prob, mask)
    np.testing.assert_allclose([found[at] for at in expected], list(expected.values()), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(sum(expected.values()) / len(expected), np.cov(
        np.asarray(advantage)[mask > 0], np.asarray(log_prob)[mask > 0], bias=True)[0, 1], rtol=1e-6)  # fmt: skip


@MODES
@pytest.mark.parametrize("share", [1e-6, 0.11, 0.5, 1.0])
def test_kl_cov_holds_back_the_tokens_of_largest_covariance(mode, share):
    tokens, rest = some_tokens(1), {"share": share, "weight": 0.7}
    log_ratio, advantage, log_prob, mask = tokens
    found = mode(lambda *x: surrogates.kl_cov(*x, None, **WALLS, **rest))(*tokens)
    of = by_hand(advantage, log_prob, mask)
    count = max(1, int(share * len(of)))
    held = sorted(of, key=of.get, reverse=True)[:count]
    for at in of:
        plain = -float(advantage[at]) * np.exp(float(log_ratio[at]))
        expected = plain + 0.7 * (at in held) * abs(float(log_ratio[at]))
        np.testing.assert_allclose(found[at], expected, rtol=1e-4, atol=1e-5)


def eligible(tokens, least=1.0, most=5.0):
    """Tokens between the bounds that no wall has stopped."""
    log_ratio, advantage, log_prob, mask = tokens
    ratio = np.exp(log_ratio.astype(np.float64))
    stopped = ((advantage > 0) & (ratio > 1.3)) | ((advantage < 0) & (ratio < 0.8))
    of = by_hand(advantage, log_prob, mask)
    some = {at for at in of if least < of[at] < most}
    assert any(x > most for x in of.values()) and any(stopped[at] for at in some)
    return {at for at in some if not stopped[at]}


@MODES
def test_clip_cov_with_a_large_share_drops_all_tokens_between_the_bounds(mode):
    tokens = some_tokens(2)
    found = mode(lambda *x: surrogates.clip_cov(*x, **WALLS, share=1.0))(*tokens, jax.random.key(0))
    plain = surrogates.clipped(*tokens, **WALLS)
    dropped = eligible(tokens)
    assert 3 < len(dropped) < np.sum(tokens[3]) / 2
    for at in np.ndindex(found.shape):
        np.testing.assert_allclose(found[at], 0.0 if at in dropped else plain[at], rtol=1e-6)
    assert not any(found[at] == 0.0 for at in np.ndindex(found.shape) if tokens[3][at] and at not in dropped)


def test_clip_cov_draws_evenly_among_them():
    tokens, draws = some_tokens(2), 4000
    count = int(0.1 * np.sum(tokens[3]))
    loss = jax.jit(jax.vmap(lambda key: surrogates.clip_cov(*tokens, key, **WALLS, share=0.1)))
    zero = (np.asarray(loss(jax.random.split(jax.random.key(0), draws))) == 0.0) & (tokens[3] > 0)
    some = eligible(tokens)
    assert 1 < count < len(some)
    np.testing.assert_array_equal(zero.sum((1, 2)), count)
    expected = draws * count / len(some)
    for at, times in np.ndenumerate(zero.sum(0)):
        assert abs(times - (expected if at in some else 0.0)) < (5 * np.sqrt(expected) if at in some else 0.5)
    few = surrogates.clip_cov(*tokens, jax.random.key(0), **WALLS, share=1e-6)
    assert np.sum((np.asarray(few) == 0.0) & (tokens[3] > 0)) == 1  # at least one


@pytest.mark.parametrize("surrogate", APART, ids=name)
def test_what_is_masked_is_never_chosen_and_the_choice_is_a_constant(surrogate):
    log_ratio, advantage, log_prob, mask = (jnp.asarray(x) for x in some_tokens(3))
    loss = lambda log_ratio, advantage, log_prob: surrogate(  # noqa: E731
        log_ratio, advantage, log_prob, mask, jax.random.key(0), **WALLS, share=0.3
    )
    wild = jnp.where(mask > 0, 0.0, 50.0)
    one, other = loss(log_ratio, advantage, log_prob), loss(log_ratio, advantage + wild, log_prob - wild)
    np.testing.assert_allclose(one * mask, other * mask, rtol=1e-4, atol=1e-5)
    total = lambda *tokens: jnp.sum(loss(*tokens) * mask)  # noqa: E731
    _, *gradients = jax.grad(total, (0, 1, 2))(log_ratio, advantage, log_prob)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0.0)
    nothing = surrogate(log_ratio, advantage, log_prob, 0 * mask, jax.random.key(0), **WALLS)
    assert np.all(np.isfinite(nothing))


def test_tokens_that_are_dropped_or_held_have_the_gradients_that_they_should():
    tokens = [jnp.asarray(x) for x in some_tokens(2)]
    log_ratio, advantage, log_prob, mask = tokens
    of = by_hand(*(np.asarray(x) for x in (advantage, log_prob, mask)))
    most = max(of, key=of.get)
    gradient = lambda surrogate, **kwargs: jax.grad(  # noqa: E731
        lambda x: jnp.sum(surrogate(x, advantage, log_prob, mask, jax.random.key(0), **WALLS, **kwargs) * mask)
    )(log_ratio)
    drop, plain = gradient(surrogates.clip_cov, share=1.0), gradient(surrogates.clipped)
    dropped = eligible([np.asarray(x) for x in tokens])
    for at in of:
        np.testing.assert_allclose(drop[at], 0.0 if at in dropped else plain[at], rtol=1e-6)
    more = np.asarray(gradient(surrogates.kl_cov, share=1e-6, weight=2.0) - gradient(surrogates.unclipped))
    expected = np.zeros(mask.shape)
    expected[most] = 2.0 * np.sign(log_ratio[most])
    np.testing.assert_allclose(more, expected, atol=1e-5)


def test_broadcasting_is_refused():
    log_ratio, advantage, log_prob, mask = some_tokens()
    for surrogate in SURROGATES + APART:
        for wrong in (
            (log_ratio[:, :1], advantage, log_prob, mask), (log_ratio, advantage[:, :1], log_prob, mask),
            *[(log_ratio, advantage, log_prob[:, :1], mask), (log_ratio, advantage, log_prob, mask[:, :1])]
            * (surrogate in APART),
        ):  # fmt: skip
            with pytest.raises(AssertionError):
                surrogate(*wrong, jax.random.key(0), **WALLS)
        with pytest.raises(AssertionError):
            surrogate(log_ratio, advantage, log_prob, mask, jax.random.key(0), low=np.full(5, 0.2), high=0.2)
