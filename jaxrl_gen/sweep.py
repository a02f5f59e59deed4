"""Sweeps: many settings of the float fields of a Config in one compiled program.

A swept config has leaves [N] where it was swept, and scalars elsewhere; `loops.population` and `mapped` map the former.

    cfgs = sweep.grid(ppo.Config(), lr=[1e-4, 3e-4], gamma=[0.98, 0.99])    # four settings
    cfgs, keys = sweep.cross(cfgs, seeds=8, key=jax.random.key(0))           # 32 members

What a choice among them is worth, whose episodes must be paid for, tells `choose_by_bandit`.
"""

import dataclasses
import difflib
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_gen import types
from jaxrl_gen.types import PyTree


def grid(cfg: Any, **values: Sequence[float]) -> Any:
    """Every combination of the given values of float fields: the last field named varies fastest.

    Args:
      cfg: Config whose other fields all members share.
      values: field=[values]; a field of a Config within the Config is written `algo__lr`.
    Returns:
      The Config with leaves [N] for the fields named, N the product of the numbers of values.
    Raises:
      ValueError: for an unknown field (with the nearest names), a static one, no values, or one out of range.
      TypeError: if `cfg` is not a Config, or a value is not a number.
    """
    if not dataclasses.is_dataclass(cfg) or jax.tree.structure(cfg).num_nodes == 1:
        raise TypeError(f"{type(cfg).__name__} is not a Config: sweep the one of the algorithm")
    if not values:
        raise ValueError(f"no field to sweep; allowed: {', '.join(_leaf_names(cfg))}")
    if _axes(cfg):
        raise ValueError(f"config.{next(iter(_axes(cfg)))} is swept already; name all fields in one grid")
    for name, choices in values.items():
        values[name] = _checked(cfg, name, choices)
    columns = zip(*itertools.product(*values.values()))
    for name, column in zip(values, columns):
        cfg = _replace(cfg, name.split("__"), jnp.asarray(column, jnp.float32))
    return cfg


def cross(cfg: Any, seeds: int, key: jax.Array) -> tuple[Any, jax.Array]:
    """Every setting with every seed, setting by setting; all have the same seeds, so that settings compare in pairs.

    Args:
      cfg: Config with leaves [N], or a plain one, which counts as N = 1 and stays plain.
      seeds: S.
      key: consumed here.
    Returns:
      (Config with leaves [N S], keys [N S]); member i has setting i // S and seed i % S.
    Raises:
      ValueError: if seeds < 1.
    """
    if seeds < 1:
        raise ValueError(f"seeds is {seeds}; allowed: 1 and more")
    settings = size(cfg) or 1
    cfg = jax.tree.map(lambda x: jnp.repeat(jnp.asarray(x), seeds) if jnp.ndim(x) else x, cfg)
    return cfg, jnp.tile(jax.random.split(key, seeds), settings)


def members(cfg: Any, seeds: int = 1) -> list[dict[str, float]]:
    """What distinguishes each member, for legends and tables.

    Args:
      cfg: Config with leaves [N].
      seeds: S, if it was crossed with seeds: adds "seed", which counts from zero.
    Returns:
      N dictionaries from the names of the swept fields ("lr", "algo.lr") to numbers, rounded as float32 prints them.
    Raises:
      ValueError: if seeds does not divide N.
    """
    count = size(cfg) or seeds
    if seeds < 1 or count % seeds:
        raise ValueError(f"seeds is {seeds}; it must divide the {count} members")
    columns = {name: [float(str(x)) for x in np.asarray(axis, np.float32)] for name, axis in _axes(cfg).items()}
    if seeds > 1:
        columns["seed"] = [i % seeds for i in range(count)]
    return [{name: column[i] for name, column in columns.items()} for i in range(count)]


def member(tree: PyTree, i: int) -> PyTree:
    """Member i of a population's config, carry, State or metrics: leaves [N, ...] lose their axis, scalars are shared.

    Args:
      tree: leaves [N, ...], or scalars.
      i: 0 to N - 1.
    Returns:
      The pytree of one member.
    Raises:
      ValueError: if there is no such member, or leaves differ in N.
    """
    count = size(tree)
    if count is None or not 0 <= i < count:
        raise ValueError(
            f"member {i} does not exist; " + (f"allowed: 0 to {count - 1}" if count else "nothing is swept")
        )
    return jax.tree.map(lambda x: x[i] if jnp.ndim(x) else x, tree)


def size(tree: PyTree) -> int | None:
    """N, the number of members: the leading axis of the leaves that have one; None where none has.

    Raises:
      ValueError: if leaves differ in it.
    """
    sizes = {jnp.shape(x)[0] for x in jax.tree.leaves(tree) if jnp.ndim(x)}
    if len(sizes) > 1:
        raise ValueError(f"leading axes differ: {sorted(sizes)}; these are not the members of one population")
    return sizes.pop() if sizes else None


def mapped(function: Callable) -> Callable:
    """`function(cfg, *rest)` over all members at once: leaves of the config with an axis are swept, the rest all is.

    Args:
      function: `(cfg, *rest) -> results`, such as what `evaluate.evaluator` returns.
    Returns:
      `(cfgs, *rest) -> results` with leaves [N, ...] wherever `function` has one member's; `cfgs` may be plain.
    """

    def over_members(cfg, *rest):
        swept = jax.tree.map(lambda x: 0 if jnp.ndim(x) else None, cfg)
        return jax.vmap(function, in_axes=(swept, *[0] * len(rest)))(cfg, *rest)

    return over_members


