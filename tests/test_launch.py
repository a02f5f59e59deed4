"""A whole run: what it leaves behind, what it refuses, and what it does with seeds, settings and devices."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest

from jaxrl_gen import deploy, evaluate, launch, loops, members, replay, sweep
from jaxrl_gen.envs import probe, wrap
from jaxrl_gen.types import Env
from tests import toy_run
from tests.toy_process import CACHE, here, last_carry, rows, run


@pytest.fixture(autouse=True)
def shared_cache():
    """What one test compiles, the next one loads."""
    toy_run.jax.config.update("jax_compilation_cache_dir", CACHE.name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of two settings with two seeds each, with all that follows training, and what it printed."""
    out = tmp_path_factory.mktemp("whole")
    cfg = sweep.grid(toy_run.Config(), lr=[0.05, 0.2])
    exp = toy_run.Toy(
        runs=out, method=cfg, seeds=2, seed=5, chunks=6, eval_episodes=8, eval_chunks=3, export=True, video=True,
        report=True, tensorboard=True, checkpoint_chunks=2, keep=2,
    )  # fmt: skip
    said = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("builtins.print", lambda *words, **options: said.append(" ".join(map(str, words))))
        folder = toy_run.main(exp)
    return folder, exp, "\n".join(said).splitlines()


def test_a_run_leaves_everything_in_its_folder(whole):
    folder, exp, said = whole
    assert folder.parent == exp.runs and folder.name.startswith("toy-20")
    left = {path.name for path in folder.iterdir()}
    assert {"config.json", "versions.json", "metrics.jsonl", "checkpoints", "result.json", "report.html"} <= left
    assert {"policy.stablehlo", "policy.json", "tensorboard", "curve.png"} <= left
    assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["4", "6"]
    assert not [name for name in left if name.startswith(".")]
    assert said[-1] == f"look at {folder / 'report.html'}"
    assert any(line.startswith("compilation cache: ") for line in said)
    assert any(line.startswith("compiled: 1 trace") for line in said)


def test_the_configuration_keeps_static_fields_and_floats_apart(whole):
    folder, exp, _ = whole
    config = json.loads((folder / "config.json").read_text())
    assert config["experiment"] == "toy_run.Toy" and config["changes"] == []
    assert config["static"]["method.width"] == 4 and config["static"]["seeds"] == 2
    assert config["static"]["algo.actor_hidden"] == [8] and config["static"]["loop.steps_per_chunk"] == 8 * 4 * 3
    assert np.allclose(config["floats"]["method.lr"], [0.05, 0.2]) and config["floats"]["method.noise"] == 0.3
    assert config["floats"]["algo.value_clip"] == "inf", "JSON has no word for it"
    assert config["options"]["chunks"] == 6 and "chunks" not in config["static"]
    versions = json.loads((folder / "versions.json").read_text())
    assert versions["packages"]["jax"] == toy_run.jax.__version__ and versions["matmul_precision"] == "highest"
    assert versions["chip"] and versions["python"].startswith(f"{sys.version_info.major}.{sys.version_info.minor}")


def test_the_result_says_who_did_how_well(whole):
    folder, exp, _ = whole
    result = json.loads((folder / "result.json").read_text())
    members = result["members"]
    assert [(round(member["lr"], 3), member["seed"]) for member in members] == [
        (0.05, 5),
        (0.05, 6),
        (0.2, 5),
        (0.2, 6),
    ]
    scores = [member["score"] for member in members]
    assert result["score"]["per_member"] == scores and result["score"]["runs"] == 4
    assert result["score"]["iqm"] == pytest.approx(np.mean(sorted(scores)[1:3]))
    assert result["score"]["low"] <= result["score"]["iqm"] <= result["score"]["high"]
    assert scores[result["best"]] == max(scores)
    assert result["steps"] == 6 * 8 * 4 * 3 and result["chunks"] == 6 and result["traces"] == 1
    assert 0 < result["seconds"]["training"] < result["seconds"]["total"]
    assert any("no video" in note for note in result["notes"]), "a probe has nothing to look at, and the run goes on"
    last = rows(folder)[-1]
    assert np.allclose(last["evaluate/return"], scores), "the last evaluation has the same episodes as the result"
    assert [("evaluate/return" in row) for row in rows(folder)] == [False, False, True] * 2


def test_the_policy_of_the_best_member_is_the_one_exported(whole):
    folder, exp, _ = whole
    best = json.loads((folder / "result.json").read_text())["best"]
    leaves = last_carry(folder, exp)
    bias, weights = leaves[0][best], leaves[1][best]
    obs = np.array([[1.0], [-1.0], [0.3]], np.float32)
    expected = np.clip(np.tanh(bias.mean() + obs @ weights), -1, 1)
    assert np.allclose(deploy.load(folder)(obs), expected, atol=1e-6)


