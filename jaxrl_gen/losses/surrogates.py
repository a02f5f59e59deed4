"""What a token policy descends: surrogates of its probability ratios and advantages, token by token.

    surrogate(log_ratio [B, L], advantage [B, L], log_prob [B, L], mask [B, L], key, *, low, high) -> loss [B, L]

All are handed all of this. Most read the first two alone; those that treat a few tokens apart also read how likely the
tokens are, which of them count, and a key to draw with. `low` and `high` are the distances of two walls from ratio 1.
"""

from typing import Any

import chex
import jax
import jax.numpy as jnp

ROUNDING = 1e-5  # log ratios below are those of one policy, computed in two ways


def clipped(log_ratio: jax.Array, advantage: jax.Array, *_: Any, low: jax.Array, high: jax.Array) -> jax.Array:
    """The surrogate that stops pushing at two walls: max(-A r, -A clip(r, 1 - low, 1 + high)), with r = exp(log_ratio).

    Args:
      log_ratio: [B, L].
      advantage: [B, L], a constant.
      low, high: distances of the walls from 1, scalars.
    Returns:
      loss [B, L], unreduced.
    Raises:
      AssertionError: if shapes differ.
    Reference: Schulman et al. 2017, arXiv 1707.06347, eq. 7; walls apart: Yu et al. 2025, arXiv 2503.14476 (DAPO)
    """
    ratio, advantage = _ratio(log_ratio, advantage, low, high)
    return jnp.maximum(-advantage * ratio, -advantage * jnp.clip(ratio, 1.0 - low, 1.0 + high))


def dual_clipped(
    log_ratio: jax.Array, advantage: jax.Array, *_: Any, low: jax.Array, high: jax.Array, limit: float = 3.0
) -> jax.Array:
    """As `clipped`, and where A < 0 at most -A limit: a token that became far more likely does not pull without bound.

    Args:
      log_ratio, advantage, low, high: as of `clipped`.
      limit: the ratio from which on a negative advantage has no gradient, above 1.
    Returns:
      loss [B, L], unreduced.
    Raises:
      AssertionError: if shapes differ.
    Reference: Ye et al. 2020, arXiv 1912.09729, eq. 6
    """
    loss = clipped(log_ratio, advantage, low=low, high=high)
    advantage = jax.lax.stop_gradient(advantage)
    return jnp.where(advantage < 0, jnp.minimum(loss, -advantage * limit), loss)


def detached_clip(log_ratio: jax.Array, advantage: jax.Array, *_: Any, low: jax.Array, high: jax.Array) -> jax.Array:
    """A clipped weight on the score function, -sg(clip(r, 1 - low, 1 + high)) A log r: no token loses its gradient.

    Its gradient is that of -sg(clip(r)) A log pi; `low = 1` leaves the upper wall alone.

    Args, Returns, Raises: as `clipped`.

    Reference: MiniMax 2025, arXiv 2506.13585, eq. 4 (CISPO)
    """
    ratio, advantage = _ratio(log_ratio, advantage, low, high)
    return -jax.lax.stop_gradient(jnp.clip(ratio, 1.0 - low, 1.0 + high)) * advantage * log_ratio


def unclipped(log_ratio: jax.Array, advantage: jax.Array, *_: Any, low: jax.Array, high: jax.Array) -> jax.Array:
    """The policy gradient with importance ratios, -A r, without walls.

    Args, Returns, Raises: as `clipped`; `low` and `high` have no effect.

    Reference: Williams 1992, "Simple statistical gradient-following algorithms"
    """
    ratio, advantage = _ratio(log_ratio, advantage, low, high)
    return -advantage * ratio


