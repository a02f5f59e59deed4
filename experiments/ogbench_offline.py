"""Offline RL on play data of our own in two environments of OGBench, under one task each: against cloning the play.

Run:      python -m experiments.ogbench_offline
Hardware: AMD EPYC, 2 cores, jax 0.10.2
Minutes:  1.2
Expect:   success rate in pointmaze-medium-singletask-task1-v0 of 20 episodes: IQM 1, 95 % interval 1 to 1, over 5 seeds
Method:   iql; fql, bc: --method NAME

The data go to one random place after the other (`datasets.ogbench_play`), and none of it knows the task, which is told
by rewards: 0 where it succeeds, which terminates, and else -1. Play that is missing is recorded first. The other
environment is a robot's arm that moves a cube, `--task cube-single-singletask-task1-v0`. As the data are our own, the
success rates compare with each other, and with no published ones.

What came out: in the maze cloning never arrives, IQL always does, and the seeds of FQL differ widely. In the time that
these defaults take, the cube is all but never moved to its place: a negative result, recorded as it is.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from experiments.datasets import ogbench_play
from jaxrl_gen import launch, loops
from jaxrl_gen.algos import bc, fql, iql
from jaxrl_gen.data import sampling, statistics
from jaxrl_gen.types import Env, static

WIDTHS = (64, 64)


@dataclasses.dataclass(frozen=True)
class OGBench(launch.Experiment):
    """IQL, FQL or cloning on play data under a task."""

    name: str = launch.option("ogbench_offline")
    task: str = static("pointmaze-medium-singletask-task1-v0")
    method: Literal["iql", "fql", "bc"] = static("iql")
    seeds: int = 5
    total_steps: float = launch.option(6e3, low=1)  # updates
    eval_episodes: int = launch.option(20, low=1)
    data: Path = launch.option(Path("datasets"))
    maze_episodes: int = static(100, low=1)  # of play, where there is none
    cube_episodes: int = static(30, low=1)
    batch_size: int = static(256, low=1)
    horizon: int = static(10, low=1)  # n of n-step targets
    implicit: iql.Config = iql.Config(
        lr=1e-3, gamma=0.995, tau=0.02, expectile=0.9, sharpness=10.0, normalize_obs=False, actor_hidden=WIDTHS,
        critic_hidden=WIDTHS,
    )  # fmt: skip
    flow: fql.Config = fql.Config(
        lr=1e-3, gamma=0.995, tau=0.02, closeness=0.01, scale_free=True, actor_hidden=WIDTHS, critic_hidden=WIDTHS
    )
    cloning: bc.Config = bc.Config(lr=1e-3, actor_hidden=WIDTHS, normalize_obs=False)


def main(exp: OGBench):
    """Learn a task from play, and judge in the simulator what came of it."""
    play, scene = ogbench_play.judge(exp.task)
    place = exp.task.partition("-singletask")[0] + "-v0"
    path = exp.data / ogbench_play.file(place)
    if not path.exists():
        ogbench_play.write(path, place, exp.maze_episodes if "maze" in place else exp.cube_episodes)
    data = ogbench_play.task(path, exp.task)
    make, cfg = {"iql": (iql.make, exp.implicit), "fql": (fql.make, exp.flow), "bc": (bc.make, exp.cloning)}[exp.method]
    env = Env(None, None, ogbench_play.spec(exp.task), scene=scene)
    scaled, sample = statistics.scaled(make, statistics.of(data)), sampling.transitions(exp.batch_size, exp.horizon)
    loop = loops.offline(scaled, env, sample, (data,), updates=500)
    return launch.launch(exp, env=env, loop=loop, cfg=cfg, play=play, what=f"success rate in {exp.task}")


if __name__ == "__main__":
    launch.cli(main, OGBench)
