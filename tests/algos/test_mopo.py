"""Offline learning in a model: what is imagined, kept and mixed, row by row; and that a policy learns from it."""

import dataclasses
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen import loops, types
from jaxrl_gen.algos import dynamics, edac, lipmbrl, mopo, ravl, sac
from jaxrl_gen.envs import probe
from jaxrl_gen.types import Algorithm, Transition
from tests.algos import windows
from tests.algos.windows import BATCH, SPEC, batch_of, same, soiled

K, LANES, KEPT = 3, 4, 3
SMALL = sac.Config(lr=0.01, actor_hidden=(8,), critic_hidden=(8, 8))
CFG = mopo.Config(policy=SMALL, penalty=0.5, real=0.25, model_updates=0.0, rollouts=LANES, horizon=K, kept=KEPT)


def step(obs, action, key):
    """A world that is known: what follows, and what it pays."""
    next_obs = 0.9 * obs + jnp.concatenate([action, jnp.zeros_like(action[:, :1])], -1)
    return next_obs, jnp.sum(obs, -1)


KNOWN = dynamics.exact(step)


def doubtful(cfg, spec):
    """The same world, by two models of which the second expects a noise of norm sum |obs|, and that count updates."""
    known = KNOWN(cfg, spec)

    def act(state, obs, key):
        next_obs, said = known.act((), obs, key)
        std = jnp.stack([jnp.zeros_like(said["mean"][0]), jnp.zeros_like(said["mean"][0])])
        std = std.at[1, :, 0].set(jnp.sum(jnp.abs(obs[0]), -1))
        return next_obs, said | {"mean": jnp.concatenate([said["mean"]] * 2), "std": std}

    counts = lambda state, batch, key: (state + 1.0, {"model/nll": state + 1.0, "guard/skipped_updates": state})
    return Algorithm(lambda key: jnp.zeros(()), counts, act)


class Recorded(NamedTuple):
    """What the policy was given last, and how often."""

    batch: Transition
    updates: jax.Array


def recorder(cfg, spec, size=BATCH):
    """A policy that learns nothing and remembers its batch."""

    def init(key):
        zeros = lambda x: jnp.zeros((1, size, *x.shape[2:]), x.dtype)
        return Recorded(jax.tree.map(zeros, jax.tree.map(jnp.asarray, batch_of())), jnp.zeros(()))

    def update(state, batch, key):
        return Recorded(batch, state.updates + 1.0), {"actor/q": jnp.ones(()), "guard/skipped_updates": jnp.ones(())}

    def act(state, obs, key):
        noise = 0.0 if key is None else 0.1 * jax.random.normal(key, obs.shape[:-1] + (2,))
        return jnp.tanh(obs[..., :2] + noise), {}

    return Algorithm(init, update, act)


def steep(obs, action, next_obs):
    """Some rollouts end early."""
    return next_obs[:, 0] > 0.8


def never(obs, action, next_obs):
    """None does."""
    return jnp.zeros(next_obs.shape[0], bool)


@cache
def making(make, terminate):
    """`(cfg, spec) -> Algorithm` of the recorder in the doubtful world."""
    parts = {"judge": lambda state, obs, action: jnp.sum(obs, -1)} if make is mopo.make else {}
    return partial(make, model=doubtful, policy=recorder, terminate=terminate, **parts)


def made(make=mopo.make, terminate=never, **changes):
    """(State, update): one program for all floats."""
    make, cfg = making(make, terminate), types.strong(dataclasses.replace(CFG, **changes))
    return make(cfg, SPEC).init(jax.random.key(0)), partial(windows.updating(make), cfg)


def after(state, update, count, seed=1, **batch):
    """The States after each of `count` updates, and the last metrics."""
    states = []
    for i in range(count):
        state, metrics = update(state, batch_of(seed=i, **batch), jax.random.key(seed + i))
        states.append(state)
    return states, metrics


