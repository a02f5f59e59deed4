"""Checkpoints: the whole carry, saved in the background and restored bit for bit, onto any number of devices.

A checkpoint is a folder named after its step, with `carry` (one array for each leaf) and `meta` (JSON: what the caller
gave, and the path, shape, dtype and checksum of every leaf). It appears under its name once it is complete. The leaves
are restored *into* a target made by `jax.eval_shape`, so nothing read from a file decides on structure or code.
"""

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_gen.types import PyTree

FORMAT = 1  # of the folder; another number is refused


class Restored(NamedTuple):
    """What a checkpoint held: the step it was saved under, the carry, and the caller's meta."""

    step: int
    carry: PyTree
    meta: dict


class Checkpointer:
    """Saves carries into a folder, and restores the newest good one.

    In a run of several processes each of them makes one, of the same folder, and all call the same methods.
    """

    def __init__(self, folder: str | Path, keep: int = 3):
        """
        Args:
          folder: made if missing.
          keep: checkpoints to keep; older ones are removed.
        Raises:
          ValueError: if keep < 1.
        """
        import orbax.checkpoint as ocp

        if keep < 1:
            raise ValueError(f"keep is {keep}; allowed: 1 and more")
        self.folder = Path(folder).absolute()
        self._ocp = ocp
        self._manager = ocp.CheckpointManager(
            self.folder, options=ocp.CheckpointManagerOptions(max_to_keep=keep, enable_async_checkpointing=True)
        )

    def save(self, step: int, carry: PyTree, meta: dict) -> None:
        """Copy the carry to the host, then write it in the background; it may be donated as soon as this returns.

        Args:
          step: under which it is filed; greater than those before it.
          carry: any pytree of arrays, typed keys included.
          meta: JSON values of the caller.
        """
        paths, leaves = zip(*by_path(carry).items())
        described = [_describe(path, leaf) for path, leaf in zip(paths, leaves)]
        for entry, host in zip(described, jax.device_get([_local(leaf) for leaf in leaves])):
            entry["crc32"] = None if host is None else _checksum(host)
        body = {"format": FORMAT, "meta": meta, "leaves": described}
        arrays = {path: leaf for path, leaf in zip(paths, leaves) if leaf.size}  # empty arrays are refused by orbax
        args = self._ocp.args
        self._manager.save(
            step,
            args=args.Composite(
                carry=args.StandardSave(arrays), meta=args.JsonSave({"body": body, "crc32": _checksum_json(body)})
            ),
            force=True,
        )

    def restore_latest(self, target: PyTree, say: Callable[[str], None] = print) -> Restored | None:
        """Restore the newest checkpoint that is complete and undamaged; name and pass over those that are not.

        Args:
          target: the carry as `jax.ShapeDtypeStruct`s (`jax.eval_shape`); a leaf goes where its sharding says, if any.
          say: called with one line for each checkpoint passed over.
        Returns:
          Restored, or None where there is no good checkpoint.
        Raises:
          ValueError: if a good checkpoint is of another shape than the target: the first path, found and expected.
        """
        for step in self.half_written():
            say(f"checkpoint {step} is half-written: passed over")
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                body = self._read_meta(step)
                _check_target(step, body, target)
                return Restored(step, self._read_carry(step, body, target), body["meta"])
            except Damaged as damage:
                say(f"checkpoint {step} is damaged: {damage}; passed over")
        return None

    def half_written(self) -> list[str]:
        """The names of folders that a save left behind when it was cut off."""
        whole = {str(step) for step in self._manager.all_steps()}
        return sorted(entry.name for entry in self.folder.iterdir() if entry.is_dir() and entry.name not in whole)

    def set_aside(self, after: int) -> None:
        """Move what is newer than step `after`, or half-written, to `<folder>-aside`: new saves need the room."""
        if jax.process_index() == 0:
            newer = [str(step) for step in self._manager.all_steps() if step > after]
            for name in [*newer, *self.half_written()]:
                aside = self.folder.with_name(self.folder.name + "-aside")
                aside.mkdir(exist_ok=True)
                free = next(place for i in range(10**6) if not (place := aside / f"{name}-{i}").exists())
                shutil.move(self.folder / name, free)
        _barrier("set_aside")
        self._manager.reload()

    def wait(self) -> None:
        """Return when everything saved so far is complete on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Wait, and let go of the folder."""
        self._manager.close()

    def _read_meta(self, step):
        try:
            stored = self._manager.restore(step, args=self._ocp.args.Composite(meta=self._ocp.args.JsonRestore())).meta
            body = stored["body"]
            intact = stored["crc32"] == _checksum_json(body)
        except Exception as error:  # whatever a broken file makes the reader stumble over
            raise Damaged(f"meta cannot be read ({_first_line(error)})") from error
        if not intact:
            raise Damaged("the checksum of meta differs")
        if body["format"] != FORMAT:
            raise ValueError(f"checkpoint {step} has format {body['format']}; this version reads {FORMAT}")
        return body

    def _read_carry(self, step, body, target):
        plain = shapes_by_path(target)
        stored = {path: leaf for path, leaf in plain.items() if leaf.size}
        args, failure, found = self._ocp.args, None, {}
        try:
            found = self._manager.restore(step, args=args.Composite(carry=args.StandardRestore(stored))).carry
            failure = _first_difference(body["leaves"], found)
        except Exception as error:
            failure = f"carry cannot be read ({_first_line(error)})"
        if not _everywhere(failure is None):
            raise Damaged(failure or "another process found it so")
        empty = {path: jnp.zeros(x.shape, x.dtype, device=x.sharding) for path, x in plain.items() if not x.size}
        return like(target, found | empty)


