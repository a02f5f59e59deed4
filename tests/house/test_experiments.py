"""Headers of experiments say what was measured, with which command, on what; and nothing else."""

import dataclasses
import importlib
import json
import re
import shlex

import pytest
import tyro

from experiments import _claims, _methods, _offline, publish
from jaxrl_gen import launch, record
from tests.house import source

RESULTS = source.ROOT / "experiments" / "results"
FIELDS = ("Run", "Hardware", "Minutes", "Expect")
FILES = [path for path in source.experiments() if path.name != "publish.py"]
EXPERIMENTS = [path for path in FILES if path.parent.name == "experiments"]
RECORDED = [path for path in EXPERIMENTS if (RESULTS / f"{path.stem}.json").exists()]


def header(path) -> dict[str, str]:
    """The fields of an experiment's header."""
    docstring = path.read_text(encoding="utf-8").split('"""')[1]
    return dict(re.findall(rf"^({'|'.join(FIELDS)}): +(.+)$", docstring, flags=re.M))


def name(path) -> str:
    """A file's path as pytest shows it."""
    return path.relative_to(source.ROOT / "experiments").as_posix()


@pytest.mark.parametrize("path", FILES, ids=name)
def test_header(path):
    told = header(path)
    assert list(told) == list(FIELDS)
    module = ".".join(path.relative_to(source.ROOT).with_suffix("").parts)
    assert told["Run"].startswith(f"python -m {module}"), told["Run"]


@pytest.mark.parametrize("path", [path for path in EXPERIMENTS if path not in RECORDED], ids=name)
def test_what_was_not_measured_is_not_claimed(path):
    told = header(path)
    assert {told[field] for field in FIELDS[1:]} == {"not measured"}


def test_every_record_belongs_to_a_file():
    """A variant's record has its file's name and one of its own after it: ppo_own_robot_fixed."""
    stems, benchmarks = {path.stem for path in EXPERIMENTS}, {path.stem for path in FILES if path not in EXPERIMENTS}
    records = {path.stem: json.loads(path.read_text()) for path in RESULTS.glob("*.json")}
    for stem, result in records.items():
        if stem.startswith("benchmark_"):
            assert stem.removeprefix("benchmark_") in benchmarks
        else:
            file = result["experiment"].partition(".")[0]
            assert file in stems and (stem == file or stem.startswith(f"{file}_"))
    pictures = {f"beside_{name}" for name in publish.PICTURES}
    assert {path.stem.removesuffix("_still") for path in RESULTS.glob("*.png")} <= set(records) | pictures


@pytest.mark.parametrize("path", RECORDED, ids=name)
def test_header_agrees_with_the_record(path):
    result, told = json.loads((RESULTS / f"{path.stem}.json").read_text()), header(path)
    iqm, low, high = (float(x) for x in re.findall(r"(?:IQM|interval|to) (-?[\d.]+(?:e[+-]?\d+)?)", told["Expect"]))
    score = result["score"]
    assert min(low, high) <= iqm <= max(low, high)
    assert (iqm, low, high) == pytest.approx([score[k] for k in ("iqm", "low", "high")], rel=1e-3)
    assert f"over {score['runs']} seeds" in told["Expect"] and score["runs"] == len(score["per_member"])
    assert float(told["Minutes"]) == pytest.approx(result["seconds"]["total"] / 60, abs=0.051)
    assert told["Hardware"].startswith(result["versions"]["chip"])
    assert told["Run"].split()[:3] == result["command"].split()[:3]


