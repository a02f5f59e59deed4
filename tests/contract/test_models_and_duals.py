"""The contract of models of dynamics, and of methods of two stages."""

from tests.contract import dice_cases, model_cases
from tests.contract.checks import *  # noqa: F403

CASES = dice_cases.CASES + model_cases.CASES
