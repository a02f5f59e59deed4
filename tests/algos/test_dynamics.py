"""Models of a linear world with known noise must find it; imagined rollouts equal a loop written by hand."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen import loops, types
from jaxrl_gen.algos import dynamics
from jaxrl_gen.losses import dynamics as losses
from jaxrl_gen.types import Env, Spec, Transition
from tests.algos import windows
from tests.algos.windows import SPEC, batch_of, same, soiled

CFG = dynamics.Config(members=4, elites=2, hidden=(32, 32), lr=3e-3)
D, A = 3, 2
NOISE = np.array([0.05, 0.1, 0.2, 0.1])  # of the three features and the reward


def world(seed=0):
    """next = s + M (s, a) + noise and r = m (s, a) + noise, as numbers of float64."""
    rng = np.random.default_rng(seed)
    return 0.3 * rng.normal(size=(D + 1, D + A))


def rows_of(count, seed=0):
    """Rows of the linear world, leaves [count, ...]."""
    rng = np.random.default_rng(seed + 1)
    obs, action = rng.normal(size=(count, D)), rng.uniform(-1.0, 1.0, (count, A))
    change = np.concatenate([obs, action], -1) @ world().T + NOISE * rng.normal(size=(count, D + 1))
    f = lambda x: jnp.asarray(x, jnp.float32)
    no = jnp.zeros(count, bool)
    return Transition(f(obs), f(action), f(change[:, -1]), f(obs + change[:, :-1]), no, no, ~no)


@cache
def learned(updates=1500, count=4000):
    """(Algorithm, State) of an ensemble that learned from the linear world."""
    env = Env(None, None, SPEC)
    loop = loops.offline(dynamics.make, env, windows.draw(128), (rows_of(count),), updates=updates)
    cfg = types.strong(CFG)
    carry, metrics = jax.jit(loop.chunk)(cfg, jax.jit(loop.init)(cfg, jax.random.key(0)), *loop.data)
    return dynamics.make(CFG, SPEC), carry.state, metrics


def test_the_means_and_the_noise_of_a_linear_world_are_found():
    algo, state, _ = learned()
    rng = np.random.default_rng(5)
    obs, action = rng.normal(size=(64, D)), rng.uniform(-1.0, 1.0, (64, A))
    next_obs, said = jax.jit(lambda *x: algo.act(state, x, None))(jnp.float32(obs), jnp.float32(action))
    truth = np.concatenate([obs, action], -1) @ world().T
    np.testing.assert_allclose(np.asarray(next_obs) - obs, truth[:, :-1], atol=0.2)
    error = np.concatenate([np.asarray(next_obs) - obs, np.asarray(said["reward"])[:, None]], -1) - truth
    assert np.sqrt((error**2).mean(0)).max() < 0.06
    assert said["mean"].shape == said["std"].shape == (CFG.elites, 64, D + 1)
    np.testing.assert_allclose(np.asarray(said["std"]).mean((0, 1)), NOISE, rtol=0.2)


def test_what_is_drawn_has_the_mean_and_the_noise_that_is_said():
    algo, state, _ = learned()
    many = jnp.zeros((20_000, D)), jnp.zeros((20_000, A))
    next_obs, said = jax.jit(lambda key: algo.act(state, many, key))(jax.random.key(1))
    drawn = np.concatenate([next_obs, said["reward"][:, None]], -1).astype(np.float64)
    mean, std = (np.asarray(said[name], np.float64)[:, 0] for name in ("mean", "std"))
    np.testing.assert_allclose(drawn.mean(0), mean.mean(0), atol=0.01)
    mixture = np.sqrt((std**2).mean(0) + mean.var(0))  # of the elites, drawn alike often
    np.testing.assert_allclose(drawn.std(0), mixture, rtol=0.03)
    again, _ = jax.jit(lambda key: algo.act(state, many, key))(jax.random.key(2))
    assert np.all(np.asarray(again) != np.asarray(next_obs))


def test_members_that_err_less_on_rows_apart_predict():
    """Of members one of whom knows nothing any more, that one is no elite."""
    algo, state, _ = learned()
    assert float(state.counted) == 1500 and np.all(np.asarray(state.error) > 0)
    # What no model can know is the noise, whose mean square over features a good member errs by.
    assert np.asarray(state.error).min() == pytest.approx((NOISE**2).mean(), rel=0.3)
    worst = int(np.argmax(np.asarray(state.error)))
    spoil = lambda x: x.at[worst].set(jnp.nan)
    spoiled = state._replace(params=state.params | {"models": jax.tree.map(spoil, state.params["models"])})
    next_obs, said = algo.act(spoiled, (jnp.ones((5, D)), jnp.ones((5, A))), jax.random.key(3))
    assert np.all(np.isfinite(next_obs)) and np.all(np.isfinite(said["mean"]))
    best = int(np.argmin(np.asarray(state.error)))
    spoil = lambda x: x.at[best].set(jnp.nan)
    spoiled = state._replace(params=state.params | {"models": jax.tree.map(spoil, state.params["models"])})
    _, said = algo.act(spoiled, (jnp.ones((5, D)), jnp.ones((5, A))), None)
    assert np.any(np.isnan(said["mean"]))


def test_members_disagree_where_there_are_no_data():
    algo, state, _ = learned()
    doubt = lambda scale: losses.disagreement(
        *(algo.act(state, (scale * jnp.ones((1, D)), jnp.zeros((1, A))), None)[1][name] for name in ("mean", "std"))
    )
    assert float(doubt(8.0)[0]) > 4.0 * float(doubt(0.3)[0])


# -------------------------------------------------------------------------------------------------------- the update


@cache
def learner(**changes):
    algo = dynamics.make(dataclasses.replace(CFG, **changes), SPEC)
    return algo, jax.jit(algo.update), algo.init(jax.random.key(0))


def test_the_first_gradient_equals_one_by_hand():
    """One member of one layer, without rows apart: the mean over valid rows of weight times negative log-likelihood."""
    cfg = dataclasses.replace(CFG, members=1, elites=1, hidden=(), held_out=0.0, weight_decay=0.0)
    algo, batch = dynamics.make(cfg, SPEC), batch_of(2)
    state = algo.init(jax.random.key(0))
    after, _ = jax.jit(algo.update)(state, batch, jax.random.key(1))
    flat = lambda x: np.asarray(x, np.float64).reshape(-1, *x.shape[2:])
    obs, action, reward, next_obs, valid = (
        flat(x) for x in (batch.obs, batch.action, batch.reward, batch.next_obs, batch.valid)
    )
    valid = valid.astype(bool)
    rows = np.where(valid[:, None], np.concatenate([obs, action], -1), 0.0).astype(np.float32)
    weight = np.asarray(losses.bootstrap_weights(losses.fingerprint(rows), 1), np.float64)[0]
    x = rows.astype(np.float64)
    x = np.clip((x - x[valid].mean(0)) / np.maximum(x[valid].std(0), 1e-4), -10, 10)
    target = np.concatenate([next_obs - obs, reward[:, None]], -1)
    softplus = lambda z: np.logaddexp(0.0, z)

    def total(params):
        layer = params["models"]["Dense_0"]
        output = x @ layer["kernel"][0] + layer["bias"][0]
        mean, raw = np.split(output, 2, -1)
        low, high = params["low"], params["high"]
        log_variance = low + softplus(high - softplus(high - raw) - low)
        nll = 0.5 * ((target - mean) ** 2 / np.exp(log_variance) + log_variance + np.log(2 * np.pi)).sum(-1)
        return (weight * nll)[valid].mean() + cfg.range_coefficient * (high - low).sum()

    from tests.algos import reference

    expected = reference.gradient(total, windows.float64(state.params))
    windows_close(state, after, expected, cfg.lr)


def windows_close(before, after, expected, lr):
    """The first step of Adam has a length of `lr` along the expected gradient's signs."""
    for old, new, slope in zip(*(jax.tree.leaves(x) for x in (before.params, after.params, expected)), strict=True):
        clear = np.abs(slope) > 1e-4
        assert np.any(clear)
        moved = np.asarray(new, np.float64) - np.asarray(old, np.float64)
        np.testing.assert_allclose(moved[clear], -lr * np.sign(slope[clear]), rtol=2e-2)


