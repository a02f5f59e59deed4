"""Chunk execution against a lane by lane simulation in plain Python."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen import evaluate, nets, samplers
from jaxrl_gen.envs import probe
from jaxrl_gen.types import Algorithm, Recalled, Spec

SPEC = Spec({"x": jax.ShapeDtypeStruct((2,), jnp.float32)}, 3)
SIZES = [(1, 1, 1), (1, 4, 4), (2, 8, 3), (3, 6, 4), (2, 16, 8)]


def planner(horizon, asked=None):
    """A plan tells its entries apart, and all that the planner saw."""

    def act(state, past, key):
        if asked is not None:
            jax.debug.callback(lambda: asked.append(1))
        seen = past["x"].reshape(past["x"].shape[0], -1)
        places = 0.37 ** jnp.arange(seen.shape[1])
        entry = jnp.arange(horizon, dtype=jnp.float32)
        number = jnp.sum(seen * places, -1)[:, None] + 1000.0 * entry
        return jnp.stack([number, 2 * number, jnp.broadcast_to(state, number.shape)], -1), {}

    return Algorithm(lambda key: jnp.float32(5.0), lambda state, batch, key: (state, {}), act)


def simulated(rows, history, horizon, execute):
    """Actions of one episode of one lane, rows [T, 2]."""
    actions, plan = [], None
    for t in range(len(rows)):
        if t % execute == 0:
            past = [rows[max(t - history + 1 + k, 0)] for k in range(history)]
            plan = [np.sum(np.concatenate(past) * 0.37 ** np.arange(2 * history)) + 1000.0 * k for k in range(horizon)]
        number = plan[history - 1 + t % execute]
        actions.append([number, 2 * number, 5.0])
    return np.array(actions)


@pytest.mark.parametrize("history, horizon, execute", SIZES)
def test_lanes_plan_and_execute_each_in_its_own_time(history, horizon, execute):
    lanes, steps = 3, 24
    algo = samplers.chunked(planner(horizon), SPEC, history=history, horizon=horizon, execute=execute)
    obs = np.random.default_rng(0).normal(size=(steps, lanes, 2)).astype(np.float32)
    over = np.zeros((steps, lanes), bool)
    over[[4, 13], 0] = over[[9], 1] = True  # episodes end at different times, the last lane's never

    def step(memory, row):
        obs, over = row
        action, extras = algo.act(jnp.float32(5.0), Recalled({"x": obs}, memory), None)
        return nets.forget(extras["memory"], algo.memory(lanes), over), action

    _, actions = jax.jit(lambda: jax.lax.scan(step, algo.memory(lanes), (obs, over)))()
    for lane in range(lanes):
        ends = [0, *(np.flatnonzero(over[:, lane]) + 1), steps]
        for begin, end in zip(ends[:-1], ends[1:], strict=True):
            oracle = simulated(obs[begin:end, lane].astype(np.float64), history, horizon, execute)
            np.testing.assert_allclose(actions[begin:end, lane], oracle, rtol=1e-5, atol=1e-3)


def test_the_planner_is_asked_only_when_a_lane_has_to_plan():
    asked = []
    algo = samplers.chunked(planner(8, asked), SPEC, history=1, horizon=8, execute=4)

    def step(memory, obs):
        action, extras = algo.act(jnp.float32(0.0), Recalled({"x": obs}, memory), None)
        return extras["memory"], action

    jax.block_until_ready(jax.jit(lambda: jax.lax.scan(step, algo.memory(2), jnp.zeros((12, 2, 2))))())
    jax.effects_barrier()
    assert len(asked) == 3


def test_each_plan_has_a_key_of_its_own():
    random = lambda state, past, key: (jax.random.normal(key, (past["x"].shape[0], 4, 3)), {})
    algo = samplers.chunked(planner(4)._replace(act=random), SPEC, history=1, horizon=4, execute=2)
    memory, actions = algo.memory(2), []
    for key in jax.random.split(jax.random.key(0), 6):
        action, extras = algo.act(None, Recalled({"x": jnp.zeros((2, 2))}, memory), key)
        memory = extras["memory"]
        actions.append(np.asarray(action))
    assert len(np.unique(np.stack(actions))) == np.stack(actions).size


def test_the_memory_has_the_types_of_the_spec():
    spec = SPEC._replace(obs={"frame": jax.ShapeDtypeStruct((4, 4, 1), jnp.uint8)})
    algo = samplers.chunked(planner(4), spec, history=2, horizon=4, execute=2)
    memory = algo.memory(3)
    assert memory.past["frame"].shape == (3, 2, 4, 4, 1) and memory.past["frame"].dtype == jnp.uint8
    assert memory.plan.shape == (3, 2, 3)


def test_the_evaluator_plays_it_unchanged():
    """The best action of this probe is half of the observation; the planner plans it for all time."""
    env = probe.continuous_action()
    plan = lambda state, past, key: (jnp.repeat(0.5 * past[:, -1:], 4, axis=1), {})
    base = Algorithm(lambda key: (), lambda state, batch, key: (state, {}), plan)
    algo = samplers.chunked(base, env.spec, history=2, horizon=4, execute=2)
    played = jax.jit(lambda key: evaluate.episodes(algo, env, (), key, lanes=8))(jax.random.key(0))
    np.testing.assert_allclose(played.returns, 1.0, atol=1e-6)


@pytest.mark.parametrize("history, horizon, execute, least", [(2, 4, 4, 5), (3, 3, 2, 4), (1, 7, 8, 8)])
def test_a_horizon_shorter_than_what_is_executed_is_refused(history, horizon, execute, least):
    with pytest.raises(ValueError, match=f"horizon is {horizon}; allowed: {least} and more.*history - 1"):
        samplers.chunked(planner(horizon), SPEC, history=history, horizon=horizon, execute=execute)


@pytest.mark.parametrize("name", ["history", "horizon", "execute"])
def test_counts_below_one_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} is 0; allowed: 1 and more"):
        samplers.chunked(planner(8), SPEC, **dict(dict(history=2, horizon=8, execute=2), **{name: 0}))


def test_a_plan_of_another_length_is_refused():
    algo = samplers.chunked(planner(6), SPEC, history=1, horizon=8, execute=2)
    with pytest.raises(ValueError, match=r"a plan has shape \(6, 3\); expected: \(8, 3\)"):
        algo.act(jnp.float32(0.0), Recalled({"x": jnp.zeros((2, 2))}, algo.memory(2)), None)
