"""ODICE against a float64 NumPy version of its update, and against values that SciPy finds of the same objective."""

import dataclasses
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize

from jaxrl_gen import loops, nets, types
from jaxrl_gen.algos import bc, odice
from jaxrl_gen.envs import probe
from jaxrl_gen.losses import dual, value
from jaxrl_gen.types import Env, Spec, Transition
from tests.algos import reference, test_bc, windows
from tests.algos.linear import outputs
from tests.algos.windows import DISCRETE, LINEAR, MODEST, SPEC, batch_of, learner, same, started

CFG = odice.Config(
    lr=0.01, gamma=0.9, tau=0.1, reward_scale=2.0, residual_weight=0.55, backward_weight=0.7, largest_weight=1.0,
    normalize_obs=False, **MODEST,
)  # fmt: skip
DIRECTIONS = {"orthogonal": dual.orthogonal, "semi": dual.semi_gradient, "true": dual.true_gradient}


# ------------------------------------------------------------------------------------------- the update, in NumPy


def conjugate(u):
    """max over w >= 0 of u w - (w - 1)^2."""
    w = np.maximum(u / 2 + 1, 0.0)
    return u * w - (w - 1) ** 2


def directed(kind, forward, backward):
    """The three directions, of vectors in NumPy."""
    if kind == "semi":
        return forward
    across = backward - forward * (forward @ backward) / (forward @ forward)
    return forward + (across if kind == "orthogonal" else backward)


def numpy_gradient(state, batch, smallest, kind):
    """What the update steps along, a pytree, by central differences of each of its pieces."""
    frozen, slow = windows.float64(state.params), windows.float64(state.target)
    obs, action, reward, next_obs, discount, valid = windows.condensed(batch, CFG.gamma)

    def judge(params, obs):
        members = outputs(params, obs)[..., 0]
        return members.min(0) if smallest else members.mean(0)

    residual = lambda now, later: CFG.reward_scale * reward + discount * judge(later, next_obs) - judge(now, obs)
    part = CFG.residual_weight
    of_forward = lambda params: part * conjugate(residual(params, slow))[valid].mean()
    of_backward = lambda params: part * CFG.backward_weight * conjugate(residual(slow, params))[valid].mean()
    weight = np.clip(residual(frozen["value"], slow), 0.0, CFG.largest_weight)[valid]
    assert np.any(weight == 0.0) and np.any(weight == CFG.largest_weight)
    assert np.any((weight > 0.0) & (weight < CFG.largest_weight))

    def of_rest(params):
        log_prob = test_bc.log_prob(params, obs, action)[valid]
        return ((1 - part) * judge(params["value"], obs)[valid] - weight * log_prob).mean()

    pieces = [reference.gradient(f, windows.float64(state.params["value"])) for f in (of_forward, of_backward)]
    leaves, treedef = zip(*(jax.tree.flatten(piece) for piece in pieces))
    forward, backward = (np.concatenate([x.ravel() for x in piece]) for piece in leaves)
    direction = np.split(directed(kind, forward, backward), np.cumsum([x.size for x in leaves[0]])[:-1])
    direction = treedef[0].unflatten([x.reshape(y.shape) for x, y in zip(direction, leaves[0])])
    gradient = reference.gradient(of_rest, windows.float64(state.params))
    cosine = forward @ backward / np.linalg.norm(forward) / np.linalg.norm(backward)
    return gradient | {"value": jax.tree.map(np.add, gradient["value"], direction)}, cosine


@pytest.mark.parametrize("kind", DIRECTIONS)
@pytest.mark.parametrize("horizon, combine", [(1, value.mean), (3, value.minimum)], ids=["mean", "minimum_three_steps"])
def test_update_equals_numpy(kind, horizon, combine):
    """Of nets of one layer."""
    cfg, batch = dataclasses.replace(CFG, **LINEAR), batch_of(horizon)
    algo = odice.make(cfg, SPEC, combine=combine, direction=DIRECTIONS[kind])
    state = started(algo)
    after, metrics = jax.jit(algo.update)(state, batch, jax.random.key(1))
    expected, cosine = numpy_gradient(state, batch, combine is value.minimum, kind)
    windows.close_to_numpy(state, after, expected, CFG.lr)
    windows.check_moved_slowly(after, state, after.params["value"])
    assert float(metrics["guard/skipped_updates"]) == 0.0
    np.testing.assert_allclose(metrics["value/cosine"], cosine, atol=1e-4)


