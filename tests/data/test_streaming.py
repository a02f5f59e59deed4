"""Blocks on disk against the dataset they were cut from, and learning from them against learning from it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen import loops, types
from jaxrl_gen.algos import bc
from jaxrl_gen.data import sampling, streaming, trajectory
from jaxrl_gen.types import Env, Spec
from tests.data.recorded import SPEC, dataset

FLAT = Spec(jax.ShapeDtypeStruct((3,), jnp.float32), 2)


def joints():
    """The small dataset with one vector for an observation."""
    data = dataset()
    return data._replace(obs=data.obs["joint"])


@pytest.mark.parametrize("rows", [1, 3, 5, 14])
def test_blocks_hold_every_row_as_it_was(tmp_path, rows):
    data = dataset()
    streaming.write(tmp_path / "blocks", data, rows)
    stream = streaming.open(tmp_path / "blocks", SPEC)
    whole, seen = trajectory.to_rows(data), set()
    assert (stream.count, stream.rows) == (-(-14 // rows), rows)
    shapes = []
    for i in range(stream.count):
        block = streaming.read_block(stream.folder, i)
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
    streaming.write(tmp_path / "blocks", data, 5)
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
    streaming.write(tmp_path / "blocks", joints(), 2)
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
    streaming.write(tmp_path / "blocks", data, 14)
    _, cfg, carry, compiled = learner((data,))
    expected = loops.run(compiled.chunk, cfg, carry, chunks=3)
    _, cfg, carry, compiled = learner(feed=streaming.open(tmp_path / "blocks", FLAT))
    listen = lambda i, carry, metrics: told.append(float(metrics["data/waiting"]))
    found = loops.run(compiled.chunk, cfg, carry, chunks=3, feed=compiled.feed, callbacks=[listen])
    jax.tree.map(np.testing.assert_array_equal, found.state, expected.state)
    assert compiled.traces == 1 and len(told) == 3 and all(0.0 <= share <= 1.0 for share in told)


def test_a_run_over_blocks_goes_on_where_it_was(tmp_path):
    streaming.write(tmp_path / "blocks", joints(), 5)
    loop, cfg, carry, compiled = learner(feed=streaming.open(tmp_path / "blocks", FLAT))
    keep = jax.tree.map(jnp.copy, carry)
    whole = loops.run(compiled.chunk, cfg, carry, chunks=5, feed=compiled.feed)
    half = loops.run(compiled.chunk, cfg, keep, chunks=2, feed=compiled.feed)
    resumed = loops.run(compiled.chunk, cfg, half, chunks=5, start=2, feed=compiled.feed)
    jax.tree.map(np.testing.assert_array_equal, resumed.state, whole.state)
    fourth = loops.at_chunk(loop, 3).data[0]
    np.testing.assert_array_equal(fourth.reward, loop.feed(3)[0].reward)


def test_refusals(tmp_path):
    data = joints()
    with pytest.raises(ValueError, match="rows of a block is 15; allowed: 1 to 14"):
        streaming.write(tmp_path / "blocks", data, 15)
    streaming.write(tmp_path / "blocks", data, 5)
    with pytest.raises(FileExistsError, match="is there already"):
        streaming.write(tmp_path / "blocks", data, 5)
    with pytest.raises(FileNotFoundError, match="no blocks.json there"):
        streaming.open(tmp_path, FLAT)
    with pytest.raises(ValueError, match=r"two blocks take .* GB; allowed: 1e-07 GB. Write smaller ones"):
        streaming.open(tmp_path / "blocks", FLAT, memory=100)
    with pytest.raises(ValueError, match="observations are"):
        streaming.open(tmp_path / "blocks", SPEC)
    with pytest.raises(ValueError, match=r"actions have shape \(2,\); the environment's \(4,\)"):
        streaming.open(tmp_path / "blocks", FLAT._replace(action_size=4))
    (tmp_path / "blocks" / "000001.npz").write_bytes(b"no zip")
    with pytest.raises(ValueError, match="000001.npz: not a block"):
        streaming.read_block(tmp_path / "blocks", 1)
    with pytest.raises(ValueError, match="there are both data and a feed; allowed: one"):
        learner((data,), feed=lambda i: (data,))
    with pytest.raises(ValueError, match="there are neither data nor a feed; allowed: one"):
        learner()


def test_the_memory_of_a_block_is_what_its_index_says(tmp_path):
    streaming.write(tmp_path / "blocks", joints(), 5)
    told = json.loads((tmp_path / "blocks" / "blocks.json").read_text())
    assert told["nbytes"] == trajectory.nbytes(streaming.read_block(tmp_path / "blocks", 0))
