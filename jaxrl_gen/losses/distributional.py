"""Learning the distribution of returns, not only its mean: on fixed atoms, or by its quantiles.

Axis letters: B batch, N ensemble members, K atoms or quantiles. Both are Readouts, so that a critic that learns a
distribution takes the place of one that regresses.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxrl_gen.losses import value


def project(probabilities: jax.Array, places: jax.Array, atoms: jax.Array) -> jax.Array:
    """Move mass from any places onto equally spaced atoms, shared between the two nearest in proportion.

    q_j = sum_i p_i max(0, 1 - |clip(x_i) - z_j| / width). A place beyond the outermost atoms is clipped to them. The
    mass is kept, and so is the mean of what was not clipped.

    Args:
      probabilities: [B, K].
      places: [B, K], where that mass is, in units of value.
      atoms: [J], equally spaced, rising.
    Returns:
      probabilities [B, J], gradient stopped.
    Raises:
      AssertionError: if shapes do not fit.
    Reference: Bellemare et al. 2017, arXiv 1707.06887, algorithm 1
    """
    chex.assert_rank([probabilities, places, atoms], [2, 2, 1])
    chex.assert_equal_shape([probabilities, places])
    shares = jax.vmap(lambda x: value.two_hot(x, atoms))(places)
    # Accelerators round what they multiply, unless they are told not to: the mass would not be kept.
    exact = jax.lax.Precision.HIGHEST
    return jax.lax.stop_gradient(jnp.einsum("bi,bij->bj", probabilities, shares, precision=exact))


def quantile_huber(
    quantiles: jax.Array, samples: jax.Array, *, threshold: jax.Array = 1.0
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Quantile regression whose kink is rounded: the sum over quantiles of the mean over samples of weighted Huber.

    rho(u) = |tau_i - 1[u < 0]| H(u) / threshold, where u = sample - quantile_i, tau_i = (i + 1/2) / K, and H is Huber's
    loss, quadratic within the threshold. Its minimiser, for a small threshold, is each tau-quantile of the samples.

    Args:
      quantiles: [B, K].
      samples: [B, J], of returns, constants.
      threshold: scalar above 0, in units of value.
    Returns:
      loss [B], unreduced; metrics of scalars.
    Raises:
      AssertionError: if shapes do not fit.
    Reference: Dabney et al. 2017, arXiv 1710.10044, eq. 10
    """
    chex.assert_rank([quantiles, samples, threshold], [2, 2, 0])
    chex.assert_equal_shape_prefix([quantiles, samples], 1)
    count = quantiles.shape[1]
    tau = (jnp.arange(count, dtype=jnp.float32) + 0.5) / count
    u = jax.lax.stop_gradient(samples)[:, None, :] - quantiles[:, :, None]
    size = jnp.abs(u)
    huber = jnp.where(size <= threshold, 0.5 * u**2, threshold * (size - 0.5 * threshold)) / threshold
    loss = jnp.sum(jnp.mean(jnp.abs(tau[:, None] - (u < 0)) * huber, -1), -1)
    return loss, {"critic/loss": jnp.mean(loss)}


def _mixed(outputs: jax.Array, parts: jax.Array, of: Callable, choose: Callable) -> jax.Array:
    """What a choice among values makes of what they are the values of, `parts` [N, B, K] -> [M, B, K].

    A choice is what it does to small changes of the values: the minimum picks a member, the mean takes of each alike.
    """
    chosen, pull = jax.vjp(choose, of(outputs))
    if chosen.ndim == 2:  # each its own
        return parts
    (weights,) = pull(jnp.ones_like(chosen))
    return jnp.sum(weights[..., None] * parts, 0)[None]


def categorical(low: jax.Array, high: jax.Array, atoms: int = 101) -> value.Readout:
    """K logits of a distribution of returns over fixed atoms, of which the whole is bootstrapped (C51).

    Of several members the choice among their means takes their distributions: the minimum picks the one with the
    smallest mean (clipped double Q), the mean mixes all. A choice that weighs one below zero makes no distribution.

    Args:
      low, high: the outermost atoms, in units of value (`data.checks.value_bounds` holds them against logged returns);
        they may be traced.
      atoms: K.
    Returns:
      Readout whose target is probabilities [M, B, K]; its metric `critic/clipped` is their mass on the outermost atoms,
      where whatever lies beyond was put.
    Raises:
      ValueError: if atoms < 2.
    Reference: Bellemare et al. 2017, arXiv 1707.06887; of two critics: Seo et al. 2025, arXiv 2505.22642 (FastTD3)
    """
    if atoms < 2:
        raise ValueError(f"atoms is {atoms}; allowed: 2 and more")
    support = low + (high - low) * jnp.arange(atoms, dtype=jnp.float32) / (atoms - 1)
    of = lambda outputs: value.expected_value(outputs, support)

    def target(outputs, reward, discount, choose):
        chex.assert_equal_shape([reward, discount])
        mixed = _mixed(outputs, jax.nn.softmax(outputs), of, choose)
        places = reward[:, None] + discount[:, None] * support
        return jax.vmap(project, in_axes=(0, None, None))(mixed, places, support)

    def loss(outputs, target):
        per_sample, metrics = value.classification(outputs, target)
        mean, outermost = jnp.sum(target * support, -1), target[:, 0] + target[:, -1]
        return per_sample, metrics | {"critic/target": jnp.mean(mean), "critic/clipped": jnp.mean(outermost)}

    return value.Readout(atoms, of, target, loss)


def quantiles(count: int = 51, *, threshold: jax.Array = 1.0) -> value.Readout:
    """K quantiles of the distribution of returns, whose mean is the value, learned by quantile regression (QR-DQN).

    Of several members the choice among their means takes their quantiles; the mean averages quantile by quantile.

    Args:
      count: K.
      threshold: of the Huber loss, in units of value.
    Returns:
      Readout whose target is samples of returns [M, B, K].
    Raises:
      ValueError: if count < 1.
    Reference: Dabney et al. 2017, arXiv 1710.10044
    """
    if count < 1:
        raise ValueError(f"count of quantiles is {count}; allowed: 1 and more")
    of = lambda outputs: jnp.mean(outputs, -1)

    def target(outputs, reward, discount, choose):
        chex.assert_equal_shape([reward, discount])
        mixed = _mixed(outputs, outputs, of, choose)
        return jax.lax.stop_gradient(reward[:, None] + discount[:, None] * mixed)

    def loss(outputs, target):
        per_sample, metrics = quantile_huber(outputs, target, threshold=threshold)
        return per_sample, metrics | {"critic/target": jnp.mean(target)}

    return value.Readout(count, of, target, loss)
