"""The parts of group-relative methods against float64 NumPy, closed forms and the gradients that theory promises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrl_gen.losses import group, surrogates

MODES = pytest.mark.parametrize("mode", [lambda f: f, jax.jit], ids=["eager", "jit"])
RELATIVE = [group.centred, group.standardised, group.leave_one_out]
RATIOS = [group.token_log_ratio, group.sequence_log_ratio, group.mean_log_ratio, group.mean_log_ratio_per_token]
WEIGHTS = [
    group.token_mean, group.sequence_mean_token_mean, group.sequence_mean_token_sum, group.token_sum_constant,
]  # fmt: skip
name = lambda function: function.__name__  # noqa: E731


def draw(rows=12, length=5, seed=0, scale=0.3):
    """Log-probabilities, old ones, advantages and a mask that ends each row somewhere."""
    rng = np.random.default_rng(seed)
    log_prob, old = -np.abs(rng.normal(size=(2, rows, length)))
    advantage = rng.normal(size=(rows, length))
    mask = np.arange(length) < rng.integers(1, length + 1, rows)[:, None]
    return [x.astype(np.float32) for x in (scale * log_prob, scale * old, advantage, mask)]


def scores(prompts=4, count=6, seed=0):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(prompts, count)).astype(np.float32), rng.random((prompts, count)) < 0.7


# ---------------------------------------------------------------------------------------------------------- advantages


@MODES
@pytest.mark.parametrize("relative", RELATIVE, ids=name)
def test_relative_advantages_row_by_row(mode, relative):
    score, valid = scores()
    found = mode(relative)(score, valid)
    for row, ok, advantage in zip(score.astype(np.float64), valid, found):
        some = row[ok]
        expected = np.zeros(len(row))
        if len(some) > 1:
            expected[ok] = {
                group.centred: lambda: some - some.mean(),
                group.standardised: lambda: (some - some.mean()) / (some.std(ddof=1) + 1e-6),
                group.leave_one_out: lambda: [x - np.delete(some, i).mean() for i, x in enumerate(some)],
            }[relative]()
        np.testing.assert_allclose(advantage, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("relative", RELATIVE, ids=name)
@given(st.lists(st.lists(st.floats(-10, 10, width=32), min_size=3, max_size=3), min_size=2, max_size=2))
def test_advantages_of_a_group_sum_to_zero(relative, rows):
    score = np.array(rows, np.float32)
    found = np.asarray(relative(score, np.ones(score.shape, bool)), np.float64)
    np.testing.assert_allclose(found.sum(-1), 0.0, atol=2e-4 * (1.0 + np.abs(found).max()))


@MODES
@pytest.mark.parametrize("relative", RELATIVE, ids=name)
@pytest.mark.parametrize("count", [3, 5, 6, 7])
def test_a_group_of_equal_scores_teaches_nothing(mode, relative, count):
    """Their mean, rounded, is not always the number that they all are."""
    score, valid = np.full((2, count), 100.1, np.float32), np.ones((2, count), bool)
    np.testing.assert_array_equal(mode(relative)(score, valid), 0.0)
    score[0, 0], valid[0, 0] = np.nan, False
    np.testing.assert_array_equal(mode(relative)(score, valid), 0.0)
    mask = np.arange(4) < 1 + np.arange(2 * count).reshape(2, count, 1) % 4
    score = np.full((2, count), 100.1, np.float32)
    for whole in group.per_sequence(relative), group.per_token(), group.per_token(relative):
        np.testing.assert_array_equal(mode(whole)(score, np.zeros(mask.shape, np.float32), mask), 0.0)


@pytest.mark.parametrize("success", [0.25, 0.5, 0.75])
def test_mean_size_of_the_standardised_advantage_of_right_and_wrong_answers(success):
    """With a share p of ones, E|A| = 2 sqrt(p (1 - p)) up to the deviation's G / (G - 1)."""
    score = (jnp.arange(8) < 8 * success).astype(jnp.float32)[None]
    found = jnp.mean(jnp.abs(group.standardised(score, jnp.ones((1, 8), bool))))
    np.testing.assert_allclose(found, 2 * np.sqrt(success * (1 - success)) * np.sqrt(7 / 8), rtol=1e-4)


