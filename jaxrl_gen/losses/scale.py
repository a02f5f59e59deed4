"""Values of a size that is not known beforehand, or changes: learned in units of how far targets spread.

A network says x, which stands for mean + std x. Where the statistics move, its last layer moves against them, so that
no value changes by it: only the units do in which it is learned.

Reference: van Hasselt et al. 2016, arXiv 1602.07714 (PopArt)
"""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl_gen.losses import value
from jaxrl_gen.losses.policy import value_loss
from jaxrl_gen.types import PyTree


class Scale(NamedTuple):
    """Running statistics of targets, f32 scalars."""

    count: jax.Array  # of batches seen
    mean: jax.Array
    std: jax.Array


def unit() -> Scale:
    """Of targets of which nothing is known: mean 0, deviation 1."""
    return Scale(*(jnp.full((), x, jnp.float32) for x in (0.0, 0.0, 1.0)))


def follow(scale: Scale, mean: jax.Array, std: jax.Array, *, rate: jax.Array, smallest: jax.Array = 1e-2) -> Scale:
    """The statistics after one more batch of targets, moved towards its own by max(rate, 1 / batches seen).

    With d = mean' - mean and variances in place of second moments, which would cancel where the mean is large:
    mean <- mean + r d and std^2 <- (1 - r)(std^2 + r d^2) + r std'^2. A batch that is not finite changes nothing.

    Args:
      scale: before.
      mean, std: of the batch, scalars; the deviation is divided by B.
      rate: r in (0, 1], once 1 / r batches were seen; before, all count the same.
      smallest: deviation, above 0, in units of value; targets that are all alike have none.
    Returns:
      Scale, gradient stopped.
    Raises:
      AssertionError: if they are not scalars.
    Reference: van Hasselt et al. 2016, arXiv 1602.07714, section 2
    """
    chex.assert_rank([mean, std, rate, smallest], 0)
    first = scale.count == 0
    rate = jnp.maximum(rate, 1.0 / (scale.count + 1.0))
    apart = mean - scale.mean
    variance = jnp.where(first, 0.0, scale.std**2)  # what stood for nothing known
    variance = (1.0 - rate) * (variance + rate * apart**2) + rate * std**2
    after = Scale(scale.count + 1.0, scale.mean + rate * apart, jnp.maximum(jnp.sqrt(variance), smallest))
    finite = jnp.isfinite(after.mean) & jnp.isfinite(after.std)
    return jax.lax.stop_gradient(jax.tree.map(lambda new, old: jnp.where(finite, new, old), after, scale))


def preserved(layers: dict[str, PyTree], before: Scale, after: Scale) -> dict[str, PyTree]:
    """Perceptrons whose values are what they were, in other units: W std / std', and (std b + mean - mean') / std'.

    Args:
      layers: parameters of a perceptron of one output, or of an ensemble, `{"Dense_0": {"kernel": [..., I, O], ...}}`.
      before: the units of its outputs until now.
      after: from now on.
    Returns:
      The layers, of which the last is another.
    Raises:
      ValueError: if the parameters are not those of a perceptron.
      AssertionError: if it has several outputs.
    Reference: van Hasselt et al. 2016, arXiv 1602.07714, proposition 1
    """
    names = [name for name in layers if name.startswith("Dense_")] if isinstance(layers, dict) else []
    if not names:
        raise ValueError("units are those of a perceptron's last layer, Dense_N; the parameters are of something else")
    last = max(names, key=lambda name: int(name.removeprefix("Dense_")))
    kernel, bias = layers[last]["kernel"], layers[last]["bias"]
    chex.assert_shape([kernel, bias], (..., 1))
    moved = {
        "kernel": kernel * before.std / after.std,
        "bias": (before.std * bias + before.mean - after.mean) / after.std,
    }
    return layers | {last: moved}


def regression(scale: Scale) -> value.Readout:
    """One output that is the value in units of a scale, learned by half its squared error in these.

    Args:
      scale: Scale; it may be traced.
    Returns:
      Readout, whose metrics `critic/target` and `critic/target_std` are what `follow` reads; rows that are not valid,
      whose targets are zero, count among them.
    Reference: van Hasselt et al. 2016, arXiv 1602.07714, section 2
    """
    of = lambda outputs: scale.mean + scale.std * outputs[..., 0]

    def loss(outputs, target):
        chex.assert_shape(outputs, (*target.shape, 1))
        per_sample, metrics = value_loss(outputs[:, 0], (target - scale.mean) / scale.std)
        return per_sample, metrics | {"critic/target": jnp.mean(target), "critic/target_std": jnp.std(target)}

    return value.Readout(1, of, value.bootstrapped_value(of), loss)
