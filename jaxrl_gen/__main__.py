"""What is installed: `python -m jaxrl_gen` prints versions, extras, devices, and what is missing."""

import ctypes.util
import os
import platform
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import jaxrl_gen

NAME = "jaxrl_gen"
USERS_EXTRAS = ("playground", "gymnax", "ogbench", "metaworld", "tensorboard", "notebooks", "bench", "test")
OPENGL = {"egl": ("EGL", "libegl1"), "osmesa": ("OSMesa", "libosmesa6"), "glfw": ("GL", "libgl1")}


def main() -> int:
    """Print what is installed.

    Returns:
      0 if every package of the default install is there and within its tested range, else 1.
    """
    print(f"{NAME} {jaxrl_gen.__version__}  {Path(jaxrl_gen.__file__).parent}")
    print(f"Python {platform.python_version()}  {platform.platform()}  {os.cpu_count()} cores\n")
    default, extras = requirements()
    lines, well = packages(default)
    for title, section in {
        "Packages, and the versions they were tested with": lines,
        "Extras": [extra(name, expand(name, extras)) for name in USERS_EXTRAS if name in extras],
        "JAX": accelerator(),
        "Pictures of simulations": [opengl()],
    }.items():
        print(title, *section, "", sep="\n  ")
    print("All of the default install is there, in tested versions." if well else "See the lines marked with !")
    return 0 if well else 1


def requirements() -> tuple[list[str], dict[str, list[str]]]:
    """What the package requires: by default, and for each extra.

    Returns:
      (requirements, {extra: requirements}) as requirement strings without markers; empty where nothing says so.
    """
    pyproject = Path(jaxrl_gen.__file__).parents[1] / "pyproject.toml"
    if pyproject.is_file():  # a checkout, installed or not
        project = tomllib.loads(pyproject.read_text(encoding="utf-8")).get("project", {})
        if project.get("name") == NAME:
            return project["dependencies"], project["optional-dependencies"]
    default, extras = [], {}
    try:
        lines = metadata.requires(NAME) or []
    except metadata.PackageNotFoundError:
        lines = []
    for line in lines:
        requirement, _, marker = (part.strip() for part in line.partition(";"))
        named = re.search(r"""extra\s*==\s*['"]([^'"]+)['"]""", marker)
        (extras.setdefault(named[1], []) if named else default).append(requirement)
    return default, extras


def packages(default: list[str]) -> tuple[list[str], bool]:
    """A line for every requirement of the default install, and whether all is well."""
    if not default:
        return ["! the package's own metadata is missing: pip install ."], False
    found = [status(requirement) for requirement in default]
    lines = [f"{'  ' if well else '! '}{name:22} {version:12} {said}" for name, version, said, well in found]
    well = all(row[3] for row in found)
    versions = {row[0]: row[1] for row in found}
    if versions.get("mujoco") != versions.get("mujoco-mjx"):
        lines.append("! mujoco and mujoco-mjx must be the same release")
        well = False
    return lines, well


def status(requirement: str) -> tuple[str, str, str, bool]:
    """(name, installed version or "missing", its tested range, whether it lies in it) of one requirement."""
    name, wanted = re.fullmatch(r"([\w.-]+)(?:\[[^\]]*\])?\s*(.*)", requirement).groups()
    try:
        version = metadata.version(name)
    except metadata.PackageNotFoundError:
        return name, "missing", f"pip install '{requirement}'", False
    try:
        from packaging.specifiers import SpecifierSet

        well = SpecifierSet(wanted).contains(version, prereleases=True)
    except ImportError:
        return name, version, f"{wanted} (not compared: pip install packaging)", True
    return name, version, wanted if well else f"{wanted}  outside of what was tested", well


def expand(name: str, extras: dict[str, list[str]]) -> list[str]:
    """The requirements of an extra, those of further extras that it names included."""
    found = []
    for requirement in extras.get(name, []):
        inner = re.fullmatch(rf"{NAME}\[(.*)\]", requirement)
        nested = [x for other in inner[1].split(",") for x in expand(other.strip(), extras)] if inner else [requirement]
        found += nested
    return list(dict.fromkeys(found))


def extra(name: str, wanted: list[str]) -> str:
    """One line on an extra: the versions that are there, or how to install it."""
    rows = [status(requirement) for requirement in wanted]
    missing = [row[0] for row in rows if row[1] == "missing"]
    if missing:
        return f"  {name:14} missing    pip install '{NAME}[{name}]'"
    untested = [row for row in rows if not row[3]]
    there = ", ".join(f"{row[0]} {row[1]}" for row in (untested or rows)[:4]) + ", ..." * (len(untested or rows) > 4)
    return f"{'! ' if untested else '  '}{name:14} {'untested' if untested else 'present':10} {there}"


def accelerator() -> list[str]:
    """Lines on JAX: its devices, matmul precision and compilation cache; what fails is said, never raised."""
    try:
        from jaxrl_gen import launch, record

        launch.prepare_jax()
        import jax

        devices = jax.devices()
        cache = jax.config.jax_compilation_cache_dir
        return [
            f"  devices             {len(devices)} x {devices[0].platform} ({record.chip()})",
            f"  matmul precision    {jax.config.jax_default_matmul_precision or 'default of the backend'}",
            f"  compilation cache   {cache or 'off'}{_contents(cache)}",
        ]
    except Exception as error:  # a broken driver raises anything; this page is where one looks then
        return [f"! JAX does not start: {type(error).__name__}: {str(error).splitlines()[0]}"]


def _contents(cache: str | None) -> str:
    folder = Path(cache or "")
    if not cache or not folder.is_dir():
        return ""
    sizes = [path.stat().st_size for path in folder.iterdir() if path.is_file()]
    return f"  ({len(sizes)} files, {sum(sizes) / 1e6:.0f} MB)"


def opengl() -> str:
    """One line on how MuJoCo can draw here without a screen."""
    chosen = os.environ.get("MUJOCO_GL")
    found = [name for name, (library, _) in OPENGL.items() if ctypes.util.find_library(library)]
    headless = [name for name in found if name != "glfw"]
    if chosen:
        there = "its library is there" if chosen in found else f"its library is missing: {_how_to(chosen)}"
        return f"{'  ' if chosen in found else '! '}OpenGL              MUJOCO_GL={chosen}; {there}"
    if headless:
        return f"  OpenGL              {', '.join(headless)}"
    return "  OpenGL              none without a screen; for videos: apt-get install libegl1 (or libosmesa6)"


def _how_to(chosen: str) -> str:
    return f"apt-get install {OPENGL[chosen][1]}" if chosen in OPENGL else f"allowed: {', '.join(OPENGL)}"


if __name__ == "__main__":
    sys.exit(main())
