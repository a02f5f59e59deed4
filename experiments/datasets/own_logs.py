"""Logs of this toolkit's own PPO, after D4RL's protocol: random, medium, medium-replay and expert.

Run:      python -m experiments.datasets.own_logs
Hardware: not measured
Minutes:  not measured
Expect:   not measured
"""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from experiments.datasets._recording import cli, describe, episodes
from jaxrl_gen import loops
from jaxrl_gen.algos import ppo
from jaxrl_gen.data import arrays, trajectory
from jaxrl_gen.data.trajectory import Dataset
from jaxrl_gen.envs import brax, playground, wrap
from jaxrl_gen.types import Env, PyTree, Transition, strong

LANES, STEPS = 64, 64  # of a rollout
MEDIUM = 1 / 3  # of the way from the random policy's return to the expert's


@dataclasses.dataclass(frozen=True)
class Logs:
    """Four files in D4RL's layout, with their cards."""

    folder: Path = Path("datasets")
    seed: int = 0
    task: str = "CartpoleSwingup"  # of MuJoCo Playground, or, as brax/hopper, of brax
    backend: str = "spring"  # of brax
    total_steps: float = 2e6  # of PPO, whose last policy is the expert
    episodes: int = 100  # of random, medium and expert each
    replay_steps: int = 200_000  # of medium-replay at most, the latest before the medium policy
    algo: ppo.Config = ppo.Config(lr=1e-3, lr_end=0.0, epochs=2, minibatches=8, entropy_coefficient=0.003)


def train(env: Env, cfg: ppo.Config, key: jax.Array, updates: int) -> tuple[list[PyTree], np.ndarray, list[Transition]]:
    """PPO with everything that it did on the way.

    Returns:
      The State before each update, and the last one; the mean return of the episodes that ended in each rollout, NaN
      where none did; the rows of each rollout, [STEPS, LANES, ...], on the host.
    """
    loop = loops.on_policy(ppo.make, wrap.pooled(env, LANES), steps=STEPS, iterations=1)
    init, iteration = jax.jit(loop.init), jax.jit(loop.iteration)
    carry = init(cfg, key)
    states, returns, logged = [carry.state], [], []
    for i in range(updates):
        carry, metrics, rows = iteration(cfg, carry, i)
        sums = metrics["episodes"]
        returns.append(float(sums["total"] / sums["count"]) if sums["count"] > 0 else np.nan)
        states.append(carry.state)
        logged.append(jax.device_get(rows._replace(extras={})))
    return states, np.array(returns), logged


def halfway(returns: np.ndarray, random: float, expert: float, over: int = 10) -> int:
    """The first update at which the mean return of the last rollouts is MEDIUM of the way from random to expert.

    Args:
      returns: of the rollouts, with NaN.
      random, expert: mean returns.
      over: rollouts averaged.
    Returns:
      Rollouts up to there; all of them where that was never reached.
    """
    for i in range(over, len(returns) + 1):
        recent = returns[i - over : i]
        if not np.isnan(recent).all() and np.nanmean(recent) >= random + MEDIUM * (expert - random):
            return i
    return len(returns)


def replayed(logged: list[Transition], steps: int) -> Dataset:
    """The last `steps` steps of consecutive rollouts, lane by lane."""
    logged = logged[-max(1, steps // (STEPS * LANES)) :]
    return trajectory.from_rows(jax.tree.map(lambda *x: np.concatenate(x), *logged))


def main(command: Logs) -> None:
    """Train, choose the policies, let each play, and write it all down."""
    suite, _, task = command.task.rpartition("/")
    env = brax.make(task, backend=command.backend) if suite == "brax" else playground.make(command.task)
    updates = round(command.total_steps / (LANES * STEPS))
    cfg = strong(dataclasses.replace(command.algo, lr_updates=float(updates)))
    key_train, *keys = jax.random.split(jax.random.key(command.seed), 4)
    states, returns, logged = train(env, cfg, key_train, updates)

    def played(state, key):
        algo = ppo.make(cfg, env.spec)
        return episodes(
            env, lambda obs, key: algo.act(state, obs, key)[0], key, command.episodes, lanes=command.episodes
        )

    def at_random(obs, key):
        return jax.random.uniform(key, (len(obs), env.spec.action_size), minval=-1.0, maxval=1.0)

    made = {"random": episodes(env, at_random, keys[0], command.episodes, lanes=command.episodes)}
    made["expert"] = played(states[-1], keys[1])
    ends = {f"{name}/return": float(np.mean(trajectory.returns(data))) for name, data in made.items()}
    middle = halfway(returns, ends["random/return"], ends["expert/return"])
    made["medium"] = played(states[middle], keys[2])
    made["medium_replay"] = replayed(logged[:middle], command.replay_steps)
    about = {
        "task": f"{task} of {f'brax, {command.backend}' if suite else 'MuJoCo Playground'}",
        "medium after steps": middle * STEPS * LANES, "normalised": "100 (return - random) / (expert - random)",
    }  # fmt: skip
    for kind, data in made.items():
        path = command.folder / f"{task.lower()}_{kind}.npz"
        arrays.write_d4rl(path, data)
        describe(path, data, command.seed, ends, **about)


if __name__ == "__main__":
    cli(main, Logs)
