"""Datasets in array files (npz): rows with timeouts as D4RL lays them out, whole trajectories as OGBench does.

    D4RL     observations [N], actions, rewards, terminals, timeouts, next_observations
    OGBench  observations [N + E], actions, terminals (1 at the last observation of each trajectory), no rewards

Observations of several parts are fields of their own: observations/camera, observations/joint/angle. Opening a file
never executes anything in it.
"""

import os
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from jaxrl_gen.data import checks, trajectory
from jaxrl_gen.data.trajectory import Dataset
from jaxrl_gen.types import PyTree, Spec, Transition

FIELDS = {"obs": "observations", "action": "actions", "reward": "rewards"}


def read_d4rl(
    path: str | Path,
    spec: Spec,
    *,
    limits: tuple | None = None,
    window: int = 1,
    say: Callable[[str], None] = print,
) -> Dataset:
    """Read rows in D4RL's layout; a log that stops within an episode truncates it there.

    Without `next_observations` it is not known what the last step of an episode led to: of one that timed out that step
    is left out, and of one that terminated, where nothing depends on it, the last observation is repeated.

    Args:
      path: of the npz.
      spec: of the environment.
      limits: (low, high) of the simulator's actions, numbers or [A], where they are not -1 and 1.
      window: steps that every episode must have.
      say: receives one line about the data.
    Returns:
      Dataset.
    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: as of `checks.check`; or for a file that is damaged, or lacks a field.
    Reference: Fu et al. 2020, arXiv 2004.07219
    """
    found = load(path)
    obs = _read_tree(found, "observations", spec.obs, path)
    checks.present(["actions", "rewards", "terminals", "timeouts"], list(found), where=str(path))
    checks.scalars({name: found[name] for name in ("rewards", "terminals", "timeouts")}, where=str(path))
    checks.flags({name: found[name] for name in ("terminals", "timeouts")}, where=str(path))
    count = len(found["rewards"])
    for field in ("actions", *(name for name in found if "observations" in name)):
        if len(found[field]) != count:
            raise ValueError(f"{path}: {field} has {len(found[field])} rows; expected {count}, as many as rewards")
    checks.fit(obs, found["actions"], spec, where=str(path), fields=FIELDS)
    terminated, truncated = (np.asarray(found[field], bool) for field in ("terminals", "timeouts"))
    action = found["actions"] if spec.discrete else checks.scaled(found["actions"], limits)
    if any(name.startswith("next_observations") for name in found):
        following = _read_tree(found, "next_observations", spec.obs, path)
        checks.fit(following, found["actions"], spec, where=str(path), fields=FIELDS | {"obs": "next_observations"})
        rows = Transition(obs, action, found["rewards"], following, terminated, truncated, np.ones(count, bool))
    else:
        rows = _without_following(Transition(obs, action, found["rewards"], None, terminated, truncated, None), path)
    data = trajectory.from_rows(rows, where=str(path))
    return checks.check(data, spec, where=str(path), window=window, fields=FIELDS, say=say)


def read_ogbench(
    path: str | Path,
    spec: Spec,
    *,
    limits: tuple | None = None,
    window: int = 1,
    say: Callable[[str], None] = print,
) -> Dataset:
    """Read trajectories in OGBench's layout: every one is truncated at its last observation, and no step is rewarded.

    Give them a task with `trajectory.relabelled`. Further fields, such as qpos, are in `extras`.

    Args, Raises:
      As of `read_d4rl`.
    Returns:
      Dataset.
    Reference: Park et al. 2024, arXiv 2410.20092
    """
    found = load(path)
    obs = _read_tree(found, "observations", spec.obs, path)
    checks.present(["actions", "terminals"], list(found), where=str(path))
    checks.scalars({"terminals": found["terminals"]}, where=str(path))
    checks.flags({"terminals": found["terminals"]}, where=str(path))
    last = np.asarray(found["terminals"], bool).copy()
    for field, x in found.items():
        if np.ndim(x) and len(x) != len(last):
            raise ValueError(f"{path}: {field} has {len(x)} rows; expected {len(last)}, as many as terminals")
    if not last.size:
        raise ValueError(f"{path}: terminals is empty; expected one row and more")
    last[-1] = True
    if (alone := last & np.append(True, last[:-1])).any():
        raise ValueError(f"{path}: a trajectory has one observation, row {np.argmax(alone)}; expected two and more")
    checks.fit(obs, found["actions"], spec, where=str(path), fields=FIELDS)
    known = {"actions", "terminals", *(name for name in found if name.split("/")[0] == "observations")}
    extras = {
        name: x[~last] for name, x in found.items() if name not in known and np.ndim(x) and x.dtype.kind in "biuf"
    }
    action = (found["actions"] if spec.discrete else checks.scaled(found["actions"], limits))[~last]
    zero = np.zeros(len(action), np.float32)
    data = trajectory.make(obs, action, zero, zero, np.append(last[1:], True)[~last], extras)
    return checks.check(data, spec, where=str(path), window=window, fields=FIELDS, say=say)


