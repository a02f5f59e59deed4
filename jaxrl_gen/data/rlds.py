"""Datasets as RLDS episodes, written and read through tensorflow-datasets, without TensorFlow.

    steps    observation, action, reward, discount, is_first, is_last, is_terminal, and whatever else was recorded

Each step is an observation and the action taken there; the last one only an observation. Episodes lie in array_record
files, in their order; pixels as bytes, which the files compress.
"""

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jaxrl_gen.data import checks, trajectory
from jaxrl_gen.data.trajectory import Dataset
from jaxrl_gen.types import PyTree, Spec

FIELDS = {"obs": "observation", "action": "action", "reward": "reward"}
KNOWN = ("observation", "action", "reward", "discount", "is_first", "is_last", "is_terminal")
EPISODES_PER_FILE = 1000


def write(path: str | Path, data: Dataset) -> None:
    """Write a dataset as RLDS episodes, split "train".

    Args:
      path: of a folder that is not there yet; its name is the dataset's.
      data: Dataset.
    Raises:
      FileExistsError: if there is something at the path.
    """
    path = Path(path)
    if path.exists():
        raise FileExistsError(f"{path}: is there already")
    data = jax.tree.map(np.asarray, data)
    partial = path.with_name(f".{path.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    tfds = _tfds()
    identity = tfds.core.dataset_info.DatasetIdentity(path.name, tfds.core.Version("1.0.0"), str(partial), __name__)
    steps = jax.tree.map(_feature, _steps(data, 0))
    features = tfds.features.FeaturesDict({"steps": tfds.features.Dataset(steps)})
    info = tfds.core.DatasetInfo(builder=identity, features=features, disable_shuffling=True)
    writer = tfds.core.SequentialWriter(info, EPISODES_PER_FILE, file_format="array_record")
    writer.initialize_splits(["train"])
    writer.add_examples({"train": ({"steps": _steps(data, episode)} for episode in range(len(data.start) - 1))})
    writer.close_all()
    os.replace(partial, path)


def read(
    path: str | Path,
    spec: Spec,
    *,
    split: str = "train",
    limits: tuple | None = None,
    window: int = 1,
    say: Callable[[str], None] = print,
) -> Dataset:
    """Read RLDS episodes, ours or others'; an episode whose last step is not terminal is truncated there.

    Args:
      path: of the folder with dataset_info.json.
      spec: of the environment; of the observation only what it has is read.
      split: which one.
      limits: (low, high) of the simulator's actions, numbers or [A], where they are not -1 and 1.
      window: steps that every episode must have.
      say: receives one line about the data.
    Returns:
      Dataset; the numbers that each step has besides are in `extras`, but neither words nor further pictures.
    Raises:
      FileNotFoundError: if there is no such folder.
      ValueError: as of `checks.check`; or for files that are damaged, or lack a field.
    Reference: Ramos et al. 2021, arXiv 2111.02767
    """
    where = str(path)
    features, records = _open(path, split)
    if "steps" not in features:
        raise ValueError(f"{where}: has no field steps; expected RLDS episodes, found {', '.join(sorted(features))}")
    decode = _flat(features["steps"].feature)
    observed = [name.replace(".", "/") for name in trajectory.named(spec.obs, "observation")]
    checks.present([*observed, "action", "reward", "is_terminal"], list(decode), where=where)
    more = [name for name, x in decode.items() if name.split("/")[0] not in KNOWN and _is_numbers(x)]
    wanted = [*observed, "action", "reward", "is_terminal", *more]
    episodes = _parsed(features, records, wanted, decode, where)
    counts = np.array([len(episode["is_terminal"]) for episode in episodes])
    if not counts.size or counts.min() < 2:
        said = f"episode {np.argmin(counts)} has {counts.min()} step" if counts.size else "there is no episode"
        raise ValueError(f"{where}: {said}; expected two and more, the last of which is only an observation")
    whole = {name: np.concatenate([episode[name] for episode in episodes]) for name in wanted}
    checks.scalars({name: whole[name] for name in ("reward", "is_terminal")}, where=where)
    last = np.zeros(counts.sum(), bool)
    last[np.cumsum(counts) - 1] = True
    if (early := whole["is_terminal"] & ~last).any():
        at = np.searchsorted(np.cumsum(counts), np.argmax(early), side="right")
        raise ValueError(f"{where}: is_terminal holds within episode {at}; expected it at the last step alone")
    obs = jax.tree.unflatten(jax.tree.structure(spec.obs), [whole[name] for name in observed])
    checks.fit(obs, whole["action"], spec, where=where, fields=FIELDS)
    action = whole["action"] if spec.discrete else checks.scaled(whole["action"], limits)
    over, failed = (np.append(x[1:], False)[~last] for x in (last, whole["is_terminal"]))
    extras = {name: whole[name][~last] for name in more}
    data = trajectory.make(obs, action[~last], whole["reward"][~last], failed, over & ~failed, extras)
    return checks.check(data, spec, where=where, window=window, fields=FIELDS, say=say)


def _steps(data: Dataset, episode: int) -> dict[str, Any]:
    """One episode in RLDS's words, leaves [steps + 1, ...]."""
    begin, end = data.start[episode], data.start[episode + 1]
    steps = end - begin + 1
    closed = lambda x: np.concatenate([x[begin:end], np.zeros((1, *x.shape[1:]), x.dtype)])
    at = np.arange(steps)
    terminal = (at == steps - 1) & data.terminated[end - 1]
    # RLDS's discount is that of what follows a step: zero where the step led to a terminal one.
    discount = np.append(1.0 - data.terminated[begin:end], float(not terminal[-1])).astype(np.float32)
    return {
        "observation": _nested(data.obs, lambda x: x[begin + episode : end + episode + 1]),
        "action": closed(data.action), "reward": closed(data.reward), "discount": discount,
        "is_first": at == 0, "is_last": at == steps - 1, "is_terminal": terminal,
        **{name: closed(x) for name, x in data.extras.items()},
    }  # fmt: skip


def _nested(tree: PyTree, of: Callable) -> Any:
    """A pytree as dictionaries in dictionaries, which tensorflow-datasets has names for; an array as it is."""
    nested: dict[str, Any] = {}
    for name, x in trajectory.named(tree, "").items():
        *outer, inner = name.split(".")
        at = nested
        for part in outer:
            at = at.setdefault(part, {})
        at[inner] = of(x)
    return nested[""]


def _feature(x: np.ndarray) -> Any:
    """How tensorflow-datasets describes one step of an array."""
    features = _tfds().features
    if x.ndim == 1:
        return features.Scalar(dtype=x.dtype)
    pixels = x.dtype == np.uint8  # as numbers, each would take two bytes and a conversion
    return features.Tensor(shape=x.shape[1:], dtype=x.dtype, encoding="bytes" if pixels else "none")


def _is_numbers(feature: Any) -> bool:
    plain = isinstance(feature, _tfds().features.Tensor)  # not an Image, and nothing nested
    return plain and np.dtype(feature.np_dtype).kind in "biuf"


def _open(path: str | Path, split: str) -> tuple[Any, Any]:
    """The features of a dataset, and its records as they lie in the files."""
    if not (Path(path) / "dataset_info.json").is_file():
        raise FileNotFoundError(f"{path}: is no folder with a dataset_info.json")
    tfds = _tfds()
    with _one_line(path):
        builder = tfds.builder_from_directory(str(path))
        if split not in builder.info.splits:
            raise ValueError(f"has no split {split}; found {', '.join(builder.info.splits)}")
        source = builder.as_data_source(split, deserialize_method=tfds.decode.DeserializeMethod.RAW_BYTES)
        return builder.info.features, source.__getitems__(list(range(len(source))))


def _parsed(features: Any, records: list[bytes], wanted: list[str], decode: dict, where: str) -> list[dict]:
    """The wanted fields of each episode, [steps, ...], parsed at once and not step by step."""
    from tensorflow_datasets.core.example_parser import ExampleParserNp

    described = _flat(features.get_serialized_info()["steps"])
    parser = ExampleParserNp({f"steps/{name}": described[name] for name in wanted})
    decoded = [name for name in wanted if described[name].np_dtype == object]  # pictures and bytes
    episodes = []
    for number, record in enumerate(records):
        with _one_line(where, f"episode {number} "):
            parsed = parser.parse_example(record)
            episode = {name: parsed[f"steps/{name}"] for name in wanted}
            for name in decoded:
                episode[name] = np.stack([decode[name].decode_example_np(x) for x in episode[name]])
            if len({len(x) for x in episode.values()}) > 1:
                raise ValueError("has fields of different lengths")
        episodes.append(episode)
    return episodes


def _flat(tree: Any, root: str = "") -> dict[str, Any]:
    """Nested dictionaries, or features, by names joined with a slash."""
    if not hasattr(tree, "items"):
        return {root: tree}
    return {path: x for name, inner in tree.items() for path, x in _flat(inner, f"{root}/{name}".strip("/")).items()}


@contextlib.contextmanager
def _one_line(where: str | Path, what: str = "") -> Iterator[None]:
    """Whatever the libraries below say of damaged files, as one line."""
    try:
        yield
    except (ModuleNotFoundError, FileNotFoundError):
        raise
    except Exception as error:
        said = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise ValueError(f"{where}: {what or 'cannot be read: '}{said}") from error


def _tfds() -> Any:
    try:
        import tensorflow_datasets
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("RLDS needs: pip install tensorflow-datasets array_record") from error
    return tensorflow_datasets