# ------------------------------------------------------------------------------------------ what must not change it


NORMALIZED = dataclasses.replace(CFG, normalize_obs=True)


def test_invalid_rows_change_nothing():
    _, update, state = learner(odice.make, NORMALIZED)
    windows.check_invalid_rows_change_nothing(update, state, batch_of(2))


@pytest.mark.parametrize("where", ["obs", "action", "reward", "next_obs"])
def test_a_batch_with_nan_changes_no_parameter(where):
    _, update, state = learner(odice.make, NORMALIZED)
    windows.check_nan_changes_no_parameter(update, state, batch_of(2, invalid=False), where)


def test_a_batch_without_a_valid_row_changes_the_value_by_nothing():
    _, update, state = learner(odice.make, NORMALIZED)
    batch = batch_of(2)
    after, _ = update(state, batch._replace(valid=np.zeros_like(batch.valid)), jax.random.key(5))
    assert same(after.params, state.params)


# ----------------------------------------------------------------------------------------------- a table, by SciPy

STATES, CHOICES, GAMMA, PART = 5, 3, 0.9, 0.5


def table():
    """(s, a, r, d, s') of a small random log: four states, and one that ends it."""
    rng = np.random.default_rng(3)
    s, a = (x.ravel() for x in np.meshgrid(np.arange(STATES - 1), np.arange(CHOICES), indexing="ij"))
    s, a = np.tile(s, 4), np.tile(a, 4)
    s_next = rng.integers(0, STATES, len(s))
    r = rng.normal(size=len(s)) + (a == s % CHOICES)
    return s, a, r, GAMMA * (s_next != STATES - 1), s_next


def field(kind):
    """V [4] -> what the update would step along, if its slow value had caught up."""
    s, _, r, d, s_next = table()

    def of(v):
        v = np.append(v, 0.0)
        w = np.maximum((r + d * v[s_next] - v[s]) / 2 + 1, 0.0) / len(s)
        count = lambda where, weight: np.bincount(where, weight, STATES)[:-1]
        forward, backward = -PART * count(s, w), PART * count(s_next, d * w)
        return directed(kind, forward, backward) + (1 - PART) * count(s, np.full(len(s), 1.0 / len(s)))

    return of


@cache
def solution(kind):
    """The values at which the update rests: of the true gradient by minimising, else by finding the root."""
    s, _, r, d, s_next = table()
    if kind == "true":

        def objective(v):
            v = np.append(v, 0.0)
            return PART * conjugate(r + d * v[s_next] - v[s]).mean() + (1 - PART) * v[s].mean()

        return optimize.minimize(objective, np.zeros(STATES - 1), method="BFGS", options={"gtol": 1e-8}).x
    found = optimize.root(field(kind), np.zeros(STATES - 1) if kind == "semi" else solution("semi"), tol=1e-10)
    assert found.success
    return found.x


def test_the_three_directions_rest_at_different_values():
    found = [solution(kind) for kind in DIRECTIONS]
    for kind, v in zip(DIRECTIONS, found):
        np.testing.assert_allclose(field(kind)(v), 0.0, atol=1e-5)
    assert min(np.max(np.abs(x - y)) for x, y in ((found[0], found[1]), (found[0], found[2]), found[1:])) > 0.1


