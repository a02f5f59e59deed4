"""Settings of all tests: on the CPU unless the caller says otherwise, and the same hypothesis examples on every run."""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")

from hypothesis import settings  # noqa: E402

settings.register_profile("house", deadline=None, derandomize=True, max_examples=20)
settings.load_profile("house")
