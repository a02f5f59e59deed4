"""PPO with a small convolutional network learns MinAtar Breakout from pixels (gymnax).

Run:      python -m experiments.ppo_minatar
Hardware: AMD EPYC, 2 cores, jax 0.10.2
Minutes:  10.0
Expect:   mean return of 64 episodes: IQM 6.875, 95 % interval 6.5 to 7, over 5 seeds
"""

import dataclasses
from functools import partial

from jaxrl_gen import launch, loops, nets
from jaxrl_gen.algos import ppo
from jaxrl_gen.envs import gymnax, wrap
from jaxrl_gen.types import static


@dataclasses.dataclass(frozen=True)
class MinAtar(launch.Experiment):
    """PPO on a game of MinAtar; every reset is simulated afresh, because it is cheap."""

    name: str = launch.option("ppo_minatar")
    game: str = static("Breakout-MinAtar")
    seeds: int = 5
    total_steps: float = launch.option(1e6, low=1)
    lanes: int = static(64, low=1)
    steps: int = static(64, low=1)  # per lane and update
    algo: ppo.Config = ppo.Config(
        lr=1e-3, lr_end=0.0, entropy_coefficient=0.01, minibatches=8, epochs=3, normalize_obs=False
    )


def main(exp: MinAtar):
    """Train PPO on a MinAtar game, and leave a report."""
    env = gymnax.make(exp.game)
    convolutions = dict(channels=(16,), kernels=(3,), strides=(1,))
    make = partial(
        ppo.make,
        actor=nets.conv(sizes=(64, env.spec.action_size), last_scale=0.01, **convolutions),
        critic=nets.conv(sizes=(64, 1), **convolutions),
    )
    loop = loops.on_policy(make, wrap.fresh(env, exp.lanes), steps=exp.steps, iterations=20)
    cfg = dataclasses.replace(exp.algo, lr_updates=exp.total_steps / (exp.lanes * exp.steps))
    return launch.launch(exp, env=env, loop=loop, cfg=cfg)


if __name__ == "__main__":
    launch.cli(main, MinAtar)
