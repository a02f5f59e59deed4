"""The contract of group-relative updates."""

from tests.contract.checks import *  # noqa: F403
