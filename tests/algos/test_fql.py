"""FQL against a float64 NumPy version of its update, on a probe whose best action is known, and who learns from whom."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen import loops, types
from jaxrl_gen.algos import fql
from jaxrl_gen.envs import probe, wrap
from jaxrl_gen.losses import value
from tests.algos import linear, reference, windows
from tests.algos.windows import ACTIONS, BATCH, DISCRETE, SPEC, batch_of, float64, same

CFG = fql.Config(lr=0.01, gamma=0.9, tau=0.1, closeness=3.0, flow_steps=3, actor_hidden=(), critic_hidden=())
dense = reference.dense


def critics(params, obs, action):
    """Values [N, B]."""
    return linear.outputs(params, obs, action)[..., 0]


def numpy_parts(cfg, state, batch, key):
    """The loss as a function of the parameters, with everything that is constant in it worked out before."""
    frozen, target_params = float64(state.params), float64(state.target)
    obs, action, reward, next_obs, discount, valid = windows.condensed(batch, cfg.gamma)
    keys = jax.random.split(key, 5)
    normal = lambda key: np.asarray(jax.random.normal(key, (BATCH, ACTIONS)), np.float64)
    acts = lambda params, obs, noise: dense(np.concatenate([obs, noise], -1), params["actor"]["Dense_0"])
    flows = lambda params, x, t: dense(np.concatenate([x, t[:, None], obs], -1), params["flow"]["Dense_0"])
    following = np.clip(acts(frozen, next_obs, normal(keys[0])), -1, 1)
    target = reward + discount * critics(target_params, next_obs, following).mean(0)
    noise = normal(keys[2])
    teacher = noise
    for k in range(cfg.flow_steps):
        teacher = teacher + flows(frozen, teacher, np.full(BATCH, k / cfg.flow_steps)) / cfg.flow_steps
    teacher = np.clip(teacher, -1, 1)
    key_noise, key_time = jax.random.split(keys[3])
    start, t = normal(key_noise), np.asarray(jax.random.uniform(key_time, (BATCH,)), np.float64)

    def total(params):
        error = 0.5 * ((critics(params["critic"], obs, action) - target) ** 2).sum(0)
        between = (1 - t)[:, None] * start + t[:, None] * action
        cloning = ((flows(params, between, t) - (action - start)) ** 2).mean(-1)
        student = acts(params, obs, noise)
        distance = ((student - teacher) ** 2).mean(-1)
        push = -critics(frozen["critic"], obs, np.clip(student, -1, 1)).mean(0)
        return (error + cloning + cfg.closeness * distance + push)[valid].mean()

    return total, target[valid]


def learner(**changes):
    return windows.learner(fql.make, dataclasses.replace(CFG, **changes))


@pytest.mark.parametrize("horizon", [1, 3])
def test_update_equals_numpy(horizon):
    batch = batch_of(horizon)
    _, update, state = learner()
    after, metrics = update(state, batch, jax.random.key(1))
    total, target = numpy_parts(CFG, state, batch, jax.random.key(1))
    windows.close_to_numpy(state, after, reference.gradient(total, float64(state.params)), CFG.lr)
    windows.check_moved_slowly(after, state, after.params["critic"])
    assert float(metrics["guard/skipped_updates"]) == 0.0


def test_invalid_rows_change_nothing():
    """Not even the size of values, by which the push is divided."""
    _, update, state = learner(normalize_obs=True, scale_free=True)
    windows.check_invalid_rows_change_nothing(update, state, batch_of(2))


def test_a_batch_with_nan_changes_no_parameter():
    _, update, state = learner()
    windows.check_nan_changes_no_parameter(update, state, batch_of(invalid=False), "reward")


def test_the_flow_and_the_critic_do_not_learn_from_the_actor():
    """A closer actor is another actor; flow and critic stay the same to the bit."""
    batch = batch_of()
    one, two = (learner(closeness=c)[1](learner()[2], batch, jax.random.key(4))[0].params for c in (0.5, 50.0))
    assert same(one["flow"], two["flow"]) and same(one["critic"], two["critic"])
    assert not same(one["actor"], two["actor"])


def test_a_scale_free_push_does_not_depend_on_the_size_of_rewards():
    batch = batch_of(invalid=False)
    _, update, state = learner(scale_free=True, gamma=0.0)
    grown = jax.tree.map(lambda x: 7.0 * x, state.params["critic"])
    one = update(state, batch, jax.random.key(5))[0]
    two = update(state._replace(params=state.params | {"critic": grown}), batch, jax.random.key(5))[0]
    for x, y in zip(jax.tree.leaves(one.params["actor"]), jax.tree.leaves(two.params["actor"]), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5)


ENV = probe.continuous_action()
SMALL = dict(lr=3e-3, gamma=0.9, actor_hidden=(32, 32), critic_hidden=(32, 32))


def actions(state, cfg, env, count=400):
    """Actions [S, 2, count] of all seeds for the observations 1 and -1."""
    obs = jnp.repeat(jnp.array([[1.0], [-1.0]]), count, axis=0)
    act = lambda state: fql.make(cfg, env.spec).act(state, obs, jax.random.key(9))[0]
    return np.asarray(jax.vmap(act)(state)).reshape(-1, 2, count)


def test_it_finds_the_best_action_in_random_data_and_clones_when_held_close():
    env, rows = ENV, windows.rows_of(ENV, 1000)
    free, close = fql.Config(**SMALL, closeness=0.01), fql.Config(**SMALL, closeness=1000.0)
    state, _ = windows.learn_offline(fql.make, free, env, rows, updates=50, seeds=2, chunks=12)
    np.testing.assert_allclose(actions(state, free, env).mean(-1), [[0.5, -0.5]] * 2, atol=0.1)
    state, _ = windows.learn_offline(fql.make, close, env, rows, updates=50, seeds=2, chunks=12)
    spread = actions(state, close, env)
    np.testing.assert_allclose(spread.mean(-1), 0.0, atol=0.3)  # the data are uniform in [-1, 1]
    np.testing.assert_allclose(spread.std(-1), 3**-0.5, atol=0.2)


def test_offline_then_online_is_the_same_update():
    """What was learned from data goes on in the environment, and becomes better than the data's best guess."""
    env, rows = ENV, windows.rows_of(ENV, 1000)
    cfg = types.strong(fql.Config(**SMALL, closeness=0.01))
    before, _ = windows.learn_offline(fql.make, cfg, env, rows, updates=50, seeds=2, chunks=8)
    before = jax.tree.map(lambda x: x[0], before)
    online = loops.offline_to_online(
        fql.make, wrap.fresh(env, 4), windows.draw(32), (rows,), steps=4, updates=16, batch_size=32, capacity=1024,
        warmup=16, iterations=50,
    )  # fmt: skip
    carry = jax.jit(online.init)(cfg, jax.random.key(1))._replace(state=before)
    after, metrics = jax.jit(online.chunk)(cfg, carry, rows)
    best = lambda state: np.abs(actions(jax.tree.map(lambda x: x[None], state), cfg, env).mean(-1) - [[0.5, -0.5]])
    fresh = best(jax.jit(online.init)(cfg, jax.random.key(1)).state)
    assert best(before).max() < 0.25 < fresh.max(), "learned from data before"
    assert best(after.state).max() < 0.1
    assert np.isfinite(float(metrics["critic/loss"]))


