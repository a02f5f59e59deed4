"""Statistics against NumPy's in float64 and a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen import normalize
from jaxrl_gen.algos import bc, prdc
from jaxrl_gen.data import sampling, statistics
from jaxrl_gen.types import Algorithm, Recalled, Spec, Transition
from tests.data.recorded import SPEC, dataset


def test_they_are_numpys(monkeypatch):
    monkeypatch.setattr(statistics, "ROWS", 5)
    data = dataset()
    found = jax.jit(lambda s: s)(statistics.of(data))  # a pytree
    for moments, tree in ((found.obs, data.obs), (found.action, data.action)):
        numbers = jax.tree.map(np.float64, tree)
        np.testing.assert_equal(float(moments.count), len(jax.tree.leaves(tree)[0]))
        for name, of in (("mean", np.mean), ("std", np.std), ("low", np.min), ("high", np.max)):
            expected = jax.tree.map(lambda x: of(x, axis=0), numbers)
            got = getattr(moments, name)
            assert {x.dtype for x in jax.tree.leaves(got)} == {jnp.dtype("float32")}
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), got, expected)


def test_large_offsets_do_not_hide_small_deviations():
    x = 1e4 + np.random.default_rng(0).normal(size=(20_000, 2)).astype(np.float32)
    np.testing.assert_allclose(statistics.moments(x).std, x.astype(np.float64).std(0), rtol=1e-6)


def test_a_normaliser_that_has_seen_the_data():
    data = dataset()
    seen = normalize.update(normalize.init(SPEC.obs), data.obs, jnp.ones(len(data.obs["joint"]), bool))
    made = normalize.Normalizer(*statistics.running(statistics.of(data).obs))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4), made, seen)


@pytest.mark.parametrize("jit", [False, True])
def test_scaling_and_back(jit):
    wrap = jax.jit if jit else lambda f: f
    x = np.random.default_rng(0).normal(3.0, 5.0, (50, 4)).astype(np.float32)
    x[:, 2] = 7.0
    moments = statistics.moments(x)
    unit = wrap(statistics.to_unit)(moments, x)
    varying = [0, 1, 3]
    np.testing.assert_allclose(unit.min(0)[np.array(varying)], -1, atol=1e-6)
    np.testing.assert_allclose(unit.max(0)[np.array(varying)], 1, atol=1e-6)
    np.testing.assert_array_equal(unit[:, 2], 0)
    np.testing.assert_allclose(wrap(statistics.from_unit)(moments, unit), x, atol=1e-5)
    standard = wrap(statistics.standardized)(moments, x)
    expected = (x.astype(np.float64) - x.mean(0, dtype=np.float64)) / np.where(x.std(0) < 1e-4, 1, x.std(0))
    np.testing.assert_allclose(standard, expected, atol=1e-4)
    assert statistics.standardized(moments, x + 1e9, clip=4.0).max() == 4.0


def test_a_leaf_of_another_shape_is_refused():
    moments = statistics.moments(np.zeros((5, 3)))
    for scale in (statistics.standardized, statistics.to_unit, statistics.from_unit):
        with pytest.raises(AssertionError):
            scale(moments, jnp.zeros((4, 1)))


def recording(asked):
    """An algorithm that writes down what it is given, and does what it remembers."""

    def update(state, batch, key):
        asked.append(batch)
        return state + 1.0, {}

    def act(state, read, key):
        asked.append(read)
        return (read.memory if isinstance(read, Recalled) else 0.5 * jnp.ones((3, 2))), {"memory": ()}

    return lambda cfg, spec: Algorithm(lambda key: jnp.zeros(()), update, act, lambda lanes: "memory")


def scaled_to(moments, x):
    """NumPy's account in float64: standardized, and in units of half the range."""
    x, mean, std, low, high = (np.float64(y) for y in (x, moments.mean, moments.std, moments.low, moments.high))
    return (x - mean) / std, (x - (low + high) / 2) / ((high - low) / 2)