def test_each_member_is_the_run_of_its_own_setting_and_seed(whole, tmp_path):
    folder, exp, _ = whole
    alone = toy_run.Toy(runs=tmp_path, method=toy_run.Config(lr=0.2), seed=6, chunks=6)
    together, single = rows(folder), rows(toy_run.main(alone))
    for row, mine in zip(together, single, strict=True):
        for name, value in mine.items():
            if name not in ("chunk", "steps"):
                assert np.allclose(row[name][3], value, rtol=1e-4, atol=1e-5), name


class Guess:
    """A simulator that does not run in JAX: three steps, and a reward of 1 where the action was above its threshold."""

    def reset(self, *, seed):
        self.steps, self.threshold = 0, np.random.default_rng(seed).uniform(-1.0, 1.0)
        return np.array([self.threshold]), {}

    def step(self, action):
        self.steps += 1
        return (
            np.array([self.threshold]),
            float(self.steps == 3 and action[0] > self.threshold),
            False,
            self.steps == 3,
            {},
        )


def guess(act, memory, episodes, seed):
    """Plays it."""
    return evaluate.side_by_side([Guess() for _ in range(episodes)], act, memory, steps=5, seed=seed)


def bold(cfg, spec):
    """The toy's method, that always does the most."""
    return toy_run.make(cfg, spec)._replace(act=lambda state, obs, key: (np.ones((len(obs), 1), np.float32), {}))


def test_a_policy_is_judged_in_simulators_on_the_host(tmp_path):
    env = probe.continuous_action()
    loop = loops.on_policy(toy_run.make, wrap.fresh(env, 4), steps=2, iterations=1)
    elsewhere = Env(None, None, env.spec)
    exp = toy_run.Toy(
        runs=tmp_path, lanes=4, eval_episodes=40, eval_chunks=1, chunks=2, seeds=2, export=True, video=True, report=True,
        method=sweep.grid(toy_run.Config(), lr=[0, 0.2]),
    )  # fmt: skip
    given = dict(env=elsewhere, loop=loop, cfg=exp.method, play=guess, what="success rate", also={"bold": bold})
    folder = launch.launch(exp, **given)
    result = json.loads((folder / "result.json").read_text())
    score, others = result["score"], result["also"]["bold"]["score"]
    assert score["what"] == others["what"] == "success rate of 40 episodes" and others["per_member"] == [1.0] * 4
    assert score["ones"]["count"] == pytest.approx(40 * sum(score["per_member"]))
    assert score["ones"]["low"] < np.mean(score["per_member"]) < score["ones"]["high"]
    assert result["decision_ms"] > 0 and result["also"]["bold"]["decision_ms"] > 0
    assert np.allclose(rows(folder)[-1]["evaluate/return"], score["per_member"]), "the same places, as after a chunk"
    assert [member["length"] for member in result["members"]] == [3.0] * 4
    assert any("no video" in note for note in result["notes"]) and not any("policy" in note for note in result["notes"])
    assert "success rate of 40 episodes" in (folder / "report.html").read_text()
    # Each member alone, in the places of its own seed: NumPy's account of the linear policy.
    bias, weights = last_carry(folder, exp)[:2]
    for i in range(4):
        seed = int(np.random.SeedSequence((members.EVALUATION, i % 2, 2)).generate_state(1)[0] >> 1)
        place = [
            np.random.default_rng(own).uniform(-1.0, 1.0)
            for own in np.random.default_rng(seed).integers(2**31, size=40)
        ]
        action = np.tanh(bias[i].mean() + np.float32(place) * weights[i, 0, 0])
        assert np.mean(action > place) == pytest.approx(score["per_member"][i])
    with pytest.raises(ValueError, match="eval_steps is 3; allowed with a play of its own"):
        launch.launch(dataclasses.replace(exp, eval_steps=3), **given)
    with pytest.raises(ValueError, match="is a spec alone and cannot be stepped"):
        launch.launch(exp, **{**given, "play": None})


def test_policies_of_one_state_are_evaluated_in_the_same_episodes(tmp_path):
    env = probe.continuous_action()
    loop = loops.on_policy(toy_run.make, wrap.fresh(env, 4), steps=2, iterations=1)
    exp = toy_run.Toy(runs=tmp_path, lanes=4, eval_episodes=8, chunks=2, seeds=2)
    folder = launch.launch(exp, env=env, loop=loop, cfg=exp.method, also={"same": toy_run.make, "bold": bold})
    result = json.loads((folder / "result.json").read_text())
    assert result["also"]["same"]["score"] == result["score"] and result["score"]["what"] == "mean return of 8 episodes"
    assert result["also"]["bold"]["score"]["per_member"] != result["score"]["per_member"]


