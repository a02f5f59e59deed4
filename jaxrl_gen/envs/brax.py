"""Brax environments as Envs, on any of brax's four physics backends."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrl_gen.envs import adapt, mjx, wrap
from jaxrl_gen.types import Env, Outcome, Spec

BACKENDS = ("spring", "positional", "generalized", "mjx")


def make(name: str, *, backend: str = "mjx", time_limit: int = 1000, **arguments: Any) -> Env:
    """An environment of brax, by its own name.

    Brax takes actions in [-1, 1] already. What it calls done is a failure: it terminates; the time limit truncates.

    Args:
      name: for example "ant".
      backend: "spring", "positional", "generalized" or "mjx".
      time_limit: steps until an episode is truncated.
      arguments: further arguments of the environment's own class.
    Returns:
      Env of one lane that does not reset itself.
    Raises:
      ModuleNotFoundError: without brax.
      ValueError: for an unknown name or backend, with the nearest ones, or where brax itself fails on the two.
    Reference: Freeman et al. 2021, arXiv 2106.13281
    """
    inner, inner_reset = _load(name, backend, arguments)
    inner_step = jax.jit(inner.step)  # jit here is a cache of slow traces, and guards against brax's edits of metrics

    def reset(key):
        state = inner_reset(key)
        return state, state.obs

    def step(state, action, key):
        del key  # brax is deterministic
        state = inner_step(state, action)
        reward = jax.lax.convert_element_type(state.reward, jnp.float32)
        outcome = Outcome(state.obs, reward, state.done > 0, jnp.zeros((), bool), jnp.ones((), bool), state.metrics)
        return state, state.obs, outcome

    obs = jax.eval_shape(reset, jax.random.key(0))[1]
    env = Env(reset, step, Spec(obs, inner.action_size))
    mj_model = getattr(getattr(inner, "sys", None), "mj_model", None)
    if mj_model is not None:
        env = env._replace(scene=mjx.scene(mj_model, lambda s: {"qpos": s.pipeline_state.q}, fps=1.0 / float(inner.dt)))
    return wrap.time_limit(adapt.lean(env), time_limit)


def _load(name, backend, arguments):
    """The environment, and its jitted reset."""
    mjx.headless()
    try:
        from brax import envs
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("this needs brax: pip install brax") from error
    adapt.known(name, envs._envs, "brax")  # brax has no public list of its names
    adapt.known(backend, BACKENDS, "brax's backends")
    if name != "fast":  # brax's own stand-in for tests has no physics, hence no backend
        arguments = {"backend": backend, **arguments}
    try:
        inner = envs.get_environment(name, **arguments)
        reset = jax.jit(inner.reset)
        jax.eval_shape(reset, jax.random.key(0))
    except Exception as error:
        raise ValueError(f"brax cannot load {name} on {backend}: {adapt.one_line(error)}") from error
    return inner, reset
