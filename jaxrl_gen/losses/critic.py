"""What is added to the loss of critics, so that they err on the side that does no harm, or keep their capacity.

Axis letters: B batch, N ensemble members, M sampled actions, A action, D features.
"""

import chex
import jax
import jax.numpy as jnp


def conservative(
    value: jax.Array, sampled: jax.Array, log_density: jax.Array, *, temperature: jax.Array = 1.0
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Conservative Q-learning: push up what the data did, push down what it might have done instead.

    sum_i [ tau log mean_m exp((Q_i(s, a_m) - tau log mu(a_m)) / tau) - Q_i(s, a) ], where mu is what a_m was drawn
    from: an estimate by importance sampling of tau log of the integral of exp(Q / tau) over all actions.

    Args:
      value: [N, B], of the data's actions.
      sampled: [N, B, M], of the sampled ones.
      log_density: [B, M], log mu of each, in nats.
      temperature: tau, scalar above 0, in units of value.
    Returns:
      loss [B], unreduced, in units of value; metrics of scalars.
    Raises:
      AssertionError: if shapes do not fit.
    Reference: Kumar et al. 2020, arXiv 2006.04779, eq. 4 and appendix F
    """
    chex.assert_rank([value, sampled, log_density, temperature], [2, 3, 2, 0])
    chex.assert_equal_shape_prefix([value, sampled], 2)
    chex.assert_equal_shape([sampled[0], log_density])
    logits = sampled / temperature - jax.lax.stop_gradient(log_density)
    soft_maximum = temperature * (jax.nn.logsumexp(logits, -1) - jnp.log(logits.shape[-1]))
    gap = soft_maximum - value
    return jnp.sum(gap, 0), {"critic/conservative_gap": jnp.mean(gap)}


def calibrated(sampled: jax.Array, floor: jax.Array) -> jax.Array:
    """Values of sampled actions that are pushed down no further than what a policy is known to get.

    max(Q_i(s, a_m), floor(s)): below the floor there is no gradient.

    Args:
      sampled: [N, B, M].
      floor: [B], a constant, such as the return of the data from there on.
    Returns:
      values [N, B, M].
    Raises:
      AssertionError: if shapes do not fit.
    Reference: Nakamoto et al. 2023, arXiv 2303.05479, eq. 4.1
    """
    chex.assert_rank([sampled, floor], [3, 1])
    chex.assert_axis_dimension(sampled, 1, floor.shape[0])
    return jnp.maximum(sampled, jax.lax.stop_gradient(floor)[None, :, None])


def diversity(gradients: jax.Array, *, smallest: float = 1e-6) -> tuple[jax.Array, dict[str, jax.Array]]:
    """How alike the members of an ensemble slope: the cosine between two gradients, summed over pairs, / (N - 1).

    1 / (N - 1) sum_{i != j} cos(grad_a Q_i, grad_a Q_j). Where they all slope the same way, actions beyond the data
    look as good to all of them, and their minimum says nothing.

    Args:
      gradients: [N, B, A], of each member's value in the action.
      smallest: norm below which a gradient counts as shorter than a unit vector.
    Returns:
      loss [B], unreduced, at most N; metrics of scalars.
    Raises:
      AssertionError: if gradients are not [N, B, A].
      ValueError: if there is one member.
    Reference: An et al. 2021, arXiv 2110.01548, eq. 5
    """
    chex.assert_rank(gradients, 3)
    members = len(gradients)
    if members < 2:
        raise ValueError(f"the ensemble has {members} member; allowed: 2 and more, as it is to be diverse")
    # Squared norms are kept from zero before the root, whose slope there is infinite.
    norm = jnp.sqrt(jnp.maximum(jnp.sum(gradients**2, -1, keepdims=True), smallest**2))
    unit = gradients / norm
    # The sum over all pairs is the squared length of the sum; what is left out are the members with themselves.
    alike = jnp.sum(jnp.sum(unit, 0) ** 2, -1) - jnp.sum(unit**2, (0, -1))
    loss = alike / (members - 1)
    return loss, {"critic/alike": jnp.mean(alike) / (members * (members - 1))}


def rank_bound(
    features: jax.Array, next_features: jax.Array, reward: jax.Array, last: jax.Array, *, gamma: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """How much more alike successive features are than Bellman's equation allows: relu(cos(f, f') - bound).

    With Q = <w, f>, Bellman's equation w (f - gamma f') = r asks for |f - gamma f'|^2 >= r^2 / |w|^2, which bounds the
    cosine: (|f|^2 + gamma^2 |f'|^2 - r^2 / |w|^2) / (2 gamma |f| |f'|). What is below it is left alone, so that the
    rank of features adapts.

    Args:
      features: [B, D], f(s, a), differentiable.
      next_features: [B, D], f(s', a') of the target, a constant.
      reward: [B].
      last: [D], the weights w of the value in the features, a constant.
      gamma: discount from f to f', scalar above 0 or [B].
    Returns:
      loss [B], unreduced; metrics of scalars.
    Raises:
      AssertionError: if shapes do not fit.
    Reference: He et al. 2024, arXiv 2404.12754, eq. 8. Different from its release, which mixes the features of both
      networks in the bound: all that is of s' is the target's here.
    """
    chex.assert_rank([features, next_features, reward, last], [2, 2, 1, 1])
    chex.assert_equal_shape([features, next_features])
    chex.assert_equal_shape_prefix([features, reward], 1)
    chex.assert_axis_dimension(features, 1, last.shape[0])
    chex.assert_is_broadcastable(jnp.shape(gamma), reward.shape)
    constant = jax.lax.stop_gradient
    next_features, last = constant(next_features), constant(last)
    squared = lambda x: jnp.sum(x**2, -1) + 1e-8  # features that are all zero have no direction
    norms = jnp.sqrt(squared(features) * squared(next_features))
    cosine = jnp.sum(features * next_features, -1) / norms
    bound = squared(features) + gamma**2 * squared(next_features) - reward**2 / squared(last)
    bound = constant(bound / (2.0 * gamma * norms))
    loss = jnp.maximum(cosine - bound, 0.0)
    return loss, {"critic/cosine": jnp.mean(cosine), "critic/above_bound": jnp.mean(cosine > bound)}


def effective_rank(features: jax.Array, *, share: float = 0.99) -> jax.Array:
    """How many singular values of a batch of features hold `share` of their sum: i32 scalar, between 1 and D.

    Args:
      features: [B, D].
      share: in (0, 1).
    Raises:
      AssertionError: if features are not [B, D].
    Reference: Kumar et al. 2021, arXiv 2010.14498, section 3
    """
    chex.assert_rank(features, 2)
    values = jnp.linalg.svd(features, compute_uv=False)
    held = jnp.cumsum(values) / jnp.maximum(jnp.sum(values), 1e-12)
    return jnp.minimum(jnp.sum(held < share) + 1, values.shape[-1]).astype(jnp.int32)  # features may all be zero
