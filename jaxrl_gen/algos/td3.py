"""Twin delayed deterministic policy gradients, and the trunk of what learns offline by keeping close to the data.

A method that differs from this by a term is this with a term: TD3+BC, ReBRAC, PRDC, A2PR and BEER say which.

Reference: Fujimoto et al. 2018, arXiv 1802.09477. Different from the paper: an update is one of the actor and of the
targets, and before it `critic_updates` of the critics, each on its share of the batch; so a batch of 512 with two of
them is two updates of 256 there, and costs what they cost also where members are vmapped.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl_gen import nets, normalize
from jaxrl_gen.algos import acting, critics, descent
from jaxrl_gen.losses import policy, td, value
from jaxrl_gen.types import Algorithm, PyTree, Spec, Transition, config, leaf, static


@config
class Config:
    """Hyper-parameters of TD3; floats are leaves and never recompile."""

    lr: float = leaf(3e-4, low=0.0)
    weight_decay: float = leaf(0.0, low=0.0)
    gamma: float = leaf(0.99, low=0.0, high=1.0)
    tau: float = leaf(0.005, low=0.0, high=1.0)  # weight of the online networks in each update of the targets
    smoothing: float = leaf(0.2, low=0.0)  # deviation of the noise on the target's actions
    smoothing_clip: float = leaf(0.5, low=0.0)  # largest size of that noise
    exploration_low: float = leaf(0.1, low=0.0)  # deviation of the noise of the first lane when acting
    exploration_high: float = leaf(0.1, low=0.0)  # of the last lane; those between lie evenly between
    members: int = static(2, low=1)  # critics
    critic_updates: int = static(2, low=1)  # per update, each on its share of the batch
    actor_hidden: tuple[int, ...] = static((256, 256))
    critic_hidden: tuple[int, ...] = static((256, 256))
    slow_actor: bool = static(True)  # the target's actions come from an actor that moves slowly
    scale_free: bool = static(False)  # divide the critic's push by the mean size of its values
    normalize_obs: bool = static(False)  # by statistics of the rows learned from


class State(NamedTuple):
    """What TD3 changes."""

    params: PyTree  # actor, critic
    target: PyTree  # of both, moving slowly
    opt_state: PyTree  # of both
    normalizer: normalize.Normalizer


def no_term(
    action: jax.Array, steps: td.Steps, judge: PyTree, key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Nothing beside the critic's push."""
    return jnp.zeros_like(steps.reward), {}


def no_cost(next_action: jax.Array, steps: td.Steps) -> jax.Array:
    """The next value is worth what it is."""
    return jnp.zeros_like(steps.reward)


