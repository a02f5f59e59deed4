"""The Loop, many of them side by side, and how a mesh of devices shares them out."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_gen import sweep
from jaxrl_gen.types import Carry, Env, PyTree


class Loop(NamedTuple):
    """A training loop as pure functions.

    `init(cfg, key) -> Carry`; `chunk(cfg, carry, *data) -> (Carry, metrics)`; and `iteration(cfg, carry, i, *data) ->
    (Carry, metrics, batch)`, the i-th piece of a chunk with what it learned from, for replaying a failure. `make` and
    `env` are what it was built of. `data` is what it learns from besides: given to every call as it is, held once for
    all members, and never part of a checkpoint. With a `feed`, `feed(i)` on the host is the data of the i-th chunk,
    of the same shapes for every i, and `data` is those shapes.
    """

    init: Callable
    chunk: Callable
    iteration: Callable
    make: Callable
    env: Env
    steps_per_chunk: int  # environment steps, all lanes, one member (offline: updates)
    data: tuple[PyTree, ...] = ()
    feed: Callable | None = None


def at_chunk(loop: Loop, i: int) -> Loop:
    """The loop with the data of its i-th chunk, where it has a feed."""
    return loop if loop.feed is None else loop._replace(data=tuple(jax.device_put(loop.feed(i))))


def population(loop: Loop, mapped: Callable = sweep.mapped) -> Loop:
    """The loop over many members at once: `init` takes keys [N], and every metric is [N].

    A leaf of the config that has an axis [N] is swept; one that has none is shared by all members.

    Args:
      loop: of one member.
      mapped: how a function of one member becomes that of all: by `vmap`, or `apart` on several devices.
    """

    def chunk(cfg, carry, *data):
        return mapped(lambda cfg, carry: loop.chunk(cfg, carry, *data))(cfg, carry)

    def iteration(cfg, carry, i=0, *data):
        return mapped(lambda cfg, carry: loop.iteration(cfg, carry, i, *data))(cfg, carry)

    return loop._replace(init=mapped(loop.init), chunk=chunk, iteration=iteration)


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
    if not by_members and (lanes is None or lanes % devices):
        have = f"{members or 1} members and " + (
            f"{lanes} lanes: neither divides" if lanes else "no lanes: none divide"
        )
        raise ValueError(f"{have} over {devices} devices")

    def of(tree, lane_axis=None):
        """Placed by members, or else by the axis of the lanes, where there is one."""

        def place(x):
            axes = (*leading, *[None] * (lane_axis or 0), axis)
            laned = lane_axis is not None and x.ndim >= len(axes) and x.shape[len(axes) - 1] == lanes
            spec = (axis,) if by_members else axes if laned else ()
            return jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec(*spec))

        return jax.tree.map(place, tree)

    return Carry(
        state=of(carry.state), env_state=of(carry.env_state, 0), obs=of(carry.obs, 0), memory=of(carry.memory, 0),
        key=of(carry.key), steps=of(carry.steps), replay=of(carry.replay, 1),
    )  # fmt: skip
