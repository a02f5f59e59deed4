"""Behaviour cloning against a float64 NumPy version of its update, and on data whose likeliest policy is known."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen import nets
from jaxrl_gen.algos import bc
from jaxrl_gen.envs import probe
from jaxrl_gen.types import Spec
from tests.algos import reference, windows
from tests.algos.windows import ACTIONS, DISCRETE, SPEC, batch_of, same, soiled, started

CFG = bc.Config(lr=0.01, actor_hidden=(8,), normalize_obs=False)


def log_prob(params, obs, action, smallest_std=0.05):
    """Of the data's actions under the normal policy, [..., A] -> [...]."""
    mean = np.tanh(reference.dense(obs, params["actor"]["Dense_0"]))
    std = np.maximum(np.exp(params["head"]["log_std"]), smallest_std)
    return np.sum(-0.5 * ((action - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi), -1)


@pytest.mark.parametrize("horizon, mode", [(1, lambda f: f), (3, jax.jit)], ids=["one_row", "three_rows_jit"])
def test_update_equals_numpy(horizon, mode):
    algo, batch = bc.make(CFG, SPEC, actor=nets.mlp((ACTIONS,))), batch_of(horizon)
    state = started(algo)
    after, _ = mode(algo.update)(state, jax.tree.map(jnp.asarray, batch), jax.random.key(1))
    rows = windows.float64(batch)
    total = lambda params: -log_prob(params, rows.obs, rows.action)[rows.valid].mean()
    windows.close_to_numpy(state, after, reference.gradient(total, windows.float64(state.params)), CFG.lr)


@pytest.mark.parametrize("spec", [SPEC, DISCRETE], ids=["continuous", "discrete"])
@pytest.mark.parametrize("garbage", [0.7, np.nan])
def test_invalid_rows_change_nothing(spec, garbage):
    algo, batch = bc.make(dataclasses.replace(CFG, normalize_obs=True), spec), batch_of(2, spec=spec)
    state, update = started(algo), jax.jit(algo.update)
    one, _ = update(state, batch, jax.random.key(2))
    two, _ = update(state, soiled(batch, garbage), jax.random.key(2))
    assert not same(one.params, state.params)
    assert same(one, two)


def test_a_batch_with_nan_changes_no_parameter():
    algo, batch = bc.make(CFG, SPEC), batch_of(invalid=False)
    state, update = started(algo), jax.jit(algo.update)
    spoiled = batch.action.copy()
    spoiled[0, 3] = np.nan
    after, metrics = update(state, batch._replace(action=spoiled), jax.random.key(3))
    assert same(after.params, state.params) and float(metrics["guard/skipped_updates"]) == 1.0


def test_an_action_on_the_boundary_is_as_likely_as_any():
    """A tanh-normal would give it a density that runs away; clipping comes after sampling instead."""
    head = bc.normal_head(1)
    params, output = head.init(jax.random.key(0)), jnp.zeros((2, 1))
    found, _ = head.score(params, output, jnp.array([[1.0], [-0.3]]), jax.random.key(1))
    np.testing.assert_allclose(found, -0.5 * np.array([1.0, 0.09]) - 0.5 * np.log(2 * np.pi), rtol=1e-5)
    choice, _ = head.sample(params, jnp.zeros((500, 1)), jax.random.key(2))
    assert np.max(np.abs(choice)) > 1.0 and np.max(np.abs(head.action(choice))) == 1.0


def test_it_finds_the_mean_and_the_deviation_of_the_actions_at_each_observation():
    env, rng = probe.continuous_action(), np.random.default_rng(4)
    rows = windows.rows_of(env, 4000)
    noise = jnp.asarray(rng.normal(0.0, 0.2, (4000, 1)), jnp.float32)
    rows = rows._replace(action=0.3 * rows.obs + 0.1 + noise)
    cfg = bc.Config(lr=3e-3, actor_hidden=(16,))
    state, _ = windows.learn_offline(bc.make, cfg, env, rows, 1000, batch_size=256)
    best = jax.vmap(lambda s: bc.make(cfg, env.spec).act(s, jnp.array([[1.0], [-1.0]]), None)[0])(state)
    np.testing.assert_allclose(best[..., 0], np.broadcast_to([0.4, -0.2], (3, 2)), atol=0.08)
    np.testing.assert_allclose(np.exp(state.params["head"]["log_std"]), 0.2, rtol=0.15)


def test_the_deviation_has_a_floor():
    spec, cfg = Spec(jax.ShapeDtypeStruct((1,), jnp.float32), 1), bc.Config(smallest_std=0.3)
    algo = bc.make(cfg, spec)
    state = algo.init(jax.random.key(5))
    state = state._replace(params=state.params | {"head": {"log_std": jnp.array([-20.0])}})
    action, _ = algo.act(state, jnp.zeros((4000, 1)), jax.random.key(6))
    assert float(jnp.std(action)) == pytest.approx(0.3, rel=0.1)


def test_classes_are_cloned_too():
    env = probe.discrete_action()
    rows = windows.rows_of(env, 2000)
    rows = rows._replace(action=jnp.argmax(rows.obs, -1).astype(jnp.int32))
    cfg = bc.Config(lr=1e-2, actor_hidden=(16,))
    state, _ = windows.learn_offline(bc.make, cfg, env, rows, 200)
    chosen = jax.vmap(lambda s: bc.make(cfg, env.spec).act(s, jnp.eye(3), None)[0])(state)
    np.testing.assert_array_equal(chosen, np.broadcast_to(np.arange(3), (3, 3)))
