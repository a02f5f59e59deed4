"""Videos of a policy: one lane rolled out in one compiled scan, then drawn and written on the host.

    render.video(env, algo, state, key, "swingup.mp4")

MuJoCo draws headless through EGL or OSMesa; `envs.mjx.headless` chooses, unless MUJOCO_GL is set.
"""

import warnings
from pathlib import Path

import jax
import numpy as np

from jaxrl_gen.types import Algorithm, Env, PyTree, Recalled, ended


def rollout(env: Env, algo: Algorithm, state: PyTree, key: jax.Array, *, steps: int | None = None) -> PyTree:
    """What the scene shows of one episode under the deterministic policy.

    Args:
      env: one lane that does not reset itself, with a scene.
      algo: whose `act` plays, with or without memory.
      state: the algorithm's State.
      key: consumed here; it draws the start.
      steps: at most so many; default: the environment's time limit, or 1000.
    Returns:
      NumPy pytree of views, leaves [T + 1, ...]: the start, and every step until the episode ended.
    Raises:
      ValueError: for an environment of many lanes, without a scene, or for steps < 1.
    """
    _check(env)
    steps = env.spec.time_limit or 1000 if steps is None else steps
    if steps < 1:
        raise ValueError(f"steps is {steps}; allowed: 1 and more")

    @jax.jit
    def play(state, key):
        key_reset, key_steps = jax.random.split(key)
        env_state, obs = env.reset(key_reset)

        def step(carry, key):
            env_state, obs, memory = carry
            lanes = jax.tree.map(lambda x: x[None], obs)
            action, extras = algo.act(state, lanes if memory is None else Recalled(lanes, memory), None)
            env_state, obs, outcome = env.step(env_state, action[0], key)
            carry = env_state, obs, None if memory is None else extras["memory"]
            return carry, (env.scene.view(env_state), ended(outcome))

        start = env.scene.view(env_state)
        keys = jax.random.split(key_steps, steps)
        _, (views, over) = jax.lax.scan(step, (env_state, obs, algo.memory(1)), keys)
        return start, views, over

    start, views, over = jax.device_get(play(state, key))
    last = int(np.argmax(over)) + 1 if over.any() else steps
    return jax.tree.map(lambda first, rest: np.concatenate([first[None], rest[:last]]), start, views)


def video(
    env: Env,
    algo: Algorithm,
    state: PyTree,
    key: jax.Array,
    path: str | Path,
    *,
    steps: int | None = None,
    height: int = 240,
    width: int = 320,
    fps: float = 30.0,
) -> Path:
    """An MP4 of one episode under the deterministic policy, in real time: H.264, which browsers play.

    Args:
      env, algo, state, key, steps: as for `rollout`.
      path: where to write; a folder that is missing is made.
      height, width: pixels, even numbers.
      fps: at most so many frames per second; frames in between are left out.
    Returns:
      The path.
    Raises:
      ValueError: as `rollout` does, and for odd sizes.
      RuntimeError: NoOpenGL of `envs.mjx`, which says what to install where MuJoCo cannot draw.
    """
    _check(env, height, width)
    return write(env, rollout(env, algo, state, key, steps=steps), path, height=height, width=width, fps=fps)


def write(env: Env, views: PyTree, path: str | Path, *, height: int = 240, width: int = 320, fps: float = 30.0) -> Path:
    """Draw the views of a rollout and write them as an MP4; see `video`."""
    import imageio

    _check(env, height, width)
    stride = max(1, round(env.scene.fps / fps))
    views = jax.tree.map(lambda x: np.asarray(x)[::stride], views)
    frames = env.scene.draw(views, height, width)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings():  # the encoder is another program, and shares nothing with this one
        warnings.filterwarnings("ignore", "os.fork", RuntimeWarning)
        with imageio.get_writer(
            path, format="FFMPEG", mode="I", fps=env.scene.fps / stride, codec="libx264", pixelformat="yuv420p",
            macro_block_size=2, output_params=["-movflags", "+faststart"], ffmpeg_log_level="error",
        ) as writer:  # fmt: skip
            for frame in frames:
                writer.append_data(frame)
    return path


def still(env: Env, views: PyTree, path: str | Path, *, index: int = -1, height: int = 240, width: int = 320) -> Path:
    """A PNG of one moment of a rollout.

    Args:
      env: with a scene.
      views: of `rollout`, leaves [T, ...].
      index: which; default: the last.
      path, height, width: as for `video`.
    Returns:
      The path.
    Raises:
      ValueError, RuntimeError: as `video` does.
    """
    import imageio

    _check(env)
    frame = env.scene.draw(jax.tree.map(lambda x: np.asarray(x)[index][None], views), height, width)[0]
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    imageio.imwrite(path, frame, extension=".png")
    return path


def _check(env, height=2, width=2):
    if env.scene is None:
        raise ValueError("this environment has no scene to draw")
    if env.lanes is not None:
        raise ValueError(f"rendering wants one lane; this environment has {env.lanes} (pass it before envs.wrap)")
    for name, size in {"height": height, "width": width}.items():
        if size < 2 or size % 2:
            raise ValueError(f"{name} is {size}; allowed: even numbers, 2 and more")
