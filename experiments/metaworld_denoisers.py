"""Policies that clone scripted experts of Meta-World by denoising; and the same weights with fewer steps.

Run:      python -m experiments.metaworld_denoisers
Hardware: AMD EPYC, 2 cores, jax 0.10.2
Minutes:  4.6
Expect:   success rate in drawer-open-v3 of 50 episodes: IQM 1, 95 % interval 1 to 1, over 5 seeds
Method:   diffusion_policy; flow_policy, bc: --method NAME

Success in a task with an object and a goal in another place each time, which no demonstration had. The record says how
often episodes of all seeds succeed, with Jeffreys' interval (`ones`), what a decision costs (milliseconds of one lane,
evaluations of the network), and the same for other samplers of the weights (`also`). Demonstrations that are missing
are made first. Compare with cloning without a denoiser, `--method bc`; other tasks are `--task pick-place-v3` and
`--task button-press-topdown-v3`.

What came out: a drawer is opened and a button is pressed by all, but for one seed of five with DDIM's ten steps. To
pick and place, single steps that are cloned and chunks of the flow succeed almost always, two steps of the flow as
often as ten. Policies act as they are exported, each plan from the same noise. With that one noise diffusion fails at
half of the picking, and with DDIM's ten steps at most of it; with fresh noise (`--eval-sample`) it did so far more
rarely.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Literal

import jax
import jax.numpy as jnp

from experiments.datasets import metaworld_demos
from jaxrl_gen import launch, loops, nets, record, samplers
from jaxrl_gen.algos import bc, diffusion_policy, flow_policy
from jaxrl_gen.data import arrays, sampling, statistics
from jaxrl_gen.nets.denoiser import waves
from jaxrl_gen.types import Env, Spec, static

# Both denoisers are perceptrons: a small U-Net's update took far longer on two cores (BUILD_NOTES.md).
# What a U-Net would score here was not measured.
SMALL = dict(lr=1e-3, warmup=100.0, lr_updates=6000.0, average_least=1e-2, normalize_obs=False)


@dataclasses.dataclass(frozen=True)
class Metaworld(launch.Experiment):
    """Cloning of demonstrations, with a denoiser or without."""

    name: str = launch.option("metaworld_denoisers")
    task: str = static("drawer-open-v3")
    method: Literal["diffusion_policy", "flow_policy", "bc"] = static("diffusion_policy")
    seeds: int = 5
    total_steps: float = launch.option(6e3, low=1)  # updates
    eval_episodes: int = launch.option(50, low=1)
    data: Path = launch.option(Path("datasets"))
    demos: int = static(100, low=1)  # made, where there are none
    batch_size: int = static(128, low=1)
    hidden: tuple[int, ...] = static((256, 256, 256))  # of the denoisers
    diffusion: diffusion_policy.Config = diffusion_policy.Config(**SMALL)
    flow: flow_policy.Config = flow_policy.Config(**SMALL)
    cloning: bc.Config = bc.Config(lr=1e-3, normalize_obs=False)


def perceptron(hidden: tuple[int, ...], cfg: diffusion_policy.Config, spec: Spec) -> nets.Net:
    """A denoiser of chunks [H, A] that is a perceptron over the chunk, waves of the time, and the observations."""
    body = nets.mlp((*hidden, cfg.horizon * spec.action_size), jax.nn.gelu)

    def joined(noisy):
        parts = [noisy.x, waves(noisy.t, 32), *jax.tree.leaves(noisy.condition)]
        return jnp.concatenate([part.reshape(*noisy.t.shape, -1) for part in parts], axis=-1)

    def apply(params, noisy):
        return body.apply(params, joined(noisy)).reshape(noisy.x.shape)

    return nets.Net(lambda key, example: body.init(key, jax.eval_shape(joined, example)), apply)


def denoising(algo, hidden: tuple[int, ...], steps: int, **parts) -> Callable:
    """`make` of a policy that denoises in so many steps."""

    def make(cfg, spec):
        return algo.make(dataclasses.replace(cfg, steps=steps), spec, net=perceptron(hidden, cfg, spec), **parts)

    return make


def ways(exp: Metaworld) -> tuple[object, dict[str, tuple[Callable, int]]]:
    """The config of a method; and, by names, the ways to act on its weights and how often each asks the network."""
    if exp.method == "bc":
        return exp.cloning, {"bc": (bc.make, 1)}
    if exp.method == "flow_policy":
        steps = {f"{n} steps of Euler": (denoising(flow_policy, exp.hidden, n), n) for n in (exp.flow.steps, 2)}
        return exp.flow, steps
    ddim = partial(denoising, diffusion_policy, exp.hidden, sampler=samplers.ddim())
    full = exp.diffusion.steps
    whole = {f"{full} steps of DDPM": (denoising(diffusion_policy, exp.hidden, full), full)}
    return exp.diffusion, whole | {f"{n} steps of DDIM": (ddim(steps=n), n) for n in (10,)}


def main(exp: Metaworld):
    """Clone demonstrations, and judge in the simulator what came of it."""
    play, scene = metaworld_demos.judge(exp.task)
    path = exp.data / metaworld_demos.file(exp.task)
    if not path.exists():
        metaworld_demos.main(metaworld_demos.Demos(folder=exp.data, tasks=(exp.task,), episodes=exp.demos))
    data = arrays.read_d4rl(path, metaworld_demos.SPEC)
    cfg, found = ways(exp)
    made = {name: statistics.scaled(make, statistics.of(data)) for name, (make, _) in found.items()}
    first, *others = made
    if exp.method == "bc":
        sample = sampling.transitions(exp.batch_size)
    else:
        sample = sampling.windows(exp.batch_size, cfg.history, cfg.horizon, executed=cfg.execute)
    env = Env(None, None, metaworld_demos.SPEC, scene=scene)
    loop = loops.offline(made[first], env, sample, (data,), updates=200)
    folder = launch.launch(
        exp, env=env, loop=loop, cfg=cfg, play=play, what=f"success rate in {exp.task}",
        also={name: made[name] for name in others},
    )  # fmt: skip
    costs = {"evaluations": {name: count for name, (_, count) in found.items()}}
    record.write_json(folder / "result.json", record.read_json(folder / "result.json") | costs)
    return folder


if __name__ == "__main__":
    launch.cli(main, Metaworld)
