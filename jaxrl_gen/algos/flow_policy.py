"""Flow policy: diffusion policy with a straight path from noise to actions, and a velocity to follow along it.

Reference: Lipman et al. 2023, arXiv 2210.02747; Black et al. 2024, arXiv 2410.24164, section IV (chunks of actions).
"""

from collections.abc import Callable

from jaxrl_gen import nets, samplers
from jaxrl_gen.algos import diffusion_policy
from jaxrl_gen.losses import denoise
from jaxrl_gen.types import Algorithm, Spec, config, static

State = diffusion_policy.State


@config
class Config(diffusion_policy.Config):
    """Hyper-parameters of flow policies: those of diffusion policy, with fewer steps to sample."""

    steps: int = static(10, low=1)


def make(
    cfg: Config,
    spec: Spec,
    *,
    net: nets.Net | None = None,
    sampler: samplers.Sampler | None = None,
    spacing: Callable = samplers.leading,
) -> Algorithm:
    """Flow policy as pure functions; call it inside jit, so that `cfg` is traced.

    Args:
      cfg: Config.
      spec: of one lane, with continuous actions.
      net: denoiser, as of `diffusion_policy.make`; it predicts the velocity.
      sampler: from noise to actions; default: `samplers.euler()`.
      spacing: the times of the sampler's steps; t = 0 is noise, t = 1 is data.
    Returns:
      Algorithm, as of `diffusion_policy.make`.
    Raises:
      ValueError: as of `diffusion_policy.make`.
    """
    return diffusion_policy.make(
        cfg, spec, net=net, process=denoise.flow(), kind=denoise.velocity, sampler=sampler or samplers.euler(),
        spacing=spacing,
    )  # fmt: skip
