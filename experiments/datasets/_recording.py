"""What the generators of datasets share: whole episodes of a policy, and files with their cards."""

import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxrl_gen import evaluate
from jaxrl_gen.data import card, checks, trajectory
from jaxrl_gen.data.trajectory import Dataset
from jaxrl_gen.envs import mjx, wrap
from jaxrl_gen.types import Env, Transition, ended


def episodes(env: Env, act: Callable, key: jax.Array, count: int, *, lanes: int = 512) -> Dataset:
    """Whole episodes, one per lane, each from its start to its end.

    Args:
      env: one lane that does not reset itself, with a time limit.
      act: `(obs [E, ...], key) -> action [E, ...]`.
      key: consumed here.
      count: episodes.
      lanes: played at a time.
    Returns:
      Dataset of `count` episodes.
    """
    play = _playing(env, act, lanes)
    played = [play(key) for key in jax.random.split(key, -(-count // lanes))]
    return trajectory.select(trajectory.joined(*played), np.arange(count))


def whole(env: Env, act: Callable, key: jax.Array, steps: int, *, lanes: int = 100) -> Dataset:
    """Whole episodes until they have so many steps together, so that a policy that soon falls gives as much data.

    Args:
      env, act, key, lanes: as of `episodes`.
      steps: at least.
    Returns:
      Dataset of as many episodes as it takes, a multiple of the lanes.
    """
    play, played, missing = _playing(env, act, lanes), [], steps
    while missing > 0:
        key, now = jax.random.split(key)
        played.append(play(now))
        missing -= len(played[-1].reward)
    return trajectory.joined(*played)


def _playing(env: Env, act: Callable, lanes: int) -> Callable:
    """`key -> Dataset` of one whole episode of every lane."""
    env = wrap.quarantine(env)

    @jax.jit
    def play(key):
        key_reset, key_steps = jax.random.split(key)
        state, obs = jax.vmap(env.reset)(jax.random.split(key_reset, lanes))

        def step(playing, key):
            state, obs, over = playing
            key_act, key_env = jax.random.split(key)
            action = act(obs, key_act)
            state, after, out = jax.vmap(env.step)(state, action, jax.random.split(key_env, lanes))
            row = Transition(obs, action, out.reward, out.next_obs, out.terminated, out.truncated, out.valid)
            return (state, after, over | ended(out)), (row, ~over)

        over = jnp.zeros((lanes,), bool)
        return jax.lax.scan(step, (state, obs, over), jax.random.split(key_steps, env.spec.time_limit))[1]

    def recorded(key):
        rows, lived = jax.device_get(play(key))
        lived = np.swapaxes(lived, 0, 1)
        return trajectory.from_rows(jax.tree.map(lambda x: np.swapaxes(x, 0, 1)[lived], rows))

    return recorded


class Succeeding:
    """A gymnasium environment that says `info["success"]`, whose reward is 1 at success, which terminates, and else 0.

    `seed(number)` seeds whatever it draws from.
    """

    def __init__(self, env: Any, seed: Callable[[int], Any]):
        self._env, self._seed = env, seed

    def reset(self, *, seed: int) -> tuple[Any, dict]:
        self._seed(seed)
        return self._env.reset(seed=seed)

    def step(self, action: np.ndarray) -> tuple[Any, float, bool, bool, dict]:
        obs, _, terminated, truncated, info = self._env.step(action)
        success = bool(info["success"])
        return obs, float(success), success or terminated, truncated, info


def judging(make: Callable[[], Any], seed: Callable[[Any], Callable], steps: int, **seen: Any) -> tuple:
    """The `play` of `launch.launch` in environments that are made once and played again, and a scene of the first one.

    Args:
      make: one environment of gymnasium on MuJoCo.
      seed: of an environment, what seeds it.
      steps: of an episode, at most.
      seen: as of `mjx.scene`.
    Returns:
      (play, Scene).
    """
    first = make()  # a wrong name is told before anything is trained
    envs, simulator = [Succeeding(first, seed(first))], first.unwrapped

    def one():
        env = make()
        return Succeeding(env, seed(env))

    def play(act, memory, episodes, seed):
        envs.extend(one() for _ in range(episodes - len(envs)))
        return evaluate.side_by_side(envs[:episodes], act, memory, steps=steps, seed=seed)

    return play, mjx.scene(simulator.model, lambda _: mjx.pose(simulator.data), **seen)


def describe(path: Path, data: Dataset, seed: int, scores: dict[str, float], **about: Any) -> None:
    """Write the card of a dataset that was just written, and say in a line what it is."""
    card.write(path, data, generator=command(), seed=seed, scores=scores, **about)
    returns = trajectory.returns(data)
    print(f"{path}: {checks.summary(data)}; return {returns.min():.4g} to {returns.max():.4g}")


def cli(main: Callable[[Any], None], kind: type, default: Any = None) -> None:
    """Read a generator's flags and run it; an error of the user's is one line and exit code 2."""
    try:
        main(tyro.cli(kind, description=main.__doc__, default=default or kind()))
    except (ValueError, ModuleNotFoundError, FileNotFoundError, FileExistsError, PermissionError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def command() -> str:
    """How this program was called."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return shlex.join(["python", "-m", spec.name if spec else "?", *sys.argv[1:]])