def follows(obs, action, next_obs, reward, penalty=0.0):
    """Rows are of the known world, in float64, rewards less the penalty."""
    obs, action = np.asarray(obs, np.float64), np.asarray(action, np.float64)
    expected = 0.9 * obs + np.concatenate([action, np.zeros_like(action[..., :1])], -1)
    np.testing.assert_allclose(next_obs, expected, atol=1e-5)
    np.testing.assert_allclose(reward, obs.sum(-1) - penalty * np.abs(obs).sum(-1), atol=1e-4)


# ----------------------------------------------------------------------------------------------------------- the ring


def test_two_pushes_are_both_there_and_the_oldest_is_overwritten_first():
    state, update = made()
    states, _ = after(state, update, KEPT + 1)
    rings = [jax.tree.map(np.asarray, it.replay) for it in states]
    assert [int(ring.size) for ring in rings] == [K, 2 * K, 3 * K, 3 * K]
    assert [int(ring.position) for ring in rings] == [K, 2 * K, 0, K]
    block = lambda ring, i: (ring.obs[i * K : (i + 1) * K], ring.action[i * K : (i + 1) * K])
    assert same(block(rings[1], 0), block(rings[0], 0)) and not same(block(rings[1], 1), block(rings[0], 1))
    assert same(block(rings[2], 0), block(rings[0], 0)) and same(block(rings[2], 1), block(rings[1], 1))
    assert same(block(rings[3], 1), block(rings[2], 1)) and same(block(rings[3], 2), block(rings[2], 2))
    assert not same(block(rings[3], 0), block(rings[2], 0))
    assert np.all(rings[0].valid[K:] == 0) and not np.any(rings[0].obs[K:])


@pytest.mark.parametrize("terminate", [never, steep], ids=["never", "steep"])
def test_only_filled_slots_are_sampled_and_every_row_is_of_the_world(terminate):
    """From the first update on, around the ring, at its seams and where episodes ended."""
    state, update = made(terminate=terminate, real=0.0)
    ends = 0
    for i, it in enumerate(after(state, update, 3 * KEPT, invalid=False)[0]):
        rows = jax.tree.map(lambda x: np.asarray(x)[0], it.policy.batch)
        use = rows.valid
        assert np.any(use) and np.all(np.any(rows.obs != 0, -1))
        follows(rows.obs[use], rows.action[use], rows.next_obs[use], rows.reward[use], CFG.penalty)
        np.testing.assert_array_equal(rows.terminated[use], np.asarray(terminate(None, None, rows.next_obs))[use])
        ends += np.sum(rows.terminated | rows.truncated)
        if terminate is never:
            assert np.all(use), f"update {i}: a row is lost"
    assert ends > 0


def test_the_batch_is_the_share_of_data_and_the_rest_imagined():
    state, update = made()
    batch = batch_of(seed=0)
    (it,), _ = after(state, update, 1)
    given = jax.tree.map(lambda x: np.asarray(x)[0], it.policy.batch)
    real = jax.tree.map(lambda x: x[0], batch)
    of_data, imagined = np.array([3, 7, 11]), np.delete(np.arange(BATCH), [3, 7, 11])
    assert same(jax.tree.map(lambda x: x[of_data], given), jax.tree.map(lambda x: x[of_data], real))
    starts = {tuple(row) for row in real.obs[real.valid].astype(np.float32)}
    own = np.asarray(it.replay.obs)[0][np.asarray(it.replay.valid)[0]]
    assert len(own) and {tuple(row) for row in own} <= starts  # rollouts start where the data are
    seen = {tuple(row) for row in np.asarray(it.replay.obs).reshape(-1, 3)}
    assert {tuple(row) for row in given.obs[imagined]} <= seen


