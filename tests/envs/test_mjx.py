"""Own MJCF models in MJX against MuJoCo's own C."""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from mujoco.mjx import make_data, put_model

from jaxrl_gen.envs import mjx
from jaxrl_gen.types import ended

ARM = """
<mujoco>
  <option timestep="0.01"><flag contact="disable"/></option>
  <worldbody>
    <camera name="front" pos="0 -2 0.5" xyaxes="1 0 0 0 0 1"/>
    <body name="upper"><joint name="shoulder" axis="0 1 0" damping="0.1"/>
      <geom type="capsule" size="0.05" fromto="0 0 0 0 0 -0.4"/>
      <body name="lower" pos="0 0 -0.4"><joint name="elbow" axis="0 1 0" damping="0.1"/>
        <geom type="capsule" size="0.04" fromto="0 0 0 0 0 -0.3"/><site name="hand" pos="0 0 -0.3"/></body></body>
    <body name="target" mocap="true"><geom size="0.03" rgba="0 1 0 1"/></body>
  </worldbody>
  <actuator><motor name="a" joint="shoulder" ctrlrange="-2 2"/>
    <motor name="b" joint="elbow" ctrlrange="0 3"/></actuator>
  <sensor><jointvel name="speeds" joint="shoulder"/><framepos name="hand" objtype="site" objname="hand"/></sensor>
</mujoco>
"""


def reset(model, key):
    key_pose, key_target = jax.random.split(key)
    pose = jax.random.uniform(key_pose, (2,), minval=-0.5, maxval=0.5)
    return {"qpos": pose, "mocap_pos": jax.random.normal(key_target, (1, 3))}


def observe(model, data):
    return {"joints": jnp.concatenate([data.qpos, data.qvel]), "damping": model.dof_damping[:1]}


def reward(model, before, action, after):
    return {"moved": jnp.sum((after.qpos - before.qpos) ** 2), "effort": -jnp.sum(action**2)}


def arm(**changes):
    pieces = {"reset": reset, "observe": observe, "reward": reward, "substeps": 3, "time_limit": 12}
    return mjx.make(ARM, **(pieces | changes))


def randomize(model, key):
    scale = jax.random.uniform(key, minval=0.5, maxval=2.0)
    return {"dof_damping": model.dof_damping * scale, "opt.gravity": model.opt.gravity}


def test_agrees_with_mujoco_and_keeps_each_episodes_own_model():
    env = arm(randomize=randomize, terminate=lambda model, data: data.qpos[0] < -0.3)
    state, obs = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), 4))
    step = jax.jit(jax.vmap(env.step, in_axes=(0, 0, None)))
    actions = np.random.default_rng(0).uniform(-1, 1, (12, 4, 2))
    damping = np.asarray(obs["damping"])[:, 0]
    assert len(set(damping)) == 4 and ((damping >= 0.05) & (damping <= 0.2)).all()

    model = mujoco.MjModel.from_xml_string(ARM)
    twins = [mujoco.MjData(model) for _ in range(4)]
    for i, twin in enumerate(twins):
        twin.qpos, twin.qvel = np.asarray(obs["joints"])[i, :2], np.asarray(obs["joints"])[i, 2:]
    running, fell = np.ones(4, bool), np.zeros(4, bool)
    for t in range(12):
        action = actions[t]
        state, obs, outcome = step(state, jnp.float32(action), jax.random.key(t))
        for i, twin in enumerate(twins):
            before = twin.qpos.copy()
            model.dof_damping[:] = damping[i]
            twin.ctrl = action[i] * [2.0, 1.5] + [0.0, 1.5]
            for _ in range(3):
                mujoco.mj_step(model, twin)
            if running[i]:
                joints = outcome.next_obs["joints"][i]
                np.testing.assert_allclose(joints, np.concatenate([twin.qpos, twin.qvel]), rtol=1e-3, atol=2e-4)
                terms = np.sum((twin.qpos - before) ** 2), -np.sum(action[i] ** 2)
                np.testing.assert_allclose(outcome.info["reward/moved"][i], terms[0], rtol=1e-2, atol=1e-5)
                np.testing.assert_allclose(outcome.reward[i], sum(terms), rtol=1e-3, atol=1e-4)
                assert outcome.terminated[i] == (twin.qpos[0] < -0.3)
                np.testing.assert_array_equal(outcome.next_obs["damping"][i], np.float32(damping[i]))
        assert (outcome.truncated == (~outcome.terminated & (t == 11))).all()
        fell |= running & np.asarray(outcome.terminated)
        running &= ~np.asarray(ended(outcome))
    assert fell.any() and not fell.all() and not running.any()


