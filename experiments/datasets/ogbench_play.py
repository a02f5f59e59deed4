"""Play data of OGBench's point maze and single cube, by the oracles in its package; and its tasks as an Env's spec.

Run:      python -m experiments.datasets.ogbench_play
Hardware: not measured
Minutes:  not measured
Expect:   not measured
"""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.datasets._recording import cli, describe, judging
from jaxrl_gen.data import arrays, trajectory
from jaxrl_gen.data.trajectory import Dataset
from jaxrl_gen.envs import mjx
from jaxrl_gen.types import Scene, Spec


@dataclasses.dataclass(frozen=True)
class Play:
    """Two files in OGBench's layout, with their cards."""

    folder: Path = Path("datasets")
    seed: int = 0
    maze: str = "pointmaze-medium-v0"
    maze_episodes: int = 100
    cube: str = "cube-single-v0"
    cube_episodes: int = 100
    steps: int = 1000  # of each episode


def play_maze(name: str, episodes: int, steps: int, seed: int, *, noise: float = 0.5) -> dict[str, np.ndarray]:
    """From one random place to the next, along the package's own shortest ways, with noise on every action."""
    env, rng = _make(name, seed, max_episode_steps=steps + 2, terminate_at_goal=False), np.random.default_rng(seed)
    maze = env.unwrapped
    free = [tuple(int(i) for i in place) for place in np.argwhere(maze.maze_map == 0)]
    anywhere = lambda: free[rng.integers(len(free))]

    def start():
        return env.reset(options={"task_info": {"init_ij": anywhere(), "goal_ij": anywhere()}})

    def act(ob, info):
        if maze.compute_success():
            maze.set_goal(anywhere())
        way = maze.get_oracle_subgoal(maze.get_xy(), maze.cur_goal_xy)[0] - maze.get_xy()
        return way / (np.linalg.norm(way) + 1e-6) + noise * rng.standard_normal(2)

    return _record(env, start, act, episodes, steps)


def play_cube(name: str, episodes: int, steps: int, seed: int) -> dict[str, np.ndarray]:
    """The cube to one random place after the other, by the package's planning oracle and its correlated noise."""
    from ogbench.manipspace.oracles.plan.cube_plan import CubePlanOracle

    env = _make(name, seed, max_episode_steps=steps + 2, terminate_at_goal=False, mode="data_collection")
    oracle = CubePlanOracle(env=env, noise=0.1, noise_smoothing=0.5)

    def start():
        ob, info = env.reset()
        oracle.reset(ob, info)
        return ob, info

    def act(ob, info):
        if oracle.done:
            oracle.reset(*env.unwrapped.set_new_target())
        return oracle.select_action(ob, info)

    return _record(env, start, act, episodes, steps)


def task(path: str | Path, name: str, *, window: int = 1) -> Dataset:
    """A play dataset under a task of OGBench: what leads to success is rewarded 0 and terminates, all else -1.

    The package rewards the state a step begins in; here it is the one that the step led to.

    Args:
      path: of the npz in OGBench's layout, with qpos.
      name: of the task, for example "pointmaze-medium-singletask-task1-v0".
      window: steps that every episode must have, before it is cut where it succeeds.
    """
    from ogbench.relabel_utils import relabel_dataset

    found, env = arrays.load(path), _make(name, 0)
    data = arrays.read_ogbench(path, spec(name), window=window)
    relabel_dataset(name, env, found)
    after = np.arange(len(data.reward)) + np.asarray(data.episode) + 1
    return trajectory.relabelled(data, found["rewards"][after], found["masks"][after] == 0)


def spec(name: str) -> Spec:
    """The Spec of an environment of OGBench: one vector, and actions in [-1, 1] already."""
    env = _make(name, 0)
    limit = env.spec.max_episode_steps
    return Spec(jax.ShapeDtypeStruct(env.observation_space.shape, jnp.float32), *env.action_space.shape, False, limit)


def judge(name: str) -> tuple[Callable, Scene]:
    """The `play` of `launch.launch` in a task of OGBench, whether an episode succeeds, and a scene of it."""
    fps = 10.0 if "maze" in name else 20.0
    return judging(lambda: _make(name, 0), lambda env: np.random.seed, spec(name).time_limit, fps=fps)


def main(command: Play) -> None:
    """Play, and write down what happened."""
    for name, episodes in ((command.maze, command.maze_episodes), (command.cube, command.cube_episodes)):
        write(command.folder / file(name), name, episodes, command.steps, command.seed)


def write(path: Path, name: str, episodes: int, steps: int = 1000, seed: int = 0) -> None:
    """Record play in an environment, a maze or a cube, as a file with its card."""
    play = play_maze if "maze" in name else play_cube
    arrays.save(path, play(name, episodes, steps, seed))
    data = arrays.read_ogbench(path, spec(name), say=lambda line: None)
    describe(path, data, seed, {}, environment=name, kind=play.__doc__)


def file(name: str) -> str:
    """The name of an environment's play data."""
    return f"{name.removesuffix('-v0').replace('-', '_')}_play.npz"


def _record(env: Any, start: Callable, act: Callable, episodes: int, steps: int) -> dict[str, np.ndarray]:
    """Whole episodes of a gymnasium environment in OGBench's layout, with qpos and qvel of every observation."""
    fields = ("observations", "actions", "qpos", "qvel")
    rows = {field: [] for field in fields}
    for _ in range(episodes):
        ob, info = start()
        for _ in range(steps + 1):  # of the last one, only where it began is read
            action = np.clip(act(ob, info), -1.0, 1.0)
            after, _, terminated, truncated, info = env.step(action)
            for field, x in zip(fields, (ob, action, info["prev_qpos"], info["prev_qvel"]), strict=True):
                rows[field].append(np.asarray(x, np.float32))
            if terminated or truncated:
                raise ValueError(f"{env.spec.id} ended an episode by itself; expected {steps} steps of play")
            ob = after
    last = np.arange(episodes * (steps + 1)) % (steps + 1) == steps
    return {field: np.stack(x) for field, x in rows.items()} | {"terminals": last}


def _make(name: str, seed: int, **arguments: Any) -> Any:
    """An environment of OGBench, which draws from NumPy's global generator."""
    try:
        import gymnasium
        import ogbench  # noqa: F401  (registers its environments)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("this needs OGBench: pip install jaxrl_gen[ogbench]") from error
    mjx.headless()
    np.random.seed(seed)
    env = gymnasium.make(name, **arguments)
    env.reset(seed=seed)
    return env


if __name__ == "__main__":
    cli(main, Play)
