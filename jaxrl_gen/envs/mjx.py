"""A robot of your own in MJX: an MJCF file and a few pure functions become an Env.

    def reset(model, key):                     -> fields of the simulator's Data, such as {"qpos": [nq], "qvel": [nv]}
    def observe(model, data):                  -> observation, any pytree
    def reward(model, before, action, after):  -> scalar, or a dictionary of terms whose sum it is
    def terminate(model, data):                -> bool
    def randomize(model, key):                 -> fields of the simulator's Model, drawn anew for each episode

    env = mjx.make("robot.xml", reset=reset, observe=observe, reward=reward, terminate=terminate, time_limit=500)

`model` is an mjx.Model with this episode's changes in it, `data` an mjx.Data. As MuJoCo's own step leaves them, `qpos`
and `qvel` are those after the step; what is derived of them (`xpos`, `sensordata`, contacts) is one substep older.
"""

import copy
import ctypes
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_gen.envs import adapt, wrap
from jaxrl_gen.types import Env, Outcome, PyTree, Scene, Spec


class Simulated(NamedTuple):
    """State of an own robot: the simulator's Data, and the fields of its Model that are this episode's own."""

    data: Any
    changes: dict[str, jax.Array]


def make(
    mjcf: Any,
    *,
    reset: Callable,
    observe: Callable,
    reward: Callable,
    terminate: Callable = lambda model, data: False,
    randomize: Callable = lambda model, key: {},
    substeps: int = 1,
    time_limit: int | None = None,
    camera: int | str | None = None,
    impl: str = "jax",
) -> Env:
    """An Env from an MJCF model and pure functions.

    Actions are in [-1, 1]^A and rescaled to the actuators' `ctrlrange`. Only the fields that `randomize` returns are
    held per lane; the rest of the model is shared. After changing masses or inertias, also return `constants`: see
    `scale_masses`.

    Args:
      mjcf: path of an MJCF file, its XML as a string, or a mujoco.MjModel.
      reset: `(model, key) -> {field of Data: array}`; fields left out keep their defaults.
      observe: `(model, data) -> pytree`.
      reward: `(model, before, action [A], after) -> scalar`, or `{term: scalar}`, which are added up and reported.
      terminate: `(model, data) -> bool`; default: never.
      randomize: `(model, key) -> {field of Model: array}`, dotted for nested fields; drawn at every reset.
      substeps: physics steps per step.
      time_limit: steps until an episode is truncated; None: unbounded.
      camera: name or number for videos; default: the model's first, or a free one.
      impl: physics implementation, "jax" everywhere or "warp" on NVIDIA hardware.
    Returns:
      Env of one lane that does not reset itself.
    Raises:
      ValueError: for a broken model, an actuator without range, an unknown field, or a result of the wrong shape.
    """
    if substeps < 1:
        raise ValueError(f"substeps is {substeps}; allowed: 1 and more")
    mj_model = load(mjcf)
    simulator, base = _put(mj_model, impl)
    to_control = adapt.in_units(*_control_range(mj_model).T, "ctrlrange")
    blank = simulator.make_data(base)

    def changed(changes):
        return base.tree_replace(changes) if changes else base

    def reset_lane(key):
        key_model, key_data = jax.random.split(key)
        changes = _checked(randomize(base, key_model), base, "Model", "randomize")
        model = changed(changes)
        fields = _checked(reset(model, key_data), blank, "Data", "reset")
        data = simulator.forward(model, blank.tree_replace(fields))
        return Simulated(data, changes), observe(model, data)

    def step(state, action, key):
        del key
        model = changed(state.changes)
        data = state.data.replace(ctrl=to_control(action))
        if substeps == 1:
            data = simulator.step(model, data)
        else:
            data = jax.lax.scan(lambda d, _: (simulator.step(model, d), None), data, length=substeps)[0]
        terms = reward(model, state.data, action, data)
        terms = terms if isinstance(terms, dict) else {"": terms}
        for name, term in terms.items():
            _check_scalar(term, f"reward term {name!r}" if name else "reward")
        terminated = _check_scalar(terminate(model, data), "terminate")
        obs, total = observe(model, data), jax.lax.convert_element_type(sum(terms.values()), jnp.float32)
        info = {f"reward/{name}": term for name, term in terms.items() if name}
        outcome = Outcome(obs, total, jnp.asarray(terminated, bool), jnp.zeros((), bool), jnp.ones((), bool), info)
        return Simulated(data, state.changes), obs, outcome

    obs = jax.eval_shape(reset_lane, jax.random.key(0))[1]
    fps = 1.0 / (substeps * mj_model.opt.timestep)
    view = scene(mj_model, lambda state: pose(state.data), fps=fps, camera=camera)
    env = adapt.lean(Env(reset_lane, step, Spec(obs, mj_model.nu), scene=view))
    return env if time_limit is None else wrap.time_limit(env, time_limit)


