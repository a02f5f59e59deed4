"""Conservative Q-learning: SAC whose critics push down the actions that the data did not do; or calibrated, Cal-QL.

Calibrated, what the policy does is pushed down no further than to the return that followed in the data, so that values
have the right size when learning goes on online; where the return that followed is not known, as in rows lived online,
it is pushed down as it is without.

Reference: Kumar et al. 2020, arXiv 2006.04779; Nakamoto et al. 2023, arXiv 2303.05479. Releases differ in where the
actions proposed at the next observation are judged: here at that observation's predecessor, as in the paper's own.
Different from them: critics learn half their squared error, so that their weight of the gap is twice this one; and the
target counts the entropy to come, as SAC's does and theirs by default does not.
"""

import math

import jax
import jax.numpy as jnp

from jaxrl_gen.algos import critics, sac
from jaxrl_gen.losses import critic as regularised
from jaxrl_gen.types import Algorithm, Spec, config, leaf, static


@config
class Config(sac.Config):
    """Hyper-parameters of CQL; floats are leaves and never recompile."""

    conservatism: float = leaf(2.5, low=0.0)  # weight of the gap; 5 in the release, whose critics learn all their error
    softness: float = leaf(1.0, low=1e-3)  # of the soft maximum, in units of value
    samples: int = static(10, low=1)  # actions drawn uniformly, from the policy here, and from the policy one step on
    calibrated: bool = static(False)  # Cal-QL


def pessimistic(cfg: Config) -> critics.Term:
    """The critics' term that keeps what was not done below what was.

    Args:
      cfg: Config.
    Returns:
      Term; where it is calibrated it reads `extras["return_to_go"]`; where there is an `extras["logged"]`, as online,
      only in rows that are.
    """

    def term(judged, key):
        steps = judged.steps
        key_uniform, key_here, key_there = jax.random.split(key, 3)
        shape = (cfg.samples, *steps.action.shape)
        uniform = jax.random.uniform(key_uniform, shape, minval=-1.0)
        density = jnp.full(shape[:2], -shape[-1] * math.log(2.0))
        many = lambda obs: jax.tree.map(lambda x: jnp.broadcast_to(x, (cfg.samples, *x.shape)), obs)
        obs = many(steps.obs)
        proposed = [judged.propose(obs, key_here), judged.propose(many(steps.next_obs), key_there)]
        of_data, of_uniform = judged.values(steps.obs, steps.action), judged.values(obs, uniform)
        of_policy = [jnp.moveaxis(judged.values(obs, action), 1, -1) for action, _ in proposed]
        if cfg.calibrated:
            if "return_to_go" not in steps.extras:
                raise ValueError("Cal-QL's batch has no extras['return_to_go']: see data.trajectory.with_returns_to_go")
            floor = steps.extras["return_to_go"]
            floor = jnp.where(steps.extras.get("logged", True), floor, -jnp.inf)  # of what was lived none is known
            of_policy = [regularised.calibrated(values, floor) for values in of_policy]
        sampled = jnp.concatenate([jnp.moveaxis(of_uniform, 1, -1), *of_policy], -1)
        log_density = jnp.concatenate([density, *(log_prob for _, log_prob in proposed)]).T
        loss, metrics = regularised.conservative(of_data, sampled, log_density, temperature=cfg.softness)
        return cfg.conservatism * loss, metrics

    return term


def make(cfg: Config, spec: Spec, *, critic_term: critics.Term = critics.no_term, **parts) -> Algorithm:
    """CQL as three pure functions; call it inside jit, so that `cfg` is traced.

    Args:
      cfg: Config.
      spec: of one lane, with continuous actions.
      critic_term: as of `sac.make`, added to CQL's own.
      parts: others of `sac.make`.
    Returns:
      Algorithm whose batch is a Transition of windows, leaves `[H, B, ...]`.
    Raises:
      ValueError: where it is calibrated, if a batch has no returns to go.
    """
    return sac.make(cfg, spec, critic_term=critics.together(pessimistic(cfg), critic_term), **parts)
