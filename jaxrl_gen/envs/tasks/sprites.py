"""A sprite on a small screen looks for a flag, among sprites that wander about by themselves.

Pure JAX, and cheap enough to film millions of frames. The screen has no edges: what leaves it on one side comes back on
the other, so that each of the first sprite's moves is seen in the frames, whatever came before. That makes it a bench
for models that are to find the actions hidden in a film: the truth is known, and so is what distracts from it.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_gen.envs import wrap
from jaxrl_gen.types import Env, Outcome, Scene, Spec, Transition

MOVES = np.array(
    [[0, 0], [-1, 0], [1, 0], [0, -1], [0, 1], [-1, -1], [-1, 1], [1, -1], [1, 1]], np.int32
)  # down, right
GROUND = (24, 26, 36)
FLAG = (94, 190, 110)
SPRITE = (240, 120, 70)
OTHERS = ((80, 150, 220), (200, 170, 70), (160, 110, 190), (120, 130, 140))


class Screen(NamedTuple):
    """Where everything is, in places from the upper left, and which way the wanderers go."""

    sprite: jax.Array  # i32 [2], down and right
    flag: jax.Array  # i32 [2]
    others: jax.Array  # i32 [N, 2]
    headings: jax.Array  # i32 [N], indices into MOVES


def make(
    *,
    places: int = 8,
    pixels: int = 4,
    side: int | None = None,
    actions: int = 5,
    distractors: int = 0,
    turning: float = 0.2,
    time_limit: int = 32,
) -> Env:
    """The sprite world: a frame [places * pixels, places * pixels, 3] uint8, and reward 1 for finding the flag.

    Of the discrete actions the first stays, the next four move up, down, left and right by one place, the last four
    slantwise.

    Args:
      places: along each side of the square screen.
      pixels: from one place to the next.
      side: pixels of a sprite; default: those of a place.
      actions: how many of the nine moves there are, 2 and more.
      distractors: N sprites that move by the same moves, but by themselves.
      turning: probability that one of them takes a new direction, per step.
      time_limit: steps until an episode is truncated; finding the flag terminates it.
    Returns:
      Env of one lane that does not reset itself.
    Raises:
      ValueError: for sizes that do not fit each other, or a number that is not allowed.
    """
    side = side or pixels
    _check(places, pixels, side, actions, distractors, turning)

    def reset(key):
        keys = jax.random.split(key, 4)
        spread = lambda index: jnp.stack(jnp.divmod(index, places), -1).astype(jnp.int32)
        sprite = jax.random.randint(keys[0], (), 0, places**2)
        flag = (sprite + jax.random.randint(keys[1], (), 1, places**2)) % places**2  # anywhere but under the sprite
        others = jax.random.randint(keys[2], (distractors,), 0, places**2)
        headings = jax.random.randint(keys[3], (distractors,), 0, actions)
        screen = Screen(spread(sprite), spread(flag), spread(others), headings)
        return screen, picture(screen)

    def step(screen, action, key):
        key_turn, key_heading = jax.random.split(key)
        turns = jax.random.bernoulli(key_turn, turning, (distractors,))
        headings = jnp.where(turns, jax.random.randint(key_heading, (distractors,), 0, actions), screen.headings)
        sprite = (screen.sprite + jnp.asarray(MOVES)[action]) % places
        others = (screen.others + jnp.asarray(MOVES)[headings]) % places
        screen = Screen(sprite, screen.flag, others, headings)
        found, obs, always = jnp.all(sprite == screen.flag), picture(screen), jnp.ones((), bool)
        return screen, obs, Outcome(obs, found.astype(jnp.float32), found, ~always, always)

    def picture(screen):
        return draw(screen, size=places * pixels, pixels=pixels, side=side)

    obs = jax.ShapeDtypeStruct((places * pixels, places * pixels, 3), jnp.uint8)
    env = Env(reset, step, Spec(obs, actions, True), scene=Scene(picture, _enlarged, fps=6.0))
    return wrap.time_limit(env, time_limit)


def draw(screen: Screen, *, size: int, pixels: int, side: int) -> jax.Array:
    """The frame of a screen: the flag, the wanderers over it, and the sprite over all.

    Args:
      screen: of one lane.
      size: pixels along the screen.
      pixels, side: as of `make`.
    Returns:
      uint8 [size, size, 3].
    """

    def paint(frame, place, colour):
        inside = (jnp.arange(size) - place[:, None] * pixels) % size < side  # [2, size]: rows, columns
        return jnp.where((inside[0][:, None] & inside[1])[..., None], jnp.asarray(colour, jnp.uint8), frame)

    frame = paint(jnp.broadcast_to(jnp.asarray(GROUND, jnp.uint8), (size, size, 3)), screen.flag, FLAG)
    for i in range(screen.others.shape[0]):
        frame = paint(frame, screen.others[i], OTHERS[i % len(OTHERS)])
    return paint(frame, screen.sprite, SPRITE)


def seeker(*, places: int, actions: int, slips: float = 0.0) -> Callable:
    """A behaviour `(screen, key) -> action` that goes to the flag the shortest way, but for random slips.

    Args:
      places, actions: as of `make`.
      slips: probability of a random action instead; 1 wanders.
    Returns:
      The behaviour; of moves that are equally good it takes the first.
    """

    def behave(screen, key):
        key_slip, key_random = jax.random.split(key)
        gap = (screen.sprite + jnp.asarray(MOVES[:actions]) - screen.flag) % places  # [actions, 2]
        best = jnp.argmin(jnp.sum(jnp.minimum(gap, places - gap), -1)).astype(jnp.int32)
        slip = jax.random.bernoulli(key_slip, slips)
        return jnp.where(slip, jax.random.randint(key_random, (), 0, actions), best)

    return behave


def film(env: Env, behave: Callable, key: jax.Array, *, lanes: int, steps: int) -> Transition:
    """What a behaviour that sees the screen itself does; an episode that ends is followed by another.

    Args:
      env: one lane of this world.
      behave: `(screen, key) -> action`.
      key: consumed here.
      lanes: E; they share no episode, so that to hold some of them out is to hold out whole episodes.
      steps: T of each.
    Returns:
      Transition, leaves [T, E, ...].
    """
    many = wrap.fresh(env, lanes)
    key_start, key_steps = jax.random.split(key)

    def step(carry, keys):
        (state, obs), (keys_act, keys_step) = carry, keys
        action = jax.vmap(behave)(state.inner.inner, keys_act)  # within the episode's sums and its time
        state, seen, outcome = many.step(state, action, keys_step)
        row = (obs, action, outcome.reward, outcome.next_obs, outcome.terminated, outcome.truncated, outcome.valid)
        return (state, seen), Transition(*row)

    return jax.lax.scan(step, many.reset(key_start), jax.random.split(key_steps, (steps, 2, lanes)))[1]


def _enlarged(frames: np.ndarray, height: int, width: int) -> np.ndarray:
    """Frames [T, size, size, 3] as large as fit, in whole multiples, on a plain ground."""
    steps, size = frames.shape[:2]
    times = max(1, min(height, width) // size)
    large = np.asarray(frames).repeat(times, 1).repeat(times, 2)[:, :height, :width]
    canvas = np.empty((steps, height, width, 3), np.uint8)
    canvas[:] = GROUND
    top, left = (height - large.shape[1]) // 2, (width - large.shape[2]) // 2
    canvas[:, top : top + large.shape[1], left : left + large.shape[2]] = large
    return canvas


def _check(places, pixels, side, actions, distractors, turning) -> None:
    """Refuse a world that does not fit together."""
    allowed = {
        "places": (places, 3, np.inf), "pixels": (pixels, 1, np.inf), "side": (side, 1, places * pixels // 2),
        "actions": (actions, 2, len(MOVES)), "distractors": (distractors, 0, np.inf), "turning": (turning, 0, 1),
    }  # fmt: skip
    for name, (value, low, high) in allowed.items():
        if not low <= value <= high:
            raise ValueError(f"{name} is {value}; allowed: {low} to {high}")
