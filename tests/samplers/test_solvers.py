"""Samplers on normal data, of which the best denoiser at every time is a formula: against float64 NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen import samplers
from jaxrl_gen.losses import denoise

MEAN = np.array([0.4, -0.3])
COVARIANCE = np.array([[0.30, 0.12], [0.12, 0.10]])
VARIANCES, AXES = np.linalg.eigh(COVARIANCE)
LEVELS = 50
BETAS = denoise.linear_betas(LEVELS, 1e-3, 0.2)
PROCESSES = {"flow": denoise.flow(), "cosine": denoise.cosine(), "ddpm": denoise.ddpm(BETAS)}


def numpy_path(name, t):
    t = np.asarray(t, np.float64)
    if name == "flow":
        return t, 1.0 - t
    if name == "cosine":
        return np.cos(np.pi / 2 * t), np.sin(np.pi / 2 * t)
    kept = np.append(1.0, np.cumprod(1.0 - np.asarray(BETAS)))[np.round(t * LEVELS).astype(int)]
    return np.sqrt(kept), np.sqrt(1.0 - kept)


def numpy_best(name, x, t):
    """E[data | x_t = x] and E[noise | x_t = x], for one time."""
    signal, level = numpy_path(name, t)
    gain = signal * COVARIANCE @ np.linalg.inv(signal**2 * COVARIANCE + level**2 * np.eye(2))
    data = MEAN + (x - signal * MEAN) @ gain.T
    return data, (x - signal * data) / level if level else np.zeros_like(x)


def best(process, kind):
    """The same in JAX, as a prediction of any kind."""

    def predict(x, t):
        signal, level = (part[:, None] for part in process.path(t))
        gain = signal * VARIANCES / (signal**2 * VARIANCES + level**2)  # along the axes of the covariance
        data = MEAN + (gain * ((x - signal * MEAN) @ AXES)) @ AXES.T
        return denoise.convert(data, x, t, process, given=denoise.x0, wanted=kind)

    return predict


def run(sampler, name, start, key=None, *, kind=denoise.eps, steps=LEVELS, predict=None, **more):
    process = PROCESSES[name]
    predict = predict or best(process, kind)
    call = lambda start: samplers.sample(sampler, predict, start, key, process=process, kind=kind, steps=steps, **more)
    return np.asarray(jax.jit(call)(jnp.asarray(start, jnp.float32)), np.float64)


def noise(count, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 2))


def times(name, steps):
    return np.asarray(samplers.leading(PROCESSES[name], steps), np.float64)


# ------------------------------------------------------------------------------------------- each step by its formula


@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_a_step_of_ddpm_is_the_posterior_of_the_paper(eta):
    """Ho et al. 2020, eq. 6 and 7, for eta = 1; Song et al. 2021, eq. 12 and 16, for another."""
    betas = np.asarray(BETAS)
    kept = np.append(1.0, np.cumprod(1.0 - betas))
    x, estimate = noise(1)[0], noise(1, 1)[0]
    advance = samplers.advancing(
        samplers.ddpm(eta), lambda x, t: jnp.asarray(estimate, jnp.float32)[None], process=PROCESSES["ddpm"],
        kind=denoise.x0,
    )  # fmt: skip
    for i in (2, 7, 30, LEVELS):
        now, before = jnp.array([i / LEVELS]), jnp.array([(i - 1) / LEVELS])
        mean, std = advance(jnp.asarray(x, jnp.float32)[None], now, before)
        variance = betas[i - 1] * (1 - kept[i - 1]) / (1 - kept[i])
        if eta == 1.0:
            of_data = np.sqrt(kept[i - 1]) * betas[i - 1] / (1 - kept[i])
            of_x = np.sqrt(1 - betas[i - 1]) * (1 - kept[i - 1]) / (1 - kept[i])
            oracle = of_data * estimate + of_x * x
        else:
            eps = (x - np.sqrt(kept[i]) * estimate) / np.sqrt(1 - kept[i])
            oracle = np.sqrt(kept[i - 1]) * estimate + np.sqrt(1 - kept[i - 1] - eta**2 * variance) * eps
        np.testing.assert_allclose(mean[0], oracle, rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(std, [eta * np.sqrt(variance)], rtol=1e-3)


@pytest.mark.parametrize("steps", [LEVELS, 10, 7])
def test_ddim_is_its_recursion_in_float64(steps):
    start = noise(20)
    x, grid = start, times("ddpm", steps)
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        data, eps = numpy_best("ddpm", x, t)
        signal, level = numpy_path("ddpm", s)
        x = signal * data + level * eps
    np.testing.assert_allclose(run(samplers.ddim(), "ddpm", start, steps=steps), x, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["flow", "cosine"])
@pytest.mark.parametrize("solver", ["euler", "heun"])
def test_euler_and_heun_are_their_recursions_in_float64(name, solver):
    start, grid = noise(20), times(name, 8)

    def velocity(x, t):
        data, eps = numpy_best(name, x, t)
        if name == "flow":
            return data - eps
        return np.pi / 2 * (np.cos(np.pi / 2 * t) * eps - np.sin(np.pi / 2 * t) * data)

    x = start
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        first = velocity(x, t)
        x = x + (s - t) * (first if solver == "euler" else (first + velocity(x + (s - t) * first, s)) / 2)
    kind = denoise.velocity if name == "flow" else denoise.v
    got = run(getattr(samplers, solver)(), name, start, kind=kind, steps=8, predict=_safe(name, kind))
    np.testing.assert_allclose(got, x, rtol=2e-3, atol=2e-3)


def _safe(name, kind):
    """As `best`, finite at both ends, where one of data and noise is not told by x."""
    process = PROCESSES[name]

    def predict(x, t):
        def one(x, t):
            signal, level = process.path(t)
            total = signal**2 * COVARIANCE + level**2 * jnp.eye(2)
            solved = jnp.linalg.solve(total, x - signal * MEAN)
            return MEAN + signal * COVARIANCE @ solved, level * solved

        return denoise.target(*jax.vmap(one)(x, t), t, process, kind=kind)

    return predict


def test_ddim_on_the_straight_path_is_euler():
    start = noise(20)
    one, two = (
        run(sampler, "flow", start, kind=denoise.velocity, steps=6) for sampler in (samplers.ddim(), samplers.euler())
    )
    np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------ what they amount to


@functools.cache
def drawn(solver, name, steps):
    sampler = {
        "ddpm": samplers.ddpm(), "half": samplers.ddpm(0.5), "ddim": samplers.ddim(), "euler": samplers.euler(),
        "heun": samplers.heun(),
    }[solver]  # fmt: skip
    kind = denoise.velocity if name == "flow" else denoise.v
    return run(sampler, name, noise(20_000), jax.random.key(1), kind=kind, steps=steps, predict=_safe(name, kind))


@pytest.mark.parametrize(
    "solver, name, steps",
    [
        ("ddpm", "flow", 200), ("half", "flow", 200), ("ddim", "flow", 200), ("euler", "flow", 200),
        ("heun", "flow", 20), ("ddpm", "cosine", 200), ("ddim", "cosine", 100), ("euler", "cosine", 200),
        ("heun", "cosine", 20),
    ],
)  # fmt: skip
def test_with_the_best_denoiser_the_samples_are_the_data(solver, name, steps):
    x = drawn(solver, name, steps)
    np.testing.assert_allclose(x.mean(0), MEAN, atol=0.02)
    np.testing.assert_allclose(np.cov(x.T), COVARIANCE, atol=0.02)


@pytest.mark.parametrize("solver, eta", [("ddpm", 1.0), ("half", 0.5), ("ddim", 0.0)])
def test_on_a_table_the_samples_have_the_mean_and_covariance_of_the_recursion(solver, eta):
    """Every step is affine in x, so both follow from those of the noise; with 50 steps they are nearly the data's."""
    mean, covariance = np.zeros(2), np.eye(2)
    grid = times("ddpm", LEVELS)
    for t, s in zip(grid[:-1], grid[1:], strict=True):
        (signal_t, noise_t), (signal_s, noise_s) = numpy_path("ddpm", t), numpy_path("ddpm", s)
        gain = signal_t * COVARIANCE @ np.linalg.inv(signal_t**2 * COVARIANCE + noise_t**2 * np.eye(2))
        std = eta * noise_s / noise_t * np.sqrt(noise_t**2 - (signal_t / signal_s * noise_s) ** 2)
        left = np.sqrt(noise_s**2 - std**2) / noise_t
        slope = signal_s * gain + left * (np.eye(2) - signal_t * gain)
        mean = slope @ mean + (signal_s - left * signal_t) * (MEAN - signal_t * gain @ MEAN)
        covariance = slope @ covariance @ slope.T + std**2 * np.eye(2)
    np.testing.assert_allclose(covariance, COVARIANCE, atol=0.06)
    x = drawn(solver, "ddpm", LEVELS)
    np.testing.assert_allclose(x.mean(0), mean, atol=0.015)
    np.testing.assert_allclose(np.cov(x.T), covariance, atol=0.012)