@pytest.mark.parametrize("kind", DIRECTIONS)
def test_values_and_policy_of_a_table(kind):
    """Every row in every batch: V goes where SciPy says, and pi(a|s) to the share of positive residuals."""
    s, a, r, d, s_next = table()
    eye = jnp.eye(STATES, dtype=jnp.float32)
    rows = Transition(
        eye[s], jnp.asarray(a, jnp.int32), jnp.asarray(r, jnp.float32), eye[s_next], jnp.asarray(d == 0),
        jnp.zeros(len(s), bool), jnp.ones(len(s), bool),
    )  # fmt: skip
    entries = lambda out: nets.Net(
        lambda key, example: jnp.zeros((*example.shape, out)), lambda params, x: x @ params
    )  # one number for each state, without a bias
    env = Env(None, None, Spec(jax.ShapeDtypeStruct((STATES,), jnp.float32), CHOICES, discrete=True))
    cfg = odice.Config(lr=3e-3, gamma=GAMMA, tau=0.05, residual_weight=PART, normalize_obs=False)
    make = lambda cfg, spec: odice.make(
        cfg, spec, actor=entries(CHOICES), values=nets.ensemble(entries(1), 1), direction=DIRECTIONS[kind]
    )
    loop = loops.offline(make, env, lambda rows, key: jax.tree.map(lambda x: x[None], rows), (rows,), updates=6000)
    cfg = types.strong(cfg)
    carry, _ = jax.jit(loop.chunk)(cfg, jax.jit(loop.init)(cfg, jax.random.key(0)), rows)
    expected = solution(kind)
    np.testing.assert_allclose(carry.state.params["value"][0, :-1, 0], expected, atol=0.02)
    v = np.append(expected, 0.0)
    weight = np.bincount(s * CHOICES + a, np.maximum(r + d * v[s_next] - v[s], 0.0)).reshape(-1, CHOICES)
    policy = jax.nn.softmax(carry.state.params["actor"][:-1], -1)
    np.testing.assert_allclose(policy, weight / weight.sum(1, keepdims=True), atol=0.03)


# --------------------------------------------------------------------------------------------------------- learning


def test_values_and_policy_of_one_step():
    """V is the root of E max(1 + (r - V) / 2, 0) = (1 - lambda) / lambda; the policy is near the best action."""
    env = probe.continuous_action()
    rows = windows.rows_of(env, 4000)
    cfg = odice.Config(lr=1e-2, gamma=0.9, tau=0.05, reward_scale=20.0, actor_hidden=(16,), critic_hidden=(16,))
    cfg = dataclasses.replace(cfg, normalize_obs=False)
    state, metrics = windows.learn_offline(odice.make, cfg, env, rows, 800, batch_size=128)
    both = jnp.array([[1.0], [-1.0]])
    net = nets.ensemble(nets.flat(nets.mlp((16, 1), jax.nn.relu), env.spec.obs), cfg.members)
    judged = jax.vmap(lambda params: net.apply(params["value"], both)[..., 0].mean(0))(state.params)
    rewards = [cfg.reward_scale * np.asarray(rows.reward, np.float64)[np.asarray(rows.obs)[:, 0] == x] for x in (1, -1)]
    share = (1 - cfg.residual_weight) / cfg.residual_weight
    oracle = [optimize.brentq(lambda v: np.maximum(1 + (r - v) / 2, 0).mean() - share, 0, 30) for r in rewards]
    np.testing.assert_allclose(oracle, 20.0 * (1.1 - 0.1 ** (2 / 3)), atol=0.5)  # of uniform actions, by integrating
    np.testing.assert_allclose(judged, np.broadcast_to(oracle, (3, 2)), atol=0.5)
    act = lambda make, cfg, state: jax.vmap(lambda s: make(cfg, env.spec).act(s, both, None)[0])(state)[..., 0]
    np.testing.assert_allclose(act(odice.make, cfg, state), np.broadcast_to([0.5, -0.5], (3, 2)), atol=0.15)
    cloning = bc.Config(lr=1e-2, actor_hidden=(16,), normalize_obs=False)
    cloned, _ = windows.learn_offline(bc.make, cloning, env, rows, 300, batch_size=128)
    np.testing.assert_allclose(act(bc.make, cloning, cloned), 0.0, atol=0.15)
    assert np.all(metrics["guard/skipped_updates"] == 0.0)


def test_discrete_actions_are_cloned_too():
    algo = odice.make(CFG, DISCRETE)
    state = started(algo)
    after, metrics = jax.jit(algo.update)(state, batch_of(2, spec=DISCRETE), jax.random.key(6))
    assert not same(after.params["actor"], state.params["actor"]) and float(metrics["guard/skipped_updates"]) == 0.0
    assert algo.act(after, jnp.zeros((4, 3)), None)[0].shape == (4,)
