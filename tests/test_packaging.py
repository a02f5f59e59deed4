"""The built wheel: what is in it, that it works where no checkout is at hand, and what it says of itself."""

import re
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

import jaxrl_gen
from jaxrl_gen import __main__ as installed
from tests.house import source

TRAIN = """
import jax, numpy as np
import jaxrl_gen
from jaxrl_gen import loops
from jaxrl_gen.algos import ppo
from jaxrl_gen.envs import probe, wrap

cfg = ppo.Config(lr=1e-2, epochs=2, minibatches=2, actor_hidden=(8,), critic_hidden=(8,))
loop = loops.on_policy(ppo.make, wrap.fresh(probe.discrete_action(), lanes=32), steps=4, iterations=8)
carry = jax.jit(loop.init)(jaxrl_gen.types.strong(cfg), jax.random.key(0))
returns = []
loops.run(jax.jit(loop.chunk), jaxrl_gen.types.strong(cfg), carry, chunks=8,
          callbacks=[lambda i, carry, metrics: returns.append(float(metrics["episode/return"]))])
assert np.isfinite(returns).all() and returns[-1] > returns[0], returns
print(jaxrl_gen.__file__)
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from a copy, so that the checkout stays as it was."""
    copy = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(source.ROOT / name, copy)
    shutil.copytree(source.PACKAGE, copy / "jaxrl_gen", ignore=shutil.ignore_patterns("__pycache__"))
    built = tmp_path_factory.mktemp("wheel")
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", built, copy]
    subprocess.run([sys.executable, *map(str, build)], check=True)
    (found,) = built.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def bare_python(wheel, tmp_path_factory):
    """The interpreter of a new environment: the wheel is installed there, its dependencies are seen from here."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin" / "python"
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = folder / "lib" / version / "site-packages"
    install = ["-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel]
    subprocess.run([sys.executable, *map(str, install)], check=True)
    # A path added by a .pth file is searched, but the .pth files in it are not read: no editable install leaks through.
    here = dict.fromkeys([sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()])
    (packages / "dependencies.pth").write_text("".join(f"{path}\n" for path in here))
    return python


def run(python, *arguments, cwd):
    return subprocess.run([str(python), *arguments], cwd=cwd, capture_output=True, text=True)


def test_the_wheel_holds_the_package_and_nothing_else(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    roots = {name.split("/")[0] for name in names}
    assert roots == {"jaxrl_gen", f"jaxrl_gen-{jaxrl_gen.__version__}.dist-info"}
    data = {path for kind in ("*.py", "*.html", "*.xml") for path in source.PACKAGE.rglob(kind)}
    assert {path.relative_to(source.ROOT).as_posix() for path in data} == {
        n for n in names if n.startswith("jaxrl_gen/")
    }
    assert any(name.endswith("LICENSE") for name in names)


def test_the_wheel_trains_a_probe_where_nothing_of_the_checkout_is(bare_python, tmp_path):
    finished = run(bare_python, "-c", TRAIN, cwd=tmp_path)
    assert finished.returncode == 0, finished.stderr
    assert Path(finished.stdout.strip().splitlines()[-1]).is_relative_to(bare_python.parents[1])


def test_what_the_wheel_says_of_itself(bare_python, tmp_path):
    finished = run(bare_python, "-m", "jaxrl_gen", cwd=tmp_path)
    assert finished.returncode == 0, finished.stdout + finished.stderr
    lines = finished.stdout.splitlines()
    assert lines[0].startswith(f"jaxrl_gen {jaxrl_gen.__version__}")
    said = {line.split()[0]: line for line in lines if line.startswith("    ")}
    assert metadata.version("jax") in said["jax"] and ">=0.10.2,<0.13" in said["jax"].replace(
        "<0.13,>=0.10.2", ">=0.10.2,<0.13"
    )
    assert {"flax", "distrax", "mujoco-mjx", "gymnax", "ogbench", "devices", "matmul", "compilation", "OpenGL"} <= set(
        said
    )
    assert "x cpu" in said["devices"]
    assert "tested versions" in lines[-1]


def test_a_missing_package_is_named_and_nothing_fails(monkeypatch, capsys):
    monkeypatch.setattr(
        installed, "requirements", lambda: (["no-such-package>=1", "jax>=99", "numpy>=1"], {"test": ["pytest"]})
    )
    assert installed.main() == 1
    out = capsys.readouterr().out
    assert re.search(r"! no-such-package +missing +pip install 'no-such-package>=1'", out)
    assert re.search(r"! jax .*outside of what was tested", out)
    assert re.search(r"  numpy +\S+ +>=1\n", out)
    assert "See the lines marked with !" in out


def test_mujoco_and_mjx_must_be_the_same_release(monkeypatch):
    monkeypatch.setattr(metadata, "version", {"mujoco": "3.9.0", "mujoco-mjx": "3.10.0"}.__getitem__)
    lines, well = installed.packages(["mujoco>=3.6,<3.11", "mujoco-mjx>=3.6,<3.11"])
    assert not well and lines[-1] == "! mujoco and mujoco-mjx must be the same release"


def test_an_extra_that_is_missing_says_how_to_install_it():
    assert "pip install 'jaxrl_gen[playground]'" in installed.extra("playground", ["no-such-package>=1"])
    assert "present" in installed.extra("test", ["pytest>=1"])
    extras = {"a": ["jaxrl_gen[b, c]", "x>=1"], "b": ["y"], "c": ["jaxrl_gen[b]", "z"]}
    assert installed.expand("a", extras) == ["y", "z", "x>=1"]


def test_opengl_that_was_chosen_and_is_missing(monkeypatch):
    monkeypatch.setattr(installed.ctypes.util, "find_library", lambda name: None)
    monkeypatch.setenv("MUJOCO_GL", "osmesa")
    assert "apt-get install libosmesa6" in installed.opengl()
    monkeypatch.setenv("MUJOCO_GL", "metal")
    assert "allowed: egl, osmesa, glfw" in installed.opengl()
    monkeypatch.delenv("MUJOCO_GL")
    assert "apt-get install libegl1" in installed.opengl()


DISTRIBUTIONS = {
    "orbax": "orbax-checkpoint",
    "tensorflow_datasets": "tensorflow-datasets",
    "mujoco_playground": "playground",
}
DISTRIBUTIONS["IPython"] = "ipykernel"  # which brings it


def test_every_import_is_declared():
    default, extras = installed.requirements()
    declared = {re.match(r"[\w.-]+", line)[0] for line in [*default, *(x for lines in extras.values() for x in lines)]}
    for module in source.modules():
        for name, line in source.imports(source.tree(source.PACKAGE / module)):
            root = name.split(".")[0]
            if root not in sys.stdlib_module_names and root != "jaxrl_gen":
                named = DISTRIBUTIONS.get(root, root)
                assert named in declared, f"{module}:{line}: {named} is not declared in pyproject.toml"


def test_every_requirement_has_a_range():
    default, extras = installed.requirements()
    by_jax = {"cuda", "cuda13", "tpu"}
    lines = default + [
        x for name, lines in extras.items() if name not in by_jax for x in lines if "jaxrl_gen[" not in x
    ]
    for line in lines:
        assert ">=" in line and ("<" in line or line.startswith("setuptools")), f"{line}: no tested range"
