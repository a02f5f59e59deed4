"""Values as the dual of a policy improvement whose distribution stays near the data's, and gradients free of conflict.

The ratio w(s, a) >= 0 of the improved distribution to the data's pays f(w) = (w - 1)^2. In the dual, a value V(s) is
learned by the convex conjugate f* of residuals u = r + discount V(s') - V(s), and w is the derivative of f* at u.

Reference: Mao et al. 2024, arXiv 2402.00348; Nachum and Dai 2020, arXiv 2001.01866 (the duality)
"""

import chex
import jax
import jax.numpy as jnp

from jaxrl_gen.types import PyTree

GUARD = 1e-10  # added to a squared length before it divides


def residual(reward: jax.Array, discount: jax.Array, value: jax.Array, next_value: jax.Array) -> jax.Array:
    """How much better a step was than its state promised, u = r + discount V(s') - V(s).

    Args:
      reward: [B].
      discount: [B], zero where the episode terminated.
      value: [B], V(s).
      next_value: [B], V(s').
    Returns:
      residual [B], differentiable in both values: who calls says which of them is a constant.
    Raises:
      AssertionError: if shapes differ.
    Reference: Mao et al. 2024, arXiv 2402.00348
    """
    chex.assert_equal_shape([reward, discount, value, next_value])
    return reward + discount * next_value - value


def pearson_conjugate(residual: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The convex conjugate of f(w) = (w - 1)^2 on w >= 0: f*(u) = max_{w >= 0} [u w - f(w)] = max(1 + u/2, 0)^2 - 1.

    Its derivative is the ratio that attains the maximum, w = max(1 + u/2, 0): a residual below -2 asks for none of the
    step at all.

    Args:
      residual: [B], u.
    Returns:
      loss [B], unreduced; metrics of scalars.
    Raises:
      AssertionError: if the residual is not [B].
    Reference: Mao et al. 2024, arXiv 2402.00348; Borwein and Lewis 2006, "Convex Analysis and Nonlinear
      Optimization", section 3.3
    """
    chex.assert_rank(residual, 1)
    ratio = jnp.maximum(1.0 + 0.5 * residual, 0.0)
    return ratio**2 - 1.0, {"value/residual": jnp.mean(residual), "value/ratio": jnp.mean(ratio)}


def residual_weighted(
    log_prob: jax.Array, residual: jax.Array, *, largest: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cloning of the steps that were better than promised: -min(max(u, 0), largest) log pi(a|s).

    Args:
      log_prob: [B], of the actions in the data, in nats.
      residual: [B], u, a constant, in units of value.
      largest: weight, scalar above 0.
    Returns:
      loss [B], unreduced; metrics of scalars.
    Raises:
      AssertionError: if shapes differ.
    Reference: Mao et al. 2024, arXiv 2402.00348 (the weight is that of the authors' release)
    """
    chex.assert_equal_shape([log_prob, residual])
    chex.assert_rank(largest, 0)
    weight = jnp.clip(jax.lax.stop_gradient(residual), 0.0, largest)
    metrics = {"actor/log_prob": jnp.mean(log_prob), "actor/weight": jnp.mean(weight)}
    return -weight * log_prob, metrics | {"actor/cloned": jnp.mean(weight > 0)}


def _dot(one: PyTree, two: PyTree) -> jax.Array:
    """The inner product of two pytrees, each as one vector; by a sum, which no accelerator rounds as a product."""
    products = jax.tree.map(lambda x, y: jnp.sum(x.astype(jnp.float32) * y.astype(jnp.float32)), one, two)
    return sum(jax.tree.leaves(products), jnp.zeros((), jnp.float32))


def _assert_alike(one: PyTree, two: PyTree) -> None:
    chex.assert_trees_all_equal_structs(one, two)
    chex.assert_trees_all_equal_shapes(one, two)


def project_orthogonal(gradient: PyTree, reference: PyTree) -> PyTree:
    """The part of a gradient at right angles to another: g - <g, h> / (<h, h> + 1e-10) h.

    Args:
      gradient: g, a pytree, which counts as one vector.
      reference: h, a pytree of the same shapes.
    Returns:
      A pytree of the same shapes; g as it is where h is zero.
    Raises:
      AssertionError: if the pytrees differ in structure or shapes.
    Reference: Mao et al. 2024, arXiv 2402.00348; Yu et al. 2020, arXiv 2001.06782, section 2.3
    """
    _assert_alike(gradient, reference)
    share = _dot(gradient, reference) / (_dot(reference, reference) + GUARD)
    return jax.tree.map(lambda g, h: g - share * h, gradient, reference)


def cosine(one: PyTree, two: PyTree) -> jax.Array:
    """The cosine of the angle between two pytrees as vectors; zero where either is.

    Args:
      one, two: pytrees of the same shapes.
    Returns:
      cosine, scalar in [-1, 1] but for rounding.
    Raises:
      AssertionError: if the pytrees differ in structure or shapes.
    """
    _assert_alike(one, two)
    # Roots first: the product of two squared lengths leaves the range of float32 long before either does.
    lengths = jnp.sqrt(_dot(one, one)) * jnp.sqrt(_dot(two, two))
    return jnp.where(lengths > 0, _dot(one, two) / jnp.where(lengths > 0, lengths, 1.0), 0.0)


def orthogonal(forward: PyTree, backward: PyTree) -> PyTree:
    """The direction of orthogonal-gradient updates: of what V(s') would learn, only what V(s) does not contradict.

    Args:
      forward: gradient of the conjugate of the residuals through V(s).
      backward: through V(s'), of the same shapes.
    Returns:
      forward + project_orthogonal(backward, forward).
    Reference: Mao et al. 2024, arXiv 2402.00348
    """
    return jax.tree.map(jnp.add, forward, project_orthogonal(backward, forward))


def semi_gradient(forward: PyTree, backward: PyTree) -> PyTree:
    """The direction of temporal differences: V(s') is a constant. Arguments as of `orthogonal`.

    Reference: Mao et al. 2024, arXiv 2402.00348; Kostrikov et al. 2021, arXiv 2110.06169
    """
    _assert_alike(forward, backward)
    return forward


def true_gradient(forward: PyTree, backward: PyTree) -> PyTree:
    """The direction of the dual as it stands: the sum of both gradients. Arguments as of `orthogonal`.

    Reference: Mao et al. 2024, arXiv 2402.00348; Baird 1995, "Residual algorithms"
    """
    _assert_alike(forward, backward)
    return jax.tree.map(jnp.add, forward, backward)
