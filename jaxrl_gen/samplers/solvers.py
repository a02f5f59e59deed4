"""From noise to data in one scan: DDPM, DDIM, Euler and Heun, on any process and any kind of prediction."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl_gen.losses import denoise
from jaxrl_gen.losses.denoise import Process


class Sampler(NamedTuple):
    """One step from time t to the less noisy time s.

    `step(estimate, x, t, s, process) -> (mean, std)`, where `estimate(x, t) -> (data, noise)` asks the denoiser, and
    times are [B]. What follows x is normal, of this mean [B, ...] and of this deviation [B]; it is `None` where nothing
    is drawn. `check(process, kind)` refuses what the step cannot do.
    """

    step: Callable
    check: Callable
    evaluations: int  # of the denoiser per step
    stochastic: bool  # noise is drawn at each step
    density: bool  # and at none of them its deviation is zero


def ddpm(eta: float = 1.0, min_std: float = 0.0) -> Sampler:
    """Ancestral sampling: remove the noise, then add as much of new noise as the process has put in between s and t.

    mean = signal_s data + sqrt(noise_s^2 - std^2) noise, and
    std = eta (noise_s / noise_t) sqrt(noise_t^2 - (signal_t / signal_s)^2 noise_s^2).

    Args:
      eta: share of the noise that is new, 0 < eta <= 1.
      min_std: the least deviation of a step. The last step's is zero without it, and then there is no density.
    Returns:
      Sampler, for every process.
    Raises:
      ValueError: for an eta outside (0, 1], or a negative min_std.
    Reference: Ho et al. 2020, arXiv 2006.11239, eq. 6 and 7; Song et al. 2021, arXiv 2010.02502, eq. 16
    """
    if not 0.0 < eta <= 1.0 or min_std < 0.0:
        raise ValueError(f"eta is {eta} and min_std is {min_std}; allowed: 0 < eta <= 1 (0 is ddim), min_std >= 0")

    def step(estimate, x, t, s, process):
        data, noise = estimate(x, t)
        (signal_t, noise_t), (signal_s, noise_s) = process.path(t), process.path(s)
        between = jnp.maximum(noise_t**2 - (signal_t / signal_s) ** 2 * noise_s**2, 0.0)
        std = eta * noise_s / noise_t * jnp.sqrt(between)
        mean = _over(signal_s, x) * data + _over(jnp.sqrt(jnp.maximum(noise_s**2 - std**2, 0.0)), x) * noise
        return mean, jnp.maximum(std, min_std)

    return Sampler(step, lambda process, kind: None, 1, stochastic=True, density=min_std > 0.0)


def ddim() -> Sampler:
    """Deterministic steps along the same data and noise: x_s = signal_s data + noise_s noise.

    On the straight path of `denoise.flow` this is Euler's method.

    Returns:
      Sampler, for every process.
    Reference: Song et al. 2021, arXiv 2010.02502, eq. 12 with sigma = 0
    """

    def step(estimate, x, t, s, process):
        data, noise = estimate(x, t)
        return denoise.diffuse(data, noise, s, process), None

    return Sampler(step, lambda process, kind: None, 1, stochastic=False, density=False)


def euler() -> Sampler:
    """Steps along the velocity, x_s = x + (s - t) velocity(x, t); of order 1.

    Returns:
      Sampler, for processes that have a velocity.
    Reference: Lipman et al. 2023, arXiv 2210.02747
    """

    def step(estimate, x, t, s, process):
        return x + _over(s - t, x) * _velocity(estimate, x, t, process), None

    return Sampler(step, _has_velocity, 1, stochastic=False, density=False)


def heun() -> Sampler:
    """Steps along the mean of the velocities at both ends, the second one after a step of Euler's; of order 2.

    Returns:
      Sampler, for processes that have a velocity, and predictions that tell it at the end of the path.
    Reference: Karras et al. 2022, arXiv 2206.00364, algorithm 1
    """

    def step(estimate, x, t, s, process):
        first = _velocity(estimate, x, t, process)
        second = _velocity(estimate, x + _over(s - t, x) * first, s, process)
        return x + _over(s - t, x) * 0.5 * (first + second), None

    def check(process, kind):
        _has_velocity(process, kind)
        if not _tells(process, kind, process.data_at):
            raise ValueError(
                f"heun asks for the velocity where there is no noise, and {_name(kind)} does not tell it there; "
                "allowed: euler, or a prediction of eps, v or velocity"
            )

    return Sampler(step, check, 2, stochastic=False, density=False)


def leading(process: Process, steps: int) -> jax.Array:
    """Times of a sampler from noise to data, [steps + 1], evenly apart.

    Of a table, every (T // steps)-th level from the least noisy one up, as most releases do: the noisiest levels, from
    which a prediction of noise says little of the data, may be left out.
    """
    if process.levels is None:
        return jnp.linspace(1.0 - process.data_at, process.data_at, steps + 1, dtype=jnp.float32)
    stride = process.levels // steps
    return _of_levels([stride * i + 1 for i in reversed(range(steps))], process)


def trailing(process: Process, steps: int) -> jax.Array:
    """As `leading`, but of a table the noisiest level is always the first.

    Reference: Lin et al. 2024, arXiv 2305.08891, section 3.3
    """
    if process.levels is None:
        return leading(process, steps)
    return _of_levels([round(process.levels * i / steps) for i in range(steps, 0, -1)], process)


def sample(
    sampler: Sampler,
    predict: Callable,
    start: jax.Array,
    key: jax.Array | None,
    *,
    process: Process,
    kind: Callable,
    steps: int,
    spacing: Callable = leading,
    on_data: Callable | None = None,
    on_step: Callable | None = None,
) -> jax.Array:
    """Turn noise into data: one scan over `steps` steps, each of which asks the denoiser once (`heun`: twice).

    Args:
      sampler: such as `ddim()`.
      predict: (x_t [B, ...], t [B]) -> [B, ...], conditioning already closed over.
      start: [B, ...], standard normal; or what to go on from at the first of the times.
      key: consumed here; may be None for a sampler that draws nothing.
      process: the one that `predict` was taught.
      kind: what it predicts, such as `denoise.eps`.
      steps: N.
      spacing: `(process, steps) -> times [N + 1]`, from noise to data.
      on_data: hook `(data [B, ...], x [B, ...], t [B]) -> data`, on every estimate of the data: clip, project, push.
        The noise is then what is left of x.
      on_step: hook `(x [B, ...], t [B]) -> x`, after every step: inpaint, project.
    Returns:
      x [B, ...].
    Raises:
      ValueError: where sampler, process, kind, steps and key do not belong together.
    """
    advance = advancing(sampler, predict, process=process, kind=kind, on_data=on_data)
    times, keys = schedule(sampler, process, kind, steps, spacing, key)

    def step(x, row):
        t, s, key = row
        t, s = jnp.full(x.shape[:1], t), jnp.full(x.shape[:1], s)
        mean, std = advance(x, t, s)
        x = mean if std is None else mean + _over(std, x) * jax.random.normal(key, x.shape, x.dtype)
        return (x if on_step is None else on_step(x, s)), None

    return jax.lax.scan(step, start, (times[:-1], times[1:], keys))[0]


def belong(sampler: Sampler, process: Process, kind: Callable, steps: int, spacing: Callable = leading) -> None:
    """Refuse parts that do not belong together, before anything is traced.

    Raises:
      ValueError: for a step that the process or the kind of prediction does not allow, a number of steps that the
        process does not, or a prediction that says nothing of the data at the first of the times.
    """
    sampler.check(process, kind)
    most = process.levels
    if steps < 1 or (most is not None and steps > most):
        raise ValueError(f"steps is {steps}; allowed: 1 {'and more' if most is None else f'to {most}, the levels'}")
    with jax.ensure_compile_time_eval():
        first = float(spacing(process, steps)[0])
    if not _tells(process, kind, first):
        raise ValueError(
            f"the first step is from pure noise, at time {first:g}, and {_name(kind)} does not tell the data from it; "
            "allowed: a prediction of x0, v or velocity, or times that begin where some of the data is left"
        )


def evaluations(sampler: Sampler, steps: int) -> int:
    """How often a sample of so many steps asks the denoiser."""
    return sampler.evaluations * steps


def advancing(
    sampler: Sampler, predict: Callable, *, process: Process, kind: Callable, on_data: Callable | None = None
) -> Callable:
    """The step of a sampler with its denoiser in place: `(x, t [B], s [B]) -> (mean, std)`."""

    def estimate(x, t):
        prediction = predict(x, t)
        chex.assert_equal_shape([prediction, x])
        data, noise = denoise.recover(prediction, x, t, process, kind=kind)
        if on_data is None:
            return data, noise
        data = on_data(data, x, t)
        signal, left = (_over(part, x) for part in process.path(t))
        return data, jnp.where(left > 0, (x - signal * data) / jnp.where(left > 0, left, 1.0), noise)

    return lambda x, t, s: sampler.step(estimate, x, t, s, process)


def schedule(
    sampler: Sampler, process: Process, kind: Callable, steps: int, spacing: Callable, key: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """The times [N + 1] and the keys [N] of a scan, after the parts were found to belong together.

    Raises:
      ValueError: where they do not.
    """
    belong(sampler, process, kind, steps, spacing)
    if sampler.stochastic and key is None:
        raise ValueError("the sampler draws noise at each step, and key is None; allowed: a key, or ddim, euler, heun")
    return spacing(process, steps), jax.random.split(key, steps) if sampler.stochastic else None


def _velocity(estimate: Callable, x: jax.Array, t: jax.Array, process: Process) -> jax.Array:
    data, noise = estimate(x, t)
    of_data, of_noise = denoise.velocity(process, t)
    return _over(of_data, x) * data + _over(of_noise, x) * noise


def _has_velocity(process: Process, kind: Callable) -> None:
    if process.levels is not None:
        raise ValueError(
            f"euler and heun follow a velocity, and the process is a table of {process.levels} levels; "
            "allowed: ddpm or ddim, or a continuous process"
        )


def _tells(process: Process, kind: Callable, t: float) -> bool:
    """Whether data and noise follow from x and the prediction at time t: two equations, which must be independent."""
    with jax.ensure_compile_time_eval():
        t = jnp.full((1,), t)
        (signal, noise), (of_data, of_noise) = process.path(t), kind(process, t)
        determinant = signal * of_noise - noise * of_data
        return bool(jnp.all(jnp.isfinite(determinant) & (jnp.abs(determinant) > 1e-6)))  # cos(pi / 2) is 4e-8


def _of_levels(levels: list[int], process: Process) -> jax.Array:
    return jnp.asarray([level / process.levels for level in [*levels, 0]], jnp.float32)


def _over(weight: jax.Array, x: jax.Array) -> jax.Array:
    """[B] as a factor of [B, ...]."""
    return weight.reshape(-1, *[1] * (x.ndim - 1))


def _name(kind: Callable) -> str:
    return getattr(kind, "__name__", repr(kind))