def write_d4rl(path: str | Path, data: Dataset) -> None:
    """Write a dataset in D4RL's layout, with next_observations, so that nothing is lost but `extras`."""
    rows = trajectory.to_rows(data)
    save(path, {
        **_write_tree("observations", rows.obs), "actions": rows.action, "rewards": rows.reward,
        **_write_tree("next_observations", rows.next_obs), "terminals": rows.terminated, "timeouts": rows.truncated,
    })  # fmt: skip


def write_ogbench(path: str | Path, data: Dataset) -> None:
    """Write a dataset in OGBench's layout, which keeps neither rewards nor terminations; an end's action is zero."""
    host = jax.tree.map(np.asarray, data)
    over = host.terminated | host.truncated
    at_end = lambda x: trajectory.inserted(x, np.zeros_like(x), over)
    terminals = trajectory.inserted(np.zeros(len(over), bool), over, over)
    save(path, {
        **_write_tree("observations", host.obs), "actions": at_end(host.action), "terminals": terminals,
        **{name: at_end(x) for name, x in host.extras.items()},
    })  # fmt: skip


def load(path: str | Path) -> dict[str, np.ndarray]:
    """Every array of an npz file.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if it is damaged, or holds Python objects.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: there is no such file") from error
    except (ValueError, EOFError, OSError, AttributeError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        said = " ".join(str(error).split())
        raise ValueError(f"{path}: is no whole npz file of plain arrays: {said}") from error


def save(path: str | Path, arrays: dict[str, np.ndarray]) -> None:
    """Write an npz file so that a reader, or a kill, never sees half of it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.savez(file, **{name: np.asarray(x) for name, x in arrays.items()})
    os.replace(partial, path)


def _without_following(rows: Transition, path) -> Transition:
    """Rows with the observation each led to, those left out of which it is not known."""
    truncated = rows.truncated.copy()
    truncated[-1:] |= not rows.terminated[-1]
    unknown = truncated & ~rows.terminated
    if unknown.all():
        raise ValueError(f"{path}: every episode is one step long, and next_observations is missing")
    # What would be the last row of a truncated episode shows what the row before it led to, and is no row itself.
    over = rows.terminated | truncated
    own = np.append(unknown[1:], False) & ~over
    following = lambda x: np.where(rows.terminated.reshape(-1, *[1] * (x.ndim - 1)), x, np.roll(x, -1, axis=0))
    whole = rows._replace(next_obs=jax.tree.map(following, rows.obs), truncated=own, valid=np.ones(len(over), bool))
    return jax.tree.map(lambda x: x[~unknown], whole)


def _read_tree(found: dict, root: str, spec: PyTree, path) -> PyTree:
    """The observation as the spec has it, from fields of its parts' names."""
    names = [name.replace(".", "/") for name in trajectory.named(spec, root)]
    checks.present(names, list(found), where=str(path))
    if len({len(found[name]) for name in names}) > 1:
        raise ValueError(
            f"{path}: {', '.join(names)} have {[len(found[name]) for name in names]} rows; expected as many each"
        )
    return jax.tree.unflatten(jax.tree.structure(spec), [found[name] for name in names])


def _write_tree(root: str, tree: PyTree) -> dict[str, np.ndarray]:
    return {name.replace(".", "/"): x for name, x in trajectory.named(tree, root).items()}