@pytest.mark.parametrize("relative", RELATIVE, ids=name)
def test_a_single_try_has_no_group(relative):
    with pytest.raises(ValueError, match="G >= 2 completions of each prompt; found G = 1"):
        relative(jnp.zeros((4, 1)), jnp.ones((4, 1), bool))


@MODES
def test_per_sequence_takes_the_penalty_off_the_score(mode):
    _, _, penalty, mask = (x.reshape(3, 4, 5) for x in draw())
    score, _ = scores(3, 4)
    found = mode(group.per_sequence(group.centred))(score, penalty, mask)
    total = score.astype(np.float64) - (penalty * mask).sum(-1)
    expected = (total - total.mean(-1, keepdims=True))[..., None] * mask
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@MODES
@pytest.mark.parametrize("baseline", [False, True])
def test_per_token_is_the_whitened_reward_to_go(mode, baseline):
    _, _, penalty, mask = (x.reshape(3, 4, 5) for x in draw(seed=1))
    score, _ = scores(3, 4)
    found = mode(group.per_token(group.centred) if baseline else group.per_token())(score, penalty, mask)
    start = score.astype(np.float64) - (score.mean(-1, keepdims=True) if baseline else 0.0)
    gain = np.zeros(mask.shape)
    for n, g in np.ndindex(3, 4):
        last = int(mask[n, g].sum()) - 1
        reward = -penalty[n, g].astype(np.float64) * mask[n, g]
        reward[last] += start[n, g]
        for t in range(last + 1):
            gain[n, g, t] = reward[t:].sum()
    some = gain[mask > 0]
    expected = np.where(mask > 0, (gain - some.mean()) / np.sqrt(some.var(ddof=1) + 1e-8), 0.0)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


@MODES
def test_whitened(mode):
    _, _, x, mask = draw(seed=2)
    found = np.asarray(mode(group.whitened)(x, mask))[mask > 0]
    np.testing.assert_allclose([found.mean(), found.var(ddof=1)], [0.0, 1.0], atol=1e-5)


def test_advantages_are_constants():
    score, valid = (jnp.asarray(x) for x in scores())
    for relative in RELATIVE:
        gradient = jax.grad(lambda score: jnp.sum(relative(score, valid) ** 2))(score)  # noqa: B023
        np.testing.assert_array_equal(gradient, 0.0)
    penalty, mask = jnp.ones((4, 6, 3)), jnp.ones((4, 6, 3))
    for advantage in group.per_sequence(group.centred), group.per_token():
        gradient = jax.grad(lambda score: jnp.sum(advantage(score, penalty, mask) ** 2))(score)  # noqa: B023
        np.testing.assert_array_equal(gradient, 0.0)


# ---------------------------------------------------------------------------------------------------------- log ratios


@MODES
@pytest.mark.parametrize("log_ratio", RATIOS, ids=name)
def test_log_ratios_row_by_row(mode, log_ratio):
    log_prob, old, _, mask = draw(seed=3)
    found = mode(log_ratio)(log_prob, old, mask)
    for row, x, m in zip(found, (log_prob.astype(np.float64) - old), mask):
        x, length = x * m, m.sum()
        expected = {group.token_log_ratio: x, group.sequence_log_ratio: x.sum() * m}.get(
            log_ratio, x.sum() / length * m
        )
        np.testing.assert_allclose(row, expected, rtol=1e-5, atol=1e-6)


def test_log_ratios_are_cut_where_their_exponential_would_overflow():
    far, mask = jnp.full((1, 4), 50.0), jnp.ones((1, 4))
    for log_ratio in RATIOS:
        assert float(jnp.max(log_ratio(far, 0.0 * far, mask))) <= group.EXPONENT


