"""The card of a dataset, a JSON file beside it: what made it, from which seed, what is in it, and its hash."""

import hashlib
import json
import os
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl_gen.data import trajectory
from jaxrl_gen.data.trajectory import Dataset

NOTE = "made with this toolkit: scores on it compare with each other, and not with published ones"
PACKAGES = ("jaxrl_gen", "jax", "numpy", "mujoco", "brax", "ogbench", "metaworld", "tensorflow-datasets")


def write(
    path: str | Path, data: Dataset, *, generator: str, seed: int, scores: dict[str, float], **about: Any
) -> dict:
    """Describe a dataset that was just written.

    Args:
      path: of its file or folder; the card is `<path>.card.json`.
      data: Dataset.
      generator: what made it, as a command.
      seed: of that.
      scores: what its makers reach, such as the mean return of the expert.
      about: anything else that JSON can say.
    Returns:
      The card.
    """
    path, returns = Path(path), trajectory.returns(data)
    lengths, rewards = np.asarray(trajectory.lengths(data)), np.asarray(data.reward)
    card = {
        "file": path.name,
        "sha256": digest(path),
        "megabytes": round(trajectory.nbytes(data) / 1e6, 3),
        "generator": generator,
        "seed": seed,
        "counts": {
            "episodes": len(lengths), "steps": int(lengths.sum()), "terminated": int(data.terminated.sum()),
            "truncated": int((data.truncated & ~data.terminated).sum()),
        },
        "length": _spread(lengths),
        "return": _spread(returns),
        "reward": _spread(rewards),
        "scores": scores,
        "note": NOTE,
        **about,
        "versions": {"python": sys.version.split()[0], **{name: _version(name) for name in PACKAGES}},
    }  # fmt: skip
    file, partial = _beside(path), _beside(path).with_suffix(".partial")
    partial.write_text(json.dumps(card, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, file)
    return card


def read(path: str | Path) -> dict:
    """The card of a dataset, after a look at whether it is still the file that the card is of.

    Args:
      path: of the dataset.
    Raises:
      FileNotFoundError: if there is no card, or no such dataset.
      ValueError: if the card is not JSON, or of another file.
    """
    file = _beside(Path(path))
    if not file.exists() or not Path(path).exists():
        raise FileNotFoundError(f"{file if Path(path).exists() else path}: there is no such file")
    try:
        card = json.loads(file.read_text(encoding="utf-8"))
        expected = card["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{file}: is no card of a dataset") from error
    if (found := digest(path)) != expected:
        raise ValueError(f"{path}: sha256 is {found[:12]}...; expected {expected[:12]}..., as its card says")
    return card


def digest(path: str | Path) -> str:
    """SHA-256 of a file; of a folder, of its files' names and contents in the order of their names."""
    path, total = Path(path), hashlib.sha256()
    for file in [path] if path.is_file() else sorted(x for x in path.rglob("*") if x.is_file()):
        if file != path:
            total.update(f"{file.relative_to(path).as_posix()}\n{file.stat().st_size}\n".encode())
        with file.open("rb") as content:
            while block := content.read(1 << 20):
                total.update(block)
    return total.hexdigest()


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.card.json")


def _spread(x: np.ndarray) -> dict[str, float]:
    return {"min": float(x.min()), "mean": float(x.mean(dtype=float)), "max": float(x.max())}


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
