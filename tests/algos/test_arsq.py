"""ARSQ against a float64 NumPy version of its update and of its policy, and on bandits whose soft values are known."""

import dataclasses
import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrl_gen import nets
from jaxrl_gen.algos import arsq
from jaxrl_gen.envs import probe
from jaxrl_gen.losses import autoregressive
from jaxrl_gen.types import Env, Spec, Transition
from tests.algos import reference, windows
from tests.algos.linear import outputs
from tests.algos.windows import ACTIONS, BATCH, DISCRETE, FEATURES, SPEC, batch_of, learner, started
from tests.losses.test_autoregressive import CONTEXTS, EVERY_CONTEXT, intervals, numpy_context

LEVELS, BINS = 2, 3
PLACES, CELLS = LEVELS * ACTIONS, BINS**LEVELS
CFG = arsq.Config(
    lr=0.01, gamma=0.9, tau=0.1, temperature=0.5, margin=0.3, margin_coefficient=0.7, levels=LEVELS, bins=BINS,
    hidden=(8,), normalize_obs=False,
)  # fmt: skip


def one_layer(conditioning):
    """ARSQ with nets of one layer."""
    return arsq.make(dataclasses.replace(CFG, hidden=()), SPEC, conditioning=conditioning)


# ------------------------------------------------------------------------------------------- the update, in NumPy


def numpy_tokens(action):
    """[B, A] -> [B, L, A], by looking for the interval level after level."""
    tokens = np.zeros((len(action), LEVELS, action.shape[1]), int)
    for b, a in np.ndindex(action.shape):
        for level in range(LEVELS):
            low, high = intervals(tokens[b, :level, a], BINS)
            tokens[b, level, a] = np.clip(np.floor((action[b, a] - low) / (high - low) * BINS), 0, BINS - 1)
    return tokens


def numpy_contexts(tokens, conditioning):
    """[B, L A, C]."""
    sees = conditioning is autoregressive.sequential
    return np.array([[numpy_context(row, place, BINS, sees) for place in range(PLACES)] for row in tokens])


def numpy_advantages(params, obs, contexts, temperature):
    """[B, L A, K], normalised."""
    x = np.concatenate([np.broadcast_to(obs[:, None], (*contexts.shape[:2], FEATURES)), contexts], -1)
    logits = reference.dense(x, params["advantage"]["Dense_0"]) / temperature
    largest = logits.max(-1, keepdims=True)
    return temperature * (logits - largest - np.log(np.sum(np.exp(logits - largest), -1, keepdims=True)))


def numpy_gradient(state, batch, conditioning):
    """The gradient of ARSQ's loss by central differences."""
    frozen, slow = windows.float64(state.params), windows.float64(state.target)
    obs, action, reward, next_obs, discount, valid = windows.condensed(batch, CFG.gamma)
    judge = lambda params, obs: outputs(params, obs)[..., 0]
    target = reward + discount * judge(slow, next_obs).min(0)
    tokens = numpy_tokens(action)
    contexts, chosen = numpy_contexts(tokens, conditioning), tokens.reshape(BATCH, PLACES, 1)
    shown = valid & batch.extras["demonstration"][0] if batch.extras else valid
    assert 0 < shown.sum() < BATCH

    def total(params):
        advantages = numpy_advantages(params, obs, contexts, CFG.temperature)
        taken = np.take_along_axis(advantages, chosen, -1)
        error = (judge(params["value"], obs) + taken[..., 0].sum(1) - target) ** 2 / 2
        hinge = np.maximum(advantages - taken + CFG.margin, 0.0) * (np.arange(BINS) != chosen)
        return error.sum(0)[valid].mean() + CFG.margin_coefficient * hinge.mean(-1).sum(1)[shown].mean()

    return reference.gradient(total, frozen)


def marked(batch, seed=5):
    """The batch with demonstrations in it, but for one valid row at least."""
    shown = np.random.default_rng(seed).random(batch.valid.shape) < 0.5
    return batch._replace(extras={"demonstration": shown})


@pytest.mark.parametrize("horizon, marks", [(1, lambda batch: batch), (3, marked)], ids=["all_rows", "marked_rows"])
@EVERY_CONTEXT
def test_update_equals_numpy(context, horizon, marks):
    algo, batch = one_layer(context), marks(batch_of(horizon))
    state = started(algo)
    after, metrics = jax.jit(algo.update)(state, batch, jax.random.key(1))
    windows.close_to_numpy(state, after, numpy_gradient(state, batch, context), CFG.lr)
    windows.check_moved_slowly(after, state, after.params["value"])
    assert float(metrics["guard/skipped_updates"]) == 0.0


