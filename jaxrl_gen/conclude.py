"""What follows training: the evaluation of every member, the best one's policy and video, `result.json`, the report."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl_gen import evaluate, loops, members, record
from jaxrl_gen.types import Env, PyTree, total_steps

POLICY_FILES = ("policy.stablehlo", "policy.npz", "policy.memory.npz", "policy.json")


class Ran(NamedTuple):
    """A run that has come to its end."""

    exp: Any
    described: dict[str, Any]
    env: Env  # one lane
    make: Callable
    cfg: PyTree
    carry: PyTree
    group: members.Group
    evaluate: Callable | None  # (chunk, carry) -> Episodes
    chunks: int  # trained
    compiled: loops.Compiled
    before: float  # seconds of training, before this process; nothing else of that time is known
    seconds: float  # of training, in all; evaluation and saving between chunks are not counted
    what: str = "mean return"  # what an episode's rewards sum up to
    also: dict[str, tuple[Callable, Callable]] = {}  # other policies of the same State: (make, evaluate)
    play: Callable | None = None  # on the host


def conclude(ran: Ran, folder: Path, say: Callable[[str], None]) -> None:
    """Evaluate, export, film, write `result.json` and the report; what cannot be made is a note in both, no error.

    Args:
      ran: the run; all processes of it call this.
      folder: of the run.
      say: called with lines for people.
    """
    begun = time.perf_counter()
    played = ran.evaluate and _on_host(ran.evaluate(ran.chunks, ran.carry))
    scores, told = score(played, ran.what) if played else (None, {})
    others = {name: score(_on_host(play(ran.chunks, ran.carry)), ran.what)[1] for name, (_, play) in ran.also.items()}
    evaluated = time.perf_counter() - begun
    steps = total_steps(_on_host(ran.carry.steps))
    best = int(np.nanargmax(scores)) if scores is not None and np.isfinite(scores).any() else 0
    state = ran.group.member(_on_host(ran.carry.state), best)
    cfg = jax.tree.map(lambda x: x[best] if np.ndim(x) else x, _on_host(ran.cfg))
    if jax.process_index() != 0:
        return
    for name, line in [(name, line) for name, x in {"": told, **others}.items() for line in x.get("lines", [])]:
        say(f"{name}: {line}" if name else line)
    notes: list[str] = []
    algo = ran.make(cfg, ran.env.spec)
    if ran.exp.export:
        _attempt(lambda: _export(algo, state, ran.env, folder), "no exported policy", notes, ran.exp.debug)
    if ran.exp.video:
        _attempt(lambda: _film(ran, algo, state, folder), "no video", notes, ran.exp.debug)
    names, columns = ran.group.names(_on_host(ran.cfg)), told.get("members", {})
    result = {
        "experiment": ran.described["experiment"],
        "command": ran.described["command"],
        "score": told.get("score"),
        "decision_ms": _decision_ms(ran, ran.make, cfg, state) if played else None,
        "also": {
            name: {"score": x.get("score"), "decision_ms": _decision_ms(ran, ran.also[name][0], cfg, state)}
            for name, x in others.items()
        },
        "members": [name | {key: column[i] for key, column in columns.items()} for i, name in enumerate(names)],
        "best": best,
        "chunks": ran.chunks,
        "steps": steps,
        "steps_per_second": steps * len(names) / ran.seconds if ran.seconds else None,
        "seconds": {
            "trace": ran.compiled.trace_seconds,
            "compile": ran.compiled.compile_seconds,
            "training": ran.seconds,
            "evaluation": evaluated,
            "total": ran.before + seconds_since_start(),
        },
        "traces": ran.compiled.traces,
        "peak_bytes": ran.compiled.peak_bytes,
        "versions": record.versions(ran.exp.devices),
        "config": ran.described,
        "notes": notes,
    }
    record.write_json(folder / "result.json", result)
    for note in notes:
        say(note)
    page = folder
    if ran.exp.report:
        from jaxrl_gen import report

        page = report.write(folder)
    say(f"{seconds_since_start():.0f} s from start to end")
    say(f"look at {page}")


def score(played: evaluate.Episodes, what: str = "mean return") -> tuple[np.ndarray, dict[str, Any]]:
    """What an evaluation says: each member's mean return over its episodes, and their interquartile mean with interval.

    Args:
      played: Episodes of NumPy arrays, [N] of one member or [members, N]; those that turned non-finite do not count.
      what: what the mean of their returns is called. Where all are 0 or 1, their share of ones gets an interval too.
    Returns:
      The members' scores, [members], NaN where no episode counts; and what to write down.
    """
    returns, lengths, ended, valid = (
        np.atleast_2d(x) for x in (played.returns, played.lengths, played.ended, played.valid)
    )
    counted = np.where(valid, returns, np.nan)
    some = valid.any(1)
    scores = np.array([np.mean(row[ok]) if ok.any() else np.nan for row, ok in zip(returns, valid)])
    told: dict[str, Any] = {
        "members": {
            "score": scores,
            "iqm": [evaluate.iqm(row[ok]) if ok.any() else np.nan for row, ok in zip(returns, valid)],
            "episodes": valid.sum(1),
            "worst": [np.min(row[ok]) if ok.any() else np.nan for row, ok in zip(counted, valid)],
            "length": lengths.mean(1),
            "unfinished": (~ended).sum(1),
        }
    }
    lines = []
    if some.any():
        told["score"] = {"what": f"{what} of {returns.shape[1]} episodes", **evaluate.summary(scores[some])}
        told["score"]["per_member"] = scores
        if np.isin(ones := returns[valid], (0.0, 1.0)).all():
            low, high = evaluate.proportion(int(ones.sum()), ones.size)
            told["score"]["ones"] = {"count": int(ones.sum()), "episodes": ones.size, "low": low, "high": high}
        lines.append(f"evaluated: {_sentence(told['score'])}")
    if not some.all():
        lines.append(f"left out of the score, as no episode stayed finite: members {np.flatnonzero(~some).tolist()}")
    return scores, told | {"lines": lines}


def metrics(played: evaluate.Episodes) -> dict[str, np.ndarray]:
    """An evaluation as metrics: the mean return and length of each member's episodes that stayed finite."""
    played = _on_host(played)
    count = np.maximum(played.valid.sum(-1), 1)
    mean = {"return": played.returns, "length": played.lengths}
    mean = {name: np.sum(x, -1, where=played.valid) / count for name, x in mean.items()}
    return {f"evaluate/{name}": np.where(played.valid.any(-1), x, np.nan) for name, x in mean.items()}


