"""Wrappers: time limits, action repeat, quarantine, episode sums, and two ways to many lanes that reset themselves.

An adaptor gives one lane that never resets. `pooled` and `fresh` turn it into E lanes that do:

    pooled(env, lanes=64)   reset states are simulated once per rollout and kept at hand: for costly simulators
    fresh(env, lanes=64)    a reset is simulated at every step and mostly thrown away: exact, for cheap simulators
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_gen.types import Env, Outcome, PyTree, Spec, ended


class Timed(NamedTuple):
    """State of `time_limit`: the inner state and the steps of this episode so far."""

    inner: PyTree
    step: jax.Array  # i32


def time_limit(env: Env, steps: int) -> Env:
    """Truncate episodes after `steps` steps, unless they terminated just then.

    Raises:
      ValueError: if steps < 1.
    """
    if steps < 1:
        raise ValueError(f"time limit is {steps} steps; allowed: 1 and more")

    def reset(key):
        state, obs = env.reset(key)
        return Timed(state, jnp.zeros((), jnp.int32)), obs

    def step(state, action, key):
        inner, obs, outcome = env.step(state.inner, action, key)
        count = state.step + 1
        truncated = outcome.truncated | ((count >= steps) & ~outcome.terminated)
        return Timed(inner, count), obs, outcome._replace(truncated=truncated)

    return _over(env, reset, step)._replace(spec=env.spec._replace(time_limit=steps))


def action_repeat(env: Env, times: int) -> Env:
    """Apply each action `times` times and sum the rewards, stopping at the end of the episode.

    Raises:
      ValueError: if times < 1.
    """
    if times < 1:
        raise ValueError(f"action repeat is {times}; allowed: 1 and more")

    def step(state, action, key):
        def again(carry, key):
            state, _, outcome = carry
            following = env.step(state, action, key)
            total = following[2]._replace(reward=outcome.reward + following[2].reward)
            return choose(ended(outcome) | ~jnp.asarray(outcome.valid), carry, (*following[:2], total)), None

        key_first, *keys = jax.random.split(key, times)
        first = env.step(state, action, key_first)
        return jax.lax.scan(again, first, jnp.stack(keys))[0] if keys else first

    limit = env.spec.time_limit
    return env._replace(step=step, spec=env.spec._replace(time_limit=limit and -(-limit // times)))


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


def pooled(env: Env, lanes: int, spares: int = 2) -> Env:
    """E lanes that reset themselves from a pool of fresh reset states.

    Each lane holds `spares` reset states and takes them in turn, so no state serves one lane twice in a row. `renew`,
    which loops call once per rollout, simulates a fresh state for every lane into the place that it will take next. The
    cost is one reset per lane and rollout; a lane that ends more than one episode within a rollout starts the later
    ones from states that it may have started from before.

    Quarantine and episode sums are included.

    Args:
      env: one lane.
      lanes: E.
      spares: reset states held by each lane, at least 2.
    Returns:
      Env whose state, observations and outcomes have a leading axis E, and whose `step` takes one key for all lanes.
    Raises:
      ValueError: if lanes < 1 or spares < 2.
    """
    if spares < 2:
        raise ValueError(f"spares is {spares}; allowed: 2 and more, or a state would serve a lane twice in a row")
    env = _counted(env, lanes)

    def reset(key):
        key, key_stagger = jax.random.split(key)
        starts = jax.vmap(env.reset)(jax.random.split(key, lanes * (1 + spares)))  # in one piece, to compile it once
        starts = jax.tree.map(lambda x: x.reshape(lanes, 1 + spares, *x.shape[1:]), starts)
        state, obs = jax.tree.map(lambda x: x[:, 0], starts)
        state = staggered(state, env.spec, key_stagger)
        pool = jax.tree.map(lambda x: x[:, 1:], starts)
        return Pooled(state, pool, jnp.zeros((lanes,), jnp.int32)), obs

    def step(state, action, key):
        inner, obs, outcome = jax.vmap(env.step)(state.lanes, action, jax.random.split(key, lanes))
        over, slot = ended(outcome), state.episode % spares
        at_slot = lambda pool: jax.vmap(lambda row, i: row[i])(pool, slot)
        inner, obs = choose(over, jax.tree.map(at_slot, state.spares), (inner, obs))
        return Pooled(inner, state.spares, state.episode + over), obs, outcome

    def renew(state, key):
        made = jax.vmap(env.reset)(jax.random.split(key, lanes))
        slot = state.episode % spares
        put = lambda pool, new: jax.vmap(lambda row, i, x: row.at[i].set(x))(pool, slot, new)
        return state._replace(spares=jax.tree.map(put, state.spares, made))

    return _many(env, Env(reset, step, env.spec, renew, env.scene, lanes), lambda state: state.lanes)


def fresh(env: Env, lanes: int) -> Env:
    """E lanes that reset themselves exactly: a reset is computed for each at every step, and used where it ended.

    Quarantine and episode sums are included.

    Args:
      env: one lane.
      lanes: E.
    Returns:
      Env whose state, observations and outcomes have a leading axis E, and whose `step` takes one key for all lanes.
    Raises:
      ValueError: if lanes < 1.
    """
    env = _counted(env, lanes)

    def reset(key):
        key, key_stagger = jax.random.split(key)
        state, obs = jax.vmap(env.reset)(jax.random.split(key, lanes))
        return staggered(state, env.spec, key_stagger), obs

    def step_lane(state, action, key):
        key_step, key_reset = jax.random.split(key)
        state, obs, outcome = env.step(state, action, key_step)
        state, obs = choose(ended(outcome), env.reset(key_reset), (state, obs))
        return state, obs, outcome

    def step(state, action, key):
        return jax.vmap(step_lane)(state, action, jax.random.split(key, lanes))

    return _many(env, Env(reset, step, env.spec, env.renew, env.scene, lanes), lambda state: state)


def staggered(state: PyTree, spec: Spec, key: jax.Array) -> PyTree:
    """Lanes whose first episodes have a random part of the time limit behind them, so that they never end all at once.

    Without it, lanes that only a time limit ends stay in step: each rollout shows one phase of the episode, and what is
    learned of the others is forgotten meanwhile. The shortened episodes are marked, and not counted as episodes.

    Args:
      state: of many lanes, leaves [E, ...], with `time_limit` and `episode_sums` somewhere in it.
      spec: with the time limit; the state is returned as it is where there is none.
      key: consumed here.
    Returns:
      The state, with other step counts.
    """

    def shift(node):
        if isinstance(node, Timed):
            behind = jax.random.randint(key, node.step.shape, 0, spec.time_limit)
            return Timed(jax.tree.map(shift, node.inner, is_leaf=is_ours), behind)
        if isinstance(node, Summed):
            return node._replace(inner=jax.tree.map(shift, node.inner, is_leaf=is_ours), whole=~node.whole)
        return node

    is_ours = lambda node: isinstance(node, (Timed, Summed))
    is_timed = lambda node: isinstance(node, Timed)
    if not spec.time_limit or not any(map(is_timed, jax.tree.leaves(state, is_leaf=is_timed))):
        return state
    return jax.tree.map(shift, state, is_leaf=is_ours)


def choose(condition: jax.Array, if_true: PyTree, if_false: PyTree) -> PyTree:
    """Select between two pytrees by a bool array whose axes lead those of every leaf; typed keys included."""

    def select(x, y):
        return jnp.where(condition.reshape(condition.shape + (1,) * (x.ndim - condition.ndim)), x, y)

    return jax.tree.map(select, if_true, if_false)


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