# ------------------------------------------------------------------------------------------------------- the policy


@EVERY_CONTEXT
def test_actions_are_drawn_from_the_product_of_conditionals(context):
    """All 81 cells of two coordinates, counted, against NumPy's product; and without a key, one greedy walk."""
    algo = one_layer(context)
    state, count = started(algo), 40_000
    obs = np.random.default_rng(7).normal(size=FEATURES).astype(np.float32)
    every = np.array(list(itertools.product(range(BINS), repeat=PLACES))).reshape(-1, LEVELS, ACTIONS)
    params = windows.float64(state.params)
    advantages = numpy_advantages(params, obs[None].repeat(len(every), 0), numpy_contexts(every, context), 0.5)
    taken = np.take_along_axis(advantages, every.reshape(-1, PLACES, 1), -1)[..., 0]
    probability = np.exp(taken.sum(1) / CFG.temperature)
    np.testing.assert_allclose(probability.sum(), 1.0, rtol=1e-9)
    actions = jax.jit(algo.act)(state, np.broadcast_to(obs, (count, FEATURES)), jax.random.key(8))[0]
    cell = lambda action: np.rint((np.asarray(action) + 1.0) * CELLS / 2 - 0.5).astype(int) @ [CELLS, 1]
    centres = [[np.mean(intervals(row[:, a], BINS)) for a in range(ACTIONS)] for row in every]
    drawn = np.bincount(cell(actions), minlength=CELLS**2)[cell(centres)]
    often = count * probability > 5
    observed, expected = (np.append(x[often], x[~often].sum()) for x in (drawn, count * probability))
    assert drawn.sum() == count and stats.chisquare(observed[expected > 0], expected[expected > 0]).pvalue > 1e-3
    best, walk = np.zeros((LEVELS, ACTIONS), int), advantages.reshape(-1, LEVELS, ACTIONS, BINS)
    for level, coordinate in np.ndindex(LEVELS, ACTIONS):
        (row,) = np.flatnonzero(np.all(every == best, (1, 2)))
        best[level, coordinate] = np.argmax(walk[row, level, coordinate])
    expected = [np.mean(intervals(best[:, a], BINS)) for a in range(ACTIONS)]
    np.testing.assert_allclose(algo.act(state, obs, None)[0], expected, atol=1e-6)  # of one observation, no batch


def test_lanes_are_drawn_apart():
    algo = one_layer(autoregressive.sequential)
    obs = jnp.zeros((5, 4, FEATURES))
    action, extras = algo.act(started(algo), obs, jax.random.key(9))
    assert action.shape == (5, 4, ACTIONS) and extras == {}
    assert len(np.unique(np.asarray(action).reshape(20, -1), axis=0)) > 5


# ------------------------------------------------------------------------------------------ what must not change it


NORMALIZED = dataclasses.replace(CFG, normalize_obs=True)


def test_invalid_rows_change_nothing():
    _, update, state = learner(arsq.make, NORMALIZED)
    windows.check_invalid_rows_change_nothing(update, state, marked(batch_of(2)))


@pytest.mark.parametrize("where", ["obs", "action", "reward", "next_obs"])
def test_a_batch_with_nan_changes_no_parameter(where):
    _, update, state = learner(arsq.make, NORMALIZED)
    windows.check_nan_changes_no_parameter(update, state, marked(batch_of(2, invalid=False)), where)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match="ARSQ needs continuous actions; this environment has 2 discrete ones"):
        arsq.make(CFG, DISCRETE)
    with pytest.raises(ValueError, match="8 levels of 7 bins; allowed"):
        arsq.make(dataclasses.replace(CFG, levels=8, bins=7), SPEC)


# --------------------------------------------------------------------------------------------------------- learning