@pytest.mark.parametrize("path", RECORDED, ids=name)
def test_the_record_is_of_the_defaults_that_the_file_has_today(path):
    result = json.loads((RESULTS / f"{path.stem}.json").read_text())
    module = importlib.import_module(f"experiments.{path.stem}")
    (kind,) = [
        x for x in vars(module).values()
        if isinstance(x, type) and issubclass(x, launch.Experiment) and x.__module__ == module.__name__
    ]  # fmt: skip
    today = json.loads(json.dumps(record.plain(record.describe(kind()))))
    assert result["experiment"] == today["experiment"]
    flags = {flag.replace("-", "_") for flag in re.findall(r"--(?:no-)?([\w.-]+)", result["command"])}
    then = {**result["config"]["static"], **result["config"]["floats"]}
    now = {**today["static"], **today["floats"]}
    derived = {"algo.lr_updates"}  # main computes it from total_steps, which is among the options
    stale = {field for field in now if field in then and then[field] != now[field]} - flags - derived
    if "total_steps" not in flags:
        asked = kind().total_steps or module.METHODS[kind().method].steps
        assert result["config"]["options"]["total_steps"] == asked
    assert not stale, f"recorded with other values of {', '.join(sorted(stale))}: run it again, or write 'not measured'"


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_every_field_is_a_flag_and_main_is_importable(path, capsys):
    module = importlib.import_module(f"experiments.{path.stem}")
    kinds = [
        x
        for x in vars(module).values()
        if dataclasses.is_dataclass(x) and getattr(x, "__module__", "") == module.__name__
    ]
    assert len(kinds) == 1, "one frozen dataclass per experiment"
    with pytest.raises(SystemExit) as stopped:
        launch.cli(module.main, kinds[0], ["--help"])
    assert stopped.value.code == 0
    shown = re.sub(r"\x1b\[[\d;]*m", "", capsys.readouterr().out)
    for field in dataclasses.fields(kinds[0]):
        assert f"--{field.name.replace('_', '-')}" in shown or f"--no-{field.name.replace('_', '-')}" in shown, (
            field.name
        )


@pytest.mark.parametrize("path", EXPERIMENTS, ids=name)
def test_it_says_which_methods_it_measures_and_with_which_flags(path):
    """One imported algorithm is the method; else `Method: iql; bc: --clone`, whose flags change the defaults."""
    module, text = importlib.import_module(f"experiments.{path.stem}"), path.read_text(encoding="utf-8")
    ways = publish.measures(text)
    assert ways, "several algorithms, and no line such as `Method:   iql; bc: --clone` in the header"
    assert [flags for _, flags in ways].count("") == 1 and len(set(ways)) == len(ways)
    (kind,) = [x for x in vars(module).values() if dataclasses.is_dataclass(x) and x.__module__ == module.__name__]
    known = _methods.methods()
    for method, flags in ways:
        assert method.split()[0] in known
        assert not flags or tyro.cli(kind, args=shlex.split(flags)) != kind()


def experiment(result):
    """The class of the experiment that a record is of."""
    stem, _, kind = result["experiment"].partition(".")
    return getattr(importlib.import_module(f"experiments.{stem}"), kind)


def of_the_defaults(result) -> bool:
    """Whether the data that a record is of are those of the experiment by default."""
    _, fields = publish.compared((publish.HERE / f"{result['experiment'].partition('.')[0]}.py").read_text())
    kind, told = experiment(result), result["config"]["static"]
    return all(told.get(field, getattr(kind(), field)) == getattr(kind(), field) for field in fields)


README = publish.README.read_text(encoding="utf-8")
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in re.search(r"<!-- results -->\n(.*?)<!-- /results -->", README, re.S)[1].splitlines()[2:]
]
CELLS = re.search(r"<!-- offline -->\n(.*?)<!-- /offline -->", README, re.S)[1].splitlines()[2:]


def test_the_readme_tables_are_todays():
    assert publish.with_tables(README) == README, "run `python -m experiments.publish`"


@pytest.mark.parametrize(
    "path", sorted(set(RESULTS.glob("*.json")) - set(RESULTS.glob("benchmark_*"))), ids=lambda path: path.stem
)
def test_a_record_is_told_once_in_the_readme(path):
    """In the table of methods; what has other data than the defaults only in the table that compares them."""
    result = json.loads(path.read_text())
    numbers = [result["score"][k] for k in ("iqm", "low", "high")]
    compared = re.findall(rf"\[([^\[]*)\]\(experiments/results/{path.name}\)", "\n".join(CELLS))
    for figures in compared:
        assert [float(x) for x in re.findall(r"-?\d[\d.]*(?:e[+-]?\d+)?", figures)] == pytest.approx(numbers, rel=1e-3)
    rows = [row for row in ROWS if row[3].startswith(f"[`{result['command']}`]")]
    assert len(compared) <= 1 and len(rows) == 1 - (len(compared) == 1 and not of_the_defaults(result))
    if not rows:
        return
    ((*_, told, minutes),) = rows
    what, score = told.rsplit(": ", 1)
    iqm, low, high, seeds, steps = (float(x.replace(",", "")) for x in re.findall(r"-?\d[\d,.]*(?:e[+-]?\d+)?", score))
    assert what == result["score"]["what"] and seeds == len(result["score"]["per_member"])
    assert (iqm, low, high) == pytest.approx(numbers, rel=1e-3)
    assert steps * (1e6 if " M " in score else 1) == pytest.approx(result["steps"], rel=0.05)
    assert float(minutes) == pytest.approx(result["seconds"]["total"] / 60, abs=0.051)


