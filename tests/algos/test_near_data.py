"""What learns from data by keeping near it: TD3+BC, ReBRAC, PRDC, A2PR, CQL, EDAC, and BEER's critic."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.spatial import cKDTree

from jaxrl_gen import loops, types
from jaxrl_gen.algos import a2pr, beer, cql, edac, prdc, rebrac, sac, td3_bc
from jaxrl_gen.data import sampling, trajectory
from jaxrl_gen.envs import probe, wrap
from jaxrl_gen.losses import critic, value
from jaxrl_gen.types import Env, Spec
from tests.algos import test_td3 as plain
from tests.algos import windows
from tests.algos.windows import ACTIONS, BATCH, LINEAR, MODEST, SPEC, batch_of, learner, same, started

SMALL = dict(lr=0.01, gamma=0.9, tau=0.1, **MODEST)
EXACT = dict(lr=1e-3, gamma=0.9, tau=0.1, smoothing=0.0, critic_updates=1, normalize_obs=False)


def with_extras(batch, **extras):
    return batch._replace(extras=extras)


def close(found, expected, atol=2e-5):
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=atol), found, expected)


# ----------------------------------------------------------------------------------------------------------- TD3+BC


def test_td3_bc_equals_numpy():
    cfg, batch = td3_bc.Config(**EXACT, **LINEAR, closeness=0.7), batch_of(invalid=False)
    algo = td3_bc.make(cfg, SPEC)
    state = started(algo)
    after, metrics = jax.jit(algo.update)(state, batch, jax.random.key(1))
    distance = lambda action, rows: 0.7 * np.mean((action - batch.action[0][rows]) ** 2, -1)
    close(after.params, plain.numpy_update(cfg, state, batch, distance)[0])
    before = plain.decide(windows.float64(state.params)["actor"], batch.obs[0])
    np.testing.assert_allclose(metrics["actor/distance"], np.mean((before - batch.action[0]) ** 2), rtol=1e-4)


def test_rebrac_equals_numpy():
    """What is taken from the target is the distance of the target's action to the data's, where there was one."""
    cfg, batch = rebrac.Config(**EXACT, **LINEAR, closeness=0.3, next_closeness=1.5), batch_of(invalid=False)
    following = np.tanh(np.random.default_rng(5).normal(size=(1, BATCH, ACTIONS))).astype(np.float32)
    known = np.arange(BATCH)[None] % 3 > 0
    algo = rebrac.make(cfg, SPEC, actor_value=value.first)
    state = started(algo)
    after, _ = jax.jit(algo.update)(
        state, with_extras(batch, next_action=following, next_known=known), jax.random.key(1)
    )
    distance = lambda action, rows: 0.3 * np.mean((action - batch.action[0][rows]) ** 2, -1)
    next_action = plain.decide(windows.float64(state.target)["actor"], batch.next_obs[0])
    cost = 1.5 * np.mean((next_action - following[0]) ** 2, -1) * known[0]
    close(after.params, plain.numpy_update(cfg, state, batch, distance, cost)[0])


def test_rebracs_critics_are_as_wide_as_their_readout():
    cfg, batch = rebrac.Config(**SMALL, critic_updates=1), batch_of(invalid=False)
    algo = rebrac.make(cfg, SPEC, readout=value.classified(-4.0, 4.0, 7))
    state = started(algo)
    batch = with_extras(batch, next_action=batch.action, next_known=batch.valid)
    after, metrics = jax.jit(algo.update)(state, batch, jax.random.key(1))
    assert not same(after.params, state.params) and 0.0 <= float(metrics["critic/clipped"]) <= 1.0


def test_rebrac_refuses_a_batch_without_next_actions():
    algo = rebrac.make(rebrac.Config(**SMALL), SPEC)
    with pytest.raises(ValueError, match=r"no extras\['next_action'\]: sample with next_actions=True"):
        algo.update(started(algo), batch_of(), jax.random.key(0))


# ------------------------------------------------------------------------------------------------------------- PRDC


@pytest.mark.parametrize("rows, block", [(500, 64), (500, 500), (7, 1000), (129, 64)])
def test_nearest_equals_a_k_d_tree(rows, block):
    rng = np.random.default_rng(rows)
    keys, queries = rng.normal(size=(rows, 4)).astype(np.float32), rng.normal(size=(33, 4)).astype(np.float32)
    found = jax.jit(partial(prdc.nearest, block=block))(queries, keys)
    np.testing.assert_array_equal(found, cKDTree(keys).query(queries)[1])


def test_nearest_is_exact_far_from_the_origin():
    rng = np.random.default_rng(0)
    keys, queries = (1e3 + rng.normal(size=(rows, 3)).astype(np.float32) for rows in (400, 50))
    np.testing.assert_array_equal(prdc.nearest(queries, keys, block=32), cKDTree(keys).query(queries)[1])


def among(batch, obs=None, action=None):
    return prdc.Among(batch, batch.obs[0] if obs is None else obs, batch.action[0] if action is None else action)


def test_prdc_with_a_narrow_view_of_observations_is_td3_bc():
    batch, key = batch_of(invalid=False), jax.random.key(1)
    cfg = prdc.Config(**EXACT, **MODEST, nearness=1e3)
    _, update, state = learner(prdc.make, cfg)
    one, _ = update(state, among(batch), key)
    two, _ = learner(td3_bc.make, cfg)[1](state, batch, key)
    close(one.params, two.params, 1e-6)
    _, near, _ = learner(prdc.make, dataclasses.replace(cfg, nearness=0.0))
    other, _ = near(state, among(batch), key)
    assert not same(other.params["actor"], two.params["actor"])


def test_prdc_sees_all_data_by_the_same_statistics():
    """Twice the observations' scale, in the batch and in the data, changes nothing where they are normalised."""
    batch, key = batch_of(invalid=False), jax.random.key(1)
    _, update, state = learner(prdc.make, prdc.Config(**SMALL))
    twice = batch._replace(obs=2 * batch.obs, next_obs=2 * batch.next_obs)
    one, two = (update(state, among(x), key)[0] for x in (batch, twice))
    close(one.params, two.params, 1e-5)
    np.testing.assert_allclose(two.normalizer.mean, np.mean(twice.obs[0], 0), rtol=1e-5)


