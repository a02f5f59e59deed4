"""The contract of denoisers."""

from tests.contract import denoise_cases
from tests.contract.checks import *  # noqa: F403

CASES = denoise_cases.CASES
