"""What README.md tells people to type works when typed.

Every ```python block runs by itself in a new interpreter, and every ```bash block by itself in a new shell, both with
FAST=1 in an empty folder; but for blocks under a comment: `<!-- train -->` and `<!-- test -->` are the main job and CI,
and of a block under `<!-- shown -->`, which needs minutes or other machines, the flags of each experiment are read.
"""

import dataclasses
import importlib
import operator
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from jaxrl_gen import __main__ as installed
from tests.house import source

TEXT = (source.ROOT / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(?:<!-- (train|test|shown) -->\n+)?^```(python|bash)\n(.*?)^```$", re.M | re.S)
BLOCKS = [(mark, language, code) for mark, language, code in BLOCK.findall(TEXT)]
RUN = [(language, code) for mark, language, code in BLOCKS if not mark]


@pytest.mark.parametrize(("language", "code"), RUN, ids=[f"{language}{i}" for i, (language, _) in enumerate(RUN)])
def test_block_runs(language, code, tmp_path):
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "FAST": "1", "PYTHONPATH": str(source.ROOT), "PATH": path}
    command = [sys.executable, "-c", code] if language == "python" else ["bash", "-euo", "pipefail", "-c", code]
    environment.pop("XLA_FLAGS", None)  # compiled as users compile it
    finished = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, f"{code}\n{finished.stdout[-2000:]}\n{finished.stderr[-4000:]}"


COMMANDS = re.findall(r"^[^#\n]*python -m experiments\.(\w+)([^#\n']*)", "\n".join(code for *_, code in BLOCKS), re.M)


@pytest.mark.parametrize(("name", "flags"), COMMANDS)
def test_flags_of_experiments_are_understood(name, flags):
    import tyro

    module = importlib.import_module(f"experiments.{name}")
    (kind,) = [x for x in vars(module).values() if dataclasses.is_dataclass(x) and x.__module__ == module.__name__]
    read = tyro.cli(kind, args=shlex.split(flags))
    given = [flag.removeprefix("--no-").removeprefix("--") for flag in re.findall(r"--[\w.-]+", flags)]
    for field in given:
        default, value = (operator.attrgetter(field.replace("-", "_"))(x) for x in (kind(), read))
        assert value != default, f"--{field} says what is so anyway"


@pytest.mark.parametrize("mark", ["train", "test"])
def test_the_main_job_and_the_tests_are_one_line_each(mark):
    ((line,),) = [code.strip().splitlines() for found, language, code in BLOCKS if found == mark]
    assert line.startswith("python3 -m venv .venv && .venv/bin/pip install ")


def test_blocks_were_found():
    assert len(RUN) >= 2 and len(BLOCKS) == len(re.findall(r"^```(?:python|bash)$", TEXT, re.M))


def test_extras_modules_and_files_that_it_names_exist():
    _, extras = installed.requirements()
    for named in re.findall(r"(?:jaxrl_gen|\.)\[([\w,-]+)\]", TEXT):
        assert set(named.split(",")) <= set(extras), named
    for module in re.findall(r"-m (experiments[\w.]*)", TEXT):
        assert (source.ROOT / f"{module.replace('.', '/')}.py").is_file(), module
    for link in re.findall(r"\]\(([^)#:]+)\)", TEXT):
        assert (source.ROOT / link).exists(), link
