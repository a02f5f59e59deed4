"""TD3 against a float64 NumPy version of its update, with its parts replaced, and on probes whose values are known."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen import loops, nets, types
from jaxrl_gen.algos import td3
from jaxrl_gen.envs import probe, wrap
from jaxrl_gen.losses import distributional, value
from tests.algos import reference, windows
from tests.algos.windows import ACTIONS, BATCH, DISCRETE, SPEC, batch_of, same, soiled, started
from tests.losses.test_n_step import numpy_steps

CFG = td3.Config(
    lr=0.01, gamma=0.9, tau=0.1, smoothing=0.0, weight_decay=0.1, actor_hidden=(8,), critic_hidden=(8,)
)  # fmt: skip


def linear(cfg=CFG, **parts):
    """TD3 with nets of one layer."""
    critic = nets.ensemble(nets.mlp((1,)), cfg.members)
    joined = nets.Net(
        lambda key, example: critic.init(key, jax.ShapeDtypeStruct((3 + ACTIONS,), jnp.float32)),
        lambda params, x: critic.apply(params, jnp.concatenate(x, -1)),
    )
    return td3.make(cfg, SPEC, actor=nets.mlp((ACTIONS,)), critic=joined, **parts)


# ------------------------------------------------------------------------------------------- the update, in NumPy


def decide(actor, obs):
    return np.tanh(reference.dense(obs, actor["Dense_0"]))


def values(critic, obs, action):
    x, layer = np.concatenate([obs, action], -1), critic["Dense_0"]
    return np.stack([(x @ kernel + bias)[..., 0] for kernel, bias in zip(layer["kernel"], layer["bias"])])


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
    """(params, target) after one update, with a term of the actor's loss and a cost of the next action [B]."""
    online, slow, batch = windows.float64(state.params), windows.float64(state.target), windows.float64(batch)
    reward, discount, valid, last = numpy_steps(batch, cfg.gamma)
    obs, action, next_obs = batch.obs[0], batch.action[0], batch.next_obs[last, np.arange(BATCH)]
    ahead = slow["actor"] if cfg.slow_actor else online["actor"]
    target = reward + discount * (values(slow["critic"], next_obs, decide(ahead, next_obs)).min(0) - cost)
    critic, adam = online["critic"], Adam(cfg.lr, cfg.weight_decay)
    for share in np.split(np.arange(BATCH), cfg.critic_updates):
        rows = share[valid[share]]

        def critic_loss(critic, rows=rows):
            return np.mean(np.sum((values(critic, obs[rows], action[rows]) - target[rows]) ** 2, 0) / 2)

        critic = adam.step(critic, reference.gradient(critic_loss, windows.float64(critic)))

    size = np.abs(values(critic, obs[share], decide(online["actor"], obs[share]))[0] * valid[share]).mean()

    def actor_loss(actor):
        action = decide(actor, obs[rows])
        pushed = values(critic, obs[rows], action)[0] / (size if cfg.scale_free else 1.0)
        return np.mean(extra(action, rows) - pushed)

    gradient = reference.gradient(actor_loss, windows.float64(online["actor"]))
    actor = Adam(cfg.lr, cfg.weight_decay).step(online["actor"], gradient)
    params = {"actor": actor, "critic": critic}
    return params, jax.tree.map(lambda new, old: cfg.tau * new + (1 - cfg.tau) * old, params, slow)


@pytest.mark.parametrize(
    "horizon, changes",
    [(1, dict(critic_updates=1)), (3, dict(critic_updates=2)), (1, dict(critic_updates=3, slow_actor=False))],
    ids=["once", "twice_three_steps", "thrice_without_a_slow_actor"],
)
def test_update_equals_numpy(horizon, changes):
    cfg, batch = dataclasses.replace(CFG, **changes), batch_of(horizon, invalid=False)
    algo = linear(cfg)
    state = started(algo)
    after, metrics = jax.jit(algo.update)(state, batch, jax.random.key(1))
    params, target = numpy_update(cfg, state, batch)
    close = lambda x, y: np.testing.assert_allclose(x, y, atol=2e-4)
    jax.tree.map(close, (after.params, after.target), (params, target))
    moved = jax.tree.map(lambda x, y: np.max(np.abs(x - y)), after.params, state.params)
    assert min(jax.tree.leaves(moved)) > 5e-3  # 25 times what is tolerated
    assert float(metrics["guard/skipped_updates"]) == 0.0


def test_a_scale_free_push_equals_numpy():
    cfg, batch = dataclasses.replace(CFG, scale_free=True, critic_updates=1, lr=1e-3), batch_of(invalid=False)
    algo = linear(cfg)
    state = started(algo)
    after, _ = jax.jit(algo.update)(state, batch, jax.random.key(1))
    params, _ = numpy_update(cfg, state, batch)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-5), after.params, params)


# ------------------------------------------------------------------------------------------ what must not change it


