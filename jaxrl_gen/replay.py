"""A ring of past rows on the device, a pytree: each observation is stored once.

Time and lanes are its two axes. The observation after a row is the next row's; where an episode ended, which the next
row does not show, it is kept aside, for as many endings per lane as `init` was told.
"""

import math
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl_gen.types import PyTree, Spec, Transition, ended


class Replay(NamedTuple):
    """The ring: T steps of E lanes, and beside it the last observations of F episodes of each lane."""

    obs: PyTree  # [T, E, ...]
    action: jax.Array  # [T, E, A] f32, or [T, E] i32
    reward: jax.Array  # f32 [T, E]
    terminated: jax.Array  # bool [T, E]
    truncated: jax.Array  # bool [T, E]
    valid: jax.Array  # bool [T, E]
    ending: jax.Array  # i32 [T, E], where an episode ended: the how-manieth ending of its lane
    last_obs: PyTree  # [F, E, ...], by ending modulo F
    endings: jax.Array  # i32 [E], so far
    position: jax.Array  # i32, the next row to be written
    size: jax.Array  # i32, rows written, at most T


def init(spec: Spec, capacity: int, lanes: int, *, endings: int | None = None) -> Replay:
    """An empty ring.

    Args:
      spec: of one lane.
      capacity: T, steps per lane.
      lanes: E.
      endings: F, how many last observations are kept for each lane; default: T / 50, at least 8. An ending that was
        truncated and whose last observation is lost, as episodes were shorter than T / F, is sampled as invalid; one
        that was terminated is sampled without it, see `sample`. Where F = T, none is ever lost.
    Returns:
      Replay.
    Raises:
      ValueError: if a size is below 1.
    """
    endings = max(8, capacity // 50) if endings is None else endings
    for name, value in {"capacity": capacity, "lanes": lanes, "endings": endings}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; allowed: 1 and more")
    blank = lambda leaf, *leading: jnp.zeros((*leading, *leaf.shape), leaf.dtype)
    of = lambda dtype: jnp.zeros((capacity, lanes), dtype)
    action = of(jnp.int32) if spec.discrete else jnp.zeros((capacity, lanes, spec.action_size), jnp.float32)
    zero = jnp.zeros((), jnp.int32)
    return Replay(
        jax.tree.map(lambda leaf: blank(leaf, capacity, lanes), spec.obs), action, of(jnp.float32), of(bool), of(bool),
        of(bool), of(jnp.int32), jax.tree.map(lambda leaf: blank(leaf, endings, lanes), spec.obs),
        jnp.zeros((lanes,), jnp.int32), zero, zero,
    )  # fmt: skip


def nbytes(spec: Spec, capacity: int, lanes: int) -> int:
    """The memory of a ring in bytes, without making it."""
    shapes = jax.eval_shape(lambda: init(spec, capacity, lanes))
    return sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(shapes))


def add(replay: Replay, rows: Transition) -> Replay:
    """Write the rows of a rollout over the oldest ones.

    Args:
      replay: of T steps.
      rows: Transition, leaves [N, E, ...]; N must divide T, so that a block never wraps around.
    Returns:
      Replay.
    Raises:
      ValueError: if N does not divide T.
      AssertionError: if lanes differ.
    """
    chex.assert_equal_shape_suffix([replay.reward, rows.reward], 1)
    capacity, count = replay.reward.shape[0], rows.reward.shape[0]
    if capacity % count:
        raise ValueError(f"rows are added {count} at a time; that must divide the replay's capacity of {capacity}")
    over = ended(rows)
    ending = replay.endings + jnp.cumsum(over, axis=0, dtype=jnp.int32) - 1
    put = lambda ring, new: jax.lax.dynamic_update_slice_in_dim(ring, new.astype(ring.dtype), replay.position, axis=0)
    kept = jax.tree.leaves(replay.last_obs)[0].shape[0]
    # Of more endings than there is room for in one block, the last ones count: the others are written nowhere.
    late = over & (replay.endings + jnp.sum(over, axis=0) - ending <= kept)
    slot, lane = jnp.where(late, ending % kept, kept), jnp.arange(over.shape[1])
    aside = lambda ring, new: ring.at[slot, lane].set(new.astype(ring.dtype), mode="drop")
    return replay._replace(
        obs=jax.tree.map(put, replay.obs, rows.obs),
        action=put(replay.action, rows.action),
        reward=put(replay.reward, rows.reward),
        terminated=put(replay.terminated, rows.terminated),
        truncated=put(replay.truncated, rows.truncated),
        valid=put(replay.valid, rows.valid),
        ending=put(replay.ending, ending),
        last_obs=jax.tree.map(aside, replay.last_obs, rows.next_obs),
        endings=replay.endings + jnp.sum(over, axis=0, dtype=jnp.int32),
        position=(replay.position + count) % capacity,
        size=jnp.minimum(replay.size + count, capacity),
    )


def sample(replay: Replay, key: jax.Array, batch_size: int, horizon: int = 1) -> Transition:
    """Windows of `horizon` consecutive rows of one lane, drawn uniformly with replacement.

    A window goes on past the end of an episode; `losses.td.n_step` stops there. A row whose truncated end is known, but
    whose last observation is not any more, is invalid. One that was terminated stays valid, as nothing is bootstrapped
    there, with its own `obs` as its `next_obs`: a model of dynamics must not learn from that, so a ring that one learns
    from needs room for all `endings`.

    Args:
      replay: with more than `horizon` rows.
      key: consumed here.
      batch_size: B.
      horizon: H, at least 1.
    Returns:
      Transition, leaves [H, B, ...], without extras.
    """
    capacity, lanes = replay.reward.shape
    key_start, key_lane = jax.random.split(key)
    # The newest row is not drawn: what it led to is written with the next one.
    start = jax.random.randint(key_start, (batch_size,), 0, jnp.maximum(replay.size - horizon, 1))
    lane = jax.random.randint(key_lane, (batch_size,), 0, lanes)
    row = (replay.position - replay.size + start + jnp.arange(horizon)[:, None]) % capacity
    take = lambda ring: ring[row, lane]
    terminated, truncated, ending = take(replay.terminated), take(replay.truncated), take(replay.ending)
    over, kept = terminated | truncated, jax.tree.leaves(replay.last_obs)[0].shape[0]
    known = replay.endings[lane] - ending <= kept

    def following(ring, last):
        following, aside = ring[(row + 1) % capacity, lane], last[ending % kept, lane]
        at = lambda condition: condition.reshape(condition.shape + (1,) * (following.ndim - 2))
        return jnp.where(at(over), jnp.where(at(known), aside, take(ring)), following)

    next_obs = jax.tree.map(following, replay.obs, replay.last_obs)
    valid = take(replay.valid) & (known | ~over | terminated)
    return Transition(
        jax.tree.map(take, replay.obs), take(replay.action), take(replay.reward), next_obs, terminated, truncated, valid
    )
