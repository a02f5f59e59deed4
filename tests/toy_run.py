"""A small experiment for the tests of whole runs: `python -m tests.toy_run --help`."""

import dataclasses
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_gen import launch, loops, types
from jaxrl_gen.algos import ppo
from jaxrl_gen.envs import probe, wrap


@types.config
class Config:
    """Of a method that compiles in no time: a linear policy that is pulled to the actions which paid."""

    lr: float = types.leaf(0.1, low=0.0)
    limit: float = types.leaf(1e9)  # updates after which the method takes the root of a negative number
    noise: float = types.leaf(0.3, low=0.0)
    width: int = types.static(4, low=1)


class State(NamedTuple):
    """What it changes."""

    params: dict
    updates: jax.Array
    nothing: None


def make(cfg: Config, spec: types.Spec) -> types.Algorithm:
    """The method."""

    def mean(params, obs):
        return jnp.tanh(jnp.mean(params["bias"]) + obs @ params["weights"])

    def init(key):
        weights = 0.1 * jax.random.normal(key, (spec.obs.shape[0], spec.action_size))
        return State({"weights": weights, "bias": jnp.zeros((cfg.width,))}, jnp.zeros(()), None)

    def act(state, obs, key):
        centre = mean(state.params, obs)
        noise = 0.0 if key is None else cfg.noise * jax.random.normal(key, centre.shape)
        return jnp.clip(centre + noise, -1.0, 1.0), {}

    def update(state, batch, key):
        def loss(params):
            miss = jnp.mean(jnp.mean((mean(params, batch.obs) - batch.action) ** 2, -1) * batch.reward)
            return miss + 0.0 * jnp.sqrt(cfg.limit - state.updates)

        value, grads = jax.value_and_grad(loss)(state.params)
        jitter = 1e-3 * jax.random.normal(key, ())
        params = jax.tree.map(lambda x, grad: x - cfg.lr * grad + jitter + 0.0 * value, state.params, grads)
        return State(params, state.updates + 1.0, None), {"toy/loss": value, "toy/bias": jnp.mean(params["bias"])}

    return types.Algorithm(init, update, act)


@dataclasses.dataclass(frozen=True)
class Toy(launch.Experiment):
    """A few seconds, whatever the options."""

    name: str = launch.option("toy")
    chunks: int | None = launch.option(8)
    eval_episodes: int = launch.option(0)
    export: bool = launch.option(False)
    video: bool = launch.option(False)
    report: bool = launch.option(False)
    checkpoint_seconds: float = launch.option(0.0)
    nap: float = launch.option(0.0)  # seconds between chunks, for a signal to fall into
    lanes: int = 8
    method: Config = Config()
    algo: ppo.Config = ppo.Config(actor_hidden=(8,), critic_hidden=(8,), minibatches=2, epochs=2)
    use_ppo: bool = False


def main(exp: Toy):
    """Train on a probe."""
    env = probe.continuous_action()
    made, cfg = (ppo.make, exp.algo) if exp.use_ppo else (make, exp.method)
    loop = loops.on_policy(made, wrap.fresh(env, exp.lanes), steps=4, iterations=3)
    return launch.launch(exp, env=env, loop=loop, cfg=cfg, listeners=[lambda i, carry, metrics: time.sleep(exp.nap)])


if __name__ == "__main__":
    launch.cli(main, Toy)
