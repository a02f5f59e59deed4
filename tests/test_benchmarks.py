"""Benchmarks compare like with like: what one side does, the other does too; and their tables say what was measured."""

import importlib.util
import json
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmarks import _sides, finetune
from jaxrl_gen.envs import wrap
from jaxrl_gen.envs.tasks import fork
from tests.house import source


def test_both_sides_of_finetune_have_one_task():
    """MuJoCo's own simulator in gymnasium's environments, and MJX: the same episodes for the same actions."""
    pytest.importorskip("gymnasium")
    host = finetune.vector().envs[0].unwrapped
    device = wrap.action_chunk(fork.make(), finetune.CHUNK)
    reset, step, rng, falls = jax.jit(device.reset), jax.jit(device.step), np.random.default_rng(0), 0
    for episode in range(6):
        state, obs = reset(jax.random.key(episode))
        host.reset(seed=episode)
        host.data.qpos[:], host.data.qvel[:] = np.split(np.asarray(obs), 2)
        towards = [(0.5, 0.5), (0.8, 0.0)][episode % 2]  # past the hole, or into it
        for decision in range(finetune.DECISIONS):
            action = np.clip(rng.uniform(-1.0, 1.0, (finetune.CHUNK, 2)) + towards, -1.0, 1.0).reshape(-1)
            obs, reward, terminated, truncated, _ = host.step(action)
            state, _, outcome = step(state, jnp.asarray(action, jnp.float32), jax.random.key(0))
            np.testing.assert_allclose(obs, outcome.next_obs, atol=1e-4)
            assert reward == pytest.approx(float(outcome.reward), abs=1e-4)
            assert (terminated, truncated) == (bool(outcome.terminated), bool(outcome.truncated))
            falls += terminated
            if terminated or truncated:
                break
        assert terminated or decision == finetune.DECISIONS - 1
    assert 0 < falls < 6


@pytest.mark.skipif(importlib.util.find_spec("torch") is not None, reason="torch is installed")
def test_without_torch_it_says_so_in_one_line():
    command = [sys.executable, "-m", "experiments.benchmarks.finetune", "--only", "PyTorch"]
    finished = subprocess.run(command, cwd=source.ROOT, capture_output=True, text=True)
    assert finished.returncode == 1 and not finished.stdout
    (line,) = finished.stderr.splitlines()
    assert line.startswith("error: torch is not installed")


def test_the_table_has_medians_of_rounds_and_ratios_to_the_first_side_of_each_task():
    run = lambda speed: {"steps_per_second": speed, "compile_seconds": 1.0, "peak_bytes": 2e6}
    rows = {
        "one | a": _sides.summarize([run(10.0), run(30.0), run(20.0)]),
        "one | b": _sides.summarize([run(5.0), run(5.0), run(500.0)]),
        "two | b": _sides.summarize([run(7.0)]),
    }
    *_, first, second, third = _sides.table(rows).splitlines()
    assert first == "| one | a | 20 (10 to 30) | 1.00 | 1.0 | 2 |"
    assert second == "| one | b | 5 (5 to 500) | 0.25 | 1.0 | 2 |"
    assert third == "| two | b | 7 (7 to 7) | 1.00 | 1.0 | 2 |"


def test_sides_are_run_in_turn_and_recorded(tmp_path, monkeypatch, capsys):
    order = []

    def run(command, **_):
        order.append(command[-1])
        told = {"steps_per_second": 100.0 * len(order), "compile_seconds": 0.0, "peak_bytes": 1}
        return subprocess.CompletedProcess(command, 0, f"a line before\n{json.dumps(told)}\n", "")

    monkeypatch.setattr(_sides, "subprocess", types.SimpleNamespace(run=run))
    monkeypatch.setattr(_sides, "RESULTS", tmp_path)
    sides = {"one | a": None, "one | b": None}
    _sides.compare(_sides.Benchmark(rounds=3), sides, "toy")
    assert order == ["one | a", "one | b"] * 3
    told = json.loads((tmp_path / "benchmark_toy.json").read_text())
    assert [told["sides"][name]["steps_per_second"] for name in sides] == [300.0, 400.0] and told["rounds"] == 3
    assert "| one | b | 400 (200 to 600) | 1.33 |" in capsys.readouterr().out
    _sides.compare(_sides.Benchmark(only="b", record=False), sides, "toy")
    assert order[6:] == ["one | b"] * 3 and json.loads((tmp_path / "benchmark_toy.json").read_text()) == told
    _sides.compare(_sides.Benchmark(only="b", rounds=2), sides, "toy")
    merged = json.loads((tmp_path / "benchmark_toy.json").read_text())
    assert merged["sides"]["one | a"] == told["sides"]["one | a"] and merged["rounds"] == 3
    part = merged["sides"]["one | b"]
    assert (part["steps_per_second"], part["rounds"], part["versions"]) == (1050.0, 2, told["versions"])
    _sides.compare(_sides.Benchmark(only="b", rounds=1), sides, "part")
    assert set(json.loads((tmp_path / "benchmark_part.json").read_text())["sides"]) == {"one | b"}
