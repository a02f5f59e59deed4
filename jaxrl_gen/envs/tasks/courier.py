"""A two-wheeled courier balances a parcel of unknown mass over a floor of unknown grip, and brings it to a post.

The faster it wants to go, the more it must lean, and the more grip it needs: a policy that knows one parcel and one
floor leans too far for a heavier parcel, or for a slippery floor, and falls. One motor turns the wheels. In one plane
there are four degrees of freedom (along, up, pitch, wheel) and one contact, so it simulates fast in MJX, on CPUs too.
"""

from pathlib import Path

import jax
import jax.numpy as jnp

from jaxrl_gen.envs import mjx
from jaxrl_gen.types import Env

MASSES = (0.5, 3.0)  # kg, the parcel; 1 in the MJCF
FRICTIONS = (0.2, 1.0)  # of tyre on floor; 0.9 in the MJCF
FAR = 2.5  # m, the post is at most so far away
FALLEN = 0.9  # rad of pitch
MJCF = Path(__file__).with_suffix(".xml")


def make(
    *,
    masses: tuple[float, float] = MASSES,
    frictions: tuple[float, float] = FRICTIONS,
    time_limit: int = 250,
) -> Env:
    """The courier; each episode draws the parcel's mass and the floor's grip evenly between two ends.

    The observation [6] is the way to the post (m), the speed (m/s), sine and cosine of the pitch, its rate (rad/s) and
    the speed of the tyre over the axle (m/s); mass and grip are not in it, but can be felt. The action [1] is a torque.

    Args:
      masses: lightest and heaviest parcel, kg; equal ends switch this randomisation off.
      frictions: most and least slippery floor; likewise.
      time_limit: steps of 0.02 s until an episode is truncated.
    Returns:
      Env of one lane that does not reset itself; a return near the time limit means that it hurried and never fell.
    Raises:
      ValueError: for ends that are not positive, or in the wrong order.
    """
    for name, (low, high) in {"masses": masses, "frictions": frictions}.items():
        if not 0 < low <= high:
            raise ValueError(f"{name} is {(low, high)}; allowed: positive, the lower end first")
    model = mjx.load(MJCF)
    parcel, tyre = mjx.index(model, "body", "parcel"), mjx.index(model, "geom", "tyre")
    nominal = float(model.body_mass[parcel])

    def randomize(model, key):
        key_mass, key_friction = jax.random.split(key)
        mass = jax.random.uniform(key_mass, minval=masses[0], maxval=masses[1])
        friction = jax.random.uniform(key_friction, minval=frictions[0], maxval=frictions[1])
        scale = jnp.ones((model.nbody,)).at[parcel].set(mass / nominal)
        return mjx.scale_masses(model, scale) | {"geom_friction": model.geom_friction.at[tyre, 0].set(friction)}

    return mjx.make(
        model, reset=reset, observe=observe, reward=reward, terminate=terminate, randomize=randomize,
        substeps=2, time_limit=time_limit, camera="beside",
    )  # fmt: skip


def reset(model, key) -> dict:
    """Upright but for a little tilt, the post somewhere to the left or to the right."""
    key_tilt, key_side, key_distance = jax.random.split(key, 3)
    tilt = jax.random.uniform(key_tilt, minval=-0.1, maxval=0.1)
    side = jax.random.rademacher(key_side, (), jnp.float32)
    goal = side * jax.random.uniform(key_distance, minval=0.3 * FAR, maxval=FAR)
    return {
        "qpos": jnp.asarray(model.qpos0).at[2].set(tilt),
        "mocap_pos": jnp.stack([goal, jnp.float32(0.4), jnp.float32(0.0)])[None],
    }


def observe(model, data) -> jax.Array:
    """What the robot feels, [6]; see `make`."""
    pitch, (speed, _, rate, wheel) = data.qpos[2], data.qvel
    return jnp.stack([way(data), speed, jnp.sin(pitch), jnp.cos(pitch), rate, 0.1 * wheel])


def reward(model, before, action, after) -> dict:
    """Near the post, with a calm motor."""
    return {"near": 1.0 / (1.0 + (way(after) / 0.4) ** 2), "effort": -0.05 * action[0] ** 2}


def terminate(model, data) -> jax.Array:
    """It has fallen."""
    return jnp.abs(data.qpos[2]) > FALLEN


def way(data) -> jax.Array:
    """Metres still to go to the post."""
    return data.mocap_pos[0, 0] - data.qpos[0]
