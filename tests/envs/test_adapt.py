"""What adaptors share: names, action ranges, and states that carry only what is read again."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrl_gen.envs import adapt
from jaxrl_gen.types import Env, Outcome, Scene, Spec


def test_unknown_names_come_with_their_neighbours():
    adapt.known("ant", ["ant", "hopper"], "brax")
    with pytest.raises(ValueError, match=r"^'Hoper' is not in brax; nearest: hopper$"):
        adapt.known("Hoper", ["ant", "hopper"], "brax")
    with pytest.raises(ValueError, match="nearest: none"):
        adapt.known("xyz", ["ant"], "brax")


def test_one_line():
    assert adapt.one_line(ValueError("a\n  b\n")) == "a b"
    assert adapt.one_line(KeyError()) == "KeyError"


@given(low=st.floats(-50, 49), span=st.floats(0.125, 100), action=st.floats(-1, 1))
def test_actions_are_scaled_linearly(low, span, action):
    high = low + span
    scaled = adapt.in_units([low], [high], "torque")(np.float32([action]))
    np.testing.assert_allclose(scaled, np.interp([action], [-1, 1], [low, high]), rtol=1e-4, atol=1e-4)


def test_unit_actions_pass_untouched_and_impossible_ranges_are_refused():
    action = np.float32([0.3, -0.7])
    assert adapt.in_units([-1, -1], [1, 1], "torque")(action) is action
    for low, high in (([-np.inf], [1]), ([1], [1]), ([2], [1])):
        with pytest.raises(ValueError, match="the range of torque is .* allowed: finite, low below high"):
            adapt.in_units(low, high, "torque")


def heavy() -> Env:
    """A walk whose state also holds what no later step reads, what only the scene reads, a weak number and a key."""

    def reset(key):
        x = jax.random.normal(key, (2,))
        state = {"x": x, "square": x**2, "seen": x + 1, "count": 0, "key": key, "same": x * 0 + 3}
        return state, x

    def step(state, action, key):
        noise = jax.random.normal(state["key"], (2,))

        def walk(carry, _):
            x, trash = carry
            return (x + action + 0.1 * noise, trash + 1), None

        (x, square), _ = jax.lax.scan(walk, (state["x"], state["square"]), length=3)
        count = state["count"] + 1
        new = {"x": x, "square": square, "seen": x - 1, "count": count, "key": state["key"], "same": state["same"]}
        reward = jnp.sum(x) + count
        return new, x, Outcome(x, reward, jnp.zeros((), bool), jnp.zeros((), bool))

    spec = Spec(jax.ShapeDtypeStruct((2,), jnp.float32), 2)
    return Env(reset, step, spec, scene=Scene(lambda state: state["seen"], None))


def test_a_lean_state_keeps_what_is_read_again_and_nothing_else():
    whole, lean = heavy(), adapt.lean(heavy())
    state, obs = whole.reset(jax.random.key(0))
    packed, packed_obs = jax.jit(lean.reset)(jax.random.key(0))
    assert len(packed) == 4  # x, count, key and what the scene shows
    assert not any(getattr(leaf, "weak_type", False) for leaf in packed)  # a key has no such thing
    action = jnp.array([0.25, -0.5])
    for _ in range(4):
        state, obs, outcome = jax.jit(whole.step)(state, action, jax.random.key(1))
        packed, packed_obs, packed_outcome = jax.jit(lean.step)(packed, action, jax.random.key(1))
        np.testing.assert_array_equal(obs, packed_obs)
        np.testing.assert_array_equal(outcome.reward, packed_outcome.reward)
        np.testing.assert_array_equal(state["seen"], lean.scene.view(packed))


def test_a_lean_state_can_be_scanned_over_many_lanes():
    lean = adapt.lean(heavy())
    state, _ = jax.vmap(lean.reset)(jax.random.split(jax.random.key(0), 3))

    def step(state, key):
        state, _, outcome = jax.vmap(lean.step, in_axes=(0, None, None))(state, jnp.ones(2), key)
        return state, outcome.reward

    _, rewards = jax.jit(lambda s: jax.lax.scan(step, s, jax.random.split(jax.random.key(1), 5)))(state)
    assert rewards.shape == (5, 3) and np.isfinite(rewards).all()
