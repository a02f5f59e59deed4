"""TD3+BC with the pieces that later work added: distances in the critic's target too, deep normalised critics.

Reference: Tarasov et al. 2023, arXiv 2305.09836. Distances are means over coordinates here and sums there: their
weights are these divided by A.
"""

import jax
import jax.numpy as jnp

from jaxrl_gen import nets
from jaxrl_gen.algos import critics, td3_bc
from jaxrl_gen.losses import policy, value
from jaxrl_gen.types import Algorithm, Spec, config, leaf, static


@config
class Config(td3_bc.Config):
    """Hyper-parameters of ReBRAC; floats are leaves and never recompile."""

    lr: float = leaf(1e-3, low=0.0)
    closeness: float = leaf(0.1, low=0.0)  # weight of the actor's distance to the data
    next_closeness: float = leaf(0.1, low=0.0)  # of the next action's, in units of value: what it takes from the target
    actor_hidden: tuple[int, ...] = static((256, 256, 256))
    critic_hidden: tuple[int, ...] = static((256, 256, 256))
    normalize_obs: bool = static(False)


def make(cfg: Config, spec: Spec, **parts) -> Algorithm:
    """ReBRAC as three pure functions; call it inside jit, so that `cfg` is traced.

    Args:
      cfg: Config.
      spec: of one lane, with continuous actions.
      parts: of `td3_bc.make`.
    Returns:
      Algorithm whose batch is a Transition of windows, leaves `[H, B, ...]`, with `extras["next_action"]` and
      `extras["next_known"]` of `data.sampling.transitions(..., next_actions=True)`. After an episode's last row there
      is no action, and nothing is taken.
    Raises:
      ValueError: if a batch has no next actions.
    """
    size = parts.get("readout", value.regression()).size
    critic = critics.perceptrons(spec, cfg.critic_hidden, cfg.members, size, nets.normalized(jax.nn.relu))

    def cost(next_action, steps):
        if "next_action" not in steps.next_extras:
            raise ValueError("ReBRAC's batch has no extras['next_action']: sample with next_actions=True")
        distance, _ = policy.closeness(next_action, steps.next_extras["next_action"])
        return cfg.next_closeness * jnp.where(steps.next_extras["next_known"], distance, 0.0)

    return td3_bc.make(cfg, spec, **({"critic": critic, "cost": cost, "actor_value": value.minimum} | parts))
