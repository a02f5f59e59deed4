"""Distributions against float64 NumPy and SciPy, numerical integrals, and distrax's own transformed normal."""

import distrax
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.special
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from jaxrl_gen import distributions

MODES = pytest.mark.parametrize("mode", [lambda f: f, jax.jit], ids=["eager", "jit"])


def numpy_log_prob(x, mean, std):
    """log p(tanh x) in float64, by log(1 - tanh(x)^2) = -2 log cosh x."""
    x, mean, std = (np.asarray(value, np.float64) for value in (x, mean, std))
    log_cosh = np.logaddexp(x, -x) - np.log(2.0)
    return np.sum(scipy.stats.norm.logpdf(x, mean, std) + 2.0 * log_cosh, -1)


def draw(shape=(50, 3), seed=0, spread=2.0):
    rng = np.random.default_rng(seed)
    x = rng.normal(0.0, spread, shape).astype(np.float32)
    return x, rng.normal(size=shape).astype(np.float32), rng.uniform(0.3, 2.0, shape).astype(np.float32)


@MODES
def test_tanh_normal_log_prob(mode):
    x, mean, std = draw()
    before = mode(lambda x, m, s: distributions.tanh_normal(m, s).log_prob_before_tanh(x))(x, mean, std)
    np.testing.assert_allclose(before, numpy_log_prob(x, mean, std), rtol=1e-4, atol=1e-4)
    assert before.shape == (50,) and before.dtype == jnp.float32

    action = np.tanh(x)
    after = mode(lambda a, m, s: distributions.tanh_normal(m, s).log_prob(a))(action, mean, std)
    known = np.arctanh(action.astype(np.float64))  # what the float32 action stands for
    np.testing.assert_allclose(after, numpy_log_prob(known, mean, std), rtol=1e-4, atol=1e-4)


@MODES
def test_tanh_normal_equals_distrax(mode):
    x, mean, std = draw(seed=1, spread=1.0)

    def theirs(action, mean, std):
        tanh = distrax.Block(distrax.Tanh(), 1)
        return distrax.Transformed(distrax.MultivariateNormalDiag(mean, std), tanh).log_prob(action)

    ours = mode(lambda a, m, s: distributions.tanh_normal(m, s).log_prob(a))
    np.testing.assert_allclose(ours(np.tanh(x), mean, std), mode(theirs)(np.tanh(x), mean, std), rtol=1e-4, atol=1e-4)


@MODES
def test_tanh_normal_log_prob_near_the_boundary(mode):
    """At |x| = 20 the action is 1 in float32; nothing is lost where no inverse is taken."""
    x = np.array([[-20.0], [-12.0], [-8.0], [8.0], [12.0], [20.0]], np.float32)
    mean, std = np.float32(np.sign(x) * 5.0), np.full_like(x, 3.0)
    ours = mode(lambda x, m, s: distributions.tanh_normal(m, s).log_prob_before_tanh(x))(x, mean, std)
    np.testing.assert_allclose(ours, numpy_log_prob(x, mean, std), rtol=1e-6)


@MODES
def test_tanh_normal_inverts_every_float32_action(mode):
    """Up to the last number below 1; at 1 itself the density is that of the last number."""
    last = np.float32(1.0 - 2.0**-24)
    action = np.array([0.0, 1e-8, 0.5, 0.99, 1 - 1e-4, 1 - 1e-6, last], np.float32)[:, None]
    action = np.concatenate([action, -action])
    mean, std = np.zeros_like(action), np.full_like(action, 2.0)
    log_prob = mode(lambda a, m, s: distributions.tanh_normal(m, s).log_prob(a))
    known = np.arctanh(action.astype(np.float64))
    np.testing.assert_allclose(log_prob(action, mean, std), numpy_log_prob(known, mean, std), rtol=1e-5, atol=1e-5)
    edge = np.array([[1.0], [-1.0]], np.float32)
    np.testing.assert_array_equal(log_prob(edge, mean[:2], std[:2]), log_prob(edge * last, mean[:2], std[:2]))


