"""Datasets larger than memory: blocks of equal shape on disk; the device holds one, and the host reads the next.

    streaming.write("play", data, spec, rows=200_000)     # once; or from what never was in memory as a whole:
    streaming.write_blocks("play", (read(file) for file in files), spec)
    stream = streaming.open("play", spec)
    loop = loops.offline(iql.make, env, sampling.transitions(256), feed=stream, updates=1000)

A block is a Dataset of consecutive rows. An episode that goes on in the next block is truncated at the end of this one,
which for temporal differences is exact: what it led to is there to bootstrap from.
"""

import json
import math
import os
import shutil
import zipfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxrl_gen.data import checks, trajectory
from jaxrl_gen.data.trajectory import Dataset
from jaxrl_gen.types import Spec

INDEX, ROOT = "blocks.json", "data"
START = f"{ROOT}.start"


class Stream(NamedTuple):
    """Blocks on disk: `stream(i) -> (Dataset,)` on the host, for the i-th chunk of a run.

    The order is a function of the seed and of i alone, so a run that resumes goes on where it was: each pass is through
    all blocks in an order of its own.
    """

    folder: Path
    count: int
    rows: int  # of each block
    episodes: int  # that each block has room for
    nbytes: int  # of each block
    seed: int = 0

    def __call__(self, i: int) -> tuple[Dataset]:
        turn, place = divmod(i, self.count)
        order = np.random.default_rng((self.seed, turn)).permutation(self.count)
        return (self.block(int(order[place])),)

    def block(self, i: int) -> Dataset:
        """The i-th that was written, in the shape that all have.

        Raises:
          ValueError: naming the file, if it is no block, or holds a number that is not finite.
        """
        return padded(read_block(self.folder, i), self.episodes)


def write(path: str | Path, data: Dataset, spec: Spec, rows: int, *, say: Callable[[str], None] = print) -> None:
    """Write a dataset as blocks of `rows` rows; a last one that would be shorter begins earlier, among rows before.

    Args:
      path, spec, say: as of `write_blocks`.
      data: Dataset of at least `rows` rows.
      rows: of each block.
    Raises:
      FileExistsError: if there is something at the path.
      ValueError: if rows is below 1, or the data have fewer; or as of `checks.check`.
    """
    data = jax.tree.map(np.asarray, data)
    total = len(data.reward)
    if not 1 <= rows <= total:
        raise ValueError(f"rows of a block is {rows}; allowed: 1 to {total}, the rows of the data")
    firsts = (min(i * rows, total - rows) for i in range(math.ceil(total / rows)))
    write_blocks(path, (cut(data, first, first + rows) for first in firsts), spec, say=say)


