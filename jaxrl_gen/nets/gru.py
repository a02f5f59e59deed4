"""Gated recurrent network, one step at a time or unrolled over a trajectory with resets."""

from collections.abc import Callable, Sequence

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl_gen.nets.mlp import Net, applying, widths
from jaxrl_gen.nets.orthogonal import orthogonal
from jaxrl_gen.types import PyTree


class _GRU(nn.Module):
    width: int
    sizes: tuple[int, ...]
    activation: Callable
    last_scale: float

    @nn.compact
    def __call__(self, x, memory):
        x = self.activation(nn.Dense(self.width, kernel_init=orthogonal(2.0**0.5))(x))
        memory, x = nn.GRUCell(self.width, recurrent_kernel_init=orthogonal())(memory, x)
        for size in self.sizes[:-1]:
            x = self.activation(nn.Dense(size, kernel_init=orthogonal(2.0**0.5))(x))
        return nn.Dense(self.sizes[-1], kernel_init=orthogonal(self.last_scale))(x), memory


def gru(width: int, sizes: Sequence[int], activation: Callable = nn.tanh, last_scale: float = 1.0) -> Net:
    """A dense layer, a gated recurrent unit and a perceptron.

    Args:
      width: size of the memory.
      sizes: widths of the hidden layers after the recurrent unit, then of the output.
      activation: after every dense layer but the last.
      last_scale: gain of the last layer's orthogonal initialisation.
    Returns:
      Net with memory: `apply(params, x [..., D], memory [..., width]) -> (y [..., sizes[-1]], memory)`.
    Raises:
      ValueError: if there is no width of a layer, or one below 1.
    Reference: Cho et al. 2014, arXiv 1406.1078
    """
    widths((width,))
    module = _GRU(width, widths(sizes), activation, last_scale)

    def init(key, example):
        return module.init(key, jnp.zeros((1, *example.shape)), jnp.zeros((1, width)))["params"]

    return Net(init, applying(module), lambda lanes: jnp.zeros((lanes, width)))


def unroll(net: Net, params: PyTree, x: PyTree, memory: PyTree, ended: jax.Array) -> tuple[PyTree, PyTree]:
    """Run a net with memory along a trajectory, forgetting where an episode ended.

    Args:
      net: with memory.
      params: its parameters.
      x: inputs, leaves `[T, E, ...]`.
      memory: leaves `[E, ...]`, before the first row.
      ended: [T, E] bool; row t + 1 starts from the initial memory where row t ended an episode.
    Returns:
      (outputs `[T, E, ...]`, memory after each row and before any reset `[T, E, ...]`).
    Raises:
      AssertionError: if inputs do not start with the axes of `ended`.
    """
    chex.assert_tree_shape_prefix(x, ended.shape)
    initial = net.memory(ended.shape[1])

    def step(memory, row):
        x, ended = row
        y, after = net.apply(params, x, memory)
        return forget(after, initial, ended), (y, after)

    return jax.lax.scan(step, memory, (x, ended))[1]


def forget(memory: PyTree, initial: PyTree, ended: jax.Array) -> PyTree:
    """Replace the memory of the lanes whose episode ended (`ended` [E] bool) by the initial one."""
    return jax.tree.map(lambda m, m0: jnp.where(ended.reshape(-1, *[1] * (m.ndim - 1)), m0, m), memory, initial)
