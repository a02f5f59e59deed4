"""The contract of TD critics that learn from interaction."""

from tests.contract import td_cases
from tests.contract.checks import *  # noqa: F403

CASES = [case for case in td_cases.CASES if case.read is None]
