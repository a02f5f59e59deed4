"""Group-relative PPO: its credit against plain loops, and probes that it learns."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen import evaluate, loops, nets, types
from jaxrl_gen.algos import group_ppo, ppo
from jaxrl_gen.envs import probe
from jaxrl_gen.losses import group
from jaxrl_gen.types import Spec, Transition

STEPS, STARTS, COUNT = 5, 2, 3
SPEC = Spec(jax.ShapeDtypeStruct((2,), jnp.float32), 1)
CFG = types.strong(
    group_ppo.Config(lr=1e-2, gamma=0.9, epochs=1, minibatches=1, actor_hidden=(4,), normalize_obs=False)
)


def tries():
    """Rollouts of which some end early, `[T, N, G]`; after an end rows are invalid."""
    rng = np.random.default_rng(0)
    shape = (STEPS, STARTS, COUNT)
    draw = lambda *more: jnp.asarray(rng.normal(size=(*shape, *more)), jnp.float32)  # noqa: E731
    lengths = np.array([[5, 2, 3], [1, 5, 5]])
    at = np.arange(STEPS)[:, None, None]
    valid, terminated = at < lengths, (at == lengths - 1) & (lengths < STEPS)
    truncated = (at == STEPS - 1) & (lengths == STEPS)
    extras = {"choice": draw(1), "log_prob": draw()}
    batch = Transition(draw(2), draw(1), draw() * valid, draw(2), terminated, truncated, valid, extras)
    return jax.tree.map(jnp.asarray, batch)


def credit(batch, lost=()):
    """What each row's rollout earns from there on, less what its group earns on average: plain loops in float64."""
    reward, valid = np.asarray(batch.reward, np.float64), np.asarray(batch.valid)
    to_come = np.zeros_like(reward)
    for t, n, g in np.ndindex(*reward.shape):
        to_come[t, n, g] = sum(0.9 ** (s - t) * reward[s, n, g] for s in range(t, STEPS) if valid[s, n, g])
    found = np.zeros_like(reward)
    for t, n, g in np.ndindex(*reward.shape):
        others = [to_come[t, n, k] for k in range(COUNT) if (n, k) not in lost]
        found[t, n, g] = to_come[t, n, g] - np.mean(others)
    return found


def test_an_update_is_that_of_ppo_with_the_credit_in_place_of_the_advantage():
    batch, key = tries(), jax.random.key(1)
    algo = group_ppo.make(CFG, SPEC)
    state = algo.init(jax.random.key(0))
    after, metrics = jax.jit(algo.update)(state, batch, key)
    nothing = nets.Net(lambda key, example: {}, lambda params, x: jnp.zeros((*x.shape[:-1], 1)))
    plain = ppo.make(CFG, SPEC, critic=nothing)
    flat = jax.tree.map(lambda x: x.reshape(STEPS, STARTS * COUNT, *x.shape[3:]), batch)
    given = jnp.asarray(credit(batch).reshape(STEPS, -1), jnp.float32)
    every = jnp.ones(given.shape, bool)
    expected, _ = jax.jit(plain.update)(state, flat._replace(reward=given, terminated=every, truncated=~every), key)
    for one, two in zip(jax.tree.leaves(after.params), jax.tree.leaves(expected.params), strict=True):
        np.testing.assert_allclose(one, two, atol=1e-5)
    assert not any(name.startswith("critic/") for name in metrics)
    assert not np.array_equal(jax.tree.leaves(after.params)[0], jax.tree.leaves(state.params)[0])


def test_a_rollout_that_turned_non_finite_neither_learns_nor_counts():
    batch, key = tries(), jax.random.key(1)
    algo = group_ppo.make(CFG, SPEC)
    state, update = algo.init(jax.random.key(0)), jax.jit(algo.update)
    at = (2, 0, 0)  # marked as the loop marks it: truncated there, and not valid
    sick = batch._replace(
        valid=batch.valid.at[2:, 0, 0].set(False), truncated=batch.truncated.at[:, 0, 0].set(False).at[at].set(True)
    )
    one = update(state, sick, key)[0]
    two = update(state, sick._replace(reward=sick.reward.at[:, 0, 0].add(50.0)), key)[0]
    jax.tree.map(np.testing.assert_array_equal, one.params, two.params)
    assert not np.array_equal(jax.tree.leaves(one.params)[0], jax.tree.leaves(update(state, batch, key)[0].params)[0])


def test_it_learns_credit_over_two_steps():
    make = partial(group_ppo.make, relative=group.leave_one_out)
    env = probe.delayed()
    loop = loops.group(make, env, starts=8, group=8, iterations=60)
    cfg = types.strong(group_ppo.Config(lr=1e-2, gamma=0.9, minibatches=2, actor_hidden=(16,)))
    carry, _ = jax.jit(loop.chunk)(cfg, jax.jit(loop.init)(cfg, jax.random.key(0)))
    played = jax.jit(evaluate.evaluator(make, env, lanes=32))(cfg, carry.state, jax.random.key(1))
    assert float(jnp.mean(played.returns)) > 0.95


def test_rows_that_are_not_in_groups_and_groups_of_one_are_refused():
    batch, algo = tries(), group_ppo.make(CFG, SPEC)
    state = algo.init(jax.random.key(0))
    with pytest.raises(ValueError, match=r"rewards have shape \(5, 2\); allowed: \[T, N, G\]"):
        algo.update(state, jax.tree.map(lambda x: x[:, :, 0], batch), jax.random.key(0))
    with pytest.raises(ValueError, match="found G = 1"):
        algo.update(state, jax.tree.map(lambda x: x[:, :, :1], batch), jax.random.key(0))
