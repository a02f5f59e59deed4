"""Soft actor-critic: tanh-normal actions, twin critics that regress or classify, and a temperature that tunes itself.

Reference: Haarnoja et al. 2018, arXiv 1812.05905. Different from the paper: an update is one of the actor and the
temperature, and before it `critic_updates` of the critics and their target, each on its share of the batch.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl_gen import distributions, nets, normalize
from jaxrl_gen.algos import acting, critics, descent
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
    weight_decay: float = leaf(0.0, low=0.0)
    members: int = static(2, low=1)  # critics
    critic_updates: int = static(1, low=1)  # per update, each on its share of the batch
    actor_hidden: tuple[int, ...] = static((256, 256))
    critic_hidden: tuple[int, ...] = static((256, 256))
    normalize_obs: bool = static(False)  # by statistics of the rows learned from


class State(NamedTuple):
    """What SAC changes."""

    params: PyTree  # actor, head, critic, log_temperature
    target: PyTree  # the critic's, moving slowly
    opt_state: PyTree  # of the policy, and of the critic
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
    critic_term: Callable = critics.no_term,
) -> Algorithm:
    """SAC as three pure functions; call it inside jit, so that `cfg` is traced.

    Args:
      cfg: Config.
      spec: of one lane, with continuous actions.
      actor: Net from observations to what the head reads; default: a perceptron over their flattened leaves.
      head: how the actor's output becomes actions, differentiably; default: tanh-normal.
      critic: Net from (observation, action) to `[N, ..., readout.size]`; default: an ensemble of perceptrons.
      readout: how the critic's outputs stand for a value: `value.regression()`, `value.classified(low, high)`,
        `distributional.categorical(low, high)` and others.
      target_value, actor_value: `(values [N, B], key) -> [B]`, what the critics' target and the actor make of N values:
        `value.minimum`, `mean`, `partial(random_subset_minimum, size=2)` and others.
      critic_term: `(critics.Judged, key) -> (loss [B], metrics)`, added to what the critics learn.
    Returns:
      Algorithm whose batch is a Transition of windows, leaves `[H, B, ...]`.
    Raises:
      ValueError: if actions are discrete, or a batch does not divide into its shares.
    """
    if spec.discrete:
        raise ValueError(f"SAC needs continuous actions; this environment has {spec.action_size} discrete ones")
    head = head or tanh_normal_head(spec.action_size, cfg.log_std_low, cfg.log_std_high)
    actor = actor or nets.flat(nets.mlp((*cfg.actor_hidden, head.features), jax.nn.relu, last_scale=0.01), spec.obs)
    critic = critic or critics.perceptrons(spec, cfg.critic_hidden, cfg.members, readout.size)
    target_entropy = cfg.target_entropy * spec.action_size
    observer = acting.observer(cfg.normalize_obs)
    optimizer = descent.adamw(cfg.weight_decay)
    learning = critics.learning(critic, readout, target_value, critic_term)

    def init(key):
        keys = jax.random.split(key, 3)
        temperature = jnp.log(jnp.asarray(cfg.initial_temperature, jnp.float32))
        params = {"actor": actor.init(keys[0], spec.obs), "head": head.init(keys[2]), "log_temperature": temperature}
        judge = critic.init(keys[1], critics.judged(spec))
        opt_state = {"policy": descent.start(params), "critic": descent.start(judge, optimizer)}
        params["critic"] = judge
        return State(params, jax.tree.map(jnp.copy, judge), opt_state, observer.init(spec.obs))

    def propose(params, obs, key):
        """An action of the policy's own for each observation, and its log-probability."""
        choice, log_prob = head.sample(params["head"], actor.apply(params["actor"], obs), key)
        return head.action(choice), log_prob

    def fit(state, judge, shares, temperature, key):
        """The critics after each share of the rows; their targets go on with them."""
        constant = lambda obs, key: jax.lax.stop_gradient(propose(state.params, obs, key))

        def one(carry, share):
            judge, slow, opt_state = carry
            steps, key = share
            key_action, key_loss = jax.random.split(key)
            next_action, log_prob = constant(steps.next_obs, key_action)
            loss = lambda judge: learning(judge, slow, steps, next_action, temperature * log_prob, constant, key_loss)
            judge, opt_state, metrics = descent.descend(loss, judge, opt_state, lr=cfg.lr, optimizer=optimizer)
            return (judge, optax.incremental_update(judge, slow, cfg.tau), opt_state), metrics

        keys = jax.random.split(key, cfg.critic_updates)
        carry, metrics = jax.lax.scan(one, (judge, state.target, state.opt_state["critic"]), (shares, keys))
        return *carry, jax.tree.map(lambda x: jnp.mean(x, 0), metrics)

    def policy_loss(params, judge, steps, temperature, key_action, key_members):
        action, log_prob = propose(params, steps.obs, key_action)
        values = readout.value(critic.apply(judge, (steps.obs, action)))
        surrogate, of_actor = policy.soft_policy(actor_value(values, key_members), log_prob, temperature=temperature)
        tuning, of_temperature = policy.temperature_loss(
            params["log_temperature"], log_prob, target_entropy=target_entropy
        )
        return descent.valid_mean(surrogate + tuning, steps.valid), of_actor | of_temperature

    def update(state, batch: Transition, key):
        normalizer, steps = acting.learned(observer, state.normalizer, td.n_step(batch, gamma=cfg.gamma))
        key_critic, key_action, key_members = jax.random.split(key, 3)
        params = dict(state.params)
        judge, shares = params.pop("critic"), descent.shares(steps, cfg.critic_updates)
        temperature = jnp.exp(params["log_temperature"])
        judge, slow, critic_opt, of_critic = fit(state, judge, shares, temperature, key_critic)
        last = jax.tree.map(lambda x: x[-1], shares)
        params, policy_opt, of_policy = descent.descend(
            lambda params: policy_loss(params, judge, last, temperature, key_action, key_members),
            params, state.opt_state["policy"], lr=cfg.lr, unless=descent.skipped(of_critic),
        )  # fmt: skip
        opt_state = {"policy": policy_opt, "critic": critic_opt}
        new = State(params | {"critic": judge}, slow, opt_state, normalizer)
        return new, descent.together(of_critic, of_policy)

    return Algorithm(init, update, acting.headed(actor, head, observer.see))
