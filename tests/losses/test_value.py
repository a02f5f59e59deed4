"""Value losses against float64 NumPy, SciPy, rlax and closed forms."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
from hypothesis import given
from hypothesis import strategies as st
from scipy import optimize, stats

from jaxrl_gen.losses import value

MODES = pytest.mark.parametrize("mode", [lambda f: f, jax.jit], ids=["eager", "jit"])
LOW, HIGH, BINS = -10.0, 10.0, 51
CENTRES = value.bin_centres(LOW, HIGH, BINS)


def draw(count, seed=0, size=64, scale=1.0):
    rng = np.random.default_rng(seed)
    return [(scale * rng.normal(size=size)).astype(np.float32) for _ in range(count)]


# ------------------------------------------------------------------------------------------------------- expectiles


@MODES
@pytest.mark.parametrize("k", [0.1, 0.5, 0.9])
def test_expectile_loss(mode, k):
    prediction, target = draw(2)
    loss, metrics = mode(lambda *a: value.expectile_loss(*a, expectile=k))(prediction, target)
    u = target.astype(np.float64) - prediction
    oracle = np.abs(k - (u < 0)) * u**2
    np.testing.assert_allclose(loss, oracle, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(metrics["value/loss"], oracle.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["value/above_target"], np.mean(u < 0))


@MODES
def test_expectile_loss_with_a_side_of_its_own(mode):
    prediction, target, side = draw(3, 1)
    loss, _ = mode(lambda v, t, s: value.expectile_loss(v, t, expectile=0.8, side=s))(prediction, target, side)
    oracle = np.abs(0.8 - (side < 0)) * (target.astype(np.float64) - prediction) ** 2
    np.testing.assert_allclose(loss, oracle, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [0.3, 0.5, 0.7, 0.9, 0.97])
def test_the_minimiser_is_the_expectile_of_a_known_distribution(k):
    """Of the uniform on [0, 1] it is sqrt(k) / (sqrt(k) + sqrt(1 - k)), and SciPy's of any sample."""
    uniform = (np.arange(20_000) + 0.5) / 20_000
    for targets, oracle in (
        (uniform, np.sqrt(k) / (np.sqrt(k) + np.sqrt(1 - k))),
        (draw(1, 2, 500)[0], stats.expectile(draw(1, 2, 500)[0].astype(np.float64), k)),
    ):
        targets = jnp.asarray(targets, jnp.float32)
        mean_loss = lambda v: jnp.mean(value.expectile_loss(jnp.full_like(targets, v), targets, expectile=k)[0])
        slope = jax.jit(jax.grad(mean_loss))
        found = optimize.brentq(lambda v: float(slope(v)), -3.0, 3.0, xtol=1e-5)
        assert found == pytest.approx(oracle, abs=1e-3)


# ---------------------------------------------------------------------------------------------------- classification


@MODES
def test_bin_centres(mode):
    edges = np.linspace(LOW, HIGH, BINS + 1)
    centres = mode(lambda low, high: value.bin_centres(low, high, BINS))(LOW, HIGH)
    np.testing.assert_allclose(centres, (edges[1:] + edges[:-1]) / 2, atol=1e-5)
    with pytest.raises(ValueError, match="bins is 1; allowed: 2 and more"):
        value.bin_centres(LOW, HIGH, 1)


@MODES
def test_two_hot_equals_rlax(mode):
    (x,) = draw(1, 3, scale=6.0)
    x = np.append(x, [CENTRES[0], CENTRES[-1], CENTRES[7], 1e6, -1e6]).astype(np.float32)
    theirs = rlax.transform_to_2hot(jnp.asarray(x), float(CENTRES[0]), float(CENTRES[-1]), BINS)
    np.testing.assert_allclose(mode(value.two_hot)(x, CENTRES), theirs, atol=5e-5)