def objective(log_ratio, surrogate, weights, advantage, mask, old, low=0.2, high=0.2):
    """The scalar loss of log-probabilities for one choice of parts."""

    def loss(log_prob):
        each = surrogate(log_ratio(log_prob, old, mask), advantage, low=low, high=high)
        return jnp.sum(weights(mask) * each)

    return loss


def per_row(seed=4):
    """As `draw`, with one advantage per row, as jax arrays."""
    log_prob, old, advantage, mask = (jnp.asarray(x) for x in draw(seed=seed))
    return log_prob, old, advantage[:, :1] * mask, mask


def test_the_token_form_of_the_mean_ratio_has_the_same_gradient_where_advantages_are_those_of_rows():
    log_prob, old, advantage, mask = per_row()
    found = []
    for log_ratio in group.mean_log_ratio, group.mean_log_ratio_per_token:
        loss = objective(log_ratio, surrogates.clipped, group.sequence_mean_token_mean, advantage, mask, old)
        found.append(jax.value_and_grad(loss)(log_prob))
    for one, two in zip(*found):
        np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7)


def test_completions_of_one_token_make_all_ratio_levels_alike():
    log_prob, old, advantage, _ = (x[:, :1] for x in per_row(5))
    mask, found = jnp.ones_like(log_prob), []
    for log_ratio in RATIOS:
        loss = objective(log_ratio, surrogates.clipped, group.sequence_mean_token_mean, advantage, mask, old)
        found.append(jax.value_and_grad(loss)(log_prob))
    for value, gradient in found[1:]:
        np.testing.assert_allclose(value, found[0][0], rtol=1e-6)
        np.testing.assert_allclose(gradient, found[0][1], rtol=1e-5, atol=1e-7)


# ------------------------------------------------------------------------------------------------------------- weights


