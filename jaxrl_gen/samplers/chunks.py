"""Chunk execution with receding horizon: plan H actions, execute Ta of them, look again."""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_gen.types import Algorithm, PyTree, Recalled, Spec, branch


class Chunk(NamedTuple):
    """What is remembered between two steps of a lane."""

    past: PyTree  # [E, To, ...] the latest observations, oldest first
    plan: jax.Array  # [E, Ta, A] actions to execute
    position: jax.Array  # i32 [E], the next of them; 0: plan first
    begun: jax.Array  # bool [E], whether the episode has an observation yet


def chunked(planner: Algorithm, spec: Spec, *, history: int, horizon: int, execute: int) -> Algorithm:
    """An algorithm that plans chunks of actions, as one that acts step by step, for every loop and evaluation.

    The memory holds the last `history` observations (the first one of an episode stands for those before it) and the
    actions not yet executed. Action k of a chunk belongs to the time of observation k, so that entries
    [history - 1, history - 1 + execute) are executed before the next look. It starts anew with each episode, as every
    memory does. A step at which no lane has to plan does not ask the planner.

    Args:
      planner: whose `act(state, past [B, To, ...], key)` gives (plan [B, H, A], extras); it has no memory, and extras
        are left out.
      spec: of one lane.
      history: To, observations that the planner sees.
      horizon: H, actions that it plans.
      execute: Ta, actions executed of each plan.
    Returns:
      Algorithm with memory; `init` and `update` are the planner's.
    Raises:
      ValueError: if a count is below 1, or the horizon is shorter than history - 1 + execute.
    Reference: Chi et al. 2023, arXiv 2303.04137, section 2.3
    """
    for name, value in {"history": history, "horizon": horizon, "execute": execute}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; allowed: 1 and more")
    if horizon < history - 1 + execute:
        raise ValueError(
            f"horizon is {horizon}; allowed: {history - 1 + execute} and more, "
            f"which is history - 1 + execute with history {history} and execute {execute}"
        )

    def memory(lanes):
        zeros = lambda *shape, dtype=jnp.float32: jnp.zeros((lanes, *shape), dtype)
        past = jax.tree.map(lambda leaf: zeros(history, *leaf.shape, dtype=leaf.dtype), spec.obs)
        return Chunk(past, zeros(execute, spec.action_size), zeros(dtype=jnp.int32), zeros(dtype=bool))

    def act(state, obs: Recalled, key):
        seen, before = obs
        past = jax.tree.map(lambda old, new: _pushed(old, new, before.begun), before.past, seen)

        def plan():
            actions, _ = planner.act(state, past, key)
            if actions.shape[1:] != (horizon, spec.action_size):
                raise ValueError(f"a plan has shape {actions.shape[1:]}; expected: {(horizon, spec.action_size)}")
            executed = actions[:, history - 1 : history - 1 + execute]
            return jnp.where((before.position == 0)[:, None, None], executed, before.plan)

        actions = branch(jnp.any(before.position == 0), plan, lambda: before.plan)
        action = jnp.take_along_axis(actions, before.position[:, None, None], axis=1)[:, 0]
        position = (before.position + 1) % execute
        return action, {"memory": Chunk(past, actions, position, jnp.ones_like(before.begun))}

    return planner._replace(act=act, memory=memory)


def _pushed(old: jax.Array, new: jax.Array, begun: jax.Array) -> jax.Array:
    """The latest observations [E, To, ...] with a new one [E, ...] after them; all are the new one at the beginning."""
    begun = begun.reshape(-1, *[1] * (old.ndim - 1))
    shifted = jnp.concatenate([old[:, 1:], new[:, None]], axis=1)
    return jnp.where(begun, shifted, jnp.broadcast_to(new[:, None], old.shape))
