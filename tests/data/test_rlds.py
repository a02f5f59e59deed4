"""RLDS files: bit for bit what was written, also to tensorflow-datasets' own reader, and refused where they are bad."""

import json
import sys

import imageio.v3 as imageio
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds

from jaxrl_gen.data import rlds, trajectory
from jaxrl_gen.types import Spec
from tests.data.recorded import LENGTHS, SPEC, TERMINATED, dataset, episodes, same

FLAT = Spec(jax.ShapeDtypeStruct((2,), jnp.float32), 1)


def quiet(line):
    pass


def flat(**changes):
    """A dataset of plain vectors, 3 episodes of 5 steps."""
    over = np.arange(15) % 5 == 4
    obs = np.arange(36, dtype=np.float32).reshape(18, 2)
    fields = {"action": np.linspace(-1, 1, 15)[:, None], "reward": np.arange(15), "terminated": over & False}
    return trajectory.make(obs, **fields | changes, truncated=over)


@pytest.fixture
def maze(tmp_path):
    """A folder that was just written."""
    rlds.write(tmp_path / "maze", flat())
    return tmp_path / "maze"


def test_round_trip(tmp_path):
    rlds.write(tmp_path / "maze", dataset())
    same(rlds.read(tmp_path / "maze", SPEC, say=quiet), dataset())
    assert "tensorflow" not in sys.modules


def test_round_trip_of_discrete_actions_and_extras(tmp_path):
    spec = FLAT._replace(action_size=4, discrete=True)
    data = flat(action=np.arange(15) % 4)._replace(extras={"label": jnp.arange(15), "way": jnp.ones((15, 3))})
    rlds.write(tmp_path / "maze", data)
    same(rlds.read(tmp_path / "maze", spec, say=quiet), data)


def test_many_files_keep_their_order(tmp_path, monkeypatch):
    monkeypatch.setattr(rlds, "EPISODES_PER_FILE", 2)
    rlds.write(tmp_path / "maze", flat())
    assert len(list((tmp_path / "maze").glob("*array_record*"))) == 2
    same(rlds.read(tmp_path / "maze", FLAT, say=quiet), flat())


def test_tensorflow_datasets_own_reader_sees_the_episodes(tmp_path):
    rlds.write(tmp_path / "maze", dataset())
    source = tfds.builder_from_directory(tmp_path / "maze").as_data_source("train")
    assert len(source) == len(LENGTHS)
    for e, (record, lived) in enumerate(zip(source, episodes(), strict=True)):
        steps = list(record["steps"])
        assert len(steps) == LENGTHS[e] + 1
        for t, step in enumerate(steps):
            for part in ("camera", "joint"):
                np.testing.assert_array_equal(step["observation"][part], lived[part][t])
            last = t == LENGTHS[e]
            assert (step["is_first"], step["is_last"], step["is_terminal"]) == (t == 0, last, last and TERMINATED[e])
            led_to_the_end = t >= LENGTHS[e] - 1 and TERMINATED[e]
            assert step["discount"] == (0.0 if led_to_the_end else 1.0)
            np.testing.assert_array_equal(step["action"], np.zeros(2) if last else lived["action"][t])
            assert step["reward"] == (0.0 if last else np.float32(lived["reward"][t]))


def test_episodes_that_others_wrote(tmp_path):
    """Written step by step through tensorflow-datasets' builder, with a png camera and more than we need."""
    features = tfds.features.FeaturesDict({
        "steps": tfds.features.Dataset({
            "observation": {"camera": tfds.features.Image(shape=(4, 4, 3)), "wrist": tfds.features.Scalar(np.float32)},
            "action": tfds.features.Tensor(shape=(1,), dtype=np.float32), "reward": tfds.features.Scalar(np.float64),
            "is_last": tfds.features.Scalar(np.bool_), "is_terminal": tfds.features.Scalar(np.bool_),
            "words": tfds.features.Text(), "view": tfds.features.Image(shape=(4, 4, 3)),
            "plan": {"stage": tfds.features.ClassLabel(num_classes=3)},
        }),
        "name": tfds.features.Text(),
    })  # fmt: skip
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), np.uint8)

    def step(t):
        png = imageio.imwrite("<bytes>", frames[t], extension=".png")
        observation = {"camera": png, "wrist": 1.0}
        ends = {"is_last": t == 2, "is_terminal": t == 2}
        more = {"words": "pick", "view": png, "plan": {"stage": t}}
        return {"observation": observation, "action": [t / 8], "reward": t, **ends, **more}

    identity = tfds.core.dataset_info.DatasetIdentity("arm", tfds.core.Version("2.0.0"), str(tmp_path), "theirs")
    info = tfds.core.DatasetInfo(builder=identity, features=features)
    writer = tfds.core.SequentialWriter(info, 10, file_format="array_record")
    writer.initialize_splits(["test"])
    writer.add_examples({"test": [{"steps": [step(t) for t in range(3)], "name": "first"}]})
    writer.close_all()
    spec = Spec({"camera": jax.ShapeDtypeStruct((4, 4, 3), jnp.uint8)}, 1)
    data = rlds.read(tmp_path, spec, split="test", limits=(0, 0.5), say=quiet)
    np.testing.assert_array_equal(data.obs["camera"], frames)
    np.testing.assert_allclose(data.action[:, 0], [-1.0, -0.5])
    assert data.reward.tolist() == [0, 1] and data.terminated.tolist() == [False, True]
    assert {name: x.tolist() for name, x in data.extras.items()} == {"plan/stage": [0, 1]}
    with pytest.raises(ValueError, match="has no split train; found test"):
        rlds.read(tmp_path, spec, say=quiet)


