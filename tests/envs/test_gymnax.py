"""The gymnax adaptor against gymnax's own step."""

import importlib.metadata

import gymnax as library
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen.envs import gymnax, wrap
from jaxrl_gen.types import ended


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "Breakout-MinAtar"])
def test_agrees_with_the_library(name):
    env = gymnax.make(name)
    inner, params = library.make(name)
    state, obs = jax.jit(env.reset)(jax.random.key(3))
    expected_obs, expected = inner.reset_env(jax.random.key(3), params)
    np.testing.assert_array_equal(obs, expected_obs)
    step, inner_step = jax.jit(env.step), jax.jit(inner.step_env)
    for t in range(30):
        key = jax.random.key(t)
        action = jnp.int32(t // 3 % 2) if env.spec.discrete else jnp.sin(jnp.float32([t]))
        in_units = action if env.spec.discrete else 2.0 * action  # Pendulum's torque is within 2
        state, obs, outcome = step(state, action, key)
        expected_obs, expected, reward, terminated, _ = inner_step(key, expected, in_units, params)
        np.testing.assert_allclose(obs, expected_obs, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(outcome.reward, reward, rtol=1e-5)
        assert outcome.terminated == terminated and not outcome.truncated
        np.testing.assert_array_equal(obs, outcome.next_obs)


def test_shapes_and_dtypes():
    env = gymnax.make("FourRooms-misc")  # its observations are whole numbers
    state, obs = env.reset(jax.random.key(0))
    after, _, outcome = env.step(state, jnp.int32(1), jax.random.key(1))
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)
    assert shapes(state) == shapes(after)
    assert obs.dtype == outcome.next_obs.dtype == outcome.reward.dtype == jnp.float32
    assert outcome.terminated.dtype == outcome.truncated.dtype == bool
    assert env.spec.obs == jax.ShapeDtypeStruct(obs.shape, obs.dtype)
    assert env.spec.discrete and env.spec.action_size == 4


def test_time_limit_truncates_and_keeps_the_last_observation():
    env = wrap.fresh(gymnax.make("Pendulum-v1", params={"max_steps_in_episode": 3}), 2)
    state, obs = env.reset(jax.random.key(0))
    step = jax.jit(env.step)
    for t in range(1, 7):
        state, obs, outcome = step(state, jnp.zeros((2, 1)), jax.random.split(jax.random.key(t), 2))
        assert not outcome.terminated.any()
        assert (outcome.truncated == (t % 3 == 0)).all()
        np.testing.assert_array_equal((obs == outcome.next_obs).all(), t % 3 != 0)
        np.testing.assert_allclose(np.hypot(*outcome.next_obs[:, :2].T), 1.0, rtol=1e-5)
    assert env.spec.time_limit == 3


def test_a_failure_at_the_limit_is_a_termination():
    falls = jax.jit(gymnax.make("CartPole-v1").step)
    state, _ = gymnax.make("CartPole-v1").reset(jax.random.key(0))
    for steps in range(1, 100):
        state, _, outcome = falls(state, jnp.int32(1), jax.random.key(0))
        if outcome.terminated:
            break
    env = gymnax.make("CartPole-v1", params={"max_steps_in_episode": steps})
    state, _ = env.reset(jax.random.key(0))
    step = jax.jit(env.step)
    for _ in range(steps):
        state, _, outcome = step(state, jnp.int32(1), jax.random.key(0))
    assert outcome.terminated and not outcome.truncated and ended(outcome)


@pytest.mark.parametrize("name", ["CartPole-v1", "Pendulum-v1", "Acrobot-v1", "MountainCar-v0", "Breakout-MinAtar"])
def test_scenes_draw_the_state(name):
    env = gymnax.make(name)
    views = [env.scene.view(env.reset(jax.random.key(seed))[0]) for seed in range(8)]
    frames = env.scene.draw(np.stack(views), 60, 90)
    assert frames.shape == (8, 60, 90, 3) and frames.dtype == np.uint8
    assert (frames.reshape(8, -1).std(1) > 3).all()
    assert any((frames[0] != frame).any() for frame in frames[1:])


def test_what_cannot_be_drawn_has_no_scene():
    assert gymnax.make("MemoryChain-bsuite").scene is None


def test_refusals():
    with pytest.raises(ValueError, match="'CartPole' is not in gymnax; nearest: CartPole-v1"):
        gymnax.make("CartPole")
    with pytest.raises(ValueError, match="'max_steps' is not in the parameters of CartPole-v1; nearest: max_steps_in_"):
        gymnax.make("CartPole-v1", params={"max_steps": 3})
    with pytest.raises(ValueError, match="CartPole-v1 cannot be loaded: .*unexpected keyword"):
        gymnax.make("CartPole-v1", colour="red")


def test_an_old_or_missing_library(monkeypatch):
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "0.0.9")
    with pytest.raises(ImportError, match="gymnax 0.0.9 does not tell truncation from termination; pip install"):
        gymnax.make("CartPole-v1")

    def missing(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'jaxrl_gen\[gymnax\]'"):
        gymnax.make("CartPole-v1")