@pytest.mark.parametrize("garbage", [50.0, np.nan])
def test_invalid_rows_change_nothing(garbage):
    _, update, state = learner()
    batch = batch_of(2)
    one, _ = update(state, batch, jax.random.key(2))
    two, _ = update(state, soiled(batch, garbage), jax.random.key(2))
    assert not same(one.params, state.params) and same(one, two)


def test_a_batch_with_nan_changes_no_parameter():
    _, update, state = learner()
    batch = batch_of(invalid=False)
    state, _ = update(state, batch, jax.random.key(3))
    spoiled = batch.next_obs.copy()
    spoiled[0, 4] = np.nan
    after, metrics = update(state, batch._replace(next_obs=spoiled), jax.random.key(4))
    assert same(after.params, state.params) and float(metrics["guard/skipped_updates"]) == 1.0
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(after))


def test_rows_apart_are_learned_from_by_nobody_and_always_the_same():
    """Another outcome of a row that is held out changes its error alone."""
    _, update, state = learner(held_out=0.5)
    batch = batch_of(invalid=False)
    rows = np.concatenate([batch.obs, batch.action], -1)[0]
    apart = np.asarray(losses.held_out(losses.fingerprint(rows), 0.5))
    assert 0 < apart.sum() < len(apart)
    other = np.where(apart[None, :, None], batch.next_obs + 10.0, batch.next_obs)
    one, two = (update(state, batch._replace(next_obs=x), jax.random.key(5))[0] for x in (batch.next_obs, other))
    assert same(one.params, two.params) and np.all(np.asarray(two.error) > np.asarray(one.error))
    shuffled = np.random.default_rng(6).permutation(len(apart))
    batch = jax.tree.map(lambda x: x[:, shuffled], batch)
    three, _ = update(state, batch, jax.random.key(7))
    np.testing.assert_allclose(three.error, one.error, rtol=1e-4)


