"""Noise processes, what a denoiser may predict, and the objectives that teach it.

A process mixes data with standard normal noise, x_t = signal(t) data + noise(t) noise, at times t in [0, 1]. Which end
is data is the process's own to say (`data_at`): t = 1 for `flow`, t = 0 for `cosine` and `ddpm`.

What a denoiser predicts is a weighted sum of the same data and noise, with weights that its kind gives, a function
`(process, t) -> (of data, of noise)`: `eps`, `x0`, `v`, `score`, `velocity`, or one of your own. From x_t and any one
of them the others follow exactly, by two equations in two unknowns.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp


class Process(NamedTuple):
    """How data become noise: x_t = signal(t) data + noise(t) noise.

    `path(t) -> (signal, noise)` for t of any shape; `draw(key, shape)` gives the times to learn at. Where `levels` is a
    number T, the path is a table at t = 0, 1/T, ..., 1, and has no velocity; else it is differentiable.
    """

    path: Callable
    draw: Callable
    data_at: float  # 0.0 or 1.0: the time at which x_t is data; the other one is noise
    levels: int | None = None


def flow() -> Process:
    """The straight path, x_t = t data + (1 - t) noise; t = 1 is data, t = 0 is noise.

    Reference: Lipman et al. 2023, arXiv 2210.02747; Liu et al. 2023, arXiv 2209.03003
    """
    return Process(lambda t: (t, 1.0 - t), jax.random.uniform, data_at=1.0)


def cosine() -> Process:
    """The quarter circle, x_t = cos(pi t / 2) data + sin(pi t / 2) noise; t = 0 is data, t = 1 is noise.

    Reference: Salimans and Ho 2022, arXiv 2202.00512; Nichol and Dhariwal 2021, arXiv 2102.09672
    """
    quarter = 0.5 * math.pi
    return Process(lambda t: (jnp.cos(quarter * t), jnp.sin(quarter * t)), jax.random.uniform, data_at=0.0)


def ddpm(betas: Sequence[float]) -> Process:
    """T steps of noise, step i of variance beta_i: t = i / T has seen i of them; t = 0 is data, t = 1 almost noise.

    signal(i / T)^2 = prod_{j <= i} (1 - beta_j) and noise^2 = 1 - signal^2. Learned from are t = 1/T, ..., 1.

    Args:
      betas: T variances, each in (0, 1); see `cosine_betas` and `linear_betas`.
    Returns:
      Process of T levels.
    Raises:
      ValueError: if there is no variance, or one outside (0, 1).
    Reference: Ho et al. 2020, arXiv 2006.11239, eq. 4
    """
    wrong = [beta for beta in betas if not 0.0 < beta < 1.0]
    if wrong or not len(betas):
        raise ValueError(f"betas has {len(betas)} variances, wrong ones are {wrong[:3]}; allowed: numbers in (0, 1)")
    kept = [1.0]
    for beta in betas:
        kept.append(kept[-1] * (1.0 - beta))
    levels = len(betas)

    def path(t):
        level = jnp.round(t * levels).astype(jnp.int32)
        table = lambda squares: jnp.asarray([math.sqrt(square) for square in squares], jnp.float32)[level]
        return table(kept), table([1.0 - square for square in kept])

    draw = lambda key, shape: jax.random.randint(key, shape, 1, levels + 1).astype(jnp.float32) / levels
    return Process(path, draw, data_at=0.0, levels=levels)


def cosine_betas(levels: int, largest: float = 0.999) -> tuple[float, ...]:
    """Variances by which the signal falls as a squared cosine, but no faster than `largest` in one step.

    Reference: Nichol and Dhariwal 2021, arXiv 2102.09672, eq. 17
    """
    left = lambda i: math.cos((i / levels + 0.008) / 1.008 * 0.5 * math.pi) ** 2
    return tuple(min(1.0 - left(i + 1) / left(i), largest) for i in range(levels))


def linear_betas(levels: int, first: float = 1e-4, last: float = 0.02) -> tuple[float, ...]:
    """Variances that grow evenly from `first` to `last`.

    Reference: Ho et al. 2020, arXiv 2006.11239, section 4
    """
    return tuple(first + (last - first) * i / max(levels - 1, 1) for i in range(levels))


def eps(process: Process, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A kind of prediction: the noise. It does not tell the data where there is no signal."""
    return jnp.zeros_like(t), jnp.ones_like(t)


