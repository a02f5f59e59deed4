"""Statistics against NumPy's in float64 and a closed form."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen import normalize
from jaxrl_gen.data import statistics
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