REFUSED = {
    "seeds is 0; allowed: 1 and more": ["--seeds", 0],
    "seed is -1; allowed: 0 and more": ["--seed", -1],
    "seed + seeds is 3000000001; allowed: up to 2147483647": ["--seed", 3_000_000_000],
    "experiment.total_steps is nan; allowed: numbers in [1, 1e+15]": ["--total-steps", "nan"],
    "chunks is 0; allowed: 1 and more": ["--chunks", 0],
    "experiment.method.lr is -1.0; allowed: numbers in [0, inf]": ["--method.lr", -1],
    "experiment.method.noise is nan": ["--method.noise", "nan"],
    "experiment.keep is 0; allowed: numbers in [1, inf]": ["--keep", 0],
    "lanes is 0; allowed: 1 and more": ["--lanes", 0],
    "name is '../up'; allowed: letters, digits": ["--name", "../up"],
    "name is ''; allowed: letters, digits": ["--name", ""],
    "devices is 99; allowed: 1 to": ["--devices", 99],
    "holds no run to resume": ["--resume", "nowhere"],
    "holds no run to resume: there is no config.json in it": ["--replay", "nowhere/nonfinite-1"],
    "config.minibatches is 3; it must divide": ["--use-ppo", "--algo.minibatches", 3],
}


