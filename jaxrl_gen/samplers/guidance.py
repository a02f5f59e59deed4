"""Classifier-free guidance: one denoiser, with and without its condition."""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxrl_gen.types import PyTree


def guided(predict: Callable, condition: PyTree, null: PyTree, *, weight: jax.Array) -> Callable:
    """The denoiser pushed towards its condition: prediction(null) + weight (prediction(condition) - prediction(null)).

    Weight 0 ignores the condition, 1 is the plain conditional denoiser, more exaggerates. It holds for every kind of
    prediction, as all are linear in each other. Both are asked in one call on a batch of 2 B.

    Args:
      predict: (x [B, ...], t [B], condition, leaves [B, ...]) -> [B, ...].
      condition: leaves [B, ...].
      null: leaves [...], what `dropped` puts in place of a condition.
      weight: scalar or [B].
    Returns:
      (x [B, ...], t [B]) -> [B, ...], for `sample`.
    Reference: Ho and Salimans 2022, arXiv 2207.12598, eq. 6 with weight = 1 + w
    """
    nothing = jax.tree.map(lambda x, empty: jnp.broadcast_to(empty, x.shape).astype(x.dtype), condition, null)
    both = jax.tree.map(lambda *x: jnp.concatenate(x), condition, nothing)

    def towards(x, t):
        with_it, without = jnp.split(predict(jnp.concatenate([x, x]), jnp.concatenate([t, t]), both), 2)
        chex.assert_equal_shape([with_it, without, x])
        scale = jnp.reshape(weight, (-1, *[1] * (x.ndim - 1)))
        chex.assert_is_broadcastable(scale.shape[:1], x.shape[:1])
        return without + scale * (with_it - without)

    return towards


def dropped(condition: PyTree, null: PyTree, key: jax.Array, *, rate: jax.Array) -> PyTree:
    """The conditions of a batch, a share of them replaced by the null condition: whole samples, never single leaves.

    Args:
      condition: leaves [B, ...].
      null: leaves [...].
      key: consumed here.
      rate: probability of replacing, scalar.
    Returns:
      leaves [B, ...].
    Reference: Ho and Salimans 2022, arXiv 2207.12598, algorithm 1
    """
    count = jax.tree.leaves(condition)[0].shape[0]
    drop = jax.random.bernoulli(key, rate, (count,))
    over = lambda x: drop.reshape(-1, *[1] * (x.ndim - 1))
    return jax.tree.map(lambda x, empty: jnp.where(over(x), empty, x).astype(x.dtype), condition, null)