def _checked(cfg: Any, name: str, choices: Sequence[float]) -> list[float]:
    """The values of one field as floats, each of which the field allows."""
    path = name.split("__")
    _refuse_unsweepable(cfg, path)
    dotted = "config." + ".".join(path)
    try:
        numbers = [float(choice) for choice in choices]
    except (TypeError, ValueError) as error:
        raise TypeError(f"{dotted} is given {choices!r}; allowed: a list of numbers") from error
    if not numbers:
        raise ValueError(f"{dotted} is given no values; allowed: 1 and more")
    for number in numbers:
        types.check(_replace(cfg, path, number))
    return numbers


def _refuse_unsweepable(cfg: Any, path: list[str]) -> None:
    """Walk to a field and raise unless it is a float leaf of its Config."""
    for depth, part in enumerate(path):
        dotted = ".".join(["config", *path[: depth + 1]])
        fields = {field.name: field for field in dataclasses.fields(cfg)} if dataclasses.is_dataclass(cfg) else {}
        if part not in fields:
            names = list(fields)
            near = difflib.get_close_matches(part, names, n=3, cutoff=0.4) or names
            raise ValueError(f"{dotted} does not exist; nearest: {', '.join(near) or 'none, as it is a number'}")
        if fields[part].metadata.get("static", False):
            raise ValueError(f"{dotted} is static: it shapes the program; run one sweep per value")
        cfg = getattr(cfg, part)
    if dataclasses.is_dataclass(cfg):
        inner = [f"{'__'.join(path)}__{name.replace('.', '__')}" for name in _leaf_names(cfg)]
        raise ValueError(f"{dotted} is a Config; name one of its fields: {', '.join(inner)}")


def _replace(cfg: Any, path: list[str], value: Any) -> Any:
    first, *rest = path
    return dataclasses.replace(cfg, **{first: _replace(getattr(cfg, first), rest, value) if rest else value})


def _named_leaves(cfg: Any) -> Iterator[tuple[str, Any]]:
    for path, leaf in jax.tree_util.tree_flatten_with_path(cfg)[0]:
        yield jax.tree_util.keystr(path, simple=True, separator="."), leaf


def _leaf_names(cfg: Any) -> list[str]:
    return [name for name, _ in _named_leaves(cfg)]


def _axes(cfg: Any) -> dict[str, Any]:
    """The swept leaves of a config, by their dotted names."""
    return {name: leaf for name, leaf in _named_leaves(cfg) if jnp.ndim(leaf)}


class Chosen(NamedTuple):
    """What choosing by a bandit is worth after each evaluation episode; leaves [pulls], over trials."""

    mean: np.ndarray
    low: np.ndarray  # 95 % interval of the mean
    high: np.ndarray


def choose_by_bandit(
    returns: np.ndarray, pulls: int, *, policies: int = 8, trials: int = 500, exploration: float = 2.0, seed: int = 0
) -> Chosen:
    """What one gets who trains policies with several settings, and may play so many episodes to choose among them.

    In each trial some policies are drawn without replacement, and each pull plays one episode of the policy with the
    largest mean + spread sqrt(exploration log t / n), those never played first. What counts after each pull is the true
    mean of the policy whose mean looks best then. So the price of tuning is part of a method's score.

    Args:
      returns: [K, N], of N episodes of each of K trained policies: settings, or settings and seeds.
      pulls: episodes.
      policies: drawn in each trial, at most K.
      trials: repetitions.
      exploration: of the upper confidence bound, above 0; the spread is that of all returns.
      seed: of the trials.
    Returns:
      Chosen.
    Raises:
      ValueError: if returns are not [K, N] and finite, or a number is below 1 or above what there is.
    Reference: Jackson et al. 2025, arXiv 2504.11453, section 3 (their evaluation procedure); Auer et al. 2002 (UCB1)
    """
    returns = np.asarray(returns, float)
    if returns.ndim != 2 or not returns.size or not np.all(np.isfinite(returns)):
        raise ValueError(f"returns have shape {returns.shape}; allowed: finite numbers [policies, episodes]")
    for name, number, most in (
        ("pulls", pulls, np.inf),
        ("policies", policies, len(returns)),
        ("trials", trials, np.inf),
    ):
        if not 1 <= number <= most:
            raise ValueError(f"{name} is {number}; allowed: 1 to {most:g}")
    rng, truth, spread = np.random.default_rng(seed), returns.mean(1), np.ptp(returns)
    arms = np.argsort(rng.random((trials, len(returns))), 1)[:, :policies]  # of each trial, without replacement
    total, played, each = np.zeros((trials, policies)), np.zeros((trials, policies)), np.arange(trials)
    worth = np.empty((pulls, trials))
    for t in range(pulls):
        with np.errstate(divide="ignore", invalid="ignore"):
            mean = total / played
            bound = mean + spread * np.sqrt(exploration * np.log(t + 1) / played)
        arm = np.argmax(np.where(played > 0, bound, np.inf), 1)
        total[each, arm] += returns[arms[each, arm], rng.integers(0, returns.shape[1], trials)]
        played[each, arm] += 1
        best = np.argmax(np.where(played > 0, total / np.maximum(played, 1), -np.inf), 1)
        worth[t] = truth[arms[each, best]]
    error = 1.96 * worth.std(1) / np.sqrt(trials)
    return Chosen(worth.mean(1), worth.mean(1) - error, worth.mean(1) + error)
