"""One guarded step of gradient descent on all parameters of an algorithm at once, and the mean that it descends."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

from jaxrl_gen.types import PyTree

ADAM = optax.scale_by_adam()


def start(params: PyTree, optimizer: optax.GradientTransformation = ADAM) -> PyTree:
    """The optimiser's state before the first `descend`."""
    return optimizer.init(ravel_pytree(params)[0])


def descend(
    loss: Callable, params: PyTree, opt_state: PyTree, *, lr: jax.Array, optimizer: optax.GradientTransformation = ADAM
) -> tuple[PyTree, PyTree, dict[str, jax.Array]]:
    """Move all parameters one step of `optimizer`, of length `lr`; a gradient that is not finite moves nothing.

    Several losses of different parameters are one sum here, in which `jax.lax.stop_gradient` says who learns from what:
    Adam treats each number by itself, so that is what an optimiser of each part would do. Parameters are one flat
    vector meanwhile, because a dozen small arrays would cost a dozen small kernels at each stage.

    Args:
      loss: `params -> (scalar, metrics)`.
      params: float32 leaves.
      opt_state: what `start` or `descend` returned.
      lr: step size, scalar.
      optimizer: without a step size of its own.
    Returns:
      (params, opt_state, metrics, among them the gradient's norm and whether the update was skipped).
    """
    flat, unravel = ravel_pytree(params)
    grads, metrics = jax.grad(lambda flat: loss(unravel(flat)), has_aux=True)(flat)
    norm = optax.tree.norm(grads)
    ok = jnp.isfinite(norm)
    step, stepped = optimizer.update(grads, opt_state)
    opt_state = jax.tree.map(lambda new, old: jnp.where(ok, new, old), stepped, opt_state)
    flat = jnp.where(ok, flat - lr * step, flat)
    guarded = {"guard/skipped_updates": 1.0 - ok, "guard/grad_norm": norm}
    return unravel(flat), opt_state, metrics | guarded


def valid_mean(per_sample: jax.Array, valid: jax.Array) -> jax.Array:
    """The mean over the samples that are valid, and zero where none is.

    Args:
      per_sample: [B].
      valid: [B] bool.
    """
    return jnp.sum(jnp.where(valid, per_sample, 0.0)) / jnp.maximum(jnp.sum(valid), 1)
