"""A trained policy without its training code, as `export.policy` wrote it.

This file stands alone, and may be copied beside the policy: `load_numpy` needs NumPy, `load` needs jax and flatbuffers.
Files are read as data only; nothing in them is ever unpickled or run as Python.
"""

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

FORMAT = 1
STABLEHLO, PLAIN, MEMORY, ABOUT = "policy.stablehlo", "policy.npz", "policy.memory.npz", "policy.json"

ACTIVATIONS = {
    "tanh": np.tanh,
    "relu": lambda x: np.maximum(x, 0),
    "elu": lambda x: np.where(x > 0, x, np.expm1(np.minimum(x, 0))),
    "silu": lambda x: x * (0.5 * np.tanh(0.5 * x) + 0.5),
    "gelu": lambda x: 0.5 * x * (1 + np.tanh(np.float32(np.sqrt(2 / np.pi)) * (x + np.float32(0.044715) * x**3))),
}
HEADS = {
    "tanh": np.tanh,
    "argmax": lambda x: np.argmax(x, -1).astype(np.int32),
    "linear": lambda x: x,
    "clip": lambda x: np.clip(x, -1, 1),
}


@dataclasses.dataclass(frozen=True, eq=False)
class Policy:
    """A policy to call: `policy(obs) -> action`, or `policy(obs, memory) -> (action, memory)` where it has memory.

    Observations are arrays, or dictionaries, lists and tuples of them, with any leading axes or none.
    `memory(lanes)` is the memory to begin an episode with, and None where there is none. `about` is what the file says.
    """

    act: Callable
    memory: Callable
    about: dict

    def __call__(self, obs: Any, *memory: Any) -> Any:
        """The deterministic action."""
        return self.act(obs, *memory)


class Perceptron(NamedTuple):
    """A multi-layer perceptron as arrays: the normaliser of its inputs, its layers, and the names of two functions."""

    mean: np.ndarray  # f32 [D]
    std: np.ndarray  # f32 [D]
    clip: np.ndarray  # f32, bound of the normalised inputs
    weights: tuple[np.ndarray, ...]  # f32 [in, out]
    biases: tuple[np.ndarray, ...]  # f32 [out]
    activation: str  # of ACTIVATIONS, after every layer but the last
    head: str  # of HEADS, after the last


def load(folder: str | Path) -> Policy:
    """The policy of a folder, compiled by jax for the device at hand when it is first called.

    Args:
      folder: where `export.policy` wrote.
    Returns:
      Policy; it may be called inside jit, and compiles anew for each number of observations.
    Raises:
      FileNotFoundError: if a file is missing.
      ValueError: if a file is damaged, or this jax cannot read it; when called, for observations of another shape.
    """
    import jax
    import jax.numpy as jnp
    from jax import export

    folder = Path(folder)
    about = _read_about(folder / ABOUT)
    blob = _read_whole(folder / STABLEHLO, about)
    try:
        exported = export.deserialize(bytearray(blob))
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("this needs flatbuffers: pip install flatbuffers") from error
    except Exception as error:
        written = about["versions"].get("jax", "another version")
        raise ValueError(
            f"{folder / STABLEHLO} cannot be read by jax {jax.__version__}; jax {written} wrote it: {_line(error)}"
        ) from error
    call, specs = jax.jit(exported.call), about["memory"]

    def act(obs, *memory):
        if len(memory) != (1 if specs else 0):
            raise ValueError(
                "this policy has memory: call it with (obs, memory)" if specs else "this policy has no memory"
            )
        rows, leading = _rows(obs, about["obs"], "obs", jnp)
        remembered, of_memory = _rows(memory[0], specs, "memory", jnp) if specs else ([], leading)
        if of_memory != leading:
            raise ValueError(f"memory has the leading axes {of_memory}, and obs {leading}; they must be equal")
        action, *after = call(*rows, *remembered)
        shaped = [x.reshape((*leading, *x.shape[1:])) for x in (action, *after)]
        return (shaped[0], _tree(specs, shaped[1:])) if specs else shaped[0]

    first = _read_arrays(_checked_path(folder / MEMORY, about)) if specs else {}

    def memory(lanes):
        if not specs:
            return None
        return _tree(specs, [np.broadcast_to(first[f"leaf_{i}"], (lanes, *s["shape"])) for i, s in enumerate(specs)])

    return Policy(act, memory, about)


def load_numpy(path: str | Path) -> Policy:
    """The policy of a `policy.npz`, computed by NumPy alone, in float32.

    Args:
      path: of the file.
    Returns:
      Policy without memory.
    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is damaged or no such policy; when called, for observations of another shape.
    """
    path = Path(path)
    arrays = _read_arrays(path)
    try:
        perceptron, about = _perceptron(arrays)
    except Exception as error:  # damage raises errors of many kinds, here and below
        raise ValueError(f"{path} is damaged or not a policy: {_line(error)}") from error
    read = about["read"]

    def act(obs):
        rows, leading = _rows(obs, about["obs"], "obs", np)
        x = np.concatenate([rows[i].reshape(len(rows[i]), -1).astype(np.float32) for i in read], -1)
        action = HEADS[perceptron.head](forward(perceptron, x))
        return action.reshape((*leading, *action.shape[1:]))

    return Policy(act, lambda lanes: None, about)


def forward(perceptron: Perceptron, x: np.ndarray) -> np.ndarray:
    """What the perceptron's last layer gives, before its head.

    Args:
      perceptron: Perceptron.
      x: f32 [B, D], not yet normalised.
    Returns:
      f32 [B, out].
    """
    x = np.clip((x - perceptron.mean) / perceptron.std, -perceptron.clip, perceptron.clip)
    activation = ACTIVATIONS[perceptron.activation]
    for weight, bias in zip(perceptron.weights[:-1], perceptron.biases[:-1]):
        x = activation(x @ weight + bias)
    return x @ perceptron.weights[-1] + perceptron.biases[-1]


