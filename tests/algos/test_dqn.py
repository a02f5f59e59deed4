"""DQN and PQN against float64 NumPy versions of their updates, and on probes whose values are known."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen import loops, types
from jaxrl_gen.algos import dqn, pqn
from jaxrl_gen.envs import probe, wrap
from jaxrl_gen.losses import distributional, value
from tests.algos import reference, windows
from tests.algos.windows import BATCH, DISCRETE, SPEC, batch_of, learner, started

CFG = dqn.Config(lr=0.01, gamma=0.9, tau=0.1, hidden=(8,))
LINEAR = dict(hidden=())  # nets of one layer


def values(params, obs):
    return reference.dense(obs, params["Dense_0"])


def numpy_gradient(cfg, state, batch):
    online, slow = windows.float64(state.params), windows.float64(state.target)
    obs, action, reward, next_obs, discount, valid = windows.condensed(batch, cfg.gamma)
    rows = np.arange(BATCH)
    following = values(slow, next_obs)
    best = np.argmax(values(online, next_obs) if cfg.double else following, -1)
    target = reward + discount * following[rows, best]

    def loss(params):
        return np.mean((values(params, obs)[rows, action] - target)[valid] ** 2) / 2

    return reference.gradient(loss, windows.float64(state.params))


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("horizon", [1, 3])
def test_update_equals_numpy(double, horizon):
    cfg, batch = dataclasses.replace(CFG, **LINEAR, double=double), batch_of(horizon, spec=DISCRETE)
    _, update, state = learner(dqn.make, cfg, DISCRETE)
    after, _ = update(state, batch, jax.random.key(1))
    windows.close_to_numpy(state, after, numpy_gradient(cfg, state, batch), cfg.lr)
    windows.check_moved_slowly(after, state, after.params)


def test_the_two_networks_of_double_learning_matter():
    batch, targets = batch_of(spec=DISCRETE, invalid=False), []
    for double in (True, False):
        _, update, state = learner(dqn.make, dataclasses.replace(CFG, **LINEAR, double=double), DISCRETE)
        targets.append(float(update(state, batch, jax.random.key(1))[1]["critic/target"]))
    assert targets[0] < targets[1] - 1e-3  # the maximum over one's own estimates is above them


def test_invalid_rows_change_nothing():
    _, update, state = learner(dqn.make, CFG, DISCRETE)
    windows.check_invalid_rows_change_nothing(update, state, batch_of(2, spec=DISCRETE))


def test_random_actions_become_rare():
    algo, _, state = learner(dqn.make, CFG, DISCRETE)
    obs = np.ones((20_000, 3), np.float32)
    best = int(algo.act(state, obs[:1], None)[0][0])
    for updates, share in ((0, 1.0), (5_000, 0.525), (20_000, 0.05)):
        action, _ = algo.act(state._replace(updates=jnp.float32(updates)), obs, jax.random.key(updates))
        assert action.dtype == jnp.int32
        assert np.mean(action != best) == pytest.approx(share / 2, abs=0.02)  # half of those at random are the best


def test_continuous_actions_are_refused():
    for make, cfg in ((dqn.make, CFG), (pqn.make, pqn.Config())):
        with pytest.raises(
            ValueError, match="a Q-network needs discrete actions; this environment has 2 continuous ones"
        ):
            make(cfg, SPEC)


# -------------------------------------------------------------------------------------------------------------- PQN


def rollout_of(steps=5, lanes=4, invalid=True):
    """A Transition [T, E, ...] as windows are, of other sizes."""
    wide = batch_of(steps, 6, invalid, DISCRETE)
    return jax.tree.map(lambda x: x[:, :lanes], wide)


def test_pqn_equals_numpy():
    """One epoch of one minibatch: the gradient of the squared distance to returns by a loop over rows.

    A row before an invalid one is worth its reward and what it led to, as if it had been truncated.
    """
    cfg, batch = pqn.Config(lr=0.01, gamma=0.9, lam=0.7, epochs=1, minibatches=1, **LINEAR), rollout_of()
    _, update, state = learner(pqn.make, cfg, DISCRETE)
    after, _ = update(state, batch, jax.random.key(1))
    params, rows = windows.float64(state.params), windows.float64(batch)
    steps, lanes = rows.reward.shape
    target, cut = np.zeros((steps, lanes)), 0
    for e in range(lanes):
        for t in reversed(range(steps)):
            following = values(params, rows.next_obs[t, e]).max() if rows.valid[t, e] else 0.0
            over = rows.terminated[t, e] or rows.truncated[t, e] or t == steps - 1 or not rows.valid[t + 1, e]
            cut += rows.valid[t, e] and over and not types.ended(rows)[t, e] and t < steps - 1
            mixed = following if over else 0.3 * following + 0.7 * target[t + 1, e]
            reward = rows.reward[t, e] if rows.valid[t, e] else 0.0
            target[t, e] = reward + 0.9 * (not rows.terminated[t, e]) * mixed
    assert cut > 0

    def loss(params):
        chosen = np.take_along_axis(values(params, rows.obs), rows.action[..., None], -1)[..., 0]
        return np.mean((chosen - target)[rows.valid] ** 2) / 2

    windows.close_to_numpy(state, after, reference.gradient(loss, windows.float64(state.params)), cfg.lr)


def test_invalid_rows_change_nothing_for_pqn():
    _, update, state = learner(pqn.make, pqn.Config(hidden=(8,), minibatches=2), DISCRETE)
    windows.check_invalid_rows_change_nothing(update, state, rollout_of())


def test_pqn_refuses_rows_that_do_not_divide():
    algo = pqn.make(pqn.Config(hidden=(8,), minibatches=3), DISCRETE)
    with pytest.raises(ValueError, match="a batch of 20 windows does not divide into 3 shares"):
        algo.update(started(algo), rollout_of(), jax.random.key(0))


# ---------------------------------------------------------------------------------------------------------- learning

GAMMA = 0.9


READOUTS = {
    "regression": value.regression(), "hl_gauss": value.classified(-3.0, 13.0, 41),
    "c51": distributional.categorical(-3.0, 13.0, 41), "qr_dqn": distributional.quantiles(11),
}  # fmt: skip


@pytest.mark.parametrize("readout", READOUTS.values(), ids=READOUTS)
def test_a_truncated_episode_is_worth_what_an_endless_one_is(readout):
    env = probe.truncating(steps=5)
    env = env._replace(spec=env.spec._replace(discrete=True, action_size=2))  # it ignores what is done
    cfg = dqn.Config(lr=1e-2, gamma=GAMMA, tau=0.05, hidden=(16,), epsilon_updates=400.0)
    state, _ = windows.learn_online(partial(dqn.make, readout=readout), cfg, env)
    net = dqn.judging(None, env.spec, cfg.hidden, readout.size, jax.nn.relu)
    found = jax.vmap(lambda params: readout.value(net.apply(params, jnp.ones((1, 1)))))(state.params)
    np.testing.assert_allclose(found, 1.0 / (1.0 - GAMMA), atol=0.6)


def learn_on_policy(cfg, env, steps, iterations):
    """States of all seeds of PQN after learning from eight lanes."""
    return windows.trained(loops.on_policy(pqn.make, wrap.fresh(env, 8), steps=steps, iterations=iterations), cfg)[0]


@pytest.mark.parametrize("make", [dqn.make, pqn.make], ids=["dqn", "pqn"])
def test_the_action_that_pays_is_found(make):
    env = probe.discrete_action()
    if make is dqn.make:
        cfg = dqn.Config(lr=1e-2, gamma=GAMMA, tau=0.05, hidden=(16,), epsilon_updates=400.0)
        state, _ = windows.learn_online(make, cfg, env)
    else:
        cfg = pqn.Config(lr=1e-2, gamma=GAMMA, hidden=(16,), epochs=2, minibatches=2)
        state = learn_on_policy(cfg, env, steps=8, iterations=150)
    best = jax.vmap(lambda s: make(cfg, env.spec).act(s, jnp.eye(3), None)[0])(state)
    np.testing.assert_array_equal(best, np.broadcast_to(np.arange(3), (3, 3)))


def test_pqn_sees_through_a_delay():
    """The reward comes steps after the action that earns it."""
    env = probe.delayed()
    cfg = pqn.Config(lr=1e-2, gamma=GAMMA, hidden=(16,), epochs=2, minibatches=2, epsilon_updates=100.0)
    state = learn_on_policy(cfg, env, steps=16, iterations=200)
    algo = pqn.make(cfg, env.spec)
    total = jax.vmap(lambda s: play(env, algo, s))(state)
    np.testing.assert_allclose(total, 1.0, atol=1e-5)


def play(env, algo, state, steps=20):
    """The mean return of greedy episodes from 16 keys."""

    def one(key):
        env_state, obs = env.reset(key)

        def step(carry, _):
            env_state, obs, going = carry
            action, _ = algo.act(state, jax.tree.map(lambda x: x[None], obs), None)
            env_state, obs, outcome = env.step(env_state, action[0], key)
            return (env_state, obs, going & ~types.ended(outcome)), jnp.where(going, outcome.reward, 0.0)

        return jnp.sum(jax.lax.scan(step, (env_state, obs, True), None, steps)[1])

    return jnp.mean(jax.vmap(one)(jax.random.split(jax.random.key(9), 16)))
