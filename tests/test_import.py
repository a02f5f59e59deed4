"""Importing the package loads nothing that is heavy, optional or fragile."""

import json
import subprocess
import sys

import pytest

SIMULATORS = {"mujoco", "mujoco_playground", "brax", "gymnax", "gymnasium", "warp"}
TOOLS = {"matplotlib", "jinja2", "rich", "tyro", "imageio", "orbax", "tensorboardX", "IPython", "scipy.stats"}
FRAMEWORKS = {"distrax", "tensorflow_probability", "tensorflow_datasets", "tensorflow", "torch", "grain"}


def loaded_by(statement: str) -> set[str]:
    """The modules that a new interpreter has loaded after a statement."""
    program = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(json.loads(finished.stdout))


def test_the_package_alone_loads_not_even_jax():
    loaded = loaded_by("import jaxrl_gen")
    assert "jaxrl_gen" in loaded
    assert not loaded & (SIMULATORS | TOOLS | FRAMEWORKS | {"jax", "flax", "optax", "chex", "numpy"})


@pytest.mark.parametrize(
    ("part", "without"),
    [
        ("types", SIMULATORS | TOOLS | FRAMEWORKS | {"flax", "optax", "chex"}),
        (
            "losses.td, jaxrl_gen.losses.policy, jaxrl_gen.normalize",
            SIMULATORS | TOOLS | FRAMEWORKS | {"flax", "optax"},
        ),
        ("distributions, jaxrl_gen.deploy, jaxrl_gen.envs.probe", SIMULATORS | TOOLS | FRAMEWORKS | {"flax", "optax"}),
    ],
)
def test_the_mathematics_loads_without_networks_and_simulators(part, without):
    assert not loaded_by(f"import jaxrl_gen.{part}") & without


def test_the_whole_toolkit_loads_without_simulators_and_tools():
    statement = "import jaxrl_gen\nfor name in jaxrl_gen.__all__: getattr(jaxrl_gen, name)\nimport jaxrl_gen.algos.ppo"
    loaded = loaded_by(statement)
    assert {"jaxrl_gen.loops", "jaxrl_gen.report", "jaxrl_gen.checkpoint"} <= loaded
    # Flax itself loads rich and parts of Orbax.
    assert not loaded & ((SIMULATORS | TOOLS | FRAMEWORKS) - {"rich", "orbax"})


def test_public_names():
    import jaxrl_gen
    from jaxrl_gen import types

    assert jaxrl_gen.Env is types.Env and jaxrl_gen.static is types.static
    assert set(dir(jaxrl_gen)) == set(jaxrl_gen.__all__)
    with pytest.raises(AttributeError, match="module 'jaxrl_gen' has no attribute 'no_such_name'"):
        jaxrl_gen.no_such_name