@MODES
@pytest.mark.parametrize("x", [-20.0, -8.0, 0.0, 8.0, 20.0])
def test_tanh_normal_gradients_are_finite(mode, x):
    point, mean, std = jnp.full((1,), x), jnp.zeros((1,)), jnp.ones((1,))
    functions = {
        "before": lambda x, m, s: distributions.tanh_normal(m, s).log_prob_before_tanh(x),
        "inverse": lambda x, m, s: distributions.tanh_normal(m, s).log_prob(jnp.tanh(x)),
        "entropy": lambda x, m, s: distributions.tanh_normal(m + x, s).entropy_estimate(jax.random.key(0)),
    }
    for name, function in functions.items():
        for gradient in mode(jax.grad(function, (0, 1, 2)))(point, mean, std):
            assert np.all(np.isfinite(gradient)), name
    by_x, by_mean, by_std = mode(jax.grad(functions["before"], (0, 1, 2)))(point, mean, std)
    np.testing.assert_allclose([by_x[0], by_mean[0], by_std[0]], [-x + 2 * np.tanh(x), x, x**2 - 1], atol=1e-4)


@given(st.floats(-20.0, 20.0), st.floats(-3.0, 3.0), st.floats(0.01, 10.0))
def test_tanh_normal_log_prob_everywhere(x, mean, std):
    x, mean, std = (np.array([value], np.float32) for value in (x, mean, std))
    ours = LOG_PROB_BEFORE_TANH(x, mean, std)
    np.testing.assert_allclose(ours, numpy_log_prob(x, mean, std), rtol=1e-5, atol=1e-4)


LOG_PROB_BEFORE_TANH = jax.jit(lambda x, m, s: distributions.tanh_normal(m, s).log_prob_before_tanh(x))


@pytest.mark.parametrize("mean, std", [(0.0, 0.5), (0.7, 1.0), (-1.0, 2.0)])
def test_tanh_normal_density_integrates_to_one(mean, std):
    action = np.tanh(np.linspace(-8.0, 8.0, 20_001))[:, None].astype(np.float32)
    density = np.exp(distributions.tanh_normal(jnp.array([mean]), jnp.array([std])).log_prob(jnp.asarray(action)))
    assert np.trapezoid(density.astype(np.float64), action[:, 0].astype(np.float64)) == pytest.approx(1.0, abs=2e-3)


@MODES
def test_tanh_normal_entropy_estimate_and_its_gradient(mode):
    """Against the integral of -p log p, and finite differences of it."""

    def entropy(mean, std):
        def integrand(x):
            return scipy.stats.norm.pdf(x, mean, std) * numpy_log_prob([x], [mean], [std])

        return -scipy.integrate.quad(integrand, mean - 12 * std, mean + 12 * std)[0]

    keys = jax.random.split(jax.random.key(3), 100_000)

    def estimate(mean, std):
        one = lambda key: distributions.tanh_normal(mean[None], std[None]).entropy_estimate(key)  # noqa: E731
        return jnp.mean(jax.vmap(one)(keys))

    mean, std, step = 0.5, 0.8, 1e-4
    value, gradient = mode(jax.value_and_grad(estimate, (0, 1)))(jnp.float32(mean), jnp.float32(std))
    assert float(value) == pytest.approx(entropy(mean, std), abs=0.01)
    by_mean = (entropy(mean + step, std) - entropy(mean - step, std)) / (2 * step)
    by_std = (entropy(mean, std + step) - entropy(mean, std - step)) / (2 * step)
    np.testing.assert_allclose(gradient, [by_mean, by_std], atol=0.02)