def test_members_begin_and_learn_differently():
    _, update, state = learner()
    alike = lambda x: np.abs(np.diff(np.asarray(x), axis=0)).max()
    assert alike(state.params["models"]["Dense_0"]["kernel"]) > 1e-2
    twins = state._replace(
        params=state.params | {"models": jax.tree.map(lambda x: x * 0 + x[:1], state.params["models"])}
    )
    after, _ = update(twins, batch_of(4, invalid=False), jax.random.key(8))
    assert alike(after.params["models"]["Dense_0"]["kernel"]) > 1e-4  # by their weights alone


def test_what_a_model_cannot_read_is_refused():
    for shape in ({"x": SPEC.obs}, jax.ShapeDtypeStruct((4, 4, 3), jnp.float32), jax.ShapeDtypeStruct((4,), jnp.int32)):
        with pytest.raises(ValueError, match=r"allowed for a model of dynamics: one vector of floats \[D\]"):
            dynamics.make(CFG, Spec(shape, A))
    with pytest.raises(ValueError, match="config.elites is 5; allowed: 1 to 4, config.members"):
        dynamics.make(dataclasses.replace(CFG, elites=5), SPEC)


def test_discrete_actions_are_read_as_classes():
    algo = dynamics.make(CFG, SPEC._replace(discrete=True))
    state, batch = algo.init(jax.random.key(0)), batch_of(spec=windows.DISCRETE)
    after, _ = jax.jit(algo.update)(state, batch, jax.random.key(1))
    next_obs, _ = algo.act(after, (jnp.zeros((2, D)), jnp.array([0, 1])), None)
    assert not np.allclose(next_obs[0], next_obs[1])


# ------------------------------------------------------------------------------------------------------- imagination

K, LANES, BOX, PUSH = 6, 9, 6.0, 0.2


def pendulum(obs, action, key):
    """A linear world without noise, [B, 2]: a point that is pushed."""
    position, speed = obs[:, 0], obs[:, 1]
    speed = speed + 0.5 * action[:, 0]
    return jnp.stack([position + speed, speed], -1), -(position**2)


def fell(obs, action, next_obs):
    """The point is out of its box."""
    return jnp.abs(next_obs[:, 0]) > BOX


