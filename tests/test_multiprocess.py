"""The same script in two processes of one run, over the loopback interface: the same numbers."""

import json
import signal
import socket

import numpy as np

from tests import toy_run
from tests.toy_process import here, last_carry, rows, saved_steps, start, wait_for_rows


def two_processes(*arguments, devices: int = 1):
    """Begin both processes of a run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    here_too = {"JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    flags = f"--xla_force_host_platform_device_count={devices}"
    return [start(*arguments, JAX_PROCESS_ID=str(i), XLA_FLAGS=flags, **here_too) for i in (0, 1)]


def ended(processes) -> list[tuple[str, str]]:
    try:
        outputs = [process.communicate(timeout=120) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], outputs
    return outputs


def close(one, other, exp):
    for mine, theirs in zip(rows(one), rows(other), strict=True):
        assert mine.keys() == theirs.keys()
        assert all(np.allclose(mine[name], theirs[name], rtol=1e-3, atol=1e-4) for name in mine), (mine, theirs)
    for x, y in zip(last_carry(one, exp), last_carry(other, exp), strict=True):
        assert np.allclose(x, y, rtol=1e-3, atol=1e-4)


def test_two_processes_share_the_lanes_and_only_the_first_one_writes_and_speaks(tmp_path):
    flags = ["--runs", tmp_path, "--no-stamp", "--eval-episodes", 4, "--export"]
    here(*flags, "--name", "alone", "--chunks", 5)
    (out, _), (silent, _) = ended(two_processes(*flags, "--name", "both", "--chunks", 3))
    assert "2 x " in out and "in 2 processes" in out
    assert all(line.startswith("[Gloo]") for line in silent.splitlines())
    assert len(rows(tmp_path / "both")) == 3 and saved_steps(tmp_path / "both") == [3]
    resume = ["--resume", tmp_path / "both", "--chunks", 5, "--eval-episodes", 4, "--export"]
    (out, _), _ = ended(two_processes(*resume))
    assert "resumed at chunk 3 of 5" in out
    close(tmp_path / "alone", tmp_path / "both", toy_run.Toy())
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("alone", "both")]
    assert np.isclose(results[0]["score"]["iqm"], results[1]["score"]["iqm"], rtol=1e-3)
    assert results[1]["versions"]["processes"] == 2
    assert (tmp_path / "both" / "policy.stablehlo").exists()


def test_a_signal_to_one_of_two_processes_stops_both_and_one_process_goes_on(tmp_path):
    """Members over processes here; a folder of runs that all share."""
    folder = tmp_path / "both"
    flags = ["--runs", tmp_path, "--no-stamp", "--seeds", 4]
    processes = two_processes(*flags, "--name", "both", "--chunks", 5000, "--nap", 0.02, devices=2)
    wait_for_rows(processes[0], folder, 2)
    processes[1].send_signal(signal.SIGTERM)
    (out, _), _ = ended(processes)
    count = len(rows(folder))
    assert f"stopped after {count} of 5000 chunks" in out and saved_steps(folder) == [count]
    here("--resume", folder, "--chunks", count + 2)
    here(*flags, "--name", "alone", "--chunks", count + 2)
    close(tmp_path / "alone", folder, toy_run.Toy(seeds=4))
