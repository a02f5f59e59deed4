"""Units of values against second moments in float64 NumPy, and the identity that they are made for."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen import nets
from jaxrl_gen.losses import scale, value

MODES = pytest.mark.parametrize("mode", [lambda f: f, jax.jit], ids=["eager", "jit"])
B = 64


def targets(batches=12, seed=0, mean=1000.0):
    """Batches whose mean moves, far from zero beside how they spread."""
    rng = np.random.default_rng(seed)
    return [(mean + 0.1 * i + rng.normal(size=B)).astype(np.float32) for i in range(batches)]


def following(batches, rate, mode=lambda f: f):
    """The scale after each batch."""
    step = mode(lambda units, x: scale.follow(units, jnp.mean(x), jnp.std(x), rate=rate))
    units, found = scale.unit(), []
    for x in batches:
        units = step(units, x)
        found.append(units)
    return found


@MODES
@pytest.mark.parametrize("rate", [1e-3, 0.3, 1.0])
def test_statistics_are_running_moments(mode, rate):
    """Of a plain sum of squares float32 would keep no digit here."""
    batches, first, second = targets(), 0.0, 0.0
    for n, (x, units) in enumerate(zip(batches, following(batches, rate, mode)), 1):
        r, x = max(rate, 1.0 / n), x.astype(np.float64)
        first, second = (1 - r) * first + r * x.mean(), (1 - r) * second + r * (x**2).mean()
        np.testing.assert_allclose(units.mean, first, rtol=1e-6)
        np.testing.assert_allclose(units.std, np.sqrt(second - first**2), rtol=1e-3)
        assert float(units.count) == n


def test_while_all_count_alike_they_are_those_of_all_targets_together():
    batches = targets(5)
    units, together = following(batches, 1e-3)[-1], np.concatenate(batches).astype(np.float64)
    np.testing.assert_allclose([units.mean, units.std], [together.mean(), together.std()], rtol=1e-4)


def test_targets_that_are_alike_have_the_smallest_deviation():
    units = scale.follow(scale.unit(), jnp.float32(7.0), jnp.float32(0.0), rate=0.1, smallest=0.5)
    np.testing.assert_array_equal([units.mean, units.std], [7.0, 0.5])


def test_a_batch_that_is_not_finite_changes_nothing():
    known = following(targets(3), 0.1)[-1]
    for mean, std in ((np.nan, 1.0), (1.0, np.inf)):
        after = scale.follow(known, jnp.float32(mean), jnp.float32(std), rate=0.1)
        assert all(x == y for x, y in zip(after, known))


@MODES
@pytest.mark.parametrize("members", [None, 3])
def test_no_value_changes_where_units_do(mode, members):
    """Outputs do: that is the point of it."""
    net = nets.mlp((8, 8, 1)) if members is None else nets.ensemble(nets.mlp((8, 8, 1)), members)
    x = jax.random.normal(jax.random.key(1), (B, 5))
    params = net.init(jax.random.key(0), jax.ShapeDtypeStruct((5,), jnp.float32))
    moved = jax.tree.map(lambda x: x + 0.1, params)
    units = [scale.Scale(*map(jnp.float32, known)) for known in ((9, 0.0, 1.0), (9, -40.0, 250.0), (9, 3.0, 0.02))]
    for before, after in zip(units, units[1:]):
        there = mode(scale.preserved)(moved, before, after)
        one, two = (scale.regression(s).value(net.apply(p, x)) for s, p in ((before, moved), (after, there)))
        np.testing.assert_allclose(one, two, rtol=1e-4, atol=1e-4 * float(before.std))
        assert np.max(np.abs(net.apply(moved, x) - net.apply(there, x))) > 0.05
        assert all(np.array_equal(moved[name]["kernel"], there[name]["kernel"]) for name in ("Dense_0", "Dense_1"))
        moved = there


def test_it_is_regression_in_units():
    rng = np.random.default_rng(2)
    units = scale.Scale(*map(jnp.float32, (3, 20.0, 4.0)))
    outputs, target = rng.normal(size=(B, 1)).astype(np.float32), (20 + 4 * rng.normal(size=B)).astype(np.float32)
    readout = scale.regression(units)
    np.testing.assert_allclose(readout.value(outputs), 20.0 + 4.0 * outputs[:, 0], rtol=1e-6)
    loss, metrics = readout.loss(outputs, target)
    np.testing.assert_allclose(loss, 0.5 * ((target.astype(np.float64) - 20.0) / 4.0 - outputs[:, 0]) ** 2, rtol=1e-4)
    np.testing.assert_allclose(
        [metrics["critic/target"], metrics["critic/target_std"]], [target.mean(), target.std()], rtol=1e-5
    )
    plain, same = (r.loss(outputs, target)[0] for r in (value.regression(), scale.regression(scale.unit())))
    np.testing.assert_array_equal(plain, same)
    next_outputs, reward, discount = rng.normal(size=(2, B, 1)), rng.normal(size=B), np.full(B, 0.9)
    made = readout.target(*map(jnp.float32, (next_outputs, reward, discount)), value.minimum)
    expected = reward + 0.9 * (20.0 + 4.0 * next_outputs[..., 0]).min(0)
    np.testing.assert_allclose(made, expected[None], rtol=1e-5)


def test_refusals():
    units = scale.unit()
    with pytest.raises(AssertionError):
        scale.regression(units).loss(jnp.zeros((B, 1)), jnp.zeros((B, 1)))
    with pytest.raises(AssertionError):
        scale.follow(units, jnp.zeros(2), jnp.ones(2), rate=0.1)
    with pytest.raises(AssertionError):
        scale.preserved({"Dense_0": {"kernel": jnp.zeros((4, 2)), "bias": jnp.zeros(2)}}, units, units)
    with pytest.raises(ValueError, match="units are those of a perceptron's last layer"):
        scale.preserved({"body": {}, "last": {}}, units, units)