class Damaged(Exception):
    """A checkpoint is not what was written."""


def by_path(tree: PyTree) -> dict[str, jax.Array]:
    """Leaves by path; keys as the data they hold, which no version of a library can misread."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): jax.random.key_data(x) if _is_key(x) else x for path, x in leaves}


def shapes_by_path(tree: PyTree) -> dict[str, jax.ShapeDtypeStruct]:
    """What `by_path` gives, in shapes: of arrays, or of shapes of them."""
    here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])

    def plain(x):
        shape = jax.eval_shape(jax.random.key_data, x) if _is_key(x) else x
        return jax.ShapeDtypeStruct(shape.shape, shape.dtype, sharding=getattr(x, "sharding", None) or here)

    return {jax.tree_util.keystr(path): plain(x) for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def like(target: PyTree, plain: dict[str, jax.Array]) -> PyTree:
    """The inverse of `by_path`, in the structure of `target`."""

    def rebuild(path, x):
        leaf = plain[jax.tree_util.keystr(path)]
        return jax.random.wrap_key_data(leaf, impl=_key_impl(x)) if _is_key(x) else leaf

    return jax.tree_util.tree_map_with_path(rebuild, target)


def _is_key(x) -> bool:
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def _key_impl(x):
    """The generator of a key, or of the shape of one."""
    impls = []
    jax.eval_shape(lambda key: impls.append(jax.random.key_impl(key)), jax.ShapeDtypeStruct(x.shape, x.dtype))
    return impls[0]


def _describe(path: str, leaf) -> dict:
    return {"path": path, "shape": list(leaf.shape), "dtype": str(leaf.dtype)}


def _check_target(step: int, body: dict, target: PyTree) -> None:
    expected = [_describe(path, leaf) for path, leaf in shapes_by_path(target).items()]
    found = [{name: entry[name] for name in ("path", "shape", "dtype")} for entry in body["leaves"]]
    for one, other in zip(found, expected):
        if one != other:
            raise ValueError(f"checkpoint {step} does not fit: found {_in_words(one)}, expected {_in_words(other)}")
    if len(found) != len(expected):
        longer, what = (found, "nothing there") if len(found) > len(expected) else (expected, "it")
        entry = _in_words(longer[min(len(found), len(expected))])
        have = f"found {entry}, expected {what}" if what != "it" else f"found nothing there, expected {entry}"
        raise ValueError(f"checkpoint {step} does not fit: {have}")


def _in_words(entry: dict) -> str:
    return f"{entry['path']} {entry['dtype']}{entry['shape']}"


def _local(leaf):
    """The whole leaf as this process can read it, or None where parts of it lie with other processes."""
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
        return leaf
    return leaf.addressable_data(0) if leaf.is_fully_replicated else None


def _first_difference(described: list[dict], found: dict[str, jax.Array]) -> str | None:
    for entry in described:
        local = _local(found[entry["path"]]) if entry["path"] in found else None
        if local is not None and entry["crc32"] is not None and entry["crc32"] != _checksum(np.asarray(local)):
            return f"the checksum of {entry['path']} differs"
    return None


def _checksum(x) -> int:
    return zlib.crc32(np.ascontiguousarray(x).reshape(-1).view(np.uint8).data)


def _checksum_json(value) -> int:
    return zlib.crc32(json.dumps(value, sort_keys=True).encode())


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160] if str(error).strip() else ''}"


def _everywhere(ok: bool) -> bool:
    """Whether `ok` holds in every process."""
    if jax.process_count() == 1:
        return ok
    from jax.experimental import multihost_utils

    return bool(np.all(multihost_utils.process_allgather(np.asarray(ok))))


def _barrier(name: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(name)
