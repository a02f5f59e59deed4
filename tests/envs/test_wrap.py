"""Wrappers: ends, sums, quarantine, and lanes that really reset."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import ks_2samp

from jaxrl_gen import loops
from jaxrl_gen.envs import adapt, gymnax, probe, wrap
from jaxrl_gen.types import Scene, Transition, ended


def roll(env, steps, rollouts=1, seed=0, action=None, change=lambda state: state):
    """`rollouts` times renew and `steps` steps: first observations, those seen next, and outcomes, NumPy [T, ...]."""
    shape = (env.lanes,) if env.lanes else ()
    if action is None:
        action = jnp.zeros(shape, jnp.int32) if env.spec.discrete else jnp.zeros((*shape, env.spec.action_size))

    def step(state, key):
        state, obs, outcome = env.step(state, action, key)
        return state, (obs, outcome)

    def rollout(state, key):
        key_renew, key_steps = jax.random.split(key)
        return jax.lax.scan(step, env.renew(state, key_renew, 1), jax.random.split(key_steps, (steps, *shape)))

    @jax.jit
    def whole(key):
        key_reset, key_rollouts = jax.random.split(key)
        state, obs = env.reset(key_reset)
        _, rows = jax.lax.scan(rollout, change(state), jax.random.split(key_rollouts, rollouts))
        return obs, jax.tree.map(lambda x: x.reshape(rollouts * steps, *x.shape[2:]), rows)

    first, (seen, outcome) = jax.device_get(whole(jax.random.key(seed)))
    return first, seen, outcome


# ------------------------------------------------------------------------------------------------------- one lane


@pytest.mark.parametrize(("limit", "fails_after"), [(3, 5), (5, 5), (5, 3), (1, 2)])
def test_time_limit_truncates_unless_it_terminated_just_then(limit, fails_after):
    env = wrap.time_limit(probe.terminating(fails_after), limit)
    _, _, outcome = roll(env, min(limit, fails_after))
    assert not ended(outcome)[:-1].any()
    assert outcome.terminated[-1] == (fails_after <= limit)
    assert outcome.truncated[-1] == (limit < fails_after)
    assert env.spec.time_limit == limit


def test_action_repeat_sums_rewards_up_to_the_end():
    env = wrap.action_repeat(probe.truncating(5, reward=1.5), 2)
    _, _, outcome = roll(env, 3)
    np.testing.assert_array_equal(outcome.reward, [3.0, 3.0, 1.5])
    np.testing.assert_array_equal(outcome.truncated, [False, False, True])
    assert env.spec.time_limit == 3
    np.testing.assert_array_equal(roll(wrap.action_repeat(probe.truncating(5), 1), 5)[2].reward, np.ones(5))


def test_action_repeat_equals_repeating_by_hand():
    plain = gymnax.make("Pendulum-v1")
    repeated = wrap.action_repeat(plain, 3)
    state, _ = plain.reset(jax.random.key(0))
    once = jax.jit(repeated.step)(state, jnp.array([0.3]), jax.random.key(1))
    total, step = 0.0, jax.jit(plain.step)
    for _ in range(3):
        state, obs, outcome = step(state, jnp.array([0.3]), jax.random.key(1))
        total += float(outcome.reward)
    np.testing.assert_allclose(once[1], obs, rtol=1e-6)
    np.testing.assert_allclose(once[2].reward, total, rtol=1e-6)
    np.testing.assert_array_equal(once[2].next_obs, once[1])


def test_an_action_chunk_is_its_actions_one_by_one():
    plain = gymnax.make("Pendulum-v1", params={"max_steps_in_episode": 5})
    chunked = wrap.action_chunk(plain, 3)
    assert chunked.spec.action_size == 3 and chunked.spec.time_limit == 2
    state, _ = plain.reset(jax.random.key(0))
    begun, step, actions = state, jax.jit(plain.step), [0.3, -0.8, 1.0, 0.2, -0.1]
    first, seen, once = jax.jit(chunked.step)(begun, jnp.array(actions[:3]), jax.random.key(1))
    _, last, twice = jax.jit(chunked.step)(first, jnp.array([*actions[3:], 0.9]), jax.random.key(1))
    rows = []
    for action in actions:
        state, obs, outcome = step(state, jnp.array([action]), jax.random.key(1))
        rows.append((obs, float(outcome.reward)))
    np.testing.assert_allclose(seen, rows[2][0], rtol=1e-6)
    np.testing.assert_allclose(once.reward, sum(reward for _, reward in rows[:3]), rtol=1e-6)
    np.testing.assert_allclose(last, rows[4][0], rtol=1e-6)  # the limit is after five: the sixth is not taken
    np.testing.assert_allclose(twice.reward, rows[3][1] + rows[4][1], rtol=1e-6)
    assert twice.truncated and not once.truncated


def test_episode_sums_are_those_of_each_episode():
    env = wrap.fresh(gymnax.make("Pendulum-v1", params={"max_steps_in_episode": 7}), 3)
    _, _, outcome = roll(env, 20)
    expected, length = np.zeros((20, 3)), np.zeros((20, 3))
    for t in range(20):
        begun = t // 7 * 7
        expected[t] = outcome.reward[begun : t + 1].astype(np.float64).sum(0)
        length[t] = t + 1 - begun
    np.testing.assert_allclose(outcome.info["episode/return"], expected, rtol=1e-5)
    np.testing.assert_array_equal(outcome.info["episode/length"], length)


def test_scenes_reach_through_wrappers():
    env = probe.truncating(9)._replace(scene=Scene(lambda state: state.step, None))
    one = wrap.episode_sums(wrap.time_limit(probe.poisonable(env), 5))
    for wrapped in (one, wrap.pooled(env, 2), wrap.fresh(env, 2)):
        assert wrapped.scene.view(wrapped.reset(jax.random.key(0))[0]) == 0


# ----------------------------------------------------------------------------------------------------- quarantine


@pytest.mark.parametrize("many", [wrap.pooled, wrap.fresh])
def test_one_poisoned_lane_does_not_touch_the_others(many):
    env = many(probe.poisonable(gymnax.make("Pendulum-v1", params={"max_steps_in_episode": 9})), 8)
    action = jnp.linspace(-1, 1, 8)[:, None]
    clean = roll(env, 20, action=action)
    _, seen, outcome = roll(env, 20, action=action, change=lambda state: probe.poison(state, lane=3, after=4))
    others = np.arange(8) != 3
    for left, right in zip(jax.tree.leaves(clean[1:]), jax.tree.leaves((seen, outcome))):
        np.testing.assert_array_equal(left[:, others], right[:, others])
        np.testing.assert_array_equal(left[:4], right[:4])
    assert np.argwhere(~outcome.valid).tolist() == [[4, 3]]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((seen, outcome)))
    assert outcome.truncated[4, 3] and not outcome.terminated[4, 3]
    assert (outcome.next_obs[4, 3] == 0).all() and outcome.reward[4, 3] == 0
    assert (seen[4, 3] != 0).any()  # it goes on from a reset
    assert outcome.info["episode/length"][5, 3] == 1
    ends = outcome.terminated, outcome.truncated
    rows = Transition(seen, None, outcome.reward, outcome.next_obs, *ends, outcome.valid)
    assert loops.rollout_metrics(rows, outcome.info)["env/quarantined"] == 1


def test_the_poison_alone_changes_nothing():
    env = wrap.fresh(gymnax.make("Pendulum-v1"), 2)
    poisonable = wrap.fresh(probe.poisonable(gymnax.make("Pendulum-v1")), 2)
    for left, right in zip(jax.tree.leaves(roll(env, 5)), jax.tree.leaves(roll(poisonable, 5))):
        np.testing.assert_array_equal(left, right)


# --------------------------------------------------------------------------------------------- lanes that reset

EPISODE = 4  # steps; a rollout is as long, so every lane ends one episode per rollout


def pendulum(many, lanes=64):
    return many(gymnax.make("Pendulum-v1", params={"max_steps_in_episode": EPISODE}), lanes)


def starts_of(many):
    """First observations of the episodes, [episode, lane, 3]: those at the start, and those seen after each end."""
    first, seen, outcome = roll(pendulum(many), EPISODE, rollouts=16)
    over = ended(outcome)
    assert over[EPISODE - 1 :: EPISODE].all() and over.sum() == 16 * 64
    return np.concatenate([first[None], seen[EPISODE - 1 :: EPISODE]])


@pytest.mark.parametrize("many", [wrap.pooled, wrap.fresh])
def test_first_observations_are_distributed_like_direct_resets(many):
    starts = starts_of(many)
    direct = jax.vmap(gymnax.make("Pendulum-v1").reset)(jax.random.split(jax.random.key(99), 1024))[1]
    for axis in range(3):
        assert ks_2samp(starts[1:].reshape(-1, 3)[:, axis], np.asarray(direct)[:, axis]).pvalue > 0.01
    assert len(np.unique(starts.reshape(-1, 3), axis=0)) == 17 * 64  # no start is ever seen twice
    lane_means = starts[1:].mean(0)  # no lane has a favourite start
    assert (np.abs(lane_means[:, 0]) < 4.5 * np.sqrt(0.5 / 16)).all()


def test_a_pool_serves_no_state_twice_in_a_row_even_where_episodes_are_short():
    env = wrap.pooled(gymnax.make("Pendulum-v1", params={"max_steps_in_episode": 1}), 8)
    first, seen, outcome = roll(env, 6, rollouts=5)
    assert ended(outcome).all()
    starts = np.concatenate([first[None], seen])
    assert (starts[1:] != starts[:-1]).any(-1).all()


def settling(steps):
    """Pendulum whose reset takes as long as `steps` steps, each of which computes 10,000 numbers beside its own few."""
    env = gymnax.make("Pendulum-v1", params={"max_steps_in_episode": EPISODE})

    def step(state, action, key):
        jnp.sin(jnp.zeros(10_000))
        return env.step(state, action, key)

    def reset(key):
        state, obs = env.reset(key)
        settle = lambda carry, _: (step(carry[0], jnp.zeros((1,)), key)[:2], None)
        jax.lax.scan(settle, (state, obs), None, steps)
        return state, obs

    return env._replace(reset=reset, step=step)


def test_costly_resets_are_renewed_more_rarely_and_for_fewer_lanes():
    assert adapt.reset_in_steps(settling(100)) == pytest.approx(100, rel=0.01)
    assert adapt.reset_in_steps(settling(0)) < 0.01
    plain, rare = wrap.pooled(settling(100), 8, cost=jnp.inf), wrap.pooled(settling(100), 8, cost=0.01)
    assert plain.renew_after == 1 and rare.renew_after == pytest.approx(100 * 100, rel=0.01)
    state, _ = rare.reset(jax.random.key(0))
    renewed = []
    for i in range(4):
        after = rare.renew(state, jax.random.key(i), 3)  # 3 does not divide 8 lanes: the next number that does is 4
        changed = [np.any(x != y, axis=-1) for x, y in zip(state.spares[1:], after.spares[1:])][0]
        assert changed[:, 0].sum() == 2 and not changed[:, 1].any(), "the slot that is next, and no other"
        renewed += np.flatnonzero(changed[:, 0]).tolist()
        state = after
    assert sorted(renewed) == list(range(8)), "every lane once"


@pytest.mark.parametrize("together", [1, 4, 8])
def test_lanes_stepped_some_at_a_time_do_the_same(together):
    env = gymnax.make("Pendulum-v1", params={"max_steps_in_episode": EPISODE})
    action = jnp.linspace(-1, 1, 8)[:, None]
    wanted = roll(wrap.pooled(env, 8), EPISODE, rollouts=3, action=action)
    found = roll(wrap.pooled(env, 8, together=together), EPISODE, rollouts=3, action=action)
    for x, y in zip(jax.tree.leaves(wanted), jax.tree.leaves(found), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("after", "steps", "iterations", "wanted"),
    [(1, 4, 6, [1] * 6), (4, 4, 6, [1] * 6), (9, 4, 6, [1, 0, 0, 1, 0, 0]), (47, 4, 6, [2, 0, 0, 0, 0, 0])],
)
def test_loops_renew_as_often_as_the_cost_allows(after, steps, iterations, wanted):
    env = wrap.fresh(probe.truncating(), 2)._replace(renew=lambda state, key, share: state + share, renew_after=after)
    renew = loops.renewal(env, steps, iterations)
    begin = jnp.zeros(3, jnp.int32)  # of three members
    grown = lambda i: jax.vmap(renew, in_axes=(0, None, None))(begin, None, i)
    np.testing.assert_array_equal(jax.vmap(grown, out_axes=1)(jnp.arange(iterations)), [wanted] * 3)
    if 0 in wanted:  # left out, and not only thrown away
        assert "cond" in {eqn.primitive.name for eqn in jax.make_jaxpr(grown)(0).eqns}


@pytest.mark.parametrize("many", [wrap.pooled, wrap.fresh])
def test_the_last_observation_is_what_physics_produced(many):
    env = pendulum(many, 3)
    first, seen, outcome = roll(env, EPISODE, rollouts=2)
    before = np.concatenate([first[None], seen[:-1]])
    # Pendulum without torque, in float64, from each observation before the step.
    theta, rate = np.arctan2(before[..., 1], before[..., 0]).astype(float), before[..., 2].astype(float)
    rate = np.clip(rate + 15.0 * np.sin(theta) * 0.05, -8, 8)
    theta = theta + rate * 0.05
    np.testing.assert_allclose(outcome.next_obs, np.stack([np.cos(theta), np.sin(theta), rate], -1), atol=1e-5)
    over = ended(outcome)
    np.testing.assert_array_equal(seen[~over], outcome.next_obs[~over])
    assert (seen[over] != outcome.next_obs[over]).any(-1).all()


@pytest.mark.parametrize("many", [wrap.pooled, wrap.fresh])
def test_lanes_with_a_time_limit_do_not_end_all_at_once(many):
    limit, lanes = 20, 400
    _, _, outcome = roll(many(wrap.time_limit(probe.truncating(1000), limit), lanes), 3 * limit)
    first = np.argmax(outcome.truncated, 0)
    counts = np.bincount(first, minlength=limit)
    assert len(counts) == limit and counts.min() > 5 and counts.max() < 45  # 20 each, give or take
    for t in range(3 * limit):  # after the first end, all are whole, and as long as the limit
        np.testing.assert_array_equal(outcome.truncated[t], (t - first) % limit == 0)
        np.testing.assert_array_equal(outcome.info["episode/whole"][t], t > first)
    lengths = outcome.info["episode/length"][outcome.truncated & outcome.info["episode/whole"]]
    assert (lengths == limit).all() and len(lengths) > lanes


@pytest.mark.parametrize("slower", [wrap.action_repeat, wrap.action_chunk])
def test_lanes_of_longer_steps_do_not_end_all_at_once_either(slower):
    """The time limit is counted in the steps of the lane within: a tenth of it would not set lanes apart."""
    lanes, times, limit = 400, 10, 120
    env = wrap.pooled(slower(wrap.time_limit(probe.truncating(1000), limit), times), lanes)
    _, _, outcome = roll(env, 2 * limit // times)
    counts = np.bincount(np.argmax(outcome.truncated, 0), minlength=limit // times)
    assert len(counts) == limit // times and counts.min() > 12 and counts.max() < 60  # 33 each, give or take


def test_lanes_keep_their_dictionaries():
    env = wrap.pooled(probe.dict_observation(), 4)
    first, _, outcome = roll(env, 3)
    assert first["cue"]["sign"].shape == (4, 1) and outcome.next_obs["luck"].shape == (3, 4, 1)


def test_choose_selects_whole_lanes_and_keys():
    tree = lambda x: {"a": jnp.full((2, 3), x), "key": jax.random.split(jax.random.key(int(x)), 2)}
    chosen = wrap.choose(jnp.array([True, False]), tree(1.0), tree(2.0))
    np.testing.assert_array_equal(chosen["a"], [[1.0] * 3, [2.0] * 3])
    np.testing.assert_array_equal(
        jax.random.key_data(chosen["key"]),
        np.stack([jax.random.key_data(tree(1.0)["key"])[0], jax.random.key_data(tree(2.0)["key"])[1]]),
    )


def test_refusals():
    env = probe.truncating()
    with pytest.raises(ValueError, match="time limit is 0 steps; allowed: 1 and more"):
        wrap.time_limit(env, 0)
    with pytest.raises(ValueError, match="action repeat is 0; allowed: 1 and more"):
        wrap.action_repeat(env, 0)
    with pytest.raises(ValueError, match="action chunk is 2; allowed: 1 and more, of continuous actions"):
        wrap.action_chunk(probe.delayed(), 2)
    for many in (wrap.pooled, wrap.fresh):
        with pytest.raises(ValueError, match="lanes is 0; allowed: 1 and more"):
            many(env, 0)
    with pytest.raises(ValueError, match="spares is 1; allowed: 2 and more"):
        wrap.pooled(env, 2, spares=1)
    with pytest.raises(ValueError, match="cost is 0.0; allowed: above 0"):
        wrap.pooled(env, 2, cost=0.0)
    with pytest.raises(ValueError, match="together is 3; it must divide the 8 lanes"):
        wrap.pooled(env, 8, together=3)


def test_scores_sum_to_100_where_the_return_is_the_higher_one():
    """Over whole episodes of both kinds of end."""
    for env in (probe.terminating(steps=4, reward=2.0), probe.truncating(steps=4, reward=2.0)):  # their return is 8
        for low, high, expected in ((0.0, 8.0, 100.0), (8.0, 20.0, 0.0), (-2.0, 3.0, 200.0)):
            found = wrap.scored(env, low, high)
            (state, _), total = found.reset(jax.random.key(0)), 0.0
            for steps in range(1, 5):
                state, _, outcome = found.step(state, jnp.zeros(1), jax.random.key(1))
                total += float(outcome.reward)
                if steps == 2:  # an episode that is cut short is on the same scale
                    assert total == pytest.approx(100.0 * (4.0 - low) / (high - low), abs=1e-4)
            assert total == pytest.approx(expected, abs=1e-4)
    with pytest.raises(ValueError, match="low and high are both 3.0; allowed: two returns that differ"):
        wrap.scored(env, 3.0, 3.0)