def load(mjcf: Any):
    """A mujoco.MjModel from a path, from XML, or from itself.

    Raises:
      ValueError: in one line, for a missing or broken file.
    """
    mujoco = _mujoco()
    if isinstance(mjcf, mujoco.MjModel):
        return mjcf
    text = str(mjcf).strip()
    if not text.startswith("<") and not Path(text).is_file():
        raise ValueError(f"MJCF file {text!r} does not exist, and it is no XML (which starts with '<')")
    try:
        read = mujoco.MjModel.from_xml_string if text.startswith("<") else mujoco.MjModel.from_xml_path
        return read(text)
    except ValueError as error:
        where = "the MJCF string" if text.startswith("<") else text
        raise ValueError(f"MuJoCo refuses {where}: {adapt.one_line(error)}") from error


def index(model: Any, kind: str, name: str) -> int:
    """The number of a named thing in a model.

    Args:
      model: mujoco.MjModel or mjx.Model.
      kind: "body", "joint", "geom", "site", "camera", "actuator", "sensor" or another of MuJoCo's kinds of object
        that the model keeps the names of; MJX keeps fewer.
      name: as in the MJCF.
    Raises:
      ValueError: with the nearest names.
    """
    short = {"joint": "jnt", "camera": "cam", "texture": "tex", "material": "mat", "equality": "eq", "xbody": "body"}
    kinds = [x.removeprefix("mjOBJ_").lower() for x in _mujoco().mjtObj.__members__]
    starts = {x: getattr(model, f"name_{short.get(x, x)}adr", None) for x in kinds}
    kept = [x for x in kinds if starts[x] is not None]
    adapt.known(kind, kept, "the kinds of object whose names this model keeps")
    text = model.names  # each ends with a zero
    names = [text[start : text.index(b"\0", start)].decode() for start in starts[kind]]
    adapt.known(name, filter(None, names), f"the {kind} names")
    return names.index(name)


def sensor(model: Any, data: Any, name: str) -> jax.Array:
    """What a named sensor reads, [its size]."""
    i = index(model, "sensor", name)
    start = int(model.sensor_adr[i])
    return data.sensordata[start : start + int(model.sensor_dim[i])]


def scale_masses(model: Any, scale: jax.Array) -> dict[str, jax.Array]:
    """Fields of a Model whose bodies weigh `scale` times as much, with all that MuJoCo derives from masses.

    Args:
      model: mjx.Model.
      scale: [nbody], or one number for all; inertias scale alike, as they do for another density.
    Returns:
      Fields for `randomize`.
    """
    scale = jnp.broadcast_to(jnp.asarray(scale, jnp.float32), model.body_mass.shape)
    changes = {"body_mass": model.body_mass * scale, "body_inertia": model.body_inertia * scale[:, None]}
    return changes | constants(model.tree_replace(changes))


