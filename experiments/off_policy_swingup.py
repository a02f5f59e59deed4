"""SAC, TD3, BEER and massively parallel recipes swing up a cartpole in MJX (PPO: experiments/ppo_swingup.py).

Run:      python -m experiments.off_policy_swingup
Method:   sac; td3, beer: --method NAME; td3 on categorical: --method fast_td3; sac on categorical: --method fast_sac
Hardware: AMD EPYC, 2 cores, jax 0.10.2
Minutes:  10.5
Expect:   mean return of 64 episodes: IQM 804, 95 % interval 754.2 to 849.8, over 5 seeds

The plain ones take 200,000 steps, a tenth of what PPO takes, and update eight times (TD3: four, of two steps of the
critics each) after every sixteen of them. The fast ones (FastTD3 and FastSAC) have many lanes that explore by noises of
many sizes, large batches, critics that learn distributions, three-step targets and weight decay: five times as many
steps, and one update, of two steps of the critics, after every sixty-four. The metric `critic/rank` is the effective
rank of a critic's last hidden layer, which BEER is about.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, Literal, NamedTuple

from experiments import _diagnostics
from jaxrl_gen import launch, loops
from jaxrl_gen.algos import beer, sac, td3
from jaxrl_gen.envs import playground, wrap
from jaxrl_gen.losses import distributional, value
from jaxrl_gen.types import static

WIDTHS = dict(actor_hidden=(64, 64), critic_hidden=(64, 64), normalize_obs=True)
FAST = WIDTHS | dict(lr=1e-3, tau=0.1, weight_decay=0.1, critic_updates=2)
RETURNS = distributional.categorical(0.0, 110.0, 51)  # a reward of at most 1 a step is worth 100 at gamma 0.99


class Recipe(NamedTuple):
    """A method, its Config, and how it collects and learns."""

    make: Callable
    cfg: Any
    lanes: int
    updates: int  # per step of all lanes
    batch: int
    horizon: int = 1  # n of n-step targets
    steps: float = 2e5  # of each member, where none are asked for


METHODS = {
    "sac": Recipe(sac.make, sac.Config(lr=1e-3, tau=0.01, **WIDTHS), 16, 8, 256),
    "td3": Recipe(td3.make, td3.Config(lr=1e-3, tau=0.01, **WIDTHS), 16, 4, 512),
    "beer": Recipe(beer.make, beer.Config(lr=1e-3, tau=0.01, **WIDTHS), 16, 8, 256),
    "fast_td3": Recipe(
        partial(td3.make, readout=RETURNS, actor_value=value.minimum),
        td3.Config(**FAST, slow_actor=False, smoothing=0.001, exploration_low=0.001, exploration_high=0.4),
        64, 1, 2048, 3, 1e6,
    ),
    "fast_sac": Recipe(
        partial(sac.make, readout=RETURNS, target_value=value.own, actor_value=value.mean),
        sac.Config(**FAST, initial_temperature=1e-3, target_entropy=0.0, log_std_low=-5.0, log_std_high=0.0),
        64, 1, 2048, 3, 1e6,
    ),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Swingup(launch.Experiment):
    """Off-policy learning on CartpoleSwingup of MuJoCo Playground."""

    name: str = launch.option("off_policy_swingup")
    method: Literal[*METHODS] = static("sac")
    seeds: int = 5
    total_steps: float | None = launch.option(None, low=1)  # steps; None: 2e5, and 1e6 of a fast method


def main(exp: Swingup):
    """Train on MuJoCo Playground's CartpoleSwingup, and leave a report."""
    env, recipe = playground.make("CartpoleSwingup"), METHODS[exp.method]
    if exp.total_steps is None:
        exp = dataclasses.replace(exp, total_steps=recipe.steps)
    loop = loops.off_policy(
        recipe.make, wrap.pooled(env, recipe.lanes), steps=1, updates=recipe.updates, batch_size=recipe.batch,
        capacity=200_000, warmup=2000, iterations=10_000 // recipe.lanes, horizon=recipe.horizon,
    )  # fmt: skip
    rank = _diagnostics.listener(_diagnostics.rank(recipe.cfg.normalize_obs))
    return launch.launch(exp, env=env, loop=loop, cfg=recipe.cfg, listeners=[rank])


if __name__ == "__main__":
    launch.cli(main, Swingup)
