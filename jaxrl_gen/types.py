"""The six nouns of the toolkit: Spec, Config, State, Algorithm, Env, Carry, and the rows that pass between them.

Axis letters: T time, E envs (lanes), B batch, A action, D features; time comes first in trajectories, `[T, E, ...]`.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

PyTree = Any


class Spec(NamedTuple):
    """The static shapes of the problem, for one lane.

    Continuous actions are vectors in [-1, 1]^A whatever the simulator's own limits: an adaptor rescales them.
    """

    obs: PyTree  # of jax.ShapeDtypeStruct
    action_size: int  # A coordinates of a continuous action, or the number of discrete actions
    discrete: bool = False
    time_limit: int | None = None  # longest episode in steps; None: unbounded


class Outcome(NamedTuple):
    """What one step of an environment returned beside the observation the policy sees next.

    An episode ended when `terminated | truncated`. A terminated state is worth nothing more; a truncated one bootstraps
    from `next_obs`, which is what physics produced, never the observation of the episode that follows.
    """

    next_obs: PyTree
    reward: jax.Array
    terminated: jax.Array  # bool
    truncated: jax.Array  # bool
    valid: jax.Array | bool = True  # False: the simulator went non-finite here; mask the row out of every loss
    info: dict[str, jax.Array] = {}  # scalars for people: reward terms, episode sums


class Transition(NamedTuple):
    """One row, or `[T, E, ...]` rows, of experience: the batch of every algorithm that learns from interaction."""

    obs: PyTree
    action: jax.Array
    reward: jax.Array
    next_obs: PyTree
    terminated: jax.Array
    truncated: jax.Array
    valid: jax.Array
    extras: dict[str, PyTree] = {}  # what `act` returned beside the action


class Env(NamedTuple):
    """A simulator as pure functions.

    `reset(key) -> (state, obs)` and `step(state, action, key) -> (state, obs, Outcome)`. An adaptor's Env is one lane
    that does not reset itself (`obs` is `outcome.next_obs`); `envs.wrap` turns it into E lanes that do, with a leading
    axis E on everything, keys of `step` included.

    `renew(state, key, share) -> state` is called by loops between rollouts, outside the scan over steps: the room for
    work that would be wasted at each of them, such as simulating fresh reset states, here for one lane in `share`. No
    lane is renewed sooner than `renew_after` steps after the last time.

    `scene` is for people: see `render.py`.
    """

    reset: Callable
    step: Callable
    spec: Spec
    renew: Callable = lambda state, key, share: state
    scene: "Scene | None" = None
    lanes: int | None = None  # E; None: one lane, without a leading axis
    renew_after: int = 1  # steps


class Scene(NamedTuple):
    """How to see an environment: `view(state) -> pytree` is pure and small; `draw(views, height, width)` gives frames.

    `draw` receives host arrays with a leading time axis and returns uint8 frames `[T, height, width, 3]`.
    """

    view: Callable
    draw: Callable
    fps: float = 30.0


class Recalled(NamedTuple):
    """What `act` reads as `obs` when the policy has memory; it returns the new memory in `extras["memory"]`."""

    obs: PyTree
    memory: PyTree


class Algorithm(NamedTuple):
    """A method as pure functions over its own State.

    `init(key) -> State`; `update(state, batch, key) -> (State, metrics)`; `act(state, obs, key) -> (action, extras)`,
    where `key=None` means deterministic. `memory(lanes) -> pytree [lanes, ...]` is the policy's initial memory; where
    it is `None` the policy has none. Otherwise `act` is handed `Recalled(obs, memory)`.
    """

    init: Callable
    update: Callable
    act: Callable
    memory: Callable = lambda lanes: None


class Carry(NamedTuple):
    """Everything a run changes: the checkpoint."""

    state: PyTree  # the algorithm's State
    env_state: PyTree
    obs: PyTree  # [E, ...] what the policy sees next
    memory: PyTree  # [E, ...] of the policy, or None
    key: jax.Array
    steps: jax.Array  # uint32[2], low and high word of the environment steps taken (offline: of the updates)
    replay: PyTree = ()  # rows kept to learn from again


def static(default: Any, *, low: float | None = None, high: float | None = None) -> Any:
    """A Config field that shapes the program (a size, a count, a flag): changing it recompiles."""
    return _field(default, low, high, is_static=True)


def leaf(default: float, *, low: float | None = None, high: float | None = None) -> Any:
    """A Config field that is a float leaf of the pytree: changing it never recompiles, and `vmap` sweeps it."""
    return _field(default, low, high, is_static=False)


def _field(default, low, high, *, is_static):
    metadata = {"static": is_static, "low": low, "high": high}
    if dataclasses.is_dataclass(default):
        return dataclasses.field(default_factory=lambda: default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def config(cls: type) -> type:
    """Make `cls` a Config: a frozen dataclass, registered as a pytree whose leaves are its non-static fields."""
    cls = dataclasses.dataclass(frozen=True)(cls)
    fields = dataclasses.fields(cls)
    is_static = [field.metadata.get("static", False) for field in fields]
    jax.tree_util.register_dataclass(
        cls,
        data_fields=[field.name for field, shaping in zip(fields, is_static) if not shaping],
        meta_fields=[field.name for field, shaping in zip(fields, is_static) if shaping],
    )
    return cls


def check(cfg: Any, path: str = "config") -> None:
    """Refuse a Config, or any dataclass that holds Configs, whose numbers are NaN or outside their declared range.

    Raises:
      ValueError: naming the field, what it was and what is allowed.
    """
    for field in dataclasses.fields(cfg):
        value, name = getattr(cfg, field.name), f"{path}.{field.name}"
        if dataclasses.is_dataclass(value):
            check(value, name)
            continue
        low, high = field.metadata.get("low"), field.metadata.get("high")
        ranged = low is not None or high is not None
        if ranged or isinstance(value, (float, np.floating, np.ndarray, jax.Array)):
            low, high = -math.inf if low is None else low, math.inf if high is None else high
            try:
                numbers = np.asarray(value, np.float64)
            except (TypeError, ValueError) as error:
                raise ValueError(f"{name} is {value!r}; allowed: numbers in [{low:g}, {high:g}]") from error
            if ranged and field.metadata.get("static") and not np.all(numbers == np.floor(numbers)):
                raise ValueError(f"{name} is {value}; allowed: whole numbers")
            if not np.all((numbers >= low) & (numbers <= high)):
                raise ValueError(f"{name} is {value}; allowed: numbers in [{low:g}, {high:g}]")


def strong(cfg: PyTree) -> PyTree:
    """Turn the float leaves of a Config into float32 arrays, so that a Python float and an array trace alike."""
    return jax.tree.map(lambda value: jnp.asarray(value, jnp.float32), cfg)


def ended(row: "Transition | Outcome") -> jax.Array:
    """Whether an episode ended at each row, in either way."""
    return row.terminated | row.truncated


def add_steps(steps: jax.Array, count: int) -> jax.Array:
    """Advance a two-word counter, uint32[2], by `count` < 2**32; it does not overflow in any run's lifetime."""
    low = steps[0] + jnp.uint32(count)
    return jnp.stack([low, steps[1] + (low < steps[0]).astype(jnp.uint32)])


