"""Implicit Q-learning on point-maze data of two opposite minds, offline: against cloning the same data with --clone.

Run:      python -m experiments.iql_point_maze
Method:   iql; bc: --clone
Hardware: AMD EPYC, 2 cores, jax 0.10.2
Minutes:  7.4
Expect:   mean return of 64 episodes: IQM 1, 95 % interval 1 to 1, over 5 seeds

The data go towards the goal at two steps in three and back at the third (`datasets.point_maze.medium`). A score is the
share of episodes that reach the goal in time.
"""

import dataclasses

import jax

from experiments.datasets import point_maze as recorded
from jaxrl_gen import launch, loops
from jaxrl_gen.algos import bc, iql
from jaxrl_gen.data import sampling
from jaxrl_gen.envs.tasks import point_maze
from jaxrl_gen.types import static


@dataclasses.dataclass(frozen=True)
class IQLPointMaze(launch.Experiment):
    """IQL, or behaviour cloning, on the point maze of four rooms."""

    name: str = launch.option("iql_point_maze")
    seeds: int = 5
    total_steps: float = launch.option(4e3, low=1)  # updates
    clone: bool = static(False)  # behaviour cloning instead
    episodes: int = static(300, low=1)  # of data
    data_seed: int = static(0)
    batch_size: int = static(512, low=1)
    horizon: int = static(1, low=1)  # n of n-step targets
    time_limit: int = static(120, low=1)  # steps; the expert needs about 90 on the mean
    # A reward of 1 at the goal: a step on the way is worth about 1 - gamma, so advantages are small numbers.
    algo: iql.Config = iql.Config(
        lr=1e-3, gamma=0.98, tau=0.02, expectile=0.9, sharpness=200.0, actor_hidden=(128, 128), critic_hidden=(128, 128)
    )  # fmt: skip
    cloning: bc.Config = bc.Config(lr=1e-3, actor_hidden=(128, 128))


def main(exp: IQLPointMaze):
    """Learn from recorded episodes, and evaluate in the maze."""
    maze = point_maze.FOUR_ROOMS
    env = point_maze.make(maze, time_limit=exp.time_limit)
    data = recorded.medium(maze, jax.random.key(exp.data_seed), exp.episodes)
    make, cfg = (bc.make, exp.cloning) if exp.clone else (iql.make, exp.algo)
    loop = loops.offline(make, env, sampling.transitions(exp.batch_size, exp.horizon), (data,), updates=500)
    return launch.launch(exp, env=env, loop=loop, cfg=cfg)


if __name__ == "__main__":
    launch.cli(main, IQLPointMaze)
