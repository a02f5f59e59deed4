"""Targets and advantages from rewards and values. Every function stops the gradient of what it returns.

Trajectories are `[T, ...]`, time first, any further axes. `terminated` zeroes what comes after a step; `ended`
(terminated or truncated) only cuts the recursion, and the cut bootstraps from `next_value`, the value of the state that
physics produced.
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl_gen.types import PyTree, Transition
from jaxrl_gen.types import ended as ends


def td_target(reward: jax.Array, next_value: jax.Array, terminated: jax.Array, *, gamma: jax.Array) -> jax.Array:
    """One-step Bellman target, r + gamma (1 - terminated) V(s').

    Args:
      reward: [B].
      next_value: [B], value of the state physics produced.
      terminated: [B] bool; a truncated step is not terminated.
      gamma: discount per step, scalar or [B].
    Returns:
      target [B], gradient stopped.
    Raises:
      AssertionError: if shapes differ.
    Reference: Sutton and Barto 2018, eq. 6.2
    """
    chex.assert_equal_shape([reward, next_value, terminated])
    chex.assert_is_broadcastable(jnp.shape(gamma), jnp.shape(reward))
    return jax.lax.stop_gradient(reward + gamma * (1.0 - terminated) * next_value)


class Steps(NamedTuple):
    """Windows condensed to one step each: where it began, what it paid, and where to go on from. Leaves `[B, ...]`."""

    obs: PyTree
    action: jax.Array
    reward: jax.Array  # the discounted sum over the window
    next_obs: PyTree  # after its last step
    discount: jax.Array  # gamma^steps, or zero where the episode terminated
    valid: jax.Array  # every row that counts is; the other leaves are zero where one is not
    extras: dict[str, PyTree] = {}  # of the first row
    next_extras: dict[str, PyTree] = {}  # of the last


def n_step(window: Transition, *, gamma: jax.Array) -> Steps:
    """Sum rewards over a window up to the end of its episode, which makes `bootstrapped` targets of m steps.

    reward = sum_{k < m} gamma^k r_k and discount = gamma^m (1 - terminated_{m-1}), where m <= H rows of the episode are
    in the window. Rows after an end belong to another episode, and do not count. What was invalid is zero, not only
    masked, so that no number that is not finite reaches a gradient.

    Args:
      window: Transition, leaves [H, B, ...], consecutive rows; H = 1 gives one-step targets.
      gamma: discount per step, scalar.
    Returns:
      Steps, leaves [B, ...].
    Raises:
      AssertionError: if the window's leaves differ in their leading axes.
    Reference: Sutton and Barto 2018, eq. 7.1
    """
    chex.assert_rank(window.reward, 2)
    chex.assert_equal_shape([window.reward, window.terminated, window.truncated, window.valid])
    chex.assert_tree_shape_prefix((window.obs, window.action, window.next_obs), window.reward.shape)
    over = ends(window)
    counts = jnp.cumsum(over, axis=0) - over == 0  # [H, B] no end before this row
    last = jnp.sum(counts, axis=0) - 1
    first = lambda x: x[0]
    at_last = first if len(over) == 1 else lambda x: jax.vmap(lambda column, i: column[i], in_axes=(1, 0))(x, last)
    gamma = jnp.asarray(gamma, jnp.float32)
    power = gamma ** jnp.arange(len(over))[:, None]
    valid = jnp.all(window.valid | ~counts, axis=0)
    steps = Steps(
        jax.tree.map(first, window.obs), first(window.action), jnp.sum(jnp.where(counts, power * window.reward, 0), 0),
        jax.tree.map(at_last, window.next_obs), gamma ** (last + 1) * (1.0 - at_last(window.terminated)), valid,
        jax.tree.map(first, window.extras), jax.tree.map(at_last, window.extras),
    )  # fmt: skip
    return _zero_where_invalid(steps)


def chunk_step(window: Transition, *, gamma: jax.Array) -> Steps:
    """A window as the one step of a critic that judges chunks: `n_step`, whose action is all H of them, [B, H A].

    Its target, sum_{k < H} gamma^k r_k + gamma^H (1 - terminated_{H-1}) V(s_H, chunk'), is of what a policy of chunks
    does: it does not look in between. A window in which the episode ends before the last row holds no whole chunk of it
    and is invalid.

    Args:
      window: Transition, leaves [H, B, ...], consecutive rows.
      gamma: discount per row, scalar.
    Returns:
      Steps, leaves [B, ...].
    Raises:
      AssertionError: as of `n_step`.
    Reference: Li et al. 2025, arXiv 2507.07969 (Q-chunking)
    """
    steps = n_step(window, gamma=gamma)
    whole = ~jnp.any(ends(window)[:-1], axis=0)
    action = jnp.moveaxis(window.action, 0, 1)
    return _zero_where_invalid(steps._replace(action=action.reshape(len(action), -1), valid=steps.valid & whole))


def _zero_where_invalid(steps: Steps) -> Steps:
    """So that no number that is not finite reaches a gradient."""
    valid = steps.valid
    zeroed = lambda x: jnp.where(valid.reshape(valid.shape + (1,) * (x.ndim - 1)), x, jnp.zeros_like(x))
    return jax.tree.map(zeroed, steps)


def bootstrapped(steps: Steps, next_value: jax.Array) -> jax.Array:
    """Bellman target of condensed windows, reward + discount V(next_obs).

    Args:
      steps: what `n_step` returned.
      next_value: [B], value of `steps.next_obs`.
    Returns:
      target [B], gradient stopped.
    Raises:
      AssertionError: if shapes differ.
    Reference: Sutton and Barto 2018, eq. 7.1
    """
    chex.assert_equal_shape([steps.reward, steps.discount, next_value])
    return jax.lax.stop_gradient(steps.reward + steps.discount * next_value)


def gae(
    reward: jax.Array,
    value: jax.Array,
    next_value: jax.Array,
    terminated: jax.Array,
    ended: jax.Array,
    *,
    gamma: jax.Array,
    lam: jax.Array,
    valid: jax.Array | None = None,
) -> jax.Array:
    """Generalised advantage estimation: A_t = delta_t + gamma lambda (1 - ended_t) A_{t+1}.

    delta_t = r_t + gamma (1 - terminated_t) V(s'_t) - V(s_t).

    Args:
      reward: [T, ...].
      value: [T, ...], V(s_t).
      next_value: [T, ...], V of the state physics produced after step t.
      terminated: [T, ...] bool.
      ended: [T, ...] bool, terminated or truncated.
      gamma: discount per step, scalar.
      lam: lambda in [0, 1], scalar; 0 is the TD error, 1 the discounted return minus the value.
      valid: [T, ...] bool; an invalid row has advantage zero and contributes nothing to earlier rows.
    Returns:
      advantage [T, ...], gradient stopped; the value target is `advantage + value`.
    Raises:
      AssertionError: if shapes differ.
    Reference: Schulman et al. 2016, arXiv 1506.02438, eq. 16
    """
    chex.assert_equal_shape([reward, value, next_value, terminated, ended] + ([] if valid is None else [valid]))
    delta = td_target(reward, next_value, terminated, gamma=gamma) - value
    decay = gamma * lam * (1.0 - ended)
    if valid is not None:
        delta, decay = jnp.where(valid, delta, 0.0), jnp.where(valid, decay, 0.0)
    return jax.lax.stop_gradient(_discounted_sum(delta, decay))


def lambda_returns(
    reward: jax.Array,
    next_value: jax.Array,
    terminated: jax.Array,
    ended: jax.Array,
    *,
    gamma: jax.Array,
    lam: jax.Array,
) -> jax.Array:
    """TD(lambda) returns: G_t = r_t + gamma (1 - terminated_t) [(1 - lambda_t) V(s'_t) + lambda_t G_{t+1}].

    lambda_t is `lam` inside an episode and 0 at its end and at the last row, where only V(s'_t) is known.

    Args:
      reward, next_value: [T, ...].
      terminated, ended: [T, ...] bool.
      gamma: discount per step, scalar.
      lam: in [0, 1], scalar; 0 gives `td_target`.
    Returns:
      return [T, ...], gradient stopped.
    Raises:
      AssertionError: if shapes differ.
    Reference: Sutton and Barto 2018, eq. 12.18
    """
    chex.assert_equal_shape([reward, next_value, terminated, ended])
    cut = jnp.asarray(ended).at[-1].set(True)
    lam = lam * (1.0 - cut)
    discount = gamma * (1.0 - terminated)
    return jax.lax.stop_gradient(_discounted_sum(reward + discount * (1.0 - lam) * next_value, discount * lam))


def n_step_returns(
    reward: jax.Array,
    next_value: jax.Array,
    terminated: jax.Array,
    ended: jax.Array,
    *,
    gamma: jax.Array,
    n: int,
) -> jax.Array:
    """n-step returns that never cross the end of an episode or of the trajectory.

    G_t = sum_{k<m} gamma^k r_{t+k} + gamma^m (1 - terminated_{t+m-1}) V(s'_{t+m-1}), where m <= n is the distance to
    the first of: n steps, the end of the episode, the last row.

    Args:
      reward, next_value: [T, ...].
      terminated, ended: [T, ...] bool.
      gamma: discount per step, scalar.
      n: number of rewards to sum, static, at least 1.
    Returns:
      return [T, ...], gradient stopped.
    Raises:
      AssertionError: if shapes differ.
      ValueError: if n < 1.
    Reference: Sutton and Barto 2018, eq. 7.1
    """
    chex.assert_equal_shape([reward, next_value, terminated, ended])
    if n < 1:
        raise ValueError(f"n is {n}; allowed: 1 and more")
    one_step = td_target(reward, next_value, terminated, gamma=gamma)

    def look_further(_, returns):
        longer = reward[:-1] + gamma * returns[1:]
        return jnp.concatenate([jnp.where(ended[:-1], one_step[:-1], longer), one_step[-1:]])

    # One step is known; each pass looks one step further, and further than the trajectory there is nothing to see.
    return jax.lax.stop_gradient(jax.lax.fori_loop(1, min(n, reward.shape[0]), look_further, one_step))


def vtrace(
    reward: jax.Array,
    value: jax.Array,
    next_value: jax.Array,
    terminated: jax.Array,
    ended: jax.Array,
    log_ratio: jax.Array,
    *,
    gamma: jax.Array,
    lam: jax.Array = 1.0,
    rho_clip: jax.Array = 1.0,
    c_clip: jax.Array = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """V-trace value targets and policy-gradient advantages, off-policy corrected by clipped importance ratios.

    v_t = V_t + rho_t delta_t + gamma (1 - ended_t) c_t (v_{t+1} - V_{t+1}), with rho_t = min(rho_clip, ratio_t) and
    c_t = lambda min(c_clip, ratio_t), delta_t as in `gae`. The advantage is rho_t (r_t + gamma v_{t+1} - V_t); where an
    episode or the trajectory ends, V(s'_t) stands for v_{t+1}.

    Args:
      reward, value, next_value: [T, ...].
      terminated, ended: [T, ...] bool.
      log_ratio: [T, ...], log pi(a|s) - log mu(a|s).
      gamma, lam, rho_clip, c_clip: scalars.
    Returns:
      (target [T, ...], advantage [T, ...]), gradients stopped.
    Raises:
      AssertionError: if shapes differ.
    Reference: Espeholt et al. 2018, arXiv 1802.01561, eq. 1 and section 4.2
    """
    chex.assert_equal_shape([reward, value, next_value, terminated, ended, log_ratio])
    ratio = jnp.exp(log_ratio)
    rho, c = jnp.minimum(rho_clip, ratio), lam * jnp.minimum(c_clip, ratio)
    delta = rho * (td_target(reward, next_value, terminated, gamma=gamma) - value)
    target = value + _discounted_sum(delta, gamma * c * (1.0 - ended))
    following = jnp.concatenate([target[1:], next_value[-1:]])
    following = jnp.where(ended, next_value, following)
    advantage = rho * (td_target(reward, following, terminated, gamma=gamma) - value)
    return jax.lax.stop_gradient(target), jax.lax.stop_gradient(advantage)


def _discounted_sum(x: jax.Array, decay: jax.Array) -> jax.Array:
    """y_t = x_t + decay_t y_{t+1}, from the back; y is zero after the last row."""

    def backward(following, row):
        x, decay = row
        following = x + decay * following
        return following, following

    return jax.lax.scan(backward, jnp.zeros_like(x[0]), (x, decay), reverse=True, unroll=8)[1]
