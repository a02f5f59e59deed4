"""Guards against numbers that turn non-finite: notice, go back to the last good carry, find the first bad iteration."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_gen import checkpoint
from jaxrl_gen.loops import EPISODE, Loop, at_chunk, nbytes
from jaxrl_gen.record import read_json, write_json
from jaxrl_gen.types import PyTree

WATCHED = "guard/nonfinite_params"
SKIPPED = "guard/skipped_updates"  # the share of a chunk's updates whose gradient was not finite
STOPPED = "guard/stopped"  # what `stop_on_nonfinite` tells the callbacks after it
NOT_WATCHED = (EPISODE, "evaluate/", "time/")  # families that are empty (NaN) where no episode ended


def watched(loop: Loop) -> Loop:
    """The loop with one metric more: how many of the State's parameters are not finite at the end of a chunk.

    A State without a field `params` is looked at as a whole. Watch the loop of one member, then make it a population.
    """

    def chunk(cfg, carry, *data):
        carry, metrics = loop.chunk(cfg, carry, *data)
        bad = [jnp.sum(~jnp.isfinite(x), dtype=jnp.float32) for x in _floats(_params(carry))]
        return carry, metrics | {WATCHED: sum(bad, jnp.zeros((), jnp.float32))}

    return loop._replace(chunk=chunk)


def stop_on_nonfinite(
    loop: Loop, cfg: PyTree, carry: PyTree, folder: str | Path, *, command: str = "", say: Callable[[str], None] = print
) -> Callable:
    """Stop when a metric or a parameter is not finite, and leave behind what is needed to see it happen again.

    It keeps a copy of the carry before each chunk: the memory of a second carry, `kept`, and of no third. When
    something turned non-finite it goes through that chunk again, one iteration at a time, up to the first bad one,
    which takes the memory of two more, and writes the carry before it and the batch it learned from into
    `<folder>/nonfinite-<chunk>`, as plain arrays.

    Args:
      loop: the Loop (or population) that runs, `watched` if parameters are to be looked at as well as metrics.
      cfg: its config.
      carry: the carry that the run starts from.
      folder: of the run.
      command: that replays, to be printed with the folder after it; default: `guards.replay(loop, cfg, folder)`.
      say: called with lines for people.
    Returns:
      A callback; families `episode/` and `evaluate/`, which are NaN where no episode ended, are not looked at. Where a
      member skipped some updates of a chunk for their gradients, and its State is finite, it says so and goes on.
    """
    several = jax.process_count() > 1
    good = None if several else copy(carry)

    def call(i, carry, metrics):
        nonlocal good
        bad = [name for name, x in metrics.items() if not name.startswith(NOT_WATCHED) and not _is_finite(name, x)]
        if bad and _only_skipped({name: metrics[name] for name in bad}, metrics.get(SKIPPED), carry):
            share = np.round(100 * np.asarray(metrics[SKIPPED]), 3).tolist()
            say(f"\nchunk {i}: updates skipped, as their gradients were not finite: {share} %")
            bad = []
        if not bad:
            good = None  # let go of it before another is made
            good = None if several else copy(carry)
            return False
        metrics[STOPPED] = np.asarray(1.0)
        say(f"\nchunk {i}: not finite: {', '.join(bad)}")
        if several:
            say("resume this run in one process to find the iteration: the newest checkpoint is good")
            return True
        place = Path(folder) / f"nonfinite-{i}"
        before, batch, iteration, names = first_bad(at_chunk(loop, i), cfg, good, carry.key)
        write(place, before, batch, {"chunk": i, "iteration": iteration, "metrics": bad, "first": names})
        say(f"chunk {i}, iteration {iteration}: {', '.join(names) or 'nothing, when run one by one'}")
        say(f"replay: {command} {place}" if command else f"replay: guards.replay(loop, cfg, {str(place)!r})")
        return True

    return call


def kept(carry: PyTree) -> int:
    """Bytes of a device that `stop_on_nonfinite` keeps beside what runs, for `loops.compile_report`.

    Args:
      carry: a Carry, or its shapes.
    """
    return 0 if jax.process_count() > 1 else nbytes(carry)


def copy(tree: PyTree) -> PyTree:
    """The same arrays in memory of their own, with nothing to compile."""
    return jax.tree.map(lambda x: jax.device_put(x, x.sharding, may_alias=False), tree)


def first_bad(loop: Loop, cfg: PyTree, carry: PyTree, key: jax.Array) -> tuple[PyTree, PyTree, int, list[str]]:
    """Go on from a good carry, one iteration at a time, to the first that makes something non-finite.

    Args:
      loop, cfg: what runs.
      carry: a good one.
      key: of the carry at the end of the chunk, by which the end is known.
    Returns:
      The carry before that iteration, its batch, its number, and the names of what is not finite after it.
    """
    iteration, number = jax.jit(loop.iteration), 0
    while True:
        after, metrics, batch = iteration(cfg, carry, number, *loop.data)
        names = nonfinite(metrics, after, batch)
        if names or np.array_equal(jax.random.key_data(after.key), jax.random.key_data(key)):
            return carry, batch, number, names
        carry, number = after, number + 1


def nonfinite(metrics: PyTree, carry: PyTree, batch: PyTree) -> list[str]:
    """The names of the metrics, parameters and parts of a batch that are not finite."""
    metrics = {name: x for name, x in metrics.items() if name != "episodes" and not name.startswith(NOT_WATCHED)}
    named = {"batch": batch, "metrics": metrics, "params": _params(carry)}
    found = []
    for path, x in jax.tree_util.tree_leaves_with_path(named):
        if jnp.issubdtype(x.dtype, jnp.floating) and not np.all(np.isfinite(np.asarray(x, np.float32))):
            found.append(jax.tree_util.keystr(path, simple=True, separator="/"))
    return found


def write(folder: Path, carry: PyTree, batch: PyTree, facts: dict[str, Any]) -> None:
    """Write `carry.npz`, `batch.npz` and `facts.json`; the folder appears when it is complete."""
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, tree in {"carry": carry, "batch": batch}.items():
        leaves = {path: np.asarray(x) for path, x in checkpoint.by_path(tree).items()}
        # NumPy's format has no word for bfloat16 and its kin; their bytes are read back by the dtype of the target.
        leaves = {path: x if x.dtype.isbuiltin == 1 else x.view(f"u{x.itemsize}") for path, x in leaves.items()}
        np.savez(partial / f"{name}.npz", **leaves)
    write_json(partial / "facts.json", {**facts, "members": list(carry.key.shape)})
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def read_carry(folder: str | Path, target: PyTree) -> PyTree:
    """Read the carry that `write` wrote, into the shapes of `target`.

    Raises:
      FileNotFoundError: if there is none.
      ValueError: if it does not fit, naming the first leaf.
    """
    path = Path(folder) / "carry.npz"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} holds no carry.npz to replay")
    with np.load(path, allow_pickle=False) as stored:
        leaves = {}
        for name, expected in checkpoint.shapes_by_path(target).items():
            found = stored[name] if name in stored else None
            if found is None or found.shape != expected.shape or found.itemsize != expected.dtype.itemsize:
                have = "nothing" if found is None else f"{found.dtype}{list(found.shape)}"
                wanted = f"{expected.dtype}{list(expected.shape)}"
                raise ValueError(f"{path} does not fit: found {name} {have}, expected {wanted}")
            leaves[name] = jnp.asarray(found.view(expected.dtype))
    return checkpoint.like(target, leaves)


def replay(loop: Loop, cfg: PyTree, folder: str | Path, *, say: Callable[[str], None] = print) -> list[str]:
    """Run the bad iteration again, first plainly and then under `jax.debug_nans`, which stops at the operation.

    Args:
      loop, cfg: what ran.
      folder: written by `stop_on_nonfinite`.
      say: called with lines for people.
    Returns:
      The names of what is not finite; empty if nothing is.
    Raises:
      FloatingPointError: from `jax.debug_nans`, at the operation that made a NaN.
      FileNotFoundError, ValueError: if the folder holds nothing to replay, or that of another run.
    """
    facts = read_json(Path(folder) / "facts.json")
    key = jax.ShapeDtypeStruct(tuple(facts["members"]), jax.random.key(0).dtype)
    target, loop = jax.eval_shape(loop.init, cfg, key), at_chunk(loop, facts["chunk"])
    carry = read_carry(folder, target)
    after, metrics, batch = jax.jit(loop.iteration)(cfg, carry, facts["iteration"], *loop.data)
    names = nonfinite(metrics, after, batch)
    say(f"not finite: {', '.join(names) or 'nothing'}")
    with jax.debug_nans(True):
        jax.block_until_ready(jax.jit(loop.iteration)(cfg, carry, facts["iteration"], *loop.data))
    return names


def _params(carry: PyTree) -> PyTree:
    return getattr(carry.state, "params", carry.state)


def _floats(tree: PyTree) -> list[jax.Array]:
    return [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]


def _only_skipped(bad: dict[str, Any], skipped: Any, carry: PyTree) -> bool:
    """Whether skipped updates explain what is not finite: of members that also learned, and whose State is whole."""
    if skipped is None or WATCHED in bad or not np.all(np.asarray(skipped) < 1.0):
        return False
    explained = np.asarray(skipped) > 0.0
    whole = all(bool(jnp.all(jnp.isfinite(x))) for x in _floats(carry.state))
    return whole and all(np.shape(x) == explained.shape and np.all(np.isfinite(x) | explained) for x in bad.values())


def _is_finite(name: str, value: Any) -> bool:
    return bool(np.all(np.isfinite(value)) and not (name == WATCHED and np.any(value)))