@pytest.mark.parametrize("said", REFUSED)
def test_bad_input_is_one_line_before_anything_is_compiled(said, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(loops, "compile_report", loops.compile_report if "minibatches" in said else None)
    with pytest.raises(SystemExit) as left:
        here("--runs", tmp_path, "--chunks", 1, *REFUSED[said])
    error = capsys.readouterr().err
    assert left.value.code == 2 and error.startswith("error: ") and said in error and error.count("\n") == 1
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_a_folder_that_exists_or_cannot_be_written_is_refused(tmp_path, capsys):
    flags = ["--no-stamp", "--name", "taken", "--chunks", 1]
    (tmp_path / "taken").mkdir()
    (tmp_path / "file").write_text("")
    for runs, said in {tmp_path: "taken exists and is not overwritten", tmp_path / "file": "cannot write"}.items():
        with pytest.raises(SystemExit):
            here("--runs", runs, *flags)
        assert said in capsys.readouterr().err
    assert not list((tmp_path / "taken").iterdir())


def test_debug_shows_where(tmp_path):
    with pytest.raises(ValueError, match="seeds is 0"):
        here("--runs", tmp_path, "--seeds", 0, "--debug")


def test_a_loop_without_a_time_limit_or_without_steps_is_refused(tmp_path):
    env = probe.continuous_action()
    endless = env._replace(spec=env.spec._replace(time_limit=None))
    loop = loops.on_policy(toy_run.make, wrap.fresh(endless, 4), steps=2, iterations=1)
    exp = toy_run.Toy(runs=tmp_path, eval_episodes=4)
    with pytest.raises(ValueError, match="has no time limit"):
        launch.launch(exp, env=endless, loop=loop, cfg=exp.method)
    with pytest.raises(ValueError, match="takes no environment steps: say how long it runs with chunks"):
        launch.launch(
            dataclasses.replace(exp, chunks=None), env=env, loop=loop._replace(steps_per_chunk=0), cfg=exp.method
        )
    assert not list(tmp_path.iterdir())


def test_a_replay_is_told_with_its_size_and_refused_where_it_and_a_copy_do_not_fit(tmp_path, capsys, monkeypatch):
    env = probe.continuous_action()
    loop = loops.off_policy(
        toy_run.make, wrap.fresh(env, 4), steps=2, updates=1, batch_size=4, capacity=400_000, warmup=8, iterations=2
    )
    exp = toy_run.Toy(runs=tmp_path, chunks=1, checkpoint_chunks=0)
    size = replay.nbytes(env.spec, 100_000, 4)
    monkeypatch.setattr("jaxrl_gen.loops.compiled.device_memory", lambda: 3 * size // 2)
    with pytest.raises(ValueError, match=f"{size / 2**30:.3g} GB of replay and .* GB kept beside it among them"):
        launch.launch(exp, env=env, loop=loop, cfg=exp.method)
    assert f"\nreplay: {size / 2**30:.3g} GB of " in capsys.readouterr().out and not list(tmp_path.iterdir())
    monkeypatch.undo()
    launch.launch(exp, env=env, loop=loop, cfg=exp.method)


def test_the_largest_seed_runs(tmp_path):
    folder = toy_run.main(toy_run.Toy(runs=tmp_path, chunks=1, seed=2**31 - 3, seeds=2, eval_episodes=4))
    members = json.loads((folder / "result.json").read_text())["members"]
    assert [member["seed"] for member in members] == [2**31 - 3, 2**31 - 2]


def test_the_seconds_of_training_are_those_of_the_chunks(tmp_path):
    nap, chunks = 0.4, 3
    folder = toy_run.main(toy_run.Toy(runs=tmp_path, chunks=chunks, nap=nap, checkpoint_chunks=1))
    told = json.loads((folder / "result.json").read_text())
    times = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert 0 < times[-1]["time/seconds"] == told["seconds"]["training"] < nap * (chunks - 1)
    assert told["steps_per_second"] == pytest.approx(96 * chunks / told["seconds"]["training"])
    took = np.diff([0.0, *(row["time/seconds"] for row in times)])
    assert np.allclose([row["time/steps_per_second"] for row in times], 96 / took)


def test_the_command_that_continues_repeats_what_a_resume_does_not_inherit(monkeypatch):
    monkeypatch.setattr(launch, "_command", lambda flag: f"python -m toy {flag}")  # a worker of tests has none
    said = [launch._going_on(toy_run.Toy(devices=n, distributed=n > 2), Path("runs/x")) for n in (1, 2, 3)]
    assert [line.partition(" --resume ")[2] for line in said] == [
        "runs/x", "runs/x --devices 2", "runs/x --devices 3 --distributed",
    ]  # fmt: skip


def test_an_experiment_with_a_field_of_the_name_that_records_use_is_refused(tmp_path):
    fields = [("config", toy_run.Config, toy_run.Config())]
    kind = dataclasses.make_dataclass("Own", fields, bases=(toy_run.Toy,), frozen=True)
    with pytest.raises(ValueError, match="Own has a field 'config', the name of what ran: call it otherwise"):
        toy_run.main(kind(runs=tmp_path))


def test_total_steps_are_rounded_up_to_chunks_and_a_reached_return_stops(tmp_path):
    folder = toy_run.main(toy_run.Toy(runs=tmp_path, chunks=None, total_steps=100.0))
    assert [row["steps"] for row in rows(folder)] == [96, 192]
    early = toy_run.main(toy_run.Toy(runs=tmp_path, name="early", chunks=5, stop_at=-100.0))
    assert len(rows(early)) == 1 and [path.name for path in (early / "checkpoints").iterdir()] == ["1"]


def test_a_run_that_turns_non_finite_says_how_to_see_it_again(tmp_path, capsys):
    flags = ["--runs", tmp_path, "--no-stamp", "--method.limit", 7, "--checkpoint-chunks", 1]
    out, error = run(*flags, code=2)
    assert "the run turned non-finite in chunk 2: see " in error and "chunk 2, iteration 2: " in out
    assert f"replay: python -m tests.toy_run --replay {tmp_path}/toy/nonfinite-2" in out
    assert sorted(path.name for path in (tmp_path / "toy" / "checkpoints").iterdir()) == ["1", "2"]
    assert rows(tmp_path / "toy")[2]["toy/loss"] is None
    with pytest.raises(FloatingPointError):
        here("--replay", tmp_path / "toy" / "nonfinite-2")
    assert "not finite: metrics/toy/bias, metrics/toy/loss, params/bias, params/weights" in capsys.readouterr().out


SHARED_OUT = {
    "lanes of one member": (toy_run.Toy(devices=4, use_ppo=True), ["--devices", 4, "--use-ppo"]),
    "members": (toy_run.Toy(devices=2, seeds=2), ["--devices", 2, "--seeds", 2]),
    "lanes of all members": (toy_run.Toy(devices=4, seeds=3), ["--devices", 4, "--seeds", 3]),
}


@pytest.mark.parametrize("case", SHARED_OUT)
def test_a_run_on_many_devices_is_that_on_one(case, tmp_path, capsys):
    """Begun on many devices and ended on one, against a run on one alone."""
    exp, flags = SHARED_OUT[case]
    common = ["--runs", tmp_path, "--no-stamp", "--lanes", 8]
    here(*common, *flags[2:], "--name", "one", "--chunks", 3)
    out, _ = run(*common, *flags, "--name", "many", "--chunks", 2, XLA_FLAGS="--xla_force_host_platform_device_count=4")
    assert "4 x " in out and "1 trace" in out and len(rows(tmp_path / "many")) == 2
    assert json.loads((tmp_path / "many" / "versions.json").read_text())["devices_used"] == exp.devices
    capsys.readouterr()
    here("--resume", tmp_path / "many", "--chunks", 3)
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("not bit for bit")]
    assert f"devices_used 1 (was {exp.devices})" in line
    for mine, other in zip(rows(tmp_path / "one"), rows(tmp_path / "many"), strict=True):
        assert mine.keys() == other.keys()
        assert all(np.allclose(mine[name], other[name], rtol=2e-3, atol=2e-4) for name in mine), (mine, other)
    for x, y in zip(last_carry(tmp_path / "one", exp), last_carry(tmp_path / "many", exp), strict=True):
        assert np.allclose(x, y, rtol=1e-3, atol=1e-4)
