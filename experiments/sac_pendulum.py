"""SAC swings up a pendulum (gymnax's Pendulum-v1), one update per step, five seeds in one program.

Run:      python -m experiments.sac_pendulum
Hardware: AMD EPYC, 2 cores, jax 0.10.2
Minutes:  1.3
Expect:   mean return of 64 episodes: IQM -142.1, 95 % interval -152.3 to -134.3, over 5 seeds
"""

import dataclasses

from jaxrl_gen import launch, loops
from jaxrl_gen.algos import sac
from jaxrl_gen.envs import gymnax, wrap
from jaxrl_gen.types import static


@dataclasses.dataclass(frozen=True)
class Pendulum(launch.Experiment):
    """SAC on gymnax's Pendulum-v1."""

    name: str = launch.option("sac_pendulum")
    seeds: int = 5
    total_steps: float = launch.option(2e4, low=1)
    batch_size: int = static(256, low=1)
    algo: sac.Config = sac.Config(
        lr=3e-3, tau=0.02, actor_hidden=(64, 64), critic_hidden=(64, 64), normalize_obs=True
    )  # fmt: skip


def main(exp: Pendulum):
    """Train SAC on gymnax's Pendulum-v1, and leave a report."""
    env = gymnax.make("Pendulum-v1")
    loop = loops.off_policy(
        sac.make, wrap.fresh(env, 1), steps=1, updates=1, batch_size=exp.batch_size, capacity=20_000, warmup=500,
        iterations=1000,
    )  # fmt: skip
    return launch.launch(exp, env=env, loop=loop, cfg=exp.algo)


if __name__ == "__main__":
    launch.cli(main, Pendulum)