def test_a_scaled_algorithm_works_in_the_units_of_the_data():
    rng, asked = np.random.default_rng(0), []
    spec = Spec(jax.ShapeDtypeStruct((4,), jnp.float32), 2)
    obs, action = rng.normal(5.0, 0.1, (50, 4)), rng.uniform(0.2, 0.4, (50, 2))
    known = statistics.Statistics(statistics.moments(obs), statistics.moments(action))
    algo = statistics.scaled(recording(asked), known)(None, spec)
    state = algo.init(jax.random.key(0))
    assert isinstance(state, statistics.Scaled) and algo.memory(1) == "memory"
    other = state._replace(statistics=jax.tree.map(lambda x: 1.05 * x, known))  # the State's count, not the caller's

    draw = lambda *shape: jnp.asarray(rng.normal(5.0, 0.1, shape), jnp.float32)
    act = lambda *shape: jnp.asarray(rng.uniform(0.2, 0.4, shape), jnp.float32)
    none = jnp.zeros((2, 3), bool)
    rows = Transition(draw(2, 3, 4), act(2, 3, 2), none, draw(2, 3, 4), none, none, none, {"next_action": act(2, 3, 2)})
    after, _ = algo.update(state, rows, None)
    assert float(after.state) == 1.0 and after.statistics is known
    for name, x in (("obs", rows.obs), ("next_obs", rows.next_obs)):
        np.testing.assert_allclose(getattr(asked[-1], name), scaled_to(known.obs, x)[0], rtol=1e-3, atol=1e-3)
    for x, seen in ((rows.action, asked[-1].action), (rows.extras["next_action"], asked[-1].extras["next_action"])):
        np.testing.assert_allclose(seen, scaled_to(known.action, x)[1], rtol=1e-4, atol=1e-4)
    chunk = sampling.Windows(draw(3, 2, 4), act(3, 8, 2), none)
    algo.update(state, chunk, None)
    np.testing.assert_allclose(asked[-1].obs, scaled_to(known.obs, chunk.obs)[0], rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(asked[-1].action, scaled_to(known.action, chunk.action)[1], rtol=1e-4, atol=1e-4)

    for told, factor in ((state, 1.0), (other, 1.05)):
        seen = draw(3, 4)
        did, _ = algo.act(told, seen, None)
        np.testing.assert_allclose(asked[-1], scaled_to(told.statistics.obs, seen)[0], rtol=1e-3, atol=2e-3)
        np.testing.assert_allclose(scaled_to(known.action, did / factor)[1], np.full((3, 2), 0.5), atol=1e-4)
    did, extras = algo.act(state, Recalled(seen, -jnp.ones((3, 2))), None)
    np.testing.assert_allclose(did, np.broadcast_to(known.action.low, (3, 2)), rtol=1e-6)
    np.testing.assert_allclose(asked[-1].obs, scaled_to(known.obs, seen)[0], rtol=1e-3, atol=1e-3)
    with pytest.raises(ValueError, match="only continuous actions can be scaled; this Spec has 2 discrete ones"):
        statistics.scaled(recording(asked), known)(None, spec._replace(discrete=True))


def test_a_scaled_clone_is_the_same_whatever_the_units():
    """Observations in thousandths and shifted, actions in a tenth of the range: the same policy in these units."""
    rng = np.random.default_rng(0)
    spec, cfg = Spec(jax.ShapeDtypeStruct((2,), jnp.float32), 1), bc.Config(actor_hidden=(8,), normalize_obs=False)
    obs = rng.normal(size=(1, 64, 2)).astype(np.float32)
    action = np.tanh(obs[..., :1] - obs[..., 1:])
    none = np.zeros((1, 64), bool)
    acts = []
    for a, b, c, d in ((1.0, 0.0, 1.0, 0.0), (1024.0, 4096.0, 0.125, 0.5)):  # powers of two round alike
        x, y = a * obs + b, c * action + d
        known = statistics.Statistics(statistics.moments(x[0]), statistics.moments(y[0]))
        algo = statistics.scaled(bc.make, known)(cfg, spec)
        state, update = algo.init(jax.random.key(0)), jax.jit(algo.update)
        for _ in range(20):
            state, _ = update(state, Transition(x, y, none, x, none, none, ~none), jax.random.key(1))
        acts.append((np.asarray(algo.act(state, x[0], None)[0]) - d) / c)
    np.testing.assert_allclose(*acts, atol=2e-3)
    assert np.ptp(acts[0]) > 0.02


def test_what_is_brought_along_is_in_the_same_units():
    """PRDC's rows are compared with rows of their own kind: as if the data had been in these units."""
    rng = np.random.default_rng(0)
    spec = Spec(jax.ShapeDtypeStruct((3,), jnp.float32), 2)
    obs, action = rng.normal(500.0, [1.0, 30.0, 0.1], (1, 32, 3)), rng.uniform(0.1, 0.4, (1, 32, 2))
    no = np.zeros((1, 32), bool)
    rows = Transition(*(jnp.asarray(x, jnp.float32) for x in (obs, action, obs[..., 0], obs[:, ::-1])), no, no, ~no)
    known = statistics.Statistics(statistics.moments(obs[0]), statistics.moments(action[0]))
    batch = prdc.Among(rows, rows.obs[0], rows.action[0])
    unit = prdc.Among(
        rows._replace(
            obs=statistics.standardized(known.obs, rows.obs), action=statistics.to_unit(known.action, rows.action),
            next_obs=statistics.standardized(known.obs, rows.next_obs),
        ),
        statistics.standardized(known.obs, batch.obs), statistics.to_unit(known.action, batch.action),
    )  # fmt: skip
    jax.tree.map(np.testing.assert_array_equal, statistics.in_units(known, batch), unit)
    cfg = prdc.Config(actor_hidden=(8,), critic_hidden=(8,), normalize_obs=False, critic_updates=1)
    within, scaled = prdc.make(cfg, spec), statistics.scaled(prdc.make, known)(cfg, spec)
    first = scaled.init(jax.random.key(0))
    one, _ = jax.jit(scaled.update)(first, batch, jax.random.key(1))
    two, _ = jax.jit(within.update)(first.state, unit, jax.random.key(1))
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=1e-5), one.state.params, two.params)


def test_a_batch_in_which_there_is_nothing_to_scale_is_refused():
    known = statistics.Statistics(statistics.moments(np.ones((4, 3))), statistics.moments(np.ones((4, 2))))
    with pytest.raises(ValueError, match="a batch to scale is a tuple; expected fields such as obs and action"):
        statistics.in_units(known, (jnp.ones((4, 3)), jnp.ones((4, 2))))