def test_every_method_is_told_in_the_readme_and_what_was_not_measured_says_so():
    algorithms = {path.stem for path in (source.PACKAGE / "algos").glob("*.py") if "\ndef make(" in path.read_text()}
    told = [re.match(r"(?:\[)?`(\w+)`", row[0])[1] for row in ROWS if row[0]]
    variants = {"dr_grpo", "dapo", "rloo", "reinforce_plus_plus", "gspo", "cispo", "clip_cov", "kl_cov"} | {
        "cal_ql", "sac_n", "arsq_factorised",
    }  # fmt: skip
    assert algorithms | variants <= set(told) <= set(_methods.methods())
    commands = [json.loads(path.read_text()).get("command") for path in RESULTS.glob("*.json")]
    for *_, command, result, minutes in ROWS:
        if re.sub(r"\[`(.*)`\].*", r"\1", command) not in commands:
            assert (result, minutes) == ("not measured yet", "")


def test_a_record_of_which_no_method_is_known_is_refused(tmp_path, monkeypatch):
    recorded = json.loads((RESULTS / "ppo_swingup.json").read_text())
    monkeypatch.setattr(publish, "RESULTS", tmp_path)
    monkeypatch.setattr(publish, "measures", lambda text: [("flow_policy", "--policy flow"), ("nothing", "")])
    (tmp_path / "ppo_swingup.json").write_text(json.dumps(recorded))
    with pytest.raises(ValueError, match="measures 'nothing'; allowed: "):
        publish.methods()
    monkeypatch.setattr(publish, "measures", lambda text: [("flow_policy", "--policy flow")])
    with pytest.raises(ValueError, match="give it a line Method:"):
        publish.methods()


def test_a_record_counts_for_the_method_whose_flags_its_command_has(tmp_path, monkeypatch):
    recorded = json.loads((RESULTS / "ppo_swingup.json").read_text()) | {"experiment": "grpo_countdown.Countdown"}
    recorded["command"] = "python -m experiments.grpo_countdown --seeds 2 --method dapo --name grpo_countdown_dapo"
    monkeypatch.setattr(publish, "RESULTS", tmp_path)
    (tmp_path / "grpo_countdown_dapo.json").write_text(json.dumps(recorded))
    measured = [(method.name, entry.name) for method, found in publish.methods() for entry in found if entry.result]
    assert measured == [("dapo", "grpo_countdown_dapo")]
    (tmp_path / "grpo_countdown_dapo_still.png").touch()
    pictures = [line for line in publish.families().splitlines() if "![" in line]
    assert len(pictures) == 1 and "grpo_countdown_dapo_still.png" in pictures[0] and pictures[0].startswith("| groups")


def test_a_run_whose_settings_changed_when_it_was_resumed_is_not_recorded(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "RESULTS", tmp_path)
    recorded = json.loads((RESULTS / "ppo_swingup.json").read_text())
    at = "/somewhere/bin/python -m experiments.ppo_swingup"
    recorded["config"] |= {"command": at, "resumed": [f"{at} --resume /somewhere/runs/x"], "changes": []}
    run = tmp_path / "run"
    run.mkdir()
    (run / "result.json").write_text(json.dumps(recorded))
    written = publish.record(run).read_text()
    assert "somewhere" not in written and json.loads(written)["config"]["resumed"] == 1
    recorded["config"]["changes"] = [{"field": "algo.lr", "was": 1e-3, "now": 1e-4, "chunk": 3}]
    (run / "result.json").write_text(json.dumps(recorded))
    with pytest.raises(ValueError, match="algo.lr changed when it was resumed"):
        publish.record(run)


def offline(name, **told):
    """A record as of `offline_point_maze`, with static fields and other facts that are told of it."""
    recorded = json.loads((RESULTS / "offline_point_maze.json").read_text())
    recorded["config"]["static"] |= told
    flags = " ".join(f"--{field} {value}" for field, value in told.items())
    return recorded | {"command": f"python -m experiments.offline_point_maze {flags} --name {name}"}


