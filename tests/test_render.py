"""Videos: what is drawn, how long it is, and what is said where nothing can be drawn."""

import os
import subprocess
import sys

import imageio
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen import render
from jaxrl_gen.envs import gymnax, mjx, probe, wrap
from jaxrl_gen.types import Algorithm, Recalled

PENDULUM = """
<mujoco>
  <option timestep="0.02"/>
  <worldbody>
    <light pos="0 -1 2"/><camera name="front" pos="0 -2 0" xyaxes="1 0 0 0 0 1"/>
    <body><joint axis="0 1 0" name="j"/><geom type="capsule" size="0.1" fromto="0 0 0 .6 0 0" rgba="1 .3 .1 1"/></body>
  </worldbody>
  <actuator><motor joint="j" ctrlrange="-1 1"/></actuator>
</mujoco>
"""


def policy(action, memory=lambda lanes: None):
    """An Algorithm that only acts."""
    return Algorithm(lambda key: (), None, lambda state, obs, key: action(obs, key), memory)


def read(path):
    """The frames of a file, and its frame rate."""
    reader = imageio.get_reader(path)
    frames = [np.asarray(frame) for frame in reader]
    return np.array(frames), reader.get_meta_data()


def left(obs, key):
    assert key is None  # deterministic
    return jnp.zeros(obs.shape[:1], jnp.int32), {}


def test_a_rollout_is_one_episode_from_its_start_to_its_end():
    env = gymnax.make("CartPole-v1")
    views = render.rollout(env, policy(left), (), jax.random.key(0), steps=40)
    state, _ = env.reset(jax.random.split(jax.random.key(0))[0])
    expected = [env.scene.view(state)]
    for _ in range(40):
        state, _, outcome = jax.jit(env.step)(state, jnp.int32(0), jax.random.key(0))
        expected.append(env.scene.view(state))
        if outcome.terminated:
            break
    assert 5 < len(views) == len(expected) < 40
    np.testing.assert_allclose(views, np.stack(expected), rtol=1e-5, atol=1e-6)
    assert len(render.rollout(env, policy(left), (), jax.random.key(0), steps=3)) == 4


def test_a_policy_with_memory_is_handed_its_own():
    def by_turns(read, key):
        assert isinstance(read, Recalled)
        return (read.memory % 2).astype(jnp.int32), {"memory": read.memory + 1}

    env = gymnax.make("CartPole-v1")
    algo = policy(by_turns, lambda lanes: jnp.zeros((lanes,), jnp.int32))
    cart = render.rollout(env, algo, (), jax.random.key(0), steps=12)[:, 1, 0]
    speed = np.diff(cart) / 0.02
    pushes = np.sign(np.diff(speed))  # each push is seen in the position one step later
    np.testing.assert_array_equal(pushes, np.resize([-1, 1], 11))


def test_a_video_plays_at_the_right_speed(tmp_path):
    env = gymnax.make("CartPole-v1")  # 50 steps a second
    path = render.video(
        env, policy(left), (), jax.random.key(0), tmp_path / "new" / "film.mp4", steps=7, height=64, width=96, fps=25
    )
    frames, about = read(path)
    assert frames.shape == (4, 64, 96, 3)  # of 8 views every second one
    assert about["codec"] == "h264" and "yuv420p" in about["pix_fmt"] and about["fps"] == pytest.approx(25)
    assert frames.reshape(4, -1).std(1).min() > 5
    assert (frames[0] != frames[-1]).any()


def test_an_own_robot_is_drawn_or_it_is_said_what_to_install(tmp_path):
    env = mjx.make(
        PENDULUM,
        reset=lambda model, key: {"qpos": jnp.zeros(1)},
        observe=lambda model, data: data.qpos,
        reward=lambda model, before, action, after: after.qpos[0],
        time_limit=8,
    )
    algo = policy(lambda obs, key: (jnp.ones((1, 1)), {}))
    views = render.rollout(env, algo, (), jax.random.key(0))
    assert views["qpos"].shape == (9, 1)
    try:
        frames, about = read(render.write(env, views, tmp_path / "robot.mp4", height=64, width=64, fps=50))
        still = imageio.imread(render.still(env, views, tmp_path / "robot.png", index=0, height=64, width=64))
    except mjx.NoOpenGL as error:
        assert "apt-get install" in str(error)
        return
    assert frames.shape == (9, 64, 64, 3) and about["fps"] == pytest.approx(50)
    assert frames.reshape(9, -1).std(1).min() > 5 and (frames[0] != frames[-1]).any()
    red = (still[..., 0] > 1.5 * still[..., 2]) & (still[..., 0] > 40)
    rows, columns = np.nonzero(red)  # it starts level, and to the right of the middle
    assert red.sum() > 50 and abs(rows.mean() - 31.5) < 3 and columns.mean() > 34


def test_without_opengl_the_error_says_what_to_install():
    program = f"""
import jax.numpy as jnp, numpy as np
from jaxrl_gen.envs import mjx
mjx._loads = lambda library: False
model = mjx.load('''{PENDULUM}''')
scene = mjx.scene(model, None, fps=50.0)
try:
    scene.draw({{"qpos": np.zeros((1, 1))}}, 64, 64)
except mjx.NoOpenGL as error:
    print("SAID", error)
"""
    environment = {key: value for key, value in os.environ.items() if key not in ("DISPLAY", "PYOPENGL_PLATFORM")}
    environment |= {"MUJOCO_GL": "osmesa"}
    command = [sys.executable, "-c", program]
    finished = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    (said,) = [line for line in finished.stdout.splitlines() if line.startswith("SAID")]
    assert "apt-get install libegl1 libgl1-mesa-dri" in said and "libosmesa6" in said and "MUJOCO_GL" in said


def test_refusals(tmp_path):
    algo, key = policy(left), jax.random.key(0)
    with pytest.raises(ValueError, match="this environment has no scene to draw"):
        render.video(probe.truncating(), algo, (), key, tmp_path / "x.mp4")
    with pytest.raises(ValueError, match="rendering wants one lane; this environment has 2"):
        render.rollout(wrap.fresh(gymnax.make("CartPole-v1"), 2), algo, (), key)
    with pytest.raises(ValueError, match="steps is 0; allowed: 1 and more"):
        render.rollout(gymnax.make("CartPole-v1"), algo, (), key, steps=0)
    with pytest.raises(ValueError, match="width is 97; allowed: even numbers, 2 and more"):
        render.video(gymnax.make("CartPole-v1"), algo, (), key, tmp_path / "x.mp4", width=97)
    assert not list(tmp_path.iterdir())
