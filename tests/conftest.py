"""Settings of all tests: on the CPU unless the caller says otherwise, and the same hypothesis examples on every run.

Programs are compiled without LLVM's optimisations and, where jaxlib knows the flag, with XLA's older emitters, each of
which halves the time of the suite: most tests compile a small program and run it once. XLA_FLAGS="" compiles as users
do; CI runs the core's tests so, on its newest jax.
"""

import importlib.metadata
import os

quick = ["--xla_backend_optimization_level=0"]
if importlib.metadata.version("jaxlib").startswith("0.10."):  # an unknown flag ends the process
    quick.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", " ".join(quick))

from hypothesis import settings  # noqa: E402

settings.register_profile("house", deadline=None, derandomize=True, max_examples=20)
settings.load_profile("house")


def pytest_collection_modifyitems(items):
    """The longest file first: what begins last keeps one worker busy while the others wait.

    The order of files holds with `--no-loadscope-reorder` alone; else those with most tests come first.
    """
    items.sort(key=lambda item: "test_notebooks" not in item.nodeid)