def test_windows_of_several_steps_are_drawn_from_rollouts():
    algo = mopo.make(CFG, SPEC, model=doubtful, policy=sac.make)
    state, metrics = jax.jit(algo.update)(algo.init(jax.random.key(0)), batch_of(2), jax.random.key(1))
    assert float(metrics["guard/skipped_updates"]) == 0.0 and np.isfinite(metrics["critic/loss"])


# ------------------------------------------------------------------------------------------------- penalty and values


def test_the_penalty_is_taken_from_what_was_imagined():
    plain, update = made(penalty=0.0)
    (without,), _ = after(plain, update, 1, invalid=False)
    state, update = made(penalty=2.0)
    (with_it,), metrics = after(state, update, 1, invalid=False)
    doubt = np.abs(np.asarray(without.replay.obs)).sum(-1)
    np.testing.assert_allclose(with_it.replay.reward, without.replay.reward - 2.0 * doubt, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(metrics["model/uncertainty"], doubt[:K].mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["model/reward"], without.replay.reward[:K].mean(), rtol=1e-3, atol=1e-4)


def test_ravl_has_no_penalty():
    (one,), _ = after(*made(make=ravl.make, penalty=2.0), 1)
    (two,), _ = after(*made(penalty=0.0), 1)
    assert same(one.replay, two.replay)


def test_ravls_own_config_makes_its_policy():
    critics = dict(actor_hidden=(8,), critic_hidden=(8,), members=3)
    cfg = ravl.Config(**vars(CFG) | {"policy": edac.Config(**critics)})
    algo = ravl.make(cfg, SPEC, model=KNOWN)
    state, metrics = jax.jit(algo.update)(algo.init(jax.random.key(0)), batch_of(), jax.random.key(1))
    assert state.policy.params["critic"]["Dense_0"]["kernel"].shape[0] == 3 and np.isfinite(metrics["critic/loss"])
    assert ravl.Config().policy.members == 10 and ravl.Config().policy.diversity == 0.5


def test_values_are_told_where_rollouts_start_and_where_they_are_cut():
    state, update = made(terminate=steep)
    (it,), metrics = after(state, update, 1)
    ring, valid = it.replay, np.asarray(it.replay.valid)
    starts = np.asarray(ring.obs)[0].sum(-1)[valid[0]]
    np.testing.assert_allclose(metrics["model/value_first"], starts.mean(), rtol=1e-4)
    cut = np.asarray(ring.truncated)[K - 1]
    assert 0 < cut.sum() < valid[0].sum()
    np.testing.assert_allclose(metrics["model/value_last"], np.asarray(ring.last_obs)[0][cut].sum(-1).mean(), rtol=1e-4)
    assert float(metrics["model/alive"]) == pytest.approx(cut.mean())


# --------------------------------------------------------------------------------------------------------- two phases


def test_the_model_learns_first_and_then_stands_still():
    state, update = made(model_updates=2.0)
    batch, told = batch_of(), []
    for i in range(4):
        state, metrics = update(state, batch, jax.random.key(i))
        told.append((float(state.model), float(state.policy.updates), int(state.replay.size)))
        assert float(metrics["model/nll"]) == (i + 1 if i < 2 else 0) and float(metrics["actor/q"]) == (i >= 2)
        assert float(metrics["guard/skipped_updates"]) == (i if i < 2 else 1)  # of the one that learned
    assert told == [(1, 0, 0), (2, 0, 0), (2, 1, K), (2, 2, 2 * K)]


def test_invalid_rows_change_nothing():
    algo, batch = mopo.make(dataclasses.replace(CFG, real=0.5), SPEC, model=KNOWN), batch_of()
    update, state = jax.jit(algo.update), algo.init(jax.random.key(0))
    one, _ = update(state, batch, jax.random.key(2))
    ring = lambda it: jax.tree.map(lambda x: np.where(np.asarray(it.replay.valid)[..., None], x, 0), it.replay.obs)
    for garbage in (50.0, np.nan):
        two, _ = update(state, soiled(batch, garbage), jax.random.key(2))
        assert same(one.policy, two.policy) and same(ring(one), ring(two))
        assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(two))


