"""Logs of this toolkit's own PPO, after D4RL's protocol: random, medium, medium-replay and expert.

Run:      python -m experiments.datasets.own_logs
Hardware: not measured
Minutes:  not measured
Expect:   not measured

Other tasks: `--task brax/hopper`, `--task brax/halfcheetah`, each with defaults of its own (`TUNED`), which other
flags change. All that PPO did is held in the host's memory until the medium policy is known, which takes a copy of both
observations, the action and 7 bytes per step: 107 MB per million steps of hopper, 167 MB of halfcheetah.
"""

import argparse
import dataclasses
import time
from pathlib import Path

import jax
import numpy as np

from experiments.datasets._recording import cli, describe, whole
from jaxrl_gen import loops
from jaxrl_gen.algos import ppo
from jaxrl_gen.data import arrays, card, trajectory
from jaxrl_gen.data.trajectory import Dataset
from jaxrl_gen.envs import brax, playground, wrap
from jaxrl_gen.types import Env, Transition, strong

LANES, STEPS = 64, 64  # of a rollout
MEDIUM = 1 / 3  # of the way from the random policy's return to the expert's

# Learning rate, epochs and minibatches as brax's own for halfcheetah, and as is usual for a few million steps; brax has
# none for hopper, whose gamma is higher, as it must not fall. The scale of rewards keeps values of both around ten.
_BRAX = ppo.Config(
    lr=3e-4, lr_end=0.0, gamma=0.97, reward_scale=0.05, epochs=8, minibatches=32, entropy_coefficient=0.001,
    initial_std=0.7,
)  # fmt: skip
TUNED = {  # defaults of Logs, by task
    "brax/hopper": {"total_steps": 4e6, "algo": dataclasses.replace(_BRAX, gamma=0.99)},
    "brax/halfcheetah": {"algo": _BRAX},
}


@dataclasses.dataclass(frozen=True)
class Logs:
    """Four files in D4RL's layout, with their cards."""

    folder: Path = Path("datasets")
    seed: int = 0
    task: str = "CartpoleSwingup"  # of MuJoCo Playground, or, as brax/hopper, of brax
    backend: str = "spring"  # of brax
    total_steps: float = 2e6  # of PPO, whose last policy is the expert
    steps: int = 100_000  # of random, medium and expert each, at least, in whole episodes
    replay_steps: int = 200_000  # of medium-replay at most, the latest before the medium policy
    algo: ppo.Config = ppo.Config(lr=1e-3, lr_end=0.0, epochs=2, minibatches=8, entropy_coefficient=0.003)


