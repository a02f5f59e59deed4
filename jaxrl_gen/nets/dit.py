"""A diffusion transformer: over the steps of a chunk, with blocks that a condition scales, shifts and gates."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl_gen.nets.denoiser import denoiser, waves
from jaxrl_gen.nets.mlp import Net, widths


class _Block(nn.Module):
    """Attention among all steps, then a perceptron on each; at the beginning a block changes nothing."""

    heads: int

    @nn.compact
    def __call__(self, x, condition):
        width = x.shape[-1]
        shift, scale, gate, shift_mlp, scale_mlp, gate_mlp = _Modulation(6, width, name="modulation")(condition)
        x = x + gate * self._attention(_normalized(x) * (1.0 + scale) + shift)
        y = nn.Dense(4 * width, name="wide")(_normalized(x) * (1.0 + scale_mlp) + shift_mlp)
        return x + gate_mlp * nn.Dense(width, name="narrow")(nn.gelu(y))

    def _attention(self, x):
        """Plain products and a softmax, which can be differentiated forwards too."""
        batch, length, width = x.shape
        read = nn.Dense(3 * width, name="read")(x).reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = jnp.moveaxis(read, 2, 0)
        logits = jnp.einsum("bqhd,bkhd->bhqk", query, key) * (width // self.heads) ** -0.5
        mixed = jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(logits, axis=-1), value)
        return nn.Dense(width, name="write")(mixed.reshape(x.shape))


class _Modulation(nn.Module):
    """What a condition [B, D] makes of a block: `parts` vectors [B, 1, width], zero at the beginning."""

    parts: int
    width: int

    @nn.compact
    def __call__(self, condition):
        zero = nn.initializers.zeros
        made = nn.Dense(self.parts * self.width, kernel_init=zero)(nn.silu(condition))
        return jnp.split(made[:, None], self.parts, axis=-1)


class _DiT(nn.Module):
    depth: int
    width: int
    heads: int
    time_width: int

    @nn.compact
    def __call__(self, x, t, condition):
        size = x.shape[-1]
        time = nn.silu(nn.Dense(self.width, name="time_in")(waves(t, self.time_width)))
        time = nn.Dense(self.width, name="time_out")(time)
        condition = time + nn.Dense(self.width, name="condition")(condition) if condition.shape[-1] else time
        place = self.param("place", nn.initializers.normal(0.02), (x.shape[1], self.width))
        x = nn.Dense(self.width, name="embed")(x) + place
        for i in range(self.depth):
            x = _Block(self.heads, name=f"block_{i}")(x, condition)
        shift, scale = _Modulation(2, self.width, name="last_modulation")(condition)
        out = nn.Dense(size, kernel_init=nn.initializers.zeros, name="out")
        return out(_normalized(x) * (1.0 + scale) + shift)


def dit(depth: int = 4, width: int = 128, heads: int = 4, time_width: int = 128) -> Net:
    """A diffusion transformer: each step of a chunk is a token, and all see each other.

    Args:
      depth: blocks.
      width: of a token, a multiple of `heads`.
      heads: of the attention.
      time_width: of the embedding of t, even.
    Returns:
      Net on `Noisy`, `x [..., H, A] -> [..., H, A]`, for the horizon H that it was initialised with. At the beginning
      its output is zero.
    Raises:
      ValueError: if a size is below 1, or heads do not divide the width.
    Reference: Peebles and Xie 2023, arXiv 2212.09748 (adaLN-Zero)
    """
    widths((depth, width, heads))
    if width % heads:
        raise ValueError(f"width is {width}; allowed: multiples of the {heads} heads")
    return denoiser(_DiT(depth, width, heads, time_width))


def _normalized(x: jax.Array) -> jax.Array:
    """Each token with mean 0 and deviation 1; scale and shift are the condition's to give."""
    return jax.nn.standardize(x, axis=-1, epsilon=1e-6)
