"""Batches of windows, states away from their start, gradients read off the optimiser: for tests of TD algorithms."""

from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree

from jaxrl_gen import loops, types
from jaxrl_gen.algos import critics
from jaxrl_gen.envs import wrap
from jaxrl_gen.losses import value
from jaxrl_gen.types import Env, Spec, Transition

FEATURES, ACTIONS, BATCH = 3, 2, 12
SPEC = Spec(jax.ShapeDtypeStruct((FEATURES,), jnp.float32), ACTIONS)
DISCRETE = SPEC._replace(discrete=True)
MODEST = dict(actor_hidden=(8,), critic_hidden=(8,))
LINEAR = dict(actor_hidden=(), critic_hidden=())  # nets of one layer: the modules of `linear` in NumPy


def batch_of(horizon=1, seed=0, invalid=True, spec=SPEC):
    """A Transition of NumPy arrays [H, B, ...] with both kinds of ends and invalid rows."""
    rng = np.random.default_rng(seed)
    shape = (horizon, BATCH)
    draw = lambda *more: rng.normal(size=shape + more).astype(np.float32)
    valid = (rng.random(shape) > 0.15) if invalid else np.ones(shape, bool)
    terminated = (rng.random(shape) < 0.2) & valid
    truncated = ((rng.random(shape) < 0.2) & ~terminated) | ~valid
    action = rng.integers(0, ACTIONS, shape).astype(np.int32) if spec.discrete else np.tanh(draw(ACTIONS))
    return Transition(draw(FEATURES), action, draw(), draw(FEATURES), terminated, truncated, valid)


def started(algo, seed=0):
    """A State whose every parameter, and target, is away from its initialisation."""
    state = algo.init(jax.random.key(seed))
    rng = np.random.default_rng(seed)
    move = lambda x: jnp.asarray(x + rng.normal(0.0, 0.4, x.shape), jnp.float32)
    state = state._replace(params=jax.tree.map(move, state.params))
    return state._replace(target=jax.tree.map(move, state.target)) if hasattr(state, "target") else state


def soiled(batch, garbage):
    """The batch with `garbage` (a number, NaN too) in all that its invalid rows hold."""

    def soil(x):
        shaped = batch.valid.reshape(batch.valid.shape + (1,) * (x.ndim - 2))
        return np.where(shaped, x, np.asarray(garbage if x.dtype == np.float32 else 1, x.dtype))

    return batch._replace(
        obs=soil(batch.obs), action=soil(batch.action), reward=soil(batch.reward), next_obs=soil(batch.next_obs)
    )


def spoiled(batch, where):
    """The batch with NaN in all rows of one window, and no termination, which would hide what comes after it."""
    numbers = getattr(batch, where).copy()
    numbers[:, 4] = np.nan
    return batch._replace(**{where: numbers}, terminated=np.zeros_like(batch.terminated))


# ----------------------------------------------------------------------------------------------- windows, in NumPy


class Condensed(NamedTuple):
    """Windows as single steps in float64, leaves [B, ...]."""

    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    next_obs: np.ndarray
    discount: np.ndarray
    valid: np.ndarray


def numpy_steps(window, gamma):
    """(reward, discount, valid, index of the last row) of each window, row by row."""
    horizon, batch = window.reward.shape
    reward, discount, valid, last = np.zeros(batch), np.zeros(batch), np.ones(batch, bool), np.zeros(batch, int)
    for b in range(batch):
        for k in range(horizon):
            reward[b] += gamma**k * float(window.reward[k, b])
            discount[b] = gamma ** (k + 1) * (not window.terminated[k, b])
            valid[b] &= window.valid[k, b]
            last[b] = k
            if window.terminated[k, b] or window.truncated[k, b]:
                break
    return reward, discount, valid, last


def condensed(batch, gamma):
    """A batch by those loops."""
    batch = float64(batch)
    reward, discount, valid, last = numpy_steps(batch, gamma)
    assert len(batch.reward) == 1 or np.any(last > 0)
    next_obs = batch.next_obs[last, np.arange(len(last))]
    return Condensed(batch.obs[0], batch.action[0], reward, next_obs, discount, valid)


# ------------------------------------------------------------------------------------------------ what all promise


@cache
def updating(make, spec=SPEC):
    """`(cfg, state, batch, key) -> (state, metrics)`, one program for all Configs that differ in floats alone."""
    return jax.jit(lambda cfg, state, batch, key: make(cfg, spec).update(state, batch, key))


@cache
def learner(make, cfg, spec=SPEC):
    """(Algorithm, its update jitted, a State)."""
    algo = make(cfg, spec)
    return algo, partial(updating(make, spec), types.strong(cfg)), started(algo)


def check_invalid_rows_change_nothing(update, state, batch):
    """Whatever number they hold, and NaN."""
    one, _ = update(state, batch, jax.random.key(2))
    assert not same(one.params, state.params)
    for garbage in (50.0, np.nan):
        assert same(one, update(state, soiled(batch, garbage), jax.random.key(2))[0]), garbage


def check_nan_changes_no_parameter(update, state, batch, where):
    """Of a State whose optimiser has momentum."""
    state, _ = update(state, batch, jax.random.key(3))
    after, metrics = update(state, spoiled(batch, where), jax.random.key(4))
    assert same(after.params, state.params) and float(metrics["guard/skipped_updates"]) == 1.0
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(after))


