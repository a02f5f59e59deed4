"""MuJoCo Playground environments as Envs."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxrl_gen.envs import adapt, mjx, wrap
from jaxrl_gen.types import Env, Outcome, Spec


def make(name: str, *, impl: str = "jax", overrides: dict[str, Any] | None = None) -> Env:
    """An environment of MuJoCo Playground, by its own name.

    The dm_control suite works offline; locomotion and manipulation download their robots when they are first loaded.

    Args:
      name: for example "CartpoleSwingup".
      impl: physics implementation, "jax" everywhere or "warp" on NVIDIA hardware.
      overrides: further fields of the environment's own configuration, such as `{"episode_length": 500}`.
    Returns:
      Env of one lane that does not reset itself, truncated at the environment's own episode length.
    Raises:
      ModuleNotFoundError: without the extra.
      ValueError: for an unknown name or field, with the nearest ones, or where the environment cannot be loaded.
    Reference: Zakka et al. 2025, arXiv 2502.08844
    """
    inner, limit = _load(name, {"impl": impl, **(overrides or {})})
    inner_reset, inner_step = jax.jit(inner.reset), jax.jit(inner.step)  # jit here is a cache of slow traces

    def reset(key):
        state = inner_reset(key)
        return state, state.obs

    def step(state, action, key):
        del key  # the simulator's own randomness travels in its state
        state = inner_step(state, action)
        # Playground's suite never ends an episode itself but by failure, which it reports as done.
        no, yes = jnp.zeros((), bool), jnp.ones((), bool)
        outcome = Outcome(state.obs, state.reward, state.done > 0, no, yes, state.metrics)
        return state, state.obs, outcome

    obs = jax.eval_shape(reset, jax.random.key(0))[1]
    scene = mjx.scene(inner.mj_model, lambda state: mjx.pose(state.data), fps=1.0 / inner.dt)
    env = Env(reset, step, Spec(obs, inner.action_size), scene=scene)
    return wrap.time_limit(adapt.lean(env), limit)


def _load(name, overrides):
    """The environment and its episode length in steps."""
    mjx.headless()
    try:
        from mujoco_playground import registry
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("this needs MuJoCo Playground: pip install 'jaxrl_gen[playground]'") from error
    adapt.known(name, registry.ALL_ENVS, "MuJoCo Playground")
    config = registry.get_default_config(name)
    for field in overrides:
        adapt.known(field.split(".")[0], config.keys(), f"the configuration of {name}")
    try:
        config.update_from_flattened_dict(overrides)
        return registry.load(name, config=config), int(config.episode_length)
    except Exception as error:
        hint = "" if name in registry.dm_control_suite.ALL_ENVS else "; it downloads its robot when first loaded"
        raise ValueError(f"{name} cannot be loaded: {adapt.one_line(error)}{hint}") from error
