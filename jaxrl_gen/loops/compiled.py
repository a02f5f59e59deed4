"""A chunk compiled once and told what it costs, and the host loop that runs chunks and calls callbacks."""

import math
import os
import re
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl_gen.loops.loop import Loop
from jaxrl_gen.replay import Replay
from jaxrl_gen.types import PyTree, total_steps


class Compiled(NamedTuple):
    """A compiled chunk and what compiling told: `chunk(cfg, carry)` donates the carry.

    With a `feed` it is `chunk(cfg, carry, *data)`, for `run` to give it the data of each chunk.
    """

    chunk: Callable
    traces: int
    trace_seconds: float
    compile_seconds: float
    peak_bytes: int  # forecast: arguments, outputs and temporaries alive at once, and what is kept beside them
    flops: float  # of one chunk, as the compiler counts them; loops count once
    feed: Callable | None = None  # the Loop's

    def __str__(self):
        return (
            f"{self.traces} trace, traced in {self.trace_seconds:.1f} s, compiled in {self.compile_seconds:.1f} s, "
            f"peak memory {self.peak_bytes / 2**20:,.0f} MB forecast"
        )


def compile_report(
    loop: Loop, cfg: PyTree, carry: PyTree, *, kept: int = 0, memory_limit: int | None = None
) -> Compiled:
    """Trace and compile the chunk once, ahead of the run, and say what it costs.

    Args:
      loop: a Loop, or a population of one.
      cfg: the config, leaves as they will be passed to the chunk.
      carry: a Carry, or its shapes; sharded arrays compile to a sharded program.
      kept: bytes of a device that are taken while the chunk runs, such as by a guard's copy of the carry; what a feed
        reads ahead is counted without being told.
      memory_limit: bytes; default: what the first device, or this machine, has.
    Returns:
      Compiled; print it before the run.
    Raises:
      ValueError: if a config float was used for Python branching, or the forecast exceeds the memory limit: where the
        arguments alone do, before anything is compiled.
    """
    traces, limit = 0, device_memory() if memory_limit is None else memory_limit
    kept += nbytes(loop.data) if loop.feed else 0
    _refuse_above(limit, nbytes((cfg, carry, loop.data)) + kept, carry, kept)

    def counted(cfg, carry, *data):
        nonlocal traces
        traces += 1
        return loop.chunk(cfg, carry, *data)

    start = time.perf_counter()
    shardings = _carry_shardings(carry)
    placed = {} if shardings is None else {"out_shardings": (shardings, None)}
    try:
        lowered = jax.jit(counted, donate_argnums=1, **placed).lower(cfg, carry, *loop.data)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerIntegerConversionError) as error:
        raise ValueError(_branching_message(error)) from error
    traced = time.perf_counter()
    compiled = lowered.compile(compiler_options=_compiler_options())
    finished = time.perf_counter()
    memory = compiled.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    peak += memory.output_size_in_bytes - memory.alias_size_in_bytes + kept
    _refuse_above(limit, peak, carry, kept)
    flops = float((compiled.cost_analysis() or {}).get("flops", np.nan))
    fixed = loop.data and loop.feed is None
    chunk = (lambda cfg, carry: compiled(cfg, carry, *loop.data)) if fixed else compiled
    return Compiled(chunk, traces, traced - start, finished - traced, peak, flops, loop.feed)


def _ahead(feed: Callable[[int], tuple], start: int, stop: int) -> Iterator[tuple[tuple, float]]:
    """(data on the device, seconds waited for) of each chunk, the next one's being read in a thread meanwhile."""
    with ThreadPoolExecutor(1) as reader:
        read = lambda i: jax.block_until_ready(jax.device_put(feed(i)))
        coming = reader.submit(read, start) if start < stop else None
        for i in range(start, stop):
            begun = time.perf_counter()
            data = coming.result()
            waited = time.perf_counter() - begun
            coming = reader.submit(read, i + 1) if i + 1 < stop else None
            yield data, waited