@MODES
def test_tanh_normal_samples_have_their_distribution(mode):
    mean, std = jnp.array([0.3, -1.0]), jnp.array([0.5, 1.5])
    sample = mode(lambda key: distributions.tanh_normal(mean, std).sample(seed=key, sample_shape=(4000,)))
    actions = np.asarray(sample(jax.random.key(4)))
    assert actions.shape == (4000, 2) and np.all(np.abs(actions) <= 1.0)
    for i in range(2):
        before = np.arctanh(actions[:, i].astype(np.float64))
        assert scipy.stats.kstest(before, scipy.stats.norm(mean[i], std[i]).cdf).pvalue > 1e-3


def test_tanh_normal_sample_and_log_prob_agree_where_tanh_saturates():
    dist = distributions.tanh_normal(jnp.full((5, 1), 15.0), jnp.ones((5, 1)))
    actions, log_prob = dist.sample_and_log_prob(seed=jax.random.key(5))
    assert actions.shape == (5, 1) and log_prob.shape == (5,)
    x = np.asarray(dist.before_tanh.sample(seed=jax.random.key(5)))
    np.testing.assert_allclose(log_prob, numpy_log_prob(x, 15.0 * np.ones((5, 1)), np.ones((5, 1))), rtol=1e-5)


def test_tanh_normal_shapes_and_mode():
    dist = distributions.tanh_normal(jnp.full((4, 2, 3), 0.5), jnp.ones((4, 2, 3)))
    assert dist.batch_shape == (4, 2) and dist.event_shape == (3,)
    np.testing.assert_allclose(dist.mode(), np.full((4, 2, 3), np.tanh(0.5)), rtol=1e-6)
    assert dist.entropy_estimate(jax.random.key(0)).shape == (4, 2)


@MODES
def test_normal(mode):
    x, mean, std = draw(seed=2)
    log_prob = mode(lambda x, m, s: distributions.normal(m, s).log_prob(x))(x, mean, std)
    oracle = scipy.stats.norm.logpdf(x.astype(np.float64), mean, std).sum(-1)
    np.testing.assert_allclose(log_prob, oracle, rtol=1e-4, atol=1e-4)
    entropy = mode(lambda m, s: distributions.normal(m, s).entropy())(mean, std)
    np.testing.assert_allclose(
        entropy, scipy.stats.norm.entropy(scale=std.astype(np.float64)).sum(-1), rtol=1e-4, atol=1e-5
    )


@MODES
def test_categorical(mode):
    rng = np.random.default_rng(6)
    logits = rng.normal(0.0, 3.0, (20, 5)).astype(np.float32)
    choice = rng.integers(0, 5, 20)
    oracle = scipy.special.log_softmax(logits.astype(np.float64), -1)
    log_prob = mode(lambda c, z: distributions.categorical(z).log_prob(c))(choice, logits)
    np.testing.assert_allclose(log_prob, oracle[np.arange(20), choice], rtol=1e-5, atol=1e-5)
    entropy = mode(lambda z: distributions.categorical(z).entropy())(logits)
    np.testing.assert_allclose(entropy, -np.sum(np.exp(oracle) * oracle, -1), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(mode(lambda z: distributions.categorical(z).mode())(logits), logits.argmax(-1))


@MODES
def test_categorical_samples_have_their_frequencies(mode):
    logits = jnp.array([0.0, 1.0, 2.0, -1.0])
    sample = mode(lambda key: distributions.categorical(logits).sample(seed=key, sample_shape=(5000,)))
    counts = np.bincount(sample(jax.random.key(7)), minlength=4)
    expected = 5000 * scipy.special.softmax(np.asarray(logits, np.float64))
    assert scipy.stats.chisquare(counts, expected).pvalue > 1e-3


@MODES
def test_categorical_is_finite_at_extreme_logits(mode):
    def total(logits):
        dist = distributions.categorical(logits)
        return dist.log_prob(jnp.array(1)) + dist.entropy()

    value, gradient = mode(jax.value_and_grad(total))(jnp.array([1e4, -1e4, 0.0]))
    assert np.isfinite(value) and np.all(np.isfinite(gradient))
    assert float(value) == pytest.approx(-2e4)
