"""PPO against a float64 NumPy version of its update, and what must not change it."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen import loops, nets, normalize, types
from jaxrl_gen.algos import ppo
from jaxrl_gen.envs import probe, wrap
from jaxrl_gen.losses import policy
from jaxrl_gen.types import Recalled, Spec, Transition
from tests.algos import reference

KINDS = pytest.mark.parametrize("kind", ["continuous", "discrete", "recurrent"])
STEPS, LANES, FEATURES, ACTIONS, WIDTH = 6, 4, 3, 2, 3
PLAIN = dict(epochs=1, minibatches=1, lr=0.05, adam_epsilon=1.0, max_grad_norm=jnp.inf, lam=0.9)


def spec_of(kind):
    return Spec(jax.ShapeDtypeStruct((FEATURES,), jnp.float32), ACTIONS, discrete=kind == "discrete")


def make(kind, cfg):
    net = lambda out: nets.gru(WIDTH, (out,)) if kind == "recurrent" else nets.mlp((out,))
    return ppo.make(cfg, spec_of(kind), actor=net(ACTIONS), critic=net(1))


def started(algo, seed=0):
    """A State whose every parameter is away from its initialisation."""
    state = algo.init(jax.random.key(seed))
    leaves, treedef = jax.tree.flatten(state.params)
    rng = np.random.default_rng(seed)
    return state._replace(
        params=treedef.unflatten([x + rng.normal(0.0, 0.4, x.shape).astype(np.float32) for x in leaves])
    )


def batch_of(kind, seed=0, invalid=True):
    """A Transition of NumPy arrays with both kinds of ends, invalid rows, and ratios on both sides of the clip."""
    rng = np.random.default_rng(seed)
    shape = (STEPS, LANES)
    draw = lambda *more: rng.normal(size=shape + more).astype(np.float32)
    valid = (rng.random(shape) > 0.15) if invalid else np.ones(shape, bool)
    terminated = (rng.random(shape) < 0.2) & valid
    truncated = ((rng.random(shape) < 0.2) & ~terminated) | ~valid
    choice = rng.integers(0, ACTIONS, shape).astype(np.int32) if kind == "discrete" else draw(ACTIONS)
    obs = draw(FEATURES)
    if kind == "recurrent":
        memory = {name: np.zeros((*shape, WIDTH), np.float32) for name in ("actor", "critic")}
        memory = jax.tree.map(lambda x: rng.normal(0.0, 0.5, x.shape).astype(np.float32), memory)
        obs = Recalled(obs, memory)
    log_prob = rng.normal(-2.0, 0.7, shape).astype(np.float32)
    return Transition(
        obs, np.tanh(choice), draw(), draw(FEATURES), terminated, truncated, valid,
        {"choice": choice, "log_prob": log_prob},
    )  # fmt: skip


def same(one, two):
    return all(
        np.array_equal(x, y, equal_nan=True) for x, y in zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    )


ALL_TERMS = dict(value_clip=0.1, kl_coefficient=0.7, reward_scale=0.3, value_coefficient=1.3, clip=0.4)


@pytest.mark.parametrize(
    "kind, changes, mode",
    [
        ("continuous", {}, lambda f: f),
        ("continuous", ALL_TERMS, jax.jit),
        ("continuous", dict(epochs=3, max_grad_norm=0.1), jax.jit),
        ("discrete", ALL_TERMS | dict(epochs=2, entropy_coefficient=0.2), jax.jit),
        ("recurrent", ALL_TERMS | dict(epochs=2), jax.jit),
    ],
    ids=["eager", "all_terms", "epochs_and_clipped_gradient", "discrete", "recurrent"],
)
def test_update_equals_numpy(kind, changes, mode):
    """The entropy of a tanh-normal is sampled, so its coefficient is zero here but for discrete actions."""
    cfg = ppo.Config(**PLAIN | changes)
    algo, batch = make(kind, cfg), batch_of(kind)
    state = started(algo)
    after, metrics = mode(algo.update)(state, jax.tree.map(jnp.asarray, batch), jax.random.key(1))

    net, memory = reference.Linear, None
    if kind == "recurrent":
        net, memory = reference.Recurrent, jax.tree.map(lambda x: x[0].astype(np.float64), batch.obs.memory)
        batch = batch._replace(obs=batch.obs.obs)
    batch = jax.tree.map(lambda x: x.astype(np.float64) if x.dtype == np.float32 else x, batch)
    params, norms = reference.update(cfg, net, state.params, batch, memory, kind == "discrete")
    moved = max(np.max(np.abs(x - y)) for x, y in zip(jax.tree.leaves(params), jax.tree.leaves(state.params)))
    assert moved > 1e-3
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=moved * 1e-3), after.params, params)
    np.testing.assert_allclose(metrics["actor/grad_norm"], np.mean(norms), rtol=1e-3)


@cache
def learner(kind, **changes):
    """(algorithm, compiled update, State) of one kind, with two minibatches and two epochs."""
    algo = make(kind, ppo.Config(**PLAIN | dict(epochs=2, minibatches=2) | changes))
    return algo, jax.jit(algo.update), started(algo)


@KINDS
def test_invalid_rows_change_nothing(kind):
    """Whatever physics left in an invalid row, every number of the next State is the same to the bit."""
    _, update, state = learner(kind)
    batch = batch_of(kind)
    rng = np.random.default_rng(1)

    def soil(x):
        garbage = (50.0 + 10.0 * rng.normal(size=x.shape)).astype(x.dtype) if x.dtype == np.float32 else 1 - x
        return np.where(batch.valid.reshape(batch.valid.shape + (1,) * (x.ndim - 2)), x, garbage)

    obs = batch.obs._replace(obs=soil(batch.obs.obs)) if kind == "recurrent" else soil(batch.obs)
    soiled = batch._replace(
        obs=obs, action=soil(batch.action), reward=soil(batch.reward), next_obs=soil(batch.next_obs),
    )  # fmt: skip
    assert not same(batch, soiled)
    one, _ = update(state, batch, jax.random.key(2))
    two, _ = update(state, soiled, jax.random.key(2))
    assert not same(one.params, state.params)
    assert same(one, two)


def test_a_batch_without_a_valid_row_changes_no_parameter():
    _, update, state = learner("continuous", value_coefficient=0.5)
    batch = batch_of("continuous")
    nothing = batch._replace(valid=np.zeros_like(batch.valid), truncated=np.ones_like(batch.valid))
    after, _ = update(state, nothing, jax.random.key(3))
    assert same(after.params, state.params) and same(after.normalizer, state.normalizer)


@pytest.mark.parametrize("where", ["obs", "reward", "next_obs"])
@KINDS
def test_a_batch_with_nan_changes_no_parameter(kind, where):
    _, update, state = learner(kind)
    batch = batch_of(kind, invalid=False)
    poisoned = getattr(batch, where)
    poisoned = poisoned.obs if isinstance(poisoned, Recalled) else poisoned
    poisoned = np.where(
        np.arange(STEPS * LANES).reshape(STEPS, LANES, *[1] * (poisoned.ndim - 2)) == 9, np.nan, poisoned
    )
    if kind == "recurrent" and where == "obs":
        poisoned = batch.obs._replace(obs=poisoned)
    bad = batch._replace(**{where: jax.tree.map(lambda x: x.astype(np.float32), poisoned)})
    state, _ = update(state, batch, jax.random.key(3))  # so that the optimiser has momentum
    seen = float(state.normalizer.count)
    after, metrics = update(state, bad, jax.random.key(4))
    assert same(after.params, state.params)
    assert float(metrics["guard/skipped_updates"]) == 1.0
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(after))
    assert float(after.normalizer.count) - seen == STEPS * LANES - (where == "obs")
    recovered, metrics = update(after, batch, jax.random.key(5))
    assert not same(recovered.params, state.params) and float(metrics["guard/skipped_updates"]) == 0.0


@KINDS
def test_learning_begins_where_acting_was(kind):
    """The policy that learns gives the actions of a rollout the probabilities that the acting one gave: kl is zero.

    True through resets, from the second rollout on with a normaliser that has seen data and a memory that is not empty.
    """
    one_lane = {"continuous": probe.dict_observation, "discrete": probe.delayed, "recurrent": probe.memory}[kind]()
    env = wrap.fresh(wrap.time_limit(one_lane, 3), LANES)
    cfg = ppo.Config(epochs=1, minibatches=1, lr=0.1)

    def build(cfg, spec):
        if kind != "recurrent":
            return ppo.make(cfg, spec)
        net = lambda out: nets.flat(nets.gru(WIDTH, (out,)), spec.obs)
        return ppo.make(cfg, spec, actor=net(spec.action_size), critic=net(1))

    loop = loops.on_policy(build, env, steps=10, iterations=1)
    carry = jax.jit(loop.init)(cfg, jax.random.key(6))
    iteration = jax.jit(loop.iteration)
    for _ in range(3):
        carry, metrics, rows = iteration(cfg, carry)
        assert np.sum(types.ended(rows)) > LANES
        assert abs(float(metrics["actor/kl"])) < 1e-6 and float(metrics["actor/clip_fraction"]) == 0.0
    if kind == "recurrent":
        for leaf in jax.tree.leaves(rows.obs.memory):
            after_end = np.asarray(leaf)[1:][np.asarray(types.ended(rows))[:-1]]
            assert not np.any(after_end) and np.any(leaf)


def test_memory_before_an_end_does_not_reach_what_follows():
    """In `update`, too: other rows and another memory before the end leave the gradient of the rows after it alone.

    The rows before are invalid, so they reach the loss only through what the nets remember.
    """
    _, update, state = learner("recurrent")
    batch = batch_of("recurrent", invalid=False)
    before = np.arange(STEPS)[:, None] < np.array([[3, 2, 4, 1]])
    last = np.arange(STEPS)[:, None] == np.array([[2, 1, 3, 0]])
    batch = batch._replace(valid=~before, terminated=batch.terminated & ~before, truncated=batch.truncated | last)
    soil = lambda x: np.where(before[..., None], x + 3.0, x).astype(np.float32)
    other = batch._replace(obs=jax.tree.map(soil, batch.obs), next_obs=soil(batch.next_obs))
    one, _ = update(state, batch, jax.random.key(7))
    two, _ = update(state, other, jax.random.key(7))
    assert not same(one.params, state.params) and same(one.params, two.params)
    leaking = other._replace(truncated=other.truncated & ~last, terminated=other.terminated & ~last)
    three, _ = update(state, leaking, jax.random.key(7))
    assert not same(one.params, three.params)


def test_the_actor_does_not_see_what_only_the_critic_may():
    obs = {"hidden": jax.ShapeDtypeStruct((2,), jnp.float32), "seen": {"x": jax.ShapeDtypeStruct((3,), jnp.float32)}}
    algo = ppo.make(ppo.Config(), Spec(obs, ACTIONS), actor_view=lambda obs: obs["seen"], critic_view=lambda obs: obs)
    state = algo.init(jax.random.key(8))
    assert state.params["actor"]["Dense_0"]["kernel"].shape[0] == 3
    assert state.params["critic"]["Dense_0"]["kernel"].shape[0] == 5
    one = {"hidden": jnp.ones((4, 2)), "seen": {"x": jnp.ones((4, 3))}}
    two = one | {"hidden": jnp.full((4, 2), -7.0)}
    for key in (None, jax.random.key(9)):
        assert same(algo.act(state, one, key), algo.act(state, two, key))
    three = one | {"seen": {"x": jnp.full((4, 3), -7.0)}}
    assert not same(algo.act(state, one, None), algo.act(state, three, None))


def test_views_and_nets_of_ones_own():
    """An actor that reads an image by convolutions, a critic that reads a vector."""
    obs = {"image": jax.ShapeDtypeStruct((6, 6, 1), jnp.uint8), "x": jax.ShapeDtypeStruct((3,), jnp.float32)}
    algo = ppo.make(
        ppo.Config(normalize_obs=False, critic_hidden=(4,)), Spec(obs, 3, discrete=True),
        actor=nets.conv((2,), (8, 3), kernels=(3,), strides=(2,)),
        actor_view=lambda obs: obs["image"], critic_view=lambda obs: {"x": obs["x"]},
    )  # fmt: skip
    state = algo.init(jax.random.key(10))
    seen = {"image": jnp.ones((5, 6, 6, 1), jnp.uint8), "x": jnp.ones((5, 3))}
    action, extras = algo.act(state, seen, jax.random.key(11))
    assert action.shape == extras["log_prob"].shape == (5,)
    assert state.params["critic"]["Dense_0"]["kernel"].shape == (3, 4)
    assert state.normalizer.mean == ()


@pytest.mark.parametrize("kind", ["continuous", "discrete"])
def test_act_says_the_log_prob_of_its_action(kind):
    algo, _, state = learner(kind)
    state = state._replace(
        normalizer=normalize.update(state.normalizer, jnp.arange(12.0).reshape(4, 3), jnp.ones(4, bool))
    )
    obs = np.random.default_rng(12).normal(size=(50, FEATURES)).astype(np.float32)
    action, extras = jax.jit(algo.act)(state, obs, jax.random.key(13))
    rows = np.arange(12.0).reshape(4, 3)
    seen = np.clip((obs - rows.mean(0)) / rows.std(0), -10.0, 10.0)
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), state.params)
    output = reference.dense(seen, params["actor"]["Dense_0"])
    choice = np.asarray(action) if kind == "discrete" else np.arctanh(np.asarray(action, np.float64))
    oracle, _ = reference.log_prob_and_entropy(params, output, choice, kind == "discrete")
    np.testing.assert_allclose(extras["log_prob"], oracle, rtol=1e-3, atol=1e-3)
    best, nothing = algo.act(state, obs, None)
    np.testing.assert_allclose(best, output.argmax(-1) if kind == "discrete" else np.tanh(output), rtol=1e-4, atol=1e-5)
    assert nothing == {}


def test_actions_stay_inside_their_range():
    algo, _, state = learner("continuous")
    action, extras = algo.act(state, 100.0 * jnp.ones((64, FEATURES)), jax.random.key(14))
    assert np.all(np.abs(action) <= 1.0) and np.all(np.isfinite(extras["log_prob"]))


def test_the_learning_rate_falls_linearly_and_stays():
    algo, update, state = learner("continuous", lr=0.1, lr_end=0.2, lr_updates=4.0)
    batch, rates = batch_of("continuous"), []
    for i in range(6):
        state, metrics = update(state, batch, jax.random.key(i))
        rates.append(float(metrics["actor/lr"]))
    np.testing.assert_allclose(rates, [0.1, 0.08, 0.06, 0.04, 0.02, 0.02], rtol=1e-5)


def test_the_kl_coefficient_adapts():
    grown = learner("continuous", kl_coefficient=1.0, kl_target=1e-6)
    shrunk = learner("continuous", kl_coefficient=1.0, kl_target=1e6)
    batch = batch_of("continuous")
    for (_, update, state), expected in ((grown, 2.0), (shrunk, 0.5)):
        assert float(update(state, batch, jax.random.key(15))[0].kl_coefficient) == expected


@pytest.mark.parametrize("kind", ["continuous", "recurrent"])
def test_an_epoch_sees_every_row_once(kind):
    seen = []

    def spy(log_prob, old_log_prob, advantage, *, clip):
        jax.debug.callback(lambda rows: seen.append(np.asarray(rows)), old_log_prob)
        return policy.clipped_surrogate(log_prob, old_log_prob, advantage, clip=clip)

    net = (lambda out: nets.gru(WIDTH, (out,))) if kind == "recurrent" else (lambda out: nets.mlp((out,)))
    cfg = ppo.Config(epochs=1, minibatches=2)
    algo = ppo.make(cfg, spec_of(kind), actor=net(ACTIONS), critic=net(1), policy_loss=spy)
    names = np.arange(STEPS * LANES, dtype=np.float32).reshape(STEPS, LANES)
    batch = batch_of(kind, invalid=False)
    batch = batch._replace(extras=batch.extras | {"log_prob": names})
    state, update, orders = algo.init(jax.random.key(16)), jax.jit(algo.update), []
    for i in range(6):
        seen.clear()
        jax.block_until_ready(update(state, batch, jax.random.key(i)))
        jax.effects_barrier()
        assert len(seen) == 2 and all(piece.size == STEPS * LANES // 2 for piece in seen)
        np.testing.assert_array_equal(np.sort(np.concatenate([piece.ravel() for piece in seen])), names.ravel())
        if kind == "recurrent":  # whole lanes, in time
            assert all(np.array_equal(piece % LANES, np.broadcast_to(piece[:1] % LANES, piece.shape)) for piece in seen)
            assert all(np.all(np.diff(piece, axis=0) == LANES) for piece in seen)
        orders.append(np.concatenate([piece.ravel() for piece in seen]))
    assert len({order.tobytes() for order in orders}) > 1


@pytest.mark.parametrize(
    "kind, message",
    [
        ("continuous", "config.minibatches is 5; it must divide 6 steps x 4 lanes = 24 rows"),
        ("recurrent", r"config.minibatches is 5; it must divide 4 lanes \(with memory\)"),
    ],
)
def test_minibatches_that_do_not_divide_are_refused(kind, message):
    algo = make(kind, ppo.Config(minibatches=5))
    state = algo.init(jax.random.key(17))
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(algo.update, state, batch_of(kind), jax.random.key(18))


def test_memory_of_one_net_alone_is_refused():
    with pytest.raises(ValueError, match="both have memory, or neither"):
        ppo.make(ppo.Config(), spec_of("recurrent"), actor=nets.gru(WIDTH, (ACTIONS,)))
