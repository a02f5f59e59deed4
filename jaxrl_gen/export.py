"""Trained policies as files that need nothing of the training code: StableHLO, and plain arrays for perceptrons.

`deploy.py` reads them; `load` and `load_numpy` are its functions.
"""

import contextlib
import hashlib
import io
import itertools
import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np
from jax import export

import jaxrl_gen
from jaxrl_gen import deploy, normalize
from jaxrl_gen.deploy import ABOUT, MEMORY, PLAIN, STABLEHLO, Perceptron, load, load_numpy
from jaxrl_gen.types import Algorithm, PyTree, Recalled, Spec

__all__ = ["Written", "load", "load_numpy", "policy"]

CHECKED = 1000  # random observations on which a file must agree with `act`
TOLERANCE = 1e-5  # of an action, relative to 1 or to its size: float32 sums in another order


class Written(NamedTuple):
    """What `policy` wrote: the files' names, the platforms they run on, and why there is no `policy.npz`, if so."""

    folder: Path
    files: tuple[str, ...]
    platforms: tuple[str, ...]
    not_plain: str

    def __str__(self):
        plain = f"; no {PLAIN}: {self.not_plain}" if self.not_plain else ""
        return f"{self.folder}: {', '.join(self.files)}; for {', '.join(self.platforms)}{plain}"


def policy(
    algo: Algorithm,
    state: PyTree,
    spec: Spec,
    folder: str | Path,
    *,
    platforms: Sequence[str] = ("cpu", "cuda", "tpu"),
) -> Written:
    """Write the deterministic policy, normaliser inside and parameters as constants, for any number of observations.

    `policy.stablehlo` is a `jax.export` artefact, and `policy.json` describes it. A policy with memory adds its first
    memory, `policy.memory.npz`. A perceptron is also written as `policy.npz`, plain arrays, if NumPy agrees with `act`
    on random observations. Products are full float32 on every platform. Files appear whole or not at all.

    Args:
      algo: Algorithm; its `act` with `key=None` is the policy.
      state: State of one member.
      spec: of one lane.
      folder: made if missing.
      platforms: to lower for; those that some operation cannot be lowered for are left out.
    Returns:
      Written; print it.
    Raises:
      FileExistsError: if the folder holds a policy already.
      ValueError: for a State of several members, or observations in other containers than dict, list and tuple.
      RuntimeError: if the written policy does not agree with `act`.
    """
    folder = Path(folder)
    for name in (STABLEHLO, PLAIN, MEMORY, ABOUT):
        if (folder / name).exists():
            raise FileExistsError(f"{folder / name} exists, and is not overwritten: choose another folder")
    _refuse_other_states(algo, state)
    obs_specs = _describe(spec.obs, "the observation")
    first = jax.device_get(algo.memory(1))
    memory_specs = _describe(jax.tree.map(lambda x: x[0], first), "the memory")
    state = _on_host(state)
    act = _flat_act(algo, state, spec, first, len(obs_specs))
    exported = _lower(act, obs_specs + memory_specs, platforms)
    with jax.default_device(_reference_device()):
        rows = _random_rows(obs_specs, _normalizer(state, spec), np.random.default_rng(0))
        wanted = _checked_actions(act, exported, rows, jax.tree.leaves(first))
        perceptron, read, not_plain = None, [], "the policy has memory"
        if first is None:
            perceptron, read, not_plain = _find_perceptron(state, spec, jax.jit(act), rows, wanted)

    files = {STABLEHLO: bytes(exported.serialize())}
    if first is not None:
        files[MEMORY] = _npz({f"leaf_{i}": x[0] for i, x in enumerate(jax.tree.leaves(first))})
    about = {
        "format": deploy.FORMAT,
        "obs": obs_specs,
        "memory": memory_specs,
        "action": {"shape": list(exported.out_avals[0].shape[1:]), "dtype": exported.out_avals[0].dtype.name},
        "action_size": spec.action_size,
        "discrete": spec.discrete,
        "versions": {"jaxrl_gen": jaxrl_gen.__version__, "jax": jax.__version__, "numpy": np.__version__},
        "calling_convention": exported.calling_convention_version,
        "platforms": list(exported.platforms),
    }
    if perceptron is not None:
        files[PLAIN] = _npz(_arrays(perceptron, about | {"read": read}))
    about["files"] = {name: hashlib.sha256(blob).hexdigest() for name, blob in files.items()}
    files[ABOUT] = json.dumps(about, indent=1).encode()
    folder.mkdir(parents=True, exist_ok=True)
    for name, blob in files.items():  # the description comes last: where it stands, the others do
        _write(folder / name, blob)
    return Written(folder, tuple(files), tuple(exported.platforms), not_plain)