def test_only_what_changes_is_held_per_lane():
    def held(env):
        state, _ = jax.eval_shape(env.reset, jax.random.key(0))
        return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(state))

    whole = sum(leaf.size for leaf in jax.tree.leaves(make_data(put_model(mjx.load(ARM)))))
    assert held(arm()) < whole / 4
    assert held(arm(randomize=randomize)) == held(arm()) + 2 + 3  # damping and gravity


TREE = """
<mujoco><worldbody><geom type="plane" size="5 5 1"/>
<body pos="0 0 1"><freejoint/><geom type="box" size=".2 .1 .05"/>
  <body pos=".2 0 0"><joint type="ball"/><geom type="capsule" fromto="0 0 0 .3 0 0" size=".04"/>
    <body pos=".3 0 0"><joint name="h" axis="0 1 0" range="-40 40"/><joint type="slide" axis="1 0 0" armature="0.1"/>
      <geom size=".06"/></body></body></body>
<body pos="2 0 1"><joint name="p" axis="0 1 0"/><geom type="capsule" fromto="0 0 0 0 0 .5" size=".03"/>
  <body name="welded" pos="0 0 .5"><geom size=".1"/></body></body>
<body pos="3 0 1"><geom size=".1"/></body></worldbody>
<tendon><fixed name="t"><joint joint="h" coef="1"/><joint joint="p" coef="-.5"/></fixed></tendon>
<actuator><motor joint="h" ctrlrange="-2 2"/><motor tendon="t" ctrlrange="-1 1"/>
<motor joint="p" gear="3" ctrlrange="-1 1"/></actuator></mujoco>
"""


def test_scaled_masses_come_with_what_mujoco_derives_from_them():
    model, scale = mujoco.MjModel.from_xml_string(TREE), np.array([1, 0.5, 2, 3, 1.5, 0.7, 2.0])
    changes = jax.jit(lambda scale: mjx.scale_masses(put_model(model), scale))(jnp.float32(scale))
    model.body_mass *= scale
    model.body_inertia *= scale[:, None]
    mujoco.mj_setConst(model, mujoco.MjData(model))
    assert {"body_mass", "body_inertia", "body_subtreemass", "body_invweight0", "dof_invweight0"} <= set(changes)
    for name, value in changes.items():
        expected = model
        for part in name.split("."):
            expected = getattr(expected, part)
        np.testing.assert_allclose(value, expected, rtol=2e-5, atol=1e-6, err_msg=name)
    same = jax.eval_shape(lambda: mjx.scale_masses(put_model(model), 2.0))  # one number for all bodies
    assert jax.tree.map(jnp.shape, same) == jax.tree.map(jnp.shape, changes)


def test_names_and_sensors():
    model = mjx.load(ARM)
    assert mjx.index(model, "body", "lower") == 2 and mjx.index(put_model(model), "joint", "elbow") == 1
    data = mujoco.MjData(model)
    mujoco.mj_forward(model, data)
    assert mjx.sensor(model, data, "speeds").shape == (1,)
    np.testing.assert_allclose(mjx.sensor(model, data, "hand"), [0, 0, -0.7], atol=1e-9)
    with pytest.raises(ValueError, match="'lowr' is not in the body names; nearest: lower"):
        mjx.index(model, "body", "lowr")
    with pytest.raises(ValueError, match="'elbo' is not in the joint names; nearest: elbow"):
        mjx.index(put_model(model), "joint", "elbo")
    with pytest.raises(ValueError, match="'bodi' is not in the kinds of object whose .*; nearest: body"):
        mjx.index(model, "bodi", "lower")


FURNITURE = """
  <asset><texture name="sky" type="skybox" builtin="flat" width="4" height="4"/>
    <texture name="wood" type="2d" builtin="flat" width="4" height="4"/>
    <material name="oak"/><material name="steel"/></asset>
  <equality><joint name="gear" joint1="shoulder" joint2="elbow"/></equality>
  <worldbody><light name="sun"/>
"""
NAMED = [
    ("texture", "wood"), ("material", "steel"), ("equality", "gear"), ("xbody", "lower"), ("light", "sun"),
    ("body", "target"), ("joint", "elbow"), ("camera", "front"), ("actuator", "b"), ("site", "hand"),
    ("sensor", "hand"),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "name"), NAMED)