def pushing(obs, key):
    """Away from the middle, with noise where there is a key."""
    noise = 0.0 if key is None else 0.3 * jax.random.normal(key, (obs.shape[0], 1))
    return jnp.sign(obs[:, :1]) * PUSH + noise


def imagined(step=pendulum, terminate=fell, valid=True, **more):
    model = dynamics.exact(step)(None, None)
    start = jnp.asarray(np.random.default_rng(7).normal(size=(LANES, 2)), jnp.float32)
    act = lambda pair, key: model.act((), pair, key)
    play = lambda key: dynamics.imagine(act, pushing, start, key, horizon=K, terminate=terminate, valid=valid, **more)
    return start, jax.jit(play)(jax.random.key(8))


def test_imagined_rollouts_equal_a_loop_by_hand():
    """Given the actions: every number of every row, until the first end."""
    start, rows = imagined()
    position, speed = (np.asarray(start, np.float64)[:, i].copy() for i in (0, 1))
    alive, ends = np.ones(LANES, bool), np.zeros(LANES, int)
    for k in range(K):
        row = jax.tree.map(lambda x: np.asarray(x)[k], rows)
        np.testing.assert_array_equal(row.valid, alive)
        before = np.stack([position, speed], -1)
        np.testing.assert_allclose(row.obs[alive], before[alive], rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(row.reward[alive], -(position[alive] ** 2), rtol=1e-4, atol=1e-4)
        speed = speed + 0.5 * row.action[:, 0]
        position = position + speed
        after = np.stack([position, speed], -1)
        np.testing.assert_allclose(row.next_obs[alive], after[alive], rtol=1e-4, atol=1e-4)
        over = alive & (np.abs(position) > BOX)
        np.testing.assert_array_equal(row.terminated, over)
        alive = alive & ~over
        np.testing.assert_array_equal(row.truncated, alive if k == K - 1 else np.zeros(LANES, bool))
        ends += over + (alive if k == K - 1 else 0)
    assert 0 < alive.sum() < LANES and np.all(ends == 1)  # both kinds of end came, and one each
    late = ~np.asarray(rows.valid)
    assert np.any(late) and not np.any(np.asarray(rows.reward)[late])


def test_the_policy_is_given_a_new_key_at_each_step():
    _, rows = imagined(terminate=dynamics.never)
    noise = np.asarray(rows.action)[..., 0] - PUSH * np.sign(np.asarray(rows.obs)[..., 0])
    assert len(np.unique(noise.round(5))) == K * LANES
    assert np.all(rows.valid) and np.all(rows.truncated[-1]) and not np.any(rows.truncated[:-1])


def test_a_rollout_that_turns_non_finite_is_over_and_stands_still():
    def exploding(obs, action, key):
        next_obs, reward = pendulum(obs, action, key)
        return jnp.where(jnp.abs(next_obs[:, :1]) > BOX, jnp.inf, next_obs), reward

    _, rows = imagined(exploding, dynamics.never)
    valid = np.asarray(rows.valid)
    assert 0 < valid[-1].sum() < LANES and np.all(np.diff(valid.astype(int), axis=0) <= 0)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(rows))
    first = np.argmin(valid, 0)
    for lane in np.flatnonzero(~valid[-1]):
        if first[lane]:
            assert not np.any(rows.truncated[:, lane]) and not np.any(rows.terminated[:, lane])
            np.testing.assert_array_equal(rows.obs[first[lane], lane], rows.next_obs[first[lane] - 1, lane])


def test_starts_that_do_not_count_make_no_valid_row():
    start_counts = jnp.arange(LANES) % 2 == 0
    _, rows = imagined(valid=start_counts)
    np.testing.assert_array_equal(np.asarray(rows.valid)[0], start_counts)
    assert not np.any(np.asarray(rows.valid)[:, 1::2]) and not np.any(np.asarray(rows.truncated)[:, 1::2])


def test_a_simulator_doubts_nothing_and_a_horizon_of_zero_is_refused():
    _, rows = imagined(uncertainty=losses.largest_deviation)
    assert not np.any(rows.extras["uncertainty"])
    with pytest.raises(ValueError, match="horizon is 0; allowed: 1 and more"):
        dynamics.imagine(None, None, jnp.zeros((2, 2)), jax.random.key(0), horizon=0)
