"""The contract of denoisers."""

from tests.contract.checks import *  # noqa: F403
