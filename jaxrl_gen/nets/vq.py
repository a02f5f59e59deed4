"""Quantisers: a vector becomes one of K codes. Three pure functions, and all that changes is in two pytrees.

    ema(K, D)       codes follow the running mean of the latents that chose them
    gradient(K, D)  codes are learned by the caller's optimiser, from `losses.latent.codebook_loss`
    finite(levels)  no codebook at all: each coordinate is rounded to one of a few levels

In the first two a code that is hardly used is put where a latent of the batch is, so that it is chosen again.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp


class Usage(NamedTuple):
    """How often codes were chosen of late, and by what: running means over batches."""

    share: jax.Array  # [K], of the share of latents that chose each code; what health is judged by
    credit: jax.Array  # [K], the same, but for what a revived code is given to start with
    total: jax.Array  # [K, D], of the sum of those latents over their number, likewise


class Quantizer(NamedTuple):
    """A quantiser as pure functions over codes and their usage.

    `init(key) -> (codes, usage)`; `apply(codes, latent) -> (latent, code, index)`, where the latent is as it was
    compared with the codes; `update(codes, usage, latent, index, valid, key) -> (codes, usage)` after each batch.
    Latents are `[..., D]`, indices `[...]`, and `valid` `[...]` says which of them count.
    """

    init: Callable
    apply: Callable
    update: Callable
    size: int  # K
    width: int  # D


def nearest(codes: jax.Array, latent: jax.Array) -> jax.Array:
    """The index of the code with the least Euclidean distance to each latent; of two alike, the first.

    Args:
      codes: [K, D].
      latent: [..., D].
    Returns:
      [...] int32.
    Reference: van den Oord et al. 2017, arXiv 1711.00937, eq. 1
    """
    # |z - c|^2 without |z|^2, which all codes have in common: one matrix product, and nothing of size [..., K, D].
    distance = jnp.sum(codes**2, -1) - 2.0 * latent @ codes.T
    return jnp.argmin(distance, -1).astype(jnp.int32)


def gradient(size: int, width: int, *, decay: jax.Array = 0.99, least: jax.Array = 0.1) -> Quantizer:
    """K codes that are parameters: whoever optimises the rest optimises them.

    Args:
      size: K.
      width: D.
      decay: of the running mean of the usage, per update.
      least: a code used less than this part of 1 / K moves to a latent drawn from the batch; 0: never.
    Returns:
      Quantizer.
    Raises:
      ValueError: if size or width < 1.
    Reference: van den Oord et al. 2017, arXiv 1711.00937; Dhariwal et al. 2020, arXiv 2005.00341, section 3.1 (revival)
    """
    _at_least_one(size=size, width=width)

    def update(codes, usage, latent, index, valid, key):
        usage = counted(usage, latent, index, valid, decay=decay)
        return revive(codes, usage, latent, valid, key, least=least)

    return Quantizer(lambda key: _first(key, size, width), _look_up, update, size, width)


def ema(size: int, width: int, *, decay: jax.Array = 0.99, least: jax.Array = 0.1) -> Quantizer:
    """K codes, each the running mean of the latents that chose it; they take no gradient.

    Args:
      size, width, decay, least: as of `gradient`.
    Returns:
      Quantizer; only `commitment` is to be added to the loss.
    Raises:
      ValueError: if size or width < 1.
    Reference: van den Oord et al. 2017, arXiv 1711.00937, appendix A.1
    """
    _at_least_one(size=size, width=width)

    def apply(codes, latent):
        return _look_up(jax.lax.stop_gradient(codes), latent)

    def update(codes, usage, latent, index, valid, key):
        usage = counted(usage, latent, index, valid, decay=decay)
        # A code that nothing chose for a long time has hardly a mean: it stays where it is until it is revived.
        known = usage.credit > 1e-6
        mean = usage.total / jnp.where(known, usage.credit, 1.0)[:, None]
        return revive(jnp.where(known[:, None], mean, codes), usage, latent, valid, key, least=least)

    return Quantizer(lambda key: _first(key, size, width), apply, update, size, width)


def finite(levels: Sequence[int], *, decay: jax.Array = 0.99) -> Quantizer:
    """Finite scalar quantisation: D coordinates, each bounded and rounded to one of so many whole numbers.

    c_d = round(b_d(z_d)), with b_d a tanh that has `levels[d]` whole numbers in its range. There are prod(levels) codes
    and nothing to learn, to revive or to commit to; only the usage is kept.

    Args:
      levels: of each coordinate, 3 and more.
      decay: of the running mean of the usage.
    Returns:
      Quantizer of K = prod(levels) codes of width D = len(levels).
    Raises:
      ValueError: if there is no coordinate, or one has fewer than 3 levels.
    Reference: Mentzer et al. 2023, arXiv 2309.15505, section 3.1
    """
    if not levels or min(levels) < 3:
        raise ValueError(f"levels are {tuple(levels)}; allowed: at least one, each 3 and more")
    count = jnp.asarray(levels, jnp.float32)
    half = (count - 1) * (1 + 1e-3) / 2
    offset = jnp.where(count % 2 == 0, 0.5, 0.0)  # an even number of whole numbers lies round a half
    place = jnp.asarray([math.prod(levels[:d]) for d in range(len(levels))], jnp.int32)

    def apply(codes, latent):
        bounded = half * jnp.tanh(latent + jnp.arctanh(offset / half)) - offset
        code = jnp.round(bounded)
        index = jnp.sum((code + jnp.floor(count / 2)).astype(jnp.int32) * place, -1)
        return bounded, jax.lax.stop_gradient(code), index

    def init(key):
        del key
        return jnp.zeros((0, len(levels))), _even(jnp.zeros((math.prod(levels), len(levels))))

    def update(codes, usage, latent, index, valid, key):
        del key
        return codes, counted(usage, latent, index, valid, decay=decay)

    return Quantizer(init, apply, update, math.prod(levels), len(levels))


def counted(usage: Usage, latent: jax.Array, index: jax.Array, valid: jax.Array, *, decay: jax.Array) -> Usage:
    """The usage after one more batch: share <- decay share + (1 - decay) n_k / n, and the sums of latents likewise.

    Args:
      usage: so far.
      latent: [..., D].
      index: [...], the codes that they chose.
      valid: [...] bool, which of them count; where none does, nothing changes.
      decay: scalar in [0, 1).
    Returns:
      Usage, gradients stopped.
    """
    size, width = usage.total.shape
    latent, valid = jax.lax.stop_gradient(latent).reshape(-1, width), valid.reshape(-1, 1)
    chose = (index.reshape(-1, 1) == jnp.arange(size)) * valid.astype(jnp.float32)  # [N, K]
    count = jnp.maximum(jnp.sum(valid), 1)
    share = jnp.sum(chose, 0) / count
    now = Usage(share, share, chose.T @ jnp.where(valid, latent, 0.0) / count)
    decay = jnp.where(jnp.any(valid), decay, 1.0)
    return jax.tree.map(lambda old, new: decay * old + (1.0 - decay) * new, usage, now)


def revive(
    codes: jax.Array, usage: Usage, latent: jax.Array, valid: jax.Array, key: jax.Array, *, least: jax.Array
) -> tuple[jax.Array, Usage]:
    """Put dead codes where latents of this batch are, with the credit of an average code, so that they have time.

    Their true share stays as it is: a codebook that has collapsed is not to look alive because it is revived all along.

    Args:
      codes: [K, D].
      usage: of these codes.
      latent: [..., D], to draw from.
      valid: [...] bool, which of them may be drawn.
      key: consumed here.
      least: a code whose credit is less than this part of 1 / K is dead.
    Returns:
      (codes, usage); those of living codes are as they were.
    """
    size, width = codes.shape
    pool, chance = jax.lax.stop_gradient(latent).reshape(-1, width), jnp.where(valid.reshape(-1), 0.0, -jnp.inf)
    drawn = pool[jax.random.categorical(key, chance, shape=(size,))]
    dead = (usage.credit * size < least) & jnp.any(valid)
    fresh = (drawn, _even(drawn)._replace(share=usage.share))
    return jax.tree.map(
        lambda new, old: jnp.where(dead.reshape(-1, *[1] * (old.ndim - 1)), new, old), fresh, (codes, usage)
    )


def _look_up(codes, latent):
    index = nearest(jax.lax.stop_gradient(codes), jax.lax.stop_gradient(latent))
    return latent, codes[index], index


def _first(key, size, width):
    """Codes from a normal, and a usage that has them all alike."""
    codes = jax.random.normal(key, (size, width))
    return codes, _even(codes)


def _even(codes) -> Usage:
    """As if every code were chosen alike often, by what it is."""
    size = codes.shape[0]
    share = jnp.full((size,), 1.0 / size, jnp.float32)
    return Usage(share, share, codes / size)


def _at_least_one(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} of the codebook is {value}; allowed: 1 and more")
