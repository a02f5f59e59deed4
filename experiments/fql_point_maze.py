"""Flow Q-learning on point-maze data of two opposite minds, offline: against cloning the same data.

Run:      python -m experiments.fql_point_maze
Method:   fql; flow_policy: --policy flow
Hardware: not measured
Minutes:  not measured
Expect:   not measured

The data go towards the goal at two steps in three and back at the third (`datasets.point_maze.medium`). A score is the
share of episodes that reach the goal in time. Compare with `--policy flow`, the flow policy that clones them.
"""

import dataclasses
from typing import Literal

import jax

from experiments.datasets import point_maze as recorded
from jaxrl_gen import launch, loops
from jaxrl_gen.algos import flow_policy, fql
from jaxrl_gen.data import sampling
from jaxrl_gen.envs.tasks import point_maze
from jaxrl_gen.types import static


@dataclasses.dataclass(frozen=True)
class FQLPointMaze(launch.Experiment):
    """FQL, or a clone, on the large point maze."""

    name: str = launch.option("fql_point_maze")
    seeds: int = 5
    total_steps: float = launch.option(5e3, low=1)  # updates
    policy: Literal["fql", "flow"] = static("fql")
    episodes: int = static(300, low=1)  # of data
    data_seed: int = static(0)
    batch_size: int = static(256, low=1)
    time_limit: int = static(120, low=1)  # steps; the expert needs about 90 on the mean
    algo: fql.Config = fql.Config(
        lr=1e-3, closeness=1.0, scale_free=True, actor_hidden=(64, 64, 64), critic_hidden=(64, 64, 64)
    )
    clone: flow_policy.Config = flow_policy.Config(
        lr=1e-3, history=1, horizon=4, execute=1, channels=(32, 64), kernel=3, time_width=32
    )


def main(exp: FQLPointMaze):
    """Learn from recorded episodes, and evaluate in the maze."""
    maze = point_maze.FOUR_ROOMS
    env = point_maze.make(maze, time_limit=exp.time_limit)
    data = recorded.medium(maze, jax.random.key(exp.data_seed), exp.episodes)
    if exp.policy == "fql":
        make, cfg, sample = fql.make, exp.algo, sampling.transitions(exp.batch_size)
    else:
        make, cfg = flow_policy.make, exp.clone
        sample = sampling.windows(exp.batch_size, cfg.history, cfg.horizon, executed=cfg.execute)
    loop = loops.offline(make, env, sample, (data,), updates=500)
    return launch.launch(exp, env=env, loop=loop, cfg=cfg)


if __name__ == "__main__":
    launch.cli(main, FQLPointMaze)
