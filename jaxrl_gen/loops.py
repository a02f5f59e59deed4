"""Training loops as one compiled chunk, and the host loop that runs chunks and calls callbacks.

A Loop is built from `make` (an algorithm's), and an Env of many lanes. `population` maps it over seeds and settings,
`compile_report` compiles it once and says what it costs, `run` goes through the chunks.
"""

import os
import re
import time
import traceback
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_gen import sweep
from jaxrl_gen.types import (
    Algorithm,
    Carry,
    Env,
    PyTree,
    Recalled,
    Transition,
    add_steps,
    ended,
    total_steps,
)
from jaxrl_gen.nets import forget


class Loop(NamedTuple):
    """A training loop as pure functions.

    `init(cfg, key) -> Carry`; `chunk(cfg, carry) -> (Carry, metrics)`; and `iteration(cfg, carry, i) -> (Carry,
    metrics, batch)`, the i-th piece of a chunk with what it learned from, for replaying a failure. `make` and `env` are
    what it was built of.
    """

    init: Callable
    chunk: Callable
    iteration: Callable
    make: Callable
    env: Env
    steps_per_chunk: int  # environment steps, all lanes, one member


def on_policy(make: Callable, env: Env, *, steps: int, iterations: int) -> Loop:
    """Collect `steps` steps in every lane, update once, repeat: one chunk is `iterations` of these.

    Args:
      make: `(cfg, spec) -> Algorithm` whose batch is a Transition `[T, E, ...]`.
      env: of E lanes that reset themselves (`envs.wrap`).
      steps: T, steps per lane and update.
      iterations: updates per chunk; metrics are averaged over a chunk.
    Returns:
      Loop.
    Raises:
      ValueError: if steps or iterations < 1.
    """
    for name, value in {"steps": steps, "iterations": iterations}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; allowed: 1 and more")
    lanes = env.lanes
    if lanes is None:
        raise ValueError("the environment is one lane; make it many: wrap.pooled(env, lanes) or wrap.fresh(env, lanes)")

    def init(cfg, key):
        key, key_state, key_env = jax.random.split(key, 3)
        algo = make(cfg, env.spec)
        env_state, obs = env.reset(key_env)
        return Carry(algo.init(key_state), env_state, obs, algo.memory(lanes), key, jnp.zeros((2,), jnp.uint32))

    renew = renewal(env, steps, iterations)

    def iteration(cfg, carry, i=0):
        algo = make(cfg, env.spec)
        key, key_renew, key_collect, key_update = jax.random.split(carry.key, 4)
        carry = carry._replace(env_state=renew(carry.env_state, key_renew, i))
        carry, rows, sums = collect(algo, env, carry, key_collect, steps)
        state, metrics = algo.update(carry.state, rows, key_update)
        carry = carry._replace(state=state, key=key, steps=add_steps(carry.steps, steps * lanes))
        return carry, metrics | sums, rows

    def chunk(cfg, carry):
        carry, metrics = jax.lax.scan(lambda carry, i: iteration(cfg, carry, i)[:2], carry, jnp.arange(iterations))
        return carry, reduce_metrics(metrics)

    return Loop(init, chunk, iteration, make, env, steps * lanes * iterations)


