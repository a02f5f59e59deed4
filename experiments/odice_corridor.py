"""ODICE on point-maze data in which a short corridor is rarely taken: three directions along which to learn values.

Run:      python -m experiments.odice_corridor
Hardware: AMD EPYC, 2 cores, jax 0.10.2
Minutes:  4.5
Expect:   mean return of 64 episodes: IQM -38.06, 95 % interval -43.46 to -32.96, over 10 seeds

One episode in twenty goes through the corridor, all others the long way round; both step back at one step in three
(`datasets.point_maze.medium`). A score is minus the steps to the goal. With `--direction semi --name
odice_corridor_semi` values learn by the forward gradient alone, and with `--direction true --name odice_corridor_true`
by the sum of both; the metric `value/cosine` says how often these disagree. What came out is in BUILD_NOTES.md: the sum
is worse, and the other two are alike.
"""

import dataclasses
from functools import partial
from typing import Literal

import jax

from experiments.datasets import point_maze as recorded
from jaxrl_gen import launch, loops
from jaxrl_gen.algos import odice
from jaxrl_gen.data import sampling, trajectory
from jaxrl_gen.envs.tasks import point_maze
from jaxrl_gen.losses import dual
from jaxrl_gen.types import static

CORRIDOR = (
    "###########",
    "#S.......G#",
    "#.#######.#",
    "#.#######.#",
    "#.........#",
    "###########",
)  # fmt: skip
BLOCKED = (CORRIDOR[0], "#S..###..G#", *CORRIDOR[2:])
DIRECTIONS = {"orthogonal": dual.orthogonal, "semi": dual.semi_gradient, "true": dual.true_gradient}


@dataclasses.dataclass(frozen=True)
class Corridor(launch.Experiment):
    """ODICE on the way with a corridor."""

    name: str = launch.option("odice_corridor")
    seeds: int = 10
    total_steps: float = launch.option(4e3, low=1)  # updates
    direction: Literal["orthogonal", "semi", "true"] = static("orthogonal")
    episodes: int = static(400, low=20)  # of data, a twentieth of them through the corridor
    data_seed: int = static(0)
    batch_size: int = static(256, low=1)
    time_limit: int = static(160, low=1)  # steps; the expert needs about 30 through the corridor, and 55 round it
    # A reward of -1 for each step: residuals are counted in steps.
    algo: odice.Config = odice.Config(lr=1e-3, gamma=0.98, tau=0.02, actor_hidden=(128, 128), critic_hidden=(128, 128))


def main(exp: Corridor):
    """Learn from recorded episodes, and evaluate where the corridor is open."""
    env = point_maze.make(CORRIDOR, reward=point_maze.hurry, time_limit=exp.time_limit)
    key_round, key_through = jax.random.split(jax.random.key(exp.data_seed))
    rare = exp.episodes // 20
    round_it = recorded.medium(BLOCKED, key_round, exp.episodes - rare, point_maze.hurry)
    data = trajectory.joined(round_it, recorded.medium(CORRIDOR, key_through, rare, point_maze.hurry))
    make = partial(odice.make, direction=DIRECTIONS[exp.direction])
    loop = loops.offline(make, env, sampling.transitions(exp.batch_size), (data,), updates=500)
    return launch.launch(exp, env=env, loop=loop, cfg=exp.algo)


if __name__ == "__main__":
    launch.cli(main, Corridor)