def test_other_data_than_the_defaults_are_told_only_where_data_are_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "RESULTS", tmp_path)
    for name, score, told in (
        ("offline_point_maze_stitching_bc", 0.25, dict(method="bc", data="stitching")),
        ("offline_point_maze_cql", 0.75, dict(method="cql")),
    ):
        result = offline(name, **told)
        result["score"] |= {"iqm": score, "low": score, "high": score}
        (tmp_path / f"{name}.json").write_text(json.dumps(result))
    assert "--data stitching" not in publish.table() and "--method cql --name" in publish.table()
    top, _, *lines = publish.across("offline").splitlines()
    titles = [cell.strip() for cell in top.strip("|").split("|")]
    rows = {line.strip("|").split("|")[0].strip(): [x.strip() for x in line.strip("|").split("|")] for line in lines}
    usual, other = (titles.index(f"[`offline_point_maze`](experiments/offline_point_maze.py)<br>{data}<br>mean return "
                                 "of 64 episodes") for data in ("medium", "stitching"))  # fmt: skip
    assert usual < other
    assert rows["`bc`"][other] == "[0.25 (0.25 to 0.25)](experiments/results/offline_point_maze_stitching_bc.json)"
    assert rows["`cql`"][usual].startswith("[0.75 (0.75 to 0.75)]")
    assert (rows["`bc`"][usual], rows["`cql`"][other], set(rows["`iql`"][1:])) == ("-", "-", {"-"})
    assert {f"`{method}`" for method in _offline.METHODS} == set(rows)


def test_claims_are_told_beside_what_the_records_show(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "RESULTS", tmp_path)
    for method, iqm in (("a2pr", 0.75), ("td3_bc", 0.5), ("bc", 0.25)):
        result = offline(f"mixed_{method}", method=method, data="mixed")
        result["score"] |= {"iqm": iqm, "low": iqm - 0.125, "high": iqm + 0.125}
        (tmp_path / f"mixed_{method}.json").write_text(json.dumps(result))
    result = offline("lipmbrl", method="lipmbrl", data="medium") | {"last": {"critic/steepness": 2.5}}
    (tmp_path / "lipmbrl.json").write_text(json.dumps(result))
    seen = {row.split(" | ")[0]: row.split(" | ")[3] for row in _claims.table(publish.records()).splitlines()[2:]}
    assert seen["| `a2pr`"].replace("experiments/results/", "") == (
        "`a2pr`: [0.75 (0.625 to 0.875)](mixed_a2pr.json); `td3_bc`: [0.5 (0.375 to 0.625)](mixed_td3_bc.json), not told apart; "
        "`bc`: [0.25 (0.125 to 0.375)](mixed_bc.json), worse |"
    )
    assert seen["| `prdc`"] == "`prdc`: not measured yet; `td3_bc`: not measured yet |"
    assert "json), steepness 2.5; `mopo`: not measured yet" in seen["| `lipmbrl`"]
    assert _claims.compared({"low": 1.0, "high": 2.0}, {"low": 2.5, "high": 3.0}) == "better"


def test_claims_compare_runs_that_experiments_have():
    """Fields that an arm names are fields of the experiment, and can be what it says; papers are named in the source."""
    papers = set(
        re.findall(r"arXiv (\d{4}\.\d{5})", "\n".join(path.read_text() for path in source.PACKAGE.rglob("*.py")))
    )
    assert {claim.paper for claim in _claims.CLAIMS} <= papers
    for trial in (trial for claim in _claims.CLAIMS for trial in claim.trials):
        module = importlib.import_module(f"experiments.{trial.experiment}")
        (kind,) = [x for x in vars(module).values() if dataclasses.is_dataclass(x) and x.__module__ == module.__name__]
        for arm in trial.arms:
            assert set(arm.fields) <= {field.name for field in dataclasses.fields(kind) if field.metadata.get("static")}
            flag = lambda name, x: f"--{'' if x else 'no-'}{name}" if isinstance(x, bool) else f"--{name} {x}"
            flags = shlex.split(" ".join(flag(name, x) for name, x in arm.fields.items()))
            assert dataclasses.asdict(tyro.cli(kind, args=flags)).items() >= arm.fields.items()


