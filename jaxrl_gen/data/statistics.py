"""Mean, deviation and range of what a dataset holds, as a pytree that travels with the policy.

`scaled` puts it into an algorithm's State, and a checkpoint, an exported policy and an evaluation have it too.
"""

from collections.abc import Callable
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_gen.data.trajectory import Dataset
from jaxrl_gen.types import Algorithm, PyTree, Recalled

ROWS = 4096  # of pixels, at a time
FLAT = 1e-4  # a feature that varies less than this does not vary


class Moments(NamedTuple):
    """Of each feature; the leaves have the structure and shape of one row."""

    count: jax.Array  # f32, rows
    mean: PyTree
    std: PyTree
    low: PyTree
    high: PyTree


class Statistics(NamedTuple):
    """Of the observations, each counted once, and of the actions."""

    obs: Moments
    action: Moments


class Scaled(NamedTuple):
    """The State of an algorithm that works in the data's own units."""

    state: PyTree
    statistics: Statistics


def of(data: Dataset) -> Statistics:
    """The statistics of a dataset, summed in double precision on the host.

    Args:
      data: Dataset, with continuous or discrete actions.
    Returns:
      Statistics, float32.
    """
    return Statistics(moments(data.obs), moments(data.action))


def moments(tree: PyTree) -> Moments:
    """The statistics of arrays over their first axis.

    Args:
      tree: leaves [N, ...].
    """
    leaves, structure = jax.tree.flatten(tree)
    found = [_moments(np.asarray(x)) for x in leaves]
    of_all = (jax.tree.unflatten(structure, [jnp.asarray(one[i], jnp.float32) for one in found]) for i in range(4))
    return Moments(jnp.float32(len(leaves[0])), *of_all)


def running(moments: Moments) -> tuple[jax.Array, PyTree, PyTree]:
    """Count, mean and sum of squared deviations: the fields of a `normalize.Normalizer` that has seen all the data."""
    return moments.count, moments.mean, jax.tree.map(lambda std: moments.count * std**2, moments.std)


def standardized(moments: Moments, x: PyTree, clip: float = 10.0) -> PyTree:
    """(x - mean) / std, clipped; a feature that never varied becomes what it differs by.

    Args:
      moments: of leaves [...features].
      x: leaves [..., ...features].
      clip: largest magnitude.
    Raises:
      AssertionError: if a leaf does not end in its feature's axes.
    """

    def scale(mean, std, x):
        chex.assert_shape(x, (..., *mean.shape))
        return jnp.clip((x.astype(jnp.float32) - mean) / jnp.where(std < FLAT, 1.0, std), -clip, clip)

    return jax.tree.map(scale, moments.mean, moments.std, x)


def to_unit(moments: Moments, x: PyTree) -> PyTree:
    """From the range that the data had to [-1, 1]; a feature that never varied becomes 0 where it is as it was.

    What lies outside the range stays outside: clip where that would do harm.

    Args, Raises:
      As of `standardized`.
    """

    def scale(low, high, x):
        chex.assert_shape(x, (..., *low.shape))
        return (x.astype(jnp.float32) - (high + low) / 2) / _half(low, high)

    return jax.tree.map(scale, moments.low, moments.high, x)


def from_unit(moments: Moments, x: PyTree) -> PyTree:
    """The inverse of `to_unit`, in float32."""

    def scale(low, high, x):
        chex.assert_shape(x, (..., *low.shape))
        return x * _half(low, high) + (high + low) / 2

    return jax.tree.map(scale, moments.low, moments.high, x)


def scaled(make: Callable, statistics: Statistics) -> Callable:
    """`make` of an algorithm that sees observations standardized, and actions in units of the range that the data had.

    It scales what the algorithm within learns from and sees, and what it does back, by statistics that lie in its State
    and never change. The algorithm within needs no normaliser of its own.

    Args:
      make: `(cfg, spec) -> Algorithm` with continuous actions, whose batch is such that `in_units` takes it.
      statistics: of the data, `of(data)`.
    Returns:
      `(cfg, spec) -> Algorithm` on a State `Scaled`.
    Raises:
      ValueError: if actions are discrete; when it is called.
    """

    def of_one(cfg, spec):
        if spec.discrete:
            raise ValueError(f"only continuous actions can be scaled; this Spec has {spec.action_size} discrete ones")
        algo = make(cfg, spec)

        def update(state, batch, key):
            learned, metrics = algo.update(state.state, in_units(state.statistics, batch), key)
            return Scaled(learned, state.statistics), metrics

        def act(state, obs, key):
            obs, *memory = obs if isinstance(obs, Recalled) else (obs,)
            seen = standardized(state.statistics.obs, obs)
            action, extras = algo.act(state.state, Recalled(seen, *memory) if memory else seen, key)
            return from_unit(state.statistics.action, action), extras

        return Algorithm(lambda key: Scaled(algo.init(key), statistics), update, act, algo.memory)

    return of_one


def in_units(statistics: Statistics, batch: PyTree) -> PyTree:
    """A batch with observations standardized, and actions in units of the range, in whatever it is made of.

    Args:
      statistics: of the data.
      batch: NamedTuple whose fields are observations (`obs`, `next_obs`), actions (`action`, and `next_action` among
        the `extras`), such batches again, or anything else, which stays as it is.
    Raises:
      ValueError: if there are no observations and actions to be found in it.
    """
    fields = {}
    for name, x in getattr(batch, "_asdict", dict)().items():
        if name.endswith("obs"):
            fields[name] = standardized(statistics.obs, x)
        elif name == "action":
            fields[name] = to_unit(statistics.action, x)
        elif name == "extras" and "next_action" in x:
            fields[name] = x | {"next_action": to_unit(statistics.action, x["next_action"])}
        elif hasattr(x, "_fields"):
            fields[name] = in_units(statistics, x)
    if not fields:
        raise ValueError(f"a batch to scale is a {type(batch).__name__}; expected fields such as obs and action")
    return batch._replace(**fields)


def _half(low, high):
    return jnp.where(high - low < FLAT, 1.0, (high - low) / 2)


def _moments(x):
    """Mean, deviation, lowest and highest, in two passes over some rows at a time."""
    parts = [x[i : i + ROWS] for i in range(0, len(x), ROWS)]
    mean = sum(part.sum(0, dtype=float) for part in parts) / len(x)
    variance = sum(((part - mean) ** 2).sum(0) for part in parts) / len(x)
    return mean, np.sqrt(variance), x.min(0), x.max(0)
