"""Checkpoints: every kind of leaf comes back bit for bit, and a damaged one never serves."""

import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen import checkpoint


class Kinds(NamedTuple):
    """One leaf of every kind that a carry may hold."""

    params: dict
    key: jax.Array
    keys: jax.Array
    nothing: Any
    empty: jax.Array
    container: tuple


def kinds(seed: int = 0) -> Kinds:
    key = jax.random.key(seed)
    params = {
        "kernel": jax.random.normal(key, (3, 4)),
        "half": jax.random.normal(key, (5,), jnp.bfloat16),
        "list": [jnp.float32(seed), jnp.arange(3, dtype=jnp.int32), jnp.array([True, False])],
        "odd": jnp.array([jnp.nan, jnp.inf, -0.0, 1e-45], jnp.float32),
        "a/b.c": jnp.array([2**32 - 1], jnp.uint32),
    }
    return Kinds(params, key, jax.random.split(key, 4), None, jnp.zeros((4, 0, 3)), ((), {}))


def bits(tree) -> list[tuple]:
    """Every leaf as its path, dtype, shape and bytes."""
    rows = []
    for path, x in jax.tree_util.tree_leaves_with_path(tree):
        data = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        rows.append((jax.tree_util.keystr(path), str(x.dtype), x.shape, np.asarray(data).tobytes()))
    return rows


def target(tree):
    return jax.eval_shape(lambda: tree)


def fails(line: str):
    raise AssertionError(f"said: {line}")


def test_every_kind_of_leaf_comes_back(tmp_path):
    saved = kinds(3)
    with_population = jax.vmap(lambda seed: jax.random.key(seed))(jnp.arange(3))
    saver = checkpoint.Checkpointer(tmp_path / "c")
    saver.save(7, (saved, with_population), {"note": [1, "two", None], "steps": 2**40})
    saver.close()
    restored = checkpoint.Checkpointer(tmp_path / "c").restore_latest(target((saved, with_population)), fails)
    assert (restored.step, restored.meta) == (7, {"note": [1, "two", None], "steps": 2**40})
    assert bits(restored.carry) == bits((saved, with_population))
    assert jax.tree.structure(restored.carry) == jax.tree.structure((saved, with_population))
    assert isinstance(restored.carry[0], Kinds)
    draw = lambda tree: np.asarray(jax.random.normal(tree[0].key, (3,)))  # noqa: E731
    assert np.array_equal(draw(restored.carry), draw((saved, with_population)))


def test_a_carry_donated_right_after_the_save_is_saved_as_it_was(tmp_path):
    step = jax.jit(lambda x: jax.tree.map(lambda leaf: leaf + 1.0, x), donate_argnums=0)
    carry = {str(i): jnp.full((50_000,), float(i)) for i in range(4)}
    saver = checkpoint.Checkpointer(tmp_path, keep=6)
    for i in range(6):
        saver.save(i, carry, {})
        for _ in range(5):
            carry = step(carry)
    saver.close()
    for i in range(5, -1, -1):
        restored = checkpoint.Checkpointer(tmp_path).restore_latest(target(carry), fails)
        assert restored.step == i
        assert all(np.all(np.asarray(x) == float(name) + 5 * i) for name, x in restored.carry.items())
        shutil.rmtree(tmp_path / str(i))


def test_only_the_newest_are_kept_and_an_empty_folder_has_none(tmp_path):
    saver = checkpoint.Checkpointer(tmp_path, keep=2)
    assert saver.restore_latest(target(kinds()), fails) is None
    for i in (1, 5, 6, 9):
        saver.save(i, kinds(i), {})
    saver.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["6", "9"]
    with pytest.raises(ValueError, match="keep is 0; allowed: 1 and more"):
        checkpoint.Checkpointer(tmp_path, keep=0)


