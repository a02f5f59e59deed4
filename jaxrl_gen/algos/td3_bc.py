"""TD3 that keeps close to the data: the actor is pushed up the critic and pulled to what was done there.

Reference: Fujimoto and Gu 2021, arXiv 2106.06860. Different from the paper: the distance has a weight, not the push,
which with Adam is the same: their alpha of 2.5 is a closeness of 1 / 2.5.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrl_gen.algos import td3
from jaxrl_gen.losses import policy, td
from jaxrl_gen.types import Algorithm, PyTree, Spec, config, leaf, static


@config
class Config(td3.Config):
    """Hyper-parameters of TD3+BC, and of what replaces the action it keeps close to."""

    closeness: float = leaf(0.4, low=0.0)  # weight of the distance to the data, beside a push of size 1
    scale_free: bool = static(True)
    normalize_obs: bool = static(True)


def close_to(wanted: Callable, weight: jax.Array) -> Callable:
    """The term of an actor that keeps close to an action: `weight` times the mean squared distance.

    Args:
      wanted: `(action [B, A], td.Steps, critic's parameters, key) -> (wanted [B, A], where [B])`: an action, and where
        it counts.
      weight: scalar.
    """

    def term(action, steps, judge, key):
        towards, where = wanted(action, steps, judge, key)
        distance, metrics = policy.closeness(action, towards)
        return weight * jnp.where(where, distance, 0.0), metrics

    return term


def data(action: jax.Array, steps: td.Steps, judge: PyTree, key: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What was done in the data, everywhere."""
    return steps.action, jnp.ones(steps.reward.shape, bool)


def make(cfg: Config, spec: Spec, *, wanted: Callable = data, **parts) -> Algorithm:
    """TD3+BC as three pure functions; call it inside jit, so that `cfg` is traced.

    Args:
      cfg: Config.
      spec: of one lane, with continuous actions.
      wanted: as of `close_to`, what the actor keeps close to.
      parts: of `td3.make`.
    Returns:
      Algorithm whose batch is a Transition of windows, leaves `[H, B, ...]`.
    """
    return td3.make(cfg, spec, actor_term=close_to(wanted, cfg.closeness), **parts)
