"""The fork: as MuJoCo's own C sees it; either way leads to the ring, and the average of both into the hole."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np

from jaxrl_gen.envs import mjx
from jaxrl_gen.envs.tasks import fork
from jaxrl_gen.types import ended

ENV = fork.make()


def play(policy, lanes=32, steps=120, seed=0):
    """First observations [N, 4], and those after each step, rewards and ends of an episode in each lane, [T, N, ...]."""

    def step(playing, key):
        state, obs = playing
        key_act, key_step = jax.random.split(key)
        action = jax.vmap(policy)(obs, jnp.arange(lanes), jax.random.split(key_act, lanes))
        state, obs, outcome = jax.vmap(ENV.step)(state, action, jax.random.split(key_step, lanes))
        return (state, obs), (action, obs, outcome.reward, ended(outcome))

    def whole(key):
        state, obs = jax.vmap(ENV.reset)(jax.random.split(key, lanes))
        return obs, jax.lax.scan(step, (state, obs), jax.random.split(key, steps))[1]

    return jax.device_get(jax.jit(whole)(jax.random.key(seed)))


def side_of(lane):
    return jnp.where(lane % 2 == 0, 1.0, -1.0)


def test_agrees_with_mujoco():
    first, (action, obs, reward, _) = play(lambda obs, lane, key: fork.teacher(obs, side_of(lane), key), lanes=2)
    model = mjx.load(fork.MJCF)
    data = mujoco.MjData(model)
    data.qpos, data.qvel = first[0, :2], first[0, 2:]
    for t in range(120):
        data.ctrl = fork.FORCE * action[t, 0]
        mujoco.mj_step(model, data, 2)
        np.testing.assert_allclose(obs[t, 0], [*data.qpos, *data.qvel], atol=1e-4)
        away = np.hypot(data.qpos[0] - 1.0, data.qpos[1])
        np.testing.assert_allclose(reward[t, 0], 1 / (1 + (away / 0.3) ** 2), atol=1e-3)


def test_the_teacher_gets_there_on_both_sides():
    _, (_, obs, reward, over) = play(lambda obs, lane, key: fork.teacher(obs, side_of(lane), key))
    assert not over[:-1].any() and over[-1].all(), "nobody falls, all are truncated"
    assert reward[-1].min() > 0.7
    at_middle = np.array([obs[np.argmax(obs[:, lane, 0] > 0), lane, 1] for lane in range(32)])
    np.testing.assert_array_equal(np.sign(at_middle), np.where(np.arange(32) % 2 == 0, 1, -1))


def test_the_average_of_both_sides_falls_into_the_hole():
    def average(obs, lane, key):
        return (fork.teacher(obs, 1.0, key, noise=0.0) + fork.teacher(obs, -1.0, key, noise=0.0)) / 2

    _, (_, obs, _, over) = play(average)
    falls = np.argmax(over, 0)
    assert (falls < 119).all() and (np.hypot(*obs[falls, np.arange(32), :2].T) < fork.HOLE).all()