def x0(process: Process, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A kind of prediction: the data. It does not tell the noise where there is none."""
    return jnp.ones_like(t), jnp.zeros_like(t)


def v(process: Process, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A kind of prediction: signal(t) noise - noise(t) data, which tells data and noise at every t.

    Reference: Salimans and Ho 2022, arXiv 2202.00512, section 4
    """
    signal, noise = process.path(t)
    return -noise, signal


def score(process: Process, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A kind of prediction: the gradient of log p(x_t | data), -noise / noise(t); unbounded where there is no noise.

    Reference: Song et al. 2021, arXiv 2011.13456
    """
    return jnp.zeros_like(t), -1.0 / process.path(t)[1]


def velocity(process: Process, t: jax.Array) -> tuple[jax.Array, jax.Array]:
    """A kind of prediction: dx_t / dt, in the direction of growing t; for `flow` it is data - noise.

    Raises:
      ValueError: for a process that is a table, of which there is no derivative.
    Reference: Lipman et al. 2023, arXiv 2210.02747
    """
    if process.levels is not None:
        raise ValueError(f"the process is a table of {process.levels} levels; a velocity needs one that is continuous")
    return jax.jvp(process.path, (t,), (jnp.ones_like(t),))[1]


def diffuse(data: jax.Array, noise: jax.Array, t: jax.Array, process: Process) -> jax.Array:
    """The noisy x_t = signal(t) data + noise(t) noise.

    Args:
      data, noise: [B, ...].
      t: [B].
      process: Process.
    Returns:
      x_t [B, ...].
    Raises:
      AssertionError: if shapes do not fit.
    """
    return _mixed(process.path(t), data, noise)


def target(data: jax.Array, noise: jax.Array, t: jax.Array, process: Process, *, kind: Callable) -> jax.Array:
    """What a denoiser of this kind should predict for x_t, gradient stopped.

    Args:
      data, noise: [B, ...].
      t: [B].
      process: Process.
      kind: such as `eps`.
    Returns:
      [B, ...].
    Raises:
      AssertionError: if shapes do not fit.
    """
    return jax.lax.stop_gradient(_mixed(kind(process, t), data, noise))


def recover(
    prediction: jax.Array, x: jax.Array, t: jax.Array, process: Process, *, kind: Callable
) -> tuple[jax.Array, jax.Array]:
    """The data and the noise that a prediction about x_t amounts to.

    Args:
      prediction, x: [B, ...].
      t: [B].
      process: Process.
      kind: of the prediction.
    Returns:
      (data [B, ...], noise [B, ...]); not finite where the kind does not tell them.
    Raises:
      AssertionError: if shapes do not fit.
    """
    chex.assert_equal_shape([prediction, x])
    (signal, noise), (of_data, of_noise) = process.path(t), kind(process, t)
    determinant = signal * of_noise - noise * of_data
    data = _mixed((of_noise / determinant, -noise / determinant), x, prediction)
    return data, _mixed((-of_data / determinant, signal / determinant), x, prediction)


def convert(
    prediction: jax.Array, x: jax.Array, t: jax.Array, process: Process, *, given: Callable, wanted: Callable
) -> jax.Array:
    """A prediction of one kind as the prediction of another kind that it amounts to.

    Args:
      prediction, x: [B, ...].
      t: [B].
      process: Process.
      given, wanted: kinds, such as `eps` and `score`.
    Returns:
      [B, ...].
    Raises:
      AssertionError: if shapes do not fit.
    """
    return _mixed(wanted(process, t), *recover(prediction, x, t, process, kind=given))


def denoising(
    predict: Callable,
    data: jax.Array,
    key: jax.Array,
    *,
    process: Process,
    kind: Callable,
    valid: jax.Array | None = None,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The squared error of a denoiser at a random time: mean over valid entries of (predict(x_t, t) - target)^2.

    What stands in entries that are not valid reaches nothing, not even the denoiser: zero is noised there instead.

    Args:
      predict: (x_t [B, ..., D], t [B]) -> [B, ..., D], conditioning already closed over.
      data: [B, ..., D], such as chunks of actions [B, H, A].
      key: consumed here.
      process: Process.
      kind: what is predicted, such as `eps`.
      valid: [B, ...] bool, without the last axis of `data`; default: all. A sample without a valid entry has loss 0.
    Returns:
      loss [B], unreduced; metrics of scalars.
    Raises:
      AssertionError: if shapes do not fit.
    Reference: Ho et al. 2020, arXiv 2006.11239, eq. 14; Lipman et al. 2023, arXiv 2210.02747, eq. 9
    """
    valid = jnp.ones(data.shape[:-1], bool) if valid is None else valid
    chex.assert_shape(valid, data.shape[:-1])
    data = jax.lax.stop_gradient(jnp.where(valid[..., None], data, 0.0))
    key_noise, key_time = jax.random.split(key)
    noise = jax.random.normal(key_noise, data.shape, data.dtype)
    t = process.draw(key_time, data.shape[:1])
    wanted, predicted = target(data, noise, t, process, kind=kind), predict(diffuse(data, noise, t, process), t)
    chex.assert_equal_shape([predicted, wanted])
    error = jnp.where(valid, jnp.mean((predicted - wanted) ** 2, axis=-1), 0.0)
    entries = tuple(range(1, valid.ndim))
    loss = jnp.sum(error, axis=entries) / jnp.maximum(jnp.sum(valid, axis=entries), 1)
    return loss, {"denoise/error": jnp.mean(loss)}


def flow_matching(
    predict: Callable, data: jax.Array, key: jax.Array, *, valid: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Conditional flow matching on the straight path, (predict(x_t, t) - (data - noise))^2; t = 1 is data.

    Args:
      predict: (x_t [B, ..., D], t [B]) -> velocity [B, ..., D], conditioning already closed over.
      data: [B, ..., D].
      key: consumed here.
      valid: as of `denoising`.
    Returns:
      loss [B], unreduced; metrics of scalars.
    Raises:
      AssertionError: if shapes do not fit.
    Reference: Lipman et al. 2023, arXiv 2210.02747, eq. 9
    """
    return denoising(predict, data, key, process=flow(), kind=velocity, valid=valid)


def distillation(student: jax.Array, teacher: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The squared distance of what one step makes of some noise to what a whole sampler made of it: mean over D.

    Args:
      student: [B, D], from one evaluation.
      teacher: [B, D], a constant.
    Returns:
      loss [B], unreduced; metrics of scalars.
    Raises:
      AssertionError: if shapes differ.
    Reference: Park et al. 2025, arXiv 2502.02538, eq. 8; Luhman and Luhman 2021, arXiv 2101.02388
    """
    chex.assert_equal_shape([student, teacher])
    chex.assert_rank(student, 2)
    loss = jnp.mean((student - jax.lax.stop_gradient(teacher)) ** 2, axis=-1)
    return loss, {"denoise/distillation": jnp.mean(loss)}


def _mixed(weights: tuple[jax.Array, jax.Array], one: jax.Array, other: jax.Array) -> jax.Array:
    """weights[0] one + weights[1] other, with weights [B] and arrays [B, ...]."""
    chex.assert_equal_shape([one, other])
    chex.assert_equal_shape([*weights])
    chex.assert_shape(weights[0], one.shape[:1])
    first, second = (weight.reshape(-1, *[1] * (one.ndim - 1)) for weight in weights)
    return first * one + second * other
