"""Point-maze data by the way-point expert: expert, medium, noisy, stitching, narrow and mixed, in three mazes.

Run:      python -m experiments.datasets.point_maze
Hardware: not measured
Minutes:  not measured
Expect:   not measured
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.datasets._recording import cli, describe, episodes
from jaxrl_gen.data import arrays, trajectory
from jaxrl_gen.data.trajectory import Dataset
from jaxrl_gen.envs.tasks import point_maze

MAZES = {"u": point_maze.U_MAZE, "rooms": point_maze.FOUR_ROOMS, "large": point_maze.LARGE}
Maze = tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class PointMaze:
    """Eighteen files in D4RL's layout, with their cards."""

    folder: Path = Path("datasets")
    seed: int = 0
    episodes: int = 1000  # of each file


def policy(maze: Maze, *, noise: float = 0.0, random: float = 0.0, back: float = 0.0) -> Callable:
    """The expert, disturbed: `(obs [E, 4], key) -> action [E, 2]`.

    Args:
      maze: the picture.
      noise: deviation of a Gaussian added to each action, which is then clipped.
      random: share of actions that are uniform instead.
      back: share of actions towards the first start instead of the goal.
    """
    expert, start = jax.vmap(point_maze.oracle(maze)), _seen(maze, "S")

    def act(obs, key):
        key_back, key_noise, key_coin, key_random = jax.random.split(key, 4)
        homewards = jax.random.bernoulli(key_back, back, obs.shape[:1])[:, None]
        action = expert(jnp.where(homewards, obs.at[:, 2:].set(start), obs))
        action = jnp.clip(action + noise * jax.random.normal(key_noise, action.shape), -1.0, 1.0)
        uniform = jax.random.uniform(key_random, action.shape, minval=-1.0, maxval=1.0)
        return jnp.where(jax.random.bernoulli(key_coin, random, action.shape[:1])[:, None], uniform, action)

    return act


def expert(maze: Maze, key: jax.Array, count: int, reward: Callable = point_maze.sparse) -> Dataset:
    """The expert with a little noise, so that cloning it is well posed."""
    return episodes(point_maze.make(maze, reward=reward), policy(maze, noise=0.1), key, count)


def medium(maze: Maze, key: jax.Array, count: int, reward: Callable = point_maze.sparse) -> Dataset:
    """The expert at two steps in three, and at the third one step back: a slow policy with two opposite minds.

    The mean of its actions is good and slow; the better ones among them are the expert's.
    """
    return episodes(point_maze.make(maze, reward=reward), policy(maze, noise=0.1, back=1 / 3), key, count)


def noisy(maze: Maze, key: jax.Array, count: int, reward: Callable = point_maze.sparse) -> Dataset:
    """The expert under so much noise that each single action says little, and only their mean is good."""
    return episodes(point_maze.make(maze, reward=reward), policy(maze, noise=1.5), key, count)


def stitching(maze: Maze, key: jax.Array, count: int, reward: Callable = point_maze.sparse) -> Dataset:
    """Short ways between random places, labelled with the task's reward: none leads from the start to the goal.

    The task's goal is in every observation. An episode that comes by it terminates there, and what follows is another.
    """
    anywhere = tuple(row.replace("S", ".").replace("G", ".") for row in maze)
    far = point_maze.checked(maze)
    env = point_maze.make(anywhere, time_limit=max(4, round(far / 3 / point_maze.SPEED)))
    data = episodes(env, policy(anywhere, noise=0.3), key, 4 * count)
    data = data._replace(obs=data.obs.at[:, 2:].set(_seen(maze, "G")))
    scale = max(len(maze), len(maze[0])) / 2
    after = trajectory.to_rows(data).next_obs
    distance = np.hypot(*(after[:, :2] - after[:, 2:]).T) * scale
    reached = distance < point_maze.REACHED
    return trajectory.relabelled(data, reward(distance, reached), reached)


def narrow(maze: Maze, key: jax.Array, count: int, reward: Callable = point_maze.sparse) -> Dataset:
    """The expert all but without noise from eight places of the start: eight ways, each gone again and again.

    They soon meet, and what lies beside them, such as the rest of the start where a policy is judged, is in no row.
    """
    key_starts, key = jax.random.split(key)
    env, starts = point_maze.make(maze, reward=reward), jax.random.split(key_starts, 8)
    few = env._replace(reset=lambda key: env.reset(starts[jax.random.randint(key, (), 0, len(starts))]))
    return episodes(few, policy(maze, noise=0.02), key, count)


def mixed(maze: Maze, key: jax.Array, count: int, reward: Callable = point_maze.sparse) -> Dataset:
    """Nine episodes at random for each of the expert's, whose rows are marked, `extras["demonstration"]`.

    About the start all but a few actions are bad, and beyond it the expert's are all that there is. A file in D4RL's
    layout has no place for the marks.
    """
    key_shown, key_rest = jax.random.split(key)
    shown = expert(maze, key_shown, -(-count // 10), reward)
    env, at_random = point_maze.make(maze, reward=reward), policy(maze, random=1.0)
    rest = episodes(env, at_random, key_rest, count - len(shown.start) + 1)
    marked = lambda data, mark: data._replace(extras={"demonstration": np.full(len(data.reward), mark)})
    return trajectory.joined(marked(shown, True), marked(rest, False))


def _seen(maze: Maze, mark: str) -> np.ndarray:
    """The first place with a mark, [2], as it is observed."""
    middle = point_maze.centres(maze, mark)[0]
    return np.asarray(point_maze.observe(maze, point_maze.Point(middle, middle)))[2:]


KINDS = {
    "expert": expert, "medium": medium, "noisy": noisy, "stitching": stitching, "narrow": narrow, "mixed": mixed,
}  # fmt: skip


def scores(maze: Maze, key: jax.Array, count: int = 256) -> dict[str, float]:
    """What the expert without noise and a uniformly random policy reach: share of episodes at the goal, mean length."""
    env, told = point_maze.make(maze), {}
    policies = {"expert": policy(maze), "random": policy(maze, random=1.0)}
    for (name, act), key in zip(policies.items(), jax.random.split(key)):
        data = episodes(env, act, key, count)
        told |= {f"{name}/success": float(np.mean(trajectory.returns(data)))}
        told |= {f"{name}/length": float(np.mean(trajectory.lengths(data)))}
    return told


def main(command: PointMaze) -> None:
    """Write the datasets of the three mazes."""
    for i, (place, maze) in enumerate(MAZES.items()):
        key_scores, *keys = jax.random.split(jax.random.key(command.seed * len(MAZES) + i), 1 + len(KINDS))
        reached = scores(maze, key_scores)
        for (kind, generate), key in zip(KINDS.items(), keys, strict=True):
            path = command.folder / f"point_maze_{place}_{kind}.npz"
            data = generate(maze, key, command.episodes)
            arrays.write_d4rl(path, data)
            describe(path, data, command.seed, reached, maze=maze, kind=generate.__doc__.splitlines()[0])


if __name__ == "__main__":
    cli(main, PointMaze)
