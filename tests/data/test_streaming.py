"""Blocks on disk against the dataset they were cut from, and learning from them against learning from it."""

import json
import subprocess
import sys
import time
import weakref
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen import checkpoint, loops, types
from jaxrl_gen.algos import bc
from jaxrl_gen.data import sampling, streaming, trajectory
from jaxrl_gen.types import Env, Spec
from tests.data.recorded import SPEC, dataset
from tests.toy_process import ROOT

FLAT = Spec(jax.ShapeDtypeStruct((3,), jnp.float32), 2)


def quiet(line):
    pass


write, write_blocks = partial(streaming.write, say=quiet), partial(streaming.write_blocks, say=quiet)


def joints():
    """The small dataset with one vector for an observation."""
    data = dataset()
    return data._replace(obs=data.obs["joint"])


@pytest.mark.parametrize("rows", [1, 3, 5, 14])
def test_blocks_hold_every_row_as_it_was(tmp_path, rows):
    data = dataset()
    write(tmp_path / "blocks", data, SPEC, rows)
    stream = streaming.open(tmp_path / "blocks", SPEC)
    whole, seen = trajectory.to_rows(data), set()
    assert (stream.count, stream.rows) == (-(-14 // rows), rows)
    shapes = []
    for i in range(stream.count):
        block = stream.block(i)
        shapes.append(jax.tree.map(lambda x: (x.shape, x.dtype), block))
        found = trajectory.to_rows(block)
        first = min(i * rows, 14 - rows)
        seen |= set(range(first, first + rows))
        part = jax.tree.map(lambda x, first=first: x[first : first + rows], whole)
        jax.tree.map(np.testing.assert_array_equal, found._replace(truncated=0), part._replace(truncated=0))
        cut = found.truncated & ~part.truncated  # at the end of the block alone, and not where the episode terminated
        assert not cut[:-1].any() and (found.truncated | found.terminated)[-1]
    assert seen == set(range(14)) and all(shape == shapes[0] for shape in shapes)


@pytest.mark.parametrize("horizon", [1, 4])
def test_windows_of_a_block_stay_in_it(tmp_path, horizon):
    """A window that the block cuts is one of an episode that ends there."""
    data = dataset()
    write(tmp_path / "blocks", data, SPEC, 5)
    block = streaming.read_block(tmp_path / "blocks", 1)
    windows = sampling.rows(jax.tree.map(jnp.asarray, block), jnp.arange(5), horizon)
    whole = sampling.rows(data, jnp.arange(5, 10), horizon)
    inside = np.arange(5) + np.arange(horizon)[:, None] < 5
    assert not np.any(windows.valid & ~inside)
    for found, expected in ((windows.reward, whole.reward), (windows.obs["joint"], whole.obs["joint"])):
        at = np.asarray(windows.valid)
        np.testing.assert_array_equal(np.asarray(found)[at], np.asarray(expected)[at])
    np.testing.assert_array_equal(windows.valid, whole.valid & inside)


def test_each_pass_goes_through_all_blocks_in_an_order_of_its_own(tmp_path):
    write(tmp_path / "blocks", joints(), FLAT, 2)
    stream = streaming.open(tmp_path / "blocks", FLAT, seed=3)
    first = lambda i: float(stream(i)[0].reward[0])
    passes = [[first(i) for i in range(7 * turn, 7 * turn + 7)] for turn in range(3)]
    assert all(sorted(one) == sorted(passes[0]) for one in passes) and len(set(map(tuple, passes))) > 1
    again = streaming.open(tmp_path / "blocks", FLAT, seed=3)
    assert float(again(11)[0].reward[0]) == passes[1][4]  # where a run that resumes begins


def learner(data=(), feed=None):
    env = Env(None, None, FLAT)
    cfg = types.strong(bc.Config(lr=1e-2, actor_hidden=(8,)))
    loop = loops.offline(bc.make, env, sampling.transitions(8), data, updates=3, feed=feed)
    carry = jax.jit(loop.init)(cfg, jax.random.key(0))
    return loop, cfg, carry, loops.compile_report(loop, cfg, carry)


def test_a_stream_of_one_block_is_the_dataset(tmp_path):
    """Bit for bit, and how long the device waited is told."""
    data, told = joints(), []
    write(tmp_path / "blocks", data, FLAT, 14)
    _, cfg, carry, compiled = learner((data,))
    expected = loops.run(compiled.chunk, cfg, carry, chunks=3)
    _, cfg, carry, compiled = learner(feed=streaming.open(tmp_path / "blocks", FLAT))
    listen = lambda i, carry, metrics: told.append(float(metrics["data/waiting"]))
    found = loops.run(compiled.chunk, cfg, carry, chunks=3, feed=compiled.feed, callbacks=[listen])
    jax.tree.map(np.testing.assert_array_equal, found.state, expected.state)
    assert compiled.traces == 1 and len(told) == 3 and all(0.0 <= share <= 1.0 for share in told)


def go_on(folder):
    """In the new process: from the checkpoint to the fifth chunk."""
    loop, cfg, _, compiled = learner(feed=streaming.open(Path(folder) / "blocks", FLAT))
    saver = checkpoint.Checkpointer(Path(folder) / "saved")
    saved = saver.restore_latest(jax.eval_shape(loop.init, cfg, jax.random.key(0)))
    carry = loops.run(compiled.chunk, cfg, saved.carry, chunks=5, start=saved.step, feed=compiled.feed)
    saver.save(5, carry, {})
    saver.close()


def test_a_run_over_blocks_goes_on_where_it_was_in_a_new_process(tmp_path):
    write(tmp_path / "blocks", joints(), FLAT, 5)
    loop, cfg, carry, compiled = learner(feed=streaming.open(tmp_path / "blocks", FLAT))
    keep = jax.tree.map(jnp.copy, carry)
    whole = loops.run(compiled.chunk, cfg, carry, chunks=5, feed=compiled.feed)
    saver = checkpoint.Checkpointer(tmp_path / "saved")
    saver.save(2, loops.run(compiled.chunk, cfg, keep, chunks=2, feed=compiled.feed), {})
    saver.close()
    code = f"from tests.data.test_streaming import go_on; go_on({str(tmp_path)!r})"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    resumed = checkpoint.Checkpointer(tmp_path / "saved").restore_latest(jax.eval_shape(lambda: whole))
    assert resumed.step == 5
    pairs = zip(checkpoint.by_path(resumed.carry).values(), checkpoint.by_path(whole).values(), strict=True)
    assert all(np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)
    fourth = loops.at_chunk(loop, 3).data[0]
    np.testing.assert_array_equal(fourth.reward, loop.feed(3)[0].reward)


def test_two_blocks_are_held_and_no_third():
    """While one is learned from the next is read: when its reading begins, one alone is there."""
    size, there = 12_343, []

    def feed(i):
        time.sleep(0.05)  # what the run lets go of when it goes on is gone
        there.append(sum(x.shape == (size,) for x in jax.live_arrays()))
        return (jnp.full((size,), float(i)),)

    def counting(cfg, spec):
        update = lambda state, batch, key: (state + batch, {"count/total": state + batch})
        return types.Algorithm(lambda key: jnp.zeros(()), update, lambda state, obs, key: (obs, {}))

    loop = loops.offline(counting, Env(None, None, FLAT), lambda x, key: x[0], updates=1, feed=feed)
    carry = loop.init(0.0, jax.random.key(0))
    compiled = loops.compile_report(loop, 0.0, carry)
    assert compiled.peak_bytes >= 2 * 4 * size, "the forecast knows of the next one"
    carry = loops.run(compiled.chunk, 0.0, carry, chunks=5, feed=compiled.feed)
    assert float(carry.state) == 10.0 and there == [0, 0, 1, 1, 1, 1]


def test_blocks_are_written_one_by_one(tmp_path):
    """None is there any more when the next is made, and they are what `write` makes of the whole."""
    data, kept, said = jax.tree.map(np.asarray, joints()), [], []

    def one(first):
        block = streaming.cut(data, first, first + 7)
        block = block._replace(reward=block.reward.copy())
        kept.append(weakref.ref(block.reward))
        return block

    def blocks():
        for first in (0, 7):
            assert not any(block() is not None for block in kept)
            yield one(first)

    streaming.write_blocks(tmp_path / "one", blocks(), FLAT, say=said.append)
    write(tmp_path / "whole", data, FLAT, 7)
    one_by_one, whole = (streaming.open(tmp_path / name, FLAT) for name in ("one", "whole"))
    assert one_by_one[1:] == whole[1:] and len(kept) == len(said) == 2
    assert said[1].startswith(f"{tmp_path}/one, block 1: ")
    for i in range(2):
        jax.tree.map(np.testing.assert_array_equal, one_by_one.block(i), whole.block(i))


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path):
    data = jax.tree.map(np.asarray, joints())
    cut = lambda first, last: streaming.cut(data, first, last)
    spoiled = cut(5, 10)._replace(reward=np.full(5, np.nan, np.float32))
    for blocks, said in (
        ([], "blocks: there is no block; expected one and more"),
        ([cut(0, 5), cut(5, 9)], "blocks, block 1: has 4 rows; expected 5, as many as the first"),
        ([cut(0, 5), spoiled], "blocks, block 1: reward is not finite in 5 of 5 rows, first in row 0"),
        (
            [cut(0, 5)._replace(obs=data.obs[:, :2])],
            r"block 0: obs is float32 \[2\] in each row; expected float32 \[3\]",
        ),
    ):
        with pytest.raises(ValueError, match=said):
            write_blocks(tmp_path / "blocks", blocks, FLAT)
        assert not list(tmp_path.iterdir())
    with pytest.raises(ValueError, match="rows of a block is 15; allowed: 1 to 14"):
        write(tmp_path / "blocks", data, FLAT, 15)
    write(tmp_path / "blocks", data, FLAT, 5)
    with pytest.raises(FileExistsError, match="is there already"):
        write(tmp_path / "blocks", data, FLAT, 5)


def changed(path, **leaves):
    """A block's file with other arrays in it."""
    with np.load(path) as file:
        np.savez(path, **{**file, **{f"data.{name}": x for name, x in leaves.items()}})


def test_every_block_is_held_against_the_spec_when_the_stream_is_opened(tmp_path):
    write(tmp_path / "blocks", joints(), FLAT, 5)
    last, wide = tmp_path / "blocks" / "000002.npz", np.zeros((7, 4), np.float32)
    for leaves, said in (
        ({"obs": wide}, r"000002.npz: obs is float32\[7, 4\]; expected float32\[7, 3\]"),
        ({"reward": np.zeros(5)}, r"000002.npz: reward is float64\[5\]; expected float32\[5\]"),
        ({"extras.qpos": np.zeros(5)}, r"000002.npz: extras.qpos is float64\[5\]; expected nothing"),
    ):
        kept = last.read_bytes()
        changed(last, **leaves)
        with pytest.raises(ValueError, match=said):
            streaming.open(tmp_path / "blocks", FLAT)
        last.write_bytes(kept)
    changed(last, reward=np.full(5, np.inf, np.float32))
    stream = streaming.open(tmp_path / "blocks", FLAT)
    with pytest.raises(ValueError, match="000002.npz: reward is not finite; expected finite numbers"):
        stream.block(2)
    last.write_bytes(b"no zip")
    for read in (lambda: streaming.open(tmp_path / "blocks", FLAT), lambda: stream.block(2)):
        with pytest.raises(ValueError, match="000002.npz: not a block"):
            read()


def test_refusals(tmp_path):
    data = joints()
    write(tmp_path / "blocks", data, FLAT, 5)
    with pytest.raises(FileNotFoundError, match="no blocks.json there"):
        streaming.open(tmp_path, FLAT)
    with pytest.raises(ValueError, match=r"two blocks take .* GB; allowed: 1e-07 GB. Write smaller ones"):
        streaming.open(tmp_path / "blocks", FLAT, memory=100)
    with pytest.raises(ValueError, match=r"000000.npz: obs.camera is nothing; expected uint8\["):
        streaming.open(tmp_path / "blocks", SPEC)
    with pytest.raises(ValueError, match=r"action is float32\[5, 2\]; expected float32\[5, 4\]"):
        streaming.open(tmp_path / "blocks", FLAT._replace(action_size=4))
    with pytest.raises(ValueError, match="there are both data and a feed; allowed: one"):
        learner((data,), feed=lambda i: (data,))
    with pytest.raises(ValueError, match="there are neither data nor a feed; allowed: one"):
        learner()


def test_the_memory_of_a_block_is_what_its_index_says(tmp_path):
    write(tmp_path / "blocks", joints(), FLAT, 5)
    stream = streaming.open(tmp_path / "blocks", FLAT)
    told = json.loads((tmp_path / "blocks" / "blocks.json").read_text())
    assert {told["nbytes"]} == {trajectory.nbytes(stream.block(i)) for i in range(3)}