# ----------------------------------------------------------------------------------------------------- flat values

LIPSCHITZ = lipmbrl.Config(learning=CFG, epsilon=0.3, coefficient=1.0, limit=1.0)


ROBUST = partial(lipmbrl.make, model=KNOWN)
SPECTRAL = partial(ROBUST, flatten=lipmbrl.spectral)


def flat_values(make, cfg):
    """(State, metrics) after thirty updates in the known world."""
    state, cfg = make(cfg, SPEC).init(jax.random.key(0)), types.strong(cfg)
    for i in range(30):
        state, metrics = windows.updating(make)(cfg, state, batch_of(seed=i), jax.random.key(i))
    return state, metrics


def test_an_adversary_in_the_loss_makes_values_flatter():
    _, of_robust = flat_values(ROBUST, dataclasses.replace(LIPSCHITZ, coefficient=10.0))
    _, of_plain = flat_values(ROBUST, dataclasses.replace(LIPSCHITZ, coefficient=0.0))
    assert float(of_robust["critic/moved"]) < 0.5 * float(of_plain["critic/moved"])


def test_a_policy_with_a_term_of_its_own_keeps_it_beside_the_adversary():
    policy = edac.Config(**vars(SMALL) | dict(members=3))
    cfg = dataclasses.replace(LIPSCHITZ, learning=dataclasses.replace(CFG, policy=policy))
    algo = ROBUST(cfg, SPEC, policy=edac.make)
    _, metrics = jax.jit(algo.update)(algo.init(jax.random.key(0)), batch_of(), jax.random.key(1))
    assert {"critic/alike", "critic/moved"} <= set(metrics)


def test_layers_of_the_critics_stay_under_the_limit():
    state, metrics = flat_values(SPECTRAL, LIPSCHITZ)
    critic, free = state.policy.policy.params["critic"], sac.make(LIPSCHITZ.learning.policy, SPEC)
    at_first = free.init(jax.random.key(0)).params["critic"]
    norm = lambda params, name: np.linalg.svd(np.asarray(params[name]["kernel"], np.float64), compute_uv=False)[..., 0]
    for name in ("Dense_0", "Dense_1"):
        assert np.all(norm(at_first, name) > 1.3) and np.all(norm(critic, name) < 1.05)
    assert float(metrics["critic/largest_norm"]) > 0.9 and set(state.policy.directions) == {"Dense_0", "Dense_1"}


# ------------------------------------------------------------------------------------------------------------ learning


def test_the_best_action_is_found_in_a_learned_model():
    """One step of reward 1 - (a - s / 2)^2: from actions at random, with a twentieth of real rows."""
    env = probe.continuous_action()
    always = lambda obs, action, next_obs: jnp.ones(obs.shape[0], bool)
    cfg = mopo.Config(
        model=dynamics.Config(members=3, elites=2, hidden=(32,), lr=3e-3),
        policy=sac.Config(lr=5e-3, initial_temperature=0.05, actor_hidden=(16,), critic_hidden=(32,)),
        penalty=0.1, model_updates=500.0, rollouts=32, horizon=1, kept=20,
    )  # fmt: skip
    make = partial(mopo.make, terminate=always)
    rows = windows.rows_of(env, 512)
    loop = loops.offline(make, env, windows.draw(64), (rows,), updates=1500)
    cfg = types.strong(cfg)
    carry, metrics = jax.jit(loop.chunk)(cfg, jax.jit(loop.init)(cfg, jax.random.key(0)), rows)
    action, _ = make(cfg, env.spec).act(carry.state, jnp.array([[1.0], [-1.0]]), None)
    np.testing.assert_allclose(action[:, 0], [0.5, -0.5], atol=0.12)
    assert float(metrics["guard/skipped_updates"]) == 0.0