def exact(start):
    """Where the flow's path ends in one dimension: every marginal is normal, so the map is affine."""
    return 0.4 + 0.3 * start


@pytest.mark.parametrize("solver, order", [("euler", 1), ("heun", 2)])
def test_order_of_convergence(solver, order):
    def velocity(x, t):
        t = t[:, None]
        return 0.4 + (t * 0.3**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * 0.3**2) * (x - t * 0.4)

    start = np.linspace(-2, 2, 9)[:, None]
    steps = np.array([32, 64, 128]) if solver == "euler" else np.array([16, 32, 64])
    errors = [
        np.abs(run(
            getattr(samplers, solver)(), "flow", start, kind=denoise.velocity, steps=int(n), predict=velocity
        ) - exact(start)).max() for n in steps
    ]  # fmt: skip
    measured = np.log2(errors[0] / errors[1]), np.log2(errors[1] / errors[2])
    np.testing.assert_allclose(measured, order, atol=0.2)


# --------------------------------------------------------------------------------------------------- times, hooks, keys


def test_times():
    flow, table = PROCESSES["flow"], denoise.ddpm(denoise.cosine_betas(100))
    np.testing.assert_allclose(samplers.leading(flow, 4), [0, 0.25, 0.5, 0.75, 1], atol=1e-7)
    np.testing.assert_allclose(samplers.leading(denoise.cosine(), 2), [1, 0.5, 0], atol=1e-7)
    np.testing.assert_allclose(np.asarray(samplers.leading(table, 4)) * 100, [76, 51, 26, 1, 0], atol=1e-4)
    np.testing.assert_allclose(np.asarray(samplers.trailing(table, 4)) * 100, [100, 75, 50, 25, 0], atol=1e-4)
    for spacing in (samplers.leading, samplers.trailing):
        np.testing.assert_allclose(np.asarray(spacing(table, 100)) * 100, np.arange(100, -1, -1), atol=1e-4)


