"""Demonstrations of three Meta-World tasks by the package's scripted experts; and how often a policy succeeds there.

Run:      python -m experiments.datasets.metaworld_demos
Hardware: not measured
Minutes:  not measured
Expect:   not measured
"""

import dataclasses
import warnings
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

TASKS = ("drawer-open-v3", "button-press-topdown-v3", "pick-place-v3")
STEPS = 300  # the slowest expert needs about a third
SPEC = Spec(jax.ShapeDtypeStruct((39,), jnp.float32), 4, time_limit=STEPS)


@dataclasses.dataclass(frozen=True)
class Demos:
    """One file per task in D4RL's layout, with its card."""

    folder: Path = Path("datasets")
    seed: int = 0
    tasks: tuple[str, ...] = TASKS
    episodes: int = 100  # of each task
    noise: float = 0.1  # deviation of a Gaussian added to each action


def demonstrate(task: str, episodes: int, seed: int, *, noise: float = 0.1) -> tuple[Dataset, float]:
    """Successful episodes of a scripted expert, each with another place of object and goal.

    The reward is 1 at success, which terminates, and else 0; the package's own is in `extras["shaped"]`.

    Returns:
      Dataset; and the share of the expert's episodes that succeeded, which are the ones that are kept.
    Raises:
      ValueError: if it fails as often as not: Meta-World's experts do, silently, with MuJoCo 3.17 and later.
    """
    env, rng, expert = make(task, seed), np.random.default_rng(seed), _expert(task)
    kept, tried = [], 0
    while len(kept) < episodes:
        seen, rows, info = [env.reset()[0]], [], {"success": 0.0}
        tried += 1
        while len(rows) < STEPS and not info["success"]:
            action = np.clip(expert(seen[-1]) + noise * rng.standard_normal(4), -1.0, 1.0)
            ob, shaped, _, _, info = env.step(action)
            seen.append(ob)
            rows.append((action, shaped))
        if info["success"]:
            kept.append((seen, *zip(*rows, strict=True)))
        elif tried > 10 and 2 * len(kept) < tried:
            raise ValueError(f"the expert of {task} failed in {tried - len(kept)} of {tried} episodes: another MuJoCo?")
    seen, action, shaped = (np.concatenate([episode[i] for episode in kept]) for i in range(3))
    last = np.zeros(len(action), bool)
    last[np.cumsum([len(episode[1]) for episode in kept]) - 1] = True
    data = trajectory.make(seen, action, last, last, np.zeros_like(last), {"shaped": shaped})
    return data, len(kept) / tried


def judge(task: str) -> tuple[Callable, Scene]:
    """The `play` of `launch.launch` in a task, whether an episode succeeds, and a scene of it.

    Raises:
      ModuleNotFoundError, ValueError: as `make`.
    """
    play, scene = judging(lambda: make(task, 0), lambda env: env.seed, STEPS, fps=80.0, camera="corner2")
    return play, scene._replace(draw=lambda *sizes: scene.draw(*sizes)[:, ::-1, ::-1])  # it stands on its head


def make(task: str, seed: int) -> Any:
    """A task of Meta-World that puts object and goal somewhere else at every reset."""
    mjx.headless()
    try:
        from metaworld.env_dict import ALL_V3_ENVIRONMENTS_GOAL_OBSERVABLE as tasks
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("this needs Meta-World: pip install 'jaxrl_gen[metaworld]'") from error
    if f"{task}-goal-observable" not in tasks:
        known = ", ".join(sorted(name.removesuffix("-goal-observable") for name in tasks))
        raise ValueError(f"{task} is no task of Meta-World; allowed: {known}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = tasks[f"{task}-goal-observable"](seed=seed)
    env._freeze_rand_vec, env.seeded_rand_vec = False, True  # it has no public word for this
    return env


def main(command: Demos) -> None:
    """Let the experts demonstrate, and write down what they did."""
    for task in command.tasks:
        data, share = demonstrate(task, command.episodes, command.seed, noise=command.noise)
        path = command.folder / file(task)
        arrays.write_d4rl(path, data)
        describe(path, data, command.seed, {"expert/success": share}, environment=task, kind=demonstrate.__doc__)


def file(task: str) -> str:
    """The name of a task's demonstrations."""
    return f"metaworld_{task.removesuffix('-v3').replace('-', '_')}.npz"


def _expert(task: str) -> Callable:
    from metaworld.policies import ENV_POLICY_MAP

    return ENV_POLICY_MAP[task]().get_action


if __name__ == "__main__":
    cli(main, Demos)
