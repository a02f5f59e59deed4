"""Latent actions: codebooks and their health, models that infer an action and models that undo it, masked images.

An inverse model reads two frames and gives a latent; a codebook replaces it by its nearest code; a forward model
predicts the second frame from the first and the code. Whatever the first frame does not tell must pass through the
code, and that is, one hopes, the action.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxrl_gen.types import PyTree


def straight_through(latent: jax.Array, code: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """The code, with the gradient of the latent: z + sg(c - z).

    Args:
      latent: [B, ..., D], what the encoder said.
      code: [B, ..., D], the code it became; its own gradient is stopped.
      key: not used; it is there for what takes this function's place.
    Returns:
      [B, ..., D], equal to the code.
    Raises:
      AssertionError: if shapes differ.
    Reference: van den Oord et al. 2017, arXiv 1711.00937, section 3.2
    """
    del key
    chex.assert_equal_shape([latent, code])
    return latent + jax.lax.stop_gradient(code - latent)


def noise_substitution(latent: jax.Array, code: jax.Array, key: jax.Array) -> jax.Array:
    """The latent moved as far as its code is away, but in a random direction: z + |z - c| n / |n|.

    In the place of `straight_through` it needs no codebook and no commitment loss: the gradient of the distance pulls
    code and latent together.

    Args:
      latent, code: [B, ..., D].
      key: consumed here; None gives the code itself.
    Returns:
      [B, ..., D], as far from the latent as the code is.
    Raises:
      AssertionError: if shapes differ.
    Reference: Vali and Backstrom 2022, "NSVQ: Noise Substitution in Vector Quantization", IEEE Access 10
    """
    chex.assert_equal_shape([latent, code])
    if key is None:
        return code
    distance = jnp.sqrt(jnp.sum((latent - code) ** 2, -1, keepdims=True) + 1e-12)
    noise = jax.random.normal(key, latent.shape, latent.dtype)
    return latent + distance * noise / jnp.linalg.norm(noise, axis=-1, keepdims=True)


def codebook_loss(latent: jax.Array, code: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """How far codes are from the latents that chose them, mean (sg(z) - c)^2; only the codes move.

    Args:
      latent: [B, ..., D], a constant.
      code: [B, ..., D].
    Returns:
      loss [B], unreduced, a mean over all axes but the first; metrics of scalars.
    Raises:
      AssertionError: if shapes differ.
    Reference: van den Oord et al. 2017, arXiv 1711.00937, eq. 3, second term
    """
    loss = _squared_error(code, jax.lax.stop_gradient(latent))
    return loss, {"codebook/error": jnp.mean(loss)}


def commitment(latent: jax.Array, code: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """How far latents are from the codes they chose, mean (z - sg(c))^2; only the encoder moves.

    Args:
      latent: [B, ..., D].
      code: [B, ..., D], a constant.
    Returns:
      loss [B], unreduced, a mean over all axes but the first; metrics of scalars.
    Raises:
      AssertionError: if shapes differ.
    Reference: van den Oord et al. 2017, arXiv 1711.00937, eq. 3, third term
    """
    loss = _squared_error(latent, jax.lax.stop_gradient(code))
    return loss, {"codebook/commitment": jnp.mean(loss)}


def perplexity(usage: jax.Array) -> jax.Array:
    """How many codes are in use, exp(-sum_k p_k log p_k) with p = usage / sum(usage): 1 if one, K if all alike.

    Args:
      usage: [..., K], counts or shares of the codes, not negative; nothing counted at all says 1.
    Returns:
      [...].
    Reference: van den Oord et al. 2017, arXiv 1711.00937, section 4
    """
    share = usage / jnp.maximum(jnp.sum(usage, -1, keepdims=True), jnp.finfo(jnp.float32).tiny)
    return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(share, share), -1))


def codebook_health(usage: jax.Array, *, least: jax.Array = 0.1, fewest: jax.Array = 1.5) -> dict[str, jax.Array]:
    """Metrics that tell a codebook in use from a dead one.

    Args:
      usage: [K], counts or shares of the codes.
      least: a code used less than this part of the average is dead.
      fewest: a codebook of K > 1 codes whose perplexity is lower has collapsed.
    Returns:
      `codebook/perplexity`; `codebook/dead`, a share of the codes; and `codebook/collapsed`, 0 or 1.
    Raises:
      AssertionError: if usage is not [K].
    """
    chex.assert_rank(usage, 1)
    in_use, codes = perplexity(usage), usage.shape[0]
    dead = jnp.mean(usage * codes < least * jnp.sum(usage), dtype=jnp.float32)
    collapsed = (in_use < fewest).astype(jnp.float32) if codes > 1 else jnp.zeros(())
    return {"codebook/perplexity": in_use, "codebook/dead": dead, "codebook/collapsed": collapsed}


def forward_model(
    predict: Callable, features: PyTree, code: jax.Array, target: PyTree
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean squared error of what comes next, predicted from what was before and a code: |f(sg(h), c) - x'|^2.

    The features are constants here. Otherwise the encoder could serve the prediction by what it writes into them about
    the frame, and would have less need of the code.

    Args:
      predict: (features, code) -> like `target`.
      features: of the previous frame, any pytree [B, ...]; a constant.
      code: [B, ...], whose gradient the inverse model learns from.
      target: the next frame, or its features; any pytree [B, ...], a constant.
    Returns:
      loss [B], unreduced, a mean over all numbers of a sample; metrics of scalars.
    Raises:
      AssertionError: if the prediction is not shaped as the target.
    Reference: Ye et al. 2024, arXiv 2410.11758, section 3.1
    """
    prediction, target = predict(jax.lax.stop_gradient(features), code), jax.lax.stop_gradient(target)
    chex.assert_trees_all_equal_structs(prediction, target)
    chex.assert_trees_all_equal_shapes(prediction, target)
    errors = jax.tree.leaves(jax.tree.map(_squared_error, prediction, target))
    sizes = [leaf[0].size for leaf in jax.tree.leaves(target)]
    loss = sum(error * size for error, size in zip(errors, sizes)) / sum(sizes)
    return loss, {"forward/error": jnp.mean(loss)}