def renewal(env: Env, steps: int, iterations: int) -> Callable:
    """`(env_state, key, i) -> env_state`, to be called before the i-th rollout of `steps` steps in a chunk.

    All lanes are renewed as often as `env.renew_after` allows: before each rollout, or before some of them, or, where
    even one per chunk is too many, a share of the lanes. The index is the chunk's own and the same for all members of a
    population, so that what is left out is not computed.
    """
    rollouts = -(-env.renew_after // steps)  # between two renewals of a lane
    every = min(rollouts, iterations)
    share = -(-rollouts // every)
    if every == 1:
        return lambda state, key, i: env.renew(state, key, share)
    return lambda state, key, i: jax.lax.cond(i % every == 0, lambda: env.renew(state, key, share), lambda: state)


def collect(algo: Algorithm, env: Env, carry: Carry, key: jax.Array, steps: int) -> tuple[Carry, Transition, dict]:
    """Act for `steps` steps in every lane.

    Returns:
      The carry after the steps; the rows, leaves `[T, E, ...]`; metrics of this rollout, for `reduce_metrics`.
    """
    # All at once: on a processor, each split within the scan would cost as much as a step of a small environment.
    keys = jax.random.split(key, (steps, 1 + env.lanes))
    initial_memory = algo.memory(env.lanes)

    def step(rolling, keys):
        env_state, obs, memory = rolling
        key_act, key_env = keys
        read = obs if memory is None else Recalled(obs, memory)
        action, extras = algo.act(carry.state, read, key_act)
        env_state, next_obs, outcome = env.step(env_state, action, key_env)
        if memory is not None:
            memory = forget(extras.pop("memory"), initial_memory, ended(outcome))
        row = Transition(
            read, action, outcome.reward, outcome.next_obs, outcome.terminated, outcome.truncated, outcome.valid, extras
        )
        return (env_state, next_obs, memory), (row, outcome.info)

    rolling = (carry.env_state, carry.obs, carry.memory)
    (env_state, obs, memory), (rows, info) = jax.lax.scan(step, rolling, (keys[:, 0], keys[:, 1:]))
    carry = carry._replace(env_state=env_state, obs=obs, memory=memory)
    return carry, rows, rollout_metrics(rows, info)


EPISODE = "episode/"  # family of metrics that count whole episodes, and are empty (NaN) where none ended


def rollout_metrics(rows: Transition, info: dict) -> dict:
    """Sums over the rows `[T, E]` of a rollout, from which `reduce_metrics` makes metrics: constant in size."""
    whole = ended(rows) & rows.valid & info.get(EPISODE + "whole", True)
    metrics = {f"env/{name}": jnp.mean(x) for name, x in info.items() if not name.startswith(EPISODE)}
    metrics["env/reward"] = jnp.mean(rows.reward)
    metrics["env/quarantined"] = jnp.sum(~rows.valid).astype(jnp.float32)
    if EPISODE + "return" in info:
        total, length = info[EPISODE + "return"], info[EPISODE + "length"]
        metrics["episodes"] = {
            "count": jnp.sum(whole).astype(jnp.float32),
            "total": jnp.sum(total, where=whole),
            "square": jnp.sum(total**2, where=whole),
            "min": jnp.min(total, where=whole, initial=jnp.inf),
            "max": jnp.max(total, where=whole, initial=-jnp.inf),
            "length": jnp.sum(length, where=whole).astype(jnp.float32),
        }
    return metrics


def reduce_metrics(metrics: dict) -> dict[str, jax.Array]:
    """Metrics stacked over the iterations of a chunk to one scalar each; episodes are weighted by their number."""
    metrics = dict(metrics)
    episodes = metrics.pop("episodes", None)
    reduced = {name: jnp.sum(x) if name == "env/quarantined" else jnp.mean(x) for name, x in metrics.items()}
    if episodes is not None:
        count = jnp.sum(episodes["count"])
        some = lambda x: jnp.where(count > 0, x, jnp.nan)  # noqa: E731
        mean = jnp.sum(episodes["total"]) / count
        reduced |= {
            EPISODE + "count": count,
            EPISODE + "return": some(mean),
            EPISODE + "return_std": some(jnp.sqrt(jnp.maximum(jnp.sum(episodes["square"]) / count - mean**2, 0.0))),
            EPISODE + "return_min": some(jnp.min(episodes["min"])),
            EPISODE + "return_max": some(jnp.max(episodes["max"])),
            EPISODE + "length": some(jnp.sum(episodes["length"]) / count),
        }
    return reduced


def population(loop: Loop, mapped: Callable = sweep.mapped) -> Loop:
    """The loop over many members at once: `init` takes keys [N], and every metric is [N].

    A leaf of the config that has an axis [N] is swept; one that has none is shared by all members.

    Args:
      loop: of one member.
      mapped: how a function of one member becomes that of all: by `vmap`, or `apart` on several devices.
    """

    def iteration(cfg, carry, i=0):
        return mapped(partial(loop.iteration, i=i))(cfg, carry)

    return loop._replace(init=mapped(loop.init), chunk=mapped(loop.chunk), iteration=iteration)


def apart(mesh: jax.sharding.Mesh) -> Callable:
    """As `sweep.mapped`, with each device of a mesh running its own members: nothing passes between devices.

    Left to the compiler, devices would meet wherever a simulator's solver asks whether any lane needs another round.
    """
    (axis,) = mesh.axis_names
    by_members = jax.sharding.PartitionSpec(axis)

    def mapped(function):
        def over_members(cfg, *rest):
            swept = jax.tree.map(lambda x: by_members if jnp.ndim(x) else jax.sharding.PartitionSpec(), cfg)
            specs = (swept, *[by_members] * len(rest))
            on_each = jax.shard_map(
                sweep.mapped(function), mesh=mesh, in_specs=specs, out_specs=by_members, check_vma=False
            )
            return on_each(cfg, *rest)

        return over_members

    return mapped


class Compiled(NamedTuple):
    """A compiled chunk and what compiling told: `chunk(cfg, carry)` donates the carry."""

    chunk: Callable
    traces: int
    trace_seconds: float
    compile_seconds: float
    peak_bytes: int  # forecast: arguments, outputs and temporaries alive at once
    flops: float  # of one chunk, as the compiler counts them; loops count once

    def __str__(self):
        return (
            f"{self.traces} trace, traced in {self.trace_seconds:.1f} s, compiled in {self.compile_seconds:.1f} s, "
            f"peak memory {self.peak_bytes / 2**20:,.0f} MB forecast"
        )


def compile_report(loop: Loop, cfg: PyTree, carry: PyTree, *, memory_limit: int | None = None) -> Compiled:
    """Trace and compile the chunk once, ahead of the run, and say what it costs.

    Args:
      loop: a Loop, or a population of one.
      cfg: the config, leaves as they will be passed to the chunk.
      carry: a Carry, or its shapes; sharded arrays compile to a sharded program.
      memory_limit: bytes; default: what the first device, or this machine, has.
    Returns:
      Compiled; print it before the run.
    Raises:
      ValueError: if a config float was used for Python branching, or the forecast exceeds the memory limit.
    """
    traces = 0

    def counted(cfg, carry):
        nonlocal traces
        traces += 1
        return loop.chunk(cfg, carry)

    start = time.perf_counter()
    shardings = _carry_shardings(carry)
    placed = {} if shardings is None else {"out_shardings": (shardings, None)}
    try:
        lowered = jax.jit(counted, donate_argnums=1, **placed).lower(cfg, carry)
    except (jax.errors.ConcretizationTypeError, jax.errors.TracerIntegerConversionError) as error:
        raise ValueError(_branching_message(error)) from error
    traced = time.perf_counter()
    compiled = lowered.compile()
    finished = time.perf_counter()
    memory = compiled.memory_analysis()
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    peak += memory.output_size_in_bytes - memory.alias_size_in_bytes
    limit = memory_limit or device_memory()
    if limit and peak > limit:
        raise ValueError(
            f"the chunk needs {peak / 2**30:.1f} GB and the device has {limit / 2**30:.1f} GB: "
            "fewer lanes, members or steps per rollout"
        )
    flops = float((compiled.cost_analysis() or {}).get("flops", np.nan))
    return Compiled(compiled, traces, traced - start, finished - traced, peak, flops)


def device_memory() -> int:
    """Bytes of memory of the first device, or of this machine where the device does not say; 0: unknown."""
    stats = jax.local_devices()[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else 0


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
) -> PyTree:
    """Go through chunks `start` to `chunks`, handing each one's carry and metrics to the callbacks in order.

    Args:
      chunk: compiled `(cfg, carry) -> (carry, metrics)`; it may donate the carry.
      cfg, carry: its arguments.
      chunks: how many there are in the whole run.
      callbacks: `(i, carry, metrics) -> stop?`, with metrics as NumPy arrays; all are called before a run stops.
      start: the first chunk to run, after a resume.
    Returns:
      The last carry.
    """
    for i in range(start, chunks):
        carry, metrics = chunk(cfg, carry)
        metrics = {name: np.asarray(value) for name, value in jax.device_get(metrics).items()}
        metrics["steps"] = np.asarray(total_steps(jax.device_get(carry.steps)))
        if any([callback(i, carry, metrics) for callback in callbacks]):
            break
    return carry


def shardings(mesh: jax.sharding.Mesh, loop: Loop, carry: PyTree, *, members: int | None = None) -> PyTree:
    """How a mesh of one axis shares out a carry: by members where they divide over it, else by lanes.

    What has neither is copied to every device. Where lanes are shared out, the compiler partitions the chunk from these
    shardings alone; no collective stands in algorithm code. Members run `apart`.

    Args:
      mesh: one axis, of type Auto.
      loop: the Loop whose carry it is; for a population, the population.
      carry: its Carry, or shapes.
      members: N of a population, whose leaves have a leading axis [N].
    Returns:
      A NamedSharding for every leaf of the carry.
    Raises:
      ValueError: if neither members nor lanes divide over the devices.
    """
    (axis,), devices, lanes = mesh.axis_names, mesh.size, loop.env.lanes
    leading = () if members is None else (None,)
    by_members = members is not None and members % devices == 0
    if not by_members and lanes % devices:
        raise ValueError(f"{members or 1} members and {lanes} lanes: neither divides over {devices} devices")

    def place(x, has_lanes):
        spec = (axis,) if by_members else (*leading, axis) if has_lanes else ()
        return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

    def of(tree, laned):
        rank = len(leading)
        is_laned = lambda x: laned and x.ndim > rank and x.shape[rank] == lanes  # noqa: E731
        return jax.tree.map(lambda x: place(x, is_laned(x)), tree)

    return Carry(
        state=of(carry.state, False), env_state=of(carry.env_state, True), obs=of(carry.obs, True),
        memory=of(carry.memory, True), key=of(carry.key, False), steps=of(carry.steps, False),
    )  # fmt: skip
