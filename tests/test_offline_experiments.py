"""What the offline experiments share: recipes that fit, data in the units that a policy acts in, ends of episodes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import _diagnostics, _offline, offline_brax, offline_point_maze, ogbench_offline
from experiments.datasets import point_maze as recorded
from jaxrl_gen import loops, replay
from jaxrl_gen.algos import bc, beer, td3
from jaxrl_gen.data import sampling, statistics, trajectory
from jaxrl_gen.envs import brax
from jaxrl_gen.envs.tasks import point_maze
from jaxrl_gen.types import Carry, Recalled

RECIPES = _offline.recipes(gamma=0.9, widths=(8, 8), updates=10.0)
ENV = point_maze.make(offline_point_maze.MAZE)


@pytest.fixture(scope="module")
def data():
    """Some episodes of the maze, whose actions go to half of their range and lie beside its middle."""
    data = recorded.medium(offline_point_maze.MAZE, jax.random.key(0), 20)
    return data._replace(action=0.5 * data.action + 0.25)


def shapes(tree):
    """Of the leaves, and their types."""
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


@pytest.mark.parametrize("scaled", [False, True], ids=["own", "scaled"])
@pytest.mark.parametrize("method", _offline.METHODS)
def test_every_recipe_learns_from_what_it_brings_and_acts(method, scaled, data):
    recipe, reached = RECIPES[method], offline_point_maze.reached
    loop = _offline.loop(recipe, ENV, data, batch_size=6, horizon=3, terminate=reached, scaled=scaled)
    carry = jax.eval_shape(loop.init, recipe.cfg, jax.random.key(0))
    after, _, _ = jax.eval_shape(loop.iteration, recipe.cfg, carry, 0, *loop.data)
    assert shapes(after) == shapes(carry)

    def act(state, obs):
        algo = loop.make(recipe.cfg, ENV.spec)
        memory = algo.memory(len(obs))
        return algo.act(state, obs if memory is None else Recalled(obs, memory), None)[0]

    assert jax.eval_shape(act, carry.state, jnp.zeros((5, 4))).shape == (5, 2)


def test_changes_are_of_one_method_and_a_fifth_of_the_updates_is_the_models():
    changed = _offline.recipes(gamma=0.9, widths=(8, 8), updates=10.0, iql=dict(expectile=0.9))
    assert changed["iql"].cfg.expectile == 0.9 and changed["iql"].cfg.gamma == 0.9
    assert {method for method in _offline.METHODS if changed[method].cfg != RECIPES[method].cfg} == {"iql"}
    assert RECIPES["mopo"].cfg.model_updates == RECIPES["lipmbrl"].cfg.learning.model_updates == 2.0
    assert {method for method in _offline.METHODS if RECIPES[method].imagines} == {"mopo", "ravl", "lipmbrl"}


def test_variants_are_a_method_with_a_field(data):
    (brought,) = RECIPES["cal_ql"].bring(data)
    rows, start = np.asarray(data.reward), np.asarray(data.start)
    first = [sum(0.9**t * r for t, r in enumerate(rows[a:b])) for a, b in zip(start[:-1], start[1:])]
    np.testing.assert_allclose(brought.extras["return_to_go"][start[:-1]], first, rtol=1e-5)
    fields = lambda method: vars(RECIPES[method].cfg).items()
    assert dict(fields("cal_ql") - fields("cql")) == {"calibrated": True}
    assert dict(fields("sac_n") - fields("edac")) == {"diversity": 0.0}


def test_demonstrations_are_for_the_method_that_reads_them():
    exp = offline_point_maze.OfflinePointMaze(method="arsq", data="mixed")
    marked = recorded.mixed(offline_point_maze.MAZE, jax.random.key(0), 10)
    recipe = offline_point_maze.recipe(exp)
    assert recipe.cfg.margin_coefficient > 0.0 == RECIPES["arsq"].cfg.margin_coefficient
    learn = lambda rows: recipe.make(recipe.cfg, ENV.spec).update(
        recipe.make(recipe.cfg, ENV.spec).init(jax.random.key(1)), rows, jax.random.key(2)
    )
    batch = sampling.rows(marked, jnp.arange(0, len(marked.reward), 9))
    nobody = batch._replace(extras={"demonstration": jnp.zeros_like(batch.valid)})
    with_margin, without = (jax.jit(learn)(rows)[0].params for rows in (batch, nobody))
    assert any(jnp.any(x != y) for x, y in zip(*map(jax.tree.leaves, (with_margin, without))))


def test_data_scaled_once_are_learned_from_as_if_every_batch_were(data):
    of, recipe = statistics.of(data), RECIPES["bc"]
    scaled = _offline.in_units(data, of)
    np.testing.assert_allclose(np.std(scaled.obs[:, :2], 0), 1.0, rtol=1e-3)
    assert scaled.action.min() == -1.0 and scaled.action.max() == 1.0
    sample, key = sampling.transitions(32, 2), jax.random.key(1)
    states = []
    for make, rows in (
        (statistics.scaled(bc.make, of), data),
        (_offline.acting_scaled(bc.make, of), scaled),
    ):
        algo = make(recipe.cfg, ENV.spec)
        learned = jax.jit(lambda rows, algo=algo: algo.update(algo.init(key), sample(rows, key), key)[0])
        states.append(learned(rows))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-5), *states)


def test_what_claims_are_about_is_measured_of_every_member(data):
    loop = loops.population(
        _offline.loop(RECIPES["lipmbrl"], ENV, data, batch_size=6, horizon=3, terminate=offline_point_maze.reached)
    )
    carry, metrics = jax.jit(loop.init)(RECIPES["lipmbrl"].cfg, jax.random.split(jax.random.key(0), 2)), {"x": 1.0}
    (listener,) = _offline.listeners(RECIPES["lipmbrl"], loop)
    listener(0, carry, metrics)
    assert set(metrics) == {"x", "critic/steepness", "model/value_error"}
    obs, action = np.float64(trajectory.before(data)), np.float64(data.action)
    at = np.arange(0, len(action), -(-len(action) // 1024))
    for member in range(2):
        layers = jax.tree.map(lambda x: np.float64(x[member]), carry.state.policy.params["critic"])

        def value(pushed, layers=layers, n=0):
            x = np.concatenate([pushed, action[at]], -1)
            for i in range(3):
                x = x @ layers[f"Dense_{i}"]["kernel"][n] + layers[f"Dense_{i}"]["bias"][n]
                x = np.maximum(x, 0.0) if i < 2 else x
            return x[:, 0]

        push = 1e-6 * np.eye(4)
        slopes = [[(value(obs[at] + d, n=n) - value(obs[at] - d, n=n)) / 2e-6 for d in push] for n in range(2)]
        steep = np.sqrt(np.sum(np.square(slopes), 1)).mean()
        assert metrics["critic/steepness"][member] == pytest.approx(steep, rel=1e-3)
    assert (metrics["model/value_error"] > 0.0).all() and not _offline.listeners(RECIPES["iql"], loop)


@pytest.mark.parametrize("make", [td3, beer], ids=lambda make: make.__name__.rpartition(".")[2])
def test_the_rank_of_a_critics_last_hidden_layer(make):
    """With one unit alive, and with inputs that are all alike, it is one."""
    cfg = make.Config(actor_hidden=(8,), critic_hidden=(8, 8))
    spec = ENV.spec
    state = make.make(cfg, spec).init(jax.random.key(0))
    draw = lambda *shape: jax.random.uniform(jax.random.key(1), shape, minval=-1.0)
    ring = replay.init(spec, 50, 4)._replace(
        obs=draw(50, 4, 4), action=draw(50, 4, 2), valid=jnp.ones((50, 4), bool), size=jnp.int32(50)
    )
    carry = Carry(state, (), (), None, (), jnp.zeros((2,), jnp.uint32), ring)
    rank = lambda carry: float(_diagnostics.rank(False)(carry)["critic/rank"])
    assert 3 <= rank(carry) <= 8
    assert rank(carry._replace(replay=ring._replace(obs=0 * ring.obs + 1.0, action=0 * ring.action))) == 1
    critic = state.params["critic"]
    body = critic.get("body", critic)
    alone = body["Dense_1"] | {"kernel": body["Dense_1"]["kernel"] * (jnp.arange(8) == 3), "bias": jnp.eye(8)[3]}
    body = body | {"Dense_1": alone}
    critic = critic | {"body": body} if "body" in critic else body
    assert rank(carry._replace(state=state._replace(params=state.params | {"critic": critic}))) == 1


def test_prdc_looks_among_rows_at_even_distances(data, monkeypatch):
    monkeypatch.setattr(_offline, "COMPARED", 1000)
    rows, obs, action = _offline.beside_some(data)
    every = -(-len(data.reward) // 1000)
    assert rows is data and every > 1 and len(obs) == len(action) <= 1000
    first = trajectory.to_rows(data).obs
    np.testing.assert_array_equal(obs, first[::every])
    np.testing.assert_array_equal(action, data.action[::every])


def test_the_maze_says_where_episodes_end(data):
    rows = trajectory.to_rows(data)
    said = offline_point_maze.reached(*(jnp.asarray(x) for x in (rows.obs, rows.action, rows.next_obs)))
    np.testing.assert_array_equal(said, rows.terminated)
    assert 0 < rows.terminated.sum() < len(rows.terminated)
    of = statistics.of(data)
    scaled = trajectory.to_rows(_offline.in_units(data, of))
    same = _offline.in_own_units(offline_point_maze.reached, of)(scaled.obs, scaled.action, scaled.next_obs)
    np.testing.assert_array_equal(same, rows.terminated)


def test_success_is_within_the_range_of_successes():
    obs = np.array([[0, 0], [1, 5], [2, 6], [0, 0], [3, 4]], np.float32)  # episodes of two steps and of one
    ends, no = np.array([False, True, True]), np.zeros(3, bool)
    data = trajectory.make(obs, np.zeros((3, 1), np.float32), np.zeros(3), ends, no)
    places = jnp.float32([[2.5, 5.0], [2.0, 6.0], [1.9, 5.0], [2.5, 6.1]])
    said = ogbench_offline.succeeded(data)(places, jnp.zeros((4, 1)), places)
    np.testing.assert_array_equal(said, [True, True, False, False])
    never = ogbench_offline.succeeded(data._replace(terminated=no, truncated=ends))
    assert not never(places, jnp.zeros((4, 1)), places).any()


def test_hopper_falls_where_brax_says_so():
    env = brax.make("hopper", backend="spring", time_limit=100)

    def fall(key):
        key_reset, key_act = jax.random.split(key)
        actions = jax.random.uniform(key_act, (60, env.spec.action_size), minval=-1.0)

        def step(state, action):
            state, _, outcome = env.step(state, action, key)
            return state, outcome

        return jax.lax.scan(step, env.reset(key_reset)[0], actions)[1]

    outcome = jax.jit(jax.vmap(fall))(jax.random.split(jax.random.key(0), 8))
    rows = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), outcome)
    np.testing.assert_array_equal(offline_brax.fallen(None, None, rows.next_obs), rows.terminated)
    assert 0 < rows.terminated.sum() < len(rows.terminated)


def test_missing_logs_are_told_with_what_writes_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="own_logs --task brax/halfcheetah --folder"):
        offline_brax.main(offline_brax.OfflineBrax(task="halfcheetah", folder=tmp_path))
