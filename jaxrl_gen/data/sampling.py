"""What a learner sees of a Dataset at a time: pure functions `(data, key) -> batch`, for `loops.offline`.

data = arrays.read_d4rl("maze.npz", env.spec)
loop = loops.offline(iql.make, env, sampling.transitions(256), (data,), updates=1000)
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_gen.data.trajectory import Dataset
from jaxrl_gen.types import PyTree, Transition


class Windows(NamedTuple):
    """What a policy over action sequences learns from: what was seen up to now, and what was done around now."""

    obs: PyTree  # [B, To, ...], the last of them now
    action: jax.Array  # [B, H, A], the first of them at the time of the first observation
    valid: jax.Array  # bool [B, H]; False: before or after the episode, where the nearest action is repeated


def transitions(batch_size: int, horizon: int = 1, *, next_actions: bool = False) -> Callable:
    """Draw windows of consecutive rows of one episode, each row of the data being a start as often as another.

    A window that reaches its episode's end repeats the last row from there on, marked invalid; `losses.td.n_step` stops
    at the end, so late windows are short, and none is left out.

    Args:
      batch_size: B.
      horizon: H, rows per window.
      next_actions: add what was done after each row, `extras["next_action"]` [H, B, ...], and whether anything was,
        `extras["next_known"]` [H, B]; it was not after an episode's last row.
    Returns:
      `(data, key) -> Transition`, leaves [H, B, ...].
    Raises:
      ValueError: if a size is below 1.
    """
    _at_least_one(batch_size=batch_size, horizon=horizon)

    def sample(data: Dataset, key: jax.Array) -> Transition:
        first = jax.random.randint(key, (batch_size,), 0, len(data.reward))
        return rows(data, first, horizon, next_actions=next_actions)

    return sample


def rows(data: Dataset, first: jax.Array, horizon: int = 1, *, next_actions: bool = False) -> Transition:
    """The windows that begin at given rows; see `transitions`.

    Args:
      data: Dataset.
      first: i32 [B], rows.
      horizon, next_actions: as of `transitions`.
    Returns:
      Transition, leaves [H, B, ...].
    """
    episode = data.episode[first]
    last = data.start[episode + 1] - 1
    ahead = first + jnp.arange(horizon)[:, None]
    row = jnp.minimum(ahead, last)
    take = lambda tree, at: jax.tree.map(lambda x: x[at], tree)
    extras = take(data.extras, row)
    if next_actions:
        extras = extras | {"next_action": data.action[jnp.minimum(row + 1, last)], "next_known": row < last}
    return Transition(
        take(data.obs, row + episode), data.action[row], data.reward[row], take(data.obs, row + episode + 1),
        data.terminated[row], data.truncated[row], ahead <= last, extras,
    )  # fmt: skip


def windows(batch_size: int, obs_horizon: int, action_horizon: int, *, executed: int = 1) -> Callable:
    """Draw observations up to now with the actions around now, each row of the data being now as often as another.

    The window begins To - 1 rows before now. Before the episode the first observation is repeated, as a policy sees it
    when it is started; actions outside are repeated too, and marked invalid: learn from them by choice.

        obs     t - To + 1 ... t                       action   t - To + 1 ... t ... t - To + H

    Args:
      batch_size: B.
      obs_horizon: To, observations.
      action_horizon: H, actions, at least To - 1 + Ta.
      executed: Ta, how many actions from now on the policy will execute before it looks again; 1 if unknown.
    Returns:
      `(data, key) -> Windows`.
    Raises:
      ValueError: if a size is below 1, or H < To - 1 + Ta.
    Reference: Chi et al. 2023, arXiv 2303.04137, section IV (receding horizon)
    """
    _at_least_one(batch_size=batch_size, obs_horizon=obs_horizon, action_horizon=action_horizon, executed=executed)
    if action_horizon < (least := obs_horizon - 1 + executed):
        raise ValueError(
            f"action_horizon is {action_horizon}; allowed: {least} (obs_horizon {obs_horizon} - 1 + "
            f"executed {executed}) and more, as actions begin at the time of the first observation"
        )

    def sample(data: Dataset, key: jax.Array) -> Windows:
        now = jax.random.randint(key, (batch_size,), 0, len(data.reward))
        return around(data, now, obs_horizon, action_horizon)

    return sample


def around(data: Dataset, now: jax.Array, obs_horizon: int, action_horizon: int) -> Windows:
    """The windows around given rows; see `windows`.

    Args:
      data: Dataset.
      now: i32 [B], rows.
      obs_horizon, action_horizon: as of `windows`.
    Returns:
      Windows.
    """
    episode = data.episode[now][:, None]
    begin, end = data.start[episode], data.start[episode + 1]
    row = now[:, None] + jnp.arange(action_horizon) - (obs_horizon - 1)
    inside = jnp.clip(row, begin, end - 1)
    seen = inside[:, :obs_horizon] + episode
    return Windows(jax.tree.map(lambda x: x[seen], data.obs), data.action[inside], (row >= begin) & (row < end))


def _at_least_one(**sizes: int) -> None:
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; allowed: 1 and more")