def test_prdc_refuses_observations_that_are_not_one_vector():
    with pytest.raises(ValueError, match="PRDC measures distances between vectors"):
        prdc.make(prdc.Config(**SMALL), Spec({"a": SPEC.obs, "b": SPEC.obs}, ACTIONS))


# ----------------------------------------------------------------------------------------------------- CQL and EDAC


def test_cql_pushes_down_what_the_data_did_not_do():
    """All rewards are zero and the data keep to half of the actions: the values of the other half are lower."""
    rows = windows.rows_of(probe.continuous_action(), 512)
    rows = rows._replace(action=jnp.abs(rows.action), reward=jnp.zeros_like(rows.reward))
    cfg = cql.Config(**SMALL | dict(lr=3e-3, tau=0.05), samples=4)
    env, gaps = probe.continuous_action(), []
    for conservatism in (0.0, 2.0):
        changed = dataclasses.replace(cfg, conservatism=conservatism)
        state, _ = windows.learn_offline(cql.make, changed, env, rows, 300)
        done, undone = (
            windows.judged(cfg, env.spec, state, (jnp.array([[1.0], [-1.0]]), jnp.full((2, 1), action)))
            for action in (0.5, -0.7)
        )
        gaps.append(done - undone)
    assert np.all(gaps[1] > gaps[0] + 0.3) and np.all(gaps[1] > 0.3)


