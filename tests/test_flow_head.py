"""The flow head against what is known of it: Gaussian data, whose velocity at every time is a formula."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrl_gen import distributions

MEAN, STD = np.array([0.3, -0.2]), np.array([0.2, 0.4])


def gaussian(params, x, t, output):
    """E[data - noise | x_t = x] for data ~ N(MEAN + output, STD^2) and x_t = (1 - t) noise + t data."""
    t, mean = t[..., None], jnp.asarray(MEAN, jnp.float32) + output
    variance = (1 - t) ** 2 + t**2 * jnp.asarray(STD, jnp.float32) ** 2
    slope = (t * jnp.asarray(STD, jnp.float32) ** 2 - (1 - t)) / variance
    return mean + slope * (x - t * mean)


def head(steps, noise):
    return distributions.flow_head(gaussian, lambda key: {}, 2, 2, steps=steps, noise=noise)


@pytest.mark.parametrize("noise", [0.2, 0.7])
def test_with_the_true_velocity_it_draws_the_data_whatever_the_noise(noise):
    it = head(200, noise)
    chain, _ = jax.jit(lambda key: it.sample({}, jnp.zeros((20_000, 2)), key))(jax.random.key(0))
    drawn = np.asarray(chain[:, -1])
    np.testing.assert_allclose(drawn.mean(0), MEAN, atol=0.012)
    np.testing.assert_allclose(drawn.std(0), STD, rtol=0.03)


def test_the_correction_is_half_the_squared_diffusion_times_the_score():
    """Of the Gaussian path in closed form, in float64."""
    it, noise, steps = head(10, 0.6), 0.6, 10
    chain, log_prob = it.sample({}, jnp.full((4, 2), 0.1), jax.random.key(1))
    chain = np.asarray(chain, np.float64)
    total = stats.norm.logpdf(chain[:, 0]).sum(-1)
    for k in range(steps):
        t, x = k / steps, chain[:, k]
        mean, variance = MEAN + 0.1, (1 - t) ** 2 + t**2 * STD**2
        velocity = mean + (t * STD**2 - (1 - t)) / variance * (x - t * mean)
        score = -(x - t * mean) / variance
        drift = velocity + 0.5 * noise**2 * (1 - t) * score
        total += stats.norm.logpdf(chain[:, k + 1], x + drift / steps, noise * np.sqrt((1 - t) / steps)).sum(-1)
    np.testing.assert_allclose(log_prob, total, rtol=1e-4)


def test_the_log_prob_of_a_chain_is_the_one_it_was_drawn_with():
    it = head(7, 0.5)
    output = jax.random.normal(jax.random.key(0), (3, 5, 2))
    chain, log_prob = jax.jit(lambda key: it.sample({}, output, key))(jax.random.key(1))
    assert chain.shape == (3, 5, 8, 2) and log_prob.shape == (3, 5)
    again, entropy = jax.jit(it.score)({}, output, chain, jax.random.key(2))
    np.testing.assert_allclose(again, log_prob, rtol=1e-5, atol=1e-5)
    assert (entropy == 0).all()
    np.testing.assert_array_equal(it.action(chain), np.clip(np.asarray(chain)[:, :, -1], -1, 1))


def test_the_mode_is_eulers_method_without_noise():
    x = np.asarray(jax.random.normal(jax.random.key(0), (2,)), np.float64)
    for k in range(5):
        t = k / 5
        variance = (1 - t) ** 2 + t**2 * STD**2
        x = x + (MEAN + (t * STD**2 - (1 - t)) / variance * (x - t * MEAN)) / 5
    np.testing.assert_allclose(head(5, 0.5).mode({}, jnp.zeros((3, 2))), np.clip([x] * 3, -1, 1), rtol=1e-5)


def learning(steps, noise):
    """A head whose velocity is w g(x, t) + b + output, g that of the Gaussian: linear in what is learned."""
    velocity = lambda params, x, t, output: params["w"] * gaussian({}, x, t, 0.0 * output) + params["b"] + output
    return distributions.flow_head(velocity, lambda key: {}, 2, 2, steps=steps, noise=noise)


PARAMS = {"w": jnp.float32(0.8), "b": jnp.array([0.1, -0.3], jnp.float32)}


def gradients(it, chain, output):
    """Of each chain's log-probability by w [N], b [N, 2] and the actor's output [N, 2]."""
    score = lambda params, output, chain: it.score(params, output, chain, jax.random.key(0))[0]
    by_params, by_output = jax.jit(jax.vmap(jax.grad(score, (0, 1)), (None, 0, 0)))(PARAMS, output, chain)
    return np.asarray(by_params["w"]), np.asarray(by_params["b"]), np.asarray(by_output)


def test_the_gradient_of_a_chains_log_prob_is_its_closed_form():
    """sum_k dv (1 + noise^2 t / 2) dt (x_{k+1} - mean_k) / std_k^2, in float64."""
    steps, noise = 6, 0.6
    it, output = learning(steps, noise), jax.random.normal(jax.random.key(0), (5, 2))
    chain, _ = it.sample(PARAMS, output, jax.random.key(1))
    x, dt = np.asarray(chain, np.float64), 1 / steps
    by_w, by_v = np.zeros(5), np.zeros((5, 2))
    for k in range(steps):
        t = k / steps
        slope = (t * STD**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * STD**2)
        shape = MEAN + slope * (x[:, k] - t * MEAN)
        velocity = float(PARAMS["w"]) * shape + np.asarray(PARAMS["b"], np.float64) + np.asarray(output, np.float64)
        mean = x[:, k] + (velocity - 0.5 * noise**2 * (x[:, k] - t * velocity)) * dt
        of_v = (1 + 0.5 * noise**2 * t) * dt * (x[:, k + 1] - mean) / (noise**2 * (1 - t) * dt)
        by_w, by_v = by_w + (of_v * shape).sum(-1), by_v + of_v
    of_w, of_b, of_output = gradients(it, chain, output)
    np.testing.assert_allclose(of_w, by_w, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(of_b, by_v, rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(of_output, by_v, rtol=1e-3, atol=1e-3)


def test_the_gradient_of_log_probs_is_a_score():
    """Its mean over chains of the same policy is zero, and that of its square is not."""
    it, output = learning(5, 0.5), jnp.zeros((4000, 2))
    chain, _ = jax.jit(lambda key: it.sample(PARAMS, output, key))(jax.random.key(2))
    for each in gradients(it, chain, output):
        assert np.isfinite(each).all() and np.abs(each).mean() > 0.1
        assert (np.abs(each.mean(0)) < 4 * each.std(0) / np.sqrt(len(each))).all()


@pytest.mark.parametrize(
    "changes, message",
    [({"steps": 0}, "steps is 0; allowed: 1 and more"), ({"noise": 0.0}, "noise is 0.0; allowed: above 0"),
     ({"noise": -0.5}, "noise is -0.5"), ({"noise": np.nan}, "noise is nan"),
     ({"noise": jnp.zeros(())}, "noise is 0.0")],
)  # fmt: skip
def test_a_chain_without_steps_or_without_a_density_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        head(**({"steps": 5, "noise": 0.5} | changes))
