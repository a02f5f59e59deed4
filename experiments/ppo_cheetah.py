"""PPO makes a planar cheetah run in MJX (MuJoCo Playground's CheetahRun).

Run:      python -m experiments.ppo_cheetah
Hardware: AMD EPYC, 2 cores, jax 0.10.2
Minutes:  22.7
Expect:   mean return of 64 episodes: IQM 868.7, 95 % interval 838.5 to 880.7, over 5 seeds
"""

import dataclasses

from jaxrl_gen import launch, loops
from jaxrl_gen.algos import ppo
from jaxrl_gen.envs import playground, wrap
from jaxrl_gen.types import static


@dataclasses.dataclass(frozen=True)
class Cheetah(launch.Experiment):
    """PPO on CheetahRun of MuJoCo Playground."""

    name: str = launch.option("ppo_cheetah")
    seeds: int = 5
    total_steps: float = launch.option(8e6, low=1)
    lanes: int = static(128, low=1)
    together: int | None = static(8)  # lanes of a member stepped at a time; on an accelerator: none, which is all
    steps: int = static(64, low=1)  # per lane and update
    algo: ppo.Config = ppo.Config(
        lr=1e-3, lr_end=0.0, epochs=2, minibatches=8, actor_hidden=(128, 128), critic_hidden=(128, 128)
    )


def main(exp: Cheetah):
    """Train PPO on MuJoCo Playground's CheetahRun, and leave a report."""
    env = playground.make("CheetahRun")
    lanes = wrap.pooled(env, exp.lanes, together=exp.together)
    loop = loops.on_policy(ppo.make, lanes, steps=exp.steps, iterations=10)
    cfg = dataclasses.replace(exp.algo, lr_updates=exp.total_steps / (exp.lanes * exp.steps))
    return launch.launch(exp, env=env, loop=loop, cfg=cfg)


if __name__ == "__main__":
    launch.cli(main, Cheetah)