def constants(model: Any) -> dict[str, jax.Array]:
    """The fields of a Model that MuJoCo derives from masses and inertias when it compiles one, derived again.

    Contact and limit forces are scaled by them, so a changed mass with stale constants is softer or stiffer than it
    should be. Return them from `randomize` after changing masses, inertias, armatures or the places of bodies.

    Args:
      model: mjx.Model, changed; of MJX's own implementation, `impl="jax"`.
    Returns:
      Fields for `randomize`.
    Reference: mj_setConst, https://mujoco.readthedocs.io/en/stable/APIreference/APIfunctions.html#mj-setconst
    """
    mjx = _mujoco().mjx
    data = mjx.make_data(model).replace(qpos=jnp.asarray(model.qpos0))
    for stage in (mjx.kinematics, mjx.com_pos, mjx.tendon, mjx.crb, mjx.tendon_armature, mjx.transmission):
        data = stage(model, data)
    mass = mjx.full_m(model, data)
    inverse = jnp.linalg.inv(mass)
    mobility = lambda jacobian: jnp.einsum("...i,ij,...j->...", jacobian, inverse, jacobian)

    place, turn = jax.vmap(lambda i: mjx.jac(model, data, data.xipos[i], i))(jnp.arange(model.nbody))  # [nbody, nv, 3]
    of_place = jnp.mean(mobility(jnp.swapaxes(place, 1, 2)), -1)
    of_turn = jnp.mean(mobility(jnp.swapaxes(turn, 1, 2)), -1)
    fixed = np.asarray(model.body_weldid) == 0
    body_invweight = jnp.where(fixed[:, None], 0.0, jnp.stack([of_place, of_turn], -1))

    groups = _dof_groups(model)
    per_group = jax.ops.segment_sum(jnp.diagonal(inverse), groups, groups.max() + 1) / np.bincount(groups)
    moments = data._impl.actuator_moment
    accelerations = jnp.linalg.norm(moments @ inverse, axis=-1)
    return {
        "body_subtreemass": _subtree_mass(model),
        "body_invweight0": body_invweight,
        "dof_invweight0": per_group[groups],
        "dof_M0": jnp.diagonal(mass),
        "tendon_invweight0": mobility(data._impl.ten_J),
        "actuator_acc0": accelerations,
        "stat.meaninertia": jnp.mean(jnp.diagonal(mass)),
    }


def _dof_groups(model) -> np.ndarray:
    """A number for each degree of freedom [nv], shared by those whose inverse weights MuJoCo averages."""
    groups, count = [], 0
    for kind in np.asarray(model.jnt_type):
        sizes = {0: (3, 3), 1: (3,), 2: (1,), 3: (1,)}[int(kind)]  # free, ball, slide, hinge
        for size in sizes:
            groups += [count] * size
            count += 1
    return np.asarray(groups)


def _subtree_mass(model):
    parent = np.asarray(model.body_parentid)
    mass = model.body_mass
    for i in range(model.nbody - 1, 0, -1):
        mass = mass.at[parent[i]].add(mass[i])
    return mass


class NoOpenGL(RuntimeError):
    """There is no OpenGL here to draw with; training is not touched by it."""


def headless() -> None:
    """Choose how MuJoCo shall draw, before it is first imported: EGL, else OSMesa, unless the user chose.

    A choice of the user's that cannot be loaded is switched off, since MuJoCo would not even start with it; drawing
    then raises NoOpenGL, which says what to install.
    """
    if sys.platform != "linux" or "mujoco" in sys.modules:
        return
    libraries = {"egl": "libEGL.so.1", "osmesa": "libOSMesa.so"}
    chosen = os.environ.get("MUJOCO_GL", "").strip().lower()
    found = [name for name, library in libraries.items() if chosen in ("", name) and _loads(library)]
    if found:
        os.environ["MUJOCO_GL"] = found[0]
    elif chosen in libraries:
        os.environ["MUJOCO_GL"] = "disable"


def pose(data: Any) -> dict[str, jax.Array]:
    """What `scene` needs of a simulator's Data."""
    return {"qpos": data.qpos, "mocap_pos": data.mocap_pos, "mocap_quat": data.mocap_quat}


