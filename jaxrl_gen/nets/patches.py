"""Networks on the patches of an image: each patch sees its neighbours, the same way everywhere on the screen.

An image becomes a grid of patches `[..., rows, columns, D]`. All products are over the last axis, so that processors
and `vmap` over seeds are as fast as with dense layers; and what is learned of one place is known at every other.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl_gen.nets.mlp import Net, applying, mlp
from jaxrl_gen.nets.orthogonal import orthogonal


def cut(image: jax.Array, side: int) -> jax.Array:
    """An image as a grid of square patches of float32; integer pixels are divided by 255.

    Args:
      image: [..., height, width, channels].
      side: pixels of a patch.
    Returns:
      [..., height / side, width / side, side * side * channels].
    Raises:
      ValueError: if the side does not divide height and width.
    """
    *leading, height, width, channels = image.shape
    if height % side or width % side:
        raise ValueError(f"patches of {side} pixels do not divide an image {image.shape[-3:]}")
    scale = 1.0 / 255.0 if jnp.issubdtype(image.dtype, jnp.integer) else 1.0
    tiles = image.reshape(*leading, height // side, side, width // side, side, channels)
    grid = jnp.moveaxis(tiles, -4, -3).reshape(*leading, height // side, width // side, side * side * channels)
    return grid.astype(jnp.float32) * scale


def join(grid: jax.Array, side: int) -> jax.Array:
    """The image of a grid of patches: what `cut` undoes, but for the scale of integers.

    Args:
      grid: [..., rows, columns, side * side * channels].
      side: pixels of a patch.
    Returns:
      [..., rows * side, columns * side, channels].
    """
    *leading, rows, columns, size = grid.shape
    tiles = grid.reshape(*leading, rows, columns, side, side, size // side**2)
    return jnp.moveaxis(tiles, -3, -4).reshape(*leading, rows * side, columns * side, size // side**2)


def with_neighbours(grid: jax.Array) -> jax.Array:
    """Each patch beside its eight neighbours; beyond an edge is the other edge of the screen.

    Args:
      grid: [..., rows, columns, D].
    Returns:
      [..., rows, columns, 9 D].
    """
    shifts = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    return jnp.concatenate([jnp.roll(grid, shift, (-3, -2)) for shift in shifts], -1)


class _Change(nn.Module):
    hidden: int
    out: int

    @nn.compact
    def __call__(self, frames):
        gain = orthogonal(2.0**0.5)
        seen = with_neighbours(jnp.concatenate(frames, -1))
        seen = nn.relu(nn.Dense(self.hidden, kernel_init=gain)(seen))
        seen = nn.relu(nn.Dense(self.hidden, kernel_init=gain)(seen))
        return nn.Dense(self.out, kernel_init=orthogonal(1.0))(jnp.max(seen, (-3, -2)))


def change(hidden: int, out: int) -> Net:
    """What happened on the screen from one frame to the next, wherever it happened.

    Args:
      hidden: width of the layers on each patch.
      out: D of the answer.
    Returns:
      Net from a pair of grids `[..., rows, columns, D]` to `[..., out]`.
    """
    return _net(_Change(hidden, out))


class _Repaint(nn.Module):
    hidden: int
    out: int

    @nn.compact
    def __call__(self, before):
        grid, code = before
        gain = orthogonal(2.0**0.5)
        told = nn.Dense(self.hidden, kernel_init=gain)(code)[..., None, None, :]
        seen = nn.relu(nn.Dense(self.hidden, kernel_init=gain)(with_neighbours(grid)) + told)
        seen = nn.relu(nn.Dense(self.hidden, kernel_init=gain)(seen))
        return nn.Dense(self.out, kernel_init=orthogonal(0.1))(seen)


def repaint(hidden: int, out: int) -> Net:
    """The next frame from the last one and a code that every patch is told.

    Args:
      hidden: width of the layers on each patch.
      out: numbers of a patch to paint.
    Returns:
      Net from (grid [..., rows, columns, D], code [..., C]) to `[..., rows, columns, out]`.
    """
    return _net(_Repaint(hidden, out))


def each(out: int) -> Net:
    """One dense layer on every patch: an embedding that keeps what a patch looks like.

    Args:
      out: D of the embedding.
    Returns:
      Net `[..., rows, columns, D'] -> [..., rows, columns, out]`.
    """
    return mlp((out,))


def of_images(net: Net, side: int, features: int) -> Net:
    """A net on the embedded patches of one image, or of any pytree of images of one size.

    Args:
      net: takes a grid `[..., rows, columns, features]`, or a pytree of them.
      side: pixels of a patch.
      features: of a patch.
    Returns:
      Net that takes images `[..., height, width, channels]`.
    """
    embed = each(features)

    def init(key, example):
        key_embed, key_net = jax.random.split(key)
        grids = jax.eval_shape(lambda images: jax.tree.map(lambda image: cut(image, side), images), example)
        embedded = jax.tree.map(lambda grid: jax.ShapeDtypeStruct((*grid.shape[:-1], features), jnp.float32), grids)
        return {"embed": embed.init(key_embed, jax.tree.leaves(grids)[0]), "net": net.init(key_net, embedded)}

    def apply(params, images):
        embedded = jax.tree.map(lambda image: embed.apply(params["embed"], cut(image, side)), images)
        return net.apply(params["net"], embedded)

    return Net(init, apply)


def _net(module: nn.Module) -> Net:
    zeros = lambda example: jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), example)  # noqa: E731
    return Net(lambda key, example: module.init(key, zeros(example))["params"], applying(module))
