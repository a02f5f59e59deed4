"""The sprite world against a renderer and a walker of its own in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen.envs import wrap
from jaxrl_gen.envs.tasks import sprites

MOVES = {0: (0, 0), 1: (-1, 0), 2: (1, 0), 3: (0, -1), 4: (0, 1), 5: (-1, -1), 6: (-1, 1), 7: (1, -1), 8: (1, 1)}


def numpy_frame(screen, places, pixels, side):
    """Pixel by pixel: which sprite covers it, the last painted first."""
    size = places * pixels
    things = [(screen.flag, sprites.FLAG)]
    things += [(other, sprites.OTHERS[i % len(sprites.OTHERS)]) for i, other in enumerate(screen.others)]
    things += [(screen.sprite, sprites.SPRITE)]
    frame = np.zeros((size, size, 3), np.uint8)
    for row in range(size):
        for column in range(size):
            frame[row, column] = sprites.GROUND
            for (down, right), colour in things:
                covered = [(at - start * pixels) % size in range(side) for at, start in ((row, down), (column, right))]
                if all(covered):
                    frame[row, column] = colour
    return frame


def walker(env, steps=40, behave=None):
    """`seed -> ` screens before and after each step, actions and outcomes of one lane that is never reset, in NumPy."""
    behave = behave or (lambda screen, key: jax.random.randint(key, (), 0, env.spec.action_size))

    def step(state, key):
        key_act, key_step = jax.random.split(key)
        action = behave(state.inner, key_act)
        after, obs, outcome = env.step(state, action, key_step)
        return after, (state.inner, action, after.inner, obs, outcome)

    @jax.jit
    def whole(key):
        state, obs = env.reset(key)
        return state.inner, obs, jax.lax.scan(step, state, jax.random.split(key, steps))[1]

    return lambda seed: jax.device_get(whole(jax.random.key(seed)))


def walk(env, steps=40, seed=0, behave=None):
    """One of them."""
    return walker(env, steps, behave)(seed)


def at(tree, t):
    return jax.tree.map(lambda x: x[t], tree)


@pytest.mark.parametrize("places, pixels, side, distractors", [(5, 3, 3, 0), (4, 4, 7, 2), (6, 1, 1, 6)])
def test_frames_are_those_of_another_renderer(places, pixels, side, distractors):
    env = sprites.make(places=places, pixels=pixels, side=side, actions=9, distractors=distractors)
    first, obs, (_, _, after, seen, _) = walk(env, steps=8)
    np.testing.assert_array_equal(obs, numpy_frame(first, places, pixels, side))
    for t in range(8):
        np.testing.assert_array_equal(seen[t], numpy_frame(at(after, t), places, pixels, side))


@pytest.mark.parametrize("actions", [2, 5, 9])
def test_the_sprite_goes_where_the_action_says_and_the_flag_stays(actions):
    _, _, (before, action, after, _, outcome) = walk(sprites.make(places=5, actions=actions, distractors=1))
    moves = np.array([MOVES[a] for a in action.tolist()])
    np.testing.assert_array_equal(after.sprite, (before.sprite + moves) % 5)
    np.testing.assert_array_equal(after.flag, before.flag)
    np.testing.assert_array_equal(outcome.terminated, np.all(after.sprite == after.flag, -1))
    np.testing.assert_array_equal(outcome.reward, outcome.terminated.astype(np.float32))
    assert set(action.tolist()) == set(range(actions))


def test_distractors_go_their_way_and_turn_as_often_as_they_should():
    _, _, (before, _, after, _, _) = walk(sprites.make(places=7, distractors=5, turning=0.25), steps=1600)
    moves = np.array([MOVES[a] for a in range(5)])
    np.testing.assert_array_equal(after.others, (before.others + moves[after.headings]) % 7)
    turned = np.mean(before.headings != after.headings)  # four of five new directions are others
    assert turned == pytest.approx(0.25 * 0.8, abs=0.02)


@pytest.mark.parametrize("turning, expected", [(0.0, 0.0), (1.0, 0.8)])
def test_distractors_that_never_turn_and_that_always_do(turning, expected):
    _, _, (before, _, after, _, _) = walk(sprites.make(distractors=4, turning=turning), steps=500)
    assert np.mean(before.headings != after.headings) == pytest.approx(expected, abs=0.03)


def test_each_action_is_seen_in_the_frames():
    """Whatever the place: from the frame before and the action alone, NumPy paints the frame after."""
    env = sprites.make(places=4, pixels=3, actions=9)
    first, obs, (before, action, _, seen, _) = walk(env, steps=60, seed=2)
    for t in range(60):
        moved = at(before, t)._replace(sprite=(at(before, t).sprite + MOVES[int(action[t])]) % 4)
        np.testing.assert_array_equal(seen[t], numpy_frame(moved, 4, 3, 3))


def test_places_are_drawn_evenly_and_the_flag_is_never_under_the_sprite():
    env = sprites.make(places=3, distractors=1)
    screens = jax.jit(jax.vmap(lambda key: env.reset(key)[0].inner))(jax.random.split(jax.random.key(0), 9000))
    for thing in (screens.sprite, screens.flag, screens.others[:, 0]):
        counts = np.bincount(np.asarray(thing @ jnp.array([3, 1])), minlength=9)
        assert np.abs(counts / 1000 - 1).max() < 0.15
    assert not np.any(np.all(screens.sprite == screens.flag, -1))


@pytest.mark.parametrize("actions", [5, 9])
def test_the_seeker_takes_a_shortest_way(actions):
    places = 7
    env = sprites.make(places=places, actions=actions)
    behave = sprites.seeker(places=places, actions=actions)
    of_seed = walker(env, steps=8, behave=behave)
    for seed in range(5):
        first, _, (_, _, _, _, outcome) = of_seed(seed)
        gap = np.abs(first.sprite - first.flag)
        gap = np.minimum(gap, places - gap)
        steps = int(np.argmax(outcome.terminated)) + 1
        assert outcome.terminated.any() and steps == (gap.sum() if actions == 5 else gap.max())


def test_a_seeker_that_always_slips_wanders():
    _, _, (_, action, _, _, _) = walk(sprites.make(), 1000, 0, sprites.seeker(places=8, actions=5, slips=1.0))
    assert np.abs(np.bincount(action, minlength=5) / 200 - 1).max() < 0.25


def test_a_film_is_whole_rows_of_episodes_that_follow_each_other():
    env = sprites.make(places=4, pixels=2, time_limit=6)
    rows = jax.jit(lambda key: sprites.film(env, sprites.seeker(places=4, actions=5), key, lanes=3, steps=20))
    rows = jax.device_get(rows(jax.random.key(0)))
    assert rows.obs.shape == rows.next_obs.shape == (20, 3, 8, 8, 3) and rows.obs.dtype == np.uint8
    assert rows.action.shape == (20, 3) and rows.valid.all()
    over = rows.terminated | rows.truncated
    assert over.any()
    same = np.all(rows.next_obs[:-1] == rows.obs[1:], (2, 3, 4))
    assert same[~over[:-1]].all() and not same[over[:-1]].all()
    np.testing.assert_array_equal(rows.reward, rows.terminated)


def test_an_episode_is_truncated_at_its_time_limit():
    env = sprites.make(time_limit=5)
    _, _, (_, _, _, _, outcome) = walk(env, steps=5, behave=lambda screen, key: jnp.int32(0))
    np.testing.assert_array_equal(outcome.truncated, [False, False, False, False, True])
    assert env.spec.time_limit == 5


def test_many_lanes_and_a_scene():
    env = sprites.make(places=4, pixels=2)
    lanes = wrap.fresh(env, 3)
    state, obs = jax.jit(lanes.reset)(jax.random.key(0))
    assert obs.shape == (3, 8, 8, 3)
    np.testing.assert_array_equal(jax.jit(lanes.scene.view)(state), obs[0])
    frames = lanes.scene.draw(np.asarray(obs), 20, 30)
    assert frames.shape == (3, 20, 30, 3) and frames.dtype == np.uint8
    np.testing.assert_array_equal(frames[:, 2:18, 7:23][:, ::2, ::2], obs)


@pytest.mark.parametrize(
    "bad", [{"places": 2}, {"pixels": 0}, {"side": 17}, {"actions": 1}, {"actions": 10}, {"distractors": -1},
            {"turning": 1.5}, {"time_limit": 0}],
)  # fmt: skip
def test_bad_worlds_are_refused(bad):
    (name,) = bad
    with pytest.raises(ValueError, match=f"{name.replace('_', ' ')} is"):
        sprites.make(**bad)
