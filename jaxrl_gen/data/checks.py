"""What a dataset must be before it is learned from: a line that says what it is, errors that say what is wrong.

Errors name the file, the field, what was found and what was expected.
"""

import warnings
from collections.abc import Callable, Mapping

import jax
import numpy as np

from jaxrl_gen.data.trajectory import Dataset, lengths, named, narrow, nbytes, with_returns_to_go
from jaxrl_gen.types import PyTree, Spec

FIELDS = {"obs": "obs", "action": "action", "reward": "reward"}


def check(
    data: Dataset,
    spec: Spec,
    *,
    where: str = "data",
    window: int = 1,
    fields: Mapping[str, str] = FIELDS,
    say: Callable[[str], None] = print,
) -> Dataset:
    """Tell in one line what a dataset is, and refuse it where nothing good could be learned from it.

    Args:
      data: Dataset.
      spec: of the environment that its policy is for.
      where: the file, for messages.
      window: steps that every episode must have; 1 unless windows may not be padded.
      fields: what the file calls obs, action and reward.
      say: receives the line.
    Returns:
      The dataset.
    Raises:
      ValueError: for other shapes, types or names than the spec's; numbers that are not finite; actions out of range;
        an episode shorter than the window.
    """
    host = jax.tree.map(np.asarray, data)
    say(f"{where}: {summary(host)}")
    fit(host.obs, host.action, spec, where=where, fields=fields)
    for field, x in {
        **named(host.obs, fields["obs"]),
        fields["action"]: host.action,
        fields["reward"]: host.reward,
    }.items():
        bad = ~np.isfinite(x).reshape(len(x), -1).all(1) if np.issubdtype(x.dtype, np.floating) else np.zeros(1, bool)
        if bad.any():
            raise ValueError(
                f"{where}: {field} is not finite in {bad.sum():,} of {len(x):,} rows, first in row {np.argmax(bad)}; "
                "expected finite numbers"
            )
    low, high = (0, spec.action_size - 1) if spec.discrete else (-1.0, 1.0)
    if host.action.min() < low or host.action.max() > high:
        raise ValueError(
            f"{where}: {fields['action']} is within [{host.action.min():g}, {host.action.max():g}]; expected "
            f"[{low:g}, {high:g}]" + ("" if spec.discrete else ", or the simulator's own limits given as limits=")
        )
    if (steps := np.diff(host.start)).min() < window:
        raise ValueError(
            f"{where}: episode {np.argmin(steps)} has {steps.min()} steps; expected {window} and more, for a window"
        )
    return data


def fit(obs: PyTree, action: np.ndarray, spec: Spec, *, where: str, fields: Mapping[str, str] = FIELDS) -> None:
    """Refuse observations and actions, leaves [N, ...], that are not those of a Spec; arguments as of `check`.

    Raises:
      ValueError: naming the first field that differs.
    """
    found, expected = named(obs, fields["obs"]), named(spec.obs, fields["obs"])
    if list(found) != list(expected):
        raise ValueError(f"{where}: has {', '.join(found)}; expected {', '.join(expected)}")
    for field, leaf in expected.items():
        _same(where, field, found[field], leaf.shape, leaf.dtype)
    _same(
        where,
        fields["action"],
        action,
        () if spec.discrete else (spec.action_size,),
        np.int32 if spec.discrete else np.float32,
    )


def present(names: list[str], available: list[str], *, where: str) -> None:
    """Refuse a file that lacks a field.

    Raises:
      ValueError: naming the first one, and those there are.
    """
    for name in names:
        if name not in available:
            raise ValueError(
                f"{where}: has no field {name}; expected {', '.join(names)}, found {', '.join(sorted(available))}"
            )


def scalars(arrays: Mapping[str, np.ndarray], *, where: str) -> None:
    """Refuse fields that are not one number for each row, all of as many rows; a trailing axis of one is refused too.

    Raises:
      ValueError: naming the first one.
    """
    rows = {np.shape(x)[:1] for x in arrays.values()}
    for field, x in arrays.items():
        if np.ndim(x) != 1 or len(rows) != 1:
            shapes = ", ".join(f"{name} {list(np.shape(x))}" for name, x in arrays.items())
            raise ValueError(
                f"{where}: {field} has shape {list(np.shape(x))}; expected one number per row, found {shapes}"
            )


