"""Policy losses against float64 NumPy, rlax, finite differences and closed forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
from hypothesis import given
from hypothesis import strategies as st

from jaxrl_gen.losses import policy

MODES = pytest.mark.parametrize("mode", [lambda f: f, jax.jit], ids=["eager", "jit"])


def draw(count, seed=0, size=64, scale=1.0):
    rng = np.random.default_rng(seed)
    return [(scale * rng.normal(size=size)).astype(np.float32) for _ in range(count)]


def numpy_surrogate(log_prob, old, advantage, clip):
    ratio = np.exp(log_prob.astype(np.float64) - old)
    return -np.minimum(ratio * advantage, np.clip(ratio, 1 - clip, 1 + clip) * advantage)


@MODES
def test_clipped_surrogate(mode):
    log_prob, old, advantage = draw(3, scale=0.3)
    loss, metrics = mode(lambda *a: policy.clipped_surrogate(*a, clip=0.2))(log_prob, old, advantage)
    np.testing.assert_allclose(loss, numpy_surrogate(log_prob, old, advantage, 0.2), rtol=1e-5, atol=1e-6)
    ratio = np.exp(log_prob.astype(np.float64) - old)
    np.testing.assert_allclose(metrics["actor/clip_fraction"], np.mean(np.abs(ratio - 1) > 0.2), rtol=1e-6)


@MODES
def test_clipped_surrogate_equals_rlax_in_value_and_gradient(mode):
    log_prob, old, advantage = (jnp.asarray(x) for x in draw(3, 1, scale=0.3))
    ours = lambda x: jnp.mean(policy.clipped_surrogate(x, old, advantage, clip=0.2)[0])  # noqa: E731
    theirs = lambda x: rlax.clipped_surrogate_pg_loss(jnp.exp(x - old), advantage, 0.2)  # noqa: E731
    for one, two in zip(mode(jax.value_and_grad(ours))(log_prob), mode(jax.value_and_grad(theirs))(log_prob)):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7)


def test_clipped_surrogate_pushes_only_inside_the_trust_interval():
    log_ratio = jnp.log(jnp.array([0.5, 0.5, 1.0, 1.0, 2.0, 2.0]))
    advantage = jnp.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    loss = lambda x: jnp.sum(policy.clipped_surrogate(x, jnp.zeros(6), advantage, clip=0.2)[0])  # noqa: E731
    np.testing.assert_allclose(jax.grad(loss)(log_ratio), [-0.5, 0.0, -1.0, 1.0, 0.0, 2.0], atol=1e-6)


@MODES
def test_value_loss(mode):
    value, target = draw(2, 2)
    loss, metrics = mode(policy.value_loss)(value, target)
    oracle = (value.astype(np.float64) - target) ** 2 / 2
    np.testing.assert_allclose(loss, oracle, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["critic/loss"], oracle.mean(), rtol=1e-5)
    gradient = mode(jax.grad(lambda v: jnp.sum(policy.value_loss(v, jnp.asarray(target))[0])))(jnp.asarray(value))
    np.testing.assert_allclose(gradient, value - target, rtol=1e-5, atol=1e-6)


@MODES
@pytest.mark.parametrize("clip", [0.0, 0.4, np.inf])
def test_clipped_value_loss(mode, clip):
    value, target, old = draw(3, 3)
    loss, metrics = mode(lambda *a: policy.clipped_value_loss(*a, clip=clip))(value, target, old)
    near = old.astype(np.float64) + np.clip(value.astype(np.float64) - old, -clip, clip)
    oracle = np.maximum((value.astype(np.float64) - target) ** 2, (near - target) ** 2) / 2
    np.testing.assert_allclose(loss, oracle, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["critic/loss"], oracle.mean(), rtol=1e-4)


def test_an_infinite_value_clip_is_the_plain_value_loss_in_gradient_too():
    value, target, old = (jnp.asarray(x) for x in draw(3, 4))
    clipped = jax.grad(lambda v: jnp.sum(policy.clipped_value_loss(v, target, old, clip=jnp.inf)[0]))(value)
    np.testing.assert_allclose(clipped, value - target, rtol=1e-5, atol=1e-5)


@MODES
def test_entropy_bonus(mode):
    (entropy,) = draw(1, 5)
    loss, metrics = mode(policy.entropy_bonus)(entropy)
    np.testing.assert_allclose(loss, -entropy)
    np.testing.assert_allclose(metrics["actor/entropy"], entropy.astype(np.float64).mean(), rtol=1e-5, atol=1e-7)


@MODES
def test_kl_penalty(mode):
    log_prob, old = draw(2, 6, scale=0.5)
    loss, metrics = mode(policy.kl_penalty)(log_prob, old)
    log_ratio = log_prob.astype(np.float64) - old
    oracle = np.expm1(log_ratio) - log_ratio
    np.testing.assert_allclose(loss, oracle, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["actor/kl"], oracle.mean(), rtol=1e-4)
    assert np.all(np.asarray(loss) >= 0.0)


def test_kl_penalty_estimates_the_kl_of_two_normals_and_its_gradient():
    """Against the closed form KL(N(0, 1) || N(m, s)) and its derivatives."""
    x = jax.random.normal(jax.random.key(0), (400_000,))

    def log_normal(mean, std):
        return -0.5 * ((x - mean) / std) ** 2 - jnp.log(std)

    def estimate(mean, std):
        return jnp.mean(policy.kl_penalty(log_normal(mean, std), log_normal(0.0, 1.0))[0])

    mean, std = 0.3, 1.2
    value, gradient = jax.value_and_grad(estimate, (0, 1))(jnp.float32(mean), jnp.float32(std))
    np.testing.assert_allclose(value, np.log(std) + (1 + mean**2) / (2 * std**2) - 0.5, rtol=0.02)
    np.testing.assert_allclose(gradient, [mean / std**2, 1 / std - (1 + mean**2) / std**3], rtol=0.03, atol=0.005)


@MODES
def test_adapt_kl_coefficient(mode):
    adapt = mode(lambda coefficient, kl: policy.adapt_kl_coefficient(coefficient, kl, target=0.01))
    cases = [
        (1.0, 0.016, 2.0), (1.0, 0.0066, 0.5), (1.0, 0.01, 1.0), (1.0, 0.0149, 1.0), (1.0, 0.0068, 1.0),
        (0.0, 1.0, 0.0), (0.0, 0.0, 0.0), (8e5, 1.0, 1e6), (1.5e-6, 0.0, 1e-6), (1.0, np.nan, 1.0),
    ]  # fmt: skip
    for coefficient, kl, expected in cases:
        assert float(adapt(jnp.float32(coefficient), jnp.float32(kl))) == pytest.approx(expected, rel=1e-6)


@given(st.floats(-8.0, 8.0), st.floats(-8.0, 8.0), st.floats(-5.0, 5.0), st.floats(0.01, 0.9))
def test_clipped_surrogate_never_promises_more_than_the_plain_one(log_prob, old, advantage, clip):
    arrays = [jnp.array([x], jnp.float32) for x in (log_prob, old, advantage)]
    loss, _ = policy.clipped_surrogate(*arrays, clip=clip)
    plain = -jnp.exp(arrays[0] - arrays[1]) * arrays[2]
    assert loss[0] >= plain[0] - 1e-6 * abs(plain[0])


LOSSES = {
    "clipped_surrogate": (3, lambda *a: policy.clipped_surrogate(*a, clip=0.2)),
    "value_loss": (2, policy.value_loss),
    "clipped_value_loss": (3, lambda *a: policy.clipped_value_loss(*a, clip=0.2)),
    "kl_penalty": (2, policy.kl_penalty),
}
EVERY_LOSS = pytest.mark.parametrize("count, loss", LOSSES.values(), ids=LOSSES)


@EVERY_LOSS
def test_refuses_a_broadcasting_head(count, loss):
    for i in range(count):
        arguments = [jnp.asarray(x) for x in draw(count, 7, size=5)]
        assert loss(*arguments)[0].shape == (5,)
        arguments[i] = arguments[i][:, None]
        with pytest.raises(AssertionError):
            loss(*arguments)


@pytest.mark.parametrize("loss", [policy.clipped_surrogate, policy.clipped_value_loss])
def test_refuses_a_clip_that_would_broadcast(loss):
    arguments = [jnp.asarray(x) for x in draw(3, 8, size=5)]
    with pytest.raises(AssertionError):
        loss(*arguments, clip=jnp.full((5, 1), 0.2))


def test_entropy_bonus_keeps_the_shape_it_is_given():
    assert policy.entropy_bonus(jnp.zeros((5, 1)))[0].shape == (5, 1)


@EVERY_LOSS
def test_only_the_prediction_has_a_gradient(count, loss):
    arguments = [jnp.asarray(x) for x in draw(count, 9, size=5, scale=0.05)]
    gradients = jax.grad(lambda *a: jnp.sum(loss(*a)[0]), tuple(range(count)))(*arguments)
    assert np.all(gradients[0] != 0.0)
    assert not np.any(np.stack(gradients[1:]))


@EVERY_LOSS
def test_gradient_equals_finite_differences(count, loss):
    """In float32 with a step wide enough for its rounding; away from the corners the losses are smooth."""
    arguments = [jnp.asarray(x) for x in draw(count, 10, size=5, scale=0.05)]
    gradient = jax.grad(lambda x: jnp.sum(loss(x, *arguments[1:])[0]))(arguments[0])
    step = 1e-3
    up, down = (loss(arguments[0] + sign * step, *arguments[1:])[0] for sign in (1, -1))
    np.testing.assert_allclose(gradient, (up - down) / (2 * step), rtol=1e-2, atol=1e-3)
