"""Offline learning in a model that is taken at its word, by a policy of many critics, pessimistic where none learned.

Rollouts that are cut after a few steps, more than errors of the model, make values explode: where they end, at the edge
of reach, values are bootstrapped from but never learned, and one critic out of control there is enough. So this is MOPO
without its penalty, and with the policy of EDAC.

Reference: Sims et al. 2024, arXiv 2402.12527.
"""

from jaxrl_gen.algos import edac, mopo
from jaxrl_gen.losses import dynamics as losses
from jaxrl_gen.types import Algorithm, Spec, config

State = mopo.State


@config
class Config(mopo.Config):
    """Hyper-parameters of RAVL: MOPO's, of which `penalty` has no effect."""

    policy: edac.Config = edac.Config(diversity=0.5)  # 1 in the release, whose critics learn all of their squared error


def make(cfg: Config, spec: Spec, **parts) -> Algorithm:
    """RAVL as three pure functions; call it inside jit, so that `cfg` is traced.

    Args:
      cfg: Config.
      spec: of one lane, whose observation is one vector.
      parts: as of `mopo.make`.
    Returns:
      Algorithm, as of `mopo.make`.
    """
    return mopo.make(cfg, spec, **({"policy": edac.make, "uncertainty": losses.no_doubt} | parts))
