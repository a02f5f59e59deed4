"""Models of what follows an action: how likely they find it, what each member of an ensemble learns from, and doubt.

Axis letters: B batch, E members of an ensemble, D features: the change of the observation and, last, the reward.
"""

import math

import chex
import jax
import jax.numpy as jnp


def soft_clamp(x: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """Keep numbers between two bounds, smoothly, so that no gradient vanishes: low < result < high + a little.

    y = high - softplus(high - x), and result = low + softplus(y - low), which is above `high` by no more than
    softplus(low - high). With it a variance can be learned whose bounds are learned too.

    Args:
      x: [..., D].
      low, high: [D].
    Returns:
      [..., D].
    Raises:
      AssertionError: if features differ.
    Reference: Chua et al. 2018, arXiv 1805.12114, appendix A.1
    """
    chex.assert_equal_shape([low, high])
    chex.assert_equal_shape_suffix([x, low], low.ndim)
    below = high - jax.nn.softplus(high - x)
    return low + jax.nn.softplus(below - low)


def normal_nll(mean: jax.Array, log_variance: jax.Array, target: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """How unlikely a diagonal normal finds what came, -log N(target; mean, exp(log_variance)), summed over features.

    Args:
      mean, log_variance: [B, D].
      target: [B, D], a constant.
    Returns:
      loss [B], unreduced, in nats; metrics of scalars.
    Raises:
      AssertionError: if shapes differ.
    Reference: Nix and Weigend 1994, "Estimating the mean and variance of the target probability distribution"
    """
    chex.assert_rank(mean, 2)
    chex.assert_equal_shape([mean, log_variance, target])
    error = jax.lax.stop_gradient(target) - mean
    nll = 0.5 * (error**2 * jnp.exp(-log_variance) + log_variance + math.log(2.0 * math.pi))
    loss = jnp.sum(nll, -1)
    return loss, {"model/nll": jnp.mean(loss)}


def bounds_range(low: jax.Array, high: jax.Array) -> jax.Array:
    """How far apart learned bounds of a log-variance are, sum (high - low): to be kept small, as nothing else does.

    Args:
      low, high: [D].
    Returns:
      A scalar: it is about parameters, not about samples.
    Raises:
      AssertionError: if shapes differ.
    Reference: Chua et al. 2018, arXiv 1805.12114, appendix A.1
    """
    chex.assert_equal_shape([low, high])
    return jnp.sum(high - low)


def squared_error(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """The mean over features of the squared error, by which members are ranked on rows that they did not learn from.

    Args:
      prediction: [B, D].
      target: [B, D].
    Returns:
      [B].
    Raises:
      AssertionError: if shapes differ.
    """
    chex.assert_rank(prediction, 2)
    chex.assert_equal_shape([prediction, target])
    return jnp.mean((prediction - target) ** 2, -1)


# ------------------------------------------------------------------------------------------- who learns from what


def fingerprint(x: jax.Array) -> jax.Array:
    """A number for each row that depends on its bits alone: the same row has the same one whenever it comes again.

    Args:
      x: [B, F] float32.
    Returns:
      uint32 [B], spread evenly.
    Raises:
      AssertionError: if x has another rank.
    Reference: Appleby 2011, MurmurHash3 (the final mix)
    """
    chex.assert_rank(x, 2)
    words = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    factors = _mix(jnp.arange(1, x.shape[1] + 1, dtype=jnp.uint32)) | jnp.uint32(1)
    return _mix(jnp.sum(_mix(words) * factors, -1, dtype=jnp.uint32))


def chance(fingerprint: jax.Array, stream: jax.Array) -> jax.Array:
    """A uniform number in (0, 1) for each row and stream, of their bits alone.

    Args:
      fingerprint: uint32 [B].
      stream: uint32 [S]; numbers of different streams are independent.
    Returns:
      [S, B].
    """
    chex.assert_rank([fingerprint, stream], 1)
    bits = _mix(fingerprint[None] ^ _mix(stream + jnp.uint32(0x9E3779B9))[:, None])
    return ((bits >> 9).astype(jnp.float32) + 0.5) * 2.0**-23


def bootstrap_weights(fingerprint: jax.Array, members: int) -> jax.Array:
    """How much each member learns from each row: exponential weights of mean one, always the same for the same row.

    The members of an ensemble must not learn the same to disagree where they know little. The classical bootstrap gives
    each its own draw of the data; weights in place of draws do the same smoothly, and because they are made of a row's
    own bits, a stream of batches needs no memory of who was given what.

    Args:
      fingerprint: uint32 [B].
      members: E.
    Returns:
      [E, B], a constant.
    Reference: Rubin 1981, "The Bayesian bootstrap"
    """
    return -jnp.log(chance(fingerprint, jnp.arange(1, members + 1, dtype=jnp.uint32)))


def held_out(fingerprint: jax.Array, share: jax.Array) -> jax.Array:
    """Which rows nobody learns from, a share of all, always the same ones.

    Args:
      fingerprint: uint32 [B].
      share: in [0, 1], scalar.
    Returns:
      bool [B].
    """
    chex.assert_rank(share, 0)
    return chance(fingerprint, jnp.zeros((1,), jnp.uint32))[0] < share


def _mix(bits: jax.Array) -> jax.Array:
    """The final mix of MurmurHash3: every bit of the result depends on every bit."""
    bits = (bits ^ (bits >> 16)) * jnp.uint32(0x85EBCA6B)
    bits = (bits ^ (bits >> 13)) * jnp.uint32(0xC2B2AE35)
    return bits ^ (bits >> 16)


# ------------------------------------------------------------------------------------------------------------- doubt


def largest_deviation(mean: jax.Array, std: jax.Array) -> jax.Array:
    """Doubt as the largest noise that a member expects, max_e ||std_e||_2.

    Args:
      mean, std: [E, B, D], of each member.
    Returns:
      [B].
    Raises:
      AssertionError: if shapes differ.
    Reference: Yu et al. 2020, arXiv 2005.13239 (MOPO)
    """
    _are_members(mean, std)
    return jnp.max(jnp.sqrt(jnp.sum(std**2, -1)), 0)


def disagreement(mean: jax.Array, std: jax.Array) -> jax.Array:
    """Doubt as the largest distance between what two members expect, max_{i,j} ||mean_i - mean_j||_2.

    Args:
      mean, std: [E, B, D], of each member; of the noise nothing is read.
    Returns:
      [B].
    Raises:
      AssertionError: if shapes differ.
    Reference: Kidambi et al. 2020, arXiv 2005.05951 (MOReL)
    """
    _are_members(mean, std)
    return jnp.sqrt(jnp.max(jnp.sum((mean[:, None] - mean[None]) ** 2, -1), (0, 1)))


def no_doubt(mean: jax.Array, std: jax.Array) -> jax.Array:
    """No doubt at all: models are taken at their word.

    Args:
      mean, std: [E, B, D], of each member.
    Returns:
      zeros [B].
    Raises:
      AssertionError: if shapes differ.
    Reference: Sims et al. 2024, arXiv 2402.12527 (RAVL), which needs none
    """
    _are_members(mean, std)
    return jnp.zeros(mean.shape[1], mean.dtype)


def _are_members(mean, std):
    chex.assert_rank(mean, 3)
    chex.assert_equal_shape([mean, std])
