"""Datasets larger than memory: blocks of equal shape on disk; the device holds one, and the host reads the next.

    streaming.write("play", data, rows=200_000)           # once; or block by block, with `write_block`
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
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from jaxrl_gen.data import trajectory
from jaxrl_gen.data.trajectory import Dataset
from jaxrl_gen.types import Spec

INDEX, ROOT = "blocks.json", "data"


class Stream(NamedTuple):
    """Blocks on disk: `stream(i) -> (Dataset,)` on the host, for the i-th chunk of a run.

    The order is a function of the seed and of i alone, so a run that resumes goes on where it was: each pass is through
    all blocks in an order of its own.
    """

    folder: Path
    count: int
    rows: int  # of each block
    nbytes: int  # of each block
    seed: int = 0

    def __call__(self, i: int) -> tuple[Dataset]:
        turn, place = divmod(i, self.count)
        order = np.random.default_rng((self.seed, turn)).permutation(self.count)
        return (read_block(self.folder, int(order[place])),)


def write(path: str | Path, data: Dataset, rows: int) -> None:
    """Write a dataset as blocks of `rows` rows; a last one that would be shorter begins earlier, among rows before.

    Args:
      path: of a folder that is not there yet.
      data: Dataset of at least `rows` rows.
      rows: of each block.
    Raises:
      FileExistsError: if there is something at the path.
      ValueError: if rows is below 1, or the data have fewer.
    """
    path, data = Path(path), jax.tree.map(np.asarray, data)
    total = len(data.reward)
    if not 1 <= rows <= total:
        raise ValueError(f"rows of a block is {rows}; allowed: 1 to {total}, the rows of the data")
    if path.exists():
        raise FileExistsError(f"{path}: is there already")
    firsts = [min(i * rows, total - rows) for i in range(math.ceil(total / rows))]
    cuts = [cut(data, first, first + rows) for first in firsts]
    most = max(len(block.start) - 1 for block in cuts)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for i, block in enumerate(cuts):
        write_block(partial, i, padded(block, most))
    size = trajectory.nbytes(padded(cuts[0], most))
    (partial / INDEX).write_text(json.dumps({"blocks": len(cuts), "rows": rows, "nbytes": size}))
    os.replace(partial, path)


def open(path: str | Path, spec: Spec, *, memory: float = math.inf, seed: int = 0) -> Stream:
    """The blocks in a folder, checked against what they are to teach.

    Args:
      path: that `write` wrote.
      spec: of the algorithm.
      memory: bytes that two blocks may take: the one learned from, and the next.
      seed: of the order of blocks.
    Returns:
      Stream.
    Raises:
      FileNotFoundError: if there are no blocks.
      ValueError: if they are of another Spec, or larger than the memory.
    """
    folder = Path(path)
    if not (folder / INDEX).exists():
        raise FileNotFoundError(f"{folder}: no {INDEX} there; expected a folder that data.streaming.write wrote")
    told = json.loads((folder / INDEX).read_text())
    if 2 * told["nbytes"] > memory:
        have = f"{2 * told['nbytes'] / 1e9:.3g} GB; allowed: {memory / 1e9:.3g} GB"
        raise ValueError(f"{folder}: two blocks take {have}. Write smaller ones")
    block = read_block(folder, 0)
    found = jax.tree.map(lambda x: (x.shape[1:], x.dtype), block.obs)
    wanted = jax.tree.map(lambda x: (x.shape, np.dtype(x.dtype)), spec.obs)
    if found != wanted:
        raise ValueError(f"{folder}: observations are {found}; the environment's are {wanted}")
    acts = () if spec.discrete else (spec.action_size,)
    if block.action.shape[1:] != acts:
        raise ValueError(f"{folder}: actions have shape {block.action.shape[1:]}; the environment's {acts}")
    return Stream(folder, told["blocks"], told["rows"], told["nbytes"], seed)


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


def write_block(folder: Path, i: int, block: Dataset) -> None:
    """Write one block as an npz file without compression, atomically."""
    partial = folder / f".{i:06d}.partial.npz"
    np.savez(partial, **trajectory.named(block, ROOT))
    os.replace(partial, folder / f"{i:06d}.npz")


def read_block(folder: Path, i: int) -> Dataset:
    """One block as NumPy arrays; nothing in the file is executed.

    Raises:
      ValueError: naming the file, if it is no block.
    """
    path = folder / f"{i:06d}.npz"
    try:
        with np.load(path, allow_pickle=False) as file:
            leaves = dict(file.items())
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path}: not a block: {error}") from error
    fields: dict = {}
    for name, x in leaves.items():
        *parents, last = name.split(".")[1:]
        place = fields
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = x
    return Dataset(**fields)
