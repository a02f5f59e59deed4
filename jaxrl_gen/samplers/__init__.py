"""From a denoiser to samples, and from samples to actions.

sample, chain    one scan from noise to data, with hooks; the same with every step kept, and its log-probabilities
ddpm, ddim       steps that remove noise, for every process; ddpm puts some back, and has a density
euler, heun      steps along the velocity, of order 1 and 2
guided           classifier-free guidance; `dropped` for its training
chunked          an algorithm that plans chunks of actions, as one that acts step by step
complete         a decoder's tokens one after the other; `temperature` and `top_k` are its hooks
"""

from jaxrl_gen.samplers.autoregressive import Completion, complete, completion_log_probs, temperature, top_k, until_end
from jaxrl_gen.samplers.chains import Chain, chain, log_probs
from jaxrl_gen.samplers.chunks import chunked
from jaxrl_gen.samplers.guidance import dropped, guided
from jaxrl_gen.samplers.solvers import (
    Sampler,
    advancing,
    belong,
    ddim,
    ddpm,
    euler,
    evaluations,
    heun,
    leading,
    sample,
    trailing,
)

__all__ = [
    "Chain", "Completion", "Sampler", "advancing", "belong", "chain", "chunked", "complete", "completion_log_probs",
    "ddim", "ddpm", "dropped", "euler", "evaluations", "guided", "heun", "leading", "log_probs", "sample",
    "temperature", "top_k", "trailing", "until_end",
]  # fmt: skip