def write_blocks(
    path: str | Path, blocks: Iterable[Dataset], spec: Spec, *, say: Callable[[str], None] = print
) -> None:
    """Write blocks one after the other, each checked before: at no time is more than one of them in memory.

    The folder appears when all are written, and not at all where one is refused.

    Args:
      path: of a folder that is not there yet.
      blocks: Datasets, all of as many rows; `cut` makes them of larger ones.
      spec: of the environment that they are for.
      say: receives a line about each block.
    Raises:
      FileExistsError: if there is something at the path.
      ValueError: if there is no block, or one of other rows than the first; or as of `checks.check`.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path}: is there already")
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        count, rows, episodes, size, room = 0, 0, 0, 0, 0
        for block in blocks:
            block, where = jax.tree.map(np.asarray, block), f"{path}, block {count}"
            checks.check(block, spec, where=where, say=say)
            rows = rows or len(block.reward)
            if len(block.reward) != rows:
                raise ValueError(f"{where}: has {len(block.reward)} rows; expected {rows}, as many as the first")
            # With as many episodes as any has, this is the size of all.
            room = sum(x[:1].nbytes for x in [*jax.tree.leaves(block.obs), block.start])
            own = len(block.start) - 1
            size, episodes = trajectory.nbytes(block) - own * room, max(episodes, own)
            np.savez(partial / f"{count:06d}.npz", **trajectory.named(block, ROOT))
            count += 1
            del block  # before the next one is made
        if not count:
            raise ValueError(f"{path}: there is no block; expected one and more")
        told = {"blocks": count, "rows": rows, "episodes": episodes, "nbytes": size + episodes * room}
        (partial / INDEX).write_text(json.dumps(told))
        os.replace(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def open(path: str | Path, spec: Spec, *, memory: float = math.inf, seed: int = 0) -> Stream:
    """The blocks in a folder, all checked against what they are to teach by what their files say of themselves.

    Args:
      path: that `write` or `write_blocks` wrote.
      spec: of the algorithm.
      memory: bytes that two blocks may take: the one learned from, and the next.
      seed: of the order of blocks.
    Returns:
      Stream.
    Raises:
      FileNotFoundError: if there are no blocks.
      ValueError: if one is of another Spec, of other rows or no block; or if they are larger than the memory.
    """
    folder = Path(path)
    if not (folder / INDEX).exists():
        raise FileNotFoundError(f"{folder}: no {INDEX} there; expected a folder that data.streaming.write wrote")
    told = json.loads((folder / INDEX).read_text())
    if 2 * told["nbytes"] > memory:
        have = f"{2 * told['nbytes'] / 1e9:.3g} GB; allowed: {memory / 1e9:.3g} GB"
        raise ValueError(f"{folder}: two blocks take {have}. Write smaller ones")
    extras: dict = {}
    for i in range(told["blocks"]):
        file = folder / f"{i:06d}.npz"
        found = headers(file)
        episodes = found[START].shape[0] - 1 if START in found else 0
        extras = extras if i else {name: x for name, x in found.items() if name.startswith(f"{ROOT}.extras")}
        expected = trajectory.named(_layout(spec, told["rows"], episodes), ROOT) | extras
        for name in [*expected, *found]:
            if found.get(name) != expected.get(name):
                said = [f"{x.dtype}{list(x.shape)}" if x else "nothing" for x in (found.get(name), expected.get(name))]
                raise ValueError(f"{file}: {name.removeprefix(ROOT + '.')} is {said[0]}; expected {said[1]}")
    return Stream(folder, told["blocks"], told["rows"], told["episodes"], told["nbytes"], seed)


def cut(data: Dataset, first: int, last: int) -> Dataset:
    """Rows `first` to `last` (which is not among them) of a dataset of NumPy arrays, truncated where they stop."""
    episode = data.episode[first:last]
    begun, ended = int(episode[0]), int(episode[-1])
    of_obs = slice(first + begun, last + ended + 1)
    truncated = data.truncated[first:last].copy()
    truncated[-1] |= not data.terminated[last - 1]
    inside = data.start[begun + 1 : ended + 1] - first
    start = np.concatenate([[0], inside, [last - first]]).astype(np.int32)
    take = lambda x: x[first:last]
    return Dataset(
        jax.tree.map(lambda x: x[of_obs], data.obs), take(data.action), take(data.reward), take(data.terminated),
        truncated, (episode - begun).astype(np.int32), start, jax.tree.map(take, data.extras),
    )  # fmt: skip


def padded(block: Dataset, episodes: int) -> Dataset:
    """A block with room for so many episodes, so that all have one shape; what is added belongs to no row."""
    missing = episodes - (len(block.start) - 1)
    more = lambda x: np.concatenate([x, np.zeros((missing, *x.shape[1:]), x.dtype)])
    start = np.concatenate([block.start, np.full(missing, block.start[-1], np.int32)])
    return block._replace(obs=jax.tree.map(more, block.obs), start=start)


def read_block(folder: Path, i: int) -> Dataset:
    """One block as NumPy arrays, as it was written; nothing in the file is executed.

    Raises:
      ValueError: naming the file, if it is no block, or holds a number that is not finite.
    """
    path = folder / f"{i:06d}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            leaves = dict(file.items())
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a block: {error}") from error
    fields: dict = {}
    for name, x in leaves.items():
        if np.issubdtype(x.dtype, np.floating) and not np.isfinite(x).all():
            raise ValueError(f"{path}: {name.removeprefix(ROOT + '.')} is not finite; expected finite numbers")
        *parents, last = name.split(".")[1:]
        place = fields
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = x
    return Dataset(**fields)


def headers(path: Path) -> dict[str, jax.ShapeDtypeStruct]:
    """Shape and type of each array in an npz file, without reading the arrays.

    Raises:
      ValueError: naming the file, if it is none.
    """
    of_version = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
    found = {}
    try:
        with zipfile.ZipFile(path) as file:
            for name in file.namelist():
                with file.open(name) as member:
                    shape, _, dtype = of_version[np.lib.format.read_magic(member)](member)
                found[name.removesuffix(".npy")] = jax.ShapeDtypeStruct(shape, dtype)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a block: {error}") from error
    return found


def _layout(spec: Spec, rows: int, episodes: int) -> Dataset:
    """Shapes and types of a block, but for its extras."""
    of = jax.ShapeDtypeStruct
    obs = jax.tree.map(lambda x: of((rows + episodes, *x.shape), x.dtype), spec.obs)
    action = of((rows,), np.int32) if spec.discrete else of((rows, spec.action_size), np.float32)
    mark, number = of((rows,), bool), of((rows,), np.int32)
    return Dataset(obs, action, of((rows,), np.float32), mark, mark, number, of((episodes + 1,), np.int32))
