"""Losses of models against SciPy and float64 NumPy, and who learns from what against counts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrl_gen.losses import dynamics

MODES = pytest.mark.parametrize("mode", [lambda f: f, jax.jit], ids=["eager", "jit"])


def draw(*shapes, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return [(scale * rng.normal(size=shape)).astype(np.float32) for shape in shapes]


# -------------------------------------------------------------------------------------------------------- likelihoods


@MODES
def test_normal_nll(mode):
    mean, log_variance, target = draw((16, 5), (16, 5), (16, 5), scale=1.5)
    loss, metrics = mode(dynamics.normal_nll)(mean, log_variance, target)
    mean, log_variance, target = (x.astype(np.float64) for x in (mean, log_variance, target))
    oracle = -stats.norm.logpdf(target, mean, np.exp(log_variance / 2)).sum(-1)
    np.testing.assert_allclose(loss, oracle, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(metrics["model/nll"], oracle.mean(), rtol=1e-5)


def test_the_likeliest_normal_has_the_mean_and_the_variance_of_the_targets():
    """There the gradient is zero, and nowhere near."""
    (target,) = draw((4000, 3), seed=1, scale=2.0)

    def total(mean, log_variance):
        spread = lambda x: jnp.broadcast_to(x, target.shape)
        return jnp.mean(dynamics.normal_nll(spread(mean), spread(log_variance), jnp.asarray(target))[0])

    at = target.astype(np.float64).mean(0), np.log(target.astype(np.float64).var(0))
    slopes = jax.jit(jax.grad(total, (0, 1)))
    assert max(np.abs(x).max() for x in slopes(*(jnp.asarray(x, jnp.float32) for x in at))) < 1e-4
    assert max(np.abs(x).max() for x in slopes(*(jnp.asarray(x + 0.3, jnp.float32) for x in at))) > 1e-2


def test_the_target_has_no_gradient():
    mean, log_variance, target = (jnp.asarray(x) for x in draw((4, 2), (4, 2), (4, 2)))
    slopes = jax.grad(lambda *a: jnp.sum(dynamics.normal_nll(*a)[0]), (0, 1, 2))(mean, log_variance, target)
    assert np.all(slopes[0] != 0) and np.all(slopes[1] != 0) and not np.any(slopes[2])


@MODES
def test_soft_clamp(mode):
    low, high = np.array([-10.0, -3.0], np.float32), np.array([0.5, 2.0], np.float32)
    x = np.linspace(-40.0, 40.0, 161, dtype=np.float32)[:, None] * np.ones(2, np.float32)
    result = np.asarray(mode(dynamics.soft_clamp)(x, low, high))
    softplus = lambda z: np.logaddexp(0.0, z)
    exact = x.astype(np.float64)
    oracle = low + softplus(high - softplus(high - exact) - low)
    np.testing.assert_allclose(result, oracle, rtol=1e-5, atol=1e-5)
    assert np.all(result >= low) and np.all(result <= high + softplus(low - high) + 1e-5)
    assert np.all(np.diff(result, axis=0) >= 0)
    middle = (low + high) / 2
    np.testing.assert_allclose(mode(dynamics.soft_clamp)(middle, low, high), middle, atol=0.1)


def test_bounds_of_variances_are_learned_where_they_bind():
    """A log-variance far above moves the upper bound alone, one far below the lower."""
    low, high = jnp.array([-10.0]), jnp.array([0.5])
    slope = jax.grad(lambda x, low, high: jnp.sum(dynamics.soft_clamp(x, low, high)), (1, 2))
    np.testing.assert_allclose(slope(jnp.array([30.0]), low, high), [[0.0], [1.0]], atol=1e-3)
    np.testing.assert_allclose(slope(jnp.array([-40.0]), low, high), [[1.0], [0.0]], atol=1e-3)
    assert float(dynamics.bounds_range(low, high)) == 10.5


@MODES
def test_squared_error(mode):
    prediction, target = draw((8, 3), (8, 3), seed=2)
    oracle = ((prediction.astype(np.float64) - target) ** 2).mean(-1)
    np.testing.assert_allclose(mode(dynamics.squared_error)(prediction, target), oracle, rtol=1e-5)


# ------------------------------------------------------------------------------------------- who learns from what


@MODES
def test_a_row_is_known_again_in_any_company(mode):
    (rows,) = draw((500, 4), seed=3)
    marks = np.asarray(mode(dynamics.fingerprint)(rows))
    order = np.random.default_rng(4).permutation(500)
    np.testing.assert_array_equal(mode(dynamics.fingerprint)(rows[order]), marks[order])
    assert len(np.unique(marks)) == 500
    changed = rows.copy()
    changed[:, 2] = np.nextafter(changed[:, 2], np.inf, dtype=np.float32)
    assert np.all(np.asarray(mode(dynamics.fingerprint)(changed)) != marks)
    assert np.mean(np.asarray(mode(dynamics.fingerprint)(rows[:, ::-1].copy())) != marks) == 1.0


def test_fingerprints_of_plain_rows_are_spread_evenly():
    """Whole numbers in a small box, whose bits are alike: each bit of the mark is set in half of them."""
    rows = np.stack(np.meshgrid(*[np.arange(20.0)] * 3), -1).reshape(-1, 3).astype(np.float32)
    marks = np.asarray(dynamics.fingerprint(rows))
    assert len(np.unique(marks)) > len(rows) - 10
    bits = (marks[:, None] >> np.arange(32, dtype=np.uint32)) & 1
    np.testing.assert_allclose(bits.mean(0), 0.5, atol=0.03)


def test_chance_is_uniform_and_streams_are_independent():
    marks = dynamics.fingerprint(jnp.arange(20_000, dtype=jnp.float32)[:, None])
    u = np.asarray(dynamics.chance(marks, jnp.arange(4, dtype=jnp.uint32)), np.float64)
    assert u.min() > 0.0 and u.max() < 1.0
    for stream in u:
        assert stats.kstest(stream, "uniform").pvalue > 1e-3
    assert np.abs(np.corrcoef(u) - np.eye(4)).max() < 0.03


def test_bootstrap_weights_are_exponential_and_each_members_own():
    marks = dynamics.fingerprint(jnp.arange(20_000, dtype=jnp.float32)[:, None])
    weights = np.asarray(dynamics.bootstrap_weights(marks, 3), np.float64)
    for member in weights:
        assert stats.kstest(member, "expon").pvalue > 1e-3
    assert np.abs(np.corrcoef(weights) - np.eye(3)).max() < 0.03
    chosen = jnp.arange(0, 20_000, 7)
    np.testing.assert_allclose(dynamics.bootstrap_weights(marks[chosen], 3), weights[:, ::7], rtol=1e-6)


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_held_out_is_a_share_of_all_rows(share):
    marks = dynamics.fingerprint(jnp.arange(20_000, dtype=jnp.float32)[:, None])
    apart = np.asarray(dynamics.held_out(marks, share))
    assert apart.mean() == pytest.approx(share, abs=0.01)
    weights = np.asarray(dynamics.bootstrap_weights(marks, 1))[0]
    if share == 0.5:
        assert abs(np.corrcoef(apart, weights)[0, 1]) < 0.03  # what is held out is like the rest


# ------------------------------------------------------------------------------------------------------------- doubt

DOUBTS = {
    "largest_deviation": (
        dynamics.largest_deviation,
        lambda mean, std: np.array([max(np.linalg.norm(row[i]) for row in std) for i in range(std.shape[1])]),
    ),
    "disagreement": (
        dynamics.disagreement,
        lambda mean, std: np.array(
            [max(np.linalg.norm(x[i] - y[i]) for x in mean for y in mean) for i in range(mean.shape[1])]
        ),
    ),
    "no_doubt": (dynamics.no_doubt, lambda mean, std: np.zeros(mean.shape[1])),
}


@MODES
@pytest.mark.parametrize("doubt, oracle", DOUBTS.values(), ids=DOUBTS)
def test_doubt(mode, doubt, oracle):
    mean, std = draw((5, 9, 4), (5, 9, 4), seed=5)
    std = np.abs(std)
    result = mode(doubt)(mean, std)
    np.testing.assert_allclose(result, oracle(mean.astype(np.float64), std.astype(np.float64)), rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------- refusals

ROWS, BOUND, MEMBERS = jnp.zeros((5, 3)), jnp.zeros(3), jnp.ones((2, 5, 3))
FUNCTIONS = {
    "normal_nll": ((ROWS, ROWS, ROWS), dynamics.normal_nll),
    "squared_error": ((ROWS, ROWS), dynamics.squared_error),
    "bounds_range": ((BOUND, BOUND), dynamics.bounds_range),
    **{name: ((MEMBERS, MEMBERS), doubt) for name, (doubt, _) in DOUBTS.items()},
}


@pytest.mark.parametrize("arguments, function", FUNCTIONS.values(), ids=FUNCTIONS)
def test_refuses_what_would_broadcast(arguments, function):
    function(*arguments)
    for i in range(len(arguments)):
        for wrong in (arguments[i][..., :1], arguments[i][:1], arguments[i][..., None]):
            with pytest.raises((AssertionError, TypeError)):
                function(*arguments[:i], wrong, *arguments[i + 1 :])


def test_soft_clamp_refuses_other_features():
    dynamics.soft_clamp(ROWS, BOUND, BOUND)
    for arguments in ((ROWS[:, :1], BOUND, BOUND), (ROWS, BOUND[:1], BOUND), (ROWS, BOUND, BOUND[:1])):
        with pytest.raises(AssertionError):
            dynamics.soft_clamp(*arguments)
    with pytest.raises(AssertionError):
        dynamics.fingerprint(jnp.zeros(5))
    with pytest.raises(AssertionError):
        dynamics.held_out(jnp.zeros(5, jnp.uint32), jnp.zeros(5))
