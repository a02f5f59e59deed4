"""Acting and stepping for a while: the rows of a rollout, and metrics of constant size."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrl_gen.nets import forget
from jaxrl_gen.types import Algorithm, Carry, Env, Recalled, Transition, ended


def renewal(env: Env, steps: int, iterations: int) -> Callable:
    """`(env_state, key, i) -> env_state`, to be called before the i-th rollout of `steps` steps in a chunk.

    All lanes are renewed as often as `env.renew_after` allows: before each rollout, or before some of them, or, where
    even one per chunk is too many, a share of the lanes. The index is the chunk's own and the same for all members of a
    population, so that what is left out is not computed.
    """
    rollouts = -(-env.renew_after // steps)  # between two renewals of a lane
    every = min(rollouts, iterations)
    share = -(-rollouts // every)
    if every == 1:
        return lambda state, key, i: env.renew(state, key, share)
    return lambda state, key, i: jax.lax.cond(i % every == 0, lambda: env.renew(state, key, share), lambda: state)


def collect(algo: Algorithm, env: Env, carry: Carry, key: jax.Array, steps: int) -> tuple[Carry, Transition, dict]:
    """Act for `steps` steps in every lane.

    Returns:
      The carry after the steps; the rows, leaves `[T, E, ...]`; metrics of this rollout, for `reduce_metrics`.
    """
    # All at once: on a processor, each split within the scan would cost as much as a step of a small environment.
    keys = jax.random.split(key, (steps, 1 + env.lanes))
    initial_memory = algo.memory(env.lanes)

    def step(rolling, keys):
        env_state, obs, memory = rolling
        key_act, key_env = keys
        read = obs if memory is None else Recalled(obs, memory)
        action, extras = algo.act(carry.state, read, key_act)
        env_state, next_obs, outcome = env.step(env_state, action, key_env)
        if memory is not None:
            memory = forget(extras.pop("memory"), initial_memory, ended(outcome))
        row = Transition(
            read, action, outcome.reward, outcome.next_obs, outcome.terminated, outcome.truncated, outcome.valid, extras
        )
        return (env_state, next_obs, memory), (row, outcome.info)

    rolling = (carry.env_state, carry.obs, carry.memory)
    (env_state, obs, memory), (rows, info) = jax.lax.scan(step, rolling, (keys[:, 0], keys[:, 1:]))
    carry = carry._replace(env_state=env_state, obs=obs, memory=memory)
    return carry, rows, rollout_metrics(rows, info)


EPISODE = "episode/"  # family of metrics that count whole episodes, and are empty (NaN) where none ended


def rollout_metrics(rows: Transition, info: dict) -> dict:
    """Sums over the rows `[T, E]` of a rollout, from which `reduce_metrics` makes metrics: constant in size."""
    whole = ended(rows) & rows.valid & info.get(EPISODE + "whole", True)
    metrics = {f"env/{name}": jnp.mean(x) for name, x in info.items() if not name.startswith(EPISODE)}
    metrics["env/reward"] = jnp.mean(rows.reward)
    metrics["env/quarantined"] = jnp.sum(~rows.valid).astype(jnp.float32)
    if EPISODE + "return" in info:
        total, length = info[EPISODE + "return"], info[EPISODE + "length"]
        metrics["episodes"] = {
            "count": jnp.sum(whole).astype(jnp.float32),
            "total": jnp.sum(total, where=whole),
            "square": jnp.sum(total**2, where=whole),
            "min": jnp.min(total, where=whole, initial=jnp.inf),
            "max": jnp.max(total, where=whole, initial=-jnp.inf),
            "length": jnp.sum(length, where=whole).astype(jnp.float32),
        }
    return metrics


def reduce_metrics(metrics: dict) -> dict[str, jax.Array]:
    """Metrics stacked over the iterations of a chunk to one scalar each; episodes are weighted by their number."""
    metrics = dict(metrics)
    episodes, learned = metrics.pop("episodes", None), metrics.pop("learned", None)

    def reduce(name, x):
        if name == "env/quarantined":
            return jnp.sum(x)
        if learned is None or name.startswith("env/"):
            return jnp.mean(x)
        return jnp.sum(x) / jnp.maximum(jnp.sum(learned), 1.0)  # iterations of a warm-up say nothing about learning

    reduced = {name: reduce(name, x) for name, x in metrics.items()}
    if episodes is not None:
        count = jnp.sum(episodes["count"])
        some = lambda x: jnp.where(count > 0, x, jnp.nan)  # noqa: E731
        mean = jnp.sum(episodes["total"]) / count
        reduced |= {
            EPISODE + "count": count,
            EPISODE + "return": some(mean),
            EPISODE + "return_std": some(jnp.sqrt(jnp.maximum(jnp.sum(episodes["square"]) / count - mean**2, 0.0))),
            EPISODE + "return_min": some(jnp.min(episodes["min"])),
            EPISODE + "return_max": some(jnp.max(episodes["max"])),
            EPISODE + "length": some(jnp.sum(episodes["length"]) / count),
        }
    return reduced
