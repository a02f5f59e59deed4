"""Probes: tiny environments whose values and best actions are known, each able to expose one kind of mistake.

    terminating, truncating      is the value cut at a failure, and bootstrapped at a time limit?
    observed_reward              does the value read the observation?
    continuous_action, discrete_action, dict_observation   does the policy read it and find the best action?
    delayed                      does credit travel back over one step?
    memory                       does the policy remember?
    poisonable, poison           is a simulator that turned non-finite contained?

All are one lane that does not reset itself, in pure JAX, and cost nothing to compile.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_gen.types import Env, Outcome, PyTree, Spec


class Probing(NamedTuple):
    """State of a probe: the step of this episode, what was drawn at its start, and what is owed."""

    step: jax.Array  # i32
    cue: jax.Array
    owed: jax.Array  # f32, reward of a later step


def terminating(steps: int = 5, reward: float = 1.0) -> Env:
    """A constant reward, and a termination after `steps` steps.

    The observation is the one-hot step [steps]. The value at step t is
    `reward * (1 - gamma**(steps - t)) / (1 - gamma)`.
    """

    def after(state, action):
        return jnp.float32(reward), state.step >= steps, False

    return _probe(lambda key: jnp.zeros(()), lambda state: _one_hot(state.step, steps), after, steps)


def truncating(steps: int = 5, reward: float = 1.0) -> Env:
    """A constant reward, and a truncation after `steps` steps.

    The observation is the constant [1]. The value is `reward / (1 - gamma)` at every step.
    """

    def after(state, action):
        return jnp.float32(reward), False, state.step >= steps

    return _probe(lambda key: jnp.zeros(()), lambda state: jnp.ones((1,)), after, steps)


def observed_reward() -> Env:
    """One step whose reward is the observation, [1] or [-1], whatever the action: so is the value."""

    def after(state, action):
        return state.cue, True, False

    return _probe(_coin, lambda state: state.cue[None], after, 1)


def continuous_action() -> Env:
    """One step of reward `1 - (action - observation / 2)**2`, the observation being [1] or [-1].

    The best action is [observation / 2], and its value 1.
    """

    def after(state, action):
        return 1.0 - (action[0] - 0.5 * state.cue) ** 2, True, False

    return _probe(_coin, lambda state: state.cue[None], after, 1)


def discrete_action(actions: int = 3) -> Env:
    """One step of reward 1 for the action that the one-hot observation [actions] names, and else 0."""

    def after(state, action):
        return (action == state.cue).astype(jnp.float32), True, False

    return _probe(_draw(actions), lambda state: _one_hot(state.cue, actions), after, 1, actions)


def dict_observation() -> Env:
    """`continuous_action` with the observation as a nested dictionary, and a luck that only a critic may see.

    The observation is `{"cue": {"sign": [1]}, "luck": [1]}`; the reward is `1 - (action - sign / 2)**2 + luck`, so the
    best action is [sign / 2], and its value `1 + luck`, or 1 to those who do not see the luck.
    """

    def draw(key):
        key_sign, key_luck = jax.random.split(key)
        return jnp.stack([_coin(key_sign), _coin(key_luck)])

    def observe(state):
        return {"cue": {"sign": state.cue[:1]}, "luck": state.cue[1:]}

    def after(state, action):
        return 1.0 - (action[0] - 0.5 * state.cue[0]) ** 2 + state.cue[1], True, False

    return _probe(draw, observe, after, 1)


def delayed() -> Env:
    """Two steps: reward 1 at the second if the action at the first was the one that the observation named.

    The observation [3] is the one-hot cue among 2 and 0; then 0, 0 and the reward to come. The value is gamma at the
    first step under the best policy, and the third entry of the observation at the second.
    """

    def observe(state):
        first = state.step == 0
        return jnp.append(_one_hot(state.cue, 2) * first, state.owed * ~first)

    def after(state, action):
        first = state.step == 1
        right = (action == state.cue).astype(jnp.float32)
        return jnp.where(first, 0.0, state.owed), ~first, False, jnp.where(first, right, state.owed)

    return _probe(_draw(2), observe, after, 2, 2)


def memory(delay: int = 3) -> Env:
    """A cue at the first step, and `delay` steps later a question, with reward 1 for the action that the cue named.

    The observation [3] is the one-hot cue among 2, shown only at the first step, and whether this step asks. The best
    return is 1; a policy without memory averages 1/2.

    Raises:
      ValueError: if delay < 1.
    """
    if delay < 1:
        raise ValueError(f"delay is {delay}; allowed: 1 and more")

    def observe(state):
        return jnp.append(_one_hot(state.cue, 2) * (state.step == 0), (state.step == delay).astype(jnp.float32))

    def after(state, action):
        answered = state.step > delay
        return (answered & (action == state.cue)).astype(jnp.float32), answered, False

    return _probe(_draw(2), observe, after, delay + 1, 2)


class Poisonable(NamedTuple):
    """State of `poisonable`: the inner state, and the steps left until it turns NaN; negative: never."""

    inner: PyTree
    fuse: jax.Array  # i32


def poisonable(env: Env) -> Env:
    """An Env that can be made to turn non-finite: see `poison`. Unpoisoned, it is `env` to the bit."""

    def reset(key):
        state, obs = env.reset(key)
        return Poisonable(state, jnp.full((), -1, jnp.int32)), obs

    def step(state, action, key):
        inner, obs, outcome = env.step(state.inner, action, key)
        spoil = lambda tree, bad=state.fuse == 0: jax.tree.map(lambda x: _nan_where(bad, x), tree)
        state = Poisonable(spoil(inner), jnp.maximum(state.fuse - 1, -1))
        return state, spoil(obs), outcome._replace(next_obs=spoil(outcome.next_obs), reward=spoil(outcome.reward))

    scene = env.scene and env.scene._replace(view=lambda state: env.scene.view(state.inner))
    return env._replace(reset=reset, step=step, scene=scene)


def poison(state: PyTree, lane: int, after: int = 0) -> PyTree:
    """Change the state of many `poisonable` lanes so that one of them turns NaN.

    Args:
      state: of E lanes, inside any wrappers.
      lane: which one; reset states that are kept in reserve stay clean.
      after: healthy steps before the poisoned one.
    Returns:
      The state, to go on from.
    """

    def light(node):
        if isinstance(node, Poisonable) and node.fuse.ndim == 1:
            return node._replace(fuse=node.fuse.at[lane].set(after))
        return node

    return jax.tree.map(light, state, is_leaf=lambda node: isinstance(node, Poisonable))


def _probe(draw, observe, after, steps, actions=None) -> Env:
    """A probe from `draw(key) -> cue`, `observe(state) -> obs` and `after(state, action)`.

    The last returns reward, terminated, truncated and, if any, what is owed; its state counts the action just taken.
    """

    def reset(key):
        state = Probing(jnp.zeros((), jnp.int32), draw(key), jnp.zeros((), jnp.float32))
        return state, observe(state)

    def step(state, action, key):
        del key
        state = state._replace(step=state.step + 1)
        reward, terminated, truncated, *owed = after(state, action)
        state = state._replace(owed=owed[0]) if owed else state
        obs = observe(state)
        return state, obs, Outcome(obs, reward, jnp.asarray(terminated), jnp.asarray(truncated), jnp.ones((), bool))

    obs = jax.eval_shape(reset, jax.random.key(0))[1]
    return Env(reset, step, Spec(obs, actions or 1, actions is not None, steps))


def _coin(key):
    return 2.0 * jax.random.bernoulli(key).astype(jnp.float32) - 1.0


def _draw(actions):
    return lambda key: jax.random.randint(key, (), 0, actions)


def _one_hot(index, size):
    return (jnp.arange(size) == index).astype(jnp.float32)


def _nan_where(bad, x):
    return jnp.where(bad, jnp.nan, x) if jnp.issubdtype(x.dtype, jnp.floating) else x
