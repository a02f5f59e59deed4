"""Every algorithm of the package on an environment that costs nothing: one line each, for all suites that go over them.

Other families keep theirs in files beside this one; `suite` has them all.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_gen import distributions, loops, nets, types
from jaxrl_gen.algos import ppo
from jaxrl_gen.envs import probe, wrap
from jaxrl_gen.types import Env

LANES, STEPS, ITERATIONS = 4, 6, 2


def on_policy(make: Callable, env: Env) -> loops.Loop:
    """A chunk of two updates on four lanes of six steps."""
    return loops.on_policy(make, wrap.fresh(env, LANES), steps=STEPS, iterations=ITERATIONS)


class Case(NamedTuple):
    """An algorithm, its Config, one lane of an environment, and the kind of loop that trains it.

    Families keep theirs in files beside this one, which names them all below.
    """

    name: str
    make: Callable
    cfg: Any
    env: Callable[[], Env]
    train: Callable[[Callable, Env], loops.Loop] = on_policy
    rate: str = "lr"  # the float that the suites change
    read: Callable[[Env], Any] | None = None  # what `act` reads, a few of it; default: the carry's own observations

    def loop(self, change: Callable[[Env], Env] = lambda env: env) -> loops.Loop:
        """The Loop of this case; `change` alters the one lane first."""
        return self.train(self.make, change(self.env()))

    def config(self, **changes) -> Any:
        """The Config with arrays for floats, as a run passes it."""
        return types.strong(dataclasses.replace(self.cfg, **changes))


def recurrent_ppo(cfg, spec):
    """PPO whose actor and critic remember."""
    actor, critic = (nets.flat(nets.gru(4, (out,)), spec.obs) for out in (spec.action_size, 1))
    return ppo.make(cfg, spec, actor=actor, critic=critic)


def asymmetric_ppo(cfg, spec):
    """PPO whose critic alone sees the luck."""
    return ppo.make(cfg, spec, actor_view=lambda obs: obs["cue"])


def flow_ppo(cfg, spec):
    """PPO whose choice is a chain of denoising steps."""
    size, features = spec.action_size, 4
    net = nets.mlp((8, size))
    velocity = lambda params, x, t, output: net.apply(params, jnp.concatenate([x, t[..., None], output], -1))
    init = lambda key: net.init(key, jax.ShapeDtypeStruct((size + 1 + features,), jnp.float32))
    return ppo.make(cfg, spec, head=distributions.flow_head(velocity, init, size, features, steps=3))


PPO = ppo.Config(lr=1e-2, epochs=2, minibatches=2, actor_hidden=(8,), critic_hidden=(8,), entropy_coefficient=0.01)

CASES = [
    Case("ppo_continuous", ppo.make, PPO, probe.continuous_action),
    Case("ppo_discrete", ppo.make, PPO, probe.delayed),
    Case("ppo_recurrent", recurrent_ppo, PPO, probe.memory),
    Case("ppo_dict_observation", asymmetric_ppo, PPO, probe.dict_observation),
    Case("ppo_flow_head", flow_ppo, PPO, probe.continuous_action),
]


def start(case: Case, seed: int = 0, **changes):
    """(loop, config, first carry) of a case."""
    loop, cfg = case.loop(), case.config(**changes)
    return loop, cfg, jax.jit(loop.init)(cfg, jax.random.key(seed))