def test_names_of_every_kind_are_those_of_mujoco(kind, name):
    model = mjx.load(ARM.replace("<worldbody>", FURNITURE))
    expected = mujoco.mj_name2id(model, getattr(mujoco.mjtObj, f"mjOBJ_{kind.upper()}"), name)
    assert mjx.index(model, kind, name) == expected >= 0
    for wrong in (name + "x", ""):
        with pytest.raises(ValueError, match=f"'{wrong}' is not in the {kind} names; nearest: "):
            mjx.index(model, kind, wrong)
    own = put_model(model)  # keeps fewer
    if kind in ("texture", "material", "light"):
        with pytest.raises(ValueError, match=f"'{kind}' is not in the kinds of object whose names this model keeps"):
            mjx.index(own, kind, name)
    else:
        assert mjx.index(own, kind, name) == expected
        with pytest.raises(ValueError, match=f"'{name}x' is not in the {kind} names; nearest: {name}"):
            mjx.index(own, kind, name + "x")


@pytest.mark.parametrize("kind", ["dof", "unknown"])
def test_a_kind_without_names_is_refused(kind):
    for model in (mjx.load(ARM), put_model(mjx.load(ARM))):
        with pytest.raises(ValueError, match=f"'{kind}' is not in the kinds of object whose names this model keeps"):
            mjx.index(model, kind, "shoulder")


def test_models_are_read_from_files_too(tmp_path):
    (tmp_path / "arm.xml").write_text(ARM)
    assert mjx.load(tmp_path / "arm.xml").nv == mjx.load(ARM).nv == 2
    model = mjx.load(ARM)
    assert mjx.load(model) is model


@pytest.mark.parametrize(
    ("mjcf", "message"),
    [
        ("no_such_robot.xml", "MJCF file 'no_such_robot.xml' does not exist"),
        ("<mujoco><worldbody>", "MuJoCo refuses the MJCF string: XML parse error"),
        ("<mujoco><wordbody/></mujoco>", "MuJoCo refuses the MJCF string: .*unrecognized element.*wordbody"),
        (ARM.replace(' ctrlrange="-2 2"', ""), "actuator a has no ctrlrange"),
        ("<mujoco><worldbody><body><joint/><geom size='1'/></body></worldbody></mujoco>", "the model has no actuator"),
        (ARM.replace("<option", '<option integrator="implicit"'), "MJX cannot simulate this model: "),
    ],
)
def test_broken_models_are_refused_in_one_line(mjcf, message):
    with pytest.raises(ValueError, match=message) as raised:
        mjx.make(mjcf, reset=reset, observe=observe, reward=reward)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reset": lambda m, k: {"qpo": jnp.zeros(2)}}, "'qpo' is not in the fields of MJX's Data .*; nearest: qpos"),
        ({"reset": lambda m, k: {"qpos": jnp.zeros(3)}}, r"reset sets Data.qpos to shape \(3,\); allowed: \(2,\)"),
        ({"randomize": lambda m, k: {"body_mas": m.body_mass}}, "'body_mas' is not in .* nearest: body_mass"),
        ({"randomize": lambda m, k: {"opt.gravty": jnp.zeros(3)}}, "'gravty' is not in .* nearest: gravity"),
        ({"randomize": lambda m, k: {"geom_type": jnp.zeros(3)}}, "cannot set Model.geom_type: it shapes the program"),
        ({"randomize": lambda m, k: {"nv": jnp.int32(3)}}, "randomize cannot set Model.nv: it shapes the program"),
        ({"reward": lambda m, b, a, d: d.qpos}, r"reward has shape \(2,\); allowed: one number"),
        ({"reward": lambda m, b, a, d: {"x": d.qpos}}, r"reward term 'x' has shape \(2,\); allowed: one number"),
        ({"terminate": lambda m, d: d.qpos > 0}, r"terminate has shape \(2,\); allowed: one number"),
        ({"substeps": 0}, "substeps is 0; allowed: 1 and more"),
        ({"time_limit": 0}, "time limit is 0 steps; allowed: 1 and more"),
        ({"camera": "frnt"}, "'frnt' is not in the camera names; nearest: front"),
    ],
)
def test_wrong_functions_are_refused_before_compiling(changes, message):
    with pytest.raises(ValueError, match=message):
        arm(**changes)
