"""Group-relative policy gradients in five parts that are chosen apart: a method is one choice of each.

    advantage    (score [N, G], penalty [N, G, L], mask [N, G, L]) -> [N, G, L]
                 per_sequence of standardised, centred or leave_one_out; per_token
    log ratio    (log_prob [B, L], old_log_prob [B, L], mask [B, L]) -> [B, L]
                 token_log_ratio, sequence_log_ratio, mean_log_ratio, mean_log_ratio_per_token
    surrogate    (log_ratio [B, L], advantage [B, L], log_prob [B, L], mask [B, L], key, *, low, high) -> loss [B, L]
                 of `losses.surrogates`: clipped, dual_clipped, detached_clip, unclipped, clip_cov, kl_cov
    weights      mask [B, L] -> [B, L], whose sum of products is the wanted mean
                 token_mean, sequence_mean_token_mean, sequence_mean_token_sum, token_sum_constant
    divergence   (log_prob [B, L], ref_log_prob [B, L]) -> [B, L]
                 k1, k2, k3

N prompts with G completions each, group by group: B = N G rows of at most L tokens. A mask is one up to and including
the token that ends a completion, and zero after it.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

EXPONENT = 20.0  # log ratios are cut here: beyond, their exponential says nothing and may overflow


def centred(score: jax.Array, valid: jax.Array) -> jax.Array:
    """How much better than its group's mean each completion did: A = R - mean_g(R).

    Args:
      score: [N, G].
      valid: bool [N, G]; the others neither count in the mean nor get an advantage.
    Returns:
      advantage [N, G], a constant that sums to zero in each group.
    Raises:
      AssertionError: if shapes differ.
      ValueError: if G is 1, where nothing can be relative.
    Reference: Liu et al. 2025, arXiv 2503.20783 (Dr. GRPO)
    """
    count = _checked_groups(score, valid)
    above = _above_first(score, valid)
    mean = jnp.sum(above, -1, keepdims=True) / jnp.maximum(count, 1)
    return jax.lax.stop_gradient(jnp.where(valid, above - mean, 0.0))


def standardised(score: jax.Array, valid: jax.Array, *, epsilon: float = 1e-6) -> jax.Array:
    """The advantage over the group's mean in units of its deviation: A = (R - mean_g(R)) / (std_g(R) + epsilon).

    The deviation is that of a sample (G - 1). A group whose scores are all equal gets zeros.

    Args:
      score, valid: [N, G], as of `centred`.
      epsilon: in units of score.
    Returns:
      advantage [N, G], a constant that sums to zero in each group.
    Raises:
      AssertionError, ValueError: as `centred`.
    Reference: Shao et al. 2024, arXiv 2402.03300, section 4.1.2 (GRPO)
    """
    advantage, count = centred(score, valid), _checked_groups(score, valid)
    variance = jnp.sum(advantage**2, -1, keepdims=True) / jnp.maximum(count - 1, 1)
    return advantage / (jnp.sqrt(variance) + epsilon)


def leave_one_out(score: jax.Array, valid: jax.Array) -> jax.Array:
    """The advantage over the mean of the *other* completions: A_i = R_i - mean_{j != i}(R_j) = G / (G - 1) centred.

    Args:
      score, valid: [N, G], as of `centred`.
    Returns:
      advantage [N, G], a constant that sums to zero in each group.
    Raises:
      AssertionError, ValueError: as `centred`.
    Reference: Ahmadian et al. 2024, arXiv 2402.14740 (RLOO)
    """
    advantage, count = centred(score, valid), _checked_groups(score, valid)
    return advantage * count / jnp.maximum(count - 1, 1)


def per_sequence(relative: Callable) -> Callable:
    """The advantage of whole completions, the same at each of their tokens; what is penalised lowers the score first.

    Args:
      relative: `(score [N, G], valid [N, G]) -> [N, G]`: `standardised`, `centred`, `leave_one_out`.
    Returns:
      `(score [N, G], penalty [N, G, L], mask [N, G, L]) -> advantage [N, G, L]`, a constant, zero where masked.
    """

    def advantage(score, penalty, mask):
        _checked_tokens(score, penalty, mask)
        total = score - jnp.sum(penalty * mask, -1)
        return jax.lax.stop_gradient(relative(total, jnp.any(mask > 0, -1))[..., None] * mask)

    return advantage


def per_token(relative: Callable = lambda score, valid: score) -> Callable:
    """The advantage of tokens: what comes from each on, score less penalties, whitened over all tokens of the batch.

    The penalty counts from its token on; the score counts at the last token, and so at all. REINFORCE++ is
    `per_token()`, and its variant with a group baseline is `per_token(centred)`.

    Args:
      relative: `(score [N, G], valid [N, G]) -> [N, G]`, before the penalties; default: the scores as they are.
    Returns:
      `(score [N, G], penalty [N, G, L], mask [N, G, L]) -> advantage [N, G, L]`, a constant, zero where masked.
    Reference: Hu et al. 2025, arXiv 2501.03262 (REINFORCE++)
    """

    def advantage(score, penalty, mask):
        _checked_tokens(score, penalty, mask)
        to_come = jnp.cumsum((penalty * mask)[..., ::-1], -1)[..., ::-1]
        gain = (relative(score, jnp.any(mask > 0, -1))[..., None] - to_come) * mask
        return jax.lax.stop_gradient(whitened(gain, mask))

    return advantage


def whitened(x: jax.Array, mask: jax.Array, *, epsilon: float = 1e-8) -> jax.Array:
    """Values with mean 0 and (sample) variance 1 over the whole mask, zero outside it.

    Args:
      x: any shape.
      mask: of the same shape, ones and zeros.
      epsilon: added to the variance.
    Returns:
      Like `x`.
    Raises:
      AssertionError: if shapes differ.
    """
    chex.assert_equal_shape([x, mask])
    count, above = jnp.sum(mask), _above_first(x.ravel(), mask.ravel() > 0).reshape(x.shape)
    apart = above - jnp.sum(above) / jnp.maximum(count, 1)
    variance = jnp.sum(apart**2 * mask) / jnp.maximum(count - 1, 1)
    return apart * jax.lax.rsqrt(variance + epsilon) * mask


def token_log_ratio(log_prob: jax.Array, old_log_prob: jax.Array, mask: jax.Array) -> jax.Array:
    """Each token's own log ratio, log pi - log pi_old, zero where masked.

    Args:
      log_prob: [B, L], of the policy being learned.
      old_log_prob: [B, L], of the policy that wrote the tokens; a constant.
      mask: [B, L].
    Returns:
      [B, L].
    Raises:
      AssertionError: if shapes differ.
    Reference: Shao et al. 2024, arXiv 2402.03300, eq. 3
    """
    return jnp.clip(_difference(log_prob, old_log_prob, mask), -EXPONENT, EXPONENT)


def sequence_log_ratio(log_prob: jax.Array, old_log_prob: jax.Array, mask: jax.Array) -> jax.Array:
    """The log ratio of the whole completion, sum_t (log pi - log pi_old), at each of its tokens.

    Args, Returns, Raises: as `token_log_ratio`. Long completions make it large.

    Reference: Ahmadian et al. 2024, arXiv 2402.14740 (RLOO)
    """
    total = jnp.sum(_difference(log_prob, old_log_prob, mask), -1, keepdims=True)
    return jnp.clip(total, -EXPONENT, EXPONENT) * mask


def mean_log_ratio(log_prob: jax.Array, old_log_prob: jax.Array, mask: jax.Array) -> jax.Array:
    """The log of the completion's geometric mean ratio, mean_t (log pi - log pi_old), at each of its tokens.

    Args, Returns, Raises: as `token_log_ratio`.

    Reference: Zheng et al. 2025, arXiv 2507.18071, eq. 7 (GSPO)
    """
    total = jnp.sum(_difference(log_prob, old_log_prob, mask), -1, keepdims=True)
    mean = total / jnp.maximum(jnp.sum(mask, -1, keepdims=True), 1)
    return jnp.clip(mean, -EXPONENT, EXPONENT) * mask


def mean_log_ratio_per_token(log_prob: jax.Array, old_log_prob: jax.Array, mask: jax.Array) -> jax.Array:
    """The value of `mean_log_ratio` with each token's own gradient, so that advantages may differ between tokens.

    Args, Returns, Raises: as `token_log_ratio`.

    Reference: Zheng et al. 2025, arXiv 2507.18071, eq. 14 (GSPO-token)
    """
    own = _difference(log_prob, old_log_prob, mask)
    return own - jax.lax.stop_gradient(own - mean_log_ratio(log_prob, old_log_prob, mask))


def token_mean(mask: jax.Array) -> jax.Array:
    """Weights of the mean over all tokens of the batch, m / sum(m): long completions weigh more.

    To be taken over a whole batch before it is split, or the split changes the objective.

    Args:
      mask: [B, L].
    Returns:
      weights [B, L].
    Reference: Yu et al. 2025, arXiv 2503.14476, eq. 8 (DAPO)
    """
    chex.assert_rank(mask, 2)
    return mask / jnp.maximum(jnp.sum(mask), 1)


def sequence_mean_token_mean(mask: jax.Array) -> jax.Array:
    """Weights of the mean over completions of each one's mean over tokens; tokens of long completions weigh less.

    Args, Returns: as `token_mean`. A completion without tokens does not count.

    Reference: Shao et al. 2024, arXiv 2402.03300, eq. 3 (GRPO)
    """
    return mask / jnp.maximum(jnp.sum(mask, -1, keepdims=True), 1) / _rows(mask)


def sequence_mean_token_sum(mask: jax.Array) -> jax.Array:
    """Weights of the mean over completions of each one's sum over tokens.

    Args, Returns: as `token_mean`. A completion without tokens does not count.
    """
    return mask / _rows(mask)


def token_sum_constant(mask: jax.Array) -> jax.Array:
    """Weights of the sum over tokens divided by what fits, m / (B L): no length is favoured.

    Args, Returns: as `token_mean`. B counts the completions that have tokens.

    Reference: Liu et al. 2025, arXiv 2503.20783, appendix (Dr. GRPO)
    """
    return mask / (_rows(mask) * mask.shape[-1])


def k1(log_prob: jax.Array, ref_log_prob: jax.Array) -> jax.Array:
    """The plain estimate of KL(pi || ref) from tokens of pi: d = log pi - log ref, unbiased in value.

    As a loss it does nothing: its expected gradient on-policy is zero. It belongs into the reward.

    Args:
      log_prob: [B, L], of the policy being learned.
      ref_log_prob: [B, L], of the reference; a constant.
    Returns:
      [B, L], in nats.
    Raises:
      AssertionError: if shapes differ.
    Reference: Schulman 2020, "Approximating KL divergence"
    """
    chex.assert_equal_shape([log_prob, ref_log_prob])
    return log_prob - jax.lax.stop_gradient(ref_log_prob)


def k2(log_prob: jax.Array, ref_log_prob: jax.Array) -> jax.Array:
    """Half the squared log ratio, d^2 / 2: biased in value, and as a loss on-policy the gradient of KL(pi || ref).

    Args, Returns, Raises, Reference: as `k1`.
    """
    return 0.5 * k1(log_prob, ref_log_prob) ** 2


def k3(log_prob: jax.Array, ref_log_prob: jax.Array) -> jax.Array:
    """The estimate that is never negative, exp(-d) + d - 1: unbiased in value; as a loss the gradient of KL(ref || pi).

    Args, Returns, Raises, Reference: as `k1`.
    """
    d = jnp.clip(k1(log_prob, ref_log_prob), -EXPONENT, EXPONENT)
    return jnp.expm1(-d) + d


def dpo(
    log_prob: jax.Array, ref_log_prob: jax.Array, mask: jax.Array, *, beta: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of pairs of which one is preferred, -log sigmoid(beta (d_0 - d_1)), d = sum_t (log pi - log ref).

    A pair is a group of two: first the completion that is preferred, then the other. Sums grow with length, and so
    longer completions are felt more.

    Args:
      log_prob: [N, 2, L], of the policy being learned.
      ref_log_prob: [N, 2, L], of the reference; a constant.
      mask: [N, 2, L].
      beta: how much a nat counts, scalar; 0.1 is usual.
    Returns:
      loss [N], unreduced; metrics: the margin beta (d_0 - d_1), and how often it is right.
    Raises:
      AssertionError: if shapes differ, or are not those of pairs.
    Reference: Rafailov et al. 2023, arXiv 2305.18290, eq. 7
    """
    chex.assert_shape(mask, (None, 2, None))
    chex.assert_equal_shape([log_prob, ref_log_prob, mask])
    chex.assert_rank(beta, 0)
    one, other = jnp.moveaxis(jnp.sum(k1(log_prob, ref_log_prob) * mask, -1), 1, 0)
    margin = beta * (one - other)
    return jax.nn.softplus(-margin), {"dpo/margin": jnp.mean(margin), "dpo/right": jnp.mean(margin > 0)}