@MODES
def test_two_hot_is_the_projection_of_rlax(mode):
    (x,) = draw(1, 4, scale=6.0)
    project = jax.vmap(lambda x: rlax.categorical_l2_project(x[None], jnp.ones(1), CENTRES))
    np.testing.assert_allclose(mode(value.two_hot)(x, CENTRES), project(x), atol=5e-5)


@given(st.floats(-12.0, 12.0, width=32))
def test_two_hot_keeps_the_mean_and_sums_to_one(x):
    probabilities = np.asarray(value.two_hot(jnp.array([x], jnp.float32), CENTRES), np.float64)[0]
    assert probabilities.sum() == pytest.approx(1.0, abs=1e-5) and np.all(probabilities >= 0)
    assert np.sum(probabilities > 1e-5) <= 2
    ends = np.asarray(CENTRES, np.float64)[[0, -1]]
    assert probabilities @ np.asarray(CENTRES) == pytest.approx(np.clip(x, *ends), abs=1e-4)


@MODES
@pytest.mark.parametrize("smoothing", [0.3, 0.75, 2.0])
def test_hl_gauss(mode, smoothing):
    (x,) = draw(1, 5, scale=6.0)
    x = np.append(x, [LOW, HIGH, 0.0, 1e6, -1e6, CENTRES[0]]).astype(np.float32)
    width = (HIGH - LOW) / BINS
    edges = np.linspace(LOW, HIGH, BINS + 1)
    f = stats.norm.cdf(edges, np.clip(x.astype(np.float64), LOW, HIGH)[:, None], smoothing * width)
    oracle = np.diff(f, axis=1) / (f[:, -1:] - f[:, :1])
    result = mode(lambda x: value.hl_gauss(x, CENTRES, smoothing=smoothing))(x)
    np.testing.assert_allclose(result, oracle, atol=1e-5)
    np.testing.assert_allclose(np.sum(result, 1), 1.0, atol=1e-5)


def test_hl_gauss_has_the_deviation_it_is_told():
    """Sheppard: the variance over bins is sigma^2 + width^2 / 12. One square root of two too many would give 0.431."""
    width = (HIGH - LOW) / BINS
    x = np.linspace(-5.0, 5.0, 40, dtype=np.float32)
    probabilities = np.asarray(value.hl_gauss(x, CENTRES), np.float64)
    mean = probabilities @ np.asarray(CENTRES, np.float64)
    variance = probabilities @ np.asarray(CENTRES, np.float64) ** 2 - mean**2
    np.testing.assert_allclose(np.sqrt(variance), np.sqrt((0.75 * width) ** 2 + width**2 / 12), rtol=5e-3)
    np.testing.assert_allclose(np.sqrt(variance).mean(), 0.315, atol=1e-3)


def test_hl_gauss_recovers_the_mean_inside_and_is_biased_inwards_at_the_ends():
    logits = lambda x: jnp.log(value.hl_gauss(jnp.asarray(x, jnp.float32), CENTRES) + 1e-30)
    inside = np.linspace(-8.5, 8.5, 200)
    np.testing.assert_allclose(value.expected_value(logits(inside), CENTRES), inside, atol=2e-3)
    at_ends = value.expected_value(logits([9.5, 10.0, 1e9, -10.0]), CENTRES)
    np.testing.assert_allclose(at_ends, [9.467, 9.729, 9.729, -9.729], atol=1e-3)


@MODES
def test_expected_value(mode):
    logits = np.random.default_rng(6).normal(size=(3, 5, BINS)).astype(np.float32)
    exponents = np.exp(logits.astype(np.float64))
    oracle = (exponents / exponents.sum(-1, keepdims=True)) @ np.asarray(CENTRES, np.float64)
    np.testing.assert_allclose(mode(value.expected_value)(logits, CENTRES), oracle, rtol=1e-4, atol=1e-4)
    with pytest.raises(AssertionError):
        value.expected_value(jnp.asarray(logits), CENTRES[:-1])


