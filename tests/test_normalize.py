"""The running normaliser against NumPy's mean and deviation of the concatenated data, in any split."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrl_gen import normalize

MODES = pytest.mark.parametrize("mode", [lambda f: f, jax.jit], ids=["eager", "jit"])
UPDATE = jax.jit(normalize.update)


def shaped(*shape):
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def fold(batches, masks=None, update=UPDATE):
    statistics = normalize.init(shaped(*batches[0].shape[1:]))
    for i, batch in enumerate(batches):
        mask = jnp.ones(len(batch), bool) if masks is None else jnp.asarray(masks[i])
        statistics = update(statistics, jnp.asarray(batch), mask)
    return statistics


@given(st.integers(0, 2**31), st.lists(st.sampled_from([1, 2, 7, 30]), min_size=1, max_size=6), st.floats(-50.0, 50.0))
def test_any_split_gives_the_statistics_of_all_the_data(seed, sizes, offset):
    rng = np.random.default_rng(seed)
    batches = [(offset + rng.normal(size=(size, 3)) * [0.1, 1.0, 10.0]).astype(np.float32) for size in sizes]
    statistics, data = fold(batches), np.concatenate(batches).astype(np.float64)
    assert float(statistics.count) == len(data)
    np.testing.assert_allclose(statistics.mean, data.mean(0), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(normalize.std(statistics), np.maximum(data.std(0), 1e-4), rtol=2e-3, atol=1e-4)


@given(st.integers(0, 2**31), st.integers(0, 4))
def test_masked_rows_are_left_out(seed, how_many):
    rng = np.random.default_rng(seed)
    batches = [rng.normal(size=(5, 2)).astype(np.float32) for _ in range(3)]
    masks = [rng.permutation(5) < how_many for _ in range(3)]
    garbage = [np.where(mask[:, None], batch, 1e6).astype(np.float32) for batch, mask in zip(batches, masks)]
    one, two = fold(batches, masks), fold(garbage, masks)
    assert all(np.array_equal(x, y) for x, y in zip(one, two))
    assert float(one.count) == 3 * how_many
    if how_many:
        data = np.concatenate([batch[mask] for batch, mask in zip(batches, masks)]).astype(np.float64)
        np.testing.assert_allclose(one.mean, data.mean(0), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(normalize.std(one), np.maximum(data.std(0), 1e-4), rtol=1e-3, atol=1e-5)


@MODES
def test_many_axes_and_pytrees(mode):
    rng = np.random.default_rng(1)
    batch = {
        "image": rng.integers(0, 255, (6, 4, 2, 2)).astype(np.uint8),
        "state": rng.normal(size=(6, 4)).astype(np.float32),
    }
    spec = {"image": jax.ShapeDtypeStruct((2, 2), jnp.uint8), "state": shaped()}
    statistics = mode(normalize.update)(normalize.init(spec), batch, jnp.ones((6, 4), bool))
    for name, x in batch.items():
        np.testing.assert_allclose(statistics.mean[name], x.astype(np.float64).mean((0, 1)), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(normalize.std(statistics)[name], x.astype(np.float64).std((0, 1)), rtol=1e-5)


@MODES
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e30])
def test_rows_with_a_number_that_is_no_measurement_are_left_out_of_every_leaf(mode, bad):
    rng = np.random.default_rng(2)
    batch = {"a": rng.normal(size=(8, 2)).astype(np.float32), "b": rng.normal(size=(8,)).astype(np.float32)}
    batch["a"][3, 1] = bad
    batch["b"][5] = bad
    statistics = mode(normalize.update)(
        normalize.init({"a": shaped(2), "b": shaped()}), jax.tree.map(jnp.asarray, batch), jnp.ones(8, bool)
    )
    rest = np.array([0, 1, 2, 4, 6, 7])
    assert float(statistics.count) == 6
    for name in batch:
        np.testing.assert_allclose(statistics.mean[name], batch[name][rest].mean(0), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(normalize.std(statistics)[name], batch[name][rest].std(0), rtol=1e-4)


def test_nothing_seen_changes_nothing():
    statistics = normalize.init(shaped(3))
    x = jnp.array([[1e5, -3.0, 0.0]])
    np.testing.assert_array_equal(normalize.apply(statistics, x), x)
    empty = UPDATE(statistics, jnp.full((4, 3), jnp.nan), jnp.ones(4, bool))
    assert all(np.array_equal(one, two) for one, two in zip(statistics, empty))


def test_no_leaves_are_allowed():
    statistics = normalize.update(normalize.init(()), (), jnp.ones((2, 3), bool))
    assert statistics.mean == () and normalize.apply(statistics, ()) == ()


@MODES
def test_apply(mode):
    rng = np.random.default_rng(3)
    data = (5.0 + 3.0 * rng.normal(size=(200, 2))).astype(np.float32)
    statistics = fold([data])
    x = np.concatenate([data[:6].reshape(2, 3, 2), np.full((1, 3, 2), 1e4, np.float32)])
    oracle = np.clip((x - data.astype(np.float64).mean(0)) / data.astype(np.float64).std(0), -10.0, 10.0)
    np.testing.assert_allclose(mode(normalize.apply)(statistics, x), oracle, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(
        mode(normalize.apply)(statistics, x, 2.0), np.clip(oracle, -2.0, 2.0), rtol=1e-4, atol=1e-4
    )


def test_a_constant_feature_is_centred_and_not_blown_up():
    statistics = fold([np.full((50, 1), 7.0, np.float32)])
    np.testing.assert_allclose(normalize.std(statistics), 1e-4, rtol=1e-6)
    np.testing.assert_allclose(normalize.apply(statistics, jnp.array([[7.0], [8.0]])), [[0.0], [10.0]], atol=1e-3)


def test_a_large_offset_does_not_spoil_the_deviation():
    rng = np.random.default_rng(4)
    batches = [(1e4 + rng.normal(size=(5000, 1))).astype(np.float32) for _ in range(5)]
    data = np.concatenate(batches).astype(np.float64)
    np.testing.assert_allclose(normalize.std(fold(batches)), data.std(0), rtol=0.01)


def test_the_count_saturates_and_the_deviation_stays():
    rng = np.random.default_rng(5)
    batch = jnp.asarray(2.0 + 3.0 * rng.normal(size=(1000, 1)).astype(np.float32))
    mask = jnp.ones(1000, bool)
    full = normalize.Normalizer(
        jnp.float32(normalize.COUNT_LIMIT), jnp.full((1,), 2.0), jnp.full((1,), 9.0 * normalize.COUNT_LIMIT)
    )
    after, _ = jax.lax.scan(lambda s, _: (normalize.update(s, batch, mask), None), full, None, 200)
    assert float(after.count) == normalize.COUNT_LIMIT
    np.testing.assert_allclose(after.mean, 2.0, rtol=1e-3)
    np.testing.assert_allclose(normalize.std(after), 3.0, rtol=1e-3)


def test_a_saturated_count_still_learns():
    """After as many new samples as the limit holds, exp(-1) of the old mean is left."""
    limit = int(normalize.COUNT_LIMIT)
    full = normalize.Normalizer(jnp.float32(limit), jnp.zeros((1,)), jnp.full((1,), float(limit)))
    batch, mask = jnp.ones((limit // 1000, 1)), jnp.ones(limit // 1000, bool)
    after, _ = jax.lax.scan(lambda s, _: (normalize.update(s, batch, mask), None), full, None, 1000)
    np.testing.assert_allclose(after.mean, 1.0 - np.exp(-1.0), rtol=0.01)


def test_large_numbers_and_a_full_count_do_not_overflow():
    full = normalize.Normalizer(jnp.float32(normalize.COUNT_LIMIT), jnp.zeros((1,)), jnp.ones((1,)))
    after = UPDATE(full, jnp.full((10_000, 1), 0.9 * normalize.LARGEST), jnp.ones(10_000, bool))
    assert all(np.all(np.isfinite(x)) for x in after)


def test_refuses_what_would_broadcast():
    statistics = normalize.init(shaped(3))
    mask = jnp.ones((4,), bool)
    for batch in (jnp.zeros((4, 1)), jnp.zeros((4,)), jnp.zeros((4, 3, 1)), jnp.zeros((1, 3))):
        with pytest.raises(AssertionError):
            normalize.update(statistics, batch, mask)
    for x in (jnp.zeros((3, 1)), jnp.zeros(())):
        with pytest.raises(AssertionError):
            normalize.apply(statistics, x)


def test_the_statistics_keep_their_shape_dtype_and_weak_type():
    statistics = normalize.init({"a": jax.ShapeDtypeStruct((2,), jnp.int32), "b": shaped()})
    batch = {"a": jnp.ones((4, 2), jnp.int32), "b": jnp.ones((4,))}
    before, after = jax.eval_shape(lambda s: (s, normalize.update(s, batch, jnp.ones(4, bool))), statistics)
    describe = lambda x: (x.shape, x.dtype, x.weak_type)  # noqa: E731
    assert jax.tree.map(describe, before) == jax.tree.map(describe, after)
