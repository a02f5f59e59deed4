"""Losses of actors that learn through a critic's gradient in the action."""

import chex
import jax
import jax.numpy as jnp


def value_ascent(value: jax.Array, *, scale_free: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The deterministic policy gradient: -Q(s, a) with a = f(s), by a critic whose parameters are constants.

    Where it is scale free it is divided by the batch's mean of |Q|, a constant, so that what is added to it needs no
    weight in units of value.

    Args:
      value: [B], differentiable in the action.
      scale_free: whether to divide.
    Returns:
      loss [B], unreduced; metrics of scalars.
    Raises:
      AssertionError: if the value is not [B].
    Reference: Lillicrap et al. 2016, arXiv 1509.02971, eq. 6; Fujimoto and Gu 2021, arXiv 2106.06860, eq. 5
    """
    chex.assert_rank(value, 1)
    size = jnp.maximum(jnp.mean(jnp.abs(jax.lax.stop_gradient(value))), 1e-6) if scale_free else 1.0
    return -value / size, {"actor/q": jnp.mean(value)}
