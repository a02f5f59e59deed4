"""IQL against a float64 NumPy version of its update, on data whose values and best policy are known, and online."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrl_gen import loops, nets, types
from jaxrl_gen.algos import bc, iql
from jaxrl_gen.envs import probe, wrap
from jaxrl_gen.losses import value
from jaxrl_gen.types import Env, Spec, Transition
from tests.algos import reference, test_bc, windows
from tests.algos.linear import UPDATES, errors, outputs, values
from tests.algos.windows import DISCRETE, LINEAR, MODEST, SPEC, batch_of, learner, started

CFG = iql.Config(
    lr=0.01, gamma=0.9, tau=0.1, expectile=0.8, largest_weight=5.0, normalize_obs=False, **MODEST
)  # fmt: skip


def numpy_gradient(state, batch):
    """The gradient of IQL's three losses, each of its own parameters, by central differences."""
    frozen, target_critic = windows.float64(state.params), windows.float64(state.target)
    obs, action, reward, next_obs, discount, valid = windows.condensed(batch, CFG.gamma)
    judge = lambda params, x: reference.dense(x, params["value"]["Dense_0"])[..., 0]
    target = reward + discount * judge(frozen, next_obs)
    best = values(outputs(target_critic, obs, action)).min(0)
    weight = np.minimum(np.exp(CFG.sharpness * (best - judge(frozen, obs))), CFG.largest_weight)
    assert np.any(weight == CFG.largest_weight) and np.any(weight < CFG.largest_weight)

    def total(params):
        residual = best - judge(params, obs)
        of_value = np.abs(CFG.expectile - (residual < 0)) * residual**2
        error = errors(outputs(params["critic"], obs, action), target).sum(0)
        return (of_value + error - weight * test_bc.log_prob(params, obs, action))[valid].mean()

    return reference.gradient(total, windows.float64(state.params))


@UPDATES
def test_update_equals_numpy(readout, horizon):
    """Of nets of one layer."""
    algo, batch = iql.make(dataclasses.replace(CFG, **LINEAR), SPEC, readout=readout), batch_of(horizon)
    state = started(algo)
    after, metrics = jax.jit(algo.update)(state, batch, jax.random.key(1))
    windows.close_to_numpy(state, after, numpy_gradient(state, batch), CFG.lr)
    windows.check_moved_slowly(after, state, after.params["critic"])
    assert float(metrics["guard/skipped_updates"]) == 0.0


NORMALIZED = dataclasses.replace(CFG, normalize_obs=True)


def test_invalid_rows_change_nothing():
    _, update, state = learner(iql.make, NORMALIZED)
    windows.check_invalid_rows_change_nothing(update, state, batch_of(2))


@pytest.mark.parametrize("where", ["obs", "action", "reward", "next_obs"])
def test_a_batch_with_nan_changes_no_parameter(where):
    _, update, state = learner(iql.make, NORMALIZED)
    windows.check_nan_changes_no_parameter(update, state, batch_of(2, invalid=False), where)


def test_without_sharpness_the_policy_is_cloned():
    """The actor's gradient is behaviour cloning's, to the bit."""
    algo, batch = iql.make(dataclasses.replace(CFG, sharpness=0.0), SPEC), batch_of()
    cloner = bc.make(bc.Config(actor_hidden=CFG.actor_hidden, normalize_obs=False, lr=CFG.lr), SPEC)
    state, cloned = started(algo), cloner.init(jax.random.key(5))
    ours = {name: state.params[name] for name in ("actor", "head")}
    after, _ = jax.jit(algo.update)(state, batch, jax.random.key(6))
    other, _ = jax.jit(cloner.update)(cloned._replace(params=ours), batch, jax.random.key(6))
    for x, y in zip(jax.tree.leaves({n: after.params[n] for n in ours}), jax.tree.leaves(other.params), strict=True):
        np.testing.assert_allclose(x, y, atol=1e-6)


def test_discrete_actions_are_refused():
    with pytest.raises(ValueError, match="IQL needs continuous actions; this environment has 2 discrete ones"):
        iql.make(CFG, DISCRETE)


# ---------------------------------------------------------------------------------------------------------- learning

HIDDEN = (16,)
PROBING = iql.Config(lr=1e-2, gamma=0.9, tau=0.05, actor_hidden=HIDDEN, critic_hidden=HIDDEN, normalize_obs=False)


def judged(spec, state, obs):
    """V of all seeds, [seeds, B]."""
    net = nets.flat(nets.mlp((*HIDDEN, 1), jax.nn.relu), spec.obs)
    return jax.vmap(lambda params: net.apply(params["value"], obs)[..., 0])(state.params)


