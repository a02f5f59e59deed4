"""A U-Net over time for chunks of actions, whose blocks a condition scales and shifts (FiLM)."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from flax import linen as nn

from jaxrl_gen.nets.denoiser import denoiser, waves
from jaxrl_gen.nets.mlp import Net, widths

# Within the network arrays are [L, B, C], time first: then the rows that one tap of a kernel reads are one block of
# memory, and nothing is copied to multiply them.


class _Conv(nn.Module):
    """A convolution over the leading axis of [L, B, C], zeros beyond its ends."""

    features: int
    kernel: int
    stride: int = 1

    @nn.compact
    def __call__(self, x):
        fan_in = self.kernel * x.shape[-1]
        kernel = self.param("kernel", _uniform(fan_in), (self.kernel, x.shape[-1], self.features))
        bias = self.param("bias", _uniform(fan_in), (self.features,))
        return _convolve(x, kernel, self.stride) + bias


class _Upsample(nn.Module):
    """Twice as many steps: a transposed convolution of width 4 and stride 2, [L, B, C] -> [2 L, B, C].

    Step 2 i reads steps i - 1 and i, step 2 i + 1 reads i and i + 1.
    """

    @nn.compact
    def __call__(self, x):
        length, batch, features = x.shape
        kernel = self.param("kernel", _uniform(4 * features), (4, features, features))
        bias = self.param("bias", _uniform(4 * features), (features,))
        before, after = ((1, 0), (0, 0), (0, 0)), ((0, 1), (0, 0), (0, 0))
        even = x @ kernel[1] + jnp.pad(x[:-1] @ kernel[3], before)
        odd = x @ kernel[2] + jnp.pad(x[1:] @ kernel[0], after)
        return jnp.stack([even, odd], axis=1).reshape(2 * length, batch, features) + bias


class _ConvNorm(nn.Module):
    """A convolution, a group normalisation, an activation."""

    features: int
    kernel: int
    groups: int
    activation: Callable

    @nn.compact
    def __call__(self, x):
        x = _group_normalized(_Conv(self.features, self.kernel)(x), self.groups)
        scale = self.param("scale", nn.initializers.ones, (self.features,))
        offset = self.param("offset", nn.initializers.zeros, (self.features,))
        return self.activation(x * scale + offset)


class _Residual(nn.Module):
    """Two convolutions beside a shortcut; between them the condition [B, D] scales and shifts every channel."""

    features: int
    kernel: int
    groups: int
    activation: Callable

    @nn.compact
    def __call__(self, x, condition):
        sizes = self.features, self.kernel, self.groups, self.activation
        scale, offset = jnp.split(_dense(2 * self.features)(self.activation(condition)), 2, axis=-1)
        y = _ConvNorm(*sizes)(x) * scale + offset
        y = _ConvNorm(*sizes)(y)
        return y + (x if x.shape[-1] == self.features else _dense(self.features)(x))


class _UNet(nn.Module):
    channels: tuple[int, ...]
    kernel: int
    time_width: int
    groups: int
    activation: Callable

    @nn.compact
    def __call__(self, x, t, condition):
        horizon, size = x.shape[1:]
        if horizon % 2 ** (len(self.channels) - 1):
            raise ValueError(
                f"the horizon is {horizon}; allowed with {len(self.channels)} levels: multiples of "
                f"{2 ** (len(self.channels) - 1)}"
            )
        time = self.activation(_dense(4 * self.time_width)(waves(t, self.time_width)))
        condition = jnp.concatenate([_dense(self.time_width)(time), condition], axis=-1)

        def twice(x, features):
            for _ in range(2):
                x = _Residual(features, self.kernel, self.groups, self.activation)(x, condition)
            return x

        x, kept = jnp.swapaxes(x, 0, 1), []
        for level, features in enumerate(self.channels):
            x = _Conv(self.channels[level - 1], 3, stride=2)(x) if level else x
            x = twice(x, features)
            kept.append(x)
        x = twice(x, self.channels[-1])
        for features in self.channels[-2::-1]:  # the finest level's own is not joined, as in the paper's release
            x = twice(jnp.concatenate([x, kept.pop()], axis=-1), features)
            x = _Upsample()(x)
        x = _ConvNorm(self.channels[0], self.kernel, self.groups, self.activation)(x)
        return jnp.swapaxes(_dense(size)(x), 0, 1)


def unet1d(
    channels: Sequence[int] = (256, 512, 1024),
    kernel: int = 5,
    time_width: int = 256,
    groups: int = 8,
    activation: Callable = jax.nn.mish,
) -> Net:
    """The denoiser of diffusion policy: each level has half the steps of the level above, and channels of its own.

    On a processor its convolutions are matrix products, for most of its kernels reach beyond the few steps of a chunk,
    and for these compilers have no fast code.

    Args:
      channels: of each level, the finest first; each a multiple of `groups`.
      kernel: width of the convolutions, odd.
      time_width: of the embedding of t, even.
      groups: of the group normalisation.
      activation: after each normalisation.
    Returns:
      Net on `Noisy`, `x [..., H, A] -> [..., H, A]`; H must be a multiple of 2^(levels - 1).
    Raises:
      ValueError: for an even kernel, channels that groups do not divide, or, when applied, a horizon of another length.
    Reference: Chi et al. 2023, arXiv 2303.04137; Janner et al. 2022, arXiv 2205.09991; Perez et al. 2018, arXiv
      1709.07871
    """
    channels = widths(channels)
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"kernel is {kernel}; allowed: odd numbers from 1")
    if groups < 1 or any(features % groups for features in channels):
        raise ValueError(f"channels are {channels}; allowed: multiples of the {groups} groups")
    return denoiser(_UNet(channels, kernel, time_width, groups, activation))


def _convolve(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """A convolution of [L, B, C] by [K, C, F], with K // 2 zeros at either end; on a processor as products of matrices.

    There is one product for each tap of the kernel, of the steps that it meets: zeros are not multiplied.
    """
    length, pad = x.shape[0], kernel.shape[0] // 2
    if jax.default_backend() != "cpu":
        layout = ("WNC", "WIO", "WNC")
        return jax.lax.conv_general_dilated(x, kernel, (stride,), [(pad, pad)], dimension_numbers=layout)
    steps, total = -(-length // stride), 0.0
    for tap, matrix in enumerate(kernel):
        shift = tap - pad  # step i of the output reads step stride i + shift
        first, last = max(0, -(shift // stride)), min(steps - 1, (length - 1 - shift) // stride)
        if first > last:
            continue
        met = x[stride * first + shift : stride * last + shift + 1 : stride] @ matrix
        total = total + jnp.pad(met, ((first, steps - 1 - last), (0, 0), (0, 0)))
    return total


def _group_normalized(x: jax.Array, groups: int) -> jax.Array:
    """[L, B, C] with mean 0 and deviation 1 over the steps and the channels of each group, of each sample."""
    length, batch, features = x.shape
    grouped = x.reshape(length, batch, groups, features // groups)
    mean = jnp.mean(grouped, axis=(0, 3), keepdims=True)
    centred = grouped - mean
    variance = jnp.mean(centred**2, axis=(0, 3), keepdims=True)
    return (centred * jax.lax.rsqrt(variance + 1e-5)).reshape(x.shape)


def _dense(features: int) -> nn.Dense:
    """A dense layer that begins as most releases of this network do: uniform, by its number of inputs."""
    kernel = nn.initializers.variance_scaling(1.0 / 3.0, "fan_in", "uniform")
    return nn.Dense(features, kernel_init=kernel, bias_init=nn.initializers.zeros)


def _uniform(fan_in: int) -> Callable:
    """An initialiser, uniform in +-1 / sqrt(fan_in)."""
    end = fan_in**-0.5
    return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -end, end)
