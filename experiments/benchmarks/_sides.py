"""What the benchmarks share: timing a call, a compiled loop's figures, and sides that run in turn and become a table.

A side is a function that returns the `figures` of one program. Each is run in a process of its own, round after round,
so that a machine that drifts drifts for all; medians over rounds are told, with ratios to the first side of each task.
"""

import dataclasses
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "results"


@dataclasses.dataclass(frozen=True)
class Benchmark:
    """What to run."""

    rounds: int = 3
    only: str = ""  # run only the sides whose name contains this, and leave the others in the record as they are
    side: str = ""  # run one side in this process and print its figures as JSON
    record: bool = True  # write the result beside the others


def figures(compile_seconds: float, steps: int, seconds: list[float], **more) -> dict:
    """The figures of one side: `steps` steps, of environments unless it says otherwise, took each of `seconds`."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {
        "steps_per_second": steps / statistics.median(seconds),
        "compile_seconds": compile_seconds,
        "peak_bytes": peak,
        **more,
    }


def timed(call: Callable, times: int = 3) -> list[float]:
    """Seconds of each of `times` calls, waiting for the device."""
    import jax

    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
    return seconds


def trained(loop, cfg, *, seeds: int = 1, chunks: int = 4, metric: str) -> dict:
    """jaxrl_gen with everything on: a host loop that reads all metrics after every chunk."""
    import jax
    import numpy as np

    from jaxrl_gen import loops, types

    cfg, keys = types.strong(cfg), jax.random.key(0)
    if seeds > 1:
        loop, keys = loops.population(loop), jax.random.split(keys, seeds)
    start = time.perf_counter()
    init = jax.jit(loop.init).lower(cfg, keys).compile()
    compiled = loops.compile_report(loop, cfg, init(cfg, keys))
    compile_seconds = time.perf_counter() - start
    told = []
    remember = lambda i, carry, metrics: told.append(float(np.nanmean(metrics[metric])))
    seconds = timed(lambda: loops.run(compiled.chunk, cfg, init(cfg, keys), chunks=chunks, callbacks=[remember]))
    return figures(compile_seconds, chunks * loop.steps_per_chunk * seeds, seconds, last=told[-1])


class MergedEnds:
    """gymnax's newer step tells termination from truncation; rejax expects them as one."""

    def __init__(self, env):
        self.env = env

    def __getattr__(self, name):
        if name == "env" or name.startswith("__"):  # asked for by copy, before there is an env
            raise AttributeError(name)
        return getattr(self.env, name)

    def step(self, key, state, action, params):
        obs, state, reward, terminated, truncated, info = self.env.step(key, state, action, params)
        return obs, state, reward, terminated | truncated, info


def compare(benchmark: Benchmark, sides: dict[str, Callable[[], dict]], module: str) -> None:
    """Run the sides in turn, each in a process of its own, print the table and record it."""
    if benchmark.side:
        print(json.dumps(sides[benchmark.side]()))
        return
    measured: dict[str, list[dict]] = {name: [] for name in sides if benchmark.only in name}
    for turn in range(benchmark.rounds):
        for name in measured:
            command = [sys.executable, "-m", f"experiments.benchmarks.{module}", "--side", name]
            finished = subprocess.run(command, capture_output=True, text=True)
            if finished.returncode:
                raise RuntimeError(f"{name} failed:\n{finished.stderr[-2000:]}")
            measured[name].append(json.loads(finished.stdout.splitlines()[-1]))
            print(f"round {turn + 1}: {name}: {measured[name][-1]['steps_per_second']:,.0f}/s", file=sys.stderr)
    rows = {name: summarize(runs) for name, runs in measured.items()}
    print(table(rows))
    if benchmark.record:
        from jaxrl_gen import record

        path, of_run = RESULTS / f"benchmark_{module}.json", {"rounds": benchmark.rounds, "versions": record.versions()}
        told = of_run | {"sides": rows}
        if benchmark.only and path.exists():
            before = json.loads(path.read_text())
            told = before | {"sides": before["sides"] | {name: row | of_run for name, row in rows.items()}}
        path.write_text(json.dumps(told, indent=1) + "\n")


def summarize(runs: list[dict]) -> dict:
    """Medians over rounds, and the range of the speeds."""
    summary = {name: statistics.median(run[name] for run in runs) for name in runs[0]}
    speeds = [run["steps_per_second"] for run in runs]
    return summary | {"slowest": min(speeds), "fastest": max(speeds)}


def table(rows: dict[str, dict]) -> str:
    """The figures as a Markdown table, each task's first side being 1.00."""
    lines = ["| task | side | steps/s (range) | ratio | compile s | peak MB |", "| --- | --- | --- | --- | --- | --- |"]
    first: dict[str, float] = {}
    for name, row in rows.items():
        speed, megabytes = row["steps_per_second"], row["peak_bytes"] / 1e6
        task, side = name.split(" | ")
        reference = first.setdefault(task, speed)
        lines.append(
            f"| {task} | {side} | {speed:,.0f} ({row['slowest']:,.0f} to {row['fastest']:,.0f}) "
            f"| {speed / reference:.2f} | {row['compile_seconds']:.1f} | {megabytes:,.0f} |"
        )
    return "\n".join(lines)
