"""What a denoiser reads, and how it reads times."""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl_gen.nets.mlp import Net
from jaxrl_gen.types import PyTree

FASTEST = 100.0  # radians per unit of time of the fastest wave, so that a process of 100 levels can tell them apart


class Noisy(NamedTuple):
    """The input of a denoiser: something noisy, how noisy it is, and what is known besides.

    A perceptron that reads it is `nets.flat(nets.mlp(sizes), example)`.
    """

    x: jax.Array  # [..., H, A], or [..., D]
    t: jax.Array  # [...], in [0, 1]
    condition: PyTree  # leaves [..., *feature], or () for none


def waves(t: jax.Array, width: int) -> jax.Array:
    """Times as sines and cosines, of periods from 2 pi / 100 to 200 pi units of time.

    Args:
      t: [...], in [0, 1].
      width: D, even.
    Returns:
      [..., D].
    Raises:
      ValueError: if the width is odd or below 4.
    Reference: Vaswani et al. 2017, arXiv 1706.03762, section 3.5
    """
    if width % 2 or width < 4:
        raise ValueError(f"width of the embedding of times is {width}; allowed: even numbers from 4")
    frequency = FASTEST * jnp.exp(-math.log(1e4) * jnp.linspace(0.0, 1.0, width // 2))
    phase = t[..., None] * frequency
    return jnp.concatenate([jnp.sin(phase), jnp.cos(phase)], axis=-1)


def denoiser(module: nn.Module) -> Net:
    """The Net on `Noisy`, with any leading axes, of a Flax module that reads (x [B, H, A], t [B], condition [B, D]).

    Args:
      module: of Flax; the condition's leaves reach it flattened and joined.
    Returns:
      Net `Noisy -> [..., H, A]`.
    """

    def one_batch(noisy):
        leading, count = noisy.t.shape, noisy.t.size
        chex.assert_tree_shape_prefix((noisy.x, noisy.condition), leading)
        chex.assert_rank(noisy.x, len(leading) + 2)
        leaves = [leaf.reshape(count, -1).astype(jnp.float32) for leaf in jax.tree.leaves(noisy.condition)]
        condition = jnp.concatenate([jnp.zeros((count, 0)), *leaves], axis=-1)
        return noisy.x.reshape(count, *noisy.x.shape[-2:]), noisy.t.reshape(count), condition

    def init(key, example):
        blank = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), example)
        return module.init(key, *one_batch(blank))["params"]

    def apply(params, noisy):
        return module.apply({"params": params}, *one_batch(noisy)).reshape(noisy.x.shape)

    return Net(init, apply)
