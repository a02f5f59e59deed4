"""The contract of latent actions."""

from tests.contract.checks import *  # noqa: F403
