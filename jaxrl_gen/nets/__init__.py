"""Networks as pairs of pure functions. Flax stays inside; parameters are plain nested dictionaries outside."""

from jaxrl_gen.nets.conv import conv
from jaxrl_gen.nets.gru import forget, gru, unroll
from jaxrl_gen.nets.mlp import Net, ensemble, flat, mlp

__all__ = ["Net", "conv", "ensemble", "flat", "forget", "gru", "mlp", "unroll"]
