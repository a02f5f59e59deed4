"""Learning values: by regression, by expectiles, by classification into bins, and what an ensemble makes of them.

Axis letters: B batch, N ensemble members, K bins. A `Readout` says how a network's outputs stand for a value, so that
a critic that classifies takes the place of one that regresses without another word of the algorithm.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl_gen.losses.policy import value_loss


def expectile_loss(
    value: jax.Array, target: jax.Array, *, expectile: jax.Array, side: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Squared error that weighs targets above the value more than those below: |k - 1[u < 0]| (target - value)^2.

    Its minimiser is the k-expectile of the targets: k = 1/2 is their mean, k -> 1 the largest.

    Args:
      value: [B].
      target: [B], a constant.
      expectile: k in (0, 1), scalar.
      side: [B], the u that decides the side; default: target - value. A constant.
    Returns:
      loss [B], unreduced; metrics of scalars.
    Raises:
      AssertionError: if shapes differ.
    Reference: Newey and Powell 1987, "Asymmetric least squares estimation and testing"; Kostrikov et al. 2021,
      arXiv 2110.06169, eq. 5
    """
    chex.assert_equal_shape([value, target] + ([] if side is None else [side]))
    chex.assert_rank(expectile, 0)
    residual = jax.lax.stop_gradient(target) - value
    below = (residual if side is None else side) < 0
    loss = jnp.where(below, 1.0 - expectile, expectile) * residual**2
    return loss, {"value/loss": jnp.mean(loss), "value/above_target": jnp.mean(below)}


def bin_centres(low: jax.Array, high: jax.Array, bins: int) -> jax.Array:
    """The centres [K] of K equal bins that cover [low, high].

    Args:
      low, high: ends of the support, scalars, in units of value.
      bins: K, at least 2.
    Raises:
      ValueError: if bins < 2.
    """
    if bins < 2:
        raise ValueError(f"bins is {bins}; allowed: 2 and more")
    return low + (high - low) * (jnp.arange(bins, dtype=jnp.float32) + 0.5) / bins


def _width(centres: jax.Array) -> jax.Array:
    """Between neighbours; of the whole, as the difference of two neighbours would keep few of their digits."""
    return (centres[-1] - centres[0]) / (centres.shape[0] - 1)


def two_hot(value: jax.Array, centres: jax.Array) -> jax.Array:
    """The distribution over equally spaced centres whose mean is the value: p_i = max(0, 1 - |value - c_i| / width).

    At most two neighbours have mass, and a value on a centre has all of it there. Values beyond the outermost centres
    are clipped to them.

    Args:
      value: [B].
      centres: [K], equally spaced, rising.
    Returns:
      probabilities [B, K], gradient stopped.
    Raises:
      AssertionError: if ranks are others.
    Reference: Schrittwieser et al. 2020, arXiv 1911.08265, appendix F
    """
    chex.assert_rank([value, centres], 1)
    width = _width(centres)
    distance = (jnp.clip(value, centres[0], centres[-1])[:, None] - centres) / width
    return jax.lax.stop_gradient(jnp.maximum(0.0, 1.0 - jnp.abs(distance)))


def hl_gauss(value: jax.Array, centres: jax.Array, *, smoothing: jax.Array = 0.75) -> jax.Array:
    """The mass in each bin of a normal around the value, of deviation sigma = smoothing * width, cut off at the ends.

    p_i = (F(e_{i+1}) - F(e_i)) / (F(e_K) - F(e_0)), where F(x) = (1 + erf((x - value) / (sqrt(2) sigma))) / 2. Values
    beyond the ends are clipped to them. Within about 2 sigma of an end the mean is biased inwards: a support 10 to 20 %
    wider than the values avoids that.

    Args:
      value: [B].
      centres: [K], equally spaced, rising.
      smoothing: sigma in bin widths, scalar.
    Returns:
      probabilities [B, K], gradient stopped.
    Raises:
      AssertionError: if ranks are others.
    Reference: Imani and White 2018, arXiv 1806.04613; Farebrother et al. 2024, arXiv 2403.03950, eq. 3
    """
    chex.assert_rank([value, centres, smoothing], [1, 1, 0])
    width = _width(centres)
    edges = jnp.append(centres - 0.5 * width, centres[-1] + 0.5 * width)
    distance = (edges - jnp.clip(value, edges[0], edges[-1])[:, None]) / (smoothing * width)
    cumulative = 0.5 * jax.lax.erf(distance / math.sqrt(2.0))
    mass = jnp.maximum(cumulative[:, 1:] - cumulative[:, :-1], 0.0)  # erf rises, but for its last digit
    return jax.lax.stop_gradient(mass / (cumulative[:, -1:] - cumulative[:, :1]))