def _flat_act(algo: Algorithm, state: PyTree, spec: Spec, first: PyTree, obs_count: int) -> Callable:
    """The policy on leaves alone, `(*obs leaves, *memory leaves) -> (action, *memory leaves)`: free of containers."""

    def act(*leaves):
        obs = jax.tree.unflatten(jax.tree.structure(spec.obs), leaves[:obs_count])
        if first is None:
            return (algo.act(state, obs, None)[0],)
        memory = jax.tree.unflatten(jax.tree.structure(first), leaves[obs_count:])
        action, extras = algo.act(state, Recalled(obs, memory), None)
        return (action, *jax.tree.leaves(extras["memory"]))

    def precise(*leaves):
        with jax.default_matmul_precision("highest"):
            return act(*leaves)

    return precise


def _refuse_other_states(algo: Algorithm, state: PyTree) -> None:
    """Raise unless the State has the shapes that `init` gives."""
    of_one = jax.eval_shape(algo.init, jax.random.key(0))
    if jax.tree.structure(state) != jax.tree.structure(of_one):
        raise ValueError("the State is not one of this algorithm: its structure is not what init gives")
    for (path, x), one in zip(jax.tree_util.tree_leaves_with_path(state), jax.tree.leaves(of_one)):
        if np.shape(x) != one.shape:
            raise ValueError(
                f"state{jax.tree_util.keystr(path)} has shape {np.shape(x)}, and init gives {one.shape}: of a "
                "population, export one member, sweep.member(state, i)"
            )


def _lower(act: Callable, specs: list[dict], platforms: Sequence[str]) -> export.Exported:
    """Lower for a symbolic batch `b` and as many of the platforms as go."""
    (b,) = export.symbolic_shape("b")
    args = [jax.ShapeDtypeStruct((b, *leaf["shape"]), leaf["dtype"]) for leaf in specs]

    def lowered(names):
        with _nameless_sources():
            return export.export(jax.jit(act), platforms=names)(*args)

    try:
        return lowered(list(platforms))
    except Exception as error:  # what a platform cannot lower raises errors of many kinds
        possible = [name for name in platforms if _succeeds(lambda name=name: lowered([name]))]
        if not possible or len(possible) == len(platforms):
            raise error
        return lowered(possible)


@contextlib.contextmanager
def _nameless_sources() -> Iterator[None]:
    """Keep the names of this machine's files, and of the functions that called, out of the program."""
    wanted = {"jax_hlo_source_file_canonicalization_regex": ".*", "jax_traceback_in_locations_limit": 0}
    before = {setting: getattr(jax.config, setting) for setting in wanted}
    try:
        for setting, value in wanted.items():
            jax.config.update(setting, value)
        yield
    finally:
        for setting, value in before.items():
            jax.config.update(setting, value)


def _succeeds(function: Callable) -> bool:
    try:
        function()
    except Exception:
        return False
    return True


def _describe(tree: PyTree, what: str) -> list[dict]:
    """Path, shape and dtype of every leaf, in jax's order, which must be the order of `deploy.named_leaves`."""
    named = list(deploy.named_leaves(tree))
    if [id(leaf) for _, leaf in named] != [id(leaf) for leaf in jax.tree.leaves(tree)]:
        raise ValueError(f"{what} is {jax.tree.structure(tree)}; allowed: nested dict, list and tuple of arrays")
    if not all(isinstance(key, str | int) for path, _ in named for key in path):
        raise ValueError(f"{what} has keys that are not strings: {jax.tree.structure(tree)}")
    return [{"path": list(path), "shape": list(x.shape), "dtype": np.dtype(x.dtype).name} for path, x in named]


def _on_host(state: PyTree) -> PyTree:
    """Arrays as NumPy, so that the program holds plain constants; typed keys stay what they are."""
    is_key = lambda x: jax.dtypes.issubdtype(getattr(x, "dtype", None), jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda x: x if is_key(x) else jax.device_get(x), state)


