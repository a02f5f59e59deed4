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


@MODES
def test_soft_policy(mode):
    value, log_prob = draw(2, 11)
    loss, metrics = mode(lambda *a: policy.soft_policy(*a, temperature=0.3))(value, log_prob)
    np.testing.assert_allclose(loss, 0.3 * log_prob.astype(np.float64) - value, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["actor/q"], value.astype(np.float64).mean(), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["actor/entropy"], -log_prob.astype(np.float64).mean(), rtol=1e-4, atol=1e-6)


def test_the_soft_policy_of_a_quadratic_value_is_the_normal_that_the_theory_names():
    """Q(a) = -(a - 1)^2 / 2: the best policy exp(Q / alpha) is normal, with mean 1 and variance alpha."""
    alpha, eps = 0.3, jax.random.normal(jax.random.key(0), (4096,))

    def loss(params):
        action = params[0] + jnp.exp(params[1]) * eps
        log_prob = -0.5 * eps**2 - params[1] - 0.5 * jnp.log(2 * jnp.pi)
        return jnp.mean(policy.soft_policy(-0.5 * (action - 1.0) ** 2, log_prob, temperature=alpha)[0])

    step = lambda params, _: (params - 0.3 * jax.grad(loss)(params), None)
    params, _ = jax.lax.scan(step, jnp.zeros(2), None, 200)
    np.testing.assert_allclose([params[0], jnp.exp(2 * params[1])], [1.0, alpha], atol=0.03)


@MODES
def test_temperature_loss(mode):
    (log_prob,) = draw(1, 12)
    loss, metrics = mode(lambda t, x: policy.temperature_loss(t, x, target_entropy=-1.5))(jnp.float32(-0.7), log_prob)
    np.testing.assert_allclose(loss, -np.exp(-0.7) * (log_prob.astype(np.float64) - 1.5), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["actor/temperature"], np.exp(-0.7), rtol=1e-6)


@pytest.mark.parametrize("entropy, direction", [(0.5, -1.0), (-2.5, 1.0), (-1.0, 0.0)])
def test_the_temperature_rises_while_entropy_is_below_its_target(entropy, direction):
    loss = lambda t: jnp.mean(policy.temperature_loss(t, jnp.full(8, -entropy), target_entropy=-1.0)[0])  # noqa: E731
    assert np.sign(-jax.grad(loss)(jnp.float32(0.2))) == direction


@MODES
def test_cloning(mode):
    (log_prob,) = draw(1, 13)
    loss, metrics = mode(policy.cloning)(log_prob)
    np.testing.assert_allclose(loss, -log_prob)
    np.testing.assert_allclose(metrics["actor/log_prob"], log_prob.astype(np.float64).mean(), rtol=1e-4, atol=1e-6)


