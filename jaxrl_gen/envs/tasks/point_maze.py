"""A point in a maze on a plane: cheap, fully known, and hard enough that short-sighted methods fail.

A maze is a picture, a tuple of strings: `#` is wall, `S` where episodes start, `G` a goal, anything else free. Where no
cell is `S`, or none `G`, every free one is. One cell is one metre.
"""

from collections import deque
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_gen.envs import sketch, wrap
from jaxrl_gen.types import Env, Outcome, Scene, Spec

SPEED = 0.25  # m per step along each axis, at most
REACHED = 0.5  # m from the goal

U_MAZE = (
    "#####",
    "#S..#",
    "###.#",
    "#G..#",
    "#####",
)  # fmt: skip
FOUR_ROOMS = (
    "#############",
    "#S....#.....#",
    "#.....#.....#",
    "#...........#",
    "#.....#.....#",
    "#.....#.....#",
    "##.####.....#",
    "#.....###.###",
    "#.....#.....#",
    "#.....#.....#",
    "#...........#",
    "#.....#....G#",
    "#############",
)  # fmt: skip
LARGE = (
    "###############",
    "#S..#.....#...#",
    "#.#.#.###.#.#.#",
    "#.#...#.....#.#",
    "#.#####.###.#.#",
    "#.....#...#...#",
    "#.###...#.###.#",
    "#...#.#.#...#.#",
    "###.###.###.#.#",
    "#.....#.......#",
    "#.###...#####.#",
    "#...#.#.....#G#",
    "###############",
)  # fmt: skip


class Point(NamedTuple):
    """State of the maze, in metres from the corner above the first cell: along the columns, and down the rows."""

    position: jax.Array  # f32 [2]
    goal: jax.Array  # f32 [2]


def sparse(distance: jax.Array, reached: jax.Array) -> jax.Array:
    """Reward 1 at the goal, and else 0."""
    del distance
    return reached.astype(jnp.float32)


def hurry(distance: jax.Array, reached: jax.Array) -> jax.Array:
    """Reward -1 for every step that does not reach the goal: advantages are counted in steps."""
    del distance
    return reached.astype(jnp.float32) - 1.0


def dense(distance: jax.Array, reached: jax.Array) -> jax.Array:
    """Reward exp(-distance), the straight one in metres, which leads into dead ends."""
    del reached
    return jnp.exp(-distance)


def make(maze: tuple[str, ...] = U_MAZE, *, reward: Callable = sparse, time_limit: int | None = None) -> Env:
    """A point that moves with a chosen velocity, slides along walls, and terminates within half a metre of the goal.

        x' = x + SPEED a, one axis after the other; a move along an axis that would end in a wall is left out

    The observation [4] is position and goal, from the middle of the maze and over half its longer side, so in [-1, 1];
    the action [2] is the velocity over the highest one.

    Args:
      maze: the picture; `U_MAZE`, `FOUR_ROOMS`, `LARGE`, or another whose border is wall.
      reward: `(distance to the goal [m], reached) -> reward`; `sparse`, `hurry`, `dense` or another.
      time_limit: steps until an episode is truncated; default: 4 times what the longest way there takes at full speed.
    Returns:
      Env of one lane that does not reset itself.
    Raises:
      ValueError: for a picture that is not a rectangle with a border of wall, without a free cell, or with a start
        that no way leads from to every goal.
    """
    far = checked(maze)
    limit = time_limit or round(4 * far / SPEED)
    wall = jnp.asarray(walls(maze).ravel())
    columns = len(maze[0])
    starts, goals = (jnp.asarray(centres(maze, mark)) for mark in "SG")

    def blocked(x, y):
        return wall[y.astype(jnp.int32) * columns + x.astype(jnp.int32)]

    def reset(key):
        key_start, key_goal, key_offset = jax.random.split(key, 3)
        start = starts[jax.random.randint(key_start, (), 0, len(starts))]
        goal = goals[jax.random.randint(key_goal, (), 0, len(goals))]
        offset = jax.random.uniform(key_offset, (2,), minval=-0.4, maxval=0.4)
        state = Point(start + offset, goal)
        return state, observe(maze, state)

    def step(state, action, key):
        del key  # it is deterministic
        x, y = state.position
        dx, dy = SPEED * jnp.clip(action, -1.0, 1.0)
        x = jnp.where(blocked(x + dx, y), x, x + dx)
        y = jnp.where(blocked(x, y + dy), y, y + dy)
        state = state._replace(position=jnp.stack([x, y]))
        distance = jnp.sqrt(jnp.sum((state.position - state.goal) ** 2))
        reached, obs, no = distance < REACHED, observe(maze, state), jnp.zeros((), bool)
        return state, obs, Outcome(obs, reward(distance, reached), reached, no, ~no)

    spec = Spec(jax.ShapeDtypeStruct((4,), jnp.float32), 2)
    return wrap.time_limit(Env(reset, step, spec, scene=Scene(lambda state: state, picture(maze))), limit)


