"""The loop over groups: one start for all tries of a group, one episode for each, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen import loops, nets, types
from jaxrl_gen.algos import group_ppo, ppo
from jaxrl_gen.envs import probe, wrap

CFG = types.strong(group_ppo.Config(lr=1e-2, minibatches=1, epochs=1, actor_hidden=(8,)))


def one_iteration(env, seed=0, **sizes):
    loop = loops.group(group_ppo.make, env, **{"starts": 6, "group": 4, "iterations": 1} | sizes)
    carry = jax.jit(loop.init)(CFG, jax.random.key(seed))
    return loop, carry, *jax.jit(loop.iteration)(CFG, carry)


def test_a_group_has_one_start_and_tries_that_differ():
    *_, batch = one_iteration(probe.continuous_action(), starts=16)
    obs = np.asarray(batch.obs)
    assert obs.shape == (1, 16, 4, 1)
    np.testing.assert_array_equal(obs, np.broadcast_to(obs[:, :, :1], obs.shape))
    assert len(np.unique(obs)) == 2  # starts differ
    assert len(np.unique(batch.action)) == 64


def test_rows_after_the_first_end_are_not_valid_and_earn_nothing():
    loop, carry, after, metrics, batch = one_iteration(probe.terminating(steps=3), steps=5)
    np.testing.assert_array_equal(np.asarray(batch.valid)[:, 0, 0], [True, True, True, False, False])
    np.testing.assert_array_equal(np.asarray(batch.reward)[:, 0, 0], [1, 1, 1, 0, 0])
    np.testing.assert_array_equal(np.asarray(batch.terminated)[:, 0, 0], [False, False, True, False, False])
    reduced = loops.reduce_metrics(jax.tree.map(lambda x: x[None], metrics))
    assert float(reduced["episode/count"]) == 24 and float(reduced["episode/return"]) == 3.0
    assert float(reduced["episode/length"]) == 3.0 and float(reduced["env/quarantined"]) == 0.0
    assert types.total_steps(after.steps) == loop.steps_per_chunk == 5 * 24


def test_a_try_that_turns_non_finite_is_contained():
    def breaks(env):
        def step(state, action, key):
            state, obs, outcome = env.step(state, action, key)
            return state, obs, outcome._replace(reward=jnp.where(action[0] > 0, jnp.nan, outcome.reward))

        return env._replace(step=step)

    *_, after, metrics, batch = one_iteration(breaks(probe.continuous_action()))
    broken = np.asarray(batch.action)[..., 0] > 0
    assert 0 < broken.sum() < broken.size and float(metrics["env/quarantined"]) == broken.sum()
    np.testing.assert_array_equal(np.asarray(batch.valid), ~broken)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(after.state))


def recurrent(cfg, spec):
    """PPO that remembers."""
    actor, critic = (nets.flat(nets.gru(4, (1,)), spec.obs) for _ in range(2))
    return ppo.make(cfg, spec, actor=actor, critic=critic)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(starts=0), "starts is 0"),
        (dict(group=0), "group is 0"),
        (dict(steps=0), "steps is 0"),
        (dict(env=wrap.fresh(probe.delayed(), 4)), "4 lanes that reset themselves"),
        (dict(env=probe.delayed()._replace(spec=probe.delayed().spec._replace(time_limit=None))), "no time limit"),
    ],
)
def test_bad_input_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        loops.group(group_ppo.make, **{"env": probe.delayed(), "starts": 2, "group": 2, "iterations": 1} | change)


def test_a_policy_that_remembers_is_refused():
    loop = loops.group(recurrent, probe.continuous_action(), starts=2, group=2, iterations=1)
    with pytest.raises(ValueError, match="the policy has memory"):
        loop.init(CFG, jax.random.key(0))
