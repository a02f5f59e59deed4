"""What the generators of datasets share: whole episodes of a policy, and files with their cards."""

import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro

from jaxrl_gen.data import card, checks, trajectory
from jaxrl_gen.data.trajectory import Dataset
from jaxrl_gen.envs import wrap
from jaxrl_gen.types import Env, PyTree, Transition, ended


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
    env, played = wrap.quarantine(env), []

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

    for key in jax.random.split(key, -(-count // lanes)):
        rows, lived = jax.device_get(play(key))
        keep = np.swapaxes(lived, 0, 1)[: count - lanes * len(played)]
        flat = jax.tree.map(lambda x: np.swapaxes(x, 0, 1)[: len(keep)][keep], rows)
        played.append(trajectory.from_rows(flat))
    return trajectory.joined(*played)


def succeeded(envs: Sequence[Any], act: Callable, memory: PyTree, steps: int) -> np.ndarray:
    """Whether a policy succeeds in gymnasium environments, one episode in each, played side by side.

    Args:
      envs: E environments that say `info["success"]`.
      act: `(memory, obs [E, D]) -> (memory, action [E, A])`, called once per step for all of them.
      memory: at the start.
      steps: of an episode, at most.
    Returns:
      bool [E].
    """
    obs = np.stack([env.reset()[0] for env in envs]).astype(np.float32)
    reached, over = np.zeros(len(envs), bool), np.zeros(len(envs), bool)
    for _ in range(steps):
        memory, action = act(memory, obs)
        action = np.clip(np.asarray(action, np.float32), -1.0, 1.0)
        for i in np.flatnonzero(~over):
            obs[i], _, terminated, truncated, info = envs[i].step(action[i])
            reached[i] = bool(info["success"])
            over[i] = reached[i] or terminated or truncated
        if over.all():
            break
    return reached


def describe(path: Path, data: Dataset, seed: int, scores: dict[str, float], **about: Any) -> None:
    """Write the card of a dataset that was just written, and say in a line what it is."""
    card.write(path, data, generator=command(), seed=seed, scores=scores, **about)
    returns = trajectory.returns(data)
    print(f"{path}: {checks.summary(data)}; return {returns.min():.4g} to {returns.max():.4g}")


def cli(main: Callable[[Any], None], kind: type) -> None:
    """Read a generator's flags and run it; an error of the user's is one line and exit code 2."""
    try:
        main(tyro.cli(kind, description=main.__doc__))
    except (ValueError, ModuleNotFoundError, FileNotFoundError, FileExistsError, PermissionError) as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error


def command() -> str:
    """How this program was called."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return shlex.join(["python", "-m", spec.name if spec else "?", *sys.argv[1:]])