def flags(arrays: Mapping[str, np.ndarray], *, where: str) -> None:
    """Refuse fields that are neither 0 nor 1 in some row: of an end that was not recorded nothing may be assumed.

    Raises:
      ValueError: naming the first one.
    """
    for field, x in arrays.items():
        x = np.asarray(x)
        bad = ~((x == 0) | (x == 1))
        if bad.any():
            at = np.argmax(bad)
            raise ValueError(
                f"{where}: {field} is {x[at]} in row {at}; expected 0 or 1 in each, whether the episode ended there"
            )


def value_bounds(data: Dataset, low: float, high: float, gamma: float, *, where: str = "data") -> float:
    """The share of the data's discounted returns that lie outside the bounds of values, warned of if there is any.

    A critic that classifies (`losses.value.classified`, `losses.distributional.categorical`) takes what lies outside
    for the bound itself. The returns are those from each row to its episode's end: what would have followed a truncated
    end is not in them, so bounds that hold them may still be too narrow for the values.

    Args:
      data: Dataset.
      low, high: the bounds, in units of reward.
      gamma: discount per step.
      where: the file, for the message.
    Returns:
      The share, in [0, 1].
    Raises:
      ValueError: if the lower bound is not below the upper one, or gamma is not in [0, 1].
    """
    if not low < high:
        raise ValueError(f"the bounds of values are {low:g} and {high:g}; allowed: the lower one first")
    if not 0.0 <= gamma <= 1.0:
        raise ValueError(f"gamma is {gamma:g}; allowed: numbers in [0, 1]")
    earned = np.asarray(with_returns_to_go(data, gamma).extras["return_to_go"])
    outside = ~((earned >= np.float32(low)) & (earned <= np.float32(high)))
    share = float(np.mean(outside))
    if share:
        warnings.warn(
            f"{where}: {100 * share:.3g} % of {len(earned):,} returns would be clipped to the bounds of values "
            f"[{low:g}, {high:g}]; with gamma {gamma:g} they are {_ends(earned)}",
            stacklevel=2,
        )
    return share


def summary(data: Dataset) -> str:
    """What a dataset is, in one line."""
    steps, over = np.asarray(lengths(data)), int(data.terminated.sum())
    floats = [x for x in jax.tree.leaves((data.obs, data.action, data.reward)) if np.issubdtype(x.dtype, np.floating)]
    missing = sum(int(np.isnan(x).sum()) for x in floats) / max(sum(x.size for x in floats), 1)
    return (
        f"{len(steps):,} episodes, {len(data.reward):,} steps, {nbytes(data) / 1e6:.1f} MB; "
        f"length {steps.min()} to {steps.max()}; {over:,} terminated, {len(steps) - over:,} truncated; "
        f"reward {_ends(data.reward)}; action {_ends(data.action)}; NaN {100 * missing:.3g} %"
    )


def scaled(action: np.ndarray, limits: tuple | None) -> np.ndarray:
    """Actions in the simulator's own limits, brought to [-1, 1]; as they are where `limits` is None.

    Args:
      action: [N, A].
      limits: (low, high), numbers or [A].
    Raises:
      ValueError: if the lower end is not below the upper one.
    """
    if limits is None:
        return action
    low, high = (np.asarray(end, np.float32) for end in limits)
    if not np.all(low < high):
        raise ValueError(f"limits is {limits}; allowed: the lower end first")
    return narrow((action - low) / (high - low) * 2.0 - 1.0)


def _same(where, field, x, shape, dtype):
    x = np.asarray(x)
    if x.shape[1:] != tuple(shape) or narrow(x[:0]).dtype != dtype:
        raise ValueError(
            f"{where}: {field} is {narrow(x[:0]).dtype} {list(x.shape[1:])} in each row; expected "
            f"{np.dtype(dtype)} {list(shape)}, as in the spec"
        )


def _ends(x):
    with np.errstate(invalid="ignore"):
        return f"{np.nanmin(x):.4g} to {np.nanmax(x):.4g}" if not np.isnan(x).all() else "NaN"