def _reference_device() -> jax.Device:
    """The CPU where jax has one, as its float32 is the plainest; else the device at hand."""
    try:
        return jax.local_devices(backend="cpu")[0]
    except RuntimeError:
        return jax.local_devices()[0]


def _checked_actions(act: Callable, exported: export.Exported, rows: list, first: list) -> np.ndarray:
    """What `act` does on the rows, once it is certain that the exported program does the same."""
    args = [*rows, *(np.broadcast_to(x, (CHECKED, *x.shape[1:])) for x in first)]
    wanted = jax.device_get(jax.jit(act)(*args))
    if not all(np.all(np.isfinite(x)) for x in wanted):
        raise ValueError("act gives actions that are not finite: this State is broken")
    if {"cpu"} & set(exported.platforms) and _reference_device().platform == "cpu":
        found = jax.device_get(jax.jit(exported.call)(*args))
        if not all(_agree(x, y) for x, y in zip(wanted, found)):
            raise RuntimeError("the exported program does not agree with act: nothing was written")
    return wanted[0]


def _random_rows(
    specs: list[dict], normalizer: normalize.Normalizer | None, rng: np.random.Generator
) -> list[np.ndarray]:
    """Observations of all sizes, every other one around what was seen in training, and beyond the normaliser's clip."""
    means, stds = [0.0] * len(specs), [1.0] * len(specs)
    if normalizer is not None:
        means, stds = jax.device_get([jax.tree.leaves(x) for x in (normalizer.mean, normalize.std(normalizer))])
    size = 10.0 ** rng.uniform(-1.5, 1.0, CHECKED)
    rows = []
    for leaf, mean, std in zip(specs, means, stds):
        shape, dtype = (CHECKED, *leaf["shape"]), np.dtype(leaf["dtype"])
        if dtype.kind in "biu":
            rows.append(rng.integers(0, 2 if dtype.kind == "b" else 128, shape).astype(dtype))
            continue
        x = rng.standard_normal(shape) * size.reshape(-1, *[1] * len(leaf["shape"]))
        x[::2] = mean + std * x[::2]
        rows.append(x.astype(dtype))
    return rows


def _agree(x: np.ndarray, y: np.ndarray) -> bool:
    if x.dtype.kind != "f":  # counts and flags of a memory
        return np.array_equal(x, y)
    return x.shape == y.shape and bool(np.all(np.abs(x - y) <= TOLERANCE * np.maximum(1.0, np.abs(x))))


def _normalizer(state: PyTree, spec: Spec) -> normalize.Normalizer | None:
    """The State's normaliser of whole observations, if it holds one."""
    is_normalizer = lambda x: isinstance(x, normalize.Normalizer)  # noqa: E731
    shapes = lambda tree: jax.tree.map(lambda x: tuple(x.shape), tree)  # noqa: E731
    for found in jax.tree.leaves(state, is_leaf=is_normalizer):
        if is_normalizer(found) and shapes(found.mean) == shapes(spec.obs):
            return found
    return None


def _find_perceptron(
    state: PyTree, spec: Spec, act: Callable, rows: list[np.ndarray], wanted: np.ndarray
) -> tuple[Perceptron | None, list[int], str]:
    """The perceptron that is the policy, which observation leaves it reads, and why there is none.

    Nothing is taken on trust: whatever in the State looks like a stack of dense layers is tried with each activation
    and head, with and without the normaliser, and only what reproduces `act` counts. Where two that differ do, neither.
    """
    stacks = [(weights, biases) for weights, biases in _dense_stacks(state) if weights[-1].shape[1] == spec.action_size]
    if not stacks:
        return None, [], "its State holds no stack of dense layers that ends in the action"
    read = list(range(len(rows)))
    whole = sum(int(np.prod(x.shape[1:])) for x in rows)
    if all(weights[0].shape[0] != whole for weights, _ in stacks):
        read = _leaves_read(act, rows, wanted)
    x = np.concatenate([rows[i].reshape(CHECKED, -1).astype(np.float32) for i in read or [0]], -1)
    stacks = [(weights, biases) for weights, biases in stacks if weights[0].shape[0] == x.shape[1]]
    scales = [_scale(None, spec, read), _scale(_normalizer(state, spec), spec, read)]
    heads = ["argmax"] if spec.discrete else ["tanh", "linear", "clip"]
    found = []
    for layers, scale, activation in itertools.product(stacks, scales, deploy.ACTIVATIONS):
        candidate = Perceptron(*scale, *layers, activation, heads[0])
        with np.errstate(all="ignore"):  # the wrong ones may overflow
            output = deploy.forward(candidate, x)
            fitting = [head for head in heads if _gives(wanted, output, head)]
        found += [(candidate._replace(head=head), output) for head in fitting]
    if not found:
        return None, [], "no plain perceptron in its State agrees with act"
    if not all(_agree(found[0][1], output) for _, output in found):
        return None, [], "perceptrons that differ all agree with act on random observations"
    return found[0][0], read, ""


