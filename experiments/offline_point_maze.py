"""Every offline method on one data set of a point maze of four rooms, with layers and updates alike.

Run:      python -m experiments.offline_point_maze
Method:   iql; bc, td3_bc, rebrac, prdc, a2pr, beer, cql, cal_ql, edac, sac_n, odice, arsq, arsq_factorised, mopo, ravl,
          lipmbrl, fql, flow_policy: --method NAME
Table:    offline, by data
Hardware: AMD EPYC, 2 cores, jax 0.10.2
Minutes:  0.9
Expect:   mean return of 64 episodes: IQM 1, 95 % interval 1 to 1, over 5 seeds

A score is the share of episodes that reach the goal in time. `--data medium` goes towards the goal at two steps in
three and back at the third; `stitching` are short ways between random places, of which none leads from the start to
the goal; `noisy` is an expert under noise, and `narrow` one that goes the same few ways again and again
(`datasets.point_maze`). `mixed` are nine episodes at random for each of an expert's, whose rows are marked as
demonstrations: ARSQ, which alone reads that, keeps them ahead by a margin. IQL's expectile and sharpness were chosen on
other seeds of this maze; of the other methods nothing was chosen by scores: what they share, and where they differ in
size, is in `_offline.py`, and the rest is mostly the default of each. So these rows do not rank the methods. PRDC looks
for the nearest among 8,192 rows; methods that imagine know where the goal is.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from experiments import _offline
from experiments.datasets import point_maze as recorded
from jaxrl_gen import launch
from jaxrl_gen.envs.tasks import point_maze
from jaxrl_gen.types import static

MAZE = point_maze.FOUR_ROOMS


@dataclasses.dataclass(frozen=True)
class OfflinePointMaze(launch.Experiment):
    """One method on data of the point maze of four rooms."""

    name: str = launch.option("offline_point_maze")
    method: Literal[*_offline.METHODS] = static("iql")
    data: Literal["medium", "stitching", "noisy", "narrow", "mixed", "expert"] = static("medium")
    seeds: int = 5
    total_steps: float = launch.option(5e3, low=1)  # updates
    episodes: int = static(300, low=1)  # of data
    data_seed: int = static(0)
    batch_size: int = static(256, low=1)
    horizon: int = static(5, low=1)  # n of n-step targets
    time_limit: int = static(120, low=1)  # steps; the expert needs about 90 on the mean


def recipe(exp: OfflinePointMaze) -> _offline.Recipe:
    """The method, with what differs from its defaults."""
    changes = dict(
        iql=dict(expectile=0.9, sharpness=200.0), odice=dict(reward_scale=200.0), arsq=dict(temperature=1e-3)
    )
    if exp.data == "mixed":  # of which some rows are demonstrations
        changes["arsq"] |= dict(margin=0.01, margin_coefficient=1.0)
    changes["arsq_factorised"] = changes["arsq"]
    return _offline.recipes(gamma=0.98, updates=exp.total_steps, **changes)[exp.method]


def reached(obs: jax.Array, action: jax.Array, next_obs: jax.Array) -> jax.Array:
    """Whether a step ends at the goal, [B]."""
    away = (next_obs[:, :2] - next_obs[:, 2:]) * max(len(MAZE), len(MAZE[0])) / 2  # m
    return jnp.sum(away**2, -1) < point_maze.REACHED**2


def main(exp: OfflinePointMaze):
    """Learn from recorded episodes, and evaluate in the maze."""
    env, chosen = point_maze.make(MAZE, time_limit=exp.time_limit), recipe(exp)
    data = recorded.KINDS[exp.data](MAZE, jax.random.key(exp.data_seed), exp.episodes)
    loop = _offline.loop(chosen, env, data, batch_size=exp.batch_size, horizon=exp.horizon, terminate=reached)
    return launch.launch(exp, env=env, loop=loop, cfg=chosen.cfg, listeners=_offline.listeners(chosen, loop))


if __name__ == "__main__":
    launch.cli(main, OfflinePointMaze)
