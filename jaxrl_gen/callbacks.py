"""Callbacks: ordinary Python between two chunks, `(i, carry, metrics) -> stop?`.

`i` counts chunks from zero; the carry is the one after chunk i and will be donated to the next, so a callback that
keeps it must copy it; `metrics` are NumPy arrays. A callback may add entries to `metrics`: those after it see them.
Hence the order: what measures (clock, evaluate_every), what guards (stop_on_nonfinite), what writes (jsonl,
tensorboard, progress), what saves (checkpoint_every), what stops.
"""

import contextlib
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TextIO

import jax
import numpy as np

from jaxrl_gen.guards import STOPPED, stop_on_nonfinite
from jaxrl_gen.loops import EPISODE
from jaxrl_gen.record import plain

__all__ = [
    "checkpoint_every", "clock", "evaluate_every", "exit_on_sigterm", "jsonl", "progress", "rows_before", "save",
    "stop_at_return", "stop_on_nonfinite", "stop_on_signals", "tensorboard",
]  # fmt: skip

Callback = Callable[[int, Any, dict[str, Any]], Any]
SAVED = "time/saved"  # not written: what `checkpoint_every` tells those after it


def clock(steps_per_chunk: int, seconds_before: float = 0.0, began: Callable[[], float] | None = None) -> Callback:
    """Add `time/seconds` of training so far and `time/steps_per_second` of this chunk, never twice the same.

    Args:
      steps_per_chunk: environment steps of all members together.
      seconds_before: of training before a resume.
      began: `() -> time.perf_counter()` of when the chunk began, so that what lies between two chunks, such as
        evaluation and saving, is not counted; default: when this was last called, which counts it.
    """
    seconds, last = seconds_before, time.perf_counter()

    def call(i, carry, metrics):
        nonlocal seconds, last
        now = time.perf_counter()
        took = now - (began() if began else last)
        seconds, last = seconds + took, now
        metrics["time/seconds"] = np.asarray(seconds)
        metrics["time/steps_per_second"] = np.asarray(steps_per_chunk / took)

    return call


def evaluate_every(every: int, evaluate: Callable[[int, Any], dict[str, Any]]) -> Callback:
    """Add what `evaluate(i, carry)` returns to the metrics of every `every`-th chunk.

    Raises:
      ValueError: if every < 1.
    """
    if every < 1:
        raise ValueError(f"every is {every}; allowed: 1 and more")

    def call(i, carry, metrics):
        if (i + 1) % every == 0:
            metrics.update({name: np.asarray(x) for name, x in jax.device_get(evaluate(i, carry)).items()})

    return call


def checkpoint_every(
    checkpointer: Any, chunks: int, *, seconds: float | None = 60.0, every: int | None = None, meta: dict | None = None
) -> Callback:
    """Save the carry each time `seconds` have passed, or after every `every`-th chunk, and always after the last one.

    A checkpoint is filed under the number of chunks behind it, which is the chunk a resume begins with.

    Args:
      checkpointer: `checkpoint.Checkpointer`.
      chunks: of the whole run.
      seconds, every: either, both or neither.
      meta: JSON values to keep beside.
    """
    last = time.monotonic()

    def call(i, carry, metrics):
        nonlocal last
        if STOPPED in metrics:  # what turned non-finite is not worth a checkpoint
            return
        due = i + 1 == chunks or (every and (i + 1) % every == 0)
        if due or _agreed(seconds is not None and time.monotonic() - last >= seconds):
            save(checkpointer, i, carry, metrics, meta)
            last = time.monotonic()

    return call


def save(checkpointer: Any, i: int, carry: Any, metrics: dict[str, Any], meta: dict | None = None) -> None:
    """Save the carry after chunk i, with the step count and the seconds that a resume goes on counting from."""
    counted = {"chunks": i + 1, "steps": metrics.get("steps"), "seconds": metrics.get("time/seconds", 0.0)}
    checkpointer.save(i + 1, carry, plain({**(meta or {}), **counted}))
    metrics[SAVED] = np.asarray(1.0)


