"""Play data of OGBench's point maze, single cube and scene, by the oracles in its package; its tasks as an Env's spec.

Run:      python -m experiments.datasets.ogbench_play
Hardware: not measured
Minutes:  not measured
Expect:   not measured

Names are OGBench's own: an environment's, "scene-v0", or a task's in it, "scene-singletask-task1-v0". Either may say
which data are meant, as OGBench's data sets do: "pointmaze-medium-stitch-v0", "scene-play-singletask-task1-v0".
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

KINDS = ("play", "navigate", "stitch")  # words in a name that say which data are meant; the first two mean the same


@dataclasses.dataclass(frozen=True)
class Play:
    """Four files in OGBench's layout, with their cards; none where no episodes are asked for."""

    folder: Path = Path("datasets")
    seed: int = 0
    maze: str = "pointmaze-medium-v0"
    maze_episodes: int = 100
    stitch: str = "pointmaze-medium-stitch-v0"
    stitch_episodes: int = 500
    cube: str = "cube-single-v0"
    cube_episodes: int = 100
    scene: str = "scene-v0"
    scene_episodes: int = 100
    steps: int | None = None  # of each episode; default: OGBench's, 1000, and 200 of those to be stitched


def play_maze(name: str, episodes: int, steps: int, seed: int, *, noise: float = 0.5) -> dict[str, np.ndarray]:
    """From one random place to the next, along the package's own shortest ways, with noise on every action."""
    env, _, anywhere, walk = _walker(name, steps, seed, noise)
    maze = env.unwrapped

    def start():
        return env.reset(options={"task_info": {"init_ij": anywhere(), "goal_ij": anywhere()}})

    def act(ob, info):
        if maze.compute_success():
            maze.set_goal(anywhere())
        return walk()

    return _record(env, start, act, episodes, steps)


def stitch_maze(name: str, episodes: int, steps: int, seed: int, *, noise: float = 0.5) -> dict[str, np.ndarray]:
    """From a random place to one four cells away, to stay there: longer ways must be stitched from several episodes."""
    env, rng, anywhere, walk = _walker(name, steps, seed, noise)
    maze = env.unwrapped

    def start():
        here = anywhere()
        away = maze.get_oracle_subgoal(maze.ij_to_xy(here), maze.ij_to_xy(here))[1]  # cells from here to each other one
        there = np.argwhere(away == 4)
        goal = there[rng.integers(len(there))] if len(there) else here
        return env.reset(options={"task_info": {"init_ij": here, "goal_ij": goal}})

    return _record(env, start, lambda ob, info: walk(), episodes, steps)


def play_things(name: str, episodes: int, steps: int, seed: int) -> dict[str, np.ndarray]:
    """One thing after the other to a random place or state, by the package's planning oracles and correlated noise.

    In a scene the package draws what is next: the cube, a button, the drawer or the window, the latter two more rarely
    while they are locked. Episodes that lose the cube out of sight are left out, as in OGBench's own data.
    """
    from ogbench.manipspace.oracles.plan import button_plan, cube_plan, drawer_plan, window_plan

    env = _make(name, seed, max_episode_steps=steps + 2, terminate_at_goal=False, mode="data_collection")
    kinds = {
        "cube": cube_plan.CubePlanOracle, "button": button_plan.ButtonPlanOracle,
        "drawer": drawer_plan.DrawerPlanOracle, "window": window_plan.WindowPlanOracle,
    }  # fmt: skip
    oracles = {thing: kind(env=env, noise=0.1, noise_smoothing=0.5) for thing, kind in kinds.items()}
    oracle = None

    def plan(ob, info):
        nonlocal oracle
        oracle = oracles[info["privileged/target_task"]]
        oracle.reset(ob, info)

    def start():
        ob, info = env.reset()
        plan(ob, info)
        return ob, info

    def act(ob, info):
        if oracle.done:
            plan(*env.unwrapped.set_new_target())
        return oracle.select_action(ob, info)

    return _record(env, start, act, episodes, steps, keep=_in_sight if "scene" in name else lambda episode: True)


