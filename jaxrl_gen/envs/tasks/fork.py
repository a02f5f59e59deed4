"""A puck is pushed across a table to a ring, around a hole that lies straight between: to the left or to the right.

Both ways are equally good and their average falls into the hole. A policy with one mode has to choose a side; a clone
with one mode of demonstrations that go both ways does not get there at all.
"""

from pathlib import Path

import jax
import jax.numpy as jnp

from jaxrl_gen.envs import mjx
from jaxrl_gen.types import Env

START, RING = -1.0, 1.0  # m along the table
HOLE = 0.4  # m, radius of the hole in the middle
FORCE = 2.0  # N at full action
MJCF = Path(__file__).with_suffix(".xml")


def make(*, time_limit: int = 120) -> Env:
    """The fork in the way.

    The observation [4] is where the puck is (m) and how fast it moves (m/s), along and across; the action [2] is a push
    in the same directions. The reward is one on the ring and falls off around it; the hole ends the episode.

    Args:
      time_limit: steps of 0.05 s until an episode is truncated.
    Returns:
      Env of one lane that does not reset itself.
    """
    return mjx.make(
        MJCF, reset=reset, observe=observe, reward=reward, terminate=terminate, substeps=2, time_limit=time_limit,
        camera="above",
    )  # fmt: skip


def reset(model, key) -> dict:
    """At the left edge, hardly off the middle, at rest."""
    return {"qpos": jnp.array([START, 0.0]) + 0.05 * jax.random.normal(key, (2,))}


def observe(model, data) -> jax.Array:
    """Position and velocity, [4]."""
    return jnp.concatenate([data.qpos, data.qvel])


def reward(model, before, action, after) -> jax.Array:
    """One on the ring, a half at 0.3 m from its middle."""
    away = after.qpos - jnp.array([RING, 0.0])
    return 1.0 / (1.0 + jnp.sum(away**2) / 0.3**2)


def terminate(model, data) -> jax.Array:
    """The puck is over the hole."""
    return jnp.sum(data.qpos**2) < HOLE**2


def teacher(obs: jax.Array, side: jax.Array, key: jax.Array, *, speed: float = 0.6, noise: float = 0.1) -> jax.Array:
    """A slow demonstrator with an unsteady hand, who passes the hole on one side of it.

    Args:
      obs: [4].
      side: 1 or -1, kept for a whole episode.
      key: consumed here.
      speed: m/s that it goes at.
      noise: deviation added to each action.
    Returns:
      action [2], clipped to [-1, 1].
    """
    position, velocity = obs[:2], obs[2:]
    by = jnp.array([0.0, 0.75]) * side  # above or below the hole
    passed = position[0] > 0.0
    way = jnp.where(passed, jnp.array([RING, 0.0]), by) - position
    wanted = speed * way / jnp.maximum(jnp.linalg.norm(way), 0.2)
    push = (4.0 * (wanted - velocity) + velocity) / FORCE
    return jnp.clip(push + noise * jax.random.normal(key, (2,)), -1.0, 1.0)
