"""Group-relative PPO on a robot of our own in MJX: eight rollouts from each start state, and no critic.

With `--critic --name group_control_critic` plain PPO learns from as many steps in as many lanes, with a critic, from
rollouts of 64 steps.

Run:      python -m experiments.group_control
Method:   group_ppo; ppo: --critic
Hardware: AMD EPYC, 2 cores, jax 0.10.2
Minutes:  1.8
Expect:   mean return of 64 episodes: IQM 90.16, 95 % interval 54.09 to 109.6, over 5 seeds
"""

import dataclasses

from jaxrl_gen import launch, loops
from jaxrl_gen.algos import group_ppo, ppo
from jaxrl_gen.envs import wrap
from jaxrl_gen.envs.tasks import courier
from jaxrl_gen.types import static


@dataclasses.dataclass(frozen=True)
class Control(launch.Experiment):
    """PPO with a group as its baseline, or with a critic, on the courier."""

    name: str = launch.option("group_control")
    critic: bool = static(False)
    seeds: int = 5
    total_steps: float = launch.option(5e5, low=1)
    video: bool = launch.option(False)
    starts: int = static(8, low=1)  # start states per update
    group: int = static(8, low=1)  # rollouts from each
    algo: ppo.Config = ppo.Config(lr=1e-3, lr_end=0.0, entropy_coefficient=0.003, minibatches=8)


def main(exp: Control):
    """Train with a group as the baseline, or with a critic, on the courier."""
    env, lanes = courier.make(), exp.starts * exp.group
    if exp.critic:
        loop = loops.on_policy(ppo.make, wrap.pooled(env, lanes), steps=64, iterations=10)
        per_update = 64 * lanes
    else:
        loop = loops.group(group_ppo.make, env, starts=exp.starts, group=exp.group, iterations=4)
        per_update = env.spec.time_limit * lanes
    cfg = dataclasses.replace(exp.algo, lr_updates=exp.total_steps / per_update)
    return launch.launch(exp, env=env, loop=loop, cfg=cfg)


if __name__ == "__main__":
    launch.cli(main, Control)