@MODES
def test_classification(mode):
    rng = np.random.default_rng(7)
    logits = rng.normal(size=(9, 6)).astype(np.float32)
    target = rng.dirichlet(np.ones(6), 9).astype(np.float32)
    target[0] = np.eye(6)[2]  # a probability of zero
    loss, metrics = mode(value.classification)(logits, target)
    exponents = np.exp(logits.astype(np.float64))
    oracle = stats.entropy(target.astype(np.float64), exponents / exponents.sum(1, keepdims=True), axis=1)
    np.testing.assert_allclose(loss, oracle, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(metrics["critic/loss"], oracle.mean(), rtol=1e-4)
    ours = jax.grad(lambda x: jnp.sum(value.classification(x, jnp.asarray(target))[0]))
    theirs = jax.grad(lambda x: jnp.sum(jax.vmap(rlax.categorical_cross_entropy)(jnp.asarray(target), x)))
    np.testing.assert_allclose(mode(ours)(logits), theirs(jnp.asarray(logits)), atol=1e-5)


@pytest.mark.parametrize("readout", [
    value.regression(), value.classified(LOW, HIGH, BINS),
    value.classified(LOW, HIGH, BINS, to_probabilities=value.two_hot),
], ids=["regression", "hl_gauss", "two_hot"])  # fmt: skip
def test_a_readout_learns_the_mean_of_noisy_targets(readout):
    """Gradient descent on the outputs themselves: whatever they mean, their value becomes the targets' average."""
    targets = jnp.asarray(np.random.default_rng(8).normal(3.0, 1.5, 512), jnp.float32)

    def step(outputs, _):
        spread = lambda x: jnp.broadcast_to(x, (512, readout.size))
        slope = jax.grad(lambda x: jnp.mean(readout.loss(spread(x), targets)[0]))(outputs)
        return outputs - 1.5 * slope, None

    outputs, _ = jax.lax.scan(step, jnp.zeros(readout.size), None, 3000)
    assert float(readout.value(outputs)) == pytest.approx(float(jnp.mean(targets)), abs=0.05)


def test_a_readout_of_bins_says_how_many_targets_lie_outside():
    readout = value.classified(LOW, HIGH, BINS)
    loss, metrics = readout.loss(jnp.zeros((4, BINS)), jnp.array([0.0, 11.0, -11.0, 10.0]))
    assert loss.shape == (4,) and float(metrics["critic/clipped"]) == 0.5


def test_the_support_of_a_readout_may_be_traced_and_mapped():
    outputs, target = jnp.zeros((3, BINS)), jnp.array([0.0, 1.0, 2.0])
    losses = jax.vmap(lambda high: value.classified(-high, high, BINS).loss(outputs, target)[0])(jnp.array([4.0, 8.0]))
    for row, high in zip(losses, (4.0, 8.0)):
        np.testing.assert_allclose(row, value.classified(-high, high, BINS).loss(outputs, target)[0], rtol=1e-5)


# ---------------------------------------------------------------------------------------------------------- ensembles

AGGREGATES = {
    "minimum": (value.minimum, lambda x: x.min(0)),
    "mean": (value.mean, lambda x: x.mean(0)),
    "mean_minus_std": (partial(value.mean_minus_std, deviations=1.7), lambda x: x.mean(0) - 1.7 * x.std(0)),
}


@MODES
@pytest.mark.parametrize("aggregate, oracle", AGGREGATES.values(), ids=AGGREGATES)
@pytest.mark.parametrize("shape", [(5, 16), (2, 4, 3)], ids=str)
def test_aggregates(mode, aggregate, oracle, shape):
    values = np.random.default_rng(9).normal(size=shape).astype(np.float32)
    np.testing.assert_allclose(mode(aggregate)(values), oracle(values.astype(np.float64)), rtol=1e-5, atol=1e-6)


def test_mean_minus_one_deviation_of_two_is_their_minimum():
    values = jnp.asarray(np.stack(draw(2, 10)))
    np.testing.assert_allclose(value.mean_minus_std(values), value.minimum(values), atol=1e-6)


def test_members_that_agree_have_a_gradient():
    slope = jax.grad(lambda x: jnp.sum(value.mean_minus_std(x)))(jnp.ones((3, 4)))
    np.testing.assert_allclose(slope, 1 / 3, rtol=1e-6)


@MODES
def test_random_subset_minimum(mode):
    """Every pair of five members comes up, as often as another, and is the same for the whole batch."""
    values = jnp.tile(jnp.arange(5.0)[:, None], (1, 3))
    draws = mode(jax.vmap(lambda key: value.random_subset_minimum(values, key, size=2)))(
        jax.random.split(jax.random.key(0), 4000)
    )
    assert np.all(np.asarray(draws) == np.asarray(draws)[:, :1])
    shares = np.bincount(np.asarray(draws)[:, 0].astype(int), minlength=5) / 4000
    np.testing.assert_allclose(shares, [0.4, 0.3, 0.2, 0.1, 0.0], atol=0.03)
    one = value.random_subset_minimum(values, jax.random.key(1), size=5)
    np.testing.assert_array_equal(one, value.minimum(values))
    for size in (0, 6):
        with pytest.raises(ValueError, match=f"size of the subset is {size}; allowed: 1 to 5"):
            value.random_subset_minimum(values, jax.random.key(1), size=size)


@MODES
def test_ensemble_loss_is_the_sum_over_members(mode):
    outputs, target = np.random.default_rng(11).normal(size=(3, 8, 1)).astype(np.float32), draw(1, 12, 8)[0]
    loss, metrics = mode(lambda o, t: value.ensemble_loss(value.regression().loss, o, t))(outputs, target[None])
    errors = (outputs[..., 0].astype(np.float64) - target) ** 2 / 2
    np.testing.assert_allclose(loss, errors.sum(0), rtol=1e-5)
    np.testing.assert_allclose(metrics["critic/loss"], errors.mean(), rtol=1e-5)


@MODES
def test_each_member_can_have_a_target_of_its_own(mode):
    outputs, target = np.random.default_rng(11).normal(size=(3, 8, 1)).astype(np.float32), np.stack(draw(3, 12, 8))
    loss, _ = mode(lambda o, t: value.ensemble_loss(value.regression().loss, o, t))(outputs, target)
    np.testing.assert_allclose(loss, ((outputs[..., 0].astype(np.float64) - target) ** 2 / 2).sum(0), rtol=1e-5)


@pytest.mark.parametrize("shape", [(5,), (1, 1), (3, 5), (2, 1), (1, 5, 1), (2, 5, 1)])
def test_ensemble_loss_refuses_a_broadcasting_target(shape):
    with pytest.raises(AssertionError):
        value.ensemble_loss(value.regression().loss, jnp.zeros((2, 5, 1)), jnp.zeros(shape))


@pytest.mark.parametrize("readout", [value.regression(), value.classified(LOW, HIGH, BINS)])
def test_a_bootstrapped_target_is_a_reward_and_a_discounted_choice_of_values(readout):
    outputs = np.random.default_rng(13).normal(size=(3, 8, readout.size)).astype(np.float32)
    reward, discount = draw(2, 14, 8)
    values = np.asarray(readout.value(outputs), np.float64)
    for choose, chosen in (
        (value.minimum, values.min(0)[None]),
        (value.mean, values.mean(0)[None]),
        (value.own, values),
    ):
        found = jax.jit(lambda o, r, d, choose=choose: readout.target(o, r, d, choose))(outputs, reward, discount)
        np.testing.assert_allclose(found, reward + discount * chosen, rtol=1e-5, atol=1e-5)
    slope = jax.grad(lambda o: jnp.sum(readout.target(o, reward, discount, value.minimum) ** 2))(outputs)
    assert not np.any(slope)
    with pytest.raises(AssertionError):
        readout.target(outputs, reward, discount[:1], value.minimum)


@MODES
def test_soft_value(mode):
    q, log_prob = draw(2, 13)
    result = mode(lambda *a: value.soft_value(*a, temperature=0.3))(q, log_prob)
    np.testing.assert_allclose(result, q.astype(np.float64) - 0.3 * log_prob, rtol=1e-5, atol=1e-6)


def test_the_soft_value_of_the_optimal_policy_is_the_same_for_every_action():
    """pi = softmax(Q / alpha): then Q - alpha log pi = alpha log sum exp(Q / alpha), whichever action was drawn."""
    q, alpha = jnp.asarray(draw(1, 14, 6)[0]), 0.4
    soft = value.soft_value(q, jax.nn.log_softmax(q / alpha), temperature=alpha)
    np.testing.assert_allclose(soft, alpha * np.log(np.sum(np.exp(np.asarray(q, np.float64) / alpha))), rtol=1e-5)


# ------------------------------------------------------------------------------------------------------------- refusals

ROWS, PROBABILITIES = jnp.zeros(5), jnp.full((5, BINS), 1 / BINS)
FUNCTIONS = {
    "expectile_loss": ((ROWS, ROWS), lambda *a: value.expectile_loss(*a, expectile=0.7)),
    "expectile_loss_side": ((ROWS, ROWS, ROWS), lambda v, t, s: value.expectile_loss(v, t, expectile=0.7, side=s)),
    "classification": ((PROBABILITIES, PROBABILITIES), value.classification),
    "regression": ((ROWS[:, None], ROWS), value.regression().loss),
    "classified": ((PROBABILITIES, ROWS), value.classified(LOW, HIGH, BINS).loss),
    "soft_value": ((ROWS, ROWS), lambda *a: value.soft_value(*a, temperature=1.0)),
}  # fmt: skip
EVERY_FUNCTION = pytest.mark.parametrize("arguments, function", FUNCTIONS.values(), ids=FUNCTIONS)


@EVERY_FUNCTION
def test_refuses_a_broadcasting_head(arguments, function):
    function(*arguments)
    for i in range(len(arguments)):
        for wrong in (arguments[i][..., None], arguments[i][..., :1, :] if arguments[i].ndim > 1 else arguments[i][:1]):
            with pytest.raises((AssertionError, TypeError)):
                function(*arguments[:i], wrong, *arguments[i + 1 :])


@pytest.mark.parametrize("function", [value.two_hot, value.hl_gauss])
def test_distributions_refuse_what_would_broadcast(function):
    for arguments in ((ROWS[:, None], CENTRES), (ROWS, CENTRES[:, None])):
        with pytest.raises(AssertionError):
            function(*arguments)


@pytest.mark.parametrize("function", [value.expectile_loss, value.soft_value])
def test_refuses_a_coefficient_that_would_broadcast(function):
    name = "expectile" if function is value.expectile_loss else "temperature"
    with pytest.raises(AssertionError):
        function(ROWS, ROWS, **{name: jnp.full((5, 1), 0.5)})


def test_targets_have_no_gradient():
    prediction, target, side = (jnp.asarray(x) for x in draw(3, 15, 5))
    slope = jax.grad(lambda *a: jnp.sum(value.expectile_loss(a[0], a[1], expectile=0.7, side=a[2])[0]), (0, 1, 2))
    of_prediction, of_target, of_side = slope(prediction, target, side)
    assert np.all(of_prediction != 0) and not np.any(of_target) and not np.any(of_side)
    for readout in (value.regression(), value.classified(LOW, HIGH, BINS)):
        outputs = jnp.zeros((2, 5, readout.size))
        slope = jax.grad(lambda o, t: jnp.sum(value.ensemble_loss(readout.loss, o, t)[0]), (0, 1))
        of_outputs, of_target = jax.jit(slope)(outputs, target[None])
        assert np.any(of_outputs != 0) and not np.any(of_target)
