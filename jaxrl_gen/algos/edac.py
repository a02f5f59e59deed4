"""SAC with many critics that are kept different, for data alone; without that term it is SAC-N.

Reference: An et al. 2021, arXiv 2110.01548. Critics learn half their squared error here, and all of it there: their
weight of the likeness is twice this one; and layers begin orthogonal here, not with their small last layer.
"""

import jax
import jax.numpy as jnp

from jaxrl_gen.algos import critics, sac
from jaxrl_gen.losses import critic as regularised
from jaxrl_gen.types import Algorithm, Spec, config, leaf, static


@config
class Config(sac.Config):
    """Hyper-parameters of EDAC; floats are leaves and never recompile."""

    diversity: float = leaf(1.0, low=0.0)  # weight of the critics' likeness, in units of squared value; 0 is SAC-N
    members: int = static(10, low=2)  # critics
    actor_hidden: tuple[int, ...] = static((256, 256, 256))
    critic_hidden: tuple[int, ...] = static((256, 256, 256))


def diverse(weight: jax.Array) -> critics.Term:
    """The critics' term by which their slopes in the data's actions differ.

    Args:
      weight: scalar.
    """

    def term(judged, key):
        actions = jnp.broadcast_to(judged.steps.action, (judged.members, *judged.steps.action.shape))
        slopes = jax.grad(lambda actions: jnp.sum(judged.each(judged.steps.obs, actions)))(actions)
        loss, metrics = regularised.diversity(slopes)
        return weight * loss, metrics

    return term


def make(cfg: Config, spec: Spec, *, critic_term: critics.Term = critics.no_term, **parts) -> Algorithm:
    """EDAC as three pure functions; call it inside jit, so that `cfg` is traced.

    Args:
      cfg: Config.
      spec: of one lane, with continuous actions.
      critic_term: as of `sac.make`, added to EDAC's own.
      parts: others of `sac.make`.
    Returns:
      Algorithm whose batch is a Transition of windows, leaves `[H, B, ...]`.
    """
    return sac.make(cfg, spec, critic_term=critics.together(diverse(cfg.diversity), critic_term), **parts)
