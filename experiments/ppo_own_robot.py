"""PPO on a robot of our own (an MJCF file and five functions), with masses and friction drawn anew for each episode.

It is always judged on parcels and floors of the whole range, beyond those it met. With `--no-randomize --name
ppo_own_robot_fixed` it trains on the one parcel and floor of the MJCF, and shows what that costs.

Run:      python -m experiments.ppo_own_robot
Hardware: AMD EPYC, 2 cores, jax 0.10.2
Minutes:  4.5
Expect:   mean return of 256 episodes: IQM 174.9, 95 % interval 173.9 to 177.8, over 5 seeds
"""

import dataclasses

from jaxrl_gen import launch, loops
from jaxrl_gen.algos import ppo
from jaxrl_gen.envs import wrap
from jaxrl_gen.envs.tasks import courier
from jaxrl_gen.types import static


@dataclasses.dataclass(frozen=True)
class OwnRobot(launch.Experiment):
    """PPO on the courier, a two-wheeled robot that balances a parcel."""

    name: str = launch.option("ppo_own_robot")
    randomize: bool = static(True)
    seeds: int = 5
    total_steps: float = launch.option(2e6, low=1)
    eval_episodes: int = launch.option(256, low=0)
    lanes: int = static(64, low=1)
    steps: int = static(64, low=1)  # per lane and update
    algo: ppo.Config = ppo.Config(lr=1e-3, lr_end=0.0, entropy_coefficient=0.003, minibatches=8)


def main(exp: OwnRobot):
    """Train PPO on a robot of our own, with or without randomised masses and friction, and judge it on all of them."""
    if exp.randomize:  # a part of the range; the ends stay unseen
        env = courier.make(masses=(0.6, 2.4), frictions=(0.25, 1.0))
    else:
        env = courier.make(masses=(1.0, 1.0), frictions=(0.9, 0.9))
    loop = loops.on_policy(ppo.make, wrap.pooled(env, exp.lanes), steps=exp.steps, iterations=20)
    cfg = dataclasses.replace(exp.algo, lr_updates=exp.total_steps / (exp.lanes * exp.steps))
    return launch.launch(exp, env=courier.make(), loop=loop, cfg=cfg)


if __name__ == "__main__":
    launch.cli(main, OwnRobot)
