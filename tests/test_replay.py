"""The ring against a list in Python that remembers everything."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen import loops, replay
from jaxrl_gen.algos import descent
from jaxrl_gen.envs import probe, wrap
from jaxrl_gen.types import Algorithm, Spec, Transition

LANES = 3
SPEC = Spec(jax.ShapeDtypeStruct((2,), jnp.float32), 1)


def play(blocks, steps, rng, chance=0.3):
    """Rows of `blocks` rollouts, each observation a number of its own, with the last observation of each episode."""
    count = blocks * steps
    number = np.arange(count * LANES * 2, dtype=np.float32).reshape(count, LANES, 2)
    over = rng.random((count, LANES)) < chance
    terminated = over & (rng.random((count, LANES)) < 0.5)
    following = np.concatenate([number[1:], -np.ones((1, LANES, 2), np.float32)])
    next_obs = np.where(over[..., None], -number - 1, following)  # what physics produced is seen nowhere else
    return Transition(
        number, number[..., :1] / 7, number[..., 0] / 3, next_obs, terminated, over & ~terminated,
        rng.random((count, LANES)) < 0.9,
    )  # fmt: skip


def filled(rows, steps, capacity, **arguments):
    ring, add = replay.init(SPEC, capacity, LANES, **arguments), jax.jit(replay.add)
    for begin in range(0, len(rows.reward), steps):
        ring = add(ring, jax.tree.map(lambda x: x[begin : begin + steps], rows))
    return ring


@pytest.mark.parametrize(("blocks", "horizon"), [(2, 1), (3, 3), (7, 1), (7, 4)])
def test_windows_are_those_that_were_lived(blocks, horizon):
    steps, capacity = 4, 16
    rows = play(blocks, steps, np.random.default_rng(blocks))
    ring = filled(rows, steps, capacity, endings=64)
    window = jax.jit(replay.sample, static_argnums=(2, 3))(ring, jax.random.key(0), 500, horizon)
    first = np.asarray(window.obs)[0, :, 0]
    where = {rows.obs[t, e, 0]: (t, e) for t in range(blocks * steps) for e in range(LANES)}
    seen = set()
    for b, name in enumerate(first):
        t, e = where[name]
        seen.add((t, e))
        for x, y in zip(jax.tree.leaves(window), jax.tree.leaves(rows), strict=True):
            np.testing.assert_array_equal(np.asarray(x)[:, b], y[t : t + horizon, e])
    count = blocks * steps
    oldest = max(0, count - capacity)
    assert seen == {(t, e) for t in range(oldest, count - horizon) for e in range(LANES)}, "each, and no other"


def test_what_was_forgotten_of_an_ending_is_invalid_and_never_another_episodes():
    rows = play(4, 4, np.random.default_rng(0), chance=1.0)._replace(valid=np.ones((16, LANES), bool))
    ring = filled(rows, 4, 16, endings=6)
    window = replay.sample(ring, jax.random.key(0), 400)
    t = np.asarray(window.obs)[0, :, 0] // (2 * LANES)
    known = t >= 16 - 6
    np.testing.assert_array_equal(window.valid[0], known | np.asarray(window.terminated)[0])
    assert (~known & np.asarray(window.terminated)[0]).any() and (~known & np.asarray(window.truncated)[0]).any()
    expected = np.where(known[:, None], -np.asarray(window.obs[0]) - 1, window.obs[0])
    np.testing.assert_array_equal(window.next_obs[0], expected)


def test_it_says_its_size_before_it_is_made():
    ring = replay.init(SPEC, 100, LANES)
    assert replay.nbytes(SPEC, 100, LANES) == sum(x.nbytes for x in jax.tree.leaves(ring))


def test_refusals():
    with pytest.raises(ValueError, match="capacity is 0; allowed: 1 and more"):
        replay.init(SPEC, 0, LANES)
    with pytest.raises(ValueError, match="rows are added 3 at a time; that must divide the replay's capacity of 16"):
        replay.add(replay.init(SPEC, 16, LANES), jax.tree.map(lambda x: x[:3], play(1, 4, np.random.default_rng(0))))


# ---------------------------------------------------------------------------------------------- loops that use it


def counting(cfg, spec):
    """An algorithm that learns nothing but how often, and acts with zeros."""

    def update(state, batch, key):
        return state + 1.0, {"count/reward": jnp.mean(batch.reward), "count/rows": jnp.float32(batch.reward.size)}

    act = lambda state, obs, key: (jnp.zeros((len(jax.tree.leaves(obs)[0]), spec.action_size)), {})
    return Algorithm(lambda key: jnp.zeros(()), update, act)


def off_policy(**changes):
    arguments = {"steps": 2, "updates": 3, "batch_size": 5, "capacity": 100, "warmup": 24, "iterations": 10}
    return loops.off_policy(counting, wrap.fresh(probe.continuous_action(), 4), **arguments | changes)


def test_learning_begins_after_the_warm_up_and_actions_are_random_before():
    loop = off_policy()
    carry, metrics = jax.jit(loop.chunk)(0.0, loop.init(0.0, jax.random.key(0)))
    assert loop.steps_per_chunk == 80
    assert carry.replay.size == 20 and carry.replay.reward.shape == (26, 4), "100 rows are 13 rollouts of 8"
    assert carry.state == 3 * (10 - 2), "24 rows are there after the third rollout"
    action = np.asarray(carry.replay.action)[:20]
    assert (action[:6] != 0).all() and (np.abs(action[:6]) <= 1).all() and (action[6:] == 0).all()
    assert metrics["count/rows"] == 5.0, "iterations without learning do not count"
    assert np.isfinite(metrics["count/reward"])


def test_an_iteration_tells_what_it_learned_from():
    loop = off_policy(horizon=2, warmup=0, updates=1)
    carry, metrics, batch = jax.jit(loop.iteration)(0.0, loop.init(0.0, jax.random.key(0)))
    assert batch.reward.shape == (2, 5) and carry.state == 0, "two rows are no window of two and what follows"
    carry, metrics, batch = jax.jit(loop.iteration)(0.0, carry)
    assert carry.state == 1
    np.testing.assert_allclose(metrics["count/reward"], np.mean(batch.reward), rtol=1e-6)


def test_logged_data_is_a_part_of_each_batch_and_never_of_the_carry():
    rows = jax.tree.map(lambda x: jnp.full((1, 4, *x.shape), 7, x.dtype), replay.sample(
        replay.init(probe.continuous_action().spec, 2, 1), jax.random.key(0), 1)
    )  # fmt: skip
    row = jax.tree.map(lambda x: x[:, :, 0, 0], rows)
    loop = loops.offline_to_online(
        counting, wrap.fresh(probe.continuous_action(), 4), lambda rows, key: rows, (row,), steps=2, updates=1,
        batch_size=4, capacity=40, warmup=8, iterations=4,
    )  # fmt: skip
    carry = loop.init(0.0, jax.random.key(0))
    carry, metrics, batch = jax.jit(loop.iteration)(0.0, carry, 0, *loop.data)
    carry, metrics, batch = jax.jit(loop.iteration)(0.0, carry, 1, *loop.data)
    assert batch.reward.shape == (1, 8) and (batch.reward == 7).sum() == 4
    compiled = loops.compile_report(loop, 0.0, carry)
    assert types_of(compiled.chunk(0.0, carry)[0]) == types_of(carry)


def with_logged(logged, batch_size=3):
    return loops.offline_to_online(
        counting, wrap.fresh(probe.continuous_action(), 4), lambda logged, key: logged, (logged,), steps=2, updates=1,
        batch_size=batch_size, capacity=40, warmup=8, iterations=4,
    )  # fmt: skip


def logged_rows(size=1, horizon=1, count=4):
    number, no = jnp.full((horizon, count), 7.0), jnp.zeros((horizon, count), bool)
    obs = jnp.full((horizon, count, size), 7.0)
    return Transition(obs, number[..., None], number, obs, no, no, ~no)


def test_extras_of_logged_data_are_kept_and_rows_lived_online_are_told_from_them():
    """Nothing stands for a number that was not recorded: there it is zero, and a mark says where."""
    marks = {"demonstration": jnp.arange(4)[None] != 2, "places": jnp.ones((1, 4, 3), bool)}
    numbers = {"return_to_go": -jnp.ones((1, 4)), "nested": {"next_action": jnp.full((1, 4, 2), 7, jnp.int32)}}
    loop = with_logged(logged_rows()._replace(extras=marks | numbers))
    _, _, batch = jax.jit(loop.iteration)(0.0, loop.init(0.0, jax.random.key(0)), 0, *loop.data)
    assert set(batch.extras) == {*marks, *numbers, "logged"}
    logged = batch.reward[0] == 7
    assert logged.sum() == 4 and batch.reward.shape == (1, 7)
    np.testing.assert_array_equal(batch.extras["logged"][0], logged)
    np.testing.assert_array_equal(batch.extras["demonstration"][0][logged], [True, True, False, True])
    assert not batch.extras["demonstration"][0][~logged].any()
    assert batch.extras["places"].shape == (1, 7, 3)
    np.testing.assert_array_equal(batch.extras["places"][0].any(-1), logged)
    np.testing.assert_array_equal(batch.extras["return_to_go"][0], np.where(logged, -1.0, 0.0))
    nested = batch.extras["nested"]["next_action"]
    assert nested.dtype == jnp.int32 and nested.shape == (1, 7, 2)
    np.testing.assert_array_equal(nested[0, :, 1], np.where(logged, 7, 0))


@pytest.mark.parametrize(("lived", "logged"), [(24, 24), (36, 12), (10, 38)])
def test_each_share_of_a_batch_has_its_part_of_what_was_lived_and_of_what_was_logged(lived, logged):
    """So each update of a critic, and the policy after the last of them, learns from both."""
    loop = with_logged(logged_rows(count=logged), lived)
    _, _, batch = jax.jit(loop.iteration)(0.0, loop.init(0.0, jax.random.key(0)), 0, *loop.data)
    mark = batch.extras["logged"][0]
    assert mark.shape == (lived + logged,) and mark.sum() == logged
    for count in (2, 3, 4):
        part = logged / count
        found = np.sum(descent.shares(mark, count), -1)
        assert (found == part).all() if part.is_integer() else (np.abs(found - part) < 2).all()
    for stride in (2, 4, 6):  # as a method does that takes rows here and there
        picked = np.asarray(mark)[stride - 1 :: stride]
        assert picked.any() and not picked.all()


@pytest.mark.parametrize("changes", [{"size": 2}, {"horizon": 2}], ids=["spec", "horizon"])
def test_logged_windows_of_another_spec_or_length_are_refused(changes):
    loop = with_logged(logged_rows(**changes))
    carry = jax.eval_shape(loop.init, 0.0, jax.random.key(0))
    with pytest.raises(ValueError, match=r"logged windows have .*; expected \(\(1, 1\), \(1, 1\)\), as those from the"):
        jax.eval_shape(loop.chunk, 0.0, carry, *loop.data)


def test_a_replay_larger_than_memory_is_refused_before_it_is_made():
    loop = off_policy(capacity=10**6)
    shapes = jax.eval_shape(loop.init, 0.0, jax.random.key(0))
    ring = replay.nbytes(loop.env.spec, 10**6 // 4, 4)
    with pytest.raises(ValueError, match=r"the chunk needs .* GB of replay among them, and the device has .* GB"):
        loops.compile_report(loop, 0.0, shapes, memory_limit=ring)


def test_a_replay_that_fits_without_the_guards_copy_alone_is_refused_by_its_size():
    loop = off_policy(capacity=10**6)
    shapes = jax.eval_shape(loop.init, 0.0, jax.random.key(0))
    ring = replay.nbytes(loop.env.spec, 10**6 // 4, 4)
    assert loops.replay_bytes(shapes) == loops.replay_bytes({"somewhere": (shapes,)}) == ring
    copied, limit = loops.nbytes(shapes), 3 * ring // 2
    assert loops.compile_report(loop, 0.0, shapes, memory_limit=limit).peak_bytes < limit
    size = lambda count: f"{count / 2**30:.3g} GB"
    said = (
        f"{size(ring)} of replay and {size(copied)} kept beside it among them, and the device has {size(limit)}: fewer"
    )
    with pytest.raises(ValueError, match=said):
        loops.compile_report(loop, 0.0, shapes, memory_limit=limit, kept=copied)


def types_of(tree):
    return jax.tree.map(lambda x: (x.shape, x.dtype), tree)


def test_offline_members_share_the_data():
    rewards = jnp.arange(6.0)

    def sample(rewards, key):
        return Transition(None, None, rewards[jax.random.randint(key, (1, 2), 0, 6)], None, None, None, None)

    loop = loops.population(loops.offline(counting, probe.continuous_action(), sample, (rewards,), updates=4))
    carry = loop.init(0.0, jax.random.split(jax.random.key(0), 3))
    carry, metrics = jax.jit(loop.chunk)(0.0, carry, *loop.data)
    np.testing.assert_array_equal(carry.state, [4.0] * 3)
    assert len(set(np.asarray(metrics["count/reward"]).tolist())) > 1, "each member draws its own"
    assert loop.steps_per_chunk == 4


def test_refused_loops():
    with pytest.raises(ValueError, match="updates is 0; allowed: 1 and more"):
        off_policy(updates=0)
    with pytest.raises(ValueError, match="capacity is 16 rows; allowed: 24 and more, for warm-up and windows"):
        off_policy(capacity=16)
    with pytest.raises(ValueError, match="the environment is one lane"):
        loops.off_policy(
            counting, probe.continuous_action(), steps=1, updates=1, batch_size=1, capacity=9, warmup=0, iterations=1
        )
