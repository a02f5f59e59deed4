"""The Playground adaptor against Playground's own step."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen.envs import mjx, playground


@pytest.fixture(scope="module")
def cartpole():
    return playground.make("CartpoleSwingup", overrides={"episode_length": 5})


def test_agrees_with_the_library_and_is_truncated(cartpole):
    from mujoco_playground import registry

    inner = registry.load("CartpoleSwingup", config_overrides={"impl": "jax"})
    keys = jax.random.split(jax.random.key(0), 3)
    state, obs = jax.jit(jax.vmap(cartpole.reset))(keys)
    expected = jax.jit(jax.vmap(inner.reset))(keys)
    np.testing.assert_allclose(obs, expected.obs, rtol=1e-5, atol=1e-6)
    step = jax.jit(jax.vmap(cartpole.step, in_axes=(0, 0, None)))
    inner_step = jax.jit(jax.vmap(inner.step))
    for t in range(1, 6):
        action = jnp.sin(jnp.arange(3.0) + t)[:, None]
        state, obs, outcome = step(state, action, jax.random.key(t))
        expected = inner_step(expected, action)
        np.testing.assert_allclose(obs, expected.obs, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(outcome.reward, expected.reward, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(outcome.next_obs, obs)
        assert (outcome.truncated == (t == 5)).all() and not outcome.terminated.any()
        assert set(outcome.info) == set(expected.metrics)
    qpos = jax.vmap(cartpole.scene.view)(state)["qpos"]
    np.testing.assert_allclose(qpos, expected.data.qpos, rtol=1e-4, atol=1e-5)


def test_spec_and_scene(cartpole):
    assert cartpole.spec.obs.shape == (5,) and cartpole.spec.action_size == 1 and not cartpole.spec.discrete
    assert cartpole.spec.time_limit == 5
    assert cartpole.scene.fps == pytest.approx(100.0)


def test_the_simulators_data_is_not_carried_whole(cartpole):
    state, _ = jax.eval_shape(cartpole.reset, jax.random.key(0))
    assert sum(leaf.size for leaf in jax.tree.leaves(state)) < 100  # of about 450


def test_refusals(monkeypatch):
    from mujoco_playground import registry

    with pytest.raises(ValueError, match="'CartPoleSwingUp' is not in MuJoCo Playground; nearest: CartpoleSwingup"):
        playground.make("CartPoleSwingUp")
    with pytest.raises(ValueError, match="'episode_lenght' is not in the configuration of CheetahRun; nearest: ep"):
        playground.make("CheetahRun", overrides={"episode_lenght": 3})

    def no_network(*args, **kwargs):
        raise subprocess.CalledProcessError(128, ["git", "clone"])

    monkeypatch.setattr(registry, "load", no_network)
    with pytest.raises(ValueError, match="^Go1JoystickFlatTerrain cannot be loaded: .*git.*downloads its robot"):
        playground.make("Go1JoystickFlatTerrain")
    monkeypatch.setitem(sys.modules, "mujoco_playground", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'jaxrl_gen\[playground\]'"):
        playground.make("CheetahRun")


@pytest.mark.parametrize(
    ("chosen", "present", "becomes"),
    [
        ("", {"libEGL.so.1", "libOSMesa.so"}, "egl"),
        ("", {"libOSMesa.so"}, "osmesa"),
        ("", set(), ""),
        ("osmesa", {"libEGL.so.1", "libOSMesa.so"}, "osmesa"),
        ("osmesa", {"libEGL.so.1"}, "disable"),
        ("glfw", {"libEGL.so.1"}, "glfw"),
    ],
)
def test_how_mujoco_shall_draw(monkeypatch, chosen, present, becomes):
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(mjx, "_loads", lambda library: library in present)
    monkeypatch.delitem(sys.modules, "mujoco", raising=False)
    monkeypatch.setenv("MUJOCO_GL", chosen)
    mjx.headless()
    import os

    assert os.environ["MUJOCO_GL"] == becomes
