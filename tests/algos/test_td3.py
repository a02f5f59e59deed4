"""TD3 against a float64 NumPy version of its update, with its parts replaced, and on probes whose values are known."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from jaxrl_gen.algos import td3
from jaxrl_gen.envs import probe
from jaxrl_gen.losses import distributional, value
from tests.algos import linear, reference, windows
from tests.algos.windows import ACTIONS, BATCH, LINEAR, MODEST, SPEC, batch_of, learner, same, started

CFG = td3.Config(lr=0.01, gamma=0.9, tau=0.1, smoothing=0.0, weight_decay=0.1, **MODEST)


def one_layer(cfg=CFG, **parts):
    """TD3 with nets of one layer."""
    return td3.make(dataclasses.replace(cfg, **LINEAR), SPEC, **parts)


# ------------------------------------------------------------------------------------------- the update, in NumPy


def decide(actor, obs):
    return np.tanh(reference.dense(obs, actor["Dense_0"]))


def values(critic, obs, action):
    return linear.outputs(critic, obs, action)[..., 0]


class Adam:
    """AdamW, leaf by leaf."""

    def __init__(self, lr, decay):
        self.lr, self.decay, self.m, self.v, self.t = lr, decay, 0.0, 0.0, 0

    def step(self, params, gradient):
        leaves, structure = jax.tree.flatten(params)
        flat = np.concatenate([np.ravel(g) for g in jax.tree.leaves(gradient)])
        self.t += 1
        self.m, self.v = 0.9 * self.m + 0.1 * flat, 0.999 * self.v + 0.001 * flat**2
        move = (self.m / (1 - 0.9**self.t)) / (np.sqrt(self.v / (1 - 0.999**self.t)) + 1e-8)
        moved, at = [], 0
        for x in leaves:
            part = move[at : at + x.size].reshape(x.shape)
            moved.append(x - self.lr * (part + self.decay * x))
            at += x.size
        return jax.tree.unflatten(structure, moved)


def numpy_update(cfg, state, batch, extra=lambda action, rows: 0.0, cost=0.0):
    """(params, target, the actor's gradient) of an update, with a term of its loss, and a cost of the next action [B]."""
    online, slow = windows.float64(state.params), windows.float64(state.target)
    obs, action, reward, next_obs, discount, valid = windows.condensed(batch, cfg.gamma)
    ahead = slow["actor"] if cfg.slow_actor else online["actor"]
    target = reward + discount * (values(slow["critic"], next_obs, decide(ahead, next_obs)).min(0) - cost)
    critic, adam = online["critic"], Adam(cfg.lr, cfg.weight_decay)
    for share in np.split(np.arange(BATCH), cfg.critic_updates):
        rows = share[valid[share]]

        def critic_loss(critic, rows=rows):
            return np.mean(np.sum((values(critic, obs[rows], action[rows]) - target[rows]) ** 2, 0) / 2)

        critic = adam.step(critic, reference.gradient(critic_loss, windows.float64(critic)))

    size = np.abs(values(critic, obs[rows], decide(online["actor"], obs[rows]))[0]).mean()

    def actor_loss(actor):
        action = decide(actor, obs[rows])
        pushed = values(critic, obs[rows], action)[0] / (size if cfg.scale_free else 1.0)
        return np.mean(extra(action, rows) - pushed)

    gradient = reference.gradient(actor_loss, windows.float64(online["actor"]))
    actor = Adam(cfg.lr, cfg.weight_decay).step(online["actor"], gradient)
    params = {"actor": actor, "critic": critic}
    return params, jax.tree.map(lambda new, old: cfg.tau * new + (1 - cfg.tau) * old, params, slow), gradient


@pytest.mark.parametrize(
    "horizon, changes",
    [(1, dict(critic_updates=1)), (3, dict(critic_updates=2)), (1, dict(critic_updates=3, slow_actor=False))],
    ids=["once", "twice_three_steps", "thrice_without_a_slow_actor"],
)
def test_update_equals_numpy(horizon, changes):
    cfg, batch = dataclasses.replace(CFG, **changes), batch_of(horizon, invalid=False)
    algo = one_layer(cfg)
    state = started(algo)
    after, metrics = jax.jit(algo.update)(state, batch, jax.random.key(1))
    params, target, _ = numpy_update(cfg, state, batch)
    close = lambda x, y: np.testing.assert_allclose(x, y, atol=2e-4)
    jax.tree.map(close, (after.params, after.target), (params, target))
    moved = jax.tree.map(lambda x, y: np.max(np.abs(x - y)), after.params, state.params)
    assert min(jax.tree.leaves(moved)) > 5e-3  # 25 times what is tolerated
    assert float(metrics["guard/skipped_updates"]) == 0.0


def test_a_scale_free_push_equals_numpy():
    """Its size is that of the values of valid rows alone; the gradient shows it, of which Adam's step hides the size."""
    cfg, batch = dataclasses.replace(CFG, scale_free=True, critic_updates=1, lr=1e-3), batch_of()
    assert not np.all(batch.valid)
    algo = one_layer(cfg)
    state = started(algo)
    after, _ = jax.jit(algo.update)(state, batch, jax.random.key(1))
    params, _, of_actor = numpy_update(cfg, state, batch)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), after.params, params)
    expected = ravel_pytree(of_actor)[0]
    found = windows.gradient_of(after.opt_state["actor"])
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.max(np.abs(expected)))