def test_evaluations_are_counted():
    for sampler, each in ((samplers.ddpm(), 1), (samplers.ddim(), 1), (samplers.euler(), 1), (samplers.heun(), 2)):
        calls = []
        predict = lambda x, t: (jax.debug.callback(lambda: calls.append(1)), x)[1]
        run(sampler, "flow", noise(3), jax.random.key(0), kind=denoise.velocity, steps=5, predict=predict)
        jax.effects_barrier()
        assert len(calls) == samplers.evaluations(sampler, 5) == 5 * each


@pytest.mark.parametrize("solver", ["ddpm", "ddim", "euler", "heun"])
def test_the_hook_on_the_data_bounds_the_sample(solver):
    clip = lambda data, x, t: jnp.clip(data, -0.1, 0.1)
    sampler, start = getattr(samplers, solver)(), 3.0 * noise(50)
    parts = dict(kind=denoise.velocity, steps=10, predict=_safe("flow", denoise.velocity))
    free, held = (run(sampler, "flow", start, jax.random.key(2), **parts, **more) for more in ({}, dict(on_data=clip)))
    assert np.abs(free).max() > 0.3 and np.isfinite(held).all()
    assert np.abs(held).max() < (0.1001 if solver != "heun" else 0.6)  # whose second velocity is not of the same data