def check_moved_slowly(after, before, online, tau=0.1):
    """The target went the share `tau` of the way to the online parameters."""
    for slow, old, new in zip(*(jax.tree.leaves(x) for x in (after.target, before.target, online)), strict=True):
        np.testing.assert_allclose(slow, (1 - tau) * np.asarray(old, np.float64) + tau * np.asarray(new), atol=1e-6)


# ------------------------------------------------------------------------------------------------------- gradients


def gradient_of(opt_state):
    """The gradient of the first update, from Adam's first moment: a vector."""
    return np.asarray(ravel_pytree(optax.tree.get(opt_state, "mu"))[0], np.float64) / 0.1


def adam(params, gradient, lr):
    """Parameters after Adam's first step, in float64."""
    return jax.tree.map(lambda x, g: x - lr * g / (np.abs(g) + 1e-8), params, gradient)


def close_to_numpy(before, after, expected, lr, of=lambda state: (state.params, state.opt_state)):
    """The first update had the expected gradient (a pytree), and took Adam's step along it.

    `of(state)` are the parameters in question, and their optimiser's state.
    """
    (before, _), (params, opt_state) = of(before), of(after)
    expected, parameters = (np.asarray(ravel_pytree(x)[0], np.float64) for x in (expected, before))
    scale = np.max(np.abs(expected))
    assert scale > 1e-2
    np.testing.assert_allclose(gradient_of(opt_state), expected, atol=scale * 1e-4)
    clear = np.abs(expected) > scale * 1e-2  # the sign of what is nearly zero is anyone's
    moved = np.asarray(ravel_pytree(params)[0], np.float64) - parameters
    np.testing.assert_allclose(moved[clear], -lr * np.sign(expected[clear]), rtol=1e-3, atol=1e-6)


def float64(tree):
    """A copy with float64 for float32."""
    return jax.tree.map(lambda x: np.array(x, np.float64) if x.dtype == np.float32 else np.asarray(x), tree)


def same(one, two):
    """Whether two pytrees are equal to the bit."""
    leaves = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    return all(np.array_equal(x, y, equal_nan=True) for x, y in leaves)


# -------------------------------------------------------------------------------------------------------- learning


@cache
def rows_of(env, count, seed=0):
    """`count` one-row windows of one lane under uniformly random actions, leaves [count, ...], for `draw`."""

    def episode(carry, key):
        state, obs = carry
        keys = jax.random.split(key, 3)
        if env.spec.discrete:
            action = jax.random.randint(keys[0], (), 0, env.spec.action_size)
        else:
            action = jax.random.uniform(keys[0], (env.spec.action_size,), minval=-1.0)
        after, seen, outcome = env.step(state, action, keys[1])
        over = types.ended(outcome)
        row = Transition(
            obs, action, outcome.reward, outcome.next_obs, outcome.terminated, outcome.truncated, outcome.valid
        )
        choose = lambda x, y: jax.tree.map(lambda x, y: jnp.where(over, x, y), x, y)
        return choose(env.reset(keys[2]), (after, seen)), row

    key_reset, key_steps = jax.random.split(jax.random.key(seed))
    return jax.jit(lambda: jax.lax.scan(episode, env.reset(key_reset), jax.random.split(key_steps, count))[1])()


def draw(batch_size):
    """`(rows, key) -> Transition [1, B, ...]`, for `loops.offline`."""

    def sample(rows, key):
        chosen = jax.random.randint(key, (batch_size,), 0, len(rows.reward))
        return jax.tree.map(lambda x: x[chosen][None], rows)

    return sample


def trained(loop, cfg, seeds=3):
    """(States of all seeds [S, ...], metrics [S]) after one chunk of a Loop."""
    loop, cfg = loops.population(loop), types.strong(cfg)
    carry = jax.jit(loop.init)(cfg, jax.random.split(jax.random.key(0), seeds))
    carry, metrics = jax.jit(loop.chunk)(cfg, carry, *loop.data)
    return carry.state, metrics


@cache
def offline(make, spec, updates, batch_size):
    """(init, chunk) of a population that learns from rows: one program for Configs that differ in floats alone."""
    env = Env(None, None, spec)
    loop = loops.population(loops.offline(make, env, draw(batch_size), ((),), updates=updates))
    return jax.jit(loop.init), jax.jit(loop.chunk)


def learn_offline(make, cfg, env, rows, updates, seeds=3, batch_size=64, chunks=1):
    """The same after learning from the rows; the metrics are of the last chunk of so many updates."""
    init, chunk = offline(make, env.spec, updates, batch_size)
    cfg = types.strong(cfg)
    carry = init(cfg, jax.random.split(jax.random.key(0), seeds))
    for _ in range(chunks):
        carry, metrics = chunk(cfg, carry, rows)
    return carry.state, metrics


def learn_online(make, cfg, env, updates=800, batch_size=64, horizon=1):
    """The same after learning from interaction with eight lanes, of which a replay remembers 2,000 steps each."""
    loop = loops.off_policy(
        make, wrap.fresh(env, 8), steps=2, updates=4, batch_size=batch_size, capacity=2000, warmup=64,
        iterations=updates // 4, horizon=horizon,
    )  # fmt: skip
    return trained(loop, cfg)


def judged(cfg, spec, states, seen, readout=value.regression()):
    """What critics [S, N, B] of default widths say of observations and actions [B, ...]."""
    critic = critics.perceptrons(spec, cfg.critic_hidden, cfg.members, readout.size)
    return jax.vmap(lambda params: readout.value(critic.apply(params["critic"], seen)))(states.params)
