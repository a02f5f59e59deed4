"""SAC with critics that classify (HL-Gauss) or, with --no-classify, regress, of any --width, on gymnax's Pendulum-v1.

Run:      python -m experiments.sac_hl_gauss
Method:   sac on classified; sac: --no-classify
Hardware: not measured
Minutes:  not measured
Expect:   not measured
"""

import dataclasses
from functools import partial

from jaxrl_gen import launch, loops
from jaxrl_gen.algos import sac
from jaxrl_gen.envs import gymnax, wrap
from jaxrl_gen.losses import value
from jaxrl_gen.types import static


@dataclasses.dataclass(frozen=True)
class HLGauss(launch.Experiment):
    """SAC on Pendulum-v1 with critics of one kind and one width; all else is the same."""

    name: str = launch.option("sac_hl_gauss")
    seeds: int = 5
    total_steps: float = launch.option(1e4, low=1)
    classify: bool = static(True)
    width: int = static(64, low=1)  # of the critics' two hidden layers
    low: float = -800.0  # of the classes: a random policy pays about 6 a step, which at gamma 0.99 is 600
    high: float = 50.0
    bins: int = static(101, low=2)
    algo: sac.Config = sac.Config(lr=3e-3, tau=0.02, actor_hidden=(64, 64), normalize_obs=True)


def main(exp: HLGauss):
    """Train SAC with critics that classify or regress, and leave a report."""
    env = gymnax.make("Pendulum-v1")
    readout = value.classified(exp.low, exp.high, exp.bins) if exp.classify else value.regression()
    loop = loops.off_policy(
        partial(sac.make, readout=readout), wrap.fresh(env, 1), steps=1, updates=1, batch_size=256, capacity=20_000,
        warmup=500, iterations=500,
    )  # fmt: skip
    cfg = dataclasses.replace(exp.algo, critic_hidden=(exp.width, exp.width))
    return launch.launch(exp, env=env, loop=loop, cfg=cfg)


if __name__ == "__main__":
    launch.cli(main, HLGauss)
