"""Wrappers: time limits, action repeat, quarantine, episode sums, and two ways to many lanes that reset themselves.

An adaptor gives one lane that never resets. `pooled` and `fresh` turn it into E lanes that do:

    pooled(env, lanes=64)   reset states are simulated between rollouts and kept at hand: for costly simulators
    fresh(env, lanes=64)    a reset is simulated at every step and mostly thrown away: exact, for cheap simulators
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_gen.envs import adapt
from jaxrl_gen.types import Env, Outcome, PyTree, Spec, ended


class Timed(NamedTuple):
    """State of `time_limit`: the inner state, the steps of this episode so far, and their limit."""

    inner: PyTree
    step: jax.Array  # i32
    limit: jax.Array  # i32, in steps of this level: those of wrappers around it may be longer


def time_limit(env: Env, steps: int) -> Env:
    """Truncate episodes after `steps` steps, unless they terminated just then.

    Raises:
      ValueError: if steps < 1.
    """
    if steps < 1:
        raise ValueError(f"time limit is {steps} steps; allowed: 1 and more")

    def reset(key):
        state, obs = env.reset(key)
        return Timed(state, jnp.zeros((), jnp.int32), jnp.asarray(steps, jnp.int32)), obs

    def step(state, action, key):
        inner, obs, outcome = env.step(state.inner, action, key)
        count = state.step + 1
        truncated = outcome.truncated | ((count >= steps) & ~outcome.terminated)
        return Timed(inner, count, state.limit), obs, outcome._replace(truncated=truncated)

    return _over(env, reset, step)._replace(spec=env.spec._replace(time_limit=steps))


class Scored(NamedTuple):
    """State of `scored`: the inner state, and whether the episode's first step is still to come."""

    inner: PyTree
    first: jax.Array  # bool


def scored(env: Env, low: float, high: float) -> Env:
    """Rewards whose sum over an episode is its normalised score, 100 (return - low) / (high - low), for evaluation.

    Args:
      env: one lane.
      low: the return that scores 0, such as a random policy's.
      high: the return that scores 100, such as an expert's.
    Returns:
      Env; `low` is taken from the reward of an episode's first step: one that is cut short is on the same scale.
    Raises:
      ValueError: if the two are the same.
    Reference: Fu et al. 2020, arXiv 2004.07219 (D4RL), section 5
    """
    if low == high:
        raise ValueError(f"low and high are both {low}; allowed: two returns that differ")

    def reset(key):
        state, obs = env.reset(key)
        return Scored(state, jnp.ones((), bool)), obs

    def step(state, action, key):
        inner, obs, outcome = env.step(state.inner, action, key)
        reward = 100.0 / (high - low) * (outcome.reward - low * state.first)
        return Scored(inner, jnp.zeros((), bool)), obs, outcome._replace(reward=reward)

    return _over(env, reset, step)


def action_repeat(env: Env, times: int) -> Env:
    """Apply each action `times` times and sum the rewards, stopping at the end of the episode.

    Raises:
      ValueError: if times < 1.
    """
    if times < 1:
        raise ValueError(f"action repeat is {times}; allowed: 1 and more")

    def step(state, action, key):
        return _in_a_row(env, state, jnp.broadcast_to(action, (times, *jnp.shape(action))), key)

    return env._replace(step=step, spec=_slower(env.spec, times))


def action_chunk(env: Env, length: int) -> Env:
    """Take `length` actions at once and apply them one after the other, unseen, summing the rewards up to an end.

    Args:
      env: one lane, with continuous actions [A].
      length: H; the action is [H A], the first one's coordinates first.
    Returns:
      Env.
    Raises:
      ValueError: if length < 1, or actions are discrete.
    """
    if length < 1 or env.spec.discrete:
        raise ValueError(f"action chunk is {length}; allowed: 1 and more, of continuous actions")
    size = env.spec.action_size

    def step(state, action, key):
        return _in_a_row(env, state, action.reshape(length, size), key)

    return env._replace(step=step, spec=_slower(env.spec, length)._replace(action_size=length * size))


def _in_a_row(env: Env, state: PyTree, actions: jax.Array, key: jax.Array):
    """Several steps as one, whose reward is their sum; it stops at the end of the episode."""

    def again(carry, row):
        state, _, outcome = carry
        following = env.step(state, *row)
        total = following[2]._replace(reward=outcome.reward + following[2].reward)
        return choose(ended(outcome) | ~jnp.asarray(outcome.valid), carry, (*following[:2], total)), None

    keys = jax.random.split(key, len(actions))
    first = env.step(state, actions[0], keys[0])
    return jax.lax.scan(again, first, (actions[1:], keys[1:]))[0] if len(actions) > 1 else first