def _perceptron(arrays: dict[str, np.ndarray]) -> tuple[Perceptron, dict]:
    if arrays["format"] != FORMAT:
        raise ValueError(f"its format is {arrays['format']}; this reader knows {FORMAT}")
    about = json.loads(arrays["about"].item())
    layers = range(sum(name.startswith("weight_") for name in arrays))
    perceptron = Perceptron(
        arrays["mean"], arrays["std"], arrays["clip"],
        tuple(arrays[f"weight_{i}"] for i in layers), tuple(arrays[f"bias_{i}"] for i in layers),
        arrays["activation"].item(), arrays["head"].item(),
    )  # fmt: skip
    for name, known in (("activation", ACTIVATIONS), ("head", HEADS)):
        if getattr(perceptron, name) not in known:
            raise ValueError(f"its {name} is {getattr(perceptron, name)!r}; known: {', '.join(known)}")
    width = sum(int(np.prod(about["obs"][i]["shape"])) for i in about["read"])
    forward(perceptron, np.zeros((1, width), np.float32))  # refuses layers that do not fit one another
    return perceptron, about


def _read_about(path: Path) -> dict:
    text = _read(path)
    try:
        about = json.loads(text)
        if about["format"] != FORMAT:
            raise ValueError(f"its format is {about['format']}; this reader knows {FORMAT}")
        for spec in [*about["obs"], *about["memory"]]:
            hash((tuple(spec["path"]), *map(int, spec["shape"]), np.dtype(spec["dtype"])))
        about["files"].keys(), about["versions"].keys()
    except Exception as error:
        raise ValueError(f"{path} is damaged or not a policy: {_line(error)}") from error
    return about


def _read_whole(path: Path, about: dict) -> bytes:
    """The bytes of a file whose digest the policy's own description holds."""
    blob = _read(path)
    if hashlib.sha256(blob).hexdigest() != about["files"].get(path.name):
        raise ValueError(f"{path} is damaged: its SHA-256 is not the one that {ABOUT} holds")
    return blob


def _checked_path(path: Path, about: dict) -> Path:
    _read_whole(path, about)
    return path


def _read(path: Path) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"{path} is missing")
    return path.read_bytes()


def _read_arrays(path: Path) -> dict[str, np.ndarray]:
    _read(path)
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except Exception as error:
        raise ValueError(f"{path} is damaged or not a policy: {_line(error)}") from error


def _line(error: Exception) -> str:
    if isinstance(error, KeyError):
        return f"it lacks {error}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def named_leaves(tree: Any, path: tuple = ()) -> Iterator[tuple[tuple, Any]]:
    """The arrays of nested dictionaries (by sorted key), lists and tuples, each with its keys and positions."""
    if isinstance(tree, Mapping):
        for key in sorted(tree):
            yield from named_leaves(tree[key], (*path, key))
    elif isinstance(tree, list | tuple):
        for i, part in enumerate(tree):
            yield from named_leaves(part, (*path, i))
    elif tree is not None:
        yield path, tree


def _rows(tree: Any, specs: list[dict], what: str, xp: Any) -> tuple[list, tuple[int, ...]]:
    """The leaves as `[B, *shape]`, and the leading axes that B stands for."""
    found, wanted = dict(named_leaves(tree)), {tuple(spec["path"]): spec for spec in specs}
    if found.keys() != wanted.keys():
        raise ValueError(f"{what} has the leaves {_names(found, what)}; the policy reads {_names(wanted, what)}")
    rows, leading = [], None
    for path, spec in wanted.items():
        x, name, shape = found[path], _name(path, what), tuple(spec["shape"])
        x = x if hasattr(x, "dtype") else np.asarray(x)
        lead = x.shape[: x.ndim - len(shape)]
        if x.ndim < len(shape) or x.shape[len(lead) :] != shape:
            raise ValueError(f"{name} has shape {x.shape}; allowed: {shape}, with any axes in front")
        if leading is not None and lead != leading:
            raise ValueError(
                f"{name} has the leading axes {lead}, and the leaves before it {leading}; they must be equal"
            )
        if not np.can_cast(x.dtype, xp.dtype(spec["dtype"]), "same_kind"):
            raise ValueError(f"{name} is {x.dtype}; the policy reads {spec['dtype']}")
        if 0 in lead:
            raise ValueError(f"{name} has shape {x.shape}: no observation at all")
        rows.append(xp.asarray(x, spec["dtype"]).reshape((-1, *shape)))
        leading = lead
    return rows, leading


def _name(path: tuple, what: str) -> str:
    return "".join([what, *(f"[{key!r}]" for key in path)])


def _names(paths: Any, what: str) -> str:
    return ", ".join(_name(path, what) for path in paths) or "none"


def _tree(specs: list[dict], leaves: list) -> Any:
    """Leaves put back where their paths say: nested dictionaries, and lists for positions."""
    if len(specs) == 1 and not specs[0]["path"]:
        return leaves[0]
    branches = {}
    for spec, leaf in zip(specs, leaves):
        key, *rest = spec["path"]
        branches.setdefault(key, []).append(({**spec, "path": rest}, leaf))
    grown = {key: _tree(*map(list, zip(*pairs))) for key, pairs in branches.items()}
    return list(grown.values()) if all(isinstance(key, int) for key in grown) else grown