def scene(mj_model: Any, view: Callable[[PyTree], dict], *, fps: float, camera: int | str | None = None) -> Scene:
    """A Scene drawn by MuJoCo's own renderer.

    Args:
      mj_model: mujoco.MjModel.
      view: `state -> pose(data)`; mocap fields may be left out.
      fps: environment steps per second of simulated time.
      camera: name or number; default: the model's first, or a free one.
    """
    if isinstance(camera, str):
        camera = index(mj_model, "camera", camera)
    camera = camera if camera is not None else 0 if mj_model.ncam else -1

    def draw(views, height, width):
        mujoco = _mujoco()
        data = mujoco.MjData(mj_model)
        frames = np.zeros((len(views["qpos"]), height, width, 3), np.uint8)
        renderer = _renderer(mujoco, mj_model, height, width)
        try:
            for i in range(len(frames)):
                data.qpos = views["qpos"][i]
                if mj_model.nmocap and "mocap_pos" in views:
                    data.mocap_pos, data.mocap_quat = views["mocap_pos"][i], views["mocap_quat"][i]
                mujoco.mj_forward(mj_model, data)
                renderer.update_scene(data, camera)
                frames[i] = renderer.render()
        finally:
            renderer.close()
        return frames

    return Scene(view, draw, fps)


def _renderer(mujoco, mj_model, height, width):
    mj_model = copy.copy(mj_model)  # the user's own stays as it is
    mj_model.vis.global_.offheight = max(height, mj_model.vis.global_.offheight)
    mj_model.vis.global_.offwidth = max(width, mj_model.vis.global_.offwidth)
    # In software, shadows take most of the time, and in a small picture finer ones cannot be seen.
    mj_model.vis.quality.shadowsize = min(1024, mj_model.vis.quality.shadowsize)
    try:
        return mujoco.Renderer(mj_model, height, width)
    except Exception as error:
        raise NoOpenGL(
            "no OpenGL to draw with: apt-get install libegl1 libgl1-mesa-dri (or libosmesa6 with MUJOCO_GL=osmesa), "
            f"and set MUJOCO_GL before mujoco is imported ({adapt.one_line(error)[:200]})"
        ) from error


def _loads(library):
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _mujoco():
    """The one place where mujoco and its JAX twin are imported."""
    headless()
    import mujoco
    import mujoco.mjx

    return mujoco


def _put(mj_model, impl):
    """MJX and its twin of the model."""
    mjx = _mujoco().mjx
    try:
        return mjx, mjx.put_model(mj_model, impl=impl)
    except (NotImplementedError, ValueError) as error:
        raise ValueError(f"MJX cannot simulate this model: {adapt.one_line(error)}") from error


def _control_range(mj_model):
    if not mj_model.nu:
        raise ValueError("the model has no actuator; add an <actuator> to the MJCF")
    for i in range(mj_model.nu):
        if not mj_model.actuator_ctrllimited[i]:
            name = mj_model.actuator(i).name or f"number {i}"
            raise ValueError(f"actuator {name} has no ctrlrange; give it one, for actions in [-1, 1] to be scaled to")
    return mj_model.actuator_ctrlrange


def _checked(fields, owner, kind, function):
    """The fields as arrays, if the simulator's Model or Data has such, in that shape, and not as a static number."""
    checked = {}
    for path, value in fields.items():
        held = owner
        for name in path.split("."):
            adapt.known(name, getattr(held, "__dataclass_fields__", {}), f"the fields of MJX's {kind} ({function})")
            held = getattr(held, name)
        is_array = isinstance(held, (jax.Array, np.floating))
        if not is_array:
            raise ValueError(f"{function} cannot set {kind}.{path}: it shapes the program")
        if jnp.shape(held) != jnp.shape(value):
            raise ValueError(f"{function} sets {kind}.{path} to shape {jnp.shape(value)}; allowed: {jnp.shape(held)}")
        checked[path] = jnp.asarray(value, jnp.result_type(held))
    return checked


def _check_scalar(value, what):
    if jnp.shape(value) != ():
        raise ValueError(f"{what} has shape {jnp.shape(value)}; allowed: one number")
    return value