def _slower(spec: Spec, times: int) -> Spec:
    return spec._replace(time_limit=spec.time_limit and -(-spec.time_limit // times))


def quarantine(env: Env) -> Env:
    """Contain a simulator that turned non-finite: the row is marked invalid, its numbers zeroed, its episode truncated.

    The observation and the reward are looked at, which physics that went non-finite reaches within a step; looking at
    all of the simulator's state would cost a third of a cheap step. The zeroed row must be masked by `valid`; the lane
    is reset like any other whose episode ended, and other lanes never notice.
    """

    def step(state, action, key):
        state, obs, outcome = env.step(state, action, key)
        valid = _all_finite((outcome.next_obs, outcome.reward)) & outcome.valid
        zeroed = lambda tree: jax.tree.map(lambda x: jnp.where(valid, x, jnp.zeros_like(x)), tree)
        return (
            state,
            zeroed(obs),
            Outcome(
                next_obs=zeroed(outcome.next_obs),
                reward=zeroed(outcome.reward),
                terminated=outcome.terminated & valid,
                truncated=outcome.truncated | ~valid,
                valid=valid,
                info=zeroed(outcome.info),
            ),
        )

    return env._replace(step=step)


class Summed(NamedTuple):
    """State of `episode_sums`: the inner state, and this episode's return and length so far."""

    inner: PyTree
    total: jax.Array  # f32
    length: jax.Array  # i32
    whole: jax.Array  # bool; False: `staggered` made this episode shorter than it would have been


def episode_sums(env: Env) -> Env:
    """Add `info["episode/return"]` and `info["episode/length"]`, the undiscounted sums so far, whole at the end."""

    def reset(key):
        state, obs = env.reset(key)
        return Summed(state, jnp.zeros((), jnp.float32), jnp.zeros((), jnp.int32), jnp.ones((), bool)), obs

    def step(state, action, key):
        inner, obs, outcome = env.step(state.inner, action, key)
        total, length = state.total + outcome.reward, state.length + 1
        info = {**outcome.info, "episode/return": total, "episode/length": length, "episode/whole": state.whole}
        return Summed(inner, total, length, state.whole), obs, outcome._replace(info=info)

    return _over(env, reset, step)


class Pooled(NamedTuple):
    """State of `pooled`: the lanes, and beside each the reset states it will start its next episodes from."""

    lanes: PyTree  # [E, ...]
    spares: Any  # (state, obs), leaves [E, spares, ...]
    episode: jax.Array  # i32 [E], episodes begun by each lane
    turn: jax.Array  # i32, renewals so far: whose turn it is where not all lanes are renewed at once


def pooled(env: Env, lanes: int, spares: int = 2, *, cost: float = 0.02, together: int | None = None) -> Env:
    """E lanes that reset themselves from a pool of fresh reset states.

    Each lane holds `spares` reset states and takes them in turn, so no state serves one lane twice in a row. `renew`,
    which loops call between rollouts, simulates a fresh state into the place that a lane will take next. Loops call it
    after every rollout; where a reset is so long that this would cost more than a share `cost` of the steps between
    (some simulators let a robot settle for hundreds of steps), more rarely or for fewer lanes. A lane that ends more
    episodes than it has been given fresh states starts from the ones that it holds, again in turn.

    Quarantine and episode sums are included.

    Args:
      env: one lane.
      lanes: E.
      spares: reset states held by each lane, at least 2.
      cost: of renewals, at most so much per unit of the steps' cost; infinite: renew all lanes after every rollout.
      together: lanes stepped at a time; default: all. On a processor a robot's step can be much faster for a few
        dozen lanes, those of all members counted, than for many; on an accelerator it was not tried.
    Returns:
      Env whose state, observations and outcomes have a leading axis E, keys included.
    Raises:
      ValueError: if lanes < 1, spares < 2 or cost <= 0, or if `together` does not divide the lanes.
    """
    if spares < 2:
        raise ValueError(f"spares is {spares}; allowed: 2 and more, or a state would serve a lane twice in a row")
    if not cost > 0:
        raise ValueError(f"cost is {cost}; allowed: above 0")
    env, together = _counted(env, lanes), together or lanes
    if together < 1 or lanes % together:
        raise ValueError(f"together is {together}; it must divide the {lanes} lanes")
    renew_after = math.ceil(adapt.reset_in_steps(env) / cost) or 1
    step_lanes = _some_at_a_time(jax.vmap(env.step), lanes, together)

    def reset(key):
        key, key_stagger = jax.random.split(key)
        starts = jax.vmap(env.reset)(jax.random.split(key, lanes * (1 + spares)))  # in one piece, to compile it once
        starts = jax.tree.map(lambda x: x.reshape(lanes, 1 + spares, *x.shape[1:]), starts)
        state, obs = jax.tree.map(lambda x: x[:, 0], starts)
        state = staggered(state, key_stagger)
        pool = jax.tree.map(lambda x: x[:, 1:], starts)
        return Pooled(state, pool, jnp.zeros((lanes,), jnp.int32), jnp.zeros((), jnp.int32)), obs

    def step(state, action, keys):
        inner, obs, outcome = step_lanes(state.lanes, action, keys)
        over, slot = ended(outcome), state.episode % spares
        at_slot = lambda pool: jax.vmap(lambda row, i: row[i])(pool, slot)
        inner, obs = choose(over, jax.tree.map(at_slot, state.spares), (inner, obs))
        return state._replace(lanes=inner, episode=state.episode + over), obs, outcome

    def renew(state, key, share):
        share = next(n for n in range(min(share, lanes), lanes + 1) if lanes % n == 0)
        made = jax.vmap(env.reset)(jax.random.split(key, lanes // share))
        made = jax.tree.map(lambda x: jnp.repeat(x, share, axis=0), made)  # for one of `share` neighbours
        in_turn = jnp.arange(lanes) % share == state.turn % share
        at = in_turn[:, None] & (jnp.arange(spares) == (state.episode % spares)[:, None])
        put = lambda pool, new: choose(at, jnp.broadcast_to(new[:, None], pool.shape), pool)
        return state._replace(spares=jax.tree.map(put, state.spares, made), turn=state.turn + 1)

    many = Env(reset, step, env.spec, renew, env.scene, lanes, renew_after)
    return _many(env, many, lambda state: state.lanes)


def fresh(env: Env, lanes: int) -> Env:
    """E lanes that reset themselves exactly: a reset is computed for each at every step, and used where it ended.

    Quarantine and episode sums are included.

    Args:
      env: one lane.
      lanes: E.
    Returns:
      Env whose state, observations and outcomes have a leading axis E, keys included.
    Raises:
      ValueError: if lanes < 1.
    """
    env = _counted(env, lanes)

    def reset(key):
        key, key_stagger = jax.random.split(key)
        state, obs = jax.vmap(env.reset)(jax.random.split(key, lanes))
        return staggered(state, key_stagger), obs

    def step_lane(state, action, key):
        key_step, key_reset = jax.random.split(key)
        state, obs, outcome = env.step(state, action, key_step)
        state, obs = choose(ended(outcome), env.reset(key_reset), (state, obs))
        return state, obs, outcome

    return _many(env, Env(reset, jax.vmap(step_lane), env.spec, env.renew, env.scene, lanes), lambda state: state)


def staggered(state: PyTree, key: jax.Array) -> PyTree:
    """Lanes whose first episodes have a random part of the time limit behind them, so that they never end all at once.

    Without it, lanes that only a time limit ends stay in step: each rollout shows one phase of the episode, and what is
    learned of the others is forgotten meanwhile. The shortened episodes are marked, and not counted as episodes.

    Args:
      state: of many lanes, leaves [E, ...], with `time_limit` and `episode_sums` somewhere in it; one without a time
        limit is returned as it is.
      key: consumed here.
    Returns:
      The state, with other step counts.
    """

    def shift(node):
        if isinstance(node, Timed):
            behind = jax.random.randint(key, node.step.shape, 0, node.limit)
            return node._replace(inner=jax.tree.map(shift, node.inner, is_leaf=is_ours), step=behind)
        if isinstance(node, Summed):
            return node._replace(inner=jax.tree.map(shift, node.inner, is_leaf=is_ours), whole=~node.whole)
        return node

    is_ours = lambda node: isinstance(node, (Timed, Summed))
    is_timed = lambda node: isinstance(node, Timed)
    if not any(map(is_timed, jax.tree.leaves(state, is_leaf=is_timed))):
        return state
    return jax.tree.map(shift, state, is_leaf=is_ours)


def choose(condition: jax.Array, if_true: PyTree, if_false: PyTree) -> PyTree:
    """Select between two pytrees by a bool array whose axes lead those of every leaf; typed keys included."""

    def select(x, y):
        return jnp.where(condition.reshape(condition.shape + (1,) * (x.ndim - condition.ndim)), x, y)

    return jax.tree.map(select, if_true, if_false)


def _some_at_a_time(function, lanes: int, together: int):
    """A function of all lanes, computed for `together` of them at a time: neighbours apart, so that no lane moves."""
    if together == lanes:
        return function
    pieces = lanes // together
    apart = lambda x: jnp.moveaxis(x.reshape(together, pieces, *x.shape[1:]), 1, 0)
    whole = lambda x: jnp.moveaxis(x, 0, 1).reshape(lanes, *x.shape[2:])

    def call(*args):
        return jax.tree.map(whole, jax.lax.map(lambda piece: function(*piece), jax.tree.map(apart, args)))

    return call


def _counted(env: Env, lanes: int) -> Env:
    if lanes < 1:
        raise ValueError(f"lanes is {lanes}; allowed: 1 and more")
    return episode_sums(quarantine(env))


def _many(env: Env, many: Env, lanes_of) -> Env:
    """The scene of many lanes shows the first one."""
    scene = env.scene and env.scene._replace(
        view=lambda state: env.scene.view(jax.tree.map(lambda x: x[0], lanes_of(state)))
    )
    return many._replace(scene=scene)


def _over(env: Env, reset, step) -> Env:
    """An Env around another whose state has the other's as `inner`."""
    scene = env.scene and env.scene._replace(view=lambda state: env.scene.view(state.inner))
    return env._replace(reset=reset, step=step, scene=scene)


def _all_finite(tree: PyTree) -> jax.Array:
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(x)) for x in leaves]))