@MODES
def test_weights(mode):
    _, _, x, mask = draw(seed=8)
    rows, length = mask.shape
    each = [row[m > 0].astype(np.float64) for row, m in zip(x, mask)]
    expected = {
        group.token_mean: np.concatenate(each).mean(),
        group.sequence_mean_token_mean: np.mean([row.mean() for row in each]),
        group.sequence_mean_token_sum: np.mean([row.sum() for row in each]),
        group.token_sum_constant: sum(row.sum() for row in each) / (rows * length),
    }
    for weights, value in expected.items():
        np.testing.assert_allclose(np.sum(np.asarray(mode(weights)(mask)) * x), value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("weights", WEIGHTS, ids=name)
def test_rows_left_out_do_not_count_and_an_empty_batch_is_no_nan(weights):
    _, _, _, mask = draw(seed=9)
    more = np.concatenate([mask, np.zeros_like(mask)])
    np.testing.assert_allclose(weights(more)[: len(mask)], weights(mask), rtol=1e-6)
    np.testing.assert_array_equal(weights(more)[len(mask) :], 0.0)
    np.testing.assert_array_equal(weights(jnp.zeros((3, 4))), 0.0)


@pytest.mark.parametrize("weights", WEIGHTS, ids=name)
@given(st.integers(0, 1000))
def test_the_objective_does_not_depend_on_the_order_of_rows_or_on_how_the_batch_is_split(weights, seed):
    log_prob, old, advantage, mask = draw(seed=seed)
    all_weights = weights(mask)
    each = surrogates.clipped(group.token_log_ratio(log_prob, old, mask), advantage, low=0.2, high=0.2)
    order = np.random.default_rng(seed).permutation(len(mask))
    np.testing.assert_allclose(weights(mask[order]), np.asarray(all_weights)[order], rtol=1e-6)
    pieces = [np.sum(np.asarray(all_weights * each)[part]) for part in np.split(order, 3)]
    np.testing.assert_allclose(sum(pieces), np.sum(all_weights * each), rtol=1e-4, atol=1e-6)


def test_only_the_token_mean_favours_length_in_a_row():
    """A right answer of one token against one of four: the weight of its tokens, and of the whole."""
    mask = jnp.array([[1.0, 0, 0, 0], [1, 1, 1, 1]])
    np.testing.assert_allclose(jnp.sum(group.token_mean(mask), 1), [0.2, 0.8])
    np.testing.assert_allclose(jnp.sum(group.sequence_mean_token_mean(mask), 1), [0.5, 0.5])
    np.testing.assert_allclose(group.token_sum_constant(mask)[:, 0], [1 / 8, 1 / 8])


# ------------------------------------------------------------------------------------------------------------------ KL


@MODES
def test_kl_estimators(mode):
    log_prob, ref, _, _ = draw(seed=10)
    d = log_prob.astype(np.float64) - ref
    for estimator, expected in {group.k1: d, group.k2: d**2 / 2, group.k3: np.exp(-d) + d - 1}.items():
        np.testing.assert_allclose(mode(estimator)(log_prob, ref), expected, rtol=1e-4, atol=1e-6)


def exact(estimator, logits, ref_logits):
    """Value and gradient in the logits of E_{a ~ pi}[estimator], with the sampling distribution held constant."""
    probability = jax.nn.softmax(logits)

    def expected(logits):
        log_prob, ref = jax.nn.log_softmax(logits), jax.nn.log_softmax(ref_logits)
        return jnp.sum(probability * estimator(log_prob[None], ref[None])[0])

    return jax.value_and_grad(expected)(logits)


def test_what_each_estimator_is_in_value_and_as_a_loss():
    """On-policy: k1 has no gradient, k2 that of KL(pi || ref), k3 that of KL(ref || pi); k1 and k3 have KL's value."""
    logits, ref = jnp.array([0.3, -0.5, 1.2, 0.0]), jnp.array([-0.2, 0.4, 0.7, 0.1])
    p, q = (np.exp(np.asarray(x, np.float64)) / np.exp(np.asarray(x, np.float64)).sum() for x in (logits, ref))
    reverse = np.sum(p * np.log(p / q))
    of_reverse = p * (np.log(p / q) - reverse)  # derivative of KL(softmax(z) || q) in z
    of_forward = p - q  # derivative of KL(q || softmax(z)) in z
    for estimator, value, gradient in (
        (group.k1, reverse, np.zeros(4)), (group.k2, None, of_reverse), (group.k3, reverse, of_forward),
    ):  # fmt: skip
        found, found_gradient = exact(estimator, logits, ref)
        np.testing.assert_allclose(found_gradient, gradient, atol=1e-6)
        if value is not None:
            np.testing.assert_allclose(found, value, rtol=1e-5)


def test_k3_is_finite_where_the_policies_are_far_apart():
    far = jnp.array([[-80.0, 80.0]])
    assert np.all(np.isfinite(group.k3(far, jnp.zeros((1, 2)))))
    assert np.all(np.isfinite(jax.grad(lambda x: jnp.sum(group.k3(x, jnp.zeros((1, 2)))))(far)))


# --------------------------------------------------------------------------------------------------------------- pairs


def pairs(seed=11):
    """Log-probabilities, those of the reference, and a mask, [N, 2, L]."""
    log_prob, ref, _, mask = (x.reshape(6, 2, 5) for x in draw(seed=seed))
    return log_prob, ref, mask


@MODES
def test_dpo_pair_by_pair(mode):
    log_prob, ref, mask = pairs()
    loss, metrics = mode(lambda *x: group.dpo(*x, beta=0.7))(log_prob, ref, mask)
    d = ((log_prob.astype(np.float64) - ref) * mask).sum(-1)
    margin = 0.7 * (d[:, 0] - d[:, 1])
    assert np.any(margin > 0) and np.any(margin < 0)
    np.testing.assert_allclose(loss, -np.log(1.0 / (1.0 + np.exp(-margin))), rtol=1e-5)
    np.testing.assert_allclose(metrics["dpo/margin"], margin.mean(), rtol=1e-4)
    np.testing.assert_allclose(metrics["dpo/right"], np.mean(margin > 0), rtol=1e-6)


def test_dpo_at_the_reference_is_log_2_and_pulls_the_two_apart():
    log_prob, _, mask = pairs()
    np.testing.assert_allclose(group.dpo(log_prob, log_prob, mask, beta=0.1)[0], np.log(2.0), rtol=1e-6)
    total = lambda one, other: jnp.sum(group.dpo(one, other, mask, beta=0.1)[0])  # noqa: E731
    gradient, of_reference = jax.grad(total, (0, 1))(log_prob, log_prob)
    np.testing.assert_allclose(gradient, 0.05 * np.array([-1.0, 1.0])[:, None] * mask, rtol=1e-5)
    np.testing.assert_array_equal(of_reference, 0.0)


def test_dpo_is_finite_where_pairs_are_far_apart():
    far = jnp.array([[[-800.0], [0.0]], [[0.0], [-800.0]]])
    loss, gradient = jax.value_and_grad(lambda x: jnp.sum(group.dpo(x, 0 * far, jnp.ones_like(far), beta=1.0)[0]))(far)
    np.testing.assert_allclose(loss, 800.0, rtol=1e-6)
    assert np.all(np.isfinite(gradient))


# -------------------------------------------------------------------------------------------------------------- others


@MODES
def test_informative_groups(mode):
    score = jnp.array([[0.0, 0.0, 0.0], [1.0, 0.0, 1.0], [1.0, 1.0, 1.0]])
    found = mode(group.informative)(score, jnp.ones((3, 3), bool))
    np.testing.assert_array_equal(found, [[False] * 3, [True] * 3, [False] * 3])


def test_scores_that_are_not_valid_make_no_group_informative():
    score = jnp.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [jnp.nan, 1.0, 1.0], [0.0, 1.0, 2.0], [0.0, 1.0, 2.0]])
    valid = jnp.array([[1, 1, 0], [1, 1, 0], [0, 1, 1], [0, 0, 0], [0, 1, 1]], bool)
    expected = [[False] * 3, [True, True, False], [False] * 3, [False] * 3, [False, True, True]]
    np.testing.assert_array_equal(group.informative(score, valid), expected)


