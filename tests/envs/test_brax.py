"""The brax adaptor against brax's own step, on all backends."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen.envs import brax, wrap
from jaxrl_gen.types import ended


def test_agrees_with_the_library_until_it_falls():
    from brax import envs

    env = brax.make("inverted_pendulum", backend="spring")
    inner = envs.get_environment("inverted_pendulum", backend="spring")
    state, obs = jax.jit(env.reset)(jax.random.key(0))
    expected = jax.jit(inner.reset)(jax.random.key(0))
    np.testing.assert_array_equal(obs, expected.obs)
    step, inner_step = jax.jit(env.step), jax.jit(inner.step)
    for t in range(100):
        action = jnp.float32([0.5])
        state, obs, outcome = step(state, action, jax.random.key(t))
        expected = inner_step(expected, action)
        np.testing.assert_allclose(obs, expected.obs, rtol=1e-4, atol=1e-5)
        assert outcome.reward == expected.reward == 1.0
        assert outcome.terminated == (expected.done > 0) and not outcome.truncated
        if outcome.terminated:
            break
    assert outcome.terminated and t < 99


@pytest.mark.parametrize("backend", ["positional", "generalized", "mjx"])
def test_other_backends_step_and_are_truncated(backend):
    env = brax.make("inverted_pendulum", backend=backend, time_limit=2)

    def step(state, key):
        state, _, outcome = env.step(state, jnp.zeros(1), key)
        return state, outcome

    def two_steps(key):
        state, obs = env.reset(key)
        return obs, jax.lax.scan(step, state, jax.random.split(key))[1]

    obs, outcome = jax.jit(jax.vmap(two_steps))(jax.random.split(jax.random.key(0), 3))
    assert obs.shape == (3, 4) and outcome.next_obs.shape == (3, 2, 4) and np.isfinite(outcome.next_obs).all()
    assert outcome.reward.dtype == jnp.float32
    assert not outcome.terminated.any() and (outcome.truncated == np.array([False, True])).all()
    assert env.spec.time_limit == 2 and env.spec.action_size == 1
    assert env.scene is not None


def test_many_lanes_without_physics():
    env = wrap.fresh(brax.make("fast", time_limit=4), 3)  # brax's own stand-in for tests
    state, _ = env.reset(jax.random.key(0))
    step, ends = jax.jit(env.step), []
    for t in range(12):
        state, _, outcome = step(state, jnp.ones((3, env.spec.action_size)), jax.random.split(jax.random.key(t), 3))
        ends.append(np.asarray(ended(outcome)))
    for lane in np.array(ends).T:
        when = np.flatnonzero(lane)
        assert when[0] < 4 and (np.diff(when) == 4).all()
    assert env.scene is None


def test_refusals(monkeypatch):
    with pytest.raises(ValueError, match="'Ant' is not in brax; nearest: ant"):
        brax.make("Ant")
    with pytest.raises(ValueError, match="'mujoco' is not in brax's backends; nearest: "):
        brax.make("ant", backend="mujoco")
    with pytest.raises(ValueError, match="brax cannot load swimmer on spring: Unsupported backend"):
        brax.make("swimmer", backend="spring")
    with pytest.raises(ValueError, match="time limit is 0 steps; allowed: 1 and more"):
        brax.make("fast", time_limit=0)
    monkeypatch.setitem(sys.modules, "brax", None)
    with pytest.raises(ModuleNotFoundError, match="pip install brax"):
        brax.make("ant")
