"""Q-learning of every kind plays MinAtar Breakout from pixels (gymnax): DQN by readout, and PQN without a replay.

Run:      python -m experiments.minatar_values
Method:   pqn; dqn, dqn on classified, dqn on categorical, dqn on quantiles: --method NAME
Hardware: not measured
Minutes:  not measured
Expect:   not measured

PQN takes many lanes and no replay; the others learn once from every four steps, and differ in how an action's outputs
stand for its value. Values lie between 0 and 10 here, as a brick pays 1.
"""

import dataclasses
from functools import partial
from typing import Literal

import jax

from jaxrl_gen import launch, loops, nets
from jaxrl_gen.algos import dqn, pqn
from jaxrl_gen.envs import gymnax, wrap
from jaxrl_gen.losses import distributional, value
from jaxrl_gen.types import static

READOUTS = {
    "dqn": value.regression(),
    "classified": value.classified(-1.0, 12.0, 51),
    "categorical": distributional.categorical(-1.0, 12.0, 51),
    "quantiles": distributional.quantiles(25),
}


@dataclasses.dataclass(frozen=True)
class MinAtar(launch.Experiment):
    """Q-learning on a game of MinAtar."""

    name: str = launch.option("minatar_values")
    method: Literal["pqn", *READOUTS] = static("pqn")
    game: str = static("Breakout-MinAtar")
    seeds: int = 5
    total_steps: float = launch.option(1e6, low=1)
    parallel: pqn.Config = pqn.Config(lr=1e-3, epsilon_updates=60.0)
    replayed: dqn.Config = dqn.Config(lr=3e-4, tau=0.005, epsilon_updates=2e4)


def main(exp: MinAtar):
    """Learn to play by values, and leave a report."""
    env = gymnax.make(exp.game)
    network = partial(nets.conv, channels=(16,), kernels=(3,), strides=(1,))
    if exp.method == "pqn":
        net = network(sizes=(64, env.spec.action_size), activation=nets.normalized(jax.nn.relu))
        make = partial(pqn.make, net=net)
        loop = loops.on_policy(make, wrap.fresh(env, 64), steps=64, iterations=20)
        return launch.launch(exp, env=env, loop=loop, cfg=exp.parallel)
    readout = READOUTS[exp.method]
    make = partial(dqn.make, readout=readout, net=network(sizes=(64, env.spec.action_size * readout.size)))
    loop = loops.off_policy(
        make, wrap.fresh(env, 8), steps=1, updates=2, batch_size=64, capacity=100_000, warmup=5000, iterations=2500
    )
    return launch.launch(exp, env=env, loop=loop, cfg=exp.replayed)


if __name__ == "__main__":
    launch.cli(main, MinAtar)