@cache
def learner(**changes):
    algo = td3.make(dataclasses.replace(CFG, **changes), SPEC)
    return algo, jax.jit(algo.update), started(algo)


@pytest.mark.parametrize("garbage", [50.0, np.nan])
def test_invalid_rows_change_nothing(garbage):
    _, update, state = learner(normalize_obs=True, smoothing=0.2)
    batch = batch_of(2)
    one, _ = update(state, batch, jax.random.key(2))
    two, _ = update(state, soiled(batch, garbage), jax.random.key(2))
    assert not same(one.params, state.params) and same(one, two)


@pytest.mark.parametrize("where", ["obs", "action", "reward", "next_obs"])
def test_a_batch_with_nan_changes_no_parameter_of_the_actor(where):
    """Of the critics' two shares the one without NaN is learned from; the actor waits for the next batch."""
    _, update, state = learner()
    batch = batch_of(invalid=False)
    spoiled = getattr(batch, where).copy()
    spoiled[0, 4] = np.nan
    terminated = np.zeros_like(batch.terminated)
    after, metrics = update(state, batch._replace(**{where: spoiled}, terminated=terminated), jax.random.key(4))
    assert same(after.params["actor"], state.params["actor"]) and not same(after.params, state.params)
    assert float(metrics["guard/skipped_updates"]) == 1.0
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(after))


def test_a_batch_that_does_not_divide_is_refused():
    algo = td3.make(dataclasses.replace(CFG, critic_updates=5), SPEC)
    with pytest.raises(ValueError, match="a batch of 12 windows does not divide into 5 shares"):
        algo.update(started(algo), batch_of(), jax.random.key(0))


def test_discrete_actions_are_refused():
    with pytest.raises(ValueError, match="TD3 needs continuous actions; this environment has 2 discrete ones"):
        td3.make(CFG, DISCRETE)


# -------------------------------------------------------------------------------------------------------- its parts


def test_noise_when_acting_grows_from_the_first_lane_to_the_last():
    algo, _, _ = learner(exploration_low=0.0, exploration_high=0.3)
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
    plain, costly = linear(), linear(cost=lambda action, steps: 2.0 * jnp.ones(len(action)))
    state = started(plain)
    one, two = (jax.jit(algo.update)(state, batch, jax.random.key(5))[1] for algo in (plain, costly))
    _, discount, _, _ = numpy_steps(windows.float64(batch), CFG.gamma)
    np.testing.assert_allclose(one["critic/target"] - two["critic/target"], 2.0 * discount.mean(), rtol=1e-4)
    wished = jnp.full((BATCH // 2, ACTIONS), 0.7)
    term = lambda action, steps, judge, key: (
        1e3 * jnp.sum((action - wished) ** 2, -1),
        {"actor/far": jnp.mean(action)},
    )
    drawn = linear(actor_term=term)
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

GAMMA, HIDDEN, SEEDS = 0.9, (16,), 3
PROBING = td3.Config(lr=1e-2, gamma=GAMMA, tau=0.05, actor_hidden=HIDDEN, critic_hidden=HIDDEN, exploration_high=0.5)


def train(env, updates, readout=value.regression(), horizon=1):
    """States of all seeds after learning from interaction."""
    loop = loops.population(loops.off_policy(
        partial(td3.make, readout=readout), wrap.fresh(env, 8), steps=2, updates=4, batch_size=128, capacity=2000,
        warmup=64, iterations=updates // 4, horizon=horizon,
    ))  # fmt: skip
    cfg = types.strong(PROBING)
    carry = jax.jit(loop.init)(cfg, jax.random.split(jax.random.key(0), SEEDS))
    return jax.jit(loop.chunk)(cfg, carry)[0].state


def judged(env, state, obs, readout):
    example = (env.spec.obs, jax.ShapeDtypeStruct((env.spec.action_size,), jnp.float32))
    critic = nets.ensemble(nets.flat(nets.mlp((*HIDDEN, readout.size), jax.nn.relu), example), 2)
    return jax.vmap(lambda params: readout.value(critic.apply(params["critic"], obs)))(state.params)


WIDE = distributional.categorical(-3.0, 13.0, 41)


@pytest.mark.parametrize("readout", [value.regression(), WIDE], ids=["regression", "categorical"])
def test_a_truncated_episode_is_worth_what_an_endless_one_is(readout):
    env = probe.truncating(steps=5)
    state = train(env, 800, readout)
    found = judged(env, state, (jnp.ones((3, 1)), jnp.array([[-0.5], [0.0], [0.5]])), readout)
    np.testing.assert_allclose(found, 1.0 / (1.0 - GAMMA), atol=0.6)


def test_the_best_action_is_found():
    env = probe.continuous_action()
    state = train(env, 2000)
    best = jax.vmap(lambda s: td3.make(PROBING, env.spec).act(s, jnp.array([[1.0], [-1.0]]), None)[0])(state)
    np.testing.assert_allclose(best[..., 0], np.broadcast_to([0.5, -0.5], (SEEDS, 2)), atol=0.15)
