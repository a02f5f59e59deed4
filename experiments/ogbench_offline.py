"""Offline RL on data of our own in environments of OGBench, under one task each: against cloning the data.

Run:      python -m experiments.ogbench_offline
Method:   iql; bc, td3_bc, rebrac, prdc, a2pr, beer, cql, cal_ql, edac, sac_n, odice, arsq, arsq_factorised, mopo, ravl,
          lipmbrl, fql, flow_policy: --method NAME
Table:    offline, by task, data
Hardware: AMD EPYC, 2 cores, jax 0.10.2
Minutes:  1.2
Expect:   success rate in pointmaze-medium-singletask-task1-v0 of 20 episodes: IQM 1, 95 % interval 1 to 1, over 5 seeds

The data go to one random place after the other, or, with `--data stitch`, to one a few cells away, and stay
(`datasets.ogbench_play`). None of it knows the task, which is told by rewards: where it succeeds, the episode
terminates. Data that are missing are recorded first. Other environments are a robot's arm that moves a cube, `--task
cube-single-singletask-task1-v0`, and one with a cube, two buttons, a drawer and a window, `--task
scene-singletask-task1-v0`. As the data are our own, success rates compare with each other, and with no published ones.

All methods learn in units of the data's spread and range; what else they share, and where they differ in size, is in
`_offline.py`. PRDC looks for the nearest among 8,192 rows. Methods that imagine take for success what lies within the
range of the data's own.

What came out: in the maze cloning never arrives, IQL always does, and the seeds of FQL differ widely. In the time that
these defaults take, the cube is all but never moved to its place: a negative result, recorded as it is.
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _offline
from experiments.datasets import ogbench_play
from jaxrl_gen import launch
from jaxrl_gen.data import trajectory
from jaxrl_gen.data.trajectory import Dataset
from jaxrl_gen.types import Env, static


@dataclasses.dataclass(frozen=True)
class OGBench(launch.Experiment):
    """One method on data of no task, under a task."""

    name: str = launch.option("ogbench_offline")
    task: str = static("pointmaze-medium-singletask-task1-v0")
    method: Literal[*_offline.METHODS] = static("iql")
    data: Literal["play", "stitch"] = static("play")
    seeds: int = 5
    total_steps: float = launch.option(6e3, low=1)  # updates
    eval_episodes: int = launch.option(20, low=1)
    folder: Path = launch.option(Path("datasets"))
    maze_episodes: int = static(100, low=1)  # of data, where there are none
    stitch_episodes: int = static(500, low=1)
    cube_episodes: int = static(30, low=1)
    scene_episodes: int = static(30, low=1)
    batch_size: int = static(256, low=1)
    horizon: int = static(10, low=1)  # n of n-step targets


def recipe(exp: OGBench) -> _offline.Recipe:
    """The method, with what differs from its defaults."""
    changes = dict(iql=dict(expectile=0.9, sharpness=10.0), fql=dict(closeness=0.01))
    return _offline.recipes(gamma=0.995, updates=exp.total_steps, **changes)[exp.method]


def episodes(exp: OGBench) -> int:
    """How many to record."""
    if "maze" in exp.task:
        return exp.stitch_episodes if exp.data == "stitch" else exp.maze_episodes
    return exp.scene_episodes if "scene" in exp.task else exp.cube_episodes


def succeeded(data: Dataset) -> Callable:
    """Where the data's episodes terminated: `(obs, action, next_obs) -> bool [B]`, within the range of these places."""
    rows = trajectory.to_rows(data)
    ends = rows.next_obs[rows.terminated]
    low, high = (jnp.asarray(f(ends, 0, initial=x)) for f, x in ((np.min, np.inf), (np.max, -np.inf)))

    def within(obs: jax.Array, action: jax.Array, next_obs: jax.Array) -> jax.Array:
        return jnp.all((low <= next_obs) & (next_obs <= high), -1)

    return within


def main(exp: OGBench):
    """Learn a task from data of none, and judge in the simulator what came of it."""
    play, scene = ogbench_play.judge(exp.task)
    place, chosen = f"{exp.task.partition('-singletask')[0]}-{exp.data}-v0", recipe(exp)
    path = exp.folder / ogbench_play.file(place)
    if not path.exists():
        ogbench_play.write(path, place, episodes(exp))
    data = ogbench_play.task(path, exp.task)
    env = Env(None, None, ogbench_play.spec(exp.task), scene=scene)
    loop = _offline.loop(
        chosen, env, data, batch_size=exp.batch_size, horizon=exp.horizon, terminate=succeeded(data), scaled=True
    )
    return launch.launch(
        exp, env=env, loop=loop, cfg=chosen.cfg, play=play, what=f"success rate in {exp.task}",
        listeners=_offline.listeners(chosen, loop),
    )  # fmt: skip


if __name__ == "__main__":
    launch.cli(main, OGBench)
