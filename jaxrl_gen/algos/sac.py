"""Soft actor-critic: tanh-normal actions, twin critics that regress or classify, and a temperature that tunes itself.

Reference: Haarnoja et al. 2018, arXiv 1812.05905. Different from the paper: actor, critic and temperature take their
steps from the same parameters, not one after another.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl_gen import distributions, nets, normalize
from jaxrl_gen.algos import acting, descent
from jaxrl_gen.losses import policy, td, value
from jaxrl_gen.types import Algorithm, PyTree, Spec, Transition, config, leaf, static


@config
class Config:
    """Hyper-parameters of SAC; floats are leaves and never recompile."""

    lr: float = leaf(3e-4, low=0.0)
    gamma: float = leaf(0.99, low=0.0, high=1.0)
    tau: float = leaf(0.005, low=0.0, high=1.0)  # weight of the online critic in each update of the target
    initial_temperature: float = leaf(1.0, low=1e-8)  # units of value per nat
    target_entropy: float = leaf(-1.0)  # in nats, for each coordinate of the action
    log_std_low: float = leaf(-10.0)  # of the normal before the tanh
    log_std_high: float = leaf(2.0)
    members: int = static(2, low=1)  # critics
    actor_hidden: tuple[int, ...] = static((256, 256))
    critic_hidden: tuple[int, ...] = static((256, 256))
    normalize_obs: bool = static(False)  # by statistics of the rows learned from


class State(NamedTuple):
    """What SAC changes."""

    params: PyTree  # actor, head, critic, log_temperature
    target: PyTree  # the critic's, moving slowly
    opt_state: PyTree
    normalizer: normalize.Normalizer


def tanh_normal_head(size: int, low: jax.Array, high: jax.Array) -> distributions.Head:
    """Actions tanh(x) with x normal, whose mean and log deviation are the actor's output.

    Args:
      size: A.
      low, high: where the log deviation is clipped.
    """

    def of(output):
        mean, log_std = jnp.split(output, 2, -1)
        return distributions.tanh_normal(mean, jnp.exp(jnp.clip(log_std, low, high)))

    def sample(params, output, key):
        dist = of(output)
        choice = dist.before_tanh.sample(seed=key)
        return choice, dist.log_prob_before_tanh(choice)

    return distributions.Head(
        init=lambda key: {},
        sample=sample,
        action=jnp.tanh,
        mode=lambda params, output: of(output).mode(),
        score=lambda params, output, choice, key: (
            of(output).log_prob_before_tanh(choice), of(output).entropy_estimate(key)
        ),
        features=2 * size,
    )  # fmt: skip


def make(
    cfg: Config,
    spec: Spec,
    *,
    actor: nets.Net | None = None,
    head: distributions.Head | None = None,
    critic: nets.Net | None = None,
    readout: value.Readout = value.regression(),
    target_value: Callable = value.minimum,
    actor_value: Callable = value.minimum,
) -> Algorithm:
    """SAC as three pure functions; call it inside jit, so that `cfg` is traced.

    Args:
      cfg: Config.
      spec: of one lane, with continuous actions.
      actor: Net from observations to what the head reads; default: a perceptron over their flattened leaves.
      head: how the actor's output becomes actions, differentiably; default: tanh-normal.
      critic: Net from (observation, action) to `[N, ..., readout.size]`; default: an ensemble of perceptrons.
      readout: how the critic's outputs stand for a value: `value.regression()`, or `value.classified(low, high)`.
      target_value, actor_value: `(values [N, B], key) -> [B]`, what the critics' target and the actor make of N values:
        `value.minimum`, `mean`, `partial(random_subset_minimum, size=2)` and others.
    Returns:
      Algorithm whose batch is a Transition of windows, leaves `[H, B, ...]`.
    Raises:
      ValueError: if actions are discrete.
    """
    if spec.discrete:
        raise ValueError(f"SAC needs continuous actions; this environment has {spec.action_size} discrete ones")
    head = head or tanh_normal_head(spec.action_size, cfg.log_std_low, cfg.log_std_high)
    actor = actor or nets.flat(nets.mlp((*cfg.actor_hidden, head.features), jax.nn.relu, last_scale=0.01), spec.obs)
    judged = (spec.obs, jax.ShapeDtypeStruct((spec.action_size,), jnp.float32))
    if critic is None:
        critic = nets.flat(nets.mlp((*cfg.critic_hidden, readout.size), jax.nn.relu), judged)
        critic = nets.ensemble(critic, cfg.members)
    target_entropy = cfg.target_entropy * spec.action_size

    observer = acting.observer(cfg.normalize_obs)

    def init(key):
        keys = jax.random.split(key, 3)
        params = {"actor": actor.init(keys[0], spec.obs), "critic": critic.init(keys[1], judged)}
        params["head"] = head.init(keys[2])
        params["log_temperature"] = jnp.log(jnp.asarray(cfg.initial_temperature, jnp.float32))
        normalizer = observer.init(spec.obs)
        return State(params, jax.tree.map(jnp.copy, params["critic"]), descent.start(params), normalizer)

    def propose(params, obs, key):
        """An action of the policy's own for each observation, and its log-probability."""
        choice, log_prob = head.sample(params["head"], actor.apply(params["actor"], obs), key)
        return head.action(choice), log_prob

    def target_of(state, steps, temperature, key_action, key_members):
        action, log_prob = propose(state.params, steps.next_obs, key_action)
        values = readout.value(critic.apply(state.target, (steps.next_obs, action)))
        following = value.soft_value(target_value(values, key_members), log_prob, temperature=temperature)
        return td.bootstrapped(steps, following)

    def loss(params, steps, target, temperature, key_action, key_members):
        outputs = critic.apply(params["critic"], (steps.obs, steps.action))
        error, of_critic = value.ensemble_loss(readout.loss, outputs, target)
        action, log_prob = propose(params, steps.obs, key_action)
        values = readout.value(critic.apply(jax.lax.stop_gradient(params["critic"]), (steps.obs, action)))
        surrogate, of_actor = policy.soft_policy(actor_value(values, key_members), log_prob, temperature=temperature)
        tuning, of_temperature = policy.temperature_loss(
            params["log_temperature"], log_prob, target_entropy=target_entropy
        )
        metrics = of_critic | of_actor | of_temperature | {"critic/value": jnp.mean(readout.value(outputs))}
        return descent.valid_mean(error + surrogate + tuning, steps.valid), metrics

    def update(state, batch: Transition, key):
        normalizer, steps = acting.learned(observer, state.normalizer, td.n_step(batch, gamma=cfg.gamma))
        temperature = jnp.exp(state.params["log_temperature"])
        keys = jax.random.split(key, 4)
        target = target_of(state, steps, temperature, keys[0], keys[1])
        params, opt_state, metrics = descent.descend(
            lambda params: loss(params, steps, target, temperature, keys[2], keys[3]),
            state.params, state.opt_state, lr=cfg.lr,
        )  # fmt: skip
        slow = optax.incremental_update(params["critic"], state.target, cfg.tau)
        return State(params, slow, opt_state, normalizer), metrics | {"critic/target": jnp.mean(target)}

    return Algorithm(init, update, acting.headed(actor, head, observer.see))