def refused(message, path, spec=FLAT, **arguments):
    with pytest.raises(ValueError, match=message) as error:
        rlds.read(path, spec, say=quiet, **arguments)
    assert "\n" not in str(error.value) and str(path) in str(error.value)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_a_truncated_file_is_refused(maze, share):
    (file,) = maze.glob("*array_record*")
    content = file.read_bytes()
    file.write_bytes(content[: int(share * len(content))])
    refused("cannot be read|episode", maze)


def test_one_flipped_bit_is_refused_or_has_no_consequence(maze):
    (file,) = maze.glob("*array_record*")
    content, caught = file.read_bytes(), 0
    used = [at for at, byte in enumerate(content) if byte][::40]
    for at in used:
        file.write_bytes(content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :])
        try:
            same(rlds.read(maze, FLAT, say=quiet), flat())
        except ValueError as error:
            caught += 1
            assert str(error).startswith(f"{maze}: ") and "\n" not in str(error)
    assert caught > 0.8 * len(used)


def test_damaged_descriptions_are_refused(maze):
    (maze / "features.json").write_text('{"half')
    refused("cannot be read", maze)


def without(maze, field):
    """The same files, whose description lacks a field of the steps."""
    file = maze / "features.json"
    told = json.loads(file.read_text())
    steps = told["featuresDict"]["features"]["steps"]["sequence"]["feature"]["featuresDict"]["features"]
    del steps[field]
    file.write_text(json.dumps(told))
    return maze


@pytest.mark.parametrize("field", ["is_terminal", "observation", "reward"])
def test_a_missing_field_is_refused(maze, field):
    refused(
        f"maze: has no field {field}; expected observation, action, reward, is_terminal, found", without(maze, field)
    )


def test_bad_numbers_are_refused(tmp_path):
    rewards = np.arange(15.0)
    rewards[7] = np.nan
    rlds.write(tmp_path / "a", flat(reward=rewards))
    refused("a: reward is not finite in 1 of 15 rows, first in row 7", tmp_path / "a")
    rlds.write(tmp_path / "b", flat(action=np.linspace(-2, 2, 15)[:, None]))
    refused(r"b: action is within \[-2, 2\]; expected \[-1, 1\], or the simulator's own limits", tmp_path / "b")
    assert rlds.read(tmp_path / "b", FLAT, limits=(-2, 2), say=quiet).action.max() == 1


def test_other_specs_and_short_episodes_are_refused(maze):
    refused("has no field observation/camera; expected observation/camera, observation/joint, action", maze, SPEC)
    refused(
        r"action is float32 \[1\] in each row; expected float32 \[3\], as in the spec",
        maze,
        FLAT._replace(action_size=3),
    )
    refused(r"action is float32 \[1\] in each row; expected int32 \[\]", maze, FLAT._replace(discrete=True))
    other = FLAT._replace(obs=jax.ShapeDtypeStruct((3,), jnp.float32))
    refused(r"observation is float32 \[2\] in each row; expected float32 \[3\]", maze, other)
    refused("episode 0 has 5 steps; expected 6 and more, for a window", maze, window=6)


def test_folders(maze, tmp_path):
    with pytest.raises(FileNotFoundError, match="none: is no folder with a dataset_info.json"):
        rlds.read(tmp_path / "none", FLAT, say=quiet)
    with pytest.raises(FileExistsError, match="maze: is there already"):
        rlds.write(maze, flat())
