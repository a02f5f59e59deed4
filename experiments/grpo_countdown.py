"""Countdown with three numbers: a small decoder, first taught by examples, then by its own tries and a verifier.

`--method` replaces parts of GRPO, and those numbers of `algo` that the method's own Config says otherwise, where flags
leave them; `--name grpo_countdown_METHOD` keeps the results apart. With `--method cloned` nothing is learned after the
examples, which shows what the tries add. Problems of the evaluation were held out of both stages.

Run:      python -m experiments.grpo_countdown
Method:   grpo; dr_grpo, dapo, rloo, reinforce_plus_plus, gspo, cispo, clip_cov, kl_cov: --method NAME;
          token_cloning: --method cloned
Hardware: AMD EPYC, 2 cores, jax 0.10.2
Minutes:  6.6
Expect:   mean return of 512 episodes: IQM 0.2969, 95 % interval 0.2852 to 0.3177, over 5 seeds
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp

from jaxrl_gen import launch, loops
from jaxrl_gen.algos import grpo, token_cloning
from jaxrl_gen.envs.tasks import countdown, tokens
from jaxrl_gen.types import Transition, static

METHODS: dict[str, tuple[Callable, grpo.Config]] = {
    "grpo": (grpo.make, grpo.Config()),
    "dr_grpo": (grpo.dr_grpo, grpo.Config()),
    "dapo": (grpo.dapo, grpo.DAPO),
    "rloo": (grpo.rloo, grpo.RLOO),
    "reinforce_plus_plus": (grpo.reinforce_plus_plus, grpo.REINFORCE_PLUS_PLUS),
    "gspo": (grpo.gspo, grpo.GSPO),
    "cispo": (grpo.cispo, grpo.CISPO),
    "clip_cov": (grpo.clip_cov, grpo.Config()),
    "kl_cov": (grpo.kl_cov, grpo.Config()),
    "cloned": (partial(grpo.make, surrogate=lambda log_ratio, *_, **walls: jnp.zeros_like(log_ratio)), grpo.Config()),
}


@dataclasses.dataclass(frozen=True)
class Countdown(launch.Experiment):
    """GRPO, and methods that differ from it in a part, on Countdown."""

    name: str = launch.option("grpo_countdown")
    method: str = static("grpo")  # one of METHODS
    seeds: int = 5
    total_steps: float = launch.option(128_000, low=1)  # completions
    eval_episodes: int = launch.option(512, low=0)
    eval_sample: bool = launch.option(True)  # one try at temperature 1, which is what is learned
    export: bool = launch.option(False)
    video: bool = launch.option(False)
    largest: int = static(20, low=1)  # of the three numbers: with 10 there are too few games not to learn them by heart
    target: int = static(50, low=1)  # the largest
    examples: int = static(800, low=0)  # updates of cloning, 128 examples each
    starts: int = static(16, low=1)  # prompts per update
    group: int = static(8, low=1)  # completions of each
    algo: grpo.Config = grpo.Config(  # the vocabulary is that of the numbers: 57 words for the defaults
        lr=3e-5, epochs=2, minibatches=2, vocab=57, width=64, layers=2, hidden=128
    )  # fmt: skip


def settings(exp: Countdown) -> grpo.Config:
    """The Config of a run: flags first, then what the method's own says otherwise than GRPO's, and the task's words.

    A flag that repeats a default cannot be told from none; so what is not left to flags is printed.
    """
    usual, default, own = grpo.Config(), Countdown().algo, METHODS[exp.method][1]
    special = {name: x for name, x in vars(own).items() if x != getattr(usual, name)}
    special["vocab"] = len(countdown.alphabet(max(exp.largest, exp.target)).words)
    taken = {name: x for name, x in special.items() if getattr(exp.algo, name) == getattr(default, name) != x}
    if taken:
        print(f"{exp.method}: {', '.join(f'algo.{name} is {x:g}' for name, x in taken.items())}")
    return dataclasses.replace(exp.algo, **taken)


def taught(loop: loops.Loop, problems: tokens.Problems, updates: int) -> loops.Loop:
    """The loop from a policy that has cloned `updates` batches of solutions, and has itself as reference."""

    def init(cfg, key):
        carry = loop.init(cfg, key)
        keys = jax.random.split(carry.key, 1 + updates)
        algo = token_cloning.make(dataclasses.replace(cfg, lr=1e-3), loop.env.spec)

        def clone(state, key):
            chosen = jax.random.randint(key, (1, 128), 0, len(problems.tokens))
            rows = jax.tree.map(lambda x: jnp.asarray(x)[chosen], problems)
            obs, yes = {"tokens": rows.tokens, "valid": rows.valid}, jnp.ones(chosen.shape, bool)
            batch = Transition(obs, rows.solution, yes.astype(jnp.float32), obs, yes, ~yes, yes)
            return algo.update(state, batch, None)[0], None

        state, _ = jax.lax.scan(clone, carry.state, keys[1:])
        return carry._replace(state=token_cloning.reference(cfg, state), key=keys[0])

    return loop._replace(init=init)


def main(exp: Countdown):
    """Clone solutions of Countdown, then learn from own tries; judge on problems held out."""
    if exp.method not in METHODS:
        raise ValueError(f"method is {exp.method!r}; allowed: {', '.join(METHODS)}")
    learn, held_out = tokens.split(countdown.problems(3, exp.largest, exp.target))
    env, cfg, (make, _) = countdown.make(learn), settings(exp), METHODS[exp.method]
    make(cfg, env.spec)  # refuses here what it cannot read in traced numbers
    loop = loops.group(make, env, starts=exp.starts, group=exp.group, iterations=25)
    return launch.launch(exp, env=countdown.make(held_out), loop=taught(loop, learn, exp.examples), cfg=cfg)


if __name__ == "__main__":
    launch.cli(main, Countdown)
