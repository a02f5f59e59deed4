"""Who may import whom, read off the source: the house's arrows, and the one place of each heavy library."""

import ast
import sys

import pytest

from tests.house import source

BASE = {"losses", "nets", "distributions", "samplers", "normalize", "replay"}
TOP = {
    "loops", "callbacks", "evaluate", "checkpoint", "conclude", "deploy", "export", "guards", "launch", "members",
    "record", "render", "report", "runs", "stage", "sweep",
}  # fmt: skip
ALLOWED = {
    "types": set(),
    **{part: {"types"} for part in BASE},
    "samplers": {"types", "losses"},  # a sampler goes through the noise process that its denoiser was taught on
    "algos": {"types"} | BASE,
    "envs": {"types"},
    "data": {"types"},
    **{part: {"types"} | BASE | TOP for part in TOP},
    "__main__": {"types"} | BASE | TOP,
    "__init__": {"types"} | BASE | TOP | {"algos", "envs", "data"},
}

# A library that is slow to load, fragile or optional, and the part of the package that may name it. A part is a file or
# a folder; only one file in it may.
ONE_PLACE = {
    "mujoco": "envs/mjx.py",
    "mujoco_playground": "envs/playground.py",
    "brax": "envs/brax.py",
    "gymnax": "envs/gymnax.py",
    "gymnasium": "envs",
    "orbax": "checkpoint.py",
    "distrax": "distributions.py",
    "tensorflow_datasets": "data",
    "matplotlib": "report.py",
    "jinja2": "report.py",
    "safetensors": "nets/transformer.py",
    "imageio": "render.py",
    "tensorboardX": "callbacks.py",
}
NEVER = {"tensorflow", "torch", "haiku", "rlax", "rejax", "rliable", "tensorflow_probability", "experiments", "tests"}


def part_of(module: str) -> str:
    """The part of the house a module belongs to: `algos/ppo.py` -> `algos`, `loops.py` -> `loops`."""
    return module.split("/")[0].removesuffix(".py")


@pytest.mark.parametrize("module", source.modules())
def test_arrows_of_the_house(module):
    part = part_of(module)
    assert part in ALLOWED, f"{module}: no room in the house; say in tests/house/test_imports.py what it may import"
    for name, line in source.imports(source.tree(source.PACKAGE / module)):
        if name.split(".")[0] == "jaxrl_gen" and name != "jaxrl_gen":
            used = name.split(".")[1]
            wrapping = part in TOP and name.startswith("jaxrl_gen.envs.wrap")  # pure functions on any Env, no simulator
            if used == "__version__" or wrapping:
                continue
            assert used == part or used in ALLOWED[part], f"{module}:{line} imports jaxrl_gen.{used}"


@pytest.mark.parametrize("module", [m for m in source.modules() if part_of(m) == "losses"])
def test_losses_import_jax_chex_and_types_alone(module):
    for name, line in source.imports(source.tree(source.PACKAGE / module)):
        root = name.split(".")[0]
        assert root in {"jax", "chex", "jaxrl_gen"} | sys.stdlib_module_names, f"{module}:{line} imports {root}"


def test_each_heavy_library_in_its_one_place():
    places = {}
    for module in source.modules():
        for name, line in source.imports(source.tree(source.PACKAGE / module)):
            root = name.split(".")[0]
            assert root not in NEVER, f"{module}:{line} imports {root}"
            if root in ONE_PLACE:
                place = ONE_PLACE[root]
                assert module == place or module.startswith(place + "/"), f"{module}:{line}: {root} belongs in {place}"
                places.setdefault(root, set()).add(module)
    assert all(len(found) == 1 for found in places.values()), places
    assert {"distrax", "mujoco_playground"} <= set(places)  # the test reads what it thinks it reads


def test_flax_stays_inside_nets():
    for module in source.modules():
        for name, line in source.imports(source.tree(source.PACKAGE / module)):
            assert name.split(".")[0] != "flax" or part_of(module) == "nets", f"{module}:{line}: flax belongs in nets"


@pytest.mark.parametrize("library", ["distrax", "matplotlib", "jinja2", "imageio", "tensorboardX", "rich", "orbax"])
def test_heavy_libraries_are_imported_inside_functions(library):
    for module in source.modules():
        parsed = source.tree(source.PACKAGE / module)
        top = ast.Module([node for node in parsed.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        assert library not in {name.split(".")[0] for name, _ in source.imports(top)}, f"{module}: at module level"