def test_values_and_policy_of_one_step():
    """V is the expectile of the rewards in the data, the policy is near the best action, and the clone is not."""
    env = probe.continuous_action()
    rows = windows.rows_of(env, 4000)
    cfg = dataclasses.replace(PROBING, expectile=0.9, sharpness=10.0)
    state, _ = windows.learn_offline(iql.make, cfg, env, rows, 1500, batch_size=256)
    both = jnp.array([[1.0], [-1.0]])
    rewards = [np.asarray(rows.reward, np.float64)[np.asarray(rows.obs)[:, 0] == sign] for sign in (1.0, -1.0)]
    oracle = [stats.expectile(some, 0.9) for some in rewards]
    np.testing.assert_allclose(judged(env.spec, state, both), np.broadcast_to(oracle, (3, 2)), atol=0.05)
    best = jax.vmap(lambda s: iql.make(cfg, env.spec).act(s, both, None)[0])(state)
    np.testing.assert_allclose(best[..., 0], np.broadcast_to([0.5, -0.5], (3, 2)), atol=0.15)
    cloning = bc.Config(lr=1e-2, actor_hidden=HIDDEN)
    cloned, _ = windows.learn_offline(bc.make, cloning, env, rows, 500, batch_size=256)
    mean = jax.vmap(lambda s: bc.make(cloning, env.spec).act(s, both, None)[0])(cloned)
    np.testing.assert_allclose(mean, 0.0, atol=0.15)


def test_the_middle_expectile_is_the_value_of_the_behaviour():
    """A random chain of five states, one of them terminal: V = (I - gamma P)^-1 r, by linear algebra."""
    rng, states, gamma = np.random.default_rng(7), 5, 0.9
    transition = rng.dirichlet(np.full(states, 0.5), states)
    transition[:, -1] += 0.1
    transition /= transition.sum(1, keepdims=True)
    reward = rng.normal(size=states)
    stays = transition.copy()
    stays[:, -1] = 0.0  # worth nothing: the episode terminates there
    oracle = np.linalg.solve(np.eye(states) - gamma * stays, reward)[:-1]
    count = 20_000
    now = rng.integers(0, states - 1, count)
    after = np.array([rng.choice(states, p=transition[s]) for s in now])
    eye = jnp.eye(states, dtype=jnp.float32)
    truncated = rng.random(count) < 0.2  # of no account: the state after is known
    rows = Transition(
        eye[now], jnp.zeros((count, 1)), jnp.asarray(reward[now], jnp.float32), eye[after],
        jnp.asarray(after == states - 1), jnp.asarray(truncated & (after != states - 1)), jnp.ones(count, bool),
    )  # fmt: skip
    env = Env(None, None, Spec(jax.ShapeDtypeStruct((states,), jnp.float32), 1))
    cfg = dataclasses.replace(PROBING, expectile=0.5, gamma=gamma, lr=3e-3, members=1)
    state, _ = windows.learn_offline(iql.make, cfg, env, rows, 3000, batch_size=256)
    np.testing.assert_allclose(judged(env.spec, state, eye[:-1]), np.broadcast_to(oracle, (3, 4)), atol=0.2)


def test_the_same_update_goes_on_online():
    """From data in which the best actions are missing, then with interaction: the State is carried over as it is."""
    env = probe.continuous_action()
    rows = windows.rows_of(env, 2000)
    rows = jax.tree.map(lambda x: x[np.flatnonzero(np.abs(rows.action[:, 0]) < 0.25)], rows)
    cfg = types.strong(dataclasses.replace(PROBING, expectile=0.9, sharpness=10.0, smallest_std=0.2))
    offline = loops.offline(iql.make, env, windows.draw(64), (rows,), updates=500)
    learned, _ = jax.jit(offline.chunk)(cfg, jax.jit(offline.init)(cfg, jax.random.key(8)), rows)
    online = loops.offline_to_online(
        iql.make, wrap.fresh(env, 8), windows.draw(64), (rows,), steps=2, updates=4, batch_size=64, capacity=4000,
        warmup=64, iterations=300,
    )  # fmt: skip
    carry = jax.jit(online.init)(cfg, jax.random.key(9))._replace(state=learned.state)
    carry, metrics = jax.jit(online.chunk)(cfg, carry, rows)
    best = lambda state: iql.make(cfg, env.spec).act(state, jnp.array([[1.0], [-1.0]]), None)[0][:, 0]
    before, after = best(learned.state), best(carry.state)
    assert np.all(np.abs(before) < 0.3)
    np.testing.assert_allclose(after, [0.5, -0.5], atol=0.2)
    assert np.all(np.abs(after) > np.abs(before) + 0.05) and float(metrics["guard/skipped_updates"]) == 0.0


def test_a_classifying_critic_takes_the_place_of_one_that_regresses():
    env = probe.continuous_action()
    rows = windows.rows_of(env, 4000)
    make = lambda cfg, spec: iql.make(cfg, spec, readout=value.classified(-3.0, 3.0, 31))
    cfg = dataclasses.replace(PROBING, expectile=0.9, sharpness=10.0)
    state, metrics = windows.learn_offline(make, cfg, env, rows, 1500, batch_size=256)
    best = jax.vmap(lambda s: make(cfg, env.spec).act(s, jnp.array([[1.0], [-1.0]]), None)[0])(state)
    np.testing.assert_allclose(best[..., 0], np.broadcast_to([0.5, -0.5], (3, 2)), atol=0.15)
    np.testing.assert_allclose(metrics["critic/clipped"], 0.0)
