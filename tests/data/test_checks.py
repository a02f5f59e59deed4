"""Bounds of values against returns that are summed by hand; the other checks are tested with the files they are for."""

import warnings

import numpy as np
import pytest

from jaxrl_gen.data import checks
from tests.data.recorded import dataset, episodes

GAMMA = 0.9


def returns(lived, gamma):
    """The discounted return from each row to its episode's end, in float64."""
    rewards = [np.asarray(episode["reward"], np.float64) for episode in lived]
    return np.array([np.sum(gamma ** np.arange(len(x) - t) * x[t:]) for x in rewards for t in range(len(x))])


@pytest.mark.parametrize("low, high", [(0.0, 20.0), (5.0, 1e3), (5.0, 20.0), (-2.0, -1.0)])
def test_the_share_of_returns_outside_their_bounds_is_warned_of(low, high):
    expected = returns(episodes(), GAMMA)
    share = np.mean((expected < low) | (expected > high))
    said = f"maze.npz: {100 * share:.3g} % of 14 returns would be clipped to the bounds of values"
    with pytest.warns(UserWarning) as warned:
        found = checks.value_bounds(dataset(), low, high, GAMMA, where="maze.npz")
    assert 0 < share <= 1 and found == pytest.approx(share)
    (message,) = (str(warning.message) for warning in warned)
    assert message.startswith(said) and "\n" not in message
    assert message.endswith(f"with gamma 0.9 they are {expected.min():.4g} to {expected.max():.4g}")
    assert warned[0].filename == __file__, "it is the caller's line"


def test_bounds_that_hold_the_returns_are_not_warned_of():
    earned = returns(episodes(), GAMMA).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert checks.value_bounds(dataset(), float(earned.min()), float(earned.max()), GAMMA) == 0.0
        assert checks.value_bounds(dataset(), -1e3, 1e3, 1.0) == 0.0


def test_a_return_that_is_no_number_is_outside():
    data = dataset()
    data = data._replace(reward=data.reward.at[3].set(np.nan))  # the last row of an episode of four
    with pytest.warns(UserWarning, match=r"28.6 % of 14 returns"):
        assert checks.value_bounds(data, -1e3, 1e3, GAMMA) == pytest.approx(4 / 14)


@pytest.mark.parametrize(
    "low, high, gamma, message",
    [
        (1.0, 1.0, GAMMA, "the bounds of values are 1 and 1; allowed: the lower one first"),
        (np.nan, 1.0, GAMMA, "the bounds of values are nan and 1; allowed: the lower one first"),
        (0.0, 1.0, 1.5, r"gamma is 1.5; allowed: numbers in \[0, 1\]"),
    ],
)
def test_bounds_and_discounts_that_are_none_are_refused(low, high, gamma, message):
    with pytest.raises(ValueError, match=message):
        checks.value_bounds(dataset(), low, high, gamma)