def test_a_checkpoint_of_another_shape_names_the_first_leaf_that_differs(tmp_path):
    saver = checkpoint.Checkpointer(tmp_path)
    saver.save(1, {"a": jnp.zeros((2,)), "b": jnp.zeros((3, 4)), "k": jax.random.key(0)}, {})
    saver.wait()
    shape = jax.ShapeDtypeStruct
    key = shape((), jax.random.key(0).dtype)
    for other, said in {
        r"found \['b'\] float32\[3, 4\], expected \['b'\] float32\[4, 4\]": {"b": shape((4, 4), jnp.float32)},
        r"found \['b'\] float32\[3, 4\], expected \['b'\] int32\[3, 4\]": {"b": shape((3, 4), jnp.int32)},
        r"found \['b'\] float32\[3, 4\], expected \['c'\] float32\[3, 4\]": {"c": shape((3, 4), jnp.float32)},
        r"found nothing there, expected \['z'\] int32\[\]": {
            "b": shape((3, 4), jnp.float32),
            "z": shape((), jnp.int32),
        },
    }.items():
        tree = {"a": shape((2,), jnp.float32), "k": key, **said}
        with pytest.raises(ValueError, match=f"checkpoint 1 does not fit: {other}"):
            saver.restore_latest(tree, fails)
    with pytest.raises(ValueError, match=r"found \['k'\] uint32\[2\], expected nothing there"):
        saver.restore_latest({"a": shape((2,), jnp.float32), "b": shape((3, 4), jnp.float32)}, fails)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with the checkpoints 1 and 2, and what they hold."""
    folder = tmp_path_factory.mktemp("two")
    saved = {"big": jnp.arange(60_000.0).reshape(200, 300), "key": jax.random.key(1), "zero": jnp.zeros((5,))}
    saver = checkpoint.Checkpointer(folder)
    saver.save(1, saved, {"i": 1})
    saver.save(2, jax.tree.map(lambda x: x + 1.0 if jnp.issubdtype(x.dtype, jnp.floating) else x, saved), {"i": 2})
    saver.close()
    return folder, saved


def flip(path: Path):
    blob = bytearray(path.read_bytes())
    blob[len(blob) // 2] ^= 0xFF
    path.write_bytes(blob)


DAMAGE = {
    "flipped byte": flip,
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "missing": Path.unlink,
}


@pytest.mark.parametrize("how", DAMAGE)
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # the reader drops what it was reading
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(two, tmp_path, how):
    """Each file in turn: either the checkpoint is passed over, or the file did not matter and every bit is right."""
    folder, saved = two
    expected = {1: bits(saved), 2: bits({**saved, "big": saved["big"] + 1.0, "zero": saved["zero"] + 1.0})}
    passed_over = 0
    for path in sorted(path.relative_to(folder) for path in (folder / "2").rglob("*") if path.is_file()):
        if (folder / path).stat().st_size == 0 and how != "missing":
            continue
        shutil.copytree(folder, tmp_path / "c")
        DAMAGE[how](tmp_path / "c" / path)
        said = []
        restored = checkpoint.Checkpointer(tmp_path / "c").restore_latest(target(saved), said.append)
        assert restored.meta["i"] == restored.step and bits(restored.carry) == expected[restored.step], path
        assert [line.startswith("checkpoint 2 is damaged: ") for line in said] == [True] * (2 - restored.step), path
        passed_over += restored.step == 1
        shutil.rmtree(tmp_path / "c")
    gc.collect()  # what the reader dropped is complained of here, and not in another test
    assert passed_over >= 3  # the test damages what matters


def test_a_false_number_that_reads_well_is_found_by_its_checksum(two, tmp_path):
    folder, saved = two
    shutil.copytree(folder, tmp_path / "c")
    path = tmp_path / "c" / "2" / "meta" / "metadata"
    stored = json.loads(path.read_text())
    stored["body"]["meta"]["i"] = 3
    path.write_text(json.dumps(stored))
    said = []
    assert checkpoint.Checkpointer(tmp_path / "c").restore_latest(target(saved), said.append).step == 1
    assert said == ["checkpoint 2 is damaged: the checksum of meta differs; passed over"]


def test_half_written_folders_are_named_and_set_aside_with_what_is_newer(two, tmp_path):
    folder, saved = two
    shutil.copytree(folder, tmp_path / "c")
    shutil.copytree(tmp_path / "c" / "2", tmp_path / "c" / "3.orbax-checkpoint-tmp")
    (tmp_path / "c" / "4").mkdir()  # complete by its name, and hollow
    flip(tmp_path / "c" / "2" / "meta" / "metadata")
    saver = checkpoint.Checkpointer(tmp_path / "c")
    said = []
    assert saver.restore_latest(target(saved), said.append).step == 1
    assert said[0] == "checkpoint 3.orbax-checkpoint-tmp is half-written: passed over"
    assert [line.split()[1] for line in said[1:]] == ["4", "2"]
    saver.set_aside(after=1)
    assert [path.name for path in (tmp_path / "c").iterdir()] == ["1"]
    assert len(list((tmp_path / "c-aside").iterdir())) == 3
    saver.save(2, saved, {"again": True})
    saver.close()
    assert checkpoint.Checkpointer(tmp_path / "c").restore_latest(target(saved), fails).meta == {"again": True}


DEVICES = """
import sys, jax, jax.numpy as jnp, numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxrl_gen import checkpoint
task, folder = sys.argv[1:]
tree = lambda: {"x": jnp.arange(24.0).reshape(8, 3), "keys": jax.random.split(jax.random.key(0), 8), "n": jnp.ones(())}
mesh = jax.make_mesh((len(jax.devices()),), ("devices",), (jax.sharding.AxisType.Auto,))
spread, whole = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("devices",), ()))
at = {"x": spread, "keys": spread, "n": whole}
saver = checkpoint.Checkpointer(folder)
if task == "save":
    saver.save(1, jax.device_put(tree(), at), {})
else:
    target = jax.tree.map(lambda x, at: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=at), jax.eval_shape(tree), at)
    step, found, _ = saver.restore_latest(target)
    wanted = tree()
    assert all(found[name].sharding.is_equivalent_to(at[name], found[name].ndim) for name in at), found
    for name in ("x", "n"):
        assert np.array_equal(found[name], wanted[name])
    assert np.array_equal(jax.random.key_data(found["keys"]), jax.random.key_data(wanted["keys"]))
    saver.save(step + 1, found, {})
saver.close()
print(len(jax.devices()))
"""


def test_restore_onto_another_number_of_devices_and_back(tmp_path):
    for task, devices in (("save", 1), ("restore", 4), ("restore", 2), ("restore", 1)):
        environment = {**os.environ, "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        out = subprocess.run(
            [sys.executable, "-c", DEVICES, task, str(tmp_path)], env=environment, capture_output=True, text=True
        )
        assert out.returncode == 0, out.stderr
        assert out.stdout.strip() == str(devices)
