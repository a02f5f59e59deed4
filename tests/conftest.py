"""Settings of all tests: on the CPU unless the caller says otherwise, and the same hypothesis examples on every run.

Programs are compiled without LLVM's optimisations, which halves the time of the suite: most tests compile a small
program and run it once. XLA_FLAGS="" gives the level that users have; CI runs the core's tests so, on its newest jax.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")

from hypothesis import settings  # noqa: E402

settings.register_profile("house", deadline=None, derandomize=True, max_examples=20)
settings.load_profile("house")


def pytest_collection_modifyitems(items):
    """The longest file first: what begins last keeps one worker busy while the others wait."""
    items.sort(key=lambda item: "test_notebooks" not in item.nodeid)
