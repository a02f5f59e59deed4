"""Every offline method on logs of this toolkit's own PPO on brax's hopper and half-cheetah, after D4RL's protocol.

Run:      python -m experiments.offline_brax
Method:   td3_bc; bc, iql, rebrac, prdc, a2pr, beer, cql, cal_ql, edac, sac_n, odice, arsq, arsq_factorised, mopo, ravl,
          lipmbrl, fql, flow_policy: --method NAME
Table:    offline, by task, data
Hardware: AMD EPYC, 2 cores, jax 0.10.2
Minutes:  1.8
Expect:   mean normalised score of 20 episodes: IQM 33.65, 95 % interval 33.34 to 33.92, over 5 seeds

The logs have to be there: `python -m experiments.datasets.own_logs --task brax/hopper` writes those of hopper. A score
is normalised: a policy at random has 0 and the expert 100, whose returns are read from the card of the logs. As these
are our own, scores compare with each other, and with no published ones.

All methods see observations in units of the data's spread; what else they share, and where they differ in size, is in
`_offline.py`, and the rest is the default of each: nothing was chosen by scores. PRDC looks for the nearest among 8,192
rows. Methods that imagine know when hopper falls.
"""

import dataclasses
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp

from experiments import _offline
from experiments.datasets import own_logs
from jaxrl_gen import launch
from jaxrl_gen.algos import dynamics
from jaxrl_gen.data import arrays, card
from jaxrl_gen.envs import brax, wrap
from jaxrl_gen.types import static


@dataclasses.dataclass(frozen=True)
class OfflineBrax(launch.Experiment):
    """One method on logs of hopper or half-cheetah."""

    name: str = launch.option("offline_brax")
    method: Literal[*_offline.METHODS] = static("td3_bc")
    task: Literal["hopper", "halfcheetah"] = static("hopper")
    data: Literal["medium_replay", "medium", "expert", "random"] = static("medium_replay")
    folder: Path = launch.option(Path("datasets"))
    backend: str = static("spring")  # of brax
    seeds: int = 5
    total_steps: float = launch.option(5e3, low=1)  # updates
    eval_episodes: int = launch.option(20, low=0)
    batch_size: int = static(256, low=1)
    horizon: int = static(1, low=1)  # n of n-step targets


def recipe(exp: OfflineBrax) -> _offline.Recipe:
    """The method, as it is by default."""
    return _offline.recipes(gamma=0.99, updates=exp.total_steps)[exp.method]


def fallen(obs: jax.Array, action: jax.Array, next_obs: jax.Array) -> jax.Array:
    """Whether hopper is too low, too far aslant, or beyond all bounds after a step, [B]; as in brax, so in Gym."""
    height, angle = next_obs[:, 0], next_obs[:, 1]
    return (height <= 0.7) | (jnp.abs(angle) >= 0.2) | jnp.any(jnp.abs(next_obs[:, 1:]) >= 100.0, -1)


def main(exp: OfflineBrax):
    """Learn from logs, and evaluate in brax."""
    path = exp.folder / f"{exp.task}_{exp.data}.npz"
    writes = f"python -m experiments.datasets.own_logs --task brax/{exp.task} --folder {exp.folder}"
    if not path.exists():
        raise FileNotFoundError(f"{path}: there is no such file; this writes it: {writes}")
    told, task = card.read(path)["task"], f"{exp.task} of brax, {exp.backend}"
    if told != task:
        raise ValueError(f"{path} is of {told}; expected {task}; this writes it: {writes} --backend {exp.backend}")
    env, chosen = brax.make(exp.task, backend=exp.backend), recipe(exp)
    loop = _offline.loop(
        chosen, env, arrays.read_d4rl(path, env.spec), batch_size=exp.batch_size, horizon=exp.horizon, scaled=True,
        terminate=fallen if exp.task == "hopper" else dynamics.never,
    )  # fmt: skip
    env = wrap.scored(env, *own_logs.references(path))
    listeners = _offline.listeners(chosen, loop)
    return launch.launch(exp, env=env, loop=loop, cfg=chosen.cfg, listeners=listeners, what="mean normalised score")


if __name__ == "__main__":
    launch.cli(main, OfflineBrax)
