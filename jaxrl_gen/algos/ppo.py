"""Proximal policy optimisation, with continuous or discrete actions, any observation pytree, and optional memory.

Reference: Schulman et al. 2017, arXiv 1707.06347. Different from the paper, as in most releases since: advantages are
normalised over the whole batch, and observations by running statistics that the State holds.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from jaxrl_gen import distributions, nets, normalize
from jaxrl_gen.algos import acting
from jaxrl_gen.losses import policy, td
from jaxrl_gen.types import Algorithm, PyTree, Spec, Transition, config, ended, leaf, static


@config
class Config:
    """Hyper-parameters of PPO; floats are leaves and never recompile."""

    lr: float = leaf(3e-4, low=0.0)
    lr_end: float = leaf(1.0, low=0.0)  # the learning rate falls linearly to lr * lr_end ...
    lr_updates: float = leaf(1.0, low=1.0)  # ... over this many updates (batches), and stays there
    gamma: float = leaf(0.99, low=0.0, high=1.0)
    lam: float = leaf(0.95, low=0.0, high=1.0)
    clip: float = leaf(0.2, low=0.0)
    value_clip: float = leaf(jnp.inf, low=0.0)  # in units of value; infinite: the plain value loss
    value_coefficient: float = leaf(0.5, low=0.0)
    entropy_coefficient: float = leaf(0.0, low=0.0)
    kl_coefficient: float = leaf(0.0, low=0.0)  # first value of the adaptive penalty; zero: none
    kl_target: float = leaf(0.01, low=0.0)
    max_grad_norm: float = leaf(0.5, low=0.0)
    adam_epsilon: float = leaf(1e-5, low=0.0)
    reward_scale: float = leaf(1.0)
    initial_std: float = leaf(1.0, low=1e-3)  # of the normal before the tanh
    epochs: int = static(4, low=1)
    minibatches: int = static(4, low=1)
    actor_hidden: tuple[int, ...] = static((64, 64))
    critic_hidden: tuple[int, ...] = static((64, 64))
    normalize_obs: bool = static(True)


class State(NamedTuple):
    """What PPO changes."""

    params: PyTree  # actor, head, critic
    opt_state: PyTree
    normalizer: normalize.Normalizer
    kl_coefficient: jax.Array
    updates: jax.Array  # f32, batches learned from; drives the learning-rate decay


class Rows(NamedTuple):
    """A batch made ready for the epochs: inputs normalised, targets known. Leaves `[T, E, ...]` or `[B, ...]`."""

    actor_obs: PyTree
    critic_obs: PyTree
    choice: PyTree  # the action before its tanh, or the class chosen
    log_prob: jax.Array
    value: jax.Array
    advantage: jax.Array
    target: jax.Array
    valid: jax.Array
    ended: jax.Array


def make(
    cfg: Config,
    spec: Spec,
    *,
    actor: nets.Net | None = None,
    critic: nets.Net | None = None,
    head: distributions.Head | None = None,
    actor_view: Callable = lambda obs: obs,
    critic_view: Callable = lambda obs: obs,
    policy_loss: Callable = policy.clipped_surrogate,
) -> Algorithm:
    """PPO as three pure functions; call it inside jit, so that `cfg` is traced.

    Args:
      cfg: Config.
      spec: of one lane.
      actor: Net from what `actor_view` picks to what the head reads; default: a perceptron over its flattened leaves.
      critic: Net from what `critic_view` picks to one number; default: likewise. Both may have memory, or neither.
      head: how the actor's output becomes actions; default: tanh-normal with A means, or categorical with A logits.
      actor_view, critic_view: obs -> the leaves that each may see (asymmetric actor and critic).
      policy_loss: `(log_prob [B], old_log_prob [B], advantage [B], *, clip) -> (loss [B], metrics)`.
    Returns:
      Algorithm whose batch is a Transition of `[T, E, ...]` rows.
    """
    actor_spec, critic_spec = actor_view(spec.obs), critic_view(spec.obs)
    default = distributions.categorical_head if spec.discrete else distributions.tanh_normal_head
    head = head or default(spec.action_size, *([] if spec.discrete else [cfg.initial_std]))
    actor = actor or nets.flat(nets.mlp((*cfg.actor_hidden, head.features), last_scale=0.01), actor_spec)
    critic = critic or nets.flat(nets.mlp((*cfg.critic_hidden, 1)), critic_spec)
    if (actor.memory is None) != (critic.memory is None):
        raise ValueError("actor and critic must both have memory, or neither")
    remembers = actor.memory is not None
    optimizer = optax.chain(optax.clip_by_global_norm(cfg.max_grad_norm), optax.scale_by_adam(eps=cfg.adam_epsilon))

    observer = acting.observer(cfg.normalize_obs)

    def init(key):
        keys = jax.random.split(key, 3)
        params = {"actor": actor.init(keys[0], actor_spec), "critic": critic.init(keys[1], critic_spec)}
        params["head"] = head.init(keys[2])
        normalizer = observer.init(spec.obs)
        zero = jnp.zeros((), jnp.float32)
        return State(params, optimizer.init(ravel_pytree(params)[0]), normalizer, zero + cfg.kl_coefficient, zero)

    def act(state, obs, key):
        memory, extras = None, {}
        if remembers:
            obs, memory = obs
        seen = observer.see(state.normalizer, obs)
        if remembers:
            output, actor_memory = actor.apply(state.params["actor"], actor_view(seen), memory["actor"])
            _, critic_memory = critic.apply(state.params["critic"], critic_view(seen), memory["critic"])
            extras["memory"] = {"actor": actor_memory, "critic": critic_memory}
        else:
            output = actor.apply(state.params["actor"], actor_view(seen))
        if key is None:
            return head.mode(state.params["head"], output), extras
        choice, log_prob = head.sample(state.params["head"], output, key)
        return head.action(choice), extras | {"choice": choice, "log_prob": log_prob}

    def memory(lanes):
        return {"actor": actor.memory(lanes), "critic": critic.memory(lanes)} if remembers else None

    def values(params, obs, next_obs, memory, over):
        """V(s) and V(s') of all rows; with memory, s' is judged with what is remembered after s."""
        if not remembers:
            both = jax.tree.map(lambda x, y: jnp.stack([x, y]), obs, next_obs)
            return critic.apply(params["critic"], both)[..., 0]
        value, after = nets.unroll(critic, params["critic"], obs, memory, over)
        return value[..., 0], critic.apply(params["critic"], next_obs, after)[0][..., 0]

    def outputs(params, rows, memory):
        """The actor's output and the critic's value for rows of a minibatch."""
        if not remembers:
            return (
                actor.apply(params["actor"], rows.actor_obs),
                critic.apply(params["critic"], rows.critic_obs)[..., 0],
            )
        output, _ = nets.unroll(actor, params["actor"], rows.actor_obs, memory["actor"], rows.ended)
        value, _ = nets.unroll(critic, params["critic"], rows.critic_obs, memory["critic"], rows.ended)
        return output, value[..., 0]

    def loss(params, rows, memory, kl_coefficient, key):
        output, value = outputs(params, rows, memory)
        log_prob, entropy = head.score(params["head"], output, rows.choice, key)
        surrogate, of_surrogate = policy_loss(log_prob, rows.log_prob, rows.advantage, clip=cfg.clip)
        error, of_value = policy.clipped_value_loss(value, rows.target, rows.value, clip=cfg.value_clip)
        bonus, of_entropy = policy.entropy_bonus(entropy)
        penalty, of_kl = policy.kl_penalty(log_prob, rows.log_prob)
        total = surrogate + cfg.value_coefficient * error + cfg.entropy_coefficient * bonus + kl_coefficient * penalty
        mean_valid = lambda x: jnp.sum(jnp.where(rows.valid, x, 0.0)) / jnp.maximum(jnp.sum(rows.valid), 1)
        return mean_valid(total), of_surrogate | of_value | of_entropy | of_kl | {"actor/kl": mean_valid(penalty)}

    def prepare(state, batch: Transition, obs, memory):
        seen, seen_next = observer.see(state.normalizer, obs), observer.see(state.normalizer, batch.next_obs)
        over, critic_memory = ended(batch), memory and memory["critic"]
        value, next_value = values(state.params, critic_view(seen), critic_view(seen_next), critic_memory, over)
        advantage = td.gae(
            batch.reward * cfg.reward_scale, value, next_value, batch.terminated, over,
            gamma=cfg.gamma, lam=cfg.lam, valid=batch.valid,
        )  # fmt: skip
        weight = batch.valid / jnp.maximum(jnp.sum(batch.valid), 1)
        mean = jnp.sum(weight * advantage)
        std = jnp.sqrt(jnp.sum(weight * (advantage - mean) ** 2))
        rows = Rows(
            actor_view(seen), critic_view(seen), batch.extras["choice"], batch.extras["log_prob"], value,
            (advantage - mean) / (std + 1e-8), advantage + value, batch.valid, over,
        )  # fmt: skip
        # Zeros where invalid: a mask after the loss would still let a NaN through in the gradient.
        shaped = lambda x: batch.valid.reshape(batch.valid.shape + (1,) * (x.ndim - 2))
        return jax.tree.map(lambda x: jnp.where(shaped(x), x, jnp.zeros_like(x)), rows)._replace(ended=over)

    def update(state, batch, key):
        obs, memory = batch.obs, None
        if remembers:
            obs, memory = batch.obs.obs, jax.tree.map(lambda x: x[0], batch.obs.memory)
        rows = prepare(state, batch, obs, memory)
        lr = cfg.lr * (1.0 + (cfg.lr_end - 1.0) * jnp.minimum(state.updates / cfg.lr_updates, 1.0))

        # One vector instead of a dozen small arrays, for each of which the optimiser would take a dozen small kernels.
        flat, unravel = ravel_pytree(state.params)

        def minibatch(carry, piece):
            (flat, opt_state), (rows, memory, key) = carry, piece
            (_, metrics), grads = jax.value_and_grad(
                lambda flat: loss(unravel(flat), rows, memory, state.kl_coefficient, key), has_aux=True
            )(flat)
            norm = optax.tree.norm(grads)
            ok = jnp.isfinite(norm)  # a non-finite gradient leaves no trace
            step, stepped = optimizer.update(grads, opt_state)
            opt_state = jax.tree.map(lambda new, old: jnp.where(ok, new, old), stepped, opt_state)
            flat = jnp.where(ok, flat - lr * step, flat)
            return (flat, opt_state), metrics | {"guard/skipped_updates": 1.0 - ok, "actor/grad_norm": norm}

        def epoch(carry, keys):
            pieces = _split(keys[0], rows, memory, cfg.minibatches)
            return jax.lax.scan(minibatch, carry, (*pieces, keys[1:]))

        keys = jax.random.split(key, (cfg.epochs, 1 + cfg.minibatches))
        (flat, opt_state), metrics = jax.lax.scan(epoch, (flat, state.opt_state), keys)
        # After learning: the ratio's two policies must have seen the same numbers.
        normalizer = observer.learn(state.normalizer, obs, batch.valid)
        last_kl = jnp.mean(metrics["actor/kl"][-1])
        kl_coefficient = policy.adapt_kl_coefficient(state.kl_coefficient, last_kl, target=cfg.kl_target)
        metrics = jax.tree.map(jnp.mean, metrics) | {"actor/lr": lr, "critic/value": jnp.mean(rows.value)}
        return State(unravel(flat), opt_state, normalizer, kl_coefficient, state.updates + 1.0), metrics

    return Algorithm(init, update, act, memory)


def _split(key, rows: Rows, memory, minibatches: int):
    """Shuffle into `minibatches` pieces on a leading axis: single rows, or whole lanes where there is memory."""
    steps, lanes = rows.log_prob.shape
    count = steps * lanes if memory is None else lanes
    if count % minibatches:
        what = f"{steps} steps x {lanes} lanes = {count} rows" if memory is None else f"{lanes} lanes (with memory)"
        raise ValueError(f"config.minibatches is {minibatches}; it must divide {what}")
    if memory is None:
        order = _shuffle(key, count).reshape(minibatches, -1)
        return jax.tree.map(lambda x: x.reshape(count, *x.shape[2:])[order], rows), None
    order = jax.random.permutation(key, lanes).reshape(minibatches, -1)
    return jax.tree.map(lambda x: jnp.moveaxis(x[:, order], 1, 0), rows), jax.tree.map(lambda x: x[order], memory)


def _shuffle(key, count: int, rounds: int = 6):
    """A random order of `count` numbers, by Feistel rounds with random tables: a tenth of the cost of a sort.

    The numbers are laid out in rows and columns, as square as `count` allows. Each round adds a random function of one
    coordinate to the other, modulo its size, which can be undone: so the whole is a permutation, whatever the sizes,
    and with four rounds or more it passes for a random one.

    Reference: Luby and Rackoff 1988, "How to construct pseudorandom permutations from pseudorandom functions"
    """
    columns = next(n for n in range(math.isqrt(count), 0, -1) if count % n == 0)
    rows = count // columns
    if columns < 16:  # too few tables' entries to mix well, and mostly too few numbers for a sort to cost
        return jax.random.permutation(key, count)
    row, column = jnp.divmod(jnp.arange(count, dtype=jnp.uint32), columns)
    for table in jax.random.bits(key, (rounds // 2, rows + columns)):  # as good as uniform: 2^32 is far above the sizes
        column = (column + table[:rows][row] % columns) % columns
        row = (row + table[rows:][column] % rows) % rows
    return row * columns + column
