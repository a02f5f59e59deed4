"""TD3+BC that keeps close to the better of two actions: the data's, and one like those that were better than average.

A conditional autoencoder learns the data's actions whose advantage is positive; of what it makes of the policy's action
and of the data's action, the one with the larger advantage is what the actor keeps close to, where either is any good.

Reference: Liu et al. 2024, arXiv 2405.19909. Different from its release: what the autoencoder proposes is a constant to
the actor.
"""

import jax
import jax.numpy as jnp

from jaxrl_gen import nets
from jaxrl_gen.algos import critics, td3_bc
from jaxrl_gen.losses import policy, td, value
from jaxrl_gen.types import Algorithm, Spec, config, leaf, static


@config
class Config(td3_bc.Config):
    """Hyper-parameters of A2PR; floats are leaves and never recompile."""

    reconstruction: float = leaf(1.0, low=0.0)  # weight of the autoencoder's error beside its divergence
    divergence: float = leaf(0.5, low=0.0)
    proposal_hidden: tuple[int, ...] = static((256, 256))  # of the autoencoder; 750 in the release


def make(cfg: Config, spec: Spec, **parts) -> Algorithm:
    """A2PR as three pure functions; call it inside jit, so that `cfg` is traced.

    The autoencoder and the value of states learn with the critics, from every share of the batch.

    Args:
      cfg: Config.
      spec: of one lane, with continuous actions.
      parts: of `td3_bc.make`, without `critic`, `critic_term`, `wanted` and `readout`.
    Returns:
      Algorithm whose batch is a Transition of windows, leaves `[H, B, ...]`.
    """
    size = spec.action_size
    code = jax.ShapeDtypeStruct((2 * size,), jnp.float32)
    judge = critics.perceptrons(spec, cfg.critic_hidden, cfg.members, 1)
    values = nets.flat(nets.mlp((*cfg.critic_hidden, 1), jax.nn.relu), spec.obs)
    encoder = nets.flat(nets.mlp((*cfg.proposal_hidden, 4 * size), jax.nn.relu), critics.judged(spec))
    decoder = nets.flat(nets.mlp((*cfg.proposal_hidden, size), jax.nn.relu), (spec.obs, code))

    def init(key, example):
        keys = jax.random.split(key, 4)
        return {
            "critic": judge.init(keys[0], example), "value": values.init(keys[1], spec.obs),
            "encoder": encoder.init(keys[2], example), "decoder": decoder.init(keys[3], (spec.obs, code)),
        }  # fmt: skip

    critic = nets.Net(init, lambda params, x: judge.apply(params["critic"], x))

    def encode(params, obs, action):
        mean, log_std = jnp.split(encoder.apply(params["encoder"], (obs, action)), 2, -1)
        return mean, jnp.clip(log_std, -4.0, 15.0)

    def decode(params, obs, mean, log_std, key):
        drawn = mean + jnp.exp(log_std) * jax.random.normal(key, mean.shape)
        return jnp.tanh(decoder.apply(params["decoder"], (obs, drawn)))

    def advantage(params, obs, action):
        """By the first critic."""
        return critic.apply(params, (obs, action))[0, ..., 0] - values.apply(params["value"], obs)[..., 0]

    def learned(judged, key):
        steps, params = judged.steps, judged.params
        follows = jnp.concatenate(
            [critic.apply(x, (steps.next_obs, judged.next_action)) for x in (params, judged.slow)]
        )
        target = td.bootstrapped(steps, value.minimum(follows[..., 0]))
        of_state, of_value = value.expectile_loss(
            values.apply(params["value"], steps.obs)[..., 0], target, expectile=0.5
        )
        better = jax.lax.stop_gradient(advantage(params, steps.obs, steps.action)) > 0.0
        mean, log_std = encode(params, steps.obs, steps.action)
        copied = decode(params, steps.obs, mean, log_std, key)
        error, of_proposal = policy.autoencoding(
            copied, steps.action, mean, log_std, weight=cfg.reconstruction * better, divergence=cfg.divergence
        )
        return of_state + error, of_value | of_proposal

    def wanted(action, steps, params, key):
        proposed = decode(params, steps.obs, *encode(params, steps.obs, action), key)
        of_proposed, of_data = (advantage(params, steps.obs, x) for x in (proposed, steps.action))
        chosen = jnp.where((of_proposed >= of_data)[:, None], proposed, steps.action)
        return jax.lax.stop_gradient(chosen), (of_proposed >= 0.0) | (of_data > 0.0)

    return td3_bc.make(cfg, spec, wanted=wanted, critic=critic, critic_term=learned, **parts)
