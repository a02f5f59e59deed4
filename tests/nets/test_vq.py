"""Quantisers against brute force and hand computation in float64 NumPy."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_gen.nets import vq

MODES = pytest.mark.parametrize("mode", [lambda f: f, jax.jit], ids=["eager", "jit"])


def brute_force(codes, latent):
    """The nearest code of each latent, and the two least squared distances, in float64."""
    distance = ((latent.astype(np.float64)[..., None, :] - codes.astype(np.float64)) ** 2).sum(-1)
    return distance.argmin(-1), np.sort(distance, -1)


@MODES
def test_nearest_is_brute_force(mode):
    rng = np.random.default_rng(0)
    codes, latent = rng.normal(size=(16, 6)).astype(np.float32), rng.normal(size=(50, 3, 6)).astype(np.float32)
    found = mode(vq.nearest)(codes, latent)
    assert found.dtype == jnp.int32 and found.shape == (50, 3)
    np.testing.assert_array_equal(found, brute_force(codes, latent)[0])


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 100.0))
def test_nearest_at_any_scale_and_far_from_the_origin(seed, scale):
    rng = np.random.default_rng(seed)
    codes, latent = (scale * (rng.normal(size=(n, 4)) + 3.0) for n in (8, 20))
    codes, latent = codes.astype(np.float32), latent.astype(np.float32)
    expected, distance = brute_force(codes, latent)
    clear = distance[:, 1] - distance[:, 0] > 1e-3 * scale**2  # nearer than that, float32 may take either
    np.testing.assert_array_equal(np.asarray(vq.nearest(codes, latent))[clear], expected[clear])


def test_of_two_codes_alike_the_first():
    assert int(vq.nearest(jnp.ones((3, 2)), jnp.zeros((2,)))) == 0


@MODES
def test_usage_is_counted_by_hand(mode):
    rng = np.random.default_rng(1)
    latent, index = rng.normal(size=(10, 2, 3)).astype(np.float32), rng.integers(0, 4, (10, 2)).astype(np.int32)
    valid = rng.random((10, 2)) < 0.7
    usage = vq.Usage(
        *np.float32([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]]), rng.normal(size=(4, 3)).astype(np.float32)
    )
    found = mode(lambda *a: vq.counted(*a, decay=0.9))(usage, np.where(valid[..., None], latent, np.nan), index, valid)
    count = valid.sum()
    for k in range(4):
        chose = latent[(index == k) & valid].astype(np.float64)
        np.testing.assert_allclose(found.share[k], 0.9 * usage.share[k] + 0.1 * len(chose) / count, rtol=1e-5)
        np.testing.assert_allclose(found.credit[k], 0.9 * usage.credit[k] + 0.1 * len(chose) / count, rtol=1e-5)
        total = 0.9 * usage.total[k] + 0.1 * chose.sum(0) / count
        np.testing.assert_allclose(found.total[k], total, rtol=1e-4, atol=1e-6)


def test_where_nothing_is_valid_nothing_changes():
    quantizer = vq.ema(4, 2)
    codes, usage = quantizer.init(jax.random.key(0))
    usage = usage._replace(credit=jnp.array([1.0, 0.0, 0.0, 0.0]))
    latent, nowhere = jnp.full((5, 2), jnp.nan), jnp.zeros((5,), bool)
    after = vq.revive(codes, usage, latent, nowhere, jax.random.key(1), least=0.1)
    after = (*after, vq.counted(usage, latent, jnp.zeros((5,), jnp.int32), nowhere, decay=0.9))
    for one, two in zip(jax.tree.leaves(after), jax.tree.leaves((codes, usage, usage))):
        np.testing.assert_array_equal(one, two)


@MODES
def test_codes_of_running_means_are_the_means_of_what_chose_them(mode):
    """Three batches by hand, in float64; none of the codes dies."""
    rng = np.random.default_rng(2)
    quantizer = vq.ema(3, 2, decay=0.8, least=0.0)
    codes, usage = quantizer.init(jax.random.key(0))
    share, total = np.full(3, 1 / 3), np.asarray(codes, np.float64) / 3
    np.testing.assert_allclose(usage.total, total, rtol=1e-6)
    for _ in range(3):
        latent = rng.normal(size=(12, 2)).astype(np.float32)
        expected, _ = brute_force(np.asarray(codes), latent)
        seen, code, index = mode(quantizer.apply)(codes, latent)
        np.testing.assert_array_equal(index, expected)
        np.testing.assert_array_equal(code, np.asarray(codes)[expected])
        np.testing.assert_array_equal(seen, latent)
        for k in range(3):
            chose = latent[expected == k].astype(np.float64)
            share[k] = 0.8 * share[k] + 0.2 * len(chose) / 12
            total[k] = 0.8 * total[k] + 0.2 * chose.sum(0) / 12
        codes, usage = mode(quantizer.update)(codes, usage, latent, index, np.ones(12, bool), jax.random.key(1))
        np.testing.assert_allclose(codes, total / share[:, None], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(usage.share, share, rtol=1e-5)


def test_a_code_that_nothing_chose_for_long_stays_where_it_is():
    quantizer = vq.ema(2, 1, decay=0.1, least=0.0)
    codes, usage = jnp.array([[0.0], [50.0]]), vq.Usage(*jnp.full((2, 2), 0.5), jnp.array([[0.0], [25.0]]))
    for _ in range(20):
        latent, _, index = quantizer.apply(codes, jnp.zeros((4, 1)))
        codes, usage = quantizer.update(codes, usage, latent, index, jnp.ones(4, bool), jax.random.key(0))
    np.testing.assert_allclose(codes, [[0.0], [50.0]], atol=1e-5)


@MODES
def test_dead_codes_are_put_where_latents_are_and_given_time(mode):
    latent = np.random.default_rng(3).normal(size=(9, 2)).astype(np.float32)
    codes = jnp.arange(8.0).reshape(4, 2)
    usage = vq.Usage(jnp.full((4,), 0.25), jnp.array([0.90, 0.02, 0.08, 0.0]), codes * 0.1)
    valid = np.arange(9) != 4
    pool = np.where(valid[:, None], latent, np.nan)
    found, after = mode(lambda *a: vq.revive(*a, least=0.1))(codes, usage, pool, valid, jax.random.key(0))
    for k, dead in enumerate([False, True, False, True]):  # less than 0.1 / 4 of the latents
        if dead:
            assert np.any(np.all(np.asarray(found[k]) == latent, -1))
            assert after.credit[k] == 0.25
            np.testing.assert_allclose(after.total[k], found[k] / 4, rtol=1e-6)
        else:
            np.testing.assert_array_equal(found[k], codes[k])
            np.testing.assert_array_equal(after.total[k], usage.total[k])
    assert np.any(found[1] != found[3])
    np.testing.assert_array_equal(after.share, usage.share)


def test_without_revival_nothing_moves():
    quantizer = vq.gradient(4, 2, least=0.0)
    codes, usage = quantizer.init(jax.random.key(0))
    latent, _, index = quantizer.apply(codes, jnp.ones((5, 2)))
    np.testing.assert_array_equal(
        quantizer.update(codes, usage, latent, index, jnp.ones(5, bool), jax.random.key(1))[0], codes
    )


def test_revival_brings_a_whole_codebook_into_use():
    """All codes far from the data: the one nearest takes everything, until the others are moved."""
    quantizer = vq.ema(8, 2, decay=0.9, least=0.1)
    codes, usage = quantizer.init(jax.random.key(0))
    codes = codes + 100.0
    data = np.random.default_rng(4).normal(size=(256, 2)).astype(np.float32)
    assert len(np.unique(quantizer.apply(codes, data)[2])) == 1

    @jax.jit
    def learn(codes, usage, key):
        latent, _, index = quantizer.apply(codes, data)
        return quantizer.update(codes, usage, latent, index, jnp.ones(256, bool), key)

    for i in range(60):
        codes, usage = learn(codes, usage, jax.random.key(i))
    assert len(np.unique(quantizer.apply(codes, data)[2])) == 8


def test_who_learns_by_what():
    """A gradient codebook takes the gradient of what its codes are used for; one of running means takes none."""
    latent = jnp.ones((5, 2))
    for make, learns in (vq.gradient, True), (vq.ema, False):
        quantizer = make(3, 2)
        codes, _ = quantizer.init(jax.random.key(0))
        gradient = jax.grad(lambda codes: jnp.sum(quantizer.apply(codes, latent)[1] ** 2))(codes)
        assert np.any(gradient) == learns
        assert not np.any(jax.grad(lambda z: jnp.sum(quantizer.apply(codes, z)[1]))(latent))


@MODES
@pytest.mark.parametrize("levels", [(3,), (4,), (5, 3), (8, 5, 5)])
def test_finite_has_every_level_and_no_other(mode, levels):
    """Wide latents reach every combination of levels; the index names it as mixed-radix digits do."""
    quantizer = vq.finite(levels)
    codes, usage = quantizer.init(jax.random.key(0))
    latent = 3.0 * np.random.default_rng(5).normal(size=(20_000, len(levels))).astype(np.float32)
    bounded, code, index = mode(quantizer.apply)(codes, latent)
    expected = set(itertools.product(*[range(-(n // 2), n - n // 2) for n in levels]))
    assert set(map(tuple, np.asarray(code, int).tolist())) == expected
    digits = [list(range(-(n // 2), n - n // 2)) for n in levels]
    named = [
        sum(digits[d].index(v) * int(np.prod(levels[:d])) for d, v in enumerate(row))
        for row in np.asarray(code, int).tolist()[:200]
    ]  # noqa: E501
    np.testing.assert_array_equal(index[:200], named)
    assert quantizer.size == np.prod(levels) and int(index.max()) == quantizer.size - 1
    np.testing.assert_allclose(np.abs(bounded - code).max(), 0.5, atol=0.01)
    assert usage.share.shape == (quantizer.size,)


def test_finite_passes_the_gradient_of_its_bound():
    quantizer = vq.finite((5,))
    codes, _ = quantizer.init(jax.random.key(0))
    z = jnp.array([[0.3]])
    gradient = jax.grad(lambda z: jnp.sum(quantizer.apply(codes, z)[0]))(z)
    np.testing.assert_allclose(gradient, 2.002 * (1 - np.tanh(0.3) ** 2), rtol=1e-4)


@pytest.mark.parametrize(
    "make, message",
    [(lambda: vq.ema(0, 2), "size of the codebook is 0"), (lambda: vq.gradient(2, 0), "width of the codebook is 0"),
     (lambda: vq.finite(()), "levels are"), (lambda: vq.finite((5, 2)), "levels are")],
)  # fmt: skip
def test_bad_sizes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()