def observe(maze: tuple[str, ...], state: Point) -> jax.Array:
    """What the policy sees of a state, [4]; see `make`."""
    middle, scale = _frame(maze)
    return jnp.concatenate([state.position - middle, state.goal - middle]) / scale


def oracle(maze: tuple[str, ...]) -> Callable:
    """The expert, a pure function `obs [4] -> action [2]`: at full speed to the next cell of a shortest way.

    From anywhere in a cell the straight line to the middle of a neighbour meets no wall.
    """
    far, free, columns = distances(maze), ~walls(maze).ravel(), len(maze[0])
    middle, scale = _frame(maze)
    ways = np.empty_like(far)
    for cell in range(len(free)):  # those of walls too: rounding may put a point beside a wall into it
        beside = np.array([n for n in _neighbours(cell, columns) if 0 <= n < len(free) and free[n]] or [cell])
        ways[:, cell] = beside[np.argmin(far[:, beside], axis=1)]
    ways = jnp.asarray(ways)  # [goal's cell, own cell] -> the cell to go to

    def act(obs):
        position, goal = obs[:2] * scale + middle, obs[2:] * scale + middle
        cell = lambda p: p[1].astype(jnp.int32) * columns + p[0].astype(jnp.int32)
        target = ways[cell(goal), cell(position)]
        between = jnp.stack([target % columns, target // columns]) + 0.5
        to = jnp.where(cell(goal) == cell(position), goal, between) - position
        return to / jnp.maximum(jnp.max(jnp.abs(to)), SPEED)

    return act


def distances(maze: tuple[str, ...]) -> np.ndarray:
    """Steps of the shortest way from cell to cell over free neighbours, breadth first.

    Returns:
      i32 [cells, cells], cells counted along the rows; the number of cells where there is no way.
    """
    free, columns = ~walls(maze).ravel(), len(maze[0])
    far = np.full((free.size, free.size), free.size, np.int32)
    for source in np.flatnonzero(free):
        far[source, source], queue = 0, deque([source])
        while queue:
            cell = queue.popleft()
            for neighbour in _neighbours(cell, columns):
                if free[neighbour] and far[source, neighbour] == free.size:
                    far[source, neighbour] = far[source, cell] + 1
                    queue.append(neighbour)
    return far


def walls(maze: tuple[str, ...]) -> np.ndarray:
    """Where the walls are, bool [rows, columns]."""
    return np.array([[mark == "#" for mark in row] for row in maze])


def centres(maze: tuple[str, ...], mark: str) -> np.ndarray:
    """The middles of the cells with a mark, f32 [n, 2] of x, y in metres; of all free cells where none has it."""
    found = np.argwhere([[cell == mark for cell in row] for row in maze])
    found = found if len(found) else np.argwhere(~walls(maze))
    return found[:, ::-1].astype(np.float32) + 0.5


def checked(maze: tuple[str, ...]) -> int:
    """Refuse a picture that is no maze.

    Returns:
      Cells of the longest of the shortest ways from a start to a goal, at least 1.
    Raises:
      ValueError: see `make`.
    """
    if len({len(row) for row in maze}) != 1:
        raise ValueError(f"maze has rows of {sorted({len(row) for row in maze})} cells; allowed: rows of one length")
    wall = walls(maze)
    if not (wall[[0, -1]].all() and wall[:, [0, -1]].all()):
        raise ValueError("maze has a border that is open; allowed: a border of #")
    if wall.all():
        raise ValueError("maze has no free cell; allowed: one and more")
    cell = lambda at: at[:, 1].astype(int) * wall.shape[1] + at[:, 0].astype(int)
    far = distances(maze)[np.ix_(*(cell(centres(maze, mark)) for mark in "SG"))]
    if (far == wall.size).any():
        raise ValueError("maze has a start without a way to every goal; allowed: starts and goals that are connected")
    return max(1, int(far.max()))


def picture(maze: tuple[str, ...]) -> Callable:
    """`draw` of a Scene: walls, the goal, and the point."""
    wall = walls(maze)

    def draw(views, height, width):
        fine = max(1, min(height // wall.shape[0], width // wall.shape[1]))  # dots per cell
        paper = 7 * wall.repeat(fine, 0).repeat(fine, 1)
        x, y = (np.arange(n * fine) / fine + 0.5 / fine for n in wall.shape[::-1])
        within = lambda at, size: np.hypot(x - at[:, :1, None], y[:, None] - at[:, 1:, None]) < size
        cells = np.where(within(np.asarray(views.goal), 0.35), 4, paper)
        return sketch.grid(np.where(within(np.asarray(views.position), 0.25), 2, cells), height, width)

    return draw


def _frame(maze: tuple[str, ...]) -> tuple[np.ndarray, np.float32]:
    """The middle of the maze, and half its longer side."""
    size = np.array([len(maze[0]), len(maze)], np.float32)
    return size / 2, size.max() / 2


def _neighbours(cell: int, columns: int) -> tuple[int, ...]:
    return cell - columns, cell - 1, cell + 1, cell + columns