def inverse_model(logits: jax.Array, action: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cross-entropy of the action between two frames, -log p(a | x, x').

    Args:
      logits: [B, A], of a model that saw both frames.
      action: [B] of ints in 0..A-1, true or latent.
    Returns:
      loss [B], unreduced; metrics of scalars.
    Raises:
      AssertionError: if shapes do not match, or the action is no integer.
    Reference: Baker et al. 2022, arXiv 2206.11795, section 3
    """
    chex.assert_rank([logits, action], [2, 1])
    chex.assert_equal_shape_prefix([logits, action], 1)
    chex.assert_type(action, int)
    loss = -jnp.take_along_axis(jax.nn.log_softmax(logits), action[:, None], axis=-1)[:, 0]
    return loss, {"inverse/loss": jnp.mean(loss), "inverse/accuracy": jnp.mean(jnp.argmax(logits, -1) == action)}


def masked_reconstruction(
    prediction: jax.Array, target: jax.Array, hidden: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Mean squared error of the patches that were hidden from the encoder; those it saw do not count.

    Args:
      prediction: [B, P, D], one vector for each patch.
      target: [B, P, D], a constant.
      hidden: [B, P] bool; a sample of which nothing was hidden has no loss.
    Returns:
      loss [B], unreduced, a mean over hidden patches and D; metrics of scalars.
    Raises:
      AssertionError: if shapes do not match.
    Reference: He et al. 2021, arXiv 2111.06377, section 3
    """
    chex.assert_rank([prediction, hidden], [3, 2])
    chex.assert_equal_shape([prediction, target])
    chex.assert_equal_shape_prefix([prediction, hidden], 2)
    error = jnp.mean((prediction - jax.lax.stop_gradient(target)) ** 2, -1)
    loss = jnp.sum(jnp.where(hidden, error, 0.0), -1) / jnp.maximum(jnp.sum(hidden, -1), 1)
    return loss, {"masked/error": jnp.mean(loss), "masked/share": jnp.mean(hidden, dtype=jnp.float32)}


def _squared_error(prediction: jax.Array, target: jax.Array) -> jax.Array:
    """The mean over all axes but the first, [B]."""
    chex.assert_equal_shape([prediction, target])
    return jnp.mean((prediction - target) ** 2, range(1, prediction.ndim))
