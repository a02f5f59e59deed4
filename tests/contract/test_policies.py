"""The contract of PPO in all its kinds."""

from tests.contract import cases
from tests.contract.checks import *  # noqa: F403

CASES = cases.CASES
