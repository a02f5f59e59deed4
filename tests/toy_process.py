"""Runs of the toy experiment in processes of their own, and what they leave behind."""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from jaxrl_gen import checkpoint, loops, members
from tests import toy_run

ROOT = Path(__file__).resolve().parents[1]
CACHE = tempfile.TemporaryDirectory(prefix="compiled-")  # what one process compiles, the next one loads


def start(*arguments: object, **environment: str) -> subprocess.Popen:
    """Begin `python -m tests.toy_run`, its outputs piped. XLA_FLAGS are added to those of this process."""
    command = [sys.executable, "-m", "tests.toy_run", *map(str, arguments)]
    environment["XLA_FLAGS"] = f"{os.environ['XLA_FLAGS']} {environment.get('XLA_FLAGS', '')}".strip()
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "JAX_COMPILATION_CACHE_DIR": CACHE.name, **environment}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def run(*arguments: object, code: int = 0, **environment: str) -> tuple[str, str]:
    """Run it to its end, which must have the given exit code; returns both outputs."""
    process = start(*arguments, **environment)
    out, error = process.communicate(timeout=240)
    assert process.returncode == code, f"exit code {process.returncode}\n{out}\n{error}"
    return out, error


def here(*arguments: object) -> Path:
    """The same run within this process, which is faster; returns its folder."""
    jax.config.update("jax_compilation_cache_dir", CACHE.name)
    return toy_run.launch.cli(toy_run.main, toy_run.Toy, [str(argument) for argument in arguments])


def rows(folder: Path) -> list[dict]:
    """What a run recorded, without the figures of the clock, which are never twice the same."""
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: x for name, x in json.loads(line).items() if not name.startswith("time/")} for line in lines]


def wait_for_rows(process: subprocess.Popen, folder: Path, count: int) -> None:
    """Return when a run has recorded `count` chunks, or has ended."""
    path = folder / "metrics.jsonl"
    while process.poll() is None and not (path.exists() and path.read_bytes().count(b"\n") >= count):
        time.sleep(0.005)


def saved_steps(folder: Path) -> list[int]:
    """The complete checkpoints of a run."""
    return sorted(int(path.name) for path in (folder / "checkpoints").iterdir() if path.name.isdigit())


def last_carry(folder: Path, exp: toy_run.Toy) -> list[np.ndarray]:
    """Every leaf of the newest checkpoint, in order."""
    env = toy_run.wrap.fresh(toy_run.probe.continuous_action(), exp.lanes)
    made, cfg = (toy_run.ppo.make, exp.algo) if exp.use_ppo else (toy_run.make, exp.method)
    loop = loops.on_policy(made, env, steps=4, iterations=3)
    group = members.group(cfg, exp.seed, exp.seeds)
    target = jax.eval_shape(group.init(loop.init), group.config(cfg), 0)
    restored = checkpoint.Checkpointer(folder / "checkpoints").restore_latest(target)
    return [np.asarray(x) for x in checkpoint.by_path(restored.carry).values()]
