"""Gymnax environments as Envs: classic control, MinAtar, bsuite and more, all in JAX."""

import importlib.metadata
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_gen.envs import adapt, sketch
from jaxrl_gen.types import Env, Outcome, Scene, Spec


def make(name: str, *, params: dict[str, Any] | None = None, **arguments: Any) -> Env:
    """An environment of gymnax, by its own name.

    Observations of whole numbers become float32; continuous actions are rescaled to the environment's own box.

    Args:
      name: for example "CartPole-v1" or "Breakout-MinAtar".
      params: changes of the environment's parameters, such as `{"max_steps_in_episode": 200}`.
      arguments: further arguments of the environment's own class.
    Returns:
      Env of one lane that does not reset itself, truncated at the environment's own episode length.
    Raises:
      ModuleNotFoundError: without the extra.
      ImportError: where gymnax is older than 1.0, which did not tell truncation from termination.
      ValueError: for an unknown name or parameter, with the nearest ones, or where the environment cannot be loaded.
    Reference: Lange 2022, https://github.com/RobertTLange/gymnax
    """
    inner, values = _load(name, params or {}, arguments)
    space = inner.action_space(values)
    discrete = hasattr(space, "n")
    size = space.n if discrete else int(np.prod(space.shape))
    if not discrete:
        ends = (np.broadcast_to(end, space.shape).reshape(-1) for end in (space.low, space.high))
        to_box = adapt.in_units(*ends, f"actions of {name}")

    def to_action(action):
        return action if discrete else to_box(action).reshape(space.shape)

    def reset(key):
        obs, state = inner.reset_env(key, values)
        return jax.tree.map(jnp.asarray, state), jax.tree.map(_float, obs)

    def step(state, action, key):
        obs, state, reward, terminated, info = inner.step_env(key, state, to_action(action), values)
        terminated = jnp.asarray(terminated, bool)
        truncated = jnp.asarray(inner.is_truncated(state, values), bool) & ~terminated
        obs, info = jax.tree.map(_float, (obs, {k: v for k, v in info.items() if k != "discount"}))
        outcome = Outcome(obs, _float(reward), terminated, truncated, jnp.ones((), bool), info)
        return state, obs, outcome

    obs = jax.eval_shape(reset, jax.random.key(0))[1]
    limit = int(values.max_steps_in_episode)
    observe = lambda state: inner.observe(jax.random.key(0), state, None, values)
    return adapt.lean(Env(reset, step, Spec(obs, size, discrete, limit), scene=_scene(name, observe, obs)))


def _load(name, params, arguments):
    """The environment and its parameters."""
    try:
        version = importlib.metadata.version("gymnax")
    except importlib.metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError("this needs gymnax: pip install 'jaxrl_gen[gymnax]'") from error
    if int(version.split(".")[0]) < 1:
        raise ImportError(f"gymnax {version} does not tell truncation from termination; pip install 'gymnax>=1.0.1'")
    import gymnax

    adapt.known(name, gymnax.registered_envs, "gymnax")
    try:
        inner, values = gymnax.make(name, **arguments)
    except Exception as error:  # a data set to download, or an unknown argument
        raise ValueError(f"{name} cannot be loaded: {adapt.one_line(error)}") from error
    for field in params:
        adapt.known(field, values.__dataclass_fields__, f"the parameters of {name}")
    return inner, values.replace(**params)


class Sketch(NamedTuple):
    """A picture of strokes: `lines(state) -> [strokes, 4]`, and how `envs.sketch` draws them."""

    lines: Any
    extent: float
    thickness: tuple[float, ...]
    ink: tuple[int, ...]
    fps: float


def _cart_pole(state):
    x, reach = state.x, jnp.stack([jnp.sin(state.theta), jnp.cos(state.theta)])
    cart = jnp.stack([x - 0.25, -0.5, x + 0.25, -0.5])
    pole = jnp.stack([x, -0.5, x + reach[0], -0.5 + reach[1]])
    return jnp.stack([jnp.array([-2.4, -0.5, 2.4, -0.5]), cart, pole])


def _pendulum(state):
    return jnp.stack([jnp.zeros(()), jnp.zeros(()), -jnp.sin(state.theta), jnp.cos(state.theta)])[None]


def _acrobot(state):
    first, second = state.joint_angle1, state.joint_angle1 + state.joint_angle2
    elbow = jnp.stack([jnp.sin(first), -jnp.cos(first)])
    hand = elbow + jnp.stack([jnp.sin(second), -jnp.cos(second)])
    bar = jnp.array([-2.0, 1.0, 2.0, 1.0])
    return jnp.stack([bar, jnp.concatenate([jnp.zeros(2), elbow]), jnp.concatenate([elbow, hand])])


def _mountain_car(state):
    height = lambda x: 0.45 * jnp.sin(3.0 * x)
    edges = jnp.linspace(-1.2, 0.6, 25)
    ground = jnp.stack([edges[:-1], height(edges[:-1]), edges[1:], height(edges[1:])], -1)
    car = jnp.stack([state.position, height(state.position) + 0.06] * 2)
    flag = jnp.array([0.5, 0.45, 0.5, 0.65])
    return jnp.concatenate([ground, jnp.stack([flag, car])]) + jnp.array([0.3, 0.0, 0.3, 0.0])


_SKETCHES = {
    "CartPole-v1": Sketch(_cart_pole, 1.5, (0.02, 0.3, 0.08), (6, 0, 1), 50.0),
    "Pendulum-v1": Sketch(_pendulum, 1.3, (0.15,), (1,), 20.0),
    "Acrobot-v1": Sketch(_acrobot, 2.3, (0.02, 0.15, 0.15), (6, 0, 1), 15.0),
    "MountainCar-v0": Sketch(_mountain_car, 0.9, (0.01,) * 24 + (0.02, 0.1), (6,) * 24 + (3, 1), 30.0),
    "MountainCarContinuous-v0": Sketch(_mountain_car, 0.9, (0.01,) * 24 + (0.02, 0.1), (6,) * 24 + (3, 1), 30.0),
}


def _scene(name, observe, obs) -> Scene | None:
    """Strokes for classic control, a coloured grid where the observation is one, and nothing for the rest."""
    if name in _SKETCHES:
        lines, extent, thickness, ink, fps = _SKETCHES[name]
        return Scene(lines, partial(sketch.strokes, extent=extent, thickness=thickness, ink=ink), fps)
    if getattr(obs, "ndim", 0) != 3:
        return None

    def cells(state):  # the number of the first channel that is set at each place: the player is above the scenery
        seen = observe(state) > 0
        return jnp.where(jnp.any(seen, -1), jnp.argmax(seen, -1) + 1, 0).astype(jnp.uint8)

    return Scene(cells, sketch.grid, 15.0)


def _float(x):
    kept = jnp.issubdtype(jnp.result_type(x), jnp.floating)
    return jax.lax.convert_element_type(x, jnp.result_type(x) if kept else jnp.float32)
