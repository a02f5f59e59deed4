"""Recorded episodes as one pytree on the device, whatever file they came from: each observation is stored once.

    rows     0   1   2 | 3   4          N = 5 steps in two episodes
    obs      o0  o1  o2  o3 | p0  p1  p2      N + 2 observations: each episode has one more than it has steps

Row n of episode e began at obs[n + e], and led to obs[n + e + 1].
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_gen.types import PyTree, Transition


class Dataset(NamedTuple):
    """N rows of E episodes, one after another; every episode ends in a row that is terminated or truncated."""

    obs: PyTree  # [N + E, ...]
    action: jax.Array  # [N, A] in [-1, 1], or i32 [N]
    reward: jax.Array  # f32 [N]
    terminated: jax.Array  # bool [N]
    truncated: jax.Array  # bool [N]
    episode: jax.Array  # i32 [N], of each row
    start: jax.Array  # i32 [E + 1], first row of each episode, and N
    extras: dict[str, PyTree] = {}  # whatever else was recorded of each row, [N, ...]


def make(
    obs: PyTree,
    action: np.ndarray,
    reward: np.ndarray,
    terminated: np.ndarray,
    truncated: np.ndarray,
    extras: dict[str, PyTree] | None = None,
) -> Dataset:
    """Rows in the order of time, put on the device once; floats become float32, integers int32, bytes stay bytes.

    Args:
      obs: leaves [N + E, ...]; of each episode one more than it has rows.
      action: [N, A], or [N] of integers.
      reward: [N].
      terminated, truncated: [N] bool; where one of them holds, an episode ends. The last row must.
      extras: leaves [N, ...].
    Returns:
      Dataset.
    Raises:
      ValueError: naming the field whose length does not fit, or that the last row ends no episode.
    """
    terminated, truncated = np.asarray(terminated, bool), np.asarray(truncated, bool)
    rows = len(truncated)
    for field, x in {"reward": reward, "terminated": terminated, "truncated": truncated}.items():
        if np.shape(x) != (rows,):
            raise ValueError(f"{field} has shape {np.shape(x)}; expected ({rows},), a number for each row")
    for field, x in {"action": action, **named(extras or {}, "extras")}.items():
        if np.ndim(x) < 1 or len(x) != rows:
            raise ValueError(f"{field} has shape {np.shape(x)}; expected {rows} rows, as many as truncated")
    over = terminated | truncated
    episodes = int(over.sum())
    if not rows or not over[-1]:
        raise ValueError("the last row ends no episode; expected it to be terminated, or truncated where the log stops")
    for field, x in named(obs, "obs").items():
        if len(x) != rows + episodes:
            raise ValueError(
                f"{field} has {len(x)} observations; expected {rows + episodes}: one more than rows in each episode"
            )
    return jax.device_put(
        Dataset(
            jax.tree.map(narrow, obs), narrow(action), np.asarray(reward, np.float32), terminated, truncated,
            (np.cumsum(over) - over).astype(np.int32),
            np.concatenate([[0], np.flatnonzero(over) + 1]).astype(np.int32), jax.tree.map(narrow, extras or {}),
        )
    )  # fmt: skip


def from_rows(rows: Transition, *, where: str = "rows") -> Dataset:
    """Recorded Transitions, such as a rollout, as a Dataset; a log that stops within an episode truncates it there.

    Args:
      rows: leaves [T, E, ...] as a rollout has them, or [N, ...] in the order of time.
      where: what to call them in an error.
    Returns:
      Dataset of T E or N rows, lane by lane; `extras` are kept.
    Raises:
      ValueError: if a row is invalid, or does not go on where the row before it in its episode led to.
    """
    rows = jax.tree.map(np.asarray, rows)
    if rows.reward.ndim == 2:
        rows = jax.tree.map(lambda x: np.swapaxes(x, 0, 1), rows)
        cut = np.zeros(rows.reward.shape, bool)
        cut[:, -1] = True
        rows = rows._replace(truncated=rows.truncated | (cut & ~rows.terminated))
        rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)
    if not np.all(rows.valid):
        raise ValueError(
            f"{where}: row {np.argmin(rows.valid)} is invalid; expected data of a simulator that stayed finite"
        )
    truncated = rows.truncated.copy()
    truncated[-1] |= not rows.terminated[-1]
    over = rows.terminated | truncated
    for (field, before), now in zip(named(rows.next_obs, "next_obs").items(), jax.tree.leaves(rows.obs)):
        before, now = before[:-1], now[1:]
        same = (before == now) | ((before != before) & (now != now))  # NaN is `checks`' business
        same = same.reshape(len(same), -1).all(1) | over[:-1]
        if not same.all():
            at = np.argmin(same)
            raise ValueError(
                f"{where}: {field} of row {at} is not the observation of row {at + 1}; expected rows in the order of "
                "time, and an end where an episode ends"
            )
    joined = lambda x, after: inserted(x, after, over)
    obs = jax.tree.map(joined, rows.obs, rows.next_obs)
    return make(obs, rows.action, rows.reward, rows.terminated, truncated, rows.extras)


def to_rows(data: Dataset) -> Transition:
    """Every row with the observation it led to, NumPy leaves [N, ...]."""
    data = jax.tree.map(np.asarray, data)
    at = np.arange(len(data.reward)) + data.episode
    return Transition(
        jax.tree.map(lambda x: x[at], data.obs), data.action, data.reward, jax.tree.map(lambda x: x[at + 1], data.obs),
        data.terminated, data.truncated, np.ones(len(at), bool), data.extras,
    )  # fmt: skip


def before(data: Dataset) -> PyTree:
    """What was observed before each row, leaves [N, ...] on the device."""
    at = jnp.arange(len(data.reward)) + data.episode
    return jax.tree.map(lambda x: x[at], data.obs)


def with_returns_to_go(data: Dataset, gamma: float) -> Dataset:
    """The data with `extras["return_to_go"]` [N], the discounted sum of rewards from each row to its episode's end.

    What would have followed a truncated end is not in it: where rewards are not negative, it is a lower bound.

    Args:
      data: Dataset.
      gamma: discount per step.
    """
    reward, over = np.asarray(data.reward, float), np.asarray(data.terminated | data.truncated)
    found, following = np.empty(len(reward)), 0.0
    for row in range(len(reward) - 1, -1, -1):
        following = reward[row] + gamma * (0.0 if over[row] else following)
        found[row] = following
    return data._replace(extras=data.extras | {"return_to_go": jnp.asarray(found, jnp.float32)})


def relabelled(data: Dataset, reward: Any, terminated: Any) -> Dataset:
    """The same steps under another task: an episode ends where that terminates, and what follows is another episode.

    Args:
      data: Dataset.
      reward: [N].
      terminated: [N] bool; the new rows that are terminated. The old ends that are not are truncated.
    Returns:
      Dataset.
    """
    rows, terminated = to_rows(data), np.asarray(terminated, bool)
    truncated = (rows.terminated | rows.truncated) & ~terminated
    return from_rows(rows._replace(reward=np.asarray(reward), terminated=terminated, truncated=truncated))


def joined(*parts: Dataset) -> Dataset:
    """Several datasets as one, episode after episode."""
    parts = [jax.tree.map(np.asarray, part) for part in parts]
    whole = jax.tree.map(lambda *x: np.concatenate(x), *parts)
    return make(whole.obs, whole.action, whole.reward, whole.terminated, whole.truncated, whole.extras)


def select(data: Dataset, episodes: np.ndarray) -> Dataset:
    """The dataset of some episodes, in the order given: a split, or the first few.

    Args:
      data: Dataset.
      episodes: integers in [0, E), at least one.
    Raises:
      ValueError: if there is none, or no such episode.
    """
    data, episodes = jax.tree.map(np.asarray, data), np.asarray(episodes)
    count = len(data.start) - 1
    if not episodes.size or episodes.min() < 0 or episodes.max() >= count:
        raise ValueError(f"episodes is {episodes}; allowed: one and more of 0 to {count - 1}")
    first, last = data.start[episodes], data.start[episodes + 1]
    of_rows = np.concatenate([np.arange(a, b) for a, b in zip(first, last)])
    of_obs = np.concatenate([np.arange(a, b + 1) + e for a, b, e in zip(first, last, episodes)])
    take = lambda tree, at: jax.tree.map(lambda x: x[at], tree)
    return make(
        take(data.obs, of_obs),
        *take((data.action, data.reward, data.terminated, data.truncated, data.extras), of_rows),
    )


def lengths(data: Dataset) -> jax.Array:
    """Steps of each episode, i32 [E]."""
    return jnp.diff(data.start)


def returns(data: Dataset) -> np.ndarray:
    """The undiscounted sum of rewards of each episode, [E]."""
    return np.add.reduceat(np.asarray(data.reward), np.asarray(data.start)[:-1], dtype=float)


def nbytes(data: Dataset) -> int:
    """Its memory in bytes."""
    return sum(x.nbytes for x in jax.tree.leaves(data))


def named(tree: PyTree, root: str) -> dict[str, Any]:
    """Its leaves by dotted names, `obs.camera`."""
    found = jax.tree_util.tree_flatten_with_path(tree)[0]
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")
    return {f"{root}.{name(path)}" if path else root: x for path, x in found}


def narrow(x: Any) -> np.ndarray:
    """An array as the device holds it: 32 bits at most."""
    x = np.asarray(x)
    if np.issubdtype(x.dtype, np.floating):
        return x.astype(np.float32, copy=False)
    if np.issubdtype(x.dtype, np.integer) and x.dtype.itemsize > 1:
        return x.astype(np.int32, copy=False)
    return x


def inserted(x: np.ndarray, after: np.ndarray, over: np.ndarray) -> np.ndarray:
    """Rows `x` with `after[n]` put in behind each row n that is over.

    Args:
      x, after: [N, ...].
      over: bool [N].
    Returns:
      [N + E, ...].
    """
    at = np.arange(len(over)) + np.cumsum(over) - over
    whole = np.empty((len(over) + int(over.sum()), *x.shape[1:]), x.dtype)
    whole[at], whole[at[over] + 1] = x, after[over]
    return whole
