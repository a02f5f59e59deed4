"""Targets and advantages against loops in float64 NumPy, and against rlax where it has the same notion of an end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rlax
from hypothesis import given
from hypothesis import strategies as st

from jaxrl_gen.losses import td

GAMMA, LAM = 0.93, 0.8
MODES = pytest.mark.parametrize("mode", [lambda f: f, jax.jit], ids=["eager", "jit"])


def trajectory(seed=0, shape=(17, 3), p_terminated=0.15, p_truncated=0.15):
    """Rows of float32 numbers, and ends of both kinds (never both at once)."""
    rng = np.random.default_rng(seed)
    terminated = rng.random(shape) < p_terminated
    truncated = (rng.random(shape) < p_truncated) & ~terminated
    draw = lambda: rng.normal(size=shape).astype(np.float32)  # noqa: E731
    return {
        "reward": draw(), "value": draw(), "next_value": draw(),
        "terminated": terminated, "ended": terminated | truncated,
    }  # fmt: skip


def pick(rows, names):
    return [jnp.asarray(rows[name]) for name in names.split()]


def close(result, oracle):
    assert result.dtype == jnp.float32 and result.shape == oracle.shape
    np.testing.assert_allclose(np.asarray(result), oracle, rtol=2e-5, atol=2e-5)


def float64(rows):
    return {name: x if x.dtype == bool else x.astype(np.float64) for name, x in rows.items()}


def numpy_gae(rows, gamma, lam, valid=None):
    rows = float64(rows)
    out = np.zeros(rows["reward"].shape)
    for lane in np.ndindex(out.shape[1:]):
        following = 0.0
        for t in reversed(range(len(out))):
            i = (t, *lane)
            if valid is not None and not valid[i]:
                following = 0.0
            else:
                after = 0.0 if rows["terminated"][i] else gamma * rows["next_value"][i]
                following = (
                    rows["reward"][i]
                    + after
                    - rows["value"][i]
                    + (0.0 if rows["ended"][i] else gamma * lam * following)
                )
            out[i] = following
    return out


def numpy_lambda_returns(rows, gamma, lam):
    """The definition itself: a weighted sum of all n-step returns."""
    rows = float64(rows)
    out = np.zeros(rows["reward"].shape)
    for lane in np.ndindex(out.shape[1:]):
        for t in range(len(out)):
            total, weight, left = 0.0, 1.0, len(out) - t
            for n in range(1, left + 1):
                last = n == left or rows["ended"][(t + n - 1, *lane)]
                total += weight * (1.0 if last else 1.0 - lam) * numpy_n_step(rows, gamma, n, t, lane)
                weight *= lam
                if last:
                    break
            out[(t, *lane)] = total
    return out


def numpy_n_step(rows, gamma, n, t, lane):
    total, discount = 0.0, 1.0
    for k in range(t, min(t + n, len(rows["reward"]))):
        total += discount * rows["reward"][(k, *lane)]
        discount *= gamma
        if rows["ended"][(k, *lane)]:
            break
    return total + discount * rows["next_value"][(k, *lane)] * (1.0 - rows["terminated"][(k, *lane)])


def numpy_vtrace(rows, log_ratio, gamma, lam, rho_clip, c_clip):
    """The sum of eq. 1 of the paper, written out without recursion."""
    rows, ratio = float64(rows), np.exp(log_ratio.astype(np.float64))
    rho, c = np.minimum(rho_clip, ratio), lam * np.minimum(c_clip, ratio)
    bootstrap = gamma * (1.0 - rows["terminated"]) * rows["next_value"]
    delta = rho * (rows["reward"] + bootstrap - rows["value"])
    target, advantage = rows["value"].copy(), np.zeros_like(delta)
    for i in np.ndindex(delta.shape):
        trace = 1.0
        for k in range(i[0], len(delta)):
            j = (k, *i[1:])
            target[i] += trace * delta[j]
            if rows["ended"][j]:
                break
            trace *= gamma * c[j]
    for i in np.ndindex(delta.shape):
        known = i[0] + 1 < len(delta) and not rows["ended"][i]
        after = gamma * target[(i[0] + 1, *i[1:])] if known else bootstrap[i]
        advantage[i] = rho[i] * (rows["reward"][i] + after - rows["value"][i])
    return target, advantage


@MODES
def test_td_target(mode):
    rows = trajectory()
    result = mode(lambda *a: td.td_target(*a, gamma=GAMMA))(*pick(rows, "reward next_value terminated"))
    close(result, rows["reward"] + np.where(rows["terminated"], 0.0, GAMMA * rows["next_value"].astype(np.float64)))


def test_td_target_takes_a_discount_for_each_sample():
    rows = {name: x.reshape(-1) for name, x in trajectory().items()}
    gamma = np.linspace(0.1, 0.9, 51, dtype=np.float32)
    result = td.td_target(*pick(rows, "reward next_value terminated"), gamma=jnp.asarray(gamma))
    close(result, rows["reward"] + np.where(rows["terminated"], 0.0, gamma * rows["next_value"].astype(np.float64)))
    with pytest.raises((AssertionError, ValueError)):
        td.td_target(*pick(rows, "reward next_value terminated"), gamma=jnp.asarray(gamma)[:, None])


@MODES
@pytest.mark.parametrize("shape", [(17,), (17, 3), (9, 2, 2), (1, 3)], ids=str)
@pytest.mark.parametrize("lam", [0.0, LAM, 1.0])
def test_gae(mode, shape, lam):
    rows = trajectory(1, shape)
    names = "reward value next_value terminated ended"
    close(mode(lambda *a: td.gae(*a, gamma=GAMMA, lam=lam))(*pick(rows, names)), numpy_gae(rows, GAMMA, lam))


@MODES
def test_gae_leaves_invalid_rows_out(mode):
    rows = trajectory(2, (40, 3))
    valid = np.random.default_rng(3).random((40, 3)) > 0.2
    oracle = numpy_gae(rows, GAMMA, LAM, valid)
    dirty = {name: np.where(valid, x, x.dtype.type(np.nan) if x.dtype != bool else x) for name, x in rows.items()}
    names = "reward value next_value terminated ended"
    result = mode(lambda *a: td.gae(*a, gamma=GAMMA, lam=LAM, valid=jnp.asarray(valid)))(*pick(dirty, names))
    close(result, oracle)
    assert np.all(np.asarray(result)[~valid] == 0.0)


@MODES
def test_gae_equals_rlax_without_truncation(mode):
    rows = trajectory(4, (30,), p_truncated=0.0)
    rows["next_value"][:-1] = rows["value"][1:]  # rlax has one row of values; a discount of zero hides it at an end
    ours = mode(lambda *a: td.gae(*a, gamma=GAMMA, lam=LAM))(*pick(rows, "reward value next_value terminated ended"))
    values = jnp.append(rows["value"], rows["next_value"][-1])
    discount = jnp.asarray(GAMMA * (1.0 - rows["terminated"]), jnp.float32)
    theirs = rlax.truncated_generalized_advantage_estimation(jnp.asarray(rows["reward"]), discount, LAM, values)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@MODES
@pytest.mark.parametrize("lam", [0.0, LAM, 1.0])
def test_lambda_returns(mode, lam):
    rows = trajectory(5)
    result = mode(lambda *a: td.lambda_returns(*a, gamma=GAMMA, lam=lam))(
        *pick(rows, "reward next_value terminated ended")
    )
    close(result, numpy_lambda_returns(rows, GAMMA, lam))


@MODES
def test_lambda_returns_equal_rlax(mode):
    rows = trajectory(6, (30,))
    ours = mode(lambda *a: td.lambda_returns(*a, gamma=GAMMA, lam=LAM))(
        *pick(rows, "reward next_value terminated ended")
    )
    discount = jnp.asarray(GAMMA * (1.0 - rows["terminated"]), jnp.float32)
    lam = jnp.asarray(LAM * (1.0 - rows["ended"]), jnp.float32)  # a truncation is a lambda of zero there
    theirs = rlax.lambda_returns(jnp.asarray(rows["reward"]), discount, jnp.asarray(rows["next_value"]), lam)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@MODES
@pytest.mark.parametrize("n", [1, 2, 5, 17, 40])
def test_n_step_returns(mode, n):
    rows = trajectory(7)
    result = mode(lambda *a: td.n_step_returns(*a, gamma=GAMMA, n=n))(*pick(rows, "reward next_value terminated ended"))
    oracle = [
        [numpy_n_step(float64(rows), GAMMA, n, t, (lane,)) for lane in range(3)] for t in range(len(rows["reward"]))
    ]
    close(result, np.array(oracle))


@MODES
@pytest.mark.parametrize("n", [1, 3, 8])
def test_n_step_returns_equal_rlax_without_truncation(mode, n):
    rows = trajectory(8, (30,), p_truncated=0.0)
    ours = mode(lambda *a: td.n_step_returns(*a, gamma=GAMMA, n=n))(*pick(rows, "reward next_value terminated ended"))
    discount = jnp.asarray(GAMMA * (1.0 - rows["terminated"]), jnp.float32)
    theirs = rlax.n_step_bootstrapped_returns(jnp.asarray(rows["reward"]), discount, jnp.asarray(rows["next_value"]), n)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_n_step_returns_refuse_no_steps():
    with pytest.raises(ValueError, match="n is 0; allowed: 1 and more"):
        td.n_step_returns(*pick(trajectory(), "reward next_value terminated ended"), gamma=GAMMA, n=0)


@MODES
@pytest.mark.parametrize(
    "lam, rho_clip, c_clip", [(1.0, 1.0, 1.0), (0.7, 1.3, 0.9), (0.0, 1.0, 1.0), (1.0, np.inf, np.inf)]
)
def test_vtrace(mode, lam, rho_clip, c_clip):
    rows = trajectory(9)
    log_ratio = np.random.default_rng(10).normal(0.0, 0.7, rows["reward"].shape).astype(np.float32)
    result = mode(lambda *a: td.vtrace(*a, gamma=GAMMA, lam=lam, rho_clip=rho_clip, c_clip=c_clip))(
        *pick(rows, "reward value next_value terminated ended"), jnp.asarray(log_ratio)
    )
    for ours, oracle in zip(result, numpy_vtrace(rows, log_ratio, GAMMA, lam, rho_clip, c_clip)):
        np.testing.assert_allclose(np.asarray(ours), oracle, rtol=1e-4, atol=1e-4)


@MODES
def test_vtrace_equals_rlax_without_truncation(mode):
    rows = trajectory(11, (30,), p_truncated=0.0)
    rows["next_value"][:-1] = rows["value"][1:]
    log_ratio = np.random.default_rng(12).normal(0.0, 0.7, 30).astype(np.float32)
    target, advantage = mode(lambda *a: td.vtrace(*a, gamma=GAMMA, rho_clip=1.2))(
        *pick(rows, "reward value next_value terminated ended"), jnp.asarray(log_ratio)
    )
    reward, value, next_value, terminated = pick(rows, "reward value next_value terminated")
    theirs = rlax.vtrace_td_error_and_advantage(
        value, next_value, reward, GAMMA * (1.0 - terminated), jnp.exp(log_ratio), 1.0, 1.2, 1.2
    )
    np.testing.assert_allclose(target - value, theirs.errors, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(advantage, theirs.pg_advantage, rtol=1e-4, atol=1e-4)


def test_vtrace_on_policy_is_lambda_returns():
    rows = trajectory(13)
    rows["next_value"][:-1] = np.where(rows["ended"][:-1], rows["next_value"][:-1], rows["value"][1:])
    target, _ = td.vtrace(
        *pick(rows, "reward value next_value terminated ended"), jnp.zeros((17, 3)), gamma=GAMMA, lam=LAM
    )
    oracle = numpy_lambda_returns(rows, GAMMA, LAM)
    np.testing.assert_allclose(np.asarray(target), oracle, rtol=1e-4, atol=1e-4)


FUNCTIONS = {
    "td_target": ("reward next_value terminated", lambda *a: td.td_target(*a, gamma=GAMMA)),
    "gae": ("reward value next_value terminated ended", lambda *a: td.gae(*a, gamma=GAMMA, lam=LAM)),
    "lambda_returns": ("reward next_value terminated ended", lambda *a: td.lambda_returns(*a, gamma=GAMMA, lam=LAM)),
    "n_step_returns": ("reward next_value terminated ended", lambda *a: td.n_step_returns(*a, gamma=GAMMA, n=3)),
    "vtrace": (
        "reward value next_value terminated ended log_ratio",
        lambda *a: jnp.stack(td.vtrace(*a, gamma=GAMMA, lam=LAM)),
    ),
}
EVERY_FUNCTION = pytest.mark.parametrize("names, function", FUNCTIONS.values(), ids=FUNCTIONS)


@EVERY_FUNCTION
def test_refuses_a_broadcasting_head(names, function):
    rows = trajectory(14, (6,)) | {"log_ratio": np.zeros(6, np.float32)}
    function(*pick(rows, names))
    for i in range(len(names.split())):
        arguments = pick(rows, names)
        arguments[i] = arguments[i][:, None]
        with pytest.raises(AssertionError):
            function(*arguments)


@EVERY_FUNCTION
def test_gradients_are_stopped(names, function):
    rows = trajectory(15, (6,)) | {"log_ratio": np.zeros(6, np.float32)}
    arguments = pick(rows, names)
    floats = [i for i, x in enumerate(arguments) if x.dtype != bool]
    for gradient in jax.grad(lambda *a: jnp.sum(function(*a)), floats)(*arguments):
        assert not np.any(gradient)


@EVERY_FUNCTION
def test_takes_numpy_arrays(names, function):
    rows = trajectory(16, (6,)) | {"log_ratio": np.zeros(6, np.float32)}
    plain = function(*[rows[name] for name in names.split()])
    np.testing.assert_allclose(plain, function(*pick(rows, names)), rtol=1e-6, atol=1e-6)


FOLLOWING = {
    "reward value next_value terminated ended": jax.jit(lambda lam, *a: td.gae(*a, gamma=GAMMA, lam=lam)),
    "reward next_value terminated ended": jax.jit(lambda lam, *a: td.lambda_returns(*a, gamma=GAMMA, lam=lam)),
    "reward value next_value terminated ended log_ratio": jax.jit(
        lambda lam, *a: td.vtrace(*a, gamma=GAMMA, lam=lam)[0]
    ),
}


@given(st.integers(0, 2**31), st.floats(0.0, 1.0), st.integers(1, 12))
def test_what_follows_an_end_changes_nothing_before_it(seed, lam, cut):
    """Every target of rows up to an episode's end is the same whatever the next episode holds."""
    rows = trajectory(seed, (13,)) | {"log_ratio": np.zeros(13, np.float32)}
    rows["ended"][cut - 1] = True
    other = trajectory(seed + 1, (13,)) | {"log_ratio": np.ones(13, np.float32)}
    swapped = {name: np.concatenate([rows[name][:cut], other[name][cut:]]) for name in rows}
    for names, function in FOLLOWING.items():
        one, two = function(lam, *pick(rows, names)), function(lam, *pick(swapped, names))
        assert np.array_equal(one[:cut], two[:cut])


GAE = jax.jit(td.gae)


@given(st.integers(0, 2**31), st.floats(0.0, 0.999))
def test_a_perfect_value_has_no_advantage(seed, gamma):
    """The constant reward 1 with V = 1 / (1 - gamma) everywhere, truncated anywhere: it is its own target."""
    rows = trajectory(seed, (9,), p_terminated=0.0)
    value = jnp.full((9,), 1.0 / (1.0 - gamma))
    reward, terminated, ended = jnp.ones(9), jnp.zeros(9, bool), jnp.asarray(rows["ended"])
    advantage = GAE(reward, value, value, terminated, ended, gamma=gamma, lam=LAM)
    np.testing.assert_allclose(advantage, 0.0, atol=3e-6 / (1.0 - gamma))