def test_without_a_key_a_lane_acts_as_it_would_alone():
    algo, _, state = learner()[:3]
    obs = jax.tree.map(lambda x: x[0], batch_of().obs)
    lanes = range(jax.tree.leaves(obs)[0].shape[0])
    alone = jnp.concatenate([algo.act(state, jax.tree.map(lambda x: x[i : i + 1], obs), None)[0] for i in lanes])
    np.testing.assert_allclose(algo.act(state, obs, None)[0], alone, atol=1e-6)


def test_target_and_actor_values_are_parts():
    batch, state = batch_of(), learner()[2]
    usual = learner()[1](state, batch, jax.random.key(6))[1]
    both = dict(target_value=value.minimum, actor_value=value.minimum)
    other = jax.jit(fql.make(CFG, SPEC, **both).update)(state, batch, jax.random.key(6))[1]
    for name in ("critic/target", "actor/q"):  # the smaller of two values is less than their mean
        assert float(other[name]) < float(usual[name])
    np.testing.assert_allclose(other["denoise/error"], usual["denoise/error"], rtol=1e-5)


def test_act():
    algo, _, state = learner()
    obs = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)
    one, two = (algo.act(state, obs, jax.random.key(k))[0] for k in (0, 1))
    assert one.shape == (5, ACTIONS) and np.all(np.abs(one) <= 1.0) and not same(one, two)
    assert same(algo.act(state, obs, None), algo.act(state, obs, None))


def test_discrete_actions_are_refused():
    with pytest.raises(ValueError, match="FQL needs continuous actions; this environment has 2 discrete ones"):
        fql.make(CFG, DISCRETE)
