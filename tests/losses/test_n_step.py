"""Windows condensed to one step, against loops in float64 NumPy over windows with ends of both kinds, and rlax."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
from hypothesis import given
from hypothesis import strategies as st

from jaxrl_gen.losses import td
from jaxrl_gen.types import Transition
from tests.algos.windows import numpy_steps

GAMMA, FEATURES = 0.9, 3
MODES = pytest.mark.parametrize("mode", [lambda f: f, jax.jit], ids=["eager", "jit"])


def windows(horizon, batch=64, seed=0, p_end=0.2, p_invalid=0.1):
    """Rows of numbers with terminations, truncations and invalid rows (which are truncated, as quarantine has it)."""
    rng = np.random.default_rng(seed)
    shape = (horizon, batch)
    draw = lambda *more: rng.normal(size=(*shape, *more)).astype(np.float32)
    valid = rng.random(shape) > p_invalid
    terminated = (rng.random(shape) < p_end) & valid
    truncated = ((rng.random(shape) < p_end) & ~terminated) | ~valid
    obs = {"x": draw(FEATURES), "image": rng.integers(0, 255, (*shape, 2, 2)).astype(np.uint8)}
    next_obs = {"x": draw(FEATURES), "image": rng.integers(0, 255, (*shape, 2, 2)).astype(np.uint8)}
    return Transition(obs, draw(2), draw(), next_obs, terminated, truncated, valid)


@MODES
@pytest.mark.parametrize("horizon", [1, 2, 5])
@pytest.mark.parametrize("gamma", [0.0, GAMMA, 1.0])
def test_n_step_equals_a_loop(mode, horizon, gamma):
    window = windows(horizon)
    steps = mode(lambda window: td.n_step(window, gamma=gamma))(window)
    reward, discount, valid, last = numpy_steps(window, gamma)
    assert 0 < valid.sum() < valid.size
    np.testing.assert_array_equal(steps.valid, valid)
    np.testing.assert_allclose(steps.reward, np.where(valid, reward, 0.0), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(steps.discount, np.where(valid, discount, 0.0), rtol=1e-5, atol=1e-6)
    lane = np.arange(len(last))
    for ours, rows in ((steps.obs, jax.tree.map(lambda x: x[0], window.obs)),
                       (steps.next_obs, jax.tree.map(lambda x: x[last, lane], window.next_obs)),
                       ({"a": steps.action}, {"a": window.action[0]})):  # fmt: skip
        for name in rows:
            assert ours[name].dtype == rows[name].dtype
            masked = np.where(valid.reshape(-1, *[1] * (rows[name].ndim - 1)), rows[name], 0)
            np.testing.assert_array_equal(ours[name], masked)


@MODES
def test_targets_equal_rlax_along_a_trajectory(mode):
    """Every window of a trajectory without truncation, against n-step returns of the whole."""
    horizon, length = 4, 30
    whole = windows(length, 1, seed=1, p_invalid=0.0)
    whole = whole._replace(truncated=np.zeros_like(whole.truncated))
    starts = np.arange(length - horizon + 1)
    cut = lambda x: np.stack([x[k + starts, 0] for k in range(horizon)])
    window = jax.tree.map(cut, whole)
    next_value = np.random.default_rng(2).normal(size=length).astype(np.float32)
    _, _, _, last = numpy_steps(window, GAMMA)
    steps = mode(lambda window: td.n_step(window, gamma=GAMMA))(window)
    ours = td.bootstrapped(steps, jnp.asarray(next_value[starts + last]))
    discount = jnp.asarray(GAMMA * (1.0 - whole.terminated[:, 0]), jnp.float32)
    theirs = rlax.n_step_bootstrapped_returns(jnp.asarray(whole.reward[:, 0]), discount, next_value, horizon)
    np.testing.assert_allclose(ours, theirs[: len(starts)], rtol=1e-5, atol=1e-5)


@given(st.integers(0, 2**31))
def test_what_follows_an_end_changes_nothing(seed):
    one, other = windows(5, 4, seed), windows(5, 4, seed + 1)
    _, _, _, last = numpy_steps(one, GAMMA)
    over = np.arange(5)[:, None] > last
    mixed = jax.tree.map(lambda x, y: np.where(over.reshape(5, 4, *[1] * (x.ndim - 2)), y, x), one, other)
    for x, y in zip(jax.tree.leaves(N_STEP(one)), jax.tree.leaves(N_STEP(mixed))):
        np.testing.assert_array_equal(x, y)


N_STEP = jax.jit(lambda window: td.n_step(window, gamma=GAMMA))


def test_numbers_that_are_not_finite_stay_in_the_rows_that_do_not_count():
    window = windows(3, seed=3)
    _, _, valid, last = numpy_steps(window, GAMMA)
    counts = (np.arange(3)[:, None] <= last) & valid
    spoil = lambda x: np.where(counts.reshape(counts.shape + (1,) * (x.ndim - 2)), x, np.nan).astype(x.dtype)
    spoiled = window._replace(
        action=spoil(window.action), reward=spoil(window.reward),
        obs=window.obs | {"x": spoil(window.obs["x"])}, next_obs=window.next_obs | {"x": spoil(window.next_obs["x"])},
    )  # fmt: skip
    for x, y in zip(jax.tree.leaves(N_STEP(window)), jax.tree.leaves(N_STEP(spoiled))):
        np.testing.assert_array_equal(x, y)


def test_a_truncated_window_goes_on_and_a_terminated_one_does_not():
    row = lambda terminated, truncated: Transition(
        jnp.ones((1, 1, 1)), jnp.ones((1, 1, 1)), jnp.ones((1, 1)), jnp.ones((1, 1, 1)),
        jnp.array([[terminated]]), jnp.array([[truncated]]), jnp.ones((1, 1), bool),
    )  # fmt: skip
    ends = [(False, False), (False, True), (True, False), (True, True)]
    targets = [td.bootstrapped(td.n_step(row(*end), gamma=GAMMA), jnp.array([10.0]))[0] for end in ends]
    np.testing.assert_allclose(targets, [10.0, 10.0, 1.0, 1.0], rtol=1e-6)


@MODES
@pytest.mark.parametrize("horizon", [1, 2, 5])
def test_a_chunks_target_is_the_n_step_target_of_windows_that_stay_in_their_episode(mode, horizon):
    """And the others are invalid, with nothing left in them; what is judged is the whole chunk of actions."""
    window = windows(horizon, p_end=0.15)
    next_value = np.random.default_rng(4).normal(size=64).astype(np.float32)
    chunk, n_step = (mode(lambda w, of=of: of(w, gamma=GAMMA))(window) for of in (td.chunk_step, td.n_step))
    target = np.asarray(td.bootstrapped(chunk, jnp.asarray(next_value)))
    whole = np.zeros(64, bool)
    for b in range(64):
        ended = [bool(window.terminated[k, b] or window.truncated[k, b]) for k in range(horizon)]
        whole[b] = all(window.valid[:, b]) and not any(ended[:-1])
        if not whole[b]:
            assert not any(np.any(np.asarray(x)[b]) for x in jax.tree.leaves(chunk))
            continue
        paid = sum(GAMMA**k * float(window.reward[k, b]) for k in range(horizon))
        goes_on = GAMMA**horizon * (not window.terminated[-1, b])
        np.testing.assert_allclose(target[b], paid + goes_on * float(next_value[b]), rtol=1e-5, atol=1e-5)
        np.testing.assert_array_equal(chunk.action[b], np.concatenate([window.action[k, b] for k in range(horizon)]))
        one, two = (jax.tree.leaves(steps._replace(action=())) for steps in (chunk, n_step))
        assert all(np.array_equal(x[b], y[b]) for x, y in zip(one, two, strict=True))
    np.testing.assert_array_equal(chunk.valid, whole)
    assert 0 < whole.sum() < 64 and (horizon == 1 or np.any(n_step.valid & ~whole)), "late windows count there alone"


def test_gradients_of_targets_are_stopped():
    steps = td.n_step(windows(2), gamma=GAMMA)
    slope = jax.grad(lambda v, r: jnp.sum(td.bootstrapped(steps._replace(reward=r), v)), (0, 1))
    assert not any(np.any(x) for x in slope(jnp.ones(64), steps.reward))


def test_refuses_a_broadcasting_head():
    window = windows(2, 5)
    for name in ("reward", "terminated", "truncated", "valid"):
        for condense in (td.n_step, td.chunk_step):
            with pytest.raises(AssertionError):
                condense(window._replace(**{name: getattr(window, name)[..., None]}), gamma=GAMMA)
    for name in ("action", "obs"):
        with pytest.raises(AssertionError):
            td.n_step(window._replace(**{name: jax.tree.map(lambda x: x[:1], getattr(window, name))}), gamma=GAMMA)
    steps = td.n_step(window, gamma=GAMMA)
    for wrong in (jnp.zeros((5, 1)), jnp.zeros(1), jnp.zeros((2, 5))):
        with pytest.raises(AssertionError):
            td.bootstrapped(steps, wrong)
