"""Resume: whatever interrupts a run, it ends bit for bit as if nothing had."""

import dataclasses
import json
import shutil
import signal
import time

import jax
import numpy as np
import pytest

from jaxrl_gen import launch, loops, record, sweep
from jaxrl_gen.envs import probe, wrap
from tests import toy_run
from tests.toy_process import CACHE, here, last_carry, rows, run, saved_steps, start, wait_for_rows


@pytest.fixture(autouse=True)
def shared_cache():
    """What one process compiles, the next one loads."""
    jax.config.update("jax_compilation_cache_dir", CACHE.name)


def same(one, other, exp):
    """Whether two runs recorded the same numbers and ended in the same carry, bit for bit."""
    assert rows(one) == rows(other)
    pairs = list(zip(last_carry(one, exp), last_carry(other, exp), strict=True))
    assert all(x.tobytes() == y.tobytes() for x, y in pairs)


def test_a_run_resumed_in_a_new_process_is_the_uninterrupted_one(tmp_path):
    evaluated = ["--eval-chunks", 2, "--eval-episodes", 4]
    common = ["--runs", tmp_path, "--no-stamp", *evaluated]
    here(*common, "--name", "whole", "--chunks", 6)
    here(*common, "--name", "part", "--chunks", 3)
    assert saved_steps(tmp_path / "part") == [3]
    begun = json.loads((tmp_path / "part" / "result.json").read_text())
    out, _ = run("--resume", tmp_path / "part", "--chunks", 6, *evaluated)
    assert "resumed at chunk 3 of 6" in out and "1 trace" in out
    same(tmp_path / "whole", tmp_path / "part", toy_run.Toy())
    assert "evaluate/return" in rows(tmp_path / "part")[5]
    told = json.loads((tmp_path / "part" / "result.json").read_text())
    assert told["command"] == begun["command"] and "--resume" not in told["command"]
    assert [line.split("toy_run ")[1].split()[0] for line in told["config"]["resumed"]] == ["--resume"]
    assert told["seconds"]["training"] > begun["seconds"]["training"], "in all"
    assert told["seconds"]["total"] > told["seconds"]["training"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_exits_with_zero(number, tmp_path):
    folder = tmp_path / "toy"
    process = start("--runs", tmp_path, "--no-stamp", "--chunks", 5000, "--nap", 0.02, "--seeds", 2)
    wait_for_rows(process, folder, 3)
    process.send_signal(number)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 0, error
    count = len(rows(folder))
    assert count >= 3 and saved_steps(folder) == [count]
    assert f"stopped after {count} of 5000 chunks; continue with: python -m tests.toy_run --resume {folder}" in out
    out, _ = run("--resume", folder, "--chunks", count + 2)
    assert "not bit for bit" not in out
    here("--runs", tmp_path, "--no-stamp", "--name", "whole", "--chunks", count + 2, "--seeds", 2)
    same(tmp_path / "whole", folder, toy_run.Toy(seeds=2))


def test_kills_at_random_moments_change_nothing(tmp_path):
    flags = ["--runs", tmp_path, "--no-stamp", "--seeds", 2, "--chunks", 40, "--checkpoint-chunks", 1]
    here(*flags, "--name", "whole")
    folder = tmp_path / "killed"
    rng = np.random.default_rng(0)
    process = start(*flags, "--name", "killed", "--nap", 0.01)
    interrupted = []
    for kill in range(4):
        before = len(rows(folder)) if kill else 0
        wait_for_rows(process, folder, before + int(rng.integers(1, 6)))
        time.sleep(rng.uniform(0.0, 0.1))
        process.kill()
        process.communicate()
        interrupted.append((len(rows(folder)), saved_steps(folder)))
        process = start("--resume", folder)
        if kill == 0:  # and once before it has done anything
            time.sleep(0.3)
            process.kill()
            process.communicate()
            process = start("--resume", folder)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert all(count < 40 for count, _ in interrupted), interrupted
    same(tmp_path / "whole", folder, toy_run.Toy(seeds=2))


def test_without_any_checkpoint_a_resumed_run_begins_again(tmp_path, capsys):
    flags = ["--runs", tmp_path, "--no-stamp"]
    here(*flags, "--name", "whole", "--chunks", 4)
    shutil.copytree(tmp_path / "whole", tmp_path / "lost")
    shutil.rmtree(tmp_path / "lost" / "checkpoints")
    capsys.readouterr()
    here("--resume", tmp_path / "lost", "--chunks", 4)
    out = capsys.readouterr().out
    assert "resumed at chunk 0 of 4; 4 later rows superseded" in out
    same(tmp_path / "whole", tmp_path / "lost", toy_run.Toy())


def test_a_damaged_checkpoint_is_named_and_the_one_before_serves(tmp_path):
    flags = ["--runs", tmp_path, "--no-stamp", "--checkpoint-chunks", 2]
    here(*flags, "--name", "whole", "--chunks", 8)
    shutil.copytree(tmp_path / "whole", tmp_path / "hurt")
    hurt = tmp_path / "hurt"
    files = [path for path in (hurt / "checkpoints" / "8").rglob("*") if path.is_file()]
    largest = max(files, key=lambda path: path.stat().st_size)
    blob = bytearray(largest.read_bytes())
    blob[len(blob) // 2] ^= 0xFF
    largest.write_bytes(blob)
    out, _ = run("--resume", hurt, "--chunks", 8, "--checkpoint-chunks", 2)
    assert "checkpoint 8 is damaged: " in out and "resumed at chunk 6 of 8; 2 later rows superseded" in out
    assert len((hurt / "metrics.superseded.jsonl").read_text().splitlines()) == 2
    assert [path.name for path in (hurt / "checkpoints-aside").iterdir()] == ["8-0"]
    same(tmp_path / "whole", hurt, toy_run.Toy())


def test_what_a_resume_may_change_and_what_it_may_not(tmp_path):
    """In one process: flags as a user gives them, answers as a user gets them."""
    exp = toy_run.Toy(runs=tmp_path, stamp=False, chunks=2, method=toy_run.Config(lr=0.2))
    folder = toy_run.main(exp)
    kept = folder / "config.json", (folder / "config.json").read_text()

    def resumed(**changes):
        return toy_run.main(dataclasses.replace(exp, resume=folder, chunks=3, **changes))

    for changes, said in (
        ({"method": toy_run.Config(lr=0.2, width=5)}, "method.width is 5 and was 4: it shapes the program"),
        ({"seeds": 2}, "seeds is 2 and was 1"),
        ({"seed": 1}, "seed is 1 and was 0"),
        ({"lanes": 4}, "lanes is 4 and was 8"),
        ({"use_ppo": True}, "use_ppo is True and was False"),
    ):
        with pytest.raises(ValueError, match=said):
            resumed(**changes)
    with pytest.raises(ValueError, match="2 chunks behind it, and 1 were asked for"):
        toy_run.main(dataclasses.replace(exp, resume=folder, chunks=1))
    with pytest.raises(FileNotFoundError, match="holds no run to resume"):
        toy_run.main(dataclasses.replace(exp, resume=tmp_path / "nowhere"))
    for damage, said in {
        '"experiment": "toy_run.Other"': "of another experiment: toy_run.Other; this is toy_run.Toy",
        '"version": "9.9"': "of jaxrl_gen 9.9; this is",
    }.items():
        name = damage.split(":")[0]
        lines = [line for line in kept[1].splitlines() if name in line]
        kept[0].write_text(kept[1].replace(lines[0], f"  {damage},"))
        with pytest.raises(ValueError, match=said):
            resumed()
    kept[0].write_text(kept[1][:-20])
    with pytest.raises(ValueError, match="config.json is not JSON"):
        resumed()
    kept[0].write_text(kept[1])
    assert len(rows(folder)) == 2, "nothing was lost"

    resumed(method=toy_run.Config(lr=0.3, noise=0.1), keep=1)
    recorded = json.loads(kept[0].read_text())
    assert recorded["changes"] == [
        {"field": "method.lr", "was": 0.2, "now": 0.3, "chunk": 2},
        {"field": "method.noise", "was": 0.3, "now": 0.1, "chunk": 2},
    ]
    assert recorded["floats"]["method.lr"] == 0.3 and recorded["options"]["keep"] == 1
    assert len(rows(folder)) == 3


MADE = {
    "swept": (lambda cfg: sweep.grid(cfg, lr=[0.05, 0.2]), {"config.lr": pytest.approx([0.05, 0.2])}),
    "multiplied": (lambda cfg: dataclasses.replace(cfg, lr=cfg.lr * 2, width=cfg.width + 1), {"config.lr": 0.25}),
    "as given": (lambda cfg: cfg, {}),
}


@pytest.mark.parametrize("case", MADE)
def test_what_an_experiment_makes_of_its_config_it_makes_once(case, tmp_path, capsys):
    made, floats = MADE[case]

    def main(exp):
        """The toy, with a config that it completes."""
        env = probe.continuous_action()
        loop = loops.on_policy(toy_run.make, wrap.fresh(env, exp.lanes), steps=4, iterations=3)
        return launch.launch(exp, env=env, loop=loop, cfg=made(exp.method))

    def run_it(*arguments):
        return launch.cli(main, toy_run.Toy, [str(argument) for argument in arguments])

    flags = ["--runs", tmp_path, "--no-stamp", "--method.lr", 0.125]
    whole = run_it(*flags, "--name", "whole", "--chunks", 3)
    part = run_it(*flags, "--name", "part", "--chunks", 1)
    for chunks in (2, 3):
        assert run_it("--resume", part, "--chunks", chunks) == part
    assert rows(whole) == rows(part) and "changed: " not in capsys.readouterr().out
    told = json.loads((part / "config.json").read_text())
    assert told["floats"]["method.lr"] == 0.125 and told["static"]["method.width"] == 4 and told["changes"] == []
    assert {name: x for name, x in told["floats"].items() if name.startswith("config.")} == floats
    widths = {name: x for name, x in told["static"].items() if name.startswith("config.")}
    assert widths == ({"config.width": 5} if case == "multiplied" else {})
    run_it("--resume", part, "--chunks", 4, "--method.lr", 0.25)
    told = json.loads((part / "config.json").read_text())["changes"]
    assert [change["field"] for change in told] == ["config.lr"] * (case == "multiplied") + ["method.lr"]
    assert told[-1] == {"field": "method.lr", "was": 0.125, "now": 0.25, "chunk": 3}


def test_asked_for_more_steps_a_run_that_began_with_chunks_goes_on(tmp_path):
    folder = here("--runs", tmp_path, "--no-stamp", "--chunks", 1)
    here("--resume", folder, "--total-steps", 3 * 96)
    assert len(rows(folder)) == 3
    told = json.loads((folder / "config.json").read_text())["options"]
    assert told["chunks"] is None and told["total_steps"] == 3 * 96
    here("--resume", folder, "--chunks=4", "--total_steps=96")
    assert len(rows(folder)) == 4


def test_what_a_record_does_not_tell_is_not_compared():
    now = record.versions(devices=2)
    before = {name: x for name, x in now.items() if name != "devices_used"}
    assert now["devices_used"] == 2 and record.differences(before, now) == []
    assert record.differences(record.versions(), now) == ["devices_used 2 (was 1)"]


def test_flags_that_are_not_repeated_are_those_of_the_run(tmp_path, capsys):
    arguments = ["--runs", str(tmp_path), "--no-stamp", "--chunks", "1", "--method.lr", "0.25", "--lanes", "4"]
    folder = toy_run.launch.cli(toy_run.main, toy_run.Toy, arguments)
    versions = json.loads((folder / "versions.json").read_text())
    versions["packages"]["jax"] = "0.0.1"
    (folder / "versions.json").write_text(json.dumps(versions))
    resume = ["--resume", str(folder), "--chunks", "2"]
    toy_run.launch.cli(toy_run.main, toy_run.Toy, [*resume, "--method.noise", "0.5"])
    out = capsys.readouterr().out
    assert "changed: method.noise from 0.3 to 0.5, from chunk 1 on" in out
    assert f"not bit for bit the same as without a stop, for this is jax {jax.__version__} (was 0.0.1)" in out
    recorded = json.loads((folder / "config.json").read_text())
    assert recorded["floats"]["method.lr"] == 0.25 and recorded["static"]["lanes"] == 4
    assert [change["field"] for change in recorded["changes"]] == ["method.noise"]
    with pytest.raises(SystemExit) as left:
        toy_run.launch.cli(toy_run.main, toy_run.Toy, [*resume, "--lanes", "8"])
    assert left.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: lanes is 8 and was 4: it shapes the program") and error.count("\n") == 1