def task(path: str | Path, name: str, *, window: int = 1) -> Dataset:
    """A play dataset under a task of OGBench: what leads to success is rewarded 0 and terminates, all else -1.

    In a scene the reward is minus the number of things that are not as the task wants them. The package rewards the
    state a step begins in; here it is the one that the step led to.

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
    for name, episodes in (
        (command.maze, command.maze_episodes),
        (command.stitch, command.stitch_episodes),
        (command.cube, command.cube_episodes),
        (command.scene, command.scene_episodes),
    ):
        if episodes:
            write(command.folder / file(name), name, episodes, command.steps, command.seed)


def write(path: Path, name: str, episodes: int, steps: int | None = None, seed: int = 0) -> None:
    """Record play in an environment, a maze, a cube or a scene, as a file with its card.

    Args:
      path: of the npz.
      name: of the environment, and, for data to be stitched, of the kind: "pointmaze-medium-stitch-v0".
      episodes: how many.
      steps: of each episode; default: as many as OGBench's.
      seed: of everything that is drawn.
    Raises:
      ValueError: for data to be stitched where there is no maze.
    """
    maze, stitch = "maze" in name, "-stitch" in name
    if stitch and not maze:
        raise ValueError(f"{name} is no maze; allowed: ways to be stitched in a maze, as pointmaze-medium-stitch-v0")
    play, usual = (stitch_maze, 200) if stitch else (play_maze if maze else play_things, 1000)
    arrays.save(path, play(name, episodes, steps or usual, seed))
    data = arrays.read_ogbench(path, spec(name), say=lambda line: None)
    describe(path, data, seed, {}, environment=_registered(name), kind=play.__doc__.splitlines()[0])


def file(name: str) -> str:
    """The name of the data of an environment, or of a task in it: pointmaze_medium_stitch.npz."""
    place = _registered(name).partition("-singletask")[0].removesuffix("-v0")
    return f"{place.replace('-', '_')}_{'stitch' if '-stitch' in name else 'play'}.npz"


def _registered(name: str) -> str:
    """The name that the package knows, which says nothing of data."""
    return "-".join(word for word in name.split("-") if word not in KINDS)


def _walker(name: str, steps: int, seed: int, noise: float) -> tuple[Any, np.random.Generator, Callable, Callable]:
    """A maze; a generator; a random free cell, drawn from it; and the next action on a shortest way to the goal."""
    env, rng = _make(name, seed, max_episode_steps=steps + 2, terminate_at_goal=False), np.random.default_rng(seed)
    maze = env.unwrapped
    free = [tuple(int(i) for i in place) for place in np.argwhere(maze.maze_map == 0)]

    def walk():
        way = maze.get_oracle_subgoal(maze.get_xy(), maze.cur_goal_xy)[0] - maze.get_xy()
        return way / (np.linalg.norm(way) + 1e-6) + noise * rng.standard_normal(2)

    return env, rng, lambda: free[rng.integers(len(free))], walk


def _in_sight(episode: dict[str, np.ndarray]) -> bool:
    """Whether the cube of a scene was never beside the table, but for in the drawer; bounds in metres, as OGBench's."""
    _, y, z = episode["qpos"][:, 14:17].T
    return not (y >= 0.29).any() and not ((y <= -0.3) & ((z < 0.06) | (z > 0.08))).any()


def _record(
    env: Any, start: Callable, act: Callable, episodes: int, steps: int, *, keep: Callable = lambda episode: True
) -> dict[str, np.ndarray]:
    """Whole episodes of a gymnasium environment in OGBench's layout, with the simulator's state at every observation.

    Those that `keep` refuses are played again.
    """
    kept = []
    while len(kept) < episodes:
        rows, (ob, info) = [], start()
        for _ in range(steps + 1):  # of the last one, only where it began is read
            action = np.clip(act(ob, info), -1.0, 1.0)
            after, _, terminated, truncated, info = env.step(action)
            state = {x: info[f"prev_{x}"] for x in ("qpos", "qvel", "button_states") if f"prev_{x}" in info}
            rows.append({"observations": ob, "actions": action, **state})
            if terminated or truncated:
                raise ValueError(f"{env.spec.id} ended an episode by itself; expected {steps} steps of play")
            ob = after
        episode = {field: np.stack([np.asarray(row[field], np.float32) for row in rows]) for field in rows[0]}
        if keep(episode):
            kept.append(episode)
    last = np.arange(episodes * (steps + 1)) % (steps + 1) == steps
    return {field: np.concatenate([episode[field] for episode in kept]) for field in kept[0]} | {"terminals": last}


def _make(name: str, seed: int, **arguments: Any) -> Any:
    """An environment of OGBench, which draws from NumPy's global generator."""
    try:
        import gymnasium
        import ogbench  # noqa: F401  (registers its environments)
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("this needs OGBench: pip install 'jaxrl_gen[ogbench]'") from error
    mjx.headless()
    np.random.seed(seed)
    env = gymnasium.make(_registered(name), **arguments)
    env.reset(seed=seed)
    return env


if __name__ == "__main__":
    cli(main, Play)
