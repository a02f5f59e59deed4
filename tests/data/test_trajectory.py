"""Datasets against the lists of episodes that they were made of."""

import jax
import numpy as np
import pytest

from jaxrl_gen.data import trajectory
from jaxrl_gen.types import Transition
from tests.data.recorded import LENGTHS, TERMINATED, dataset, episodes, same


def test_each_row_began_and_led_where_it_did():
    data, lived, n = dataset(), episodes(), 0
    rows = trajectory.to_rows(data)
    for e, episode in enumerate(lived):
        assert data.start[e] == n
        for t in range(LENGTHS[e]):
            assert data.episode[n] == e and data.reward[n] == np.float32(episode["reward"][t])
            for part in ("camera", "joint"):
                np.testing.assert_array_equal(data.obs[part][n + e], episode[part][t])
                np.testing.assert_array_equal(rows.obs[part][n], episode[part][t])
                np.testing.assert_array_equal(rows.next_obs[part][n], episode[part][t + 1])
            np.testing.assert_array_equal(rows.action[n], episode["action"][t])
            last = t == LENGTHS[e] - 1
            assert rows.terminated[n] == (last and TERMINATED[e]) and rows.truncated[n] == (last and not TERMINATED[e])
            n += 1
    assert data.start[-1] == n and trajectory.lengths(data).tolist() == list(LENGTHS)
    np.testing.assert_allclose(trajectory.returns(data), [e["reward"].sum() for e in lived])


def test_types_are_the_devices_and_each_observation_is_stored_once():
    data = dataset()
    assert data.obs["camera"].dtype == np.uint8 and data.obs["joint"].dtype == np.float32
    assert data.reward.dtype == np.float32 and data.start.dtype == data.episode.dtype == np.int32
    assert all(isinstance(x, jax.Array) for x in jax.tree.leaves(data))
    steps, count = sum(LENGTHS), len(LENGTHS)
    assert trajectory.nbytes(data) == (steps + count) * (12 + 12) + steps * (8 + 4 + 1 + 1 + 4) + (count + 1) * 4


def test_rows_and_back():
    data = dataset()
    same(trajectory.from_rows(trajectory.to_rows(data)), data)


def test_a_rollout_is_read_lane_by_lane_and_cut_where_it_stops():
    lanes, steps = 3, 5
    number = np.arange(lanes * steps, dtype=np.float32).reshape(steps, lanes)
    terminated = np.zeros((steps, lanes), bool)
    terminated[2, 1] = terminated[4, 2] = True
    next_obs = np.where(terminated, -number - 1, number + lanes)
    no = np.zeros_like(terminated)
    rows = Transition(
        number[..., None], number[..., None] / 99, number, next_obs[..., None], terminated, no, ~no, {"x": number}
    )
    data = trajectory.from_rows(rows)
    assert trajectory.lengths(data).tolist() == [5, 3, 2, 5]
    assert data.obs[:, 0].tolist() == [0, 3, 6, 9, 12, 15, 1, 4, 7, -8, 10, 13, 16, 2, 5, 8, 11, 14, -15]
    assert np.flatnonzero(data.terminated).tolist() == [7, 14] and np.flatnonzero(data.truncated).tolist() == [4, 9]
    np.testing.assert_array_equal(data.extras["x"], number.T.ravel())


def test_a_task_ends_episodes_where_it_terminates():
    data = dataset()
    terminated = np.zeros(sum(LENGTHS), bool)
    terminated[[1, 8]] = True
    other = trajectory.relabelled(data, np.arange(sum(LENGTHS)), terminated)
    assert trajectory.lengths(other).tolist() == [2, 2, 1, 4, 3, 2]
    assert np.flatnonzero(other.terminated).tolist() == [1, 8] and other.reward.tolist() == list(range(14))
    assert np.flatnonzero(other.truncated).tolist() == [3, 4, 11, 13]
    same(trajectory.to_rows(other)[:2], trajectory.to_rows(data)[:2])
    same(trajectory.to_rows(other).next_obs, trajectory.to_rows(data).next_obs)


def test_some_episodes_and_all_of_two():
    data, other = dataset(), dataset((3, 5), (False, True), seed=1)
    both = trajectory.joined(data, other)
    assert trajectory.lengths(both).tolist() == [*LENGTHS, 3, 5]
    same(trajectory.select(both, [4, 5]), other)
    same(trajectory.select(both, np.arange(4)), data)
    turned = trajectory.select(data, [2, 0])
    np.testing.assert_array_equal(turned.obs["joint"], np.concatenate([episodes()[i]["joint"] for i in (2, 0)]))
    with pytest.raises(ValueError, match=r"episodes is \[4\]; allowed: one and more of 0 to 3"):
        trajectory.select(data, [4])


def test_refusals():
    data, t = jax.tree.map(np.asarray, dataset()), np.arange(14)
    fields = data[:5]
    with pytest.raises(ValueError, match=r"reward has shape \(13,\); expected \(14,\), a number for each row"):
        trajectory.make(data.obs, data.action, data.reward[1:], data.terminated, data.truncated)
    with pytest.raises(ValueError, match=r"reward has shape \(14, 1\); expected \(14,\), a number for each row"):
        trajectory.make(data.obs, data.action, data.reward[:, None], data.terminated, data.truncated)
    with pytest.raises(ValueError, match=r"action has shape \(13, 2\); expected 14 rows, as many as truncated"):
        trajectory.make(data.obs, data.action[1:], data.reward, data.terminated, data.truncated)
    with pytest.raises(ValueError, match=r"extras.x has shape \(2,\); expected 14 rows"):
        trajectory.make(*fields, {"x": np.zeros(2)})
    with pytest.raises(ValueError, match="the last row ends no episode; expected it to be terminated, or truncated"):
        trajectory.make(data.obs, data.action, data.reward, 0 * data.terminated, 0 * data.truncated)
    with pytest.raises(ValueError, match="obs.camera has 18 observations; expected 17: one more than rows in each"):
        trajectory.make(data.obs, data.action, data.reward, t == 13, (t == 2) | (t == 8))
    rows = trajectory.to_rows(data)
    with pytest.raises(ValueError, match="rows: next_obs.camera of row 3 is not the observation of row 4"):
        trajectory.from_rows(rows._replace(terminated=rows.terminated & (np.arange(14) > 5)))
    with pytest.raises(ValueError, match="rows: row 2 is invalid"):
        trajectory.from_rows(rows._replace(valid=np.arange(14) != 2))


def test_what_was_before_each_row_and_what_it_still_earned():
    data = trajectory.with_returns_to_go(dataset(), 0.9)
    lived = episodes()
    earned = [
        sum(0.9**k * reward for k, reward in enumerate(episode["reward"][t:]))
        for episode in lived
        for t in range(len(episode["reward"]))
    ]
    np.testing.assert_allclose(data.extras["return_to_go"], earned, rtol=1e-5)
    seen = trajectory.before(data)
    np.testing.assert_array_equal(seen["joint"], np.concatenate([episode["joint"][:-1] for episode in lived]))
    np.testing.assert_array_equal(seen["camera"], trajectory.to_rows(data).obs["camera"])