def stop_at_return(target: float) -> Callback:
    """Stop once every member's mean return of a chunk's training episodes has reached `target`."""

    def call(i, carry, metrics):
        return EPISODE + "return" in metrics and bool(np.all(metrics[EPISODE + "return"] >= target))

    return call


@contextlib.contextmanager
def stop_on_signals() -> Iterator[Callback]:
    """While this context is open SIGTERM and Ctrl-C ask for a stop after the chunk that runs.

    A second Ctrl-C interrupts. The callback stops in all processes of a run once one of them was asked.
    """
    asked = threading.Event()

    def ask(number, frame):
        if asked.is_set() and number == signal.SIGINT:
            raise KeyboardInterrupt
        asked.set()

    in_main = threading.current_thread() is threading.main_thread()  # the only one that Python lets handle signals
    before = {number: signal.signal(number, ask) for number in (signal.SIGTERM, signal.SIGINT)} if in_main else {}
    try:
        yield lambda i, carry, metrics: _agreed(asked.is_set())
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def exit_on_sigterm() -> Iterator[None]:
    """While this context is open SIGTERM exits with code 0: there is nothing left to save."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number, frame):
        raise SystemExit(0)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _agreed(wanted: bool) -> bool:
    """Whether any process wants it: all must come to the same answer, or they would wait for each other for ever."""
    if jax.process_count() == 1:
        return wanted
    from jax.experimental import multihost_utils

    return bool(np.any(multihost_utils.process_allgather(np.asarray(wanted))))


def jsonl(path: str | Path) -> Callback:
    """Append one line of JSON per chunk: numbers, lists for the members of a population, null for what is not finite.

    Every line is flushed: a kill loses no more than the line it falls into, and the next opening cuts that one off.
    """
    path = Path(path)
    _cut_off_partial_line(path)
    file = path.open("a", encoding="utf-8")

    def call(i, carry, metrics):
        values = {name: value for name, value in metrics.items() if name != SAVED}
        file.write(json.dumps(plain({"chunk": i, **values}), allow_nan=False) + "\n")
        file.flush()

    return call


def rows_before(path: str | Path, chunk: int) -> int:
    """Keep the rows of a metrics file before `chunk`; move the others, to be run again, to `<name>.superseded.jsonl`.

    Returns:
      The number of rows moved.
    """
    path = Path(path)
    if not path.exists():
        return 0
    _cut_off_partial_line(path)
    kept, moved = [], []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            (kept if json.loads(line)["chunk"] < chunk else moved).append(line)
        except (ValueError, KeyError, TypeError):
            moved.append(line)  # a damaged row is of no chunk
    if moved:
        with path.with_name(f"{path.stem}.superseded.jsonl").open("a", encoding="utf-8") as superseded:
            superseded.writelines(f"{line}\n" for line in moved)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
        os.replace(partial, path)
    return len(moved)


def _cut_off_partial_line(path: Path) -> None:
    if path.exists() and (written := path.read_bytes()) and not written.endswith(b"\n"):
        os.truncate(path, written.rfind(b"\n") + 1)


def tensorboard(folder: str | Path) -> Callback:
    """Write every metric for TensorBoard, each member of a population as a run of its own.

    Raises:
      ModuleNotFoundError: without the extra.
    """
    try:  # its SummaryWriter hands rows to a thread, for which its flush does not wait
        from tensorboardX import event_file_writer
        from tensorboardX.proto.event_pb2 import Event
        from tensorboardX.proto.summary_pb2 import Summary
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("this needs tensorboardX: pip install 'jaxrl_gen[tensorboard]'") from error
    writers: dict[str, Any] = {}

    def call(i, carry, metrics):
        steps = int(np.ravel(metrics["steps"])[0]) if "steps" in metrics else i
        told: dict[str, list] = {}
        for name, value in metrics.items():
            if name not in ("steps", SAVED):
                for k, x in enumerate(np.ravel(value)):
                    run = f"member-{k}" if np.ndim(value) else "."
                    told.setdefault(run, []).append(Summary.Value(tag=name, simple_value=float(x)))
        for run, values in told.items():
            if run not in writers:
                (Path(folder) / run).mkdir(parents=True, exist_ok=True)
                writers[run] = event_file_writer.EventsWriter(str(Path(folder) / run / "events"))
            writers[run].write_event(Event(wall_time=time.time(), step=steps, summary=Summary(value=values)))
            writers[run].flush()

    return call


def progress(chunks: int, *, start: int = 0, out: TextIO | None = None, every_seconds: float = 5.0) -> Callback:
    """Show how far the run is: steps per second, mean return with its interval over members, time left.

    In a terminal and in a notebook one line is redrawn; elsewhere plain lines are printed, at most one in
    `every_seconds`, and always the first and the last.

    Args:
      chunks: of the whole run.
      start: the first chunk, after a resume.
      out: default: standard output.
      every_seconds: between two plain lines.
    """
    out = out or sys.stdout
    show, is_plain = _display(out)
    begun = time.monotonic()
    shown = -np.inf

    def call(i, carry, metrics):
        nonlocal shown
        now, ends = time.monotonic(), i + 1 == chunks
        if not is_plain or ends or i == start or now - shown >= every_seconds:
            left = (now - begun) / (i + 1 - start) * (chunks - i - 1)
            show((i + 1) / chunks, progress_line(i, chunks, metrics, left), ends)
            shown = now

    return call


def _display(out: TextIO) -> tuple[Callable[[float, str, bool], None], bool]:
    """A function that shows (fraction, line, is it the last?), and whether it prints plain lines."""
    from rich.console import Console
    from rich.progress_bar import ProgressBar

    console = Console(file=out)
    if console.is_jupyter and out is sys.stdout:
        from IPython.display import display

        handle = display({"text/plain": ""}, raw=True, display_id=True)
        return lambda fraction, line, ends: handle.update({"text/plain": line}, raw=True), False
    if not console.is_terminal or console.is_dumb_terminal:
        return lambda fraction, line, ends: print(line, file=out, flush=True), True

    def redraw(fraction, line, ends):
        room = console.width - len(line) - 3
        out.write("\r\x1b[2K")
        if room >= 8:
            console.print(ProgressBar(1.0, fraction, width=min(room, 32)), end="")
            line = "  " + line
        out.write(line[: console.width - 1] + ("\n" if ends else ""))
        out.flush()

    return redraw, False


def progress_line(i: int, chunks: int, metrics: dict[str, Any], seconds_left: float) -> str:
    """One line on the run after chunk i."""
    parts = [f"{i + 1}/{chunks}"]
    if "steps" in metrics:
        parts.append(f"{quantity(np.ravel(metrics['steps'])[0])} steps")
    if "time/steps_per_second" in metrics:
        parts.append(f"{quantity(metrics['time/steps_per_second'])}/s")
    if EPISODE + "return" in metrics:
        parts.append(f"return {over_members(metrics[EPISODE + 'return'])}")
    if "evaluate/return" in metrics:
        parts.append(f"evaluated {over_members(metrics['evaluate/return'])}")
    minutes, seconds = divmod(int(np.ceil(seconds_left)), 60)
    hours = f"{minutes // 60}:{minutes % 60:02}" if minutes >= 60 else f"{minutes}"
    parts.append(f"{hours}:{seconds:02} left")
    return "  ".join(parts)


STUDENT = (12.71, 4.30, 3.18, 2.78, 2.57, 2.45, 2.36, 2.31, 2.26)  # 97.5 % quantiles for 1, 2, ... degrees of freedom


def over_members(values: Any) -> str:
    """The mean over members, and where there are several its 95 % interval (Student's t)."""
    values = np.ravel(values)
    values = values[np.isfinite(values)]
    if not values.size:
        return "-"
    mean = np.mean(values)
    if values.size == 1:
        return f"{mean:.4g}"
    freedom = values.size - 1
    quantile = STUDENT[freedom - 1] if freedom <= len(STUDENT) else 1.96 + 2.5 / freedom
    half = quantile * np.std(values, ddof=1) / np.sqrt(values.size)
    return f"{mean:.4g} [{mean - half:.4g}, {mean + half:.4g}]"


def quantity(x: float) -> str:
    """A number in three digits, with k, M or G."""
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= size:
            return f"{x / size:.3g}{unit}"
    return f"{x:.3g}"
