"""Actions as tokens, from coarse to fine, and soft values that are a sum over tokens chosen one after the other.

Level 0 cuts [-1, 1] into K bins for each coordinate of an action, and each level after it the bin chosen before: after
L levels there are K^L cells. The places of an action's L x A tokens are counted level by level:
p = level A + coordinate.

With temperature alpha, Q(s, a) = V(s) + sum_p A_p, where exp(A_p / alpha) sums to one over the K tokens at each place,
given those before it. So the policy exp(Q / alpha) needs no normalisation: it is the product of these conditionals, and
V is its soft value, without a maximum or a sum over actions.

Axis letters: B batch, L levels, A coordinates of the action, K bins, N members, C features of a context.

Reference: Liu et al. 2025, arXiv 2502.00288; Seo et al. 2024, arXiv 2407.07787 (coarse to fine)
"""

import chex
import jax
import jax.numpy as jnp

MOST_CELLS = 2**20  # beyond which float32 cannot tell a cell's centre from its edge


def _powers(levels: int, bins: int) -> jax.Array:
    """How many of the finest cells a bin of each level holds, [L, 1]."""
    return jnp.array([bins ** (levels - 1 - level) for level in range(levels)], jnp.int32)[:, None]


def encode(action: jax.Array, *, levels: int, bins: int) -> jax.Array:
    """The tokens of continuous actions: the digits, in base K, of the cell that each coordinate lies in.

    Args:
      action: [..., A], clipped to [-1, 1].
      levels: L, at least 1.
      bins: K, at least 2; at most 2^20 cells K^L.
    Returns:
      tokens i32 [..., L, A]; of a coordinate that is NaN they are K, which no bin is.
    Raises:
      ValueError: if there are too few levels or bins, or too many cells.
    """
    if levels < 1 or bins < 2 or bins**levels > MOST_CELLS:
        raise ValueError(
            f"{levels} levels of {bins} bins; allowed: levels from 1, bins from 2, and {MOST_CELLS} cells in all"
        )
    cells = bins**levels
    cell = jnp.clip(jnp.floor((action + 1.0) * (0.5 * cells)), 0, cells - 1)
    lost = jnp.isnan(cell)[..., None, :]
    cell = jnp.nan_to_num(cell).astype(jnp.int32)[..., None, :]
    return jnp.where(lost, bins, cell // _powers(levels, bins) % bins)


def decode(tokens: jax.Array, *, bins: int) -> jax.Array:
    """The centres of the cells that tokens name, exact to half a cell's width K^-L as the inverse of `encode`.

    Args:
      tokens: i32 [..., L, A]; without a level there is one cell, whose centre is zero.
      bins: K.
    Returns:
      action [..., A] in (-1, 1).
    """
    levels = tokens.shape[-2]
    cell = jnp.sum(tokens * _powers(levels, bins), -2)
    return (2.0 * cell + 1.0) / bins**levels - 1.0


def _context(tokens, place, bins, *, sees_earlier):
    levels, size = tokens.shape[-2:]
    level, coordinate = place // size, place % size
    centres = jnp.stack([decode(tokens[..., :coarser, :], bins=bins) for coarser in range(levels)], -2)
    centre = jnp.take(centres, level, axis=-2)
    earlier = (jnp.arange(size) < coordinate) & sees_earlier
    chosen = jax.nn.one_hot(jnp.take(tokens, level, axis=-2), bins) * earlier[:, None]
    here = jnp.broadcast_to(jax.nn.one_hot(place, levels * size), (*centre.shape[:-1], levels * size))
    return jnp.concatenate([centre, chosen.reshape(*centre.shape[:-1], -1), here], -1)


def sequential(tokens: jax.Array, place: jax.Array, *, bins: int) -> jax.Array:
    """What the choice at a place may know: the bins chosen at the level before, the tokens before it, and the place.

    Tokens at the place and after it change nothing.

    Args:
      tokens: i32 [..., L, A].
      place: p, scalar.
      bins: K.
    Returns:
      context [..., C]: A centres, A x K bits of the level's tokens before the place, and L x A bits of the place.
    """
    return _context(tokens, place, bins, sees_earlier=True)


def factorised(tokens: jax.Array, place: jax.Array, *, bins: int) -> jax.Array:
    """As `sequential` without the tokens of the same level: its coordinates are chosen independently of one another."""
    return _context(tokens, place, bins, sees_earlier=False)


def soft_advantages(logits: jax.Array, *, temperature: jax.Array) -> jax.Array:
    """Advantages of the tokens at a place, A = x - alpha logsumexp(x / alpha): exp(A / alpha) sums to one.

    Args:
      logits: [..., K], x, in units of value.
      temperature: alpha, scalar above 0, units of value per nat.
    Returns:
      advantages [..., K], none above 0.
    Raises:
      AssertionError: if the temperature is no scalar.
    Reference: Haarnoja et al. 2017, arXiv 1702.08165, eq. 4; Liu et al. 2025, arXiv 2502.00288
    """
    chex.assert_rank(temperature, 0)
    return temperature * jax.nn.log_softmax(logits / temperature)


def _of(advantages: jax.Array, tokens: jax.Array) -> jax.Array:
    """The advantages [B, L, A] of tokens; NaN where a token is none of the K."""
    chex.assert_rank([advantages, tokens], [4, 3])
    chex.assert_equal_shape_prefix([advantages, tokens], 3)
    return jnp.take_along_axis(advantages, tokens[..., None], -1, mode="fill", fill_value=jnp.nan)[..., 0]


def joint_advantage(advantages: jax.Array, tokens: jax.Array) -> jax.Array:
    """The advantage of whole actions, sum_p A_p: alpha log pi(a|s), over cells.

    Args:
      advantages: [B, L, A, K], of all tokens at each place, given those before it.
      tokens: i32 [B, L, A].
    Returns:
      advantage [B].
    Raises:
      AssertionError: if shapes differ.
    Reference: Liu et al. 2025, arXiv 2502.00288
    """
    return jnp.sum(_of(advantages, tokens), (1, 2))


def soft_q_loss(values: jax.Array, advantage: jax.Array, target: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Half the squared error of Q = V + A, summed over members that share the advantage: sum_n (V_n + A - y)^2 / 2.

    Args:
      values: [N, B].
      advantage: [B].
      target: [B], y, a constant.
    Returns:
      loss [B], unreduced; metrics of scalars, averaged over members.
    Raises:
      AssertionError: if shapes do not fit.
    Reference: Liu et al. 2025, arXiv 2502.00288
    """
    chex.assert_equal_shape([advantage, target])
    chex.assert_rank([values, target], [2, 1])
    chex.assert_equal_shape_suffix([values, target], 1)
    error = 0.5 * (values + advantage - jax.lax.stop_gradient(target)) ** 2
    metrics = {"critic/loss": jnp.mean(error), "critic/value": jnp.mean(values), "critic/target": jnp.mean(target)}
    return jnp.sum(error, 0), metrics | {"critic/advantage": jnp.mean(advantage)}


def demonstration_margin(
    advantages: jax.Array, tokens: jax.Array, *, margin: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """How far tokens of a demonstration are from beating all others by a margin m.

    sum_p mean_b max(0, A_p[b] - A_p[u_p] + m [b != u_p]), which is zero where each does.

    Args:
      advantages: [B, L, A, K].
      tokens: i32 [B, L, A], u, of the demonstration.
      margin: m, scalar, in units of value.
    Returns:
      loss [B], unreduced; metrics of scalars.
    Raises:
      AssertionError: if shapes differ.
    Reference: Hester et al. 2018, arXiv 1704.03732, eq. 3; Liu et al. 2025, arXiv 2502.00288
    """
    chex.assert_rank(margin, 0)
    shown = _of(advantages, tokens)[..., None]
    others = jnp.arange(advantages.shape[-1]) != tokens[..., None]
    hinge = jnp.where(others, jnp.maximum(advantages - shown + margin, 0.0), 0.0)
    loss = jnp.sum(jnp.mean(hinge, -1), (1, 2))
    return loss, {"actor/margin_loss": jnp.mean(loss), "actor/beaten": jnp.mean(jnp.all(hinge == 0, -1))}
