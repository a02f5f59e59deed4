"""Deterministic policy gradients whose critic's features are no more alike, from step to step, than they may be.

Reference: He et al. 2024, arXiv 2404.12754. As there: one critic, and no noise on the target's actions. The critic
learns half its squared error here, and all of it there: their weight of what is above the bound is twice this one.
"""

import jax
import jax.numpy as jnp

from jaxrl_gen import nets
from jaxrl_gen.algos import critics, td3
from jaxrl_gen.losses import critic as regularised
from jaxrl_gen.types import Algorithm, Spec, config, leaf, static


@config
class Config(td3.Config):
    """Hyper-parameters of BEER; floats are leaves and never recompile."""

    bound: float = leaf(5e-4, low=0.0)  # weight of what is above the bound, 1e-3 in the release; 0 is plain DPG
    smoothing: float = leaf(0.0, low=0.0)
    members: int = static(1, low=1, high=1)  # critics
    critic_updates: int = static(1, low=1)


def make(cfg: Config, spec: Spec, *, critic_term: critics.Term = critics.no_term, **parts) -> Algorithm:
    """BEER as three pure functions; call it inside jit, so that `cfg` is traced.

    Args:
      cfg: Config.
      spec: of one lane, with continuous actions.
      critic_term: as of `td3.make`, added to BEER's own.
      parts: others of `td3.make`, without `critic` and `readout`.
    Returns:
      Algorithm whose batch is a Transition of windows, leaves `[H, B, ...]`.
    """
    body = nets.flat(nets.mlp(cfg.critic_hidden, jax.nn.relu, last_scale=2.0**0.5), critics.judged(spec))
    last = nets.mlp((1,))

    def init(key, example):
        key_body, key_last = jax.random.split(key)
        width = jax.ShapeDtypeStruct((cfg.critic_hidden[-1],), jnp.float32)
        return {"body": body.init(key_body, example), "last": last.init(key_last, width)}

    def features(params, obs, action):
        return jax.nn.relu(body.apply(params["body"], (obs, action)))

    def apply(params, x):
        return last.apply(params["last"], features(params, *x))[None]

    def bounded(judged, key):
        steps = judged.steps
        goes_on = steps.discount > 0.0  # nothing follows where an episode terminated
        excess, metrics = regularised.rank_bound(
            features(judged.params, steps.obs, steps.action),
            features(judged.slow, steps.next_obs, judged.next_action),
            steps.reward,
            judged.params["last"]["Dense_0"]["kernel"][:, 0],
            gamma=jnp.where(goes_on, steps.discount, 1.0),
        )
        return cfg.bound * jnp.where(goes_on, excess, 0.0), metrics

    term = critics.together(bounded, critic_term)
    return td3.make(cfg, spec, critic=nets.Net(init, apply), critic_term=term, **parts)