def test_records_keep_some_points_of_a_curve_which_are_drawn_together(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "RESULTS", tmp_path)
    for name, method in (("ppo_swingup", None), ("off_policy_swingup", "sac"), ("off_policy_swingup_td3", "td3")):
        run = tmp_path / f"run_{name}"
        run.mkdir()
        rows = [
            {"chunk": i, "steps": 10 * (i + 1), "time/seconds": 0.5 * i + 1, "episode/return": [None, 2.0 * i, 4.0 * i]}
            | {"critic/rank": [6.0, 7.0, 8.0]}
            for i in range(200)
        ]
        (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        result = json.loads((source.ROOT / "experiments" / "results" / "ppo_swingup.json").read_text())
        result["config"]["options"]["name"] = name
        if method:
            flags = f" --method {method} --name {name}" if method != "sac" else ""
            result |= {"experiment": "off_policy_swingup.Swingup"}
            result |= {"command": f"python -m experiments.off_policy_swingup{flags}"}
        (run / "result.json").write_text(json.dumps(result))
        assert (publish.picture("swingup") == "Not measured yet.") == (name != "off_policy_swingup_td3")
        told = json.loads(publish.record(run).read_text())
        curve = told["curve"]
        assert {len(x) for x in curve.values()} == {publish.POINTS} and told["last"] == {"critic/rank": 7.0}
        assert (curve["steps"][0], curve["steps"][-1], curve["seconds"][-1]) == (10.0, 2000.0, 100.5)
        assert (curve["mean"][-1], curve["low"][-1], curve["high"][-1]) == (597.0, 398.0, 796.0)
    drawn = publish.curves("swingup")
    assert set(drawn) == {"ppo, 4 seeds", "sac, 4 seeds", "td3, 4 seeds"}
    publish.draw(drawn, tmp_path / "beside.png")
    assert (tmp_path / "beside.png").read_bytes().startswith(b"\x89PNG")


def test_a_column_is_of_fields_that_have_defaults():
    source = '"""A title.\n\nTable:    offline, by task, data\n"""\n    task: str = static("a")\n'
    table, fields = publish.compared(source.replace('static("a")', 'static("a")  # b\n    data: X = static("c")'))
    assert (table, fields) == ("offline", {"task": "a", "data": "c"})
    with pytest.raises(ValueError, match="by data; allowed"):
        publish.compared(source)
    assert publish.compared('"""Nothing."""') == ("", {})


def test_a_list_of_methods_may_go_on_in_the_next_line():
    assert publish.measures("Method:   iql; bc,\n          fql: --method NAME\nHardware: none") == [
        ("iql", ""), ("bc", "--method bc"), ("fql", "--method fql")
    ]  # fmt: skip


COMPARED = [path for path in EXPERIMENTS if publish.compared(path.read_text(encoding="utf-8"))[0] == "offline"]
OLD_NAMES = {"iql": "implicit.", "fql": "flow.", "bc": "cloning."}  # of a Config in a record, where it was a field


@pytest.mark.parametrize("path", COMPARED, ids=name)
def test_methods_are_the_same_in_all_experiments_that_compare_them(path):
    assert {method for method, _ in publish.measures(path.read_text(encoding="utf-8"))} == set(_offline.METHODS)


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(RESULTS.glob("*.json")) for file in COMPARED if path.stem.startswith(file.stem)],
    ids=lambda path: path.stem,
)
def test_a_record_is_of_the_recipe_that_the_method_has_today(path):
    """The Config is no field of these experiments, so that the test of their defaults does not see it."""
    result = json.loads(path.read_text())
    told, kind = result["config"]["static"] | result["config"]["floats"], experiment(result)
    _, columns = publish.compared((publish.HERE / f"{kind.__module__.rpartition('.')[2]}.py").read_text())
    data = {field: told[field] for field in columns if field in told}
    exp = kind(method=told["method"], total_steps=result["config"]["options"]["total_steps"], **data)
    recipe = importlib.import_module(kind.__module__).recipe(exp)
    today = json.loads(json.dumps(record.plain(record.describe(recipe.cfg))))
    prefixes = ("config.", OLD_NAMES.get(told["method"], "config."))
    for field, value in (today["static"] | today["floats"]).items():
        (then,) = [told[prefix + field] for prefix in dict.fromkeys(prefixes) if prefix + field in told]
        assert then == value, field
