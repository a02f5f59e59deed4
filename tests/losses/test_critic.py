"""What is added to the loss of critics, against float64 NumPy, closed forms and quadrature."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import logsumexp

from jaxrl_gen.losses import critic

MODES = pytest.mark.parametrize("mode", [lambda f: f, jax.jit], ids=["eager", "jit"])
N, B, M, A, D = 3, 7, 5, 2, 6


def draw(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# ----------------------------------------------------------------------------------------------------- conservatism


@MODES
@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_conservative(mode, temperature):
    value, sampled, density = draw(N, B), 3.0 * draw(N, B, M, seed=1), draw(B, M, seed=2)
    loss, metrics = mode(lambda *x: critic.conservative(*x, temperature=temperature))(value, sampled, density)
    logits = sampled.astype(np.float64) / temperature - density
    gap = temperature * (logsumexp(logits, -1) - np.log(M)) - value
    np.testing.assert_allclose(loss, gap.sum(0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(metrics["critic/conservative_gap"], gap.mean(), rtol=1e-5)


def test_the_gap_estimates_the_integral_over_all_actions():
    """Of Q(a) = 3 a on [-1, 1] it is log(2 sinh(3) / 3), whatever actions are drawn from."""
    rng = np.random.default_rng(3)
    exact = np.log(2.0 * np.sinh(3.0) / 3.0)
    uniform = rng.uniform(-1.0, 1.0, (1, 40_000))
    sloped = 2.0 * np.sqrt(rng.uniform(size=(1, 40_000))) - 1.0  # density (1 + a) / 2
    for action, density in ((uniform, np.full_like(uniform, np.log(0.5))), (sloped, np.log((1 + sloped) / 2))):
        q = jnp.asarray(3.0 * action, jnp.float32)[None]
        loss, _ = critic.conservative(jnp.zeros((1, 1)), q, jnp.asarray(density, jnp.float32))
        assert float(loss[0]) == pytest.approx(exact, abs=0.02)


def test_the_density_is_a_constant_and_the_data_are_pushed_up():
    value, sampled, density = draw(N, B), draw(N, B, M, seed=1), draw(B, M, seed=2)
    total = lambda *x: jnp.sum(critic.conservative(*x)[0])
    of_value, of_sampled, of_density = jax.grad(total, (0, 1, 2))(value, sampled, density)
    np.testing.assert_allclose(of_value, -1.0)
    np.testing.assert_allclose(jnp.sum(of_sampled, -1), 1.0, rtol=1e-5)
    assert np.all(of_sampled > 0) and not np.any(of_density)


def test_conservative_refuses_broadcasting():
    for shapes in (((N, B), (N, B, M), (B, 1)), ((N, 1), (N, B, M), (B, M)), ((N, B), (N, 1, M), (B, M))):
        with pytest.raises(AssertionError):
            critic.conservative(*(jnp.zeros(shape) for shape in shapes))


def test_calibrated_leaves_alone_what_is_below_the_floor():
    sampled, floor = draw(N, B, M), draw(B, seed=1)
    floored = critic.calibrated(sampled, floor)
    np.testing.assert_array_equal(floored, np.maximum(sampled, floor[None, :, None]))
    slope = jax.grad(lambda sampled, floor: jnp.sum(critic.calibrated(sampled, floor)), (0, 1))(sampled, floor)
    np.testing.assert_array_equal(slope[0], sampled > floor[None, :, None])
    assert not np.any(slope[1])
    with pytest.raises(AssertionError):
        critic.calibrated(jnp.zeros((N, B, M)), jnp.zeros(1))


# -------------------------------------------------------------------------------------------------------- diversity


@MODES
def test_diversity(mode):
    slopes = draw(N, B, A)
    loss, metrics = mode(critic.diversity)(slopes)
    unit = slopes.astype(np.float64) / np.linalg.norm(slopes.astype(np.float64), axis=-1, keepdims=True)
    cosines = np.einsum("iba,jba->ijb", unit, unit)
    oracle = sum(cosines[i, j] for i in range(N) for j in range(N) if i != j) / (N - 1)
    np.testing.assert_allclose(loss, oracle, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["critic/alike"], oracle.mean() / N, rtol=1e-4)


def test_diversity_of_known_slopes():
    same, opposite = jnp.ones((4, 1, A)), jnp.array([[[1.0, 0.0]], [[-1.0, 0.0]]])
    assert float(critic.diversity(same)[0][0]) == pytest.approx(4.0)  # N (N - 1) pairs of cosine 1, over N - 1
    assert float(critic.diversity(opposite)[0][0]) == pytest.approx(-2.0)


def test_diversity_of_a_flat_critic_has_a_finite_gradient():
    slopes = jnp.zeros((N, B, A)).at[0].set(1.0)
    gradient = jax.grad(lambda x: jnp.sum(critic.diversity(x)[0]))(slopes)
    assert np.all(np.isfinite(gradient))


def test_diversity_refuses_one_member_and_other_ranks():
    with pytest.raises(ValueError, match="the ensemble has 1 member; allowed: 2 and more"):
        critic.diversity(jnp.zeros((1, B, A)))
    with pytest.raises(AssertionError):
        critic.diversity(jnp.zeros((N, B)))


# ------------------------------------------------------------------------------------------------------------- rank


@MODES
@pytest.mark.parametrize("gamma", [0.9, "per sample"])
def test_rank_bound(mode, gamma):
    f, following, reward, last = draw(B, D), draw(B, D, seed=1), draw(B, seed=2), draw(D, seed=3)
    noise = np.linspace(0.01, 1.0, B)[:, None]  # from all but the same, which is above the bound, to far below it
    following, reward = (0.8 * f + noise * following).astype(np.float32), 3.0 * reward + 1.0
    gamma = np.linspace(0.5, 0.99, B).astype(np.float32) if gamma == "per sample" else gamma
    loss, metrics = mode(lambda *x: critic.rank_bound(*x, gamma=gamma))(f, following, reward, last)
    x, y, r, w = (v.astype(np.float64) for v in (f, following, reward, last))
    size, next_size = np.linalg.norm(x, axis=-1), np.linalg.norm(y, axis=-1)
    cosine = (x * y).sum(-1) / (size * next_size)
    bound = (size**2 + gamma**2 * next_size**2 - r**2 / (w @ w)) / (2 * gamma * size * next_size)
    assert np.any(cosine > bound) and np.any(cosine < bound)
    np.testing.assert_allclose(loss, np.maximum(cosine - bound, 0.0), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["critic/above_bound"], np.mean(cosine > bound))


def test_features_that_solve_bellmans_equation_are_within_the_bound():
    """Where w (f - gamma f') = r, no feature is above it: Cauchy and Schwarz."""
    rng = np.random.default_rng(4)
    f, last, gamma = rng.normal(size=(200, D)), rng.normal(size=D), 0.9
    following = f + rng.normal(size=(200, D))
    reward = (f - gamma * following) @ last
    loss, _ = critic.rank_bound(*(jnp.asarray(x, jnp.float32) for x in (f, following, reward, last)), gamma=gamma)
    np.testing.assert_allclose(loss, 0.0, atol=1e-5)


def test_only_the_cosine_and_only_this_steps_features_have_a_gradient():
    f, last = draw(B, D), draw(D, seed=3)
    following, reward = f + 0.01 * draw(B, D, seed=1), np.full(B, 2.0, np.float32)
    total = lambda *x: jnp.sum(critic.rank_bound(*x, gamma=0.9)[0])
    slopes = jax.grad(total, (0, 1, 2, 3))(f, following, reward, last)
    x, y = f.astype(np.float64), following.astype(np.float64)
    size, next_size = np.linalg.norm(x, axis=-1, keepdims=True), np.linalg.norm(y, axis=-1, keepdims=True)
    cosine = (x * y).sum(-1, keepdims=True) / (size * next_size)
    np.testing.assert_allclose(slopes[0], y / (size * next_size) - cosine * x / size**2, atol=1e-5)
    assert not any(np.any(slope) for slope in slopes[1:])


def test_rank_bound_refuses_broadcasting():
    for shapes in (((B, D), (1, D), (B,), (D,)), ((B, D), (B, D), (B, 1), (D,)), ((B, D), (B, D), (B,), (1,))):
        with pytest.raises(AssertionError):
            critic.rank_bound(*(jnp.ones(shape) for shape in shapes), gamma=0.9)


@MODES
def test_effective_rank(mode):
    """Of orthogonal columns of known length."""
    columns = np.linalg.qr(draw(50, D))[0]
    for lengths, rank in (([1, 1, 1, 1, 1, 1], 6), ([100, 1e-3, 0, 0, 0, 0], 1), ([5, 4, 1e-3, 0, 0, 0], 2)):
        assert int(mode(critic.effective_rank)(jnp.asarray(columns * lengths, jnp.float32))) == rank
    assert 1 <= int(mode(critic.effective_rank)(jnp.zeros((50, D)))) <= D
