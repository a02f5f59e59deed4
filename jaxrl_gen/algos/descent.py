"""One guarded step of gradient descent on all parameters of an algorithm at once, and the mean that it descends."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import optax

from jaxrl_gen.types import PyTree

ADAM = optax.scale_by_adam()


def adamw(weight_decay: jax.Array) -> optax.GradientTransformation:
    """Adam whose parameters also shrink, by the step size times `weight_decay` at each step.

    Reference: Loshchilov and Hutter 2019, arXiv 1711.05101
    """
    return optax.chain(ADAM, optax.add_decayed_weights(weight_decay))


def start(params: PyTree, optimizer: optax.GradientTransformation = ADAM) -> PyTree:
    """The optimiser's state before the first `descend`."""
    return optimizer.init(params)


def descend(
    loss: Callable,
    params: PyTree,
    opt_state: PyTree,
    *,
    lr: jax.Array,
    optimizer: optax.GradientTransformation = ADAM,
    unless: jax.Array = False,
) -> tuple[PyTree, PyTree, dict[str, jax.Array]]:
    """Move all parameters one step of `optimizer`, of length `lr`; a gradient that is not finite moves nothing.

    Several losses of different parameters are one sum here, in which `jax.lax.stop_gradient` says who learns from what:
    Adam treats each number by itself, so that is what an optimiser of each part would do.

    Args:
      loss: `params -> (scalar, metrics)`.
      params: float32 leaves.
      opt_state: what `start` or `descend` returned.
      lr: step size, scalar.
      optimizer: without a step size of its own.
      unless: bool, skip this one too: what it was to follow was skipped.
    Returns:
      (params, opt_state, metrics, among them the gradient's norm and whether the update was skipped).
    """
    grads, metrics = jax.grad(loss, has_aux=True)(params)
    params, opt_state, guarded = step(grads, params, opt_state, lr=lr, optimizer=optimizer, unless=unless)
    return params, opt_state, metrics | guarded


def step(
    grads: PyTree,
    params: PyTree,
    opt_state: PyTree,
    *,
    lr: jax.Array,
    optimizer: optax.GradientTransformation = ADAM,
    unless: jax.Array = False,
) -> tuple[PyTree, PyTree, dict[str, jax.Array]]:
    """As `descend`, along a direction that is the caller's.

    Args:
      grads: as params.
      params, opt_state, lr, optimizer, unless: as of `descend`.
    Returns:
      (params, opt_state, metrics: the direction's norm, and whether the update was skipped).
    """
    norm = optax.tree.norm(grads)
    ok = jnp.isfinite(norm) & ~jnp.asarray(unless)
    moves, stepped = optimizer.update(grads, opt_state, params)
    opt_state = jax.tree.map(lambda new, old: jnp.where(ok, new, old), stepped, opt_state)
    params = jax.tree.map(lambda x, move: jnp.where(ok, x - lr * move, x), params, moves)
    return params, opt_state, {"guard/skipped_updates": 1.0 - ok, "guard/grad_norm": norm}


def shares(rows: PyTree, count: int) -> PyTree:
    """Rows [B, ...] divided into `count` shares, [count, B / count, ...].

    Raises:
      ValueError: if they do not divide.
    """
    (size, *_) = {len(x) for x in jax.tree.leaves(rows)}
    if size % count:
        raise ValueError(f"a batch of {size} windows does not divide into {count} shares, one for each of its updates")
    return jax.tree.map(lambda x: x.reshape(count, size // count, *x.shape[1:]), rows)


def descend_by_shares(
    loss: Callable, params: PyTree, opt_state: PyTree, rows: PyTree, key: jax.Array, **arguments
) -> tuple[PyTree, PyTree, dict[str, jax.Array]]:
    """`descend` on one share of the rows after the other.

    Args:
      loss: `(params, rows, key) -> (scalar, metrics)`.
      params, opt_state: as of `descend`.
      rows: of `shares`.
      key: consumed here.
      arguments: of `descend`.
    Returns:
      (params, opt_state, metrics averaged over shares).
    """
    keys = jax.random.split(key, len(jax.tree.leaves(rows)[0]))

    def one(carry, share):
        *carry, metrics = descend(lambda params: loss(params, *share), *carry, **arguments)
        return tuple(carry), metrics

    (params, opt_state), metrics = jax.lax.scan(one, (params, opt_state), (rows, keys))
    return params, opt_state, jax.tree.map(lambda x: jnp.mean(x, 0), metrics)


def skipped(metrics: dict[str, jax.Array]) -> jax.Array:
    """Whether any of the descents that these metrics are of was skipped."""
    return metrics["guard/skipped_updates"] > 0.0


def together(*metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The metrics of several descents in one update: what was skipped in any of them, and their gradients as one."""
    joined = {name: x for one in metrics for name, x in one.items()}
    of = lambda name: jnp.stack([one[name] for one in metrics])
    guarded = {"guard/skipped_updates": jnp.max(of("guard/skipped_updates"))}
    return joined | guarded | {"guard/grad_norm": jnp.sqrt(jnp.sum(of("guard/grad_norm") ** 2))}


def valid_mean(per_sample: jax.Array, valid: jax.Array) -> jax.Array:
    """The mean over the samples that are valid, and zero where none is.

    Args:
      per_sample: [B].
      valid: [B] bool.
    """
    return jnp.sum(jnp.where(valid, per_sample, 0.0)) / jnp.maximum(jnp.sum(valid), 1)
