"""Offline learning in a model: a policy learns from short rollouts that an ensemble imagines, and pays for its doubt.

First the models learn, then they stand still, and at every update of the policy they imagine a few rollouts more, from
observations of the data, into a ring that the policy's batches are drawn from, besides a share of the data itself.

Where rollouts are cut after a few steps, at the edge of reach, values are bootstrapped from but never learned: `judge`
shows what they are there, and `ravl` says what to do about it.

Reference: Yu et al. 2020, arXiv 2005.13239. Different from the paper: the models learn for as many updates as they are
told, and there are a few rollouts at every update of the policy, not many once in a thousand.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_gen import replay
from jaxrl_gen.algos import descent, dynamics, sac
from jaxrl_gen.losses import dynamics as losses
from jaxrl_gen.types import Algorithm, PyTree, Spec, Transition, branch, config, leaf, static


@config
class Config:
    """Hyper-parameters of offline learning in a model; floats are leaves and never recompile."""

    model: dynamics.Config = dynamics.Config()
    policy: sac.Config = sac.Config()
    penalty: float = leaf(1.0, low=0.0)  # units of reward per unit of doubt
    real: float = leaf(0.05, low=0.0, high=1.0)  # share of the data in a batch of the policy
    model_updates: float = leaf(20_000.0, low=0.0)  # before the policy's first; zero for a simulator
    rollouts: int = static(50, low=1)  # imagined at each update
    horizon: int = static(5, low=1)  # steps of each
    kept: int = static(4000, low=1)  # updates whose rollouts are remembered


class State(NamedTuple):
    """What offline learning in a model changes."""

    model: PyTree
    policy: PyTree
    replay: replay.Replay  # imagined rows [kept * horizon, rollouts]
    updates: jax.Array  # f32, so far


def make(
    cfg: Config,
    spec: Spec,
    *,
    model: Callable = dynamics.make,
    policy: Callable = sac.make,
    terminate: Callable = dynamics.never,
    uncertainty: Callable = losses.largest_deviation,
    judge: Callable | None = None,
) -> Algorithm:
    """Offline learning in a model as three pure functions; call it inside jit, so that `cfg` is traced.

    Args:
      cfg: Config; `cfg.model` and `cfg.policy` are those of the parts.
      spec: of one lane, whose observation is one vector.
      model: `(cfg.model, spec) -> Algorithm`: `dynamics.make`, or `dynamics.exact(step)`, a simulator.
      policy: `(cfg.policy, spec) -> Algorithm` that learns from windows.
      terminate: `(obs, action, next_obs) -> bool [B]`, what the task says of the end of an episode.
      uncertainty: `(mean, std [E, B, D + 1]) -> [B]`, doubt: `losses.dynamics.largest_deviation`, `disagreement`.
      judge: `(policy's State, obs [B, D], action) -> value [B]`, for two metrics: `model/value_first`, where imagined
        rollouts start, and `model/value_last`, where they are cut.
    Returns:
      Algorithm whose batch is a Transition of windows, leaves `[H, B, ...]`. In an update either the model learns or
      the policy, and the metrics of the other are zero.
    """
    models, agent = model(cfg.model, spec), policy(cfg.policy, spec)

    def init(key):
        key_model, key_policy = jax.random.split(key)
        ring = replay.init(spec, cfg.kept * cfg.horizon, cfg.rollouts, endings=cfg.kept)
        return State(models.init(key_model), agent.init(key_policy), ring, jnp.zeros((), jnp.float32))

    def imagined(state, batch, key):
        """Rollouts from observations of the batch, less the penalty, and what there is to say of them."""
        key_start, key_roll = jax.random.split(key)
        start = jax.random.randint(key_start, (cfg.rollouts,), 0, batch.valid.shape[1])
        valid = batch.valid[0, start]
        rows = dynamics.imagine(
            lambda pair, key: models.act(state.model, pair, key),
            lambda obs, key: agent.act(state.policy, obs, key)[0],
            jnp.where(valid[:, None], batch.obs[0, start], 0.0),
            key_roll, horizon=cfg.horizon, terminate=terminate, uncertainty=uncertainty, valid=valid,
        )  # fmt: skip
        doubt = rows.extras["uncertainty"]
        over = lambda x: descent.valid_mean(x.reshape(-1), rows.valid.reshape(-1))
        metrics = {"model/uncertainty": over(doubt), "model/reward": over(rows.reward)}
        metrics["model/alive"] = jnp.mean(rows.truncated[-1], dtype=jnp.float32)
        if judge is not None:
            value = lambda obs: judge(state.policy, obs, agent.act(state.policy, obs, None)[0])
            metrics["model/value_first"] = descent.valid_mean(value(rows.obs[0]), valid)
            metrics["model/value_last"] = descent.valid_mean(value(rows.next_obs[-1]), rows.truncated[-1])
        return rows._replace(reward=rows.reward - cfg.penalty * doubt, extras={}), metrics

    def update(state, batch: Transition, key):
        keys = jax.random.split(key, 4)
        batch = jax.tree.map(jnp.asarray, batch._replace(extras={}))
        first = state.updates < cfg.model_updates
        learned, of_model = _either(
            first, lambda: models.update(state.model, batch, keys[0]), lambda like: (state.model, _zeros(like[1]))
        )
        rows, of_rows = _either(~first, lambda: imagined(state, batch, keys[1]), _zeros)
        ring = _pushed(state.replay, rows, ~first)
        mixed = _mixed(batch, ring, keys[2], cfg.real)
        agent_state, of_policy = _either(
            ~first, lambda: agent.update(state.policy, mixed, keys[3]), lambda like: (state.policy, _zeros(like[1]))
        )
        # One of the two learned, and the other's metrics are zero: what both have is what there is.
        shared = {name: of_model[name] + of_policy[name] for name in set(of_model) & set(of_policy)}
        metrics = of_model | of_policy | shared | of_rows
        return State(learned, agent_state, ring, state.updates + 1.0), metrics

    return Algorithm(init, update, lambda state, obs, key: agent.act(state.policy, obs, key))


def _pushed(ring: replay.Replay, rows: Transition, counts: jax.Array) -> replay.Replay:
    """The ring with the rows written, or, where they do not count, with its next slots still to be written.

    A branch would copy the ring; so it is written either way, and moves on only where the rows count.
    """
    after = replay.add(ring, rows)
    at = lambda new, old: jnp.where(counts, new, old)
    return after._replace(position=at(after.position, ring.position), size=at(after.size, ring.size))


def _mixed(batch: Transition, ring: replay.Replay, key: jax.Array, real: jax.Array) -> Transition:
    """A batch like `batch`, whose share `real`, spread evenly, is from it and the rest from the ring."""
    horizon, size = batch.reward.shape
    drawn = replay.sample(ring, key, size, horizon)
    is_real = jnp.diff(jnp.floor(jnp.arange(size + 1) * real)) > 0
    return jax.tree.map(
        lambda x, y: jnp.where(is_real.reshape(1, -1, *[1] * (x.ndim - 2)), x, y.astype(x.dtype)), batch, drawn
    )


def _either(condition: jax.Array, function: Callable, otherwise: Callable) -> PyTree:
    """`function()` where the condition holds, and else `otherwise(shapes of its result)`, without running it."""
    like = jax.eval_shape(function)
    return branch(condition, function, lambda: otherwise(like))


def _zeros(like: PyTree) -> PyTree:
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), like)