def make(
    cfg: Config,
    spec: Spec,
    *,
    actor: nets.Net | None = None,
    critic: nets.Net | None = None,
    readout: value.Readout = value.regression(),
    target_value: Callable = value.minimum,
    actor_value: Callable = value.first,
    critic_term: Callable = critics.no_term,
    actor_term: Callable = no_term,
    cost: Callable = no_cost,
    observer: acting.Observer | None = None,
) -> Algorithm:
    """TD3 as three pure functions; call it inside jit, so that `cfg` is traced.

    Args:
      cfg: Config.
      spec: of one lane, with continuous actions.
      actor: Net from observations to A numbers before a tanh; default: a perceptron over their flattened leaves.
      critic: Net from (observation, action) to `[N, ..., readout.size]`; default: an ensemble of perceptrons.
      readout: how the critic's outputs stand for a value, such as `value.regression()` or `distributional.categorical`.
      target_value, actor_value: `(values [N, B], key) -> [B]`, what the critics' target and the actor make of N values.
      critic_term: `(critics.Judged, key) -> (loss [B], metrics)`, added to what the critics learn.
      actor_term: `(action [B, A], td.Steps, critic's parameters, key) -> (loss [B], metrics)`, added to what the actor
        learns; the parameters are constants.
      cost: `(next_action [B, A], td.Steps) -> [B]`, taken from the next value in the target.
      observer: how observations are seen; default: as `cfg.normalize_obs` says.
    Returns:
      Algorithm whose batch is a Transition of windows, leaves `[H, B, ...]`.
    Raises:
      ValueError: if actions are discrete, or a batch does not divide into its shares.
    """
    if spec.discrete:
        raise ValueError(f"TD3 needs continuous actions; this environment has {spec.action_size} discrete ones")
    if actor is None:
        actor = nets.flat(nets.mlp((*cfg.actor_hidden, spec.action_size), jax.nn.relu, last_scale=0.01), spec.obs)
    critic = critic or critics.perceptrons(spec, cfg.critic_hidden, cfg.members, readout.size)
    observer = observer or acting.observer(cfg.normalize_obs)
    optimizer = descent.adamw(cfg.weight_decay)
    learning = critics.learning(critic, readout, target_value, critic_term)

    def init(key):
        key_actor, key_critic = jax.random.split(key)
        params = {"actor": actor.init(key_actor, spec.obs), "critic": critic.init(key_critic, critics.judged(spec))}
        opt_state = {name: descent.start(part, optimizer) for name, part in params.items()}
        return State(params, jax.tree.map(jnp.copy, params), opt_state, observer.init(spec.obs))

    def decide(params, obs):
        return jnp.tanh(actor.apply(params, obs))

    def act(state, obs, key):
        action = decide(state.params["actor"], observer.see(state.normalizer, obs))
        if key is None:
            return action, {}
        deviation = jnp.linspace(cfg.exploration_low, cfg.exploration_high, len(action))
        noise = deviation.reshape(-1, *[1] * (action.ndim - 1)) * jax.random.normal(key, action.shape)
        return jnp.clip(action + noise, -1.0, 1.0), {}

    def smoothed(params, obs, key):
        """The action with clipped noise, so that a narrow peak of the critic does not count for its height."""
        action = decide(params, obs)
        noise = cfg.smoothing * jax.random.normal(key, action.shape)
        return jnp.clip(action + jnp.clip(noise, -cfg.smoothing_clip, cfg.smoothing_clip), -1.0, 1.0)

    def update(state, batch: Transition, key):
        normalizer, steps = acting.learned(observer, state.normalizer, td.n_step(batch, gamma=cfg.gamma))
        key_critic, key_members, key_term = jax.random.split(key, 3)
        online, slow, opt_state = state.params, state.target, state.opt_state
        ahead = slow["actor"] if cfg.slow_actor else online["actor"]
        shares = descent.shares(steps, cfg.critic_updates)

        def propose(obs, key):
            """The policy's own action; it has no density."""
            action = decide(online["actor"], obs)
            return action, jnp.zeros(action.shape[:-1])

        def critics_loss(params, steps, key):
            key_action, key_loss = jax.random.split(key)
            next_action = jax.lax.stop_gradient(smoothed(ahead, steps.next_obs, key_action))
            return learning(params, slow["critic"], steps, next_action, cost(next_action, steps), propose, key_loss)

        judge, critic_opt, of_critic = descent.descend_by_shares(
            critics_loss, online["critic"], opt_state["critic"], shares, key_critic, lr=cfg.lr, optimizer=optimizer
        )
        last = jax.tree.map(lambda x: x[-1], shares)

        def actor_loss(params):
            action = decide(params, last.obs)
            values = readout.value(critic.apply(judge, (last.obs, action)))
            push, of_push = policy.value_ascent(
                actor_value(values, key_members), scale_free=cfg.scale_free, valid=last.valid
            )
            more, of_term = actor_term(action, last, judge, key_term)
            return descent.valid_mean(push + more, last.valid), of_push | of_term

        decider, actor_opt, of_actor = descent.descend(
            actor_loss, online["actor"], opt_state["actor"], lr=cfg.lr, optimizer=optimizer,
            unless=descent.skipped(of_critic),
        )  # fmt: skip
        params = {"actor": decider, "critic": judge}
        slow = optax.incremental_update(params, slow, cfg.tau)
        opt_state = {"actor": actor_opt, "critic": critic_opt}
        return State(params, slow, opt_state, normalizer), descent.together(of_critic, of_actor)

    return Algorithm(init, update, act)