def _dense_stacks(state: PyTree) -> Iterator[tuple[tuple[np.ndarray, ...], tuple[np.ndarray, ...]]]:
    """Weights and biases of every dictionary that holds dense layers, `Dense_0` and so on, and nothing else."""
    groups = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(state)[0]:
        for depth in range(len(path)):
            groups.setdefault(path[:depth], {})[tuple(getattr(key, "key", None) for key in path[depth:])] = leaf
    for leaves in groups.values():
        names = [(f"Dense_{i}", part) for i in range(len(leaves) // 2) for part in ("kernel", "bias")]
        if not names or leaves.keys() != set(names):
            continue
        arrays = [np.asarray(jax.device_get(leaves[name]), np.float32) for name in names]
        weights, biases = tuple(arrays[::2]), tuple(arrays[1::2])
        fit = all(w.ndim == 2 and b.shape == w.shape[1:] for w, b in zip(weights, biases))
        if fit and all(w.shape[1] == v.shape[0] for w, v in zip(weights, weights[1:])):
            yield weights, biases


def _leaves_read(act: Callable, rows: list[np.ndarray], wanted: np.ndarray) -> list[int]:
    """The observation leaves that the action depends on: those whose change changes some action."""

    def changed(i):
        return np.any(jax.device_get(act(*rows[:i], np.roll(rows[i], 1, 0), *rows[i + 1 :])[0]) != wanted)

    return [i for i in range(len(rows)) if changed(i)]


def _scale(normalizer: normalize.Normalizer | None, spec: Spec, read: list[int]) -> tuple[np.ndarray, ...]:
    """Mean, deviation and clip of the leaves read, flat; what changes nothing where there is no normaliser."""
    leaves = jax.tree.leaves(spec.obs)
    if normalizer is None:
        width = sum(int(np.prod(leaves[i].shape)) for i in read)
        return np.zeros(width, np.float32), np.ones(width, np.float32), np.float32(np.inf)
    flat = lambda tree: np.concatenate([np.ravel(jax.device_get(jax.tree.leaves(tree)[i])) for i in read])  # noqa: E731
    endless = jax.tree.map(lambda leaf: np.full(leaf.shape, np.inf, np.float32), spec.obs)
    clip = np.max(
        flat(normalize.apply(normalizer, endless))
    )  # asked of the normaliser itself; infinite before it saw any
    return flat(normalizer.mean), flat(normalize.std(normalizer)), np.float32(clip)


def _gives(wanted: np.ndarray, output: np.ndarray, head: str) -> bool:
    """Whether the last layer's output, under this head, is the action; of classes that nearly tie, any will do."""
    if head != "argmax":
        return _agree(wanted, deploy.HEADS[head](output))
    chosen = np.take_along_axis(output, wanted[:, None], -1)
    return _agree(np.max(output, -1, keepdims=True), chosen)


def _arrays(perceptron: Perceptron, about: dict) -> dict[str, np.ndarray]:
    layers = {f"weight_{i}": x for i, x in enumerate(perceptron.weights)}
    layers |= {f"bias_{i}": x for i, x in enumerate(perceptron.biases)}
    rest = {name: np.asarray(getattr(perceptron, name)) for name in ("mean", "std", "clip", "activation", "head")}
    return {"format": np.asarray(deploy.FORMAT), "about": np.asarray(json.dumps(about)), **rest, **layers}


def _npz(arrays: dict[str, np.ndarray]) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, allow_pickle=False, **arrays)
    return buffer.getvalue()


def _write(path: Path, blob: bytes) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "wb") as file:
            file.write(blob)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
