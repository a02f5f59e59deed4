"""The point maze against a float64 simulator and SciPy's shortest paths; and its expert gets there."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.sparse import csgraph, csr_matrix

from jaxrl_gen.envs import wrap
from jaxrl_gen.envs.tasks import point_maze
from jaxrl_gen.types import ended

MAZES = {"u": point_maze.U_MAZE, "rooms": point_maze.FOUR_ROOMS, "large": point_maze.LARGE}
OPEN = ("#####", "#...#", "#.#.#", "#...#", "#####")  # starts and goals everywhere


def play(env, act, lanes, steps, key=0):
    """The first states; of every step the state before it, the action, and the outcome, leaves [T, lanes, ...]."""

    def episode(key):
        def step(carry, key):
            state, obs = carry
            action = act(obs, key)
            after, next_obs, outcome = env.step(state, action, key)
            return (after, next_obs), (state, action, outcome)

        key_reset, key_steps = jax.random.split(key)
        return jax.lax.scan(step, env.reset(key_reset), jax.random.split(key_steps, steps))[1]

    return jax.device_get(jax.jit(jax.vmap(episode, out_axes=1))(jax.random.split(jax.random.key(key), lanes)))


def at_random(obs, key):
    return jax.random.uniform(key, (2,), minval=-1.5, maxval=1.5)


def test_agrees_with_a_float64_simulator():
    maze, lanes, steps = point_maze.LARGE, 40, 60
    state, action, outcome = play(point_maze.make(maze), at_random, lanes, steps)
    slid = 0
    for lane in range(lanes):
        x, y = np.float64(state.inner.position[0, lane])
        goal = np.float64(state.inner.goal[0, lane])
        half = max(len(maze), len(maze[0])) / 2
        for t in range(steps):
            dx, dy = 0.25 * np.clip(np.float64(action[t, lane]), -1, 1)
            before = x, y
            x = x if maze[int(y)][int(x + dx)] == "#" else x + dx
            y = y if maze[int(y + dy)][int(x)] == "#" else y + dy
            slid += (x == before[0]) != (y == before[1])
            away = np.hypot(x - goal[0], y - goal[1])
            expected = [(x - len(maze[0]) / 2) / half, (y - len(maze) / 2) / half]
            np.testing.assert_allclose(outcome.next_obs[t, lane, :2], expected, atol=1e-5)
            assert outcome.terminated[t, lane] == (away < 0.5) == outcome.reward[t, lane]
    assert slid > 100, "walls were met"


@pytest.mark.parametrize("maze", [*MAZES.values(), OPEN], ids=[*MAZES, "open"])
def test_distances_are_scipys_shortest_paths(maze):
    wall = np.array([list(row) for row in maze]) == "#"
    cells = np.arange(wall.size).reshape(wall.shape)
    beside = [
        (cells[:, :-1], cells[:, 1:], ~wall[:, :-1] & ~wall[:, 1:]),
        (cells[:-1], cells[1:], ~wall[:-1] & ~wall[1:]),
    ]
    pairs = np.array([(a, b) for x, y, free in beside for a, b in zip(x[free], y[free])])
    graph = csr_matrix((np.ones(len(pairs)), pairs.T), shape=(wall.size, wall.size))
    expected = csgraph.shortest_path(graph, directed=False, unweighted=True)
    expected[np.isinf(expected)] = wall.size
    expected[wall.ravel()] = expected[:, wall.ravel()] = wall.size
    np.testing.assert_array_equal(point_maze.distances(maze), expected)


@pytest.mark.parametrize("maze", [point_maze.FOUR_ROOMS, OPEN], ids=["rooms", "open"])
def test_the_expert_reaches_the_goal_about_as_soon_as_possible(maze):
    env, expert = point_maze.make(maze), point_maze.oracle(maze)
    state, action, outcome = play(env, lambda obs, key: expert(obs), 64, env.spec.time_limit)
    assert (np.abs(action) <= 1).all()
    arrived = np.argmax(outcome.terminated, axis=0)
    assert outcome.terminated.any(axis=0).all(), "within the time limit"
    cell = lambda at: at[:, 1].astype(int) * len(maze[0]) + at[:, 0].astype(int)
    far = point_maze.distances(maze)[cell(state.inner.position[0]), cell(state.inner.goal[0])]
    straight = np.abs(state.inner.position[0] - state.inner.goal[0]).max(axis=1) - point_maze.REACHED
    assert (arrived + 1 <= (far + 1) / point_maze.SPEED).all() and (arrived + 1 >= straight / point_maze.SPEED).all()


def test_the_expert_arrives_from_wherever_it_is_pushed():
    maze = point_maze.LARGE
    env, expert = point_maze.make(maze, time_limit=2000), point_maze.oracle(maze)

    def act(obs, key):
        return jnp.where(jax.random.bernoulli(key, 0.5), expert(obs), at_random(obs, key))

    _, _, outcome = play(env, act, 64, 2000)
    assert outcome.terminated.any(axis=0).all()


def test_starts_goals_and_rewards():
    env = point_maze.make(OPEN, reward=point_maze.dense)
    state, action, outcome = play(env, at_random, 200, 4)
    for place in (state.inner.position[0], state.inner.goal[0]):
        assert {(int(x), int(y)) for x, y in place} == {
            (x, y) for x in (1, 2, 3) for y in (1, 2, 3) if (x, y) != (2, 2)
        }
    assert len(np.unique(state.inner.position[0])) > 300, "anywhere within a cell"
    position = outcome.next_obs[..., :2] * 2.5 + 2.5
    away = np.linalg.norm(position - state.inner.goal, axis=-1)
    np.testing.assert_allclose(outcome.reward, np.exp(-away), rtol=1e-4)
    only = play(point_maze.make(), at_random, 50, 1)[0].inner
    assert (only.position[0].astype(int) == 1).all() and (only.goal[0] == [1.5, 3.5]).all()


def test_the_time_limit_truncates():
    env = point_maze.make(time_limit=7)
    outcome = play(env, lambda obs, key: jnp.zeros(2), 2, 7)[2]
    assert outcome.truncated[:, 0].tolist() == [False] * 6 + [True] and not outcome.terminated.any()
    assert env.spec.time_limit == 7 and point_maze.make().spec.time_limit == 4 * 6 * 4


def test_many_lanes():
    env = wrap.fresh(point_maze.make(), 16)
    state, obs = jax.jit(env.reset)(jax.random.key(0))
    step = lambda state, key: env.step(state, jnp.ones((16, 2)), jax.random.split(key, 16))[::2]
    state, outcome = jax.jit(lambda s: jax.lax.scan(step, s, jax.random.split(jax.random.key(1), 100)))(state)
    assert ended(outcome).any() and outcome.valid.all()


def test_pictures_show_walls_goal_and_point():
    env = point_maze.make()
    state, _ = env.reset(jax.random.key(0))
    views = jax.tree.map(lambda x: np.stack([x, x]), env.scene.view(state))
    frames = env.scene.draw(views, 200, 240)
    assert frames.shape == (2, 200, 240, 3) and frames.dtype == np.uint8
    assert len(np.unique(frames.reshape(-1, 3), axis=0)) == 5, "margin, floor, wall, goal, point"
    assert (frames[0, 100, 120] == frames[0, 20, 120]).all(), "the middle of the U is wall, as the border is"


def test_refusals():
    with pytest.raises(ValueError, match=r"maze has rows of \[3, 4\] cells; allowed: rows of one length"):
        point_maze.make(("####", "#.#", "####"))
    with pytest.raises(ValueError, match="maze has a border that is open; allowed: a border of #"):
        point_maze.make(("###", "#..", "###"))
    with pytest.raises(ValueError, match="maze has no free cell"):
        point_maze.make(("###", "###", "###"))
    with pytest.raises(ValueError, match="maze has a start without a way to every goal"):
        point_maze.make(("#####", "#S#G#", "#####"))
    with pytest.raises(ValueError, match="time limit is -1 steps"):
        point_maze.make(time_limit=-1)
