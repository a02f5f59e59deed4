"""Implicit Q-learning: values of the best actions in the data by expectiles, and a policy that clones those.

No action that is not in the data is ever judged. The same update learns from data alone and goes on online.

Reference: Kostrikov et al. 2021, arXiv 2110.06169. Different from the paper: value, critics and actor take their steps
from the same parameters, not one after another.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl_gen import distributions, nets, normalize
from jaxrl_gen.algos import acting, bc, critics, descent
from jaxrl_gen.losses import policy, td, value
from jaxrl_gen.types import Algorithm, PyTree, Spec, Transition, config, leaf, static


@config
class Config:
    """Hyper-parameters of IQL; floats are leaves and never recompile."""

    lr: float = leaf(3e-4, low=0.0)
    gamma: float = leaf(0.99, low=0.0, high=1.0)
    tau: float = leaf(0.005, low=0.0, high=1.0)  # weight of the online critic in each update of the target
    expectile: float = leaf(0.7, low=0.0, high=1.0)  # 0.9 where trajectories must be stitched
    sharpness: float = leaf(3.0, low=0.0)  # of the weights exp(sharpness * advantage); 10 where stitched
    largest_weight: float = leaf(100.0, low=1e-3)
    initial_std: float = leaf(1.0, low=1e-3)  # of the actions
    smallest_std: float = leaf(0.05, low=1e-4)
    members: int = static(2, low=1)  # critics
    actor_hidden: tuple[int, ...] = static((256, 256))
    critic_hidden: tuple[int, ...] = static((256, 256))  # of the value too
    normalize_obs: bool = static(True)  # by statistics of the rows learned from


class State(NamedTuple):
    """What IQL changes."""

    params: PyTree  # actor, head, critic, value
    target: PyTree  # the critic's, moving slowly
    opt_state: PyTree
    normalizer: normalize.Normalizer


def make(
    cfg: Config,
    spec: Spec,
    *,
    actor: nets.Net | None = None,
    head: distributions.Head | None = None,
    critic: nets.Net | None = None,
    values: nets.Net | None = None,
    readout: value.Readout = value.regression(),
    target_value: Callable = value.minimum,
    value_loss: Callable = value.expectile_loss,
    extraction: Callable = policy.advantage_weighted,
) -> Algorithm:
    """IQL as three pure functions; call it inside jit, so that `cfg` is traced.

    Args:
      cfg: Config.
      spec: of one lane.
      actor: Net from observations to what the head reads; default: a perceptron over their flattened leaves.
      head: how the actor's output becomes actions, whose choices are the data's actions; default: of `bc`.
      critic: Net from (observation, action) to `[N, ..., readout.size]`; default: an ensemble of perceptrons.
      values: Net from observations to one number; default: a perceptron.
      readout: how the critic's outputs stand for a value: `value.regression()`, or `value.classified(low, high)`.
      target_value: `(values [N, B], key) -> [B]`, what the value learns from, of N critics.
      value_loss: `(value [B], target [B], *, expectile) -> (loss [B], metrics)`.
      extraction: `(log_prob [B], advantage [B], *, sharpness, largest) -> (loss [B], metrics)`, the policy's, of the
        data's actions and their advantages, which are constants.
    Returns:
      Algorithm whose batch is a Transition of windows, leaves `[H, B, ...]`.
    Raises:
      ValueError: if actions are discrete.
    """
    if spec.discrete:
        raise ValueError(f"IQL needs continuous actions; this environment has {spec.action_size} discrete ones")
    head = head or bc.default_head(cfg, spec)
    actor = actor or bc.default_actor(cfg, spec, head)
    critic = critic or critics.perceptrons(spec, cfg.critic_hidden, cfg.members, readout.size)
    values = values or nets.flat(nets.mlp((*cfg.critic_hidden, 1), jax.nn.relu), spec.obs)

    observer = acting.observer(cfg.normalize_obs)

    def init(key):
        keys = jax.random.split(key, 4)
        params = {"actor": actor.init(keys[0], spec.obs), "critic": critic.init(keys[1], critics.judged(spec))}
        params |= {"head": head.init(keys[2]), "value": values.init(keys[3], spec.obs)}
        normalizer = observer.init(spec.obs)
        return State(params, jax.tree.map(jnp.copy, params["critic"]), descent.start(params), normalizer)

    def loss(params, steps, target, best, key):
        judgement = values.apply(params["value"], steps.obs)[..., 0]
        of_state, of_value = value_loss(judgement, best, expectile=cfg.expectile)
        outputs = critic.apply(params["critic"], (steps.obs, steps.action))
        error, of_critic = value.ensemble_loss(readout.loss, outputs, target[None])
        log_prob, _ = head.score(params["head"], actor.apply(params["actor"], steps.obs), steps.action, key)
        advantage = jax.lax.stop_gradient(best - judgement)
        cloning, of_actor = extraction(log_prob, advantage, sharpness=cfg.sharpness, largest=cfg.largest_weight)
        metrics = of_value | of_critic | of_actor | {"critic/value": jnp.mean(readout.value(outputs))}
        return descent.valid_mean(of_state + error + cloning, steps.valid), metrics

    def update(state, batch: Transition, key):
        normalizer, steps = acting.learned(observer, state.normalizer, td.n_step(batch, gamma=cfg.gamma))
        key_members, key_score = jax.random.split(key)
        target = td.bootstrapped(steps, values.apply(state.params["value"], steps.next_obs)[..., 0])
        judged_slowly = readout.value(critic.apply(state.target, (steps.obs, steps.action)))
        best = target_value(judged_slowly, key_members)
        params, opt_state, metrics = descent.descend(
            lambda params: loss(params, steps, target, best, key_score), state.params, state.opt_state, lr=cfg.lr
        )
        slow = optax.incremental_update(params["critic"], state.target, cfg.tau)
        return State(params, slow, opt_state, normalizer), metrics

    return Algorithm(init, update, acting.headed(actor, head, observer.see))
