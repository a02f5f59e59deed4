"""The courier: finite whatever it does, as MuJoCo's own C sees it, and different with another parcel or floor."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest

from jaxrl_gen.envs import mjx, wrap
from jaxrl_gen.envs.tasks import courier
from jaxrl_gen.types import ended

STEPS = 20
ACTIONS = np.float32(np.sin(np.arange(STEPS) * 0.7) * 0.8)[:, None]


def drive(**parameters):
    """The first observation and those after each of the ACTIONS, of one start whatever the parameters."""
    env = courier.make(**parameters)

    def step(state, action):
        state, obs, outcome = env.step(state, action, jax.random.key(0))
        return state, (obs, outcome.reward, ended(outcome))

    def whole(key):
        state, obs = env.reset(key)
        return obs, jax.lax.scan(step, state, jnp.asarray(ACTIONS))[1]

    return jax.device_get(jax.jit(whole)(jax.random.key(4)))


def drive_in_c(first, mass, friction):
    """The same in float64, with the model recompiled by MuJoCo."""
    model = mjx.load(courier.MJCF)
    parcel = model.body("parcel").id
    model.body_inertia[parcel] *= mass / model.body_mass[parcel]
    model.body_mass[parcel] = mass
    model.geom("tyre").friction[0] = friction
    data = mujoco.MjData(model)
    mujoco.mj_setConst(model, data)
    mujoco.mj_resetData(model, data)
    data.qpos[2], data.mocap_pos[0, 0] = np.arctan2(first[2], first[3]), first[0]
    rows = []
    for action in ACTIONS:
        data.ctrl = 5.0 * action
        mujoco.mj_step(model, data, 2)
        x, pitch, (speed, _, rate, wheel) = data.qpos[0], data.qpos[2], data.qvel
        rows.append([data.mocap_pos[0, 0] - x, speed, np.sin(pitch), np.cos(pitch), rate, 0.1 * wheel])
    return np.array(rows)


def test_agrees_with_mujoco_for_its_own_parcel_and_floor():
    mass, friction = 3.0, 0.2
    first, (obs, reward, over) = drive(masses=(mass, mass), frictions=(friction, friction))
    expected = drive_in_c(first, mass, friction)
    np.testing.assert_allclose(obs, expected, atol=5e-3)
    np.testing.assert_allclose(reward, 1 / (1 + (expected[:, 0] / 0.4) ** 2) - 0.05 * ACTIONS[:, 0] ** 2, atol=2e-3)
    np.testing.assert_array_equal(over, np.abs(np.arctan2(expected[:, 2], expected[:, 3])) > courier.FALLEN)
    other = drive_in_c(first, 4.0 - mass, 1.1 - friction)  # had it the other parcel and floor, it would be elsewhere
    assert np.abs(obs - other).max() > 0.1


def test_finite_under_random_actions_in_many_lanes():
    env = wrap.pooled(courier.make(time_limit=30), 16)

    def step(state, key):
        key_action, key_step = jax.random.split(key)
        action = jnp.sign(jax.random.normal(key_action, (16, 1)))  # full torque, either way
        state, obs, outcome = env.step(state, action, jax.random.split(key_step, 16))
        return state, (obs, outcome)

    state, first = jax.jit(env.reset)(jax.random.key(0))
    _, (obs, outcome) = jax.jit(lambda s: jax.lax.scan(step, s, jax.random.split(jax.random.key(1), 90)))(state)
    assert outcome.valid.all() and np.isfinite(obs).all() and np.isfinite(outcome.reward).all()
    assert outcome.truncated.any() and outcome.terminated.any()
    assert {"reward/near", "reward/effort"} <= set(outcome.info)
    way = np.asarray(first)[:, 0]
    assert (np.abs(way) <= courier.FAR).all() and (way > 0).any() and (way < 0).any()
    assert len(np.unique(way)) == 16


def test_refusals():
    with pytest.raises(ValueError, match=r"masses is \(2, 1\); allowed: positive, the lower end first"):
        courier.make(masses=(2, 1))
    with pytest.raises(ValueError, match=r"frictions is \(0, 1\); allowed: positive"):
        courier.make(frictions=(0, 1))
