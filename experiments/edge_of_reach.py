"""Values at the edge of reach: what short rollouts in a model without any error do to values, exactly, in a grid.

Run:      python -m experiments.edge_of_reach
Method:   ravl
Hardware: AMD EPYC, 2 cores, jax 0.10.2
Minutes:  0.2
Expect:   per cent of the optimum, 10 critics, 5 steps, deviation 20: IQM 100, 95 % interval 100 to 100, over 64 seeds

The data are all steps from a block in the corner of a grid, whose goal lies within. Rollouts of k steps of the true
dynamics start there, as if every policy were tried. So the values of states fewer than k steps away are learned; those
of states exactly k steps away are bootstrapped from, and never learned: they stay what they were at first, normal with
a deviation that is swept, as a stand-in for what a network makes of states that it never saw.

The prediction: one critic is as optimistic as the best of these values, and its greedy policy leaves for the edge. The
least of many critics, as in "ravl", is pessimistic there, and nearly exact where values were learned. Rollouts that
cover the grid need neither. Where the first values are below what the goal is worth, nothing of this shows.

It came out so, without any error in the model. At deviation 20 and rollouts of 5 steps one critic thought a start worth
30 of at most 9 and earned 0, two earned 0.3, and ten critics 9; with rollouts of 20 steps one critic was enough, and so
it was at deviation 2.
"""

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _scored
from jaxrl_gen import launch
from jaxrl_gen.types import check, static

MOVES = ((-1, 0), (1, 0), (0, -1), (0, 1))


@dataclasses.dataclass(frozen=True)
class Edge(launch.Experiment):
    """Values in a grid whose edge of reach is known."""

    name: str = launch.option("edge_of_reach")
    seeds: int = static(64, low=1)
    total_steps: float = launch.option(400, low=1)  # sweeps over all states
    width: int = static(15, low=2)  # of the grid
    block: int = static(6, low=1)  # of the data, in the corner
    goal: tuple[int, int] = static((3, 3))
    reward: float = 10.0  # for entering the goal, where the episode terminates
    gamma: float = 0.95
    horizons: tuple[int, ...] = static((1, 2, 5, 10, 20))
    deviations: tuple[float, ...] = static((2.0, 5.0, 20.0))  # of the first values
    members: tuple[int, ...] = static((1, 2, 10))
    headline: tuple[int, float, int] = static((5, 20.0, 10))  # horizon, deviation and members of the score


class Grid(NamedTuple):
    """A deterministic world: S states, A actions."""

    following: np.ndarray  # [S, A], the next state
    reward: np.ndarray  # [S, A]
    terminated: np.ndarray  # [S, A]
    distance: np.ndarray  # [S], steps from the data
    counted: np.ndarray  # [S] bool, the data's states but for the goal


def grid(exp: Edge) -> Grid:
    """The grid with walls around it."""
    places = np.stack(np.meshgrid(np.arange(exp.width), np.arange(exp.width), indexing="ij"), -1).reshape(-1, 2)
    ahead = np.clip(places[:, None] + np.array(MOVES), 0, exp.width - 1)
    following = ahead[..., 0] * exp.width + ahead[..., 1]
    is_goal = np.all(places == exp.goal, -1)
    enters = is_goal[following] & ~is_goal[:, None]
    distance = np.maximum(places - (exp.block - 1), 0).sum(-1)
    terminated = enters | is_goal[:, None]
    return Grid(following, exp.reward * enters, terminated, distance, (distance == 0) & ~is_goal)


def learned(world: Grid, first: jax.Array, known: jax.Array, gamma: jax.Array, sweeps: int) -> jax.Array:
    """What critics come to think that learn some states' values from each other's least, and leave the others alone.

    Args:
      world: Grid.
      first: [N, S, A] values.
      known: bool [S], the states whose values are learned, of all their actions.
      gamma: discount.
      sweeps: over all states.
    Returns:
      [N, S, A].
    """

    def sweep(values, _):
        best = jnp.max(jnp.min(values, 0), -1)
        target = world.reward + gamma * (1.0 - world.terminated) * best[world.following]
        return jnp.where(known[:, None], target, values), None

    return jax.lax.scan(sweep, first, None, sweeps)[0]


