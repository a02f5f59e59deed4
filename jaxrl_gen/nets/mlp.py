"""Net, the multi-layer perceptron, and ensembles of any Net."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl_gen.nets.orthogonal import orthogonal
from jaxrl_gen.types import PyTree


class Net(NamedTuple):
    """A network as pure functions.

    `init(key, example) -> params`, where `example` is a pytree of shaped leaves for one sample;
    `apply(params, x) -> y`, for any leading axes. A net with memory has `memory(lanes) -> pytree [lanes, ...]`, and its
    `apply(params, x, memory) -> (y, memory)`.
    """

    init: Callable
    apply: Callable
    memory: Callable | None = None


def flat(net: Net, example: PyTree) -> Net:
    """`net` on a pytree of features: each leaf is flattened, then all are concatenated, before the net sees them.

    Args:
      net: takes `[..., D]`.
      example: pytree of shaped leaves, one sample; a leaf of the input has any further axes in front.
    Returns:
      Net on leaves `[..., *leaf.shape]`.
    """
    width = sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(example))

    def join(x):
        def flatten(leaf, shaped):
            leading = leaf.shape[: leaf.ndim - len(shaped.shape)]
            return leaf.reshape(*leading, -1).astype(jnp.float32)

        return jnp.concatenate(jax.tree.leaves(jax.tree.map(flatten, x, example)), axis=-1)

    joined = jax.ShapeDtypeStruct((width,), jnp.float32)
    return Net(
        lambda key, _: net.init(key, joined), lambda params, x, *memory: net.apply(params, join(x), *memory), net.memory
    )


class _MLP(nn.Module):
    sizes: tuple[int, ...]
    activation: Callable
    hidden_scale: float
    last_scale: float

    @nn.compact
    def __call__(self, x):
        for size in self.sizes[:-1]:
            x = self.activation(nn.Dense(size, kernel_init=orthogonal(self.hidden_scale))(x))
        return nn.Dense(self.sizes[-1], kernel_init=orthogonal(self.last_scale))(x)


def normalized(activation: Callable) -> Callable:
    """An activation whose outputs are brought to mean 0 and deviation 1 over features, as by layer normalisation.

    It has no scale and offset of its own, which the following layer's weights stand for.

    Args:
      activation: `[..., D] -> [..., D]`.
    Reference: Ba et al. 2016, arXiv 1607.06450; in critics: Ball et al. 2023, arXiv 2302.02948
    """
    return lambda x: jax.nn.standardize(activation(x), axis=-1, epsilon=1e-6)


def mlp(
    sizes: Sequence[int], activation: Callable = nn.tanh, hidden_scale: float = 2.0**0.5, last_scale: float = 1.0
) -> Net:
    """A multi-layer perceptron on `[..., D]`, with orthogonal initialisation and no activation after the last layer.

    Args:
      sizes: widths of the hidden layers, then of the output.
      activation: after each hidden layer.
      hidden_scale, last_scale: gains of the orthogonal initialisation.
    Returns:
      Net `[..., D] -> [..., sizes[-1]]`.
    Raises:
      ValueError: if there is no width, or one below 1.
    """
    module = _MLP(widths(sizes), activation, hidden_scale, last_scale)
    return Net(lambda key, example: module.init(key, jnp.zeros(example.shape, jnp.float32))["params"], applying(module))


def ensemble(net: Net, size: int) -> Net:
    """`size` independent copies of `net` on the same input, outputs stacked on a leading axis N.

    Args:
      net: without memory.
      size: N.
    Returns:
      Net `[..., D] -> [N, ..., out]`; every parameter has a leading axis N.
    Raises:
      ValueError: if size < 1, or the net has memory.
    """
    if size < 1:
        raise ValueError(f"size of the ensemble is {size}; allowed: 1 and more")
    if net.memory is not None:
        raise ValueError("the net has memory; allowed in an ensemble: nets without")

    def init(key, example):
        return jax.vmap(lambda key: net.init(key, example))(jax.random.split(key, size))

    return Net(init, jax.vmap(net.apply, in_axes=(0, None)))


def widths(sizes: Sequence[int]) -> tuple[int, ...]:
    """The widths of layers as a tuple, refused where there is none or one is below 1.

    Raises:
      ValueError: saying which widths were given.
    """
    if not sizes or min(sizes) < 1:
        raise ValueError(f"sizes of layers are {tuple(sizes)}; allowed: at least one, each 1 and more")
    return tuple(sizes)


def applying(module: nn.Module) -> Callable:
    """The `apply` of a Net whose parameters are those of a Flax module."""
    return lambda params, *args: module.apply({"params": params}, *args)