def total_steps(steps: jax.Array) -> int:
    """The two-word counter as a Python int (of the first member, where a population has a leading axis)."""
    low, high = np.asarray(steps).reshape(-1, 2)[0]
    return int(low) + (int(high) << 32)


def branch(condition: jax.Array, function: Callable[[], PyTree], otherwise: Callable[[], PyTree]) -> PyTree:
    """`function()` where the condition holds and else `otherwise()`, which under `vmap` stays a branch.

    `jax.lax.cond` computes both sides for every member of a population whose condition has an axis of its own. Here
    `function` is left out where no member wants it, and where any does, the others keep what `otherwise` gives.

    Args:
      condition: scalar bool.
      function, otherwise: of no arguments, with results of one structure, shape and dtype.
    """

    def wanted():
        return jax.tree.map(lambda x, y: jnp.where(_own(condition), x, y), function(), otherwise())

    return jax.lax.cond(_any_member(condition), wanted, otherwise)


@jax.custom_batching.custom_vmap
def _any_member(condition):
    """The condition of a single run; in a population, without an axis, whether it holds for any member."""
    return condition


@_any_member.def_vmap
def _(size, mapped, condition):
    return _any_member(jnp.any(condition)), False


@jax.custom_batching.custom_vmap
def _own(condition):
    """Of a single run True, for it is asked within the branch alone; in a population each member's condition."""
    return jnp.ones_like(condition)


@_own.def_vmap
def _(size, mapped, condition):
    return condition, True
