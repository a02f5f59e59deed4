"""Ensembles of models that tell from an observation and an action what follows, and rollouts imagined with them.

A model is an Algorithm like any other: its `obs` is the pair (observation, action), and what it `act`s is the next
observation, with the reward among the extras. So a simulator takes its place without another word: see `exact`.

Reference: Chua et al. 2018, arXiv 1805.12114 (PETS); Janner et al. 2019, arXiv 1906.08253 (MBPO). Different from both:
members are told apart by weights, and rows are held out, by each row's own bits, so that a stream of batches is enough.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_gen import nets, normalize
from jaxrl_gen.algos import descent
from jaxrl_gen.losses import dynamics as losses
from jaxrl_gen.types import Algorithm, PyTree, Spec, Transition, config, leaf, static


@config
class Config:
    """Hyper-parameters of an ensemble of models; floats are leaves and never recompile."""

    lr: float = leaf(1e-3, low=0.0)
    weight_decay: float = leaf(2.5e-5, low=0.0)
    held_out: float = leaf(0.1, low=0.0, high=1.0)  # the share of all rows by which members are ranked
    error_memory: float = leaf(0.99, low=0.0, high=1.0)  # of the running mean of a member's error, per update
    range_coefficient: float = leaf(0.01, low=0.0)  # of the bounds of log-variances
    members: int = static(7, low=1)  # E
    elites: int = static(5, low=1)  # members that predict: those with the least error
    hidden: tuple[int, ...] = static((200, 200, 200, 200))


class State(NamedTuple):
    """What an ensemble of models changes."""

    params: PyTree  # models; low and high, the bounds of log-variances
    opt_state: PyTree
    normalizer: normalize.Normalizer  # of (observation, action)
    error: jax.Array  # [E] running means, on rows that nobody learns from
    counted: jax.Array  # f32, batches in these means


def make(cfg: Config, spec: Spec, *, net: nets.Net | None = None) -> Algorithm:
    """An ensemble of diagonal normals over the change of the observation and the reward, as three pure functions.

    Args:
      cfg: Config.
      spec: of one lane, whose observation is one vector [D].
      net: Net from (observation, action), the action as a vector [A], to `[E, ..., 2 (D + 1)]`: means and
        log-variances, of parameters with a leading axis E; default: an ensemble of perceptrons.
    Returns:
      Algorithm whose batch is a Transition of windows, leaves `[H, B, ...]`, of which every row is learned from.
      `act(state, (obs, action), key)` gives the next observation [..., D]: drawn from a random elite for each row, or,
      without a key, the mean of all elites' means. Its extras are the `reward` [...], drawn with it, and of all elites
      the `mean` and `std` [elites, ..., D + 1] of (next observation - observation, reward).
    Raises:
      ValueError: if the observation is not one vector of numbers, or there are more elites than members.
    """
    seen = _inputs(spec)
    if cfg.elites > cfg.members:
        raise ValueError(f"config.elites is {cfg.elites}; allowed: 1 to {cfg.members}, config.members")
    features = seen[0].shape[0] + 1
    if net is None:
        net = nets.ensemble(nets.flat(nets.mlp((*cfg.hidden, 2 * features), jax.nn.silu), seen), cfg.members)
    optimizer = descent.adamw(cfg.weight_decay)
    vector = lambda action: jax.nn.one_hot(action, spec.action_size) if spec.discrete else action

    def init(key):
        params = {"models": net.init(key, seen)}
        bound = lambda at: jnp.full((features,), at, jnp.float32)
        params |= {"low": bound(-10.0), "high": bound(0.5)}
        zero = jnp.zeros((), jnp.float32)
        return State(
            params, descent.start(params, optimizer), normalize.init(seen), jnp.zeros((cfg.members,)), zero
        )  # fmt: skip

    def predict(params, normalizer, obs, action):
        """Means and log-variances [E, ..., D + 1]."""
        output = net.apply(params["models"], normalize.apply(normalizer, (obs, action)))
        mean, log_variance = jnp.split(output, 2, -1)
        return mean, losses.soft_clamp(log_variance, params["low"], params["high"])

    def loss(params, normalizer, inputs, target, weight, learned):
        mean, log_variance = predict(params, normalizer, *inputs)
        nll, metrics = jax.vmap(losses.normal_nll, (0, 0, None))(mean, log_variance, target)
        total = descent.valid_mean(jnp.sum(weight * nll, 0), learned)
        total += cfg.range_coefficient * losses.bounds_range(params["low"], params["high"])
        return total, (jax.tree.map(jnp.mean, metrics), mean)

    def update(state, batch: Transition, key):
        del key  # which rows a member learns from is told by their bits
        rows = _flat(batch)
        inputs, target = (rows.obs, vector(rows.action)), _target(rows)
        marks = losses.fingerprint(jnp.concatenate(inputs, -1))
        apart = losses.held_out(marks, cfg.held_out) & rows.valid
        learned, weight = rows.valid & ~apart, losses.bootstrap_weights(marks, cfg.members)
        normalizer = normalize.update(state.normalizer, inputs, rows.valid)

        def descended(params):
            total, (metrics, mean) = loss(params, normalizer, inputs, target, weight, learned)
            return total, metrics | {"mean": mean}

        params, opt_state, metrics = descent.descend(
            descended, state.params, state.opt_state, lr=cfg.lr, optimizer=optimizer
        )
        error = jax.vmap(losses.squared_error, (0, None))(metrics.pop("mean"), target)
        error = jax.vmap(descent.valid_mean, (0, None))(error, apart)
        counts = jnp.any(apart) & jnp.all(jnp.isfinite(error))
        rate = jnp.where(counts, jnp.maximum(1.0 / (state.counted + 1.0), 1.0 - cfg.error_memory), 0.0)
        error = state.error + rate * (jnp.where(counts, error, 0.0) - state.error)
        metrics |= {"model/held_out_error": jnp.mean(error), "model/best_error": jnp.min(error)}
        return State(params, opt_state, normalizer, error, state.counted + counts), metrics

    def act(state, obs, key):
        obs, action = obs
        best = jnp.argsort(state.error)[: cfg.elites]
        elites = state.params | {"models": jax.tree.map(lambda x: x[best], state.params["models"])}
        mean, log_variance = predict(elites, state.normalizer, obs, vector(action))
        std = jnp.exp(0.5 * log_variance)
        if key is None:
            drawn = jnp.mean(mean, 0)
        else:
            key_member, key_noise = jax.random.split(key)
            member = jax.random.randint(key_member, (1, *mean.shape[1:-1], 1), 0, cfg.elites)
            of_one = lambda x: jnp.take_along_axis(x, member, 0)[0]
            drawn = of_one(mean) + of_one(std) * jax.random.normal(key_noise, mean.shape[1:])
        return obs + drawn[..., :-1], {"reward": drawn[..., -1], "mean": mean, "std": std}

    return Algorithm(init, update, act)


def exact(step: Callable) -> Callable:
    """A simulator in the place of a model: it knows everything, learns nothing, and doubts nothing.

    Args:
      step: `(obs [B, D], action [B, A], key) -> (next_obs [B, D], reward [B])`.
    Returns:
      `(cfg, spec) -> Algorithm` as `make` of this file, with an empty State.
    """

    def make(cfg, spec: Spec) -> Algorithm:
        def act(state, obs, key):
            before, action = obs
            next_obs, reward = step(before, action, key)
            mean = jnp.concatenate([next_obs - before, reward[..., None]], -1)[None]
            return next_obs, {"reward": reward, "mean": mean, "std": jnp.zeros_like(mean)}

        return Algorithm(lambda key: (), lambda state, batch, key: (state, {}), act)

    return make


def never(obs: jax.Array, action: jax.Array, next_obs: jax.Array) -> jax.Array:
    """No step terminates, [B] of False."""
    return jnp.zeros(obs.shape[0], bool)


def imagine(
    model: Callable,
    policy: Callable,
    obs: jax.Array,
    key: jax.Array,
    *,
    horizon: int,
    terminate: Callable = never,
    uncertainty: Callable = losses.no_doubt,
    valid: jax.Array | bool = True,
) -> Transition:
    """Rollouts of a policy in a model, each until it terminates or the horizon truncates it.

    A rollout that is over stands still, and its rows are invalid. So is one in which a number came that is not finite.

    Args:
      model: `((obs [B, D], action), key) -> (next_obs [B, D], extras)`, the `act` of a model with its State.
      policy: `(obs [B, D], key) -> action`.
      obs: [B, D] where rollouts start.
      key: consumed here.
      horizon: K steps, at least 1.
      terminate: `(obs, action, next_obs) -> bool [B]`, what the task says of the end of an episode.
      uncertainty: `(mean, std [E, B, D + 1]) -> [B]`, of `losses.dynamics`.
      valid: [B], which starts count.
    Returns:
      Transition, leaves [K, B, ...], whose last rows are truncated where alive; in its extras `uncertainty` [K, B].
    Raises:
      ValueError: if horizon < 1.
    """
    if horizon < 1:
        raise ValueError(f"horizon is {horizon}; allowed: 1 and more")

    def step(carry, key):
        obs, alive = carry
        key_act, key_model = jax.random.split(key)
        action = policy(obs, key_act)
        next_obs, said = model((obs, action), key_model)
        doubt = uncertainty(said["mean"], said["std"])
        alive &= jnp.all(jnp.isfinite(next_obs), -1) & jnp.isfinite(said["reward"]) & jnp.isfinite(doubt)
        next_obs = jnp.where(alive[:, None], next_obs, obs)
        terminated = alive & terminate(obs, action, next_obs)
        reward, doubt = jnp.where(alive, said["reward"], 0.0), jnp.where(alive, doubt, 0.0)
        row = Transition(
            obs, action, reward, next_obs, terminated, jnp.zeros_like(alive), alive, {"uncertainty": doubt}
        )  # fmt: skip
        return (next_obs, alive & ~terminated), row

    start = (obs, jnp.broadcast_to(valid, obs.shape[:1]))
    (_, alive), rows = jax.lax.scan(step, start, jax.random.split(key, horizon))
    return rows._replace(truncated=rows.truncated.at[-1].set(alive))


def _inputs(spec: Spec) -> tuple[jax.ShapeDtypeStruct, jax.ShapeDtypeStruct]:
    """The shapes that models read: one vector, and the action as one."""
    is_vector = hasattr(spec.obs, "shape") and len(spec.obs.shape) == 1
    if not is_vector or not jnp.issubdtype(spec.obs.dtype, jnp.floating):
        raise ValueError(f"the observation is {spec.obs}; allowed for a model of dynamics: one vector of floats [D]")
    shaped = lambda size: jax.ShapeDtypeStruct((size,), jnp.float32)
    return shaped(spec.obs.shape[0]), shaped(spec.action_size)


def _flat(batch: Transition) -> Transition:
    """Rows [H B, ...] of windows [H, B, ...], with zeros where invalid, as a mask would let a NaN through."""
    rows = jax.tree.map(lambda x: jnp.asarray(x).reshape(-1, *x.shape[2:]), batch._replace(extras={}))
    shaped = lambda x: rows.valid.reshape(rows.valid.shape + (1,) * (x.ndim - 1))
    return jax.tree.map(lambda x: jnp.where(shaped(x), x, jnp.zeros_like(x)), rows)


def _target(rows: Transition) -> jax.Array:
    """What models predict, [B, D + 1]."""
    return jnp.concatenate([rows.next_obs - rows.obs, rows.reward[:, None]], -1)
