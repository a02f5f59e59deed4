"""Group-relative PPO on a robot of our own in MJX: eight rollouts from each start state, and no critic.

With `--critic --name group_control_critic` plain PPO learns with a critic from as many steps in as many lanes, by as
many gradient steps: one for every 500 steps of the simulator (512 with a critic) in each of four epochs.

Run:      python -m experiments.group_control
Method:   group_ppo; ppo: --critic
Hardware: AMD EPYC, 2 cores, jax 0.10.2
Minutes:  3.8
Expect:   mean return of 64 episodes: IQM 22.3, 95 % interval 12.03 to 52.96, over 5 seeds

What else differs beside the baseline: a group learns from whole episodes, eight from each of eight starts, and not from
what its lanes simulate after a fall; PPO from pieces of 64 steps of 64 lanes that began apart, each from starts of its
own. So a group's policy is renewed 32 times, by 128 gradient steps each, and PPO's 130 times by 32.
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
    algo: ppo.Config = ppo.Config(  # minibatches: of whole episodes, and of shorter rollouts fewer
        lr=1e-3, lr_end=0.0, entropy_coefficient=0.003, minibatches=32,
    )  # fmt: skip


def main(exp: Control):
    """Train with a group as the baseline, or with a critic, on the courier."""
    env, lanes = courier.make(), exp.starts * exp.group
    if exp.critic:
        loop = loops.on_policy(ppo.make, wrap.pooled(env, lanes), steps=64, iterations=10)
        per_update = 64 * lanes
    else:
        loop = loops.group(group_ppo.make, env, starts=exp.starts, group=exp.group, iterations=4)
        per_update = env.spec.time_limit * lanes
    minibatches = max(1, exp.algo.minibatches * per_update // (env.spec.time_limit * lanes))  # as many rows in each
    cfg = dataclasses.replace(exp.algo, lr_updates=exp.total_steps / per_update, minibatches=minibatches)
    return launch.launch(exp, env=env, loop=loop, cfg=cfg)


if __name__ == "__main__":
    launch.cli(main, Control)
