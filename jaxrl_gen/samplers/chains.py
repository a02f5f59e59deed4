"""A sample with all its steps, as the decisions of a policy whose log-probabilities are known."""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl_gen.losses.denoise import Process
from jaxrl_gen.samplers.solvers import Sampler, advancing, leading, schedule


class Chain(NamedTuple):
    """N steps from noise to data. `log_prob` is summed over all entries of a sample: mind this when clipping ratios."""

    x: jax.Array  # [N + 1, B, ...]
    time: jax.Array  # [N + 1]
    log_prob: jax.Array  # [N, B], of each step given the one before


def chain(
    sampler: Sampler,
    predict: Callable,
    start: jax.Array,
    key: jax.Array,
    *,
    process: Process,
    kind: Callable,
    steps: int,
    spacing: Callable = leading,
    on_data: Callable | None = None,
) -> Chain:
    """As `sample`, with every step kept and its log-probability beside it.

    Args:
      sampler: with a density, such as `ddpm(min_std=0.1)`.
      predict, start, key, process, kind, steps, spacing, on_data: as of `sample`.
    Returns:
      Chain; `x[-1]` is the sample.
    Raises:
      ValueError: for a sampler without a density, and as `sample`.
    Reference: Black et al. 2024, arXiv 2305.13301; Ren et al. 2025, arXiv 2409.00588
    """
    _has_density(sampler)
    advance = advancing(sampler, predict, process=process, kind=kind, on_data=on_data)
    times, keys = schedule(sampler, process, kind, steps, spacing, key)

    def step(x, row):
        t, s, key = row
        mean, std = advance(x, jnp.full(x.shape[:1], t), jnp.full(x.shape[:1], s))
        noise = jax.random.normal(key, x.shape, x.dtype)
        x = mean + std.reshape(-1, *[1] * (x.ndim - 1)) * noise
        return x, (x, _log_normal(x, mean, std))

    _, (after, log_prob) = jax.lax.scan(step, start, (times[:-1], times[1:], keys))
    return Chain(jnp.concatenate([start[None], after]), times, log_prob)


def log_probs(
    sampler: Sampler,
    predict: Callable,
    of: Chain,
    *,
    process: Process,
    kind: Callable,
    on_data: Callable | None = None,
) -> jax.Array:
    """The log-probabilities of a chain's steps under another denoiser; under its own, those it has.

    Args:
      sampler: as of `chain`.
      predict: (x_t [B, ...], t [B]) -> [B, ...], the denoiser that is asked now.
      of: Chain, a constant.
      process, kind, on_data: as of `chain`.
    Returns:
      log_prob [N, B].
    Raises:
      ValueError: for a sampler without a density.
    """
    _has_density(sampler)
    sampler.check(process, kind)
    advance = advancing(sampler, predict, process=process, kind=kind, on_data=on_data)
    path = jax.lax.stop_gradient(of.x)

    def step(row):
        x, after, t, s = row
        mean, std = advance(x, jnp.full(x.shape[:1], t), jnp.full(x.shape[:1], s))
        return _log_normal(after, mean, std)

    return jax.lax.map(step, (path[:-1], path[1:], of.time[:-1], of.time[1:]))


def _log_normal(x: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """The log-density [B] of x [B, ...], given mean [B, ...] and deviation [B]."""
    chex.assert_equal_shape([x, mean])
    std = std.reshape(-1, *[1] * (x.ndim - 1))
    each = -0.5 * ((x - mean) / std) ** 2 - jnp.log(std) - 0.5 * jnp.log(2.0 * jnp.pi)
    return jnp.sum(each, axis=tuple(range(1, x.ndim)))


def _has_density(sampler: Sampler) -> None:
    if not sampler.density:
        raise ValueError(
            "the sampler has no density: a step of it draws nothing; allowed for log-probabilities: ddpm(min_std=...)"
        )
