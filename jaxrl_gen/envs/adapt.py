"""What adaptors of simulators share: names with their neighbours, actions in the simulator's units, lean states."""

import difflib
from collections.abc import Callable, Iterable

import jax
import jax.numpy as jnp
import numpy as np
from jax.interpreters import partial_eval

from jaxrl_gen.types import Env


def known(name: str, names: Iterable[str], where: str) -> None:
    """Refuse a name that is not among `names`.

    Raises:
      ValueError: with the nearest names.
    """
    names = [str(x) for x in names]
    if name not in names:
        lower = {x.lower(): x for x in names}
        near = difflib.get_close_matches(str(name).lower(), lower, n=3, cutoff=0.3)
        raise ValueError(f"{name!r} is not in {where}; nearest: {', '.join(lower[x] for x in near) or 'none'}")


def one_line(error: Exception) -> str:
    """The message of an exception without its line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def in_units(low, high, what: str) -> Callable:
    """A function from actions in [-1, 1]^A to the simulator's own range.

    Args:
      low, high: [A], its range.
      what: for the error message.
    Returns:
      `action [A] -> [A]`; the identity where the range is [-1, 1].
    Raises:
      ValueError: if the range is not finite, or empty.
    """
    low, high = np.asarray(low, np.float32), np.asarray(high, np.float32)
    if not (np.all(np.isfinite(low) & np.isfinite(high)) and np.all(low < high)):
        raise ValueError(f"the range of {what} is {low.tolist()} to {high.tolist()}; allowed: finite, low below high")
    if np.all(low == -1) and np.all(high == 1):
        return lambda action: action
    return lambda action: low + 0.5 * (action + 1) * (high - low)


def lean(env: Env) -> Env:
    """The same Env, carrying only that part of the simulator's state which its next step or its scene will read.

    Simulators hand on much that they compute anew at each step; in a scan over many lanes each of those numbers is
    stored, and selected at every reset. What is read is found in the program of `step` itself, so nothing that matters
    is dropped. Dtypes are those at reset, and never weak, so that a scan can carry them.
    """
    state, _ = jax.eval_shape(env.reset, jax.random.key(0))
    action = _action(env)
    leaves, tree = jax.tree.flatten(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), state))
    used = _read_by(env.scene.view, state)[: len(leaves)] if env.scene else [False] * len(leaves)
    grown = True
    while grown:  # what the step needs in order to produce what the next step needs
        now = _read_by(env.step, tree.unflatten(leaves), action, jax.random.key(0), state_used=used)
        now = [a or b for a, b in zip(used, now)]
        used, grown = now, now != used

    def pack(state):
        held = zip(jax.tree.leaves(state), leaves, used)
        return tuple(_as(leaf, x) for x, leaf, is_used in held if is_used)

    def unpack(packed):
        packed = iter(packed)
        return tree.unflatten([next(packed) if is_used else _blank(leaf) for leaf, is_used in zip(leaves, used)])

    def reset(key):
        state, obs = env.reset(key)
        return pack(state), jax.tree.map(_as, env.spec.obs, obs)

    def step(state, action, key):
        state, obs, outcome = env.step(unpack(state), action, key)
        obs, next_obs = (jax.tree.map(_as, env.spec.obs, x) for x in (obs, outcome.next_obs))
        return pack(state), obs, outcome._replace(next_obs=next_obs)

    scene = env.scene and env.scene._replace(view=lambda state: env.scene.view(unpack(state)))
    return env._replace(reset=reset, step=step, scene=scene)


def _read_by(function, state, *rest, state_used=None) -> list[bool]:
    """Which leaves of the state `function` reads, where of a new state that it returns only some are wanted."""
    program, out = jax.make_jaxpr(function, return_shape=True)(state, *rest)
    wanted = [True] * len(jax.tree.leaves(out))
    if state_used is not None:
        wanted[: len(state_used)] = state_used
    return list(partial_eval.dce_jaxpr(program.jaxpr, wanted)[1])[: len(jax.tree.leaves(state))]


def _as(leaf, x):
    """`x` with the dtype of `leaf`, strongly typed."""
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return x
    return jax.lax.convert_element_type(x, leaf.dtype)


def _blank(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        return jnp.broadcast_to(jax.random.key(0), leaf.shape)
    return jnp.zeros(leaf.shape, leaf.dtype)


def _action(env):
    shape, dtype = ((), jnp.int32) if env.spec.discrete else ((env.spec.action_size,), jnp.float32)
    return jax.ShapeDtypeStruct(shape, dtype)


def reset_in_steps(env: Env) -> float:
    """What a reset of one lane costs, in steps, by how many numbers either computes, those of loops in every round.

    Some simulators let the robot settle for hundreds of steps before an episode. Loops whose length depends on the
    data, such as a solver's, count once.
    """
    key = jax.random.key(0)
    state, _ = jax.eval_shape(env.reset, key)
    reset, step = jax.make_jaxpr(env.reset)(key), jax.make_jaxpr(env.step)(state, _action(env), key)
    return _numbers(reset.jaxpr) / max(_numbers(step.jaxpr), 1)


def _numbers(jaxpr) -> int:
    """How many numbers a program computes, those of inner programs included."""
    total = 0
    for equation in jaxpr.eqns:
        times = equation.params["length"] if equation.primitive.name == "scan" else 1
        inner = _inner(equation)
        total += times * sum(map(_numbers, inner)) if inner else sum(x.aval.size for x in equation.outvars)
    return total


def _inner(equation) -> list:
    """The programs within an equation: bodies of loops, branches, calls."""
    leaves = jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns"))
    return [getattr(x, "jaxpr", x) for x in leaves if hasattr(x, "eqns")]
