"""The probes do what their docstrings say, so that others may lean on them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen.envs import probe, wrap
from jaxrl_gen.types import ended

PROBES = {
    "terminating": probe.terminating,
    "truncating": probe.truncating,
    "observed_reward": probe.observed_reward,
    "continuous_action": probe.continuous_action,
    "discrete_action": probe.discrete_action,
    "dict_observation": probe.dict_observation,
    "delayed": probe.delayed,
    "memory": probe.memory,
}


def play(env, policy, episodes=8):
    """Whole episodes, NumPy leaves [T, episodes]: the observation before each action, and the outcome."""

    def episode(key):
        def step(carry, t):
            state, obs = carry
            state, next_obs, outcome = env.step(state, policy(obs), jax.random.fold_in(key, t))
            return (state, next_obs), (obs, outcome)

        return jax.lax.scan(step, env.reset(key), jnp.arange(env.spec.time_limit))[1]

    rows = jax.jit(jax.vmap(episode, out_axes=1))(jax.random.split(jax.random.key(0), episodes))
    return jax.device_get(rows)


def action_for(env):
    return jnp.zeros((), jnp.int32) if env.spec.discrete else jnp.zeros((env.spec.action_size,))


@pytest.mark.parametrize("name", PROBES)
def test_shapes_dtypes_and_the_time_limit(name):
    env = PROBES[name]()
    state, obs = jax.jit(env.reset)(jax.random.key(0))
    after, next_obs, outcome = jax.jit(env.step)(state, action_for(env), jax.random.key(1))
    shapes = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype), tree)
    assert shapes(after) == shapes(state)
    assert shapes(obs) == shapes(next_obs) == shapes(outcome.next_obs) == shapes(env.spec.obs)
    assert outcome.reward.dtype == jnp.float32 and outcome.reward.shape == ()
    assert outcome.terminated.dtype == outcome.truncated.dtype == outcome.valid.dtype == bool
    over = ended(play(env, lambda obs: action_for(env))[1])
    assert over[-1].all() and not over[:-1].any()


@pytest.mark.parametrize("name", ["terminating", "dict_observation"])
def test_many_lanes_scan(name):
    env = wrap.fresh(PROBES[name](), 3)

    def step(carry, key):
        state, _, outcome = env.step(carry, jnp.stack([action_for(env)] * 3), key)
        return state, outcome

    state, _ = env.reset(jax.random.key(0))
    _, outcome = jax.jit(lambda s: jax.lax.scan(step, s, jax.random.split(jax.random.key(1), (11, 3))))(state)
    assert outcome.reward.shape == (11, 3)
    assert int(ended(outcome).sum()) == 3 * (11 // env.spec.time_limit)


def test_terminating_and_truncating_say_how_they_end():
    for make, is_terminated in ((probe.terminating, True), (probe.truncating, False)):
        obs, outcome = play(make(4, 2.0), lambda obs: jnp.zeros(1))
        assert (outcome.reward == 2.0).all()
        assert outcome.terminated[:, 0].tolist() == [False] * 3 + [is_terminated]
        assert outcome.truncated[:, 0].tolist() == [False] * 3 + [not is_terminated]
        np.testing.assert_array_equal(obs[:, 0], np.eye(4) if is_terminated else np.ones((4, 1)))


def test_rewards_are_what_the_docstrings_say():
    reward_of = lambda env, policy: play(env, policy)[1].reward[0]
    obs, outcome = play(probe.observed_reward(), lambda obs: jnp.zeros(1))
    assert set(obs[0, :, 0].tolist()) == {-1.0, 1.0} and (outcome.reward == obs[..., 0]).all()
    assert (reward_of(probe.continuous_action(), lambda obs: obs / 2) == 1.0).all()
    assert (reward_of(probe.continuous_action(), lambda obs: -obs / 2) == 0.0).all()
    assert (reward_of(probe.discrete_action(4), lambda obs: jnp.argmax(obs)) == 1.0).all()
    assert (reward_of(probe.discrete_action(4), lambda obs: (jnp.argmax(obs) + 1) % 4) == 0.0).all()
    obs, outcome = play(probe.dict_observation(), lambda obs: obs["cue"]["sign"] / 2)
    assert (outcome.reward == 1.0 + obs["luck"][..., 0]).all()


@pytest.mark.parametrize("wrong", [0, 1])
def test_delayed_pays_the_first_action_at_the_second_step(wrong):
    obs, outcome = play(probe.delayed(), lambda obs: (jnp.argmax(obs[:2]) + wrong) % 2)
    assert (outcome.reward == [[0.0], [1.0 - wrong]]).all()
    assert (obs[1] == [0.0, 0.0, 1.0 - wrong]).all()


def test_memory_asks_for_a_cue_it_no_longer_shows():
    obs, outcome = play(probe.memory(3), lambda obs: jnp.int32(1))
    cue = np.argmax(obs[0, :, :2], -1)
    assert set(cue) == {0, 1}
    np.testing.assert_array_equal(outcome.reward, np.stack([0 * cue, 0 * cue, 0 * cue, cue]))
    assert (obs[1:] == np.array([[0, 0, 0], [0, 0, 0], [0, 0, 1]])[:, None]).all()
    with pytest.raises(ValueError, match="delay is 0; allowed: 1 and more"):
        probe.memory(0)


def test_poison_hits_one_lane_at_one_step():
    env = wrap.fresh(probe.poisonable(probe.truncating(50)), 4)
    state, _ = env.reset(jax.random.key(0))
    state, step = probe.poison(state, lane=2, after=1), jax.jit(env.step)
    valid = []
    for t in range(4):
        state, obs, outcome = step(state, jnp.zeros((4, 1)), jax.random.split(jax.random.key(t), 4))
        valid.append(np.asarray(outcome.valid))
        assert np.isfinite(obs).all()
    assert np.argwhere(~np.array(valid)).tolist() == [[1, 2]]