def _sentence(told: dict[str, Any]) -> str:
    span = f", 95 % interval {told['low']:.4g} to {told['high']:.4g}" if told["runs"] > 1 else ""
    return f"IQM of {told['runs']:.0f} members' {told['what']}: {told['iqm']:.4g}{span}, worst {told['min']:.4g}"


def _decision_ms(ran: Ran, make: Callable, cfg: PyTree, state: PyTree) -> float:
    return evaluate.decision_ms(make(cfg, ran.env.spec), state, ran.env.spec)


def _export(algo, state, env, folder) -> None:
    from jaxrl_gen import export

    for name in POLICY_FILES:  # of an earlier end of this run
        (folder / name).unlink(missing_ok=True)
    export.policy(algo, state, env.spec, folder)


def _film(ran, algo, state, folder) -> None:
    from jaxrl_gen import render

    if ran.play:
        views = evaluate.watched(algo, state, ran.env, ran.play, ran.exp.seed)
    else:
        views = render.rollout(ran.env, algo, state, jax.random.key(ran.exp.seed))
    render.write(ran.env, views, folder / "video.mp4")
    render.still(ran.env, views, folder / "video.png")


def _attempt(action: Callable, failure: str, notes: list[str], debug: bool) -> None:
    """Do it; where it fails, note why, and let the run end well."""
    try:
        action()
    except Exception as error:
        if debug:
            raise
        notes.append(f"{failure}: {error}")


def _on_host(tree: PyTree) -> PyTree:
    """Whole arrays in this process's memory; typed keys stay on the device."""
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(tree, tiled=True)
    is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)  # noqa: E731
    return jax.tree.map(lambda x: x if is_key(x) else np.asarray(x), tree)


def seconds_since_start() -> float:
    """Seconds since this process began, Python's own start included."""
    try:
        ticks = float(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
        up = float(Path("/proc/uptime").read_text().split()[0])
        return up - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):
        return time.process_time()
