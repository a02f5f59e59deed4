"""Running mean and standard deviation of a pytree of features, as a pytree."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl_gen.types import PyTree

COUNT_LIMIT = 1e8  # float32 still resolves the weight of one batch against this many samples
LARGEST = 1e15  # the squares of this many larger numbers would not fit a float32


class Normalizer(NamedTuple):
    """Count, mean and sum of squared deviations; `mean` and `m2` have the structure of one lane's observation."""

    count: jax.Array  # f32 scalar, saturating
    mean: PyTree
    m2: PyTree


def init(spec: PyTree) -> Normalizer:
    """The normaliser that has seen nothing and changes nothing.

    Args:
      spec: pytree of shaped leaves, one lane.
    """
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), spec)
    return Normalizer(jnp.zeros((), jnp.float32), zeros, zeros)


def update(normalizer: Normalizer, batch: PyTree, mask: jax.Array) -> Normalizer:
    """Fold a batch into the statistics, in one pass and in any split (Chan's parallel form of Welford's update).

    Rows that are masked out, or hold a number that is not finite or above 1e15, are left out of every leaf.

    Args:
      normalizer: the statistics so far.
      batch: leaves `[*mask.shape, ...]`.
      mask: bool, which rows count; its axes are the ones reduced over.
    Returns:
      The new statistics; a count at its limit of 1e8 stays there, and the oldest samples are slowly forgotten.
    Raises:
      AssertionError: if a leaf has other axes than those of `mask` and then its feature's.
    Reference: Chan, Golub and LeVeque 1979, "Updating formulae and a pairwise algorithm for computing sample variances"
    """
    jax.tree.map(lambda mean, x: chex.assert_shape(x, mask.shape + mean.shape), normalizer.mean, batch)
    axes = tuple(range(mask.ndim))
    batch = jax.tree.map(lambda x: x.astype(jnp.float32), batch)
    for x in jax.tree.leaves(batch):
        mask = mask & jnp.all(jnp.abs(x) < LARGEST, axis=tuple(range(mask.ndim, x.ndim)))  # not so for NaN either
    added = jnp.sum(mask, dtype=jnp.float32)
    total = jnp.maximum(normalizer.count + added, 1.0)

    def moments(mean, m2, x):
        weight = mask.reshape(mask.shape + (1,) * (x.ndim - mask.ndim))
        offset = jnp.where(weight, x - mean, 0.0)  # sums of offsets round off less than sums of large numbers
        delta = jnp.sum(offset, axes) / jnp.maximum(added, 1.0)
        deviation = jnp.where(weight, offset - delta, 0.0)
        new_m2 = m2 + jnp.sum(deviation**2, axes) + delta**2 * (normalizer.count * added / total)
        return mean + delta * added / total, new_m2

    pairs = jax.tree.map(moments, normalizer.mean, normalizer.m2, batch)
    mean, m2 = (jax.tree.map(lambda _, pair: pair[i], normalizer.mean, pairs) for i in (0, 1))
    count = jnp.minimum(total, COUNT_LIMIT) * (normalizer.count + added > 0)
    # A saturated count forgets in proportion, so the variance m2 / count stays what it was.
    return Normalizer(count, mean, jax.tree.map(lambda leaf: leaf * (count / total), m2))


def std(normalizer: Normalizer, floor: float = 1e-4) -> PyTree:
    """The standard deviation of each feature, at least `floor`; one where nothing was seen."""
    count = normalizer.count

    def root(m2):
        return jnp.where(count > 0, jnp.sqrt(jnp.maximum(m2 / jnp.maximum(count, 1.0), floor**2)), 1.0)

    return jax.tree.map(root, normalizer.m2)


def apply(normalizer: Normalizer, x: PyTree, clip: float = 10.0) -> PyTree:
    """Centre and scale `x` (leaves `[..., *feature]`), clipped to `[-clip, clip]`; the identity where nothing was seen.

    Raises:
      AssertionError: if a leaf does not end in its feature's axes.
    """

    def scale(x, mean, deviation):
        chex.assert_shape(x, (..., *mean.shape))
        normalized = (x.astype(jnp.float32) - mean) / deviation
        return jnp.where(normalizer.count > 0, jnp.clip(normalized, -clip, clip), x.astype(jnp.float32))

    return jax.tree.map(scale, x, normalizer.mean, std(normalizer))
