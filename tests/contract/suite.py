"""All cases of all families, for the suites that go over them.

from tests.contract.suite import EVERY_CASE

@EVERY_CASE
def test_something(case):
    loop = case.loop()
"""

import pytest

from tests.contract import cases, denoise_cases, dice_cases, group_cases, latent_cases, model_cases, td_cases

FAMILIES = (cases, td_cases, dice_cases, model_cases, denoise_cases, latent_cases, group_cases)
CASES = [case for family in FAMILIES for case in family.CASES]
EVERY_CASE = pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
