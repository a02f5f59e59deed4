"""The contract of latent actions."""

from tests.contract import latent_cases
from tests.contract.checks import *  # noqa: F403

CASES = latent_cases.CASES