def informative(score: jax.Array, valid: jax.Array) -> jax.Array:
    """Which completions stand in a group whose scores differ: the others teach nothing relative.

    Args:
      score, valid: [N, G], as of `centred`.
    Returns:
      bool [N, G], False where not valid.
    Raises:
      AssertionError: if shapes differ.
    Reference: Yu et al. 2025, arXiv 2503.14476, section 3.2 (DAPO, which samples others in their place)
    """
    chex.assert_equal_shape([score, valid])
    return valid & jnp.any(_above_first(score, valid) != 0, -1, keepdims=True)


def overlong_penalty(length: jax.Array, *, limit: int, buffer: int) -> jax.Array:
    """A penalty that grows over the last `buffer` tokens before the limit: min(0, (limit - buffer - length) / buffer).

    Args:
      length: tokens, any shape.
      limit, buffer: tokens, buffer at least 1.
    Returns:
      Of the same shape, in [-1, 0] for lengths up to the limit.
    Reference: Yu et al. 2025, arXiv 2503.14476, eq. 13 (DAPO)
    """
    return jnp.minimum(0.0, (limit - buffer - length) / buffer)


def _checked_groups(score, valid):
    """How many of each group are valid, [N, 1]."""
    chex.assert_rank([score, valid], 2)
    chex.assert_equal_shape([score, valid])
    if score.shape[1] < 2:
        raise ValueError(f"a group baseline needs G >= 2 completions of each prompt; found G = {score.shape[1]}")
    return jnp.sum(valid, -1, keepdims=True)


def _above_first(x, valid):
    """How much each exceeds the first valid one on the last axis, zero elsewhere: so equals differ by nothing at all.

    The mean of equal numbers, rounded, may be another number.
    """
    first = jnp.take_along_axis(x, jnp.argmax(valid, -1, keepdims=True), -1)
    return jnp.where(valid, x - first, 0.0)


def _checked_tokens(score, penalty, mask):
    chex.assert_rank([score, penalty, mask], [2, 3, 3])
    chex.assert_equal_shape([penalty, mask])
    chex.assert_equal_shape_prefix([score, mask], 2)


def _difference(log_prob, old_log_prob, mask):
    chex.assert_rank([log_prob, old_log_prob, mask], 2)
    chex.assert_equal_shape([log_prob, old_log_prob, mask])
    return (log_prob - jax.lax.stop_gradient(old_log_prob)) * mask


def _rows(mask):
    """How many rows have a token, at least one."""
    chex.assert_rank(mask, 2)
    return jnp.maximum(jnp.sum(jnp.any(mask > 0, -1)), 1)