@MODES
def test_advantage_weighted(mode):
    log_prob, advantage = draw(2, 14)
    weigh = mode(lambda *a: policy.advantage_weighted(*a, sharpness=3.0, largest=5.0))
    loss, metrics = weigh(log_prob, advantage)
    weight = np.minimum(np.exp(3.0 * advantage.astype(np.float64)), 5.0)
    assert 0.1 < np.mean(weight == 5.0) < 0.9
    np.testing.assert_allclose(loss, -weight * log_prob, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(metrics["actor/weight"], weight.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["actor/advantage"], advantage.astype(np.float64).mean(), rtol=1e-4, atol=1e-6)
    huge, _ = weigh(log_prob, np.full_like(advantage, 1e6))  # no overflow on the way to the largest weight
    np.testing.assert_allclose(huge, -5.0 * log_prob, rtol=1e-5)


def test_advantage_weights_are_the_policy_that_the_theory_names():
    """Over a uniform behaviour, the best-weighted policy is pi(a) ~ exp(sharpness Q(a))."""
    q, sharpness = jnp.array([0.3, -0.2, 0.9, 0.0]), 2.0
    value = jnp.mean(q)

    def loss(logits):
        log_prob = jax.nn.log_softmax(logits)
        return jnp.mean(policy.advantage_weighted(log_prob, q - value, sharpness=sharpness, largest=100.0)[0])

    logits, _ = jax.lax.scan(lambda x, _: (x - jax.grad(loss)(x), None), jnp.zeros(4), None, 2000)
    np.testing.assert_allclose(jax.nn.softmax(logits), jax.nn.softmax(sharpness * q), atol=1e-3)


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
    "advantage_weighted": (2, lambda *a: policy.advantage_weighted(*a, sharpness=1.0, largest=5.0)),
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


@pytest.mark.parametrize("loss", [policy.entropy_bonus, policy.cloning])
def test_a_loss_of_one_array_keeps_the_shape_it_is_given(loss):
    assert loss(jnp.zeros((5, 1)))[0].shape == (5, 1)


def test_soft_losses_refuse_what_would_broadcast():
    rows = jnp.zeros(5)
    for wrong in ((rows[:, None], rows), (rows, rows[:, None]), (rows[:1], rows)):
        with pytest.raises(AssertionError):
            policy.soft_policy(*wrong, temperature=1.0)
    with pytest.raises(AssertionError):
        policy.soft_policy(rows, rows, temperature=jnp.ones((5, 1)))
    for log_temperature, log_prob in ((jnp.zeros((5, 1)), rows), (jnp.zeros(()), rows[:, None])):
        with pytest.raises(AssertionError):
            policy.temperature_loss(log_temperature, log_prob, target_entropy=-1.0)


def test_who_learns_from_the_soft_losses():
    """The actor through value and density; the temperature from its own loss alone."""
    value, log_prob = (jnp.asarray(x) for x in draw(2, 15, size=5))
    soft = lambda *a: jnp.sum(policy.soft_policy(a[0], a[1], temperature=a[2])[0])  # noqa: E731
    of_value, of_log_prob, of_temperature = jax.grad(soft, (0, 1, 2))(value, log_prob, jnp.float32(0.3))
    np.testing.assert_allclose(of_value, -1.0)
    np.testing.assert_allclose(of_log_prob, 0.3, rtol=1e-6)
    assert of_temperature == 0.0
    tuning = lambda t, x: jnp.sum(policy.temperature_loss(t, x, target_entropy=-1.0)[0])  # noqa: E731
    of_log_temperature, of_log_prob = jax.grad(tuning, (0, 1))(jnp.float32(0.3), log_prob)
    np.testing.assert_allclose(of_log_temperature, tuning(jnp.float32(0.3), log_prob), rtol=1e-5)
    assert not np.any(of_log_prob)


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


@MODES
@pytest.mark.parametrize("scale_free", [False, True])
def test_value_ascent(mode, scale_free):
    value = np.random.default_rng(0).normal(size=9).astype(np.float32)
    size = np.mean(np.abs(value.astype(np.float64))) if scale_free else 1.0
    run = mode(lambda x: policy.value_ascent(x, scale_free=scale_free))
    loss, metrics = run(value)
    np.testing.assert_allclose(loss, -value / size, rtol=1e-5)
    np.testing.assert_allclose(metrics["actor/q"], value.astype(np.float64).mean(), rtol=1e-5)
    gradient = jax.grad(lambda x: jnp.sum(run(x)[0]))(jnp.asarray(value))
    np.testing.assert_allclose(gradient, np.full(9, -1.0 / size), rtol=1e-5)


@MODES
def test_the_size_of_a_scale_free_push_is_that_of_valid_values(mode):
    value = np.array([1.0, -2.0, np.nan, 6.0, 1e6], np.float32)
    valid = np.array([True, True, False, True, False])
    loss, _ = mode(lambda x, valid: policy.value_ascent(x, scale_free=True, valid=valid))(value, valid)
    np.testing.assert_allclose(np.asarray(loss)[valid], [-1.0 / 3.0, 2.0 / 3.0, -2.0], rtol=1e-6)


def test_scale_free_of_zero_values_is_finite():
    assert np.all(np.isfinite(policy.value_ascent(jnp.zeros(4), scale_free=True)[0]))
    nothing = jnp.zeros(4, bool)
    assert np.all(np.isfinite(policy.value_ascent(jnp.ones(4), scale_free=True, valid=nothing)[0]))


def test_value_ascent_refuses_a_broadcasting_head():
    for value, valid in ((jnp.zeros((5, 1)), None), (jnp.zeros(5), jnp.ones(1, bool))):
        with pytest.raises(AssertionError):
            policy.value_ascent(value, valid=valid)


@MODES
def test_closeness(mode):
    rng = np.random.default_rng(1)
    action, wanted = rng.normal(size=(2, 6, 3)).astype(np.float32)
    loss, metrics = mode(policy.closeness)(action, wanted)
    oracle = np.mean((action.astype(np.float64) - wanted) ** 2, -1)
    np.testing.assert_allclose(loss, oracle, rtol=1e-5)
    np.testing.assert_allclose(metrics["actor/distance"], oracle.mean(), rtol=1e-5)
    slopes = jax.grad(lambda *x: jnp.sum(policy.closeness(*x)[0]), (0, 1))(action, wanted)
    np.testing.assert_allclose(slopes[0], 2 / 3 * (action - wanted), rtol=1e-5)
    assert not np.any(slopes[1])


CODED = [jnp.zeros((5, 3)), jnp.zeros((5, 3)), jnp.zeros((5, 2)), jnp.zeros((5, 2))]


@MODES
def test_autoencoding(mode):
    """Its divergence is that of normal distributions, by quadrature."""
    rng = np.random.default_rng(2)
    copied, data = rng.normal(size=(2, 6, 3)).astype(np.float32)
    mean, log_std = 0.5 * rng.normal(size=(2, 6, 2)).astype(np.float32)
    weight = np.arange(6) % 2
    loss, _ = mode(lambda *x: policy.autoencoding(*x, weight=weight, divergence=0.5))(copied, data, mean, log_std)
    x, step = np.linspace(-60.0, 60.0, 100_001, retstep=True)
    log_normal = lambda m, s: -(((x - m) / s) ** 2) / 2 - np.log(s * np.sqrt(2 * np.pi))
    oracle = weight * np.sum((copied.astype(np.float64) - data) ** 2, -1)
    for b in range(6):
        for k in range(2):
            log_p = log_normal(mean[b, k], np.exp(log_std[b, k]))
            oracle[b] += 0.5 * np.sum(np.exp(log_p) * (log_p - log_normal(0.0, 1.0))) * step
    np.testing.assert_allclose(loss, oracle, rtol=1e-4)


@pytest.mark.parametrize("i", range(4))
def test_closeness_and_autoencoding_refuse_broadcasting(i):
    for wrong in (CODED[i][:1], CODED[i][:, :1], CODED[i][..., None]):
        with pytest.raises(AssertionError):
            policy.autoencoding(*CODED[:i], wrong, *CODED[i + 1 :])
        if i < 2:
            with pytest.raises(AssertionError):
                policy.closeness(*CODED[:i], wrong, *CODED[i + 1 : 2])