def test_cal_ql_reads_returns_and_pushes_no_further():
    cfg = cql.Config(**SMALL, calibrated=True, samples=4)
    algo, batch = cql.make(cfg, SPEC), batch_of(invalid=False)
    state = started(algo)
    with pytest.raises(ValueError, match=r"no extras\['return_to_go'\]"):
        algo.update(state, batch, jax.random.key(0))
    told = lambda floor: with_extras(batch, return_to_go=np.full((1, BATCH), floor, np.float32))
    update = jax.jit(algo.update)
    low, high = (update(state, told(floor), jax.random.key(0))[0] for floor in (-1e6, 1e6))
    uncalibrated = cql.make(dataclasses.replace(cfg, calibrated=False), SPEC)
    same_as, _ = jax.jit(uncalibrated.update)(state, batch, jax.random.key(0))
    close(low.params, same_as.params, 1e-6)  # a floor that is never reached
    assert not same(high.params["critic"], low.params["critic"])


def test_cal_ql_has_no_floor_where_rows_were_lived():
    """Whatever stands there for a return changes nothing, and where all was lived it is CQL; all stays finite."""
    cfg, batch, key = cql.Config(**SMALL, calibrated=True, samples=4), batch_of(invalid=False), jax.random.key(0)
    algo = cql.make(cfg, SPEC)
    state, update = started(algo), jax.jit(algo.update)
    logged = np.arange(BATCH)[None] % 2 == 0

    def after(lived, logged=logged):
        told = np.where(logged, 1.0, lived).astype(np.float32)
        state_after, metrics = update(state, with_extras(batch, return_to_go=told, logged=logged), key)
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves((state_after, metrics)))
        return state_after.params

    assert same(after(-1e6), after(1e6))
    assert not same(after(0.0), after(0.0, logged=~logged))
    uncalibrated = cql.make(dataclasses.replace(cfg, calibrated=False), SPEC)
    plain, _ = jax.jit(uncalibrated.update)(state, batch, key)
    close(after(5.0, logged=logged & False), plain.params, 1e-6)


ONLINE = {
    "cal_ql": (cql.make, cql.Config(**SMALL, calibrated=True, samples=2), {}),
    "rebrac": (rebrac.make, rebrac.Config(**SMALL), {"next_actions": True}),
}


@pytest.mark.parametrize("method", ONLINE)
def test_what_was_learned_from_data_goes_on_online(method):
    """With the same update, on the same data and on rows of which no return and no next action is known."""
    make, cfg, drawing = ONLINE[method]
    env, sample, cfg = probe.continuous_action(), sampling.transitions(16, **drawing), types.strong(cfg)
    data = trajectory.with_returns_to_go(trajectory.from_rows(windows.rows_of(env, 128)), 0.9)
    offline = loops.offline(make, env, sample, (data,), updates=20)
    learned, _ = jax.jit(offline.chunk)(cfg, jax.jit(offline.init)(cfg, jax.random.key(8)), data)
    online = loops.offline_to_online(
        make, wrap.fresh(env, 4), sample, (data,), steps=2, updates=2, batch_size=16, capacity=200, warmup=8,
        iterations=10,
    )  # fmt: skip
    carry = jax.jit(online.init)(cfg, jax.random.key(9))._replace(state=learned.state)
    after, metrics = jax.jit(online.chunk)(cfg, carry, data)
    assert float(metrics["guard/skipped_updates"]) == 0.0
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(after.state))
    assert not same(after.state.params["critic"], carry.state.params["critic"])
    assert all(np.isfinite(x) for name, x in metrics.items() if not name.startswith("episode/"))


def test_edac_keeps_critics_different():
    """With the term, the slopes of ten critics that learn the same thing point less the same way."""
    rows = jax.tree.map(lambda x: jnp.asarray(x).reshape(-1, *x.shape[2:]), batch_of(20, invalid=False))
    cfg, env = edac.Config(**SMALL | dict(tau=0.05), members=4), Env(None, None, SPEC)
    alike = {
        weight: windows.learn_offline(edac.make, dataclasses.replace(cfg, diversity=weight), env, rows, 300)[1]
        for weight in (1e-6, 3.0)
    }
    assert np.all(alike[3.0]["critic/alike"] < alike[1e-6]["critic/alike"] - 0.2)


