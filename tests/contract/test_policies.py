"""The contract of PPO in all its kinds."""

from tests.contract.checks import *  # noqa: F403
