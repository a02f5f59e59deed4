"""Networks as pairs of pure functions. Flax stays inside; parameters are plain nested dictionaries outside."""

from jaxrl_gen.nets.conv import conv
from jaxrl_gen.nets.denoiser import Noisy, denoiser
from jaxrl_gen.nets.dit import dit
from jaxrl_gen.nets.gru import forget, gru, unroll
from jaxrl_gen.nets.mlp import Net, ensemble, flat, mlp, normalized
from jaxrl_gen.nets.transformer import Decoder, decoder
from jaxrl_gen.nets.unet1d import unet1d

__all__ = [
    "Decoder", "Net", "Noisy", "conv", "decoder", "denoiser", "dit", "ensemble", "flat", "forget", "gru", "mlp",
    "normalized", "unet1d", "unroll",
]  # fmt: skip