def clip_cov(
    log_ratio: jax.Array,
    advantage: jax.Array,
    log_prob: jax.Array,
    mask: jax.Array,
    key: jax.Array,
    *,
    low: jax.Array,
    high: jax.Array,
    share: float = 2e-4,
    least: float = 1.0,
    most: float = 5.0,
) -> jax.Array:
    """As `clipped`, but a few tokens drawn among those whose `covariance` lies between two bounds have no loss.

    Drawn are `share` of the tokens, at least one, among those that no wall has stopped already.

    Args:
      log_ratio, advantage, low, high: as of `clipped`.
      log_prob: [B, L], of the policy being learned.
      mask: [B, L].
      key: consumed here.
      share: of all tokens.
      least, most: bounds of the covariance, which has the units of an advantage in nats.
    Returns:
      loss [B, L], unreduced.
    Raises:
      AssertionError: if shapes differ.
    Reference: Cui et al. 2025, arXiv 2505.22617 (Clip-Cov)
    """
    cov = covariance(advantage, log_prob, mask)
    loss, free = (f(log_ratio, advantage, low=low, high=high) for f in (clipped, unclipped))
    eligible = (mask > 0) & (cov > least) & (cov < most) & ~(loss > free)
    drawn = _first(jax.random.uniform(key, mask.shape), eligible, share, mask)
    return jnp.where(drawn, 0.0, loss)


def kl_cov(
    log_ratio: jax.Array,
    advantage: jax.Array,
    log_prob: jax.Array,
    mask: jax.Array,
    *_: Any,
    low: jax.Array,
    high: jax.Array,
    share: float = 2e-3,
    weight: float = 1.0,
) -> jax.Array:
    """As `unclipped`, and |log r| holds back the few tokens of largest `covariance`: -A r + weight 1[held] |log r|.

    Held are `share` of the tokens, at least one. A log ratio of mere rounding does not count: its sign says nothing.

    Args:
      log_ratio, advantage, low, high: as of `unclipped`.
      log_prob, mask, share: as of `clip_cov`.
      weight: of the distance to the policy that wrote the tokens.
    Returns:
      loss [B, L], unreduced.
    Raises:
      AssertionError: if shapes differ.
    Reference: Cui et al. 2025, arXiv 2505.22617 (KL-Cov)
    """
    held = _first(covariance(advantage, log_prob, mask), mask > 0, share, mask)
    apart = jnp.abs(log_ratio)
    loss = unclipped(log_ratio, advantage, low=low, high=high)
    return loss + weight * jnp.where(held & (apart > ROUNDING), apart, 0.0)


def covariance(advantage: jax.Array, log_prob: jax.Array, mask: jax.Array) -> jax.Array:
    """Each token's share in how a policy gradient lowers entropy, (A - mean A) (log pi - mean log pi), over all tokens.

    Args:
      advantage, log_prob: [B, L].
      mask: [B, L].
    Returns:
      [B, L], a constant; what it is where masked says nothing.
    Raises:
      AssertionError: if shapes differ.
    Reference: Cui et al. 2025, arXiv 2505.22617
    """
    chex.assert_rank(mask, 2)
    chex.assert_equal_shape([advantage, log_prob, mask])
    mean = lambda x: jnp.sum(x * mask) / jnp.maximum(jnp.sum(mask), 1)
    return jax.lax.stop_gradient((advantage - mean(advantage)) * (log_prob - mean(log_prob)))


def outside(log_ratio: jax.Array, *, low: jax.Array, high: jax.Array) -> jax.Array:
    """Which ratios have left the interval (1 - low, 1 + high).

    Args:
      log_ratio: any shape.
      low, high: scalars.
    Returns:
      bool, of the same shape.
    """
    ratio = jnp.exp(log_ratio)
    return (ratio < 1.0 - low) | (ratio > 1.0 + high)


def _first(score, among, share, mask):
    """Which tokens `among` have the largest scores, as many as `share` of the mask, at least one: bool [B, L]."""
    order = jnp.argsort(jnp.where(among, score, -jnp.inf), axis=None, descending=True)
    rank = jnp.argsort(order).reshape(mask.shape)
    return among & (rank < jnp.maximum(jnp.floor(share * jnp.sum(mask)), 1))


def _ratio(log_ratio, advantage, low, high):
    chex.assert_equal_shape([log_ratio, advantage])
    chex.assert_rank([low, high], 0)
    return jnp.exp(log_ratio), jax.lax.stop_gradient(advantage)
