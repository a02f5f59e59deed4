"""SAC swings up a cartpole in MJX, with a tenth of the steps that PPO takes (experiments/ppo_swingup.py).

Run:      python -m experiments.sac_swingup
Hardware: not measured
Minutes:  not measured
Expect:   not measured
"""

import dataclasses

from jaxrl_gen import launch, loops
from jaxrl_gen.algos import sac
from jaxrl_gen.envs import playground, wrap
from jaxrl_gen.types import static


@dataclasses.dataclass(frozen=True)
class Swingup(launch.Experiment):
    """SAC on CartpoleSwingup of MuJoCo Playground."""

    name: str = launch.option("sac_swingup")
    seeds: int = 5
    total_steps: float = launch.option(2e5, low=1)
    lanes: int = static(16, low=1)
    updates: int = static(8, low=1)  # per step of all lanes
    batch_size: int = static(256, low=1)
    algo: sac.Config = sac.Config(lr=1e-3, tau=0.01, actor_hidden=(64, 64), critic_hidden=(64, 64), normalize_obs=True)


def main(exp: Swingup):
    """Train SAC on MuJoCo Playground's CartpoleSwingup, and leave a report."""
    env = playground.make("CartpoleSwingup")
    loop = loops.off_policy(
        sac.make, wrap.pooled(env, exp.lanes), steps=1, updates=exp.updates, batch_size=exp.batch_size,
        capacity=200_000, warmup=2000, iterations=625,
    )  # fmt: skip
    return launch.launch(exp, env=env, loop=loop, cfg=exp.algo)


if __name__ == "__main__":
    launch.cli(main, Swingup)