# ------------------------------------------------------------------------------------------ what must not change it


def test_invalid_rows_change_nothing():
    _, update, state = learner(td3.make, dataclasses.replace(CFG, normalize_obs=True, smoothing=0.2))
    windows.check_invalid_rows_change_nothing(update, state, batch_of(2))


@pytest.mark.parametrize("where", ["obs", "action", "reward", "next_obs"])
def test_a_batch_with_nan_changes_no_parameter_of_the_actor(where):
    """Of the critics' two shares the one without NaN is learned from; the actor waits for the next batch."""
    _, update, state = learner(td3.make, CFG)
    after, metrics = update(state, windows.spoiled(batch_of(invalid=False), where), jax.random.key(4))
    assert same(after.params["actor"], state.params["actor"]) and not same(after.params, state.params)
    assert float(metrics["guard/skipped_updates"]) == 1.0
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(after))


def test_a_batch_that_does_not_divide_is_refused():
    algo = td3.make(dataclasses.replace(CFG, critic_updates=5), SPEC)
    with pytest.raises(ValueError, match="a batch of 12 windows does not divide into 5 shares"):
        algo.update(started(algo), batch_of(), jax.random.key(0))


def test_discrete_actions_are_refused():
    with pytest.raises(ValueError, match="TD3 needs continuous actions; this environment has 2 discrete ones"):
        td3.make(CFG, windows.DISCRETE)


# -------------------------------------------------------------------------------------------------------- its parts


def test_noise_when_acting_grows_from_the_first_lane_to_the_last():
    algo = td3.make(dataclasses.replace(CFG, exploration_low=0.0, exploration_high=0.3), SPEC)
    state = algo.init(jax.random.key(0))
    obs = np.zeros((4, 3), np.float32)
    best, _ = algo.act(state, obs, None)
    drawn = jax.vmap(lambda key: algo.act(state, obs, key)[0])(jax.random.split(jax.random.key(3), 4000))
    assert np.all(np.abs(best) < 0.3)  # so that nothing is clipped
    np.testing.assert_allclose(np.std(drawn, 0), np.array([[0.0], [0.1], [0.2], [0.3]]) * np.ones(2), atol=0.02)
    assert np.all(np.abs(drawn) <= 1.0)


def test_terms_and_costs_are_added_where_they_say():
    """A cost of the next action lowers the targets by its discount; an actor's term draws the actor."""
    batch = batch_of(invalid=False)
    plain, costly = one_layer(), one_layer(cost=lambda action, steps: 2.0 * jnp.ones(len(action)))
    state = started(plain)
    one, two = (jax.jit(algo.update)(state, batch, jax.random.key(5))[1] for algo in (plain, costly))
    discount = windows.condensed(batch, CFG.gamma).discount
    np.testing.assert_allclose(one["critic/target"] - two["critic/target"], 2.0 * discount.mean(), rtol=1e-4)
    wished = jnp.full((BATCH // 2, ACTIONS), 0.7)
    term = lambda action, steps, judge, key: (
        1e3 * jnp.sum((action - wished) ** 2, -1),
        {"actor/far": jnp.mean(action)},
    )
    drawn = one_layer(actor_term=term)
    state = started(drawn)
    update = jax.jit(drawn.update)
    for i in range(300):
        state, metrics = update(state, batch, jax.random.key(i))
    np.testing.assert_allclose(metrics["actor/far"], 0.7, atol=0.1)


def test_a_distributional_critic_replaces_a_part():
    readout = distributional.categorical(-5.0, 5.0, 21)
    algo = td3.make(CFG, SPEC, readout=readout, actor_value=value.mean)
    state = started(algo)
    after, metrics = jax.jit(algo.update)(state, batch_of(), jax.random.key(6))
    assert not same(after.params, state.params) and 0.0 <= float(metrics["critic/clipped"]) <= 1.0


# ---------------------------------------------------------------------------------------------------------- learning

GAMMA = 0.9
PROBING = td3.Config(
    lr=1e-2, gamma=GAMMA, tau=0.05, actor_hidden=(16,), critic_hidden=(16,), exploration_high=0.5
)  # fmt: skip
WIDE = distributional.categorical(-3.0, 13.0, 41)


@pytest.mark.parametrize("readout", [value.regression(), WIDE], ids=["regression", "categorical"])
def test_a_truncated_episode_is_worth_what_an_endless_one_is(readout):
    env = probe.truncating(steps=5)
    state, _ = windows.learn_online(partial(td3.make, readout=readout), PROBING, env, batch_size=128)
    seen = (jnp.ones((3, 1)), jnp.array([[-0.5], [0.0], [0.5]]))
    np.testing.assert_allclose(windows.judged(PROBING, env.spec, state, seen, readout), 1.0 / (1.0 - GAMMA), atol=0.6)


def test_the_best_action_is_found():
    env = probe.continuous_action()
    state, _ = windows.learn_online(td3.make, PROBING, env, 2000, batch_size=128)
    best = jax.vmap(lambda s: td3.make(PROBING, env.spec).act(s, jnp.array([[1.0], [-1.0]]), None)[0])(state)
    np.testing.assert_allclose(best[..., 0], np.broadcast_to([0.5, -0.5], (3, 2)), atol=0.15)
