"""What the files of a run folder say: configuration, versions, metrics over time, result.

Nothing read here is executed, and no name read from a file leads out of the folder.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxrl_gen import evaluate


class Run(NamedTuple):
    """What the files of a run folder say; a file that is missing or damaged is an empty value and a note."""

    folder: Path
    config: dict[str, Any]
    versions: dict[str, Any]
    result: dict[str, Any]
    rows: list[dict[str, Any]]  # of metrics.jsonl, one per chunk, in order
    notes: list[str]


def read(folder: str | Path) -> Run:
    """Read the files of a run folder; none of them has to be there.

    Raises:
      FileNotFoundError: if the folder does not exist.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder} is not a run folder")
    notes: list[str] = []
    config, versions, result = (_json(folder, f"{name}.json", notes) for name in ("config", "versions", "result"))
    rows = _rows(folder, notes)
    said = result.get("notes", [])
    return Run(folder, config, versions, result, rows, [str(note) for note in np.atleast_1d(said)] + notes)


def series(run: Run, name: str) -> tuple[np.ndarray, np.ndarray] | tuple[()]:
    """A metric over the run: (environment steps [C], values [C, members]); an empty tuple where it was not recorded."""
    found = [(row.get("steps", i), np.atleast_1d(row[name])) for i, row in enumerate(run.rows) if name in row]
    members = {values.shape for _, values in found}
    if not found or len(members) != 1:
        return ()
    steps, values = zip(*found)
    steps = [np.ravel(at)[0] for at in steps]
    return np.asarray(steps, np.float64), np.asarray(values, np.float64).reshape(len(found), -1)


def _json(folder: Path, name: str, notes: list[str]) -> dict[str, Any]:
    path = inside(folder, name)
    if path is None:
        notes.append(f"{name} is missing.")
        return {}
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        notes.append(f"{name} cannot be read: {error}.")
        return {}
    return read if isinstance(read, dict) else {"": read}


def _rows(folder: Path, notes: list[str]) -> list[dict[str, Any]]:
    """Rows of metrics.jsonl by chunk; where a chunk was run twice, before and after a resume, the later one counts."""
    path = inside(folder, "metrics.jsonl")
    if path is None:
        notes.append("metrics.jsonl is missing: no learning curve.")
        return []
    rows: dict[Any, dict[str, Any]] = {}
    damaged = 0
    for i, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines()):
        try:
            row = {name: _numbers(value) for name, value in json.loads(line).items()}
        except (ValueError, AttributeError):
            damaged += 1
            continue
        rows[int(np.ravel(row.get("chunk", i))[0])] = {name: x for name, x in row.items() if x is not None}
    if damaged:
        notes.append(f"metrics.jsonl: {damaged} damaged line{'s' * (damaged > 1)} left out.")
    return [rows[chunk] for chunk in sorted(rows)]


def _numbers(value: Any) -> np.ndarray | None:
    """A number or a list of numbers as an array, `null` as NaN; `None` for anything else."""
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError):
        return None


def inside(folder: Path, name: str) -> Path | None:
    """The existing file or folder `name` within `folder`, or `None` if there is none or it lies anywhere else."""
    try:
        path = (folder / name).resolve()
        return path if path.is_relative_to(folder.resolve()) and path.exists() else None
    except (OSError, ValueError):
        return None


def over_members(values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mean over the members with the bootstrap interval of that mean, at every chunk.

    Args:
      values: [C, members]; a member that ended no episode in a chunk is NaN there and left out.
    Returns:
      (mean [C], low [C], high [C]); NaN where nothing, or too little, is known.
    """
    out = np.full((3, len(values)), np.nan)
    for i, row in enumerate(values):
        known = row[np.isfinite(row)]
        if known.size:
            out[0, i] = known.mean()
        if known.size > 1:
            out[1:, i] = evaluate.interval(known, np.mean, resamples=500)
    return out[0], out[1], out[2]


def last_known(values: np.ndarray) -> np.ndarray:
    """The last finite value of each column of `[C, members]`; NaN where there is none."""
    return np.array([next((x for x in column[::-1] if np.isfinite(x)), np.nan) for column in values.T])
