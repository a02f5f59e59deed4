"""Headers of experiments say what was measured, with which command, on what; and nothing else."""

import dataclasses
import importlib
import json
import re

import pytest

from experiments import publish
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
    for record, result in records.items():
        if record.startswith("benchmark_"):
            assert record.removeprefix("benchmark_") in benchmarks
        else:
            file = result["experiment"].partition(".")[0]
            assert file in stems and (record == file or record.startswith(f"{file}_"))
    assert {path.stem.removesuffix("_still") for path in RESULTS.glob("*.png")} <= set(records)


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
        assert result["config"]["options"]["total_steps"] == kind().total_steps
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


def test_the_readme_table_is_the_recorded_one():
    text = publish.README.read_text(encoding="utf-8")
    assert publish.with_table(text) == text
    for path in RECORDED:
        assert f"python -m experiments.{path.stem}" in text