def train(
    env: Env, cfg: ppo.Config, key: jax.Array, updates: int
) -> tuple[list[ppo.State], np.ndarray, list[Transition]]:
    """PPO with everything that it did on the way, and a line about it now and then.

    Returns:
      Before each update, and after the last, as much of the State as acts; the mean return of the episodes that ended
      in each rollout, NaN where none did; the rows of each rollout, [STEPS, LANES, ...]. All on the host.
    """
    loop = loops.on_policy(ppo.make, wrap.pooled(env, LANES), steps=STEPS, iterations=1)
    init, iteration = jax.jit(loop.init), jax.jit(loop.iteration)
    carry, begun, often = init(cfg, key), time.monotonic(), -(-updates // 20)
    states, returns, logged = [_acting(carry.state)], [], []
    for i in range(updates):
        carry, metrics, rows = iteration(cfg, carry, i)
        sums = metrics["episodes"]
        returns.append(float(sums["total"] / sums["count"]) if sums["count"] > 0 else np.nan)
        states.append(_acting(carry.state))
        logged.append(jax.device_get(rows._replace(extras={})))
        if (i + 1) % often == 0 or i + 1 == updates:
            steps, ended = (i + 1) * STEPS * LANES, [x for x in returns[-often:] if x == x]
            told = f"return {np.mean(ended):.4g}" if ended else "no episode ended"
            print(f"{steps / 1e6:.2f} M of {updates * STEPS * LANES / 1e6:.2f} M steps, {told}, "
                  f"{time.monotonic() - begun:.0f} s", flush=True)  # fmt: skip
    return states, np.array(returns), logged


def _acting(state: ppo.State) -> ppo.State:
    """What of a State acts, on the host."""
    params = {part: state.params[part] for part in ("actor", "head")}
    return jax.device_get(state._replace(params=params, opt_state=None))


def halfway(returns: np.ndarray, random: float, expert: float, over: int = 10) -> int:
    """The first update at which the mean return of the last rollouts is MEDIUM of the way from random to expert.

    Args:
      returns: of the rollouts, with NaN.
      random, expert: mean returns.
      over: rollouts averaged.
    Returns:
      Rollouts up to there; all of them where that was never reached.
    Raises:
      ValueError: if the expert is no better than a random policy.
    """
    if not expert > random:
        raise ValueError(
            f"the expert returns {expert:.4g}, and a random policy {random:.4g}: expected more of the expert; train it "
            "for longer (--total-steps), or otherwise (--algo)"
        )
    for i in range(over, len(returns) + 1):
        recent = returns[i - over : i]
        if not np.isnan(recent).all() and np.nanmean(recent) >= random + MEDIUM * (expert - random):
            return i
    return len(returns)


def replayed(logged: list[Transition], steps: int) -> Dataset:
    """The last `steps` steps of consecutive rollouts, lane by lane."""
    logged = logged[-max(1, steps // (STEPS * LANES)) :]
    return trajectory.from_rows(jax.tree.map(lambda *x: np.concatenate(x), *logged))


def record(env: Env, command: Logs) -> tuple[dict[str, Dataset], dict[str, float], int]:
    """Train, choose the policies, and let each play.

    Returns:
      Datasets by kind; the mean returns of the random policy and of the expert; steps of PPO up to the medium policy.
    Raises:
      ValueError: as `halfway`.
    """
    updates = max(1, round(command.total_steps / (LANES * STEPS)))
    cfg = strong(dataclasses.replace(command.algo, lr_updates=float(updates)))
    key_train, *keys = jax.random.split(jax.random.key(command.seed), 4)
    states, returns, logged = train(env, cfg, key_train, updates)

    def played(state, key):
        algo = ppo.make(cfg, env.spec)
        return whole(env, lambda obs, key: algo.act(state, obs, key)[0], key, command.steps)

    def at_random(obs, key):
        return jax.random.uniform(key, (len(obs), env.spec.action_size), minval=-1.0, maxval=1.0)

    made = {"random": whole(env, at_random, keys[0], command.steps), "expert": played(states[-1], keys[1])}
    ends = {f"{kind}/return": float(np.mean(trajectory.returns(data))) for kind, data in made.items()}
    middle = halfway(returns, *ends.values())
    made["medium"] = played(states[middle], keys[2])
    made["medium_replay"] = replayed(logged[:middle], command.replay_steps)
    return made, ends, middle * STEPS * LANES


def references(path: str | Path) -> tuple[float, float]:
    """What scores 0 and what 100 on the task of a file made here: `low` and `high` of `wrap.scored`."""
    scores = card.read(path)["scores"]
    return scores["random/return"], scores["expert/return"]


def main(command: Logs) -> None:
    """Train PPO, and write down what policies of its beginning, middle and end do."""
    suite, _, task = command.task.rpartition("/")
    env = brax.make(task, backend=command.backend) if suite == "brax" else playground.make(command.task)
    made, ends, steps = record(env, command)
    about = {
        "task": f"{task} of {f'brax, {command.backend}' if suite else 'MuJoCo Playground'}",
        "medium after steps": steps, "normalised": "100 (return - random) / (expert - random)",
    }  # fmt: skip
    for kind, data in made.items():
        path = command.folder / f"{task.lower()}_{kind}.npz"
        arrays.write_d4rl(path, data)
        describe(path, data, command.seed, ends, **about)


def defaults(arguments: list[str] | None = None) -> Logs:
    """The defaults for the task that the command line names."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--task", default=Logs.task)
    task = parser.parse_known_args(arguments)[0].task
    return Logs(task=task, **TUNED.get(task, {}))


if __name__ == "__main__":
    cli(main, Logs, defaults())