def expected_value(logits: jax.Array, centres: jax.Array) -> jax.Array:
    """The mean of a categorical distribution over bins, sum_i softmax(logits)_i c_i.

    Args:
      logits: [..., K].
      centres: [K].
    Returns:
      value [...].
    Raises:
      AssertionError: if the numbers of bins differ.
    Reference: Farebrother et al. 2024, arXiv 2403.03950, eq. 1
    """
    chex.assert_equal_shape_suffix([logits, centres], 1)
    return jnp.sum(jax.nn.softmax(logits) * centres, -1)


def classification(logits: jax.Array, probabilities: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """How far predicted bins are from the target's: KL(p || softmax(logits)), in nats.

    The gradient is that of the cross-entropy, from which the target's own entropy is taken away: a perfect prediction
    has loss zero, whatever the smoothing.

    Args:
      logits: [B, K].
      probabilities: [B, K], a constant.
    Returns:
      loss [B], unreduced; metrics of scalars.
    Raises:
      AssertionError: if shapes differ.
    Reference: Farebrother et al. 2024, arXiv 2403.03950, eq. 2
    """
    chex.assert_equal_shape([logits, probabilities])
    chex.assert_rank(logits, 2)
    target = jax.lax.stop_gradient(probabilities)
    entropy = -jnp.sum(target * jnp.log(jnp.where(target > 0, target, 1.0)), -1)
    loss = -jnp.sum(target * jax.nn.log_softmax(logits), -1) - entropy
    return loss, {"critic/loss": jnp.mean(loss)}


class Readout(NamedTuple):
    """How the outputs of a network stand for a value, and how it is learned.

    `value(outputs [..., size]) -> [...]`.
    `target(outputs [N, B, size], reward [B], discount [B], choose) -> [M, B, ...]`: what to learn, a constant, from the
    outputs at the next observation, where `choose(values [N, B]) -> [B]` makes one target for all members (M = 1), or
    `-> [N, B]` one for each (M = N).
    `loss(outputs [B, size], target [B, ...]) -> (loss [B], metrics)`.
    """

    size: int
    value: Callable
    target: Callable
    loss: Callable


def bootstrapped_value(value: Callable) -> Callable:
    """The `target` of a Readout that learns numbers: reward + discount * value, of the values chosen."""

    def target(outputs, reward, discount, choose):
        chex.assert_equal_shape([reward, discount])
        following = choose(value(outputs))
        chex.assert_equal_shape_suffix([following, reward], 1)
        return jax.lax.stop_gradient(reward + discount * following.reshape(-1, *reward.shape))

    return target


def regression() -> Readout:
    """One output that is the value, learned by half its squared error."""
    value = lambda outputs: outputs[..., 0]

    def loss(outputs, target):
        chex.assert_shape(outputs, (*target.shape, 1))
        per_sample, metrics = value_loss(outputs[:, 0], target)
        return per_sample, metrics | {"critic/target": jnp.mean(target)}

    return Readout(1, value, bootstrapped_value(value), loss)


def classified(low: jax.Array, high: jax.Array, bins: int = 101, *, to_probabilities: Callable = hl_gauss) -> Readout:
    """K logits whose expected bin centre is the value, learned by classification.

    The target is a number, as in regression: the distribution is how it is learned, not what is bootstrapped.

    Args:
      low, high: ends of the support, in units of value; 10 to 20 % wider than the values (`data.checks.value_bounds`
        holds them against logged returns). They may be traced: two float leaves of the caller's Config can be swept.
      bins: K.
      to_probabilities: `(value [B], centres [K]) -> [B, K]`: `hl_gauss`, `partial(hl_gauss, smoothing=...)`, `two_hot`.
    Returns:
      Readout; its metric `critic/clipped` is the share of targets that lie outside the support.
    Raises:
      ValueError: if bins < 2.
    Reference: Farebrother et al. 2024, arXiv 2403.03950
    """
    centres = bin_centres(low, high, bins)
    value = lambda outputs: expected_value(outputs, centres)

    def loss(outputs, target):
        per_sample, metrics = classification(outputs, to_probabilities(target, centres))
        outside = (target < low) | (target > high)
        return per_sample, metrics | {"critic/target": jnp.mean(target), "critic/clipped": jnp.mean(outside)}

    return Readout(bins, value, bootstrapped_value(value), loss)


def ensemble_loss(loss: Callable, outputs: jax.Array, target: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The sum over members of each one's own loss, towards a target that they share or one of its own.

    Args:
      loss: `(outputs [B, K], target [B, ...]) -> (loss [B], metrics)`, such as a Readout's.
      outputs: [N, B, K].
      target: [M, B, ...], a constant; M is 1, shared, or N.
    Returns:
      loss [B], unreduced; metrics of scalars, averaged over members.
    Raises:
      AssertionError: if shapes do not fit.
    Reference: Fujimoto et al. 2018, arXiv 1802.09477, algorithm 1
    """
    chex.assert_rank([outputs, target], [3, {2, 3}])
    shared = len(target) == 1
    chex.assert_shape(target, (1 if shared else len(outputs), outputs.shape[1], ...))
    target = jax.lax.stop_gradient(target[0] if shared else target)
    losses, metrics = jax.vmap(loss, in_axes=(0, None if shared else 0))(outputs, target)
    return jnp.sum(losses, 0), jax.tree.map(jnp.mean, metrics)


def own(values: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """Each member's own value, values [N, ...] -> [N, ...], as of what each learns from itself; `key` is not used.

    Reference: Osband et al. 2016, arXiv 1602.04621, section 3 (heads with targets of their own)
    """
    return values


def first(values: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """The value of the first member, values [N, ...] -> [...], as TD3's actor has it; `key` is not used."""
    return values[0]


def minimum(values: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """The smallest value of an ensemble, values [N, ...] -> [...]; `key` is not used.

    Reference: Fujimoto et al. 2018, arXiv 1802.09477, eq. 10
    """
    return jnp.min(values, 0)


def mean(values: jax.Array, key: jax.Array | None = None) -> jax.Array:
    """The average value of an ensemble, values [N, ...] -> [...]; `key` is not used."""
    return jnp.mean(values, 0)


def mean_minus_std(values: jax.Array, key: jax.Array | None = None, *, deviations: jax.Array = 1.0) -> jax.Array:
    """A pessimistic value, mean - k std over the members (divided by N), values [N, ...] -> [...]; no key is used.

    With two members and k = 1 it is the minimum. Where members agree, the gradient is that of the mean.

    Args:
      values: [N, ...].
      key: not used.
      deviations: k, scalar; negative is optimistic.
    Reference: Ciosek et al. 2019, arXiv 1910.12807, eq. 2
    """
    centre = jnp.mean(values, 0)
    variance = jnp.mean((values - centre) ** 2, 0)
    std = jnp.where(variance > 0, jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0)
    return centre - deviations * std


def random_subset_minimum(values: jax.Array, key: jax.Array, *, size: int = 2) -> jax.Array:
    """The smallest value among `size` members drawn without replacement, the same ones for the whole batch.

    Args:
      values: [N, ...].
      key: consumed here.
      size: of the subset, 1 to N.
    Returns:
      value [...].
    Raises:
      ValueError: if there is no such subset.
    Reference: Chen et al. 2021, arXiv 2101.05982 (REDQ), algorithm 1
    """
    members = values.shape[0]
    if not 1 <= size <= members:
        raise ValueError(f"size of the subset is {size}; allowed: 1 to {members}, the members of the ensemble")
    return jnp.min(values[jax.random.permutation(key, members)[:size]], 0)


def soft_value(value: jax.Array, log_prob: jax.Array, *, temperature: jax.Array) -> jax.Array:
    """The value of a state with the entropy to come counted in, from one action: Q(s, a) - temperature log pi(a|s).

    Args:
      value: [B], of the action sampled from the policy.
      log_prob: [B], of that action, in nats.
      temperature: scalar, units of value per nat.
    Returns:
      value [B].
    Raises:
      AssertionError: if shapes differ.
    Reference: Haarnoja et al. 2018, arXiv 1801.01290, eq. 3
    """
    chex.assert_equal_shape([value, log_prob])
    chex.assert_rank(temperature, 0)
    return value - temperature * log_prob
