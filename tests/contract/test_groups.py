"""The contract of group-relative updates."""

from tests.contract import group_cases
from tests.contract.checks import *  # noqa: F403

CASES = group_cases.CASES
