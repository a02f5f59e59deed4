"""Every offline method on one data set of a point maze of four rooms, all with the same networks, batches and updates.

Run:      python -m experiments.offline_point_maze
Method:   iql; bc, td3_bc, rebrac, prdc, a2pr, beer, cql, edac, odice, arsq, fql, flow_policy: --method NAME
Hardware: AMD EPYC, 2 cores, jax 0.10.2
Minutes:  0.9
Expect:   mean return of 64 episodes: IQM 1, 95 % interval 1 to 1, over 5 seeds

A score is the share of episodes that reach the goal in time. `--data medium` goes towards the goal at two steps in
three and back at the third; `stitching` are short ways between random places, of which none leads from the start to
the goal; `noisy` is an expert under noise (`datasets.point_maze`). IQL's expectile and sharpness were chosen on other
seeds of this maze; of the other methods nothing was chosen by scores: what they share is below, and the rest is mostly
the default of each. So these rows do not rank the methods.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

import jax

from experiments.datasets import point_maze as recorded
from jaxrl_gen import launch, loops
from jaxrl_gen.algos import a2pr, arsq, bc, beer, cql, edac, flow_policy, fql, iql, odice, prdc, rebrac, td3_bc
from jaxrl_gen.data import sampling, trajectory
from jaxrl_gen.envs.tasks import point_maze
from jaxrl_gen.types import static

WIDTHS = (64, 64)
SHARED = dict(lr=1e-3, actor_hidden=WIDTHS)
CRITICS = SHARED | dict(gamma=0.98, tau=0.02, critic_hidden=WIDTHS, normalize_obs=False)


class Recipe(NamedTuple):
    """A method, its Config, and how much of a batch an update of it takes."""

    make: Callable
    cfg: Any
    sample: Callable = sampling.transitions  # (batch size, n of n-step targets) -> (data, key) -> batch
    updates: int = 1  # of the critics in one of the algorithm's


def windows(batch_size: int, horizon: int) -> Callable:
    """What a policy over sequences clones: chunks of four actions."""
    return sampling.windows(batch_size, 1, 4)


def near(batch_size: int, horizon: int) -> Callable:
    """Batches that bring all the data along."""
    return prdc.among(sampling.transitions(batch_size, horizon))


METHODS = {
    "bc": Recipe(bc.make, bc.Config(**SHARED, normalize_obs=False)),
    "iql": Recipe(iql.make, iql.Config(**CRITICS, expectile=0.9, sharpness=200.0)),
    "td3_bc": Recipe(td3_bc.make, td3_bc.Config(**CRITICS), updates=2),
    "rebrac": Recipe(rebrac.make, rebrac.Config(**CRITICS), partial(sampling.transitions, next_actions=True), 2),
    "prdc": Recipe(prdc.make, prdc.Config(**CRITICS), near, 2),
    "a2pr": Recipe(a2pr.make, a2pr.Config(**CRITICS, proposal_hidden=WIDTHS), updates=2),
    "beer": Recipe(beer.make, beer.Config(**CRITICS)),
    "cql": Recipe(cql.make, cql.Config(**CRITICS)),
    "edac": Recipe(edac.make, edac.Config(**CRITICS)),
    "odice": Recipe(odice.make, odice.Config(**CRITICS, reward_scale=200.0)),
    "arsq": Recipe(
        arsq.make,
        arsq.Config(lr=1e-3, gamma=0.98, tau=0.02, hidden=WIDTHS, temperature=1e-3, normalize_obs=False),
    ),
    "fql": Recipe(fql.make, fql.Config(**CRITICS, closeness=1.0, scale_free=True)),
    "flow_policy": Recipe(
        flow_policy.make,
        flow_policy.Config(lr=1e-3, history=1, horizon=4, execute=1, channels=(32, 64), kernel=3, time_width=32),
        windows,
    ),
}


@dataclasses.dataclass(frozen=True)
class OfflinePointMaze(launch.Experiment):
    """One method on data of the point maze of four rooms."""

    name: str = launch.option("offline_point_maze")
    method: Literal[*METHODS] = static("iql")
    data: Literal["medium", "stitching", "noisy", "expert"] = static("medium")
    seeds: int = 5
    total_steps: float = launch.option(5e3, low=1)  # updates
    episodes: int = static(300, low=1)  # of data
    data_seed: int = static(0)
    batch_size: int = static(256, low=1)
    horizon: int = static(5, low=1)  # n of n-step targets
    time_limit: int = static(120, low=1)  # steps; the expert needs about 90 on the mean


def main(exp: OfflinePointMaze):
    """Learn from recorded episodes, and evaluate in the maze."""
    maze, recipe = point_maze.FOUR_ROOMS, METHODS[exp.method]
    env = point_maze.make(maze, time_limit=exp.time_limit)
    data = recorded.KINDS[exp.data](maze, jax.random.key(exp.data_seed), exp.episodes)
    sample = recipe.sample(exp.batch_size * recipe.updates, exp.horizon)
    learned_from = (data, trajectory.before(data)) if recipe.sample is near else (data,)
    loop = loops.offline(recipe.make, env, sample, learned_from, updates=500)
    return launch.launch(exp, env=env, loop=loop, cfg=recipe.cfg)


if __name__ == "__main__":
    launch.cli(main, OfflinePointMaze)