def test_edac_without_its_term_is_sac_with_many_critics():
    cfg, batch, key = edac.Config(**SMALL, members=4, diversity=0.0), batch_of(invalid=False), jax.random.key(1)
    algo, many = edac.make(cfg, SPEC), sac.make(cfg, SPEC)
    state = started(algo)
    one, two = (jax.jit(it.update)(state, batch, key)[0] for it in (algo, many))
    close(one.params, two.params, 1e-5)


# ------------------------------------------------------------------------------------------------------------- A2PR


def test_a2pr_keeps_close_to_the_better_action():
    """Of data that are mostly bad it ends nearer to the best action than TD3+BC, held as tightly, does."""
    env = probe.continuous_action()
    rows = windows.rows_of(env, 1024)
    good = jnp.arange(1024) % 10 == 0  # one in ten is near the best, the others are far on the other side
    best = 0.5 * rows.obs
    action = jnp.clip(jnp.where(good[:, None], best, -best) + 0.05 * rows.action, -1.0, 1.0)
    rows = rows._replace(action=action, reward=-jnp.sum((action - best) ** 2, -1), terminated=jnp.ones(1024, bool))
    shared = dict(lr=3e-3, tau=0.05, closeness=10.0, actor_hidden=(16,), critic_hidden=(16,), normalize_obs=False)
    ends = {}
    for make, cfg in (
        (td3_bc.make, td3_bc.Config(**shared)),
        (a2pr.make, a2pr.Config(**shared, proposal_hidden=(16,))),
    ):
        state, _ = windows.learn_offline(make, cfg, env, rows, 600)
        ends[make] = jax.vmap(lambda s: make(types.strong(cfg), env.spec).act(s, jnp.array([[1.0], [-1.0]]), None)[0])(
            state
        )
    aimed = np.array([[0.5], [-0.5]])
    assert np.all(np.abs(ends[a2pr.make] - aimed) < 0.25)
    assert np.all(np.abs(ends[td3_bc.make] - aimed) > 0.5)


# ------------------------------------------------------------------------------------------------------------- BEER


def test_beers_term_is_what_sets_it_apart():
    """Where nothing moves and the reward is large, features are more alike than Bellman's equation allows."""
    batch, key = batch_of(invalid=False), jax.random.key(1)
    batch = batch._replace(
        next_obs=batch.obs, action=0 * batch.action, reward=0 * batch.reward + 3.0, terminated=batch.terminated & False
    )
    (off, without, _), (_, with_it, _) = (
        learner(beer.make, beer.Config(**SMALL, bound=bound)) for bound in (0.0, 100.0)
    )  # fmt: skip
    state = off.init(key)
    one, metrics = without(state, batch, key)
    two, _ = with_it(state, batch, key)
    assert float(metrics["critic/above_bound"]) > 0.5
    assert not same(one.params["critic"]["body"], two.params["critic"]["body"])
    # The weights of the last layer have no part in the term.
    assert same(one.params["critic"]["last"], two.params["critic"]["last"])


def test_beers_term_makes_features_less_alike():
    """Of steps that lead close by, whose rewards differ."""
    rows = jax.tree.map(lambda x: jnp.asarray(x).reshape(-1, *x.shape[2:]), batch_of(20, invalid=False))
    rows = rows._replace(next_obs=rows.obs + 0.1 * rows.next_obs, terminated=jnp.zeros_like(rows.terminated))
    cosine = {}
    for bound in (0.0, 10.0):
        cfg, env = beer.Config(**SMALL, bound=bound), Env(None, None, SPEC)
        cosine[bound] = windows.learn_offline(beer.make, cfg, env, rows, 300)[1]["critic/cosine"]
    assert np.all(cosine[10.0] < cosine[0.0] - 0.1)


def test_effective_rank_of_a_critics_features_is_what_numpy_says():
    features = np.random.default_rng(3).normal(size=(40, 6)).astype(np.float32) * [9, 5, 1, 0.1, 0.01, 0.001]
    singular = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    oracle = np.searchsorted(np.cumsum(singular) / singular.sum(), 0.99) + 1
    assert int(critic.effective_rank(jnp.asarray(features))) == oracle