def test_soft_value_and_policy_of_one_step():
    """V = alpha log sum_cells exp(r / alpha), and actions are drawn from exp((r - V) / alpha)."""
    env, alpha = probe.continuous_action(), 0.2
    rows = windows.rows_of(env, 20_000)
    cfg = dataclasses.replace(CFG, lr=3e-3, temperature=alpha, margin_coefficient=0.0, hidden=(32,))
    state, _ = windows.learn_offline(arsq.make, cfg, env, rows, 1000, seeds=2, batch_size=256)
    net = nets.ensemble(nets.flat(nets.mlp((32, 1), jax.nn.relu), env.spec.obs), cfg.members)
    for sign in (1.0, -1.0):
        edges = np.linspace(-1, 1, CELLS + 1)
        centre, half = (edges[1:] + edges[:-1]) / 2, 1.0 / CELLS
        reward = 1.0 - (centre - 0.5 * sign) ** 2 - half**2 / 3  # averaged over a cell
        soft = alpha * np.log(np.sum(np.exp(reward / alpha)))
        obs = jnp.full((8000, 1), sign)
        judged = jax.vmap(lambda params: net.apply(params["value"], obs[0])[..., 0].mean(0))(state.params)
        np.testing.assert_allclose(judged, soft, atol=0.06)
        act = lambda s, key: arsq.make(cfg, env.spec).act(s, obs, key)[0][:, 0]
        for actions in jax.vmap(act, in_axes=(0, None))(state, jax.random.key(10)):
            share = np.histogram(actions, edges)[0] / len(actions)
            np.testing.assert_allclose(share, np.exp((reward - soft) / alpha), atol=0.04)
        greedy = jax.vmap(lambda s: act(s, None)[0])(state)
        assert np.all(np.abs(greedy - 0.5 * sign) < 0.25)


def test_the_value_counts_the_entropy_to_come():
    """No action matters: each step is worth its reward and alpha log(cells), up to the end of the episode."""
    env, alpha, steps = probe.terminating(3), 0.3, 3
    rows = windows.rows_of(env, 3000)
    cfg = dataclasses.replace(CFG, lr=3e-3, temperature=alpha, margin_coefficient=0.0, hidden=(32,), tau=0.05)
    state, _ = windows.learn_offline(arsq.make, cfg, env, rows, 1000, seeds=2, batch_size=64)
    net = nets.ensemble(nets.flat(nets.mlp((32, 1), jax.nn.relu), env.spec.obs), cfg.members)
    judged = jax.vmap(lambda params: net.apply(params["value"], jnp.eye(steps))[..., 0].mean(0))(state.params)
    each = 1.0 + alpha * np.log(CELLS)
    oracle = [each * (1 - cfg.gamma ** (steps - t)) / (1 - cfg.gamma) for t in range(steps)]
    np.testing.assert_allclose(judged, np.broadcast_to(oracle, (2, steps)), atol=0.15)


def crossed(count=8192, seed=0):
    """Either sign is good if both coordinates have it: half of the log near two good actions, half anywhere."""
    rng = np.random.default_rng(seed)
    good = rng.choice([-0.5, 0.5], (count, 1)) + 0.1 * rng.normal(size=(count, 2))
    action = np.where(rng.random((count, 1)) < 0.5, good, rng.uniform(-1, 1, (count, 2))).clip(-1, 1)
    ones = jnp.ones((count, 1))
    return Transition(
        ones, jnp.asarray(action, jnp.float32), jnp.asarray(paid(action), jnp.float32), ones, jnp.ones(count, bool),
        jnp.zeros(count, bool), jnp.ones(count, bool),
    )  # fmt: skip


def paid(action):
    """One where both coordinates agree in sign, minus one where they do not."""
    return np.prod(np.sign(action), -1)


def test_coordinates_that_know_of_one_another_keep_two_modes_apart():
    """Independent ones, of the same log, put one action where the signs cross rather than two where they agree."""
    rows = crossed()
    assert 0.45 < rows.reward.mean() < 0.55
    env = Env(None, None, Spec(jax.ShapeDtypeStruct((1,), jnp.float32), 2))
    cfg = arsq.Config(lr=5e-3, temperature=0.1, levels=2, bins=4, hidden=(32,), normalize_obs=False)
    scores, corners = {}, {}
    for name, conditioning in CONTEXTS.items():
        make = partial(arsq.make, conditioning=conditioning)
        state, _ = windows.learn_offline(make, cfg, env, rows, 800, seeds=2, batch_size=128)
        act = lambda s: make(cfg, env.spec).act(s, jnp.ones((2000, 1)), jax.random.key(11))[0]
        actions = np.asarray(jax.vmap(act)(state))
        scores[name], corners[name] = paid(actions).mean(1), (actions[..., 0] > 0).mean(1)
    assert np.all(scores["sequential"] > 0.9), scores
    assert np.all((corners["sequential"] > 0.2) & (corners["sequential"] < 0.8)), corners  # both modes, not one
    assert np.all(scores["factorised"] < 0.5), scores
