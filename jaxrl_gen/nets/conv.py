"""Convolutional network for images."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl_gen.nets.mlp import Net, applying, widths
from jaxrl_gen.nets.orthogonal import orthogonal


class _Conv(nn.Module):
    channels: tuple[int, ...]
    kernels: tuple[int, ...]
    strides: tuple[int, ...]
    sizes: tuple[int, ...]
    activation: Callable
    last_scale: float

    @nn.compact
    def __call__(self, x):
        leading = x.shape[:-3]
        scale = 1.0 / 255.0 if jnp.issubdtype(x.dtype, jnp.integer) else 1.0
        x = x.reshape(-1, *x.shape[-3:]).astype(jnp.float32) * scale
        gain = orthogonal(2.0**0.5)
        for channels, kernel, stride in zip(self.channels, self.kernels, self.strides):
            window = (kernel, kernel), (stride, stride), "VALID"
            x = self.activation(nn.Conv(channels, *window, kernel_init=gain, conv_general_dilated=_convolve)(x))
        x = x.reshape(*leading, -1)
        for size in self.sizes[:-1]:
            x = self.activation(nn.Dense(size, kernel_init=gain)(x))
        return nn.Dense(self.sizes[-1], kernel_init=orthogonal(self.last_scale))(x)


def _convolve(x, kernel, strides, padding, **options):
    """A convolution of images; on a processor as one matrix product over all windows.

    Under `vmap` each member has kernels of its own, and the compiler makes a grouped convolution of them, for which
    processors have no fast code; a batched product is fast on all.
    """
    if jax.default_backend() != "cpu":
        return jax.lax.conv_general_dilated(x, kernel, strides, padding, **options)
    (rows, columns), (down, right) = kernel.shape[:2], strides
    height, width = (x.shape[1] - rows) // down + 1, (x.shape[2] - columns) // right + 1
    windows = [
        x[:, i : i + down * (height - 1) + 1 : down, j : j + right * (width - 1) + 1 : right]
        for i in range(rows)
        for j in range(columns)
    ]
    return jnp.concatenate(windows, -1) @ kernel.reshape(-1, kernel.shape[-1])


def conv(
    channels: Sequence[int],
    sizes: Sequence[int],
    kernels: Sequence[int],
    strides: Sequence[int],
    activation: Callable = nn.relu,
    last_scale: float = 1.0,
) -> Net:
    """Convolutions, then dense layers, on images `[..., height, width, channel]`; integer pixels are divided by 255.

    Args:
      channels, kernels, strides: one number for each convolution; no padding.
      sizes: widths of the hidden dense layers, then of the output.
      activation: after every layer but the last.
      last_scale: gain of the last layer's orthogonal initialisation.
    Returns:
      Net `[..., height, width, channel] -> [..., sizes[-1]]`.
    Raises:
      ValueError: if the three lists of the convolutions differ in length, a number is below 1, or, at `init`, the image
        is too small for them.
    Reference: Mnih et al. 2015, "Human-level control through deep reinforcement learning"
    """
    if not len(channels) == len(kernels) == len(strides):
        raise ValueError(f"channels {channels}, kernels {kernels} and strides {strides} must be equally long")
    module = _Conv(widths(channels), widths(kernels), widths(strides), widths(sizes), activation, last_scale)

    def init(key, example):
        height, width, _ = example.shape
        for kernel, stride in zip(kernels, strides):
            height, width = (height - kernel) // stride + 1, (width - kernel) // stride + 1
            if min(height, width) < 1:
                raise ValueError(f"an image {example.shape} is too small for kernels {kernels} with strides {strides}")
        return module.init(key, jnp.zeros(example.shape, example.dtype))["params"]

    return Net(init, applying(module))