def test_the_hook_on_steps_sees_every_step_and_what_it_returns_goes_on():
    seen = []

    def inpaint(x, t):
        jax.debug.callback(lambda t: seen.append(float(t[0])), t, ordered=True)
        return x.at[:, 0].set(7.0)

    x = run(samplers.euler(), "flow", noise(4), kind=denoise.velocity, steps=5, on_step=inpaint)
    jax.effects_barrier()
    np.testing.assert_allclose(seen, [0.2, 0.4, 0.6, 0.8, 1.0], atol=1e-6)
    np.testing.assert_array_equal(x[:, 0], 7.0)
    assert not np.any(x[:, 1] == 7.0)


def test_noise_of_steps_depends_on_the_key_and_only_then():
    start = noise(5)
    end = lambda sampler, key: run(sampler, "flow", start, key, kind=denoise.velocity, steps=5)
    one, two = (end(samplers.ddpm(), jax.random.key(k)) for k in (0, 1))
    assert np.all(np.isfinite(one)) and not np.any(one == two)
    one, two = (end(samplers.ddim(), key) for key in (None, jax.random.key(1)))
    np.testing.assert_array_equal(one, two)
    assert np.all(np.isfinite(one))


# --------------------------------------------------------------------------------------------- what does not belong


@pytest.mark.parametrize("sampler", [samplers.euler(), samplers.heun()])
def test_a_velocity_of_a_table_is_refused(sampler):
    with pytest.raises(ValueError, match="the process is a table of 50 levels; allowed: ddpm or ddim"):
        run(sampler, "ddpm", noise(2), steps=5)


@pytest.mark.parametrize("name", ["flow", "cosine"])
def test_heun_with_a_prediction_that_does_not_tell_the_end_is_refused(name):
    with pytest.raises(ValueError, match="x0 does not tell it there; allowed: euler, or a prediction of eps"):
        run(samplers.heun(), name, noise(2), kind=denoise.x0, steps=5)
    samplers.belong(samplers.euler(), PROCESSES[name], denoise.x0, 5)
    samplers.belong(samplers.heun(), PROCESSES[name], denoise.v, 5)
    # A score tells where some noise and some data are left; where there is no noise it is not even finite.
    later = lambda process, steps: 0.1 * process.data_at + 0.9 * samplers.leading(process, steps)
    with pytest.raises(ValueError, match="score does not tell it there; allowed: euler, or a prediction of eps"):
        samplers.belong(samplers.heun(), PROCESSES[name], denoise.score, 5, later)
    samplers.belong(samplers.euler(), PROCESSES[name], denoise.score, 5, later)


@pytest.mark.parametrize("name", ["flow", "cosine"])
@pytest.mark.parametrize("kind", [denoise.eps, denoise.score])
def test_noise_predicted_from_pure_noise_is_refused(name, kind):
    """It is x itself, whatever the data are; from a time at which some of them are left, it tells them."""
    with pytest.raises(ValueError, match=f"pure noise, at time [01], and {kind.__name__} does not tell the data"):
        run(samplers.ddim(), name, noise(2), kind=kind, steps=5)
    later = lambda process, steps: 0.1 + 0.8 * samplers.leading(process, steps)
    assert np.all(np.isfinite(run(samplers.ddim(), name, noise(2), kind=kind, steps=5, spacing=later)))


@pytest.mark.parametrize("steps, name, allowed", [(51, "ddpm", "1 to 50, the levels"), (0, "flow", "1 and more")])
def test_steps_that_the_process_does_not_have_are_refused(steps, name, allowed):
    with pytest.raises(ValueError, match=f"steps is {steps}; allowed: {allowed}"):
        run(samplers.ddim(), name, noise(2), steps=steps)


def test_a_stochastic_sampler_without_a_key_is_refused():
    with pytest.raises(ValueError, match="draws noise at each step, and key is None"):
        run(samplers.ddpm(), "ddpm", noise(2))


@pytest.mark.parametrize("arguments", [(0.0,), (1.1,), (-1.0,), (1.0, -0.1)])
def test_numbers_of_ddpm_out_of_range_are_refused(arguments):
    with pytest.raises(ValueError, match="allowed: 0 < eta <= 1"):
        samplers.ddpm(*arguments)


def test_a_denoiser_of_another_shape_is_refused():
    with pytest.raises(AssertionError):
        run(samplers.ddim(), "flow", noise(2), kind=denoise.velocity, predict=lambda x, t: x[:, :1])