def test_overlong_penalty():
    found = group.overlong_penalty(jnp.array([1, 12, 13, 14, 16]), limit=16, buffer=4)
    np.testing.assert_allclose(found, [0.0, 0.0, -0.25, -0.5, -1.0])


def test_broadcasting_is_refused():
    log_prob, old, advantage, mask = draw()
    head = log_prob[..., None]
    for log_ratio in RATIOS:
        with pytest.raises(AssertionError):
            log_ratio(head, old, mask)
        with pytest.raises(AssertionError):
            log_ratio(log_prob, old, mask[:, :1])
    for estimator in group.k1, group.k2, group.k3:
        with pytest.raises(AssertionError):
            estimator(log_prob, old[:, :1])
    for relative in RELATIVE:
        with pytest.raises(AssertionError):
            relative(np.zeros((3, 4)), np.ones((3, 1), bool))
    for weights in WEIGHTS:
        with pytest.raises(AssertionError):
            weights(mask[..., None])
    for whole in group.per_sequence(group.centred), group.per_token():
        with pytest.raises(AssertionError):
            whole(np.zeros((3, 4)), np.zeros((3, 4, 5)), np.ones((3, 4, 1)))
    with pytest.raises(AssertionError):
        group.whitened(log_prob, mask[:, :1])
    pair, ref, tokens = pairs()
    for wrong in (pair[:, :1], ref, tokens), (pair, ref, tokens[..., :1]), tuple(x[:, :1] for x in (pair, ref, tokens)):
        with pytest.raises(AssertionError):
            group.dpo(*wrong, beta=0.1)
    with pytest.raises(AssertionError):
        group.dpo(pair, ref, tokens, beta=np.full(5, 0.1))
    with pytest.raises(AssertionError):
        group.informative(np.zeros((3, 4)), np.zeros((3, 1)))