def returns(world: Grid, policy: jax.Array, gamma: jax.Array, sweeps: int) -> jax.Array:
    """What a policy is truly worth from every state, [S].

    Args:
      world: Grid.
      policy: [S], its actions.
      gamma: discount.
      sweeps: over all states.
    """
    at = lambda table: jnp.take_along_axis(jnp.asarray(table), policy[:, None], 1)[:, 0]
    reward, going_on, following = at(world.reward), 1.0 - at(world.terminated), at(world.following)
    step = lambda value, _: (reward + gamma * going_on * value[following], None)
    return jax.lax.scan(step, jnp.zeros(len(policy)), None, sweeps)[0]


def cell(exp: Edge, world: Grid, horizon: int, deviation: float, members: int) -> dict[str, Any]:
    """One setting: what critics think the data's states are worth under their greedy policy, and what they are.

    Returns:
      horizon, deviation, members; `thought` and `earned` [seeds], and `optimum`: averages over the data's states.
    """
    sweeps, counted = int(exp.total_steps), jnp.asarray(world.counted)
    average = lambda value: jnp.sum(jnp.where(counted, value, 0.0)) / jnp.sum(counted)

    def of_seed(key):
        first = deviation * jax.random.normal(key, (members, *world.reward.shape))
        least = jnp.min(learned(world, first, jnp.asarray(world.distance < horizon), exp.gamma, sweeps), 0)
        earned = returns(world, jnp.argmax(least, -1), exp.gamma, sweeps)
        return average(jnp.max(least, -1)), average(earned)

    keys = jax.random.split(jax.random.key(exp.seed), exp.seeds)
    thought, earned = jax.jit(jax.vmap(of_seed))(keys)
    everything = jnp.ones(len(world.distance), bool)
    best = learned(world, jnp.zeros((1, *world.reward.shape)), everything, exp.gamma, sweeps)
    optimum = float(average(jnp.max(best[0], -1)))
    setting = {"horizon": horizon, "deviation": deviation, "members": members}
    return setting | {"thought": np.asarray(thought), "earned": np.asarray(earned), "optimum": optimum}


def picture(path: Path, rows: list[dict], headline: tuple[int, float, int]) -> None:
    """What is thought and what is earned by horizon, for the headline's deviation."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, panels = plt.subplots(1, 2, figsize=(10, 3.6))
    rows = [row for row in rows if row["deviation"] == headline[1]]
    for panel, name in zip(panels, ("thought", "earned")):
        for members in sorted({row["members"] for row in rows}):
            of = sorted((row["horizon"], np.mean(row[name])) for row in rows if row["members"] == members)
            panel.plot(*zip(*of), "o-", label=f"{members} critics")
        panel.axhline(rows[0]["optimum"], color="0.5", ls=":", label="optimum")
        panel.set(xlabel="steps of a rollout", title=f"value {name}")
        panel.legend(frameon=False, fontsize=8)
        panel.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(exp: Edge) -> Path:
    """Sweep horizons, first values and numbers of critics, and write down what is thought and what is earned."""
    check(exp, "experiment")
    horizon, deviation, members = exp.headline
    if horizon not in exp.horizons or deviation not in exp.deviations or members not in exp.members:
        raise ValueError(
            f"headline is {exp.headline}; allowed: one of the horizons, deviations and members that are run"
        )
    folder = _scored.make_folder(exp)
    say, world, rows = partial(print, flush=True), grid(exp), []
    start = time.perf_counter()
    for setting in ((k, sd, n) for sd in exp.deviations for k in exp.horizons for n in exp.members):
        row = cell(exp, world, *setting)
        rows.append(row)
        told = f"{row['horizon']} steps, deviation {row['deviation']:g}, {row['members']} critics"
        thought, earned = np.mean(row["thought"]), np.mean(row["earned"])
        say(f"{told}: thought {thought:.2f}, earned {earned:.2f} of {row['optimum']:.2f}")
    (chosen,) = [row for row in rows if (row["horizon"], row["deviation"], row["members"]) == exp.headline]
    score = 100.0 * chosen["earned"] / chosen["optimum"]
    what = f"per cent of the optimum, {members} critics, {horizon} steps, deviation {deviation:g}"
    _scored.write(exp, folder, what=what, scores=score, training=time.perf_counter() - start, cells=rows)
    picture(folder / "curve.png", rows, exp.headline)
    say(f"look at {folder}")
    return folder


if __name__ == "__main__":
    launch.cli(main, Edge)