def _compiler_options() -> dict[str, int] | None:
    """On a processor LLVM's level 2: level 3 takes up to two thirds longer, and its programs were no faster."""
    chosen = "xla_backend_optimization_level" in os.environ.get("XLA_FLAGS", "")
    return None if chosen or jax.default_backend() != "cpu" else {"xla_backend_optimization_level": 2}


def device_memory() -> int:
    """Bytes of memory of the first device, or of this machine where the device does not say; 0: unknown."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0


def nbytes(tree: PyTree) -> int:
    """Bytes of arrays, or of their shapes, on one device."""
    found = [x if hasattr(x, "dtype") else np.asarray(x) for x in jax.tree.leaves(tree)]
    own = lambda x: x.sharding.shard_shape(x.shape) if getattr(x, "sharding", None) else x.shape
    return sum(math.prod(own(x)) * x.dtype.itemsize for x in found)


def replay_bytes(carry: PyTree) -> int:
    """Bytes on one device of all rings of past rows that a carry has, wherever in it."""
    is_ring = lambda x: isinstance(x, Replay)
    return nbytes([x for x in jax.tree.leaves(carry, is_leaf=is_ring) if is_ring(x)])


def _refuse_above(limit: int, needed: int, carry: PyTree, kept: int) -> None:
    if limit and needed > limit:
        size = lambda count: f"{count / 2**30:.3g} GB"
        parts = {"of replay": replay_bytes(carry), "kept beside it": kept}
        told = " and ".join(f"{size(count)} {what}" for what, count in parts.items() if count)
        told = f", {told} among them," if told else ""
        raise ValueError(
            f"the chunk needs {size(needed)}{told} and the device has {size(limit)}: "
            "fewer lanes, members, steps per rollout or rows of replay"
        )


def _carry_shardings(carry):
    shardings = jax.tree.map(lambda x: getattr(x, "sharding", None), carry)
    spread = [s for s in jax.tree.leaves(shardings) if len(getattr(s, "device_set", ())) > 1]
    return shardings if spread else None


def _branching_message(error):
    """Names the field by the line that branched on it: the traceback's innermost line that reads a config field."""
    lines = [frame.line or "" for frame in traceback.extract_tb(error.__traceback__)]
    read = [field for line in reversed(lines) for field in re.findall(r"\b(?:cfg|config)\.\w+", line)]
    return (
        f"{read[0] if read else 'a config float'} is a float leaf and is traced, so Python cannot branch on it; "
        "use jnp.where or lax.cond, or declare the field static(...)"
    )


def run(
    chunk: Callable,
    cfg: PyTree,
    carry: PyTree,
    *,
    chunks: int,
    callbacks: Iterable[Callable[[int, PyTree, dict[str, Any]], Any]] = (),
    start: int = 0,
    feed: Callable[[int], tuple] | None = None,
) -> PyTree:
    """Go through chunks `start` to `chunks`, handing each one's carry and metrics to the callbacks in order.

    Args:
      chunk: compiled `(cfg, carry) -> (carry, metrics)`; it may donate the carry.
      cfg, carry: its arguments.
      chunks: how many there are in the whole run.
      callbacks: `(i, carry, metrics) -> stop?`, with metrics as NumPy arrays; all are called before a run stops.
      start: the first chunk to run, after a resume.
      feed: the data of the i-th chunk, then `(cfg, carry, *data)` are its arguments. What comes next is read while a
        chunk runs; the metric `data/waiting` is the share of the time in which the device waited for it.
    Returns:
      The last carry.
    """
    data = iter(lambda: ((), 0.0), None) if feed is None else _ahead(feed, start, chunks)
    for i in range(start, chunks):
        begun = time.perf_counter()
        given, waited = next(data)
        carry, metrics = chunk(cfg, carry, *given)
        metrics = {name: np.asarray(value) for name, value in jax.device_get(metrics).items()}
        if feed is not None:
            metrics["data/waiting"] = np.asarray(waited / (time.perf_counter() - begun))
        metrics["steps"] = np.asarray(total_steps(jax.device_get(carry.steps)))
        if any([callback(i, carry, metrics) for callback in callbacks]):
            break
    return carry
