"""The on-policy loop, its metrics, its compile report and the host loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen import loops, types
from jaxrl_gen.algos import ppo
from jaxrl_gen.envs import probe, wrap
from jaxrl_gen.types import Outcome, Spec

CFG = ppo.Config(actor_hidden=(8,), critic_hidden=(8,), epochs=1, minibatches=2)


def counting(end: int, lanes: int = 3):
    """Lanes whose observation is the step of the episode; terminated after `end` steps, with reward = step."""

    def step(state, action, key):
        state = state + 1
        obs = state.astype(jnp.float32)[None]
        return state, obs, Outcome(obs, obs[0], state >= end, jnp.zeros((), bool), jnp.ones((), bool), {"twice": 2 * obs[0]})

    reset = lambda key: (jnp.zeros((), jnp.int32), jnp.zeros((1,), jnp.float32))  # noqa: E731
    return wrap.fresh(types.Env(reset, step, Spec(jax.ShapeDtypeStruct((1,), jnp.float32), 1)), lanes)


def test_rows_follow_each_other_and_keep_the_true_last_observation():
    env = counting(end=4)
    loop = loops.on_policy(ppo.make, env, steps=10, iterations=1)
    carry = loop.init(CFG, jax.random.key(0))
    after, _, rows = jax.jit(loop.iteration)(CFG, carry)
    np.testing.assert_array_equal(rows.obs[:, 0, 0], [0, 1, 2, 3, 0, 1, 2, 3, 0, 1])
    np.testing.assert_array_equal(rows.next_obs[:, 0, 0], [1, 2, 3, 4, 1, 2, 3, 4, 1, 2])
    np.testing.assert_array_equal(rows.terminated[:, 0], [0, 0, 0, 1, 0, 0, 0, 1, 0, 0])
    np.testing.assert_array_equal(after.obs[:, 0], [2, 2, 2])
    assert types.total_steps(after.steps) == 30


def test_metrics_of_a_chunk_weigh_episodes_by_their_number():
    env = counting(end=4)
    loop = loops.on_policy(ppo.make, env, steps=10, iterations=3)
    carry, metrics = jax.jit(loop.chunk)(CFG, loop.init(CFG, jax.random.key(0)))
    steps = np.arange(1, 31)
    rewards = (steps - 1) % 4 + 1.0  # of one lane; each episode has return 1 + 2 + 3 + 4
    assert metrics["episode/count"] == 3 * np.sum(rewards == 4)
    assert metrics["episode/return"] == metrics["episode/return_min"] == metrics["episode/return_max"] == 10.0
    assert metrics["episode/length"] == 4.0 and metrics["episode/return_std"] == 0.0
    np.testing.assert_allclose(metrics["env/reward"], rewards.mean(), rtol=1e-6)
    np.testing.assert_allclose(metrics["env/twice"], 2 * rewards.mean(), rtol=1e-6)
    assert metrics["env/quarantined"] == 0


def test_reduced_metrics_equal_numpy_on_the_concatenated_episodes():
    rng = np.random.default_rng(0)
    chunks = [rng.normal(3.0, 2.0, size=count) for count in (4, 0, 7)]
    episodes = {
        "count": [float(len(x)) for x in chunks],
        "total": [x.sum() for x in chunks],
        "square": [(x**2).sum() for x in chunks],
        "min": [x.min(initial=np.inf) for x in chunks],
        "max": [x.max(initial=-np.inf) for x in chunks],
        "length": [5.0 * len(x) for x in chunks],
    }
    metrics = {"episodes": jax.tree.map(jnp.float32, {k: np.array(v) for k, v in episodes.items()}), "a/b": jnp.arange(3.0)}
    reduced = loops.reduce_metrics(metrics)
    together = np.concatenate(chunks)
    expected = {
        "episode/count": 11.0, "episode/return": together.mean(), "episode/return_std": together.std(),
        "episode/return_min": together.min(), "episode/return_max": together.max(), "episode/length": 5.0, "a/b": 1.0,
    }  # fmt: skip
    assert reduced.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(reduced[name], value, rtol=1e-4, err_msg=name)


def test_a_chunk_in_which_no_episode_ended_has_no_return():
    loop = loops.on_policy(ppo.make, counting(end=100), steps=10, iterations=1)
    _, metrics = loop.chunk(CFG, loop.init(CFG, jax.random.key(0)))
    assert metrics["episode/count"] == 0 and np.isnan(metrics["episode/return"])


def test_compile_report_traces_once_and_floats_do_not_recompile():
    loop = loops.on_policy(ppo.make, counting(end=4), steps=4, iterations=2)
    cfg = types.strong(CFG)
    carry = jax.jit(loop.init)(cfg, jax.random.key(0))
    compiled = loops.compile_report(loop, cfg, carry)
    assert compiled.traces == 1 and compiled.peak_bytes > 0
    for lr in (1e-3, 1e-2):
        cfg = types.strong(ppo.Config(lr=lr, actor_hidden=(8,), critic_hidden=(8,), epochs=1, minibatches=2))
        carry, metrics = compiled.chunk(cfg, carry)  # a compiled program refuses other shapes and types
        np.testing.assert_allclose(metrics["actor/lr"], lr, rtol=1e-6)


def test_peak_memory_does_not_grow_with_the_length_of_the_run():
    peaks = []
    for iterations in (10, 1000):
        loop = loops.on_policy(ppo.make, counting(end=4), steps=4, iterations=iterations)
        cfg = types.strong(CFG)
        peaks.append(loops.compile_report(loop, cfg, jax.eval_shape(loop.init, cfg, jax.random.key(0))).peak_bytes)
    scalars = 4 * 40  # at most forty float32 metrics are kept for each iteration
    assert peaks[1] - peaks[0] <= 990 * scalars


def test_branching_on_a_float_is_refused_by_name():
    def make(cfg, spec):
        if cfg.lr > 1e-3:  # the mistake
            return ppo.make(cfg, spec)
        return ppo.make(cfg, spec)

    loop = loops.on_policy(make, counting(end=4), steps=4, iterations=1)
    cfg = types.strong(CFG)
    shapes = jax.eval_shape(loops.on_policy(ppo.make, loop.env, steps=4, iterations=1).init, cfg, jax.random.key(0))
    with pytest.raises(ValueError, match=r"cfg\.lr is a float leaf"):
        loops.compile_report(loop, cfg, shapes)


def test_a_plan_that_does_not_fit_is_refused():
    loop = loops.on_policy(ppo.make, counting(end=4), steps=4, iterations=1)
    cfg = types.strong(CFG)
    with pytest.raises(ValueError, match="fewer lanes"):
        loops.compile_report(loop, cfg, jax.eval_shape(loop.init, cfg, jax.random.key(0)), memory_limit=1000)


def test_a_plan_whose_arguments_do_not_fit_is_refused_before_it_is_compiled():
    loop = loops.on_policy(ppo.make, counting(end=4), steps=4, iterations=1)
    cfg = types.strong(CFG)
    shapes = jax.eval_shape(loop.init, cfg, jax.random.key(0))
    least = loops.nbytes((cfg, shapes))
    assert least == sum(x.nbytes for x in jax.tree.leaves((cfg, loop.init(cfg, jax.random.key(0)))))
    untraceable = loop._replace(chunk=None)
    for limit in ({"memory_limit": least - 1}, {"memory_limit": 2 * least, "kept": least + 1}):
        with pytest.raises(ValueError, match="the chunk needs"):
            loops.compile_report(untraceable, cfg, shapes, **limit)


@pytest.mark.parametrize("sizes", [{"steps": 0, "iterations": 1}, {"steps": 1, "iterations": 0}])
def test_loops_of_nothing_are_refused(sizes):
    with pytest.raises(ValueError, match="allowed: 1 and more"):
        loops.on_policy(ppo.make, counting(end=4), **sizes)


def test_an_environment_of_one_lane_is_refused():
    with pytest.raises(ValueError, match="make it many"):
        loops.on_policy(ppo.make, probe.terminating(), steps=1, iterations=1)


def test_run_calls_every_callback_and_stops_when_one_says_so():
    calls = []

    def chunk(cfg, carry):
        return carry._replace(steps=types.add_steps(carry.steps, 5)), {"x": jnp.float32(cfg)}

    carry = types.Carry(None, None, None, None, None, jnp.zeros((2,), jnp.uint32))
    first = lambda i, carry, metrics: calls.append((i, int(metrics["steps"]), float(metrics["x"]))) or i == 4  # noqa: E731
    second = lambda i, carry, metrics: calls.append(i)  # noqa: E731
    carry = loops.run(chunk, 7.0, carry, chunks=9, start=3, callbacks=[first, second])
    assert calls == [(3, 5, 7.0), 3, (4, 10, 7.0), 4]
    assert types.total_steps(carry.steps) == 10


def test_a_sweep_shares_what_it_does_not_sweep():
    loop = loops.population(loops.on_policy(ppo.make, counting(end=4), steps=4, iterations=1))
    cfg = types.strong(CFG)
    swept = ppo.Config(lr=np.array([0.0, 1e-2]), actor_hidden=(8,), critic_hidden=(8,), epochs=1, minibatches=2)
    keys = jnp.stack([jax.random.key(0)] * 2)
    carry = jax.jit(loop.init)(types.strong(swept), keys)
    after, metrics = jax.jit(loop.chunk)(types.strong(swept), carry)
    assert metrics["episode/return"].shape == (2,)
    first, second = (jax.tree.leaves(jax.tree.map(lambda x, i=i: x[i], after.state.params)) for i in (0, 1))
    before = jax.tree.leaves(jax.tree.map(lambda x: x[0], carry.state.params))
    assert all(np.array_equal(x, y) for x, y in zip(first, before))  # a learning rate of zero
    assert any(not np.array_equal(x, y) for x, y in zip(second, before))
    assert jax.tree.structure(cfg) == jax.tree.structure(types.strong(swept))
