"""Array files: what was written is read again bit for bit, layouts mean what they mean, bad files are refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen.data import arrays, trajectory
from jaxrl_gen.types import Spec
from tests.data.recorded import LENGTHS, SPEC, dataset, same

FLAT = Spec(jax.ShapeDtypeStruct((2,), jnp.float32), 1)


def quiet(line):
    pass


def flat(count=7):
    """D4RL's layout: an episode of 3 rows that timed out, one of 2 that terminated, and 2 rows of a log cut."""
    obs = np.arange(2.0 * count).reshape(count, 2)
    return {
        "observations": obs, "actions": np.linspace(-1, 1, count)[:, None], "rewards": np.arange(count) / 4,
        "terminals": np.arange(count) == 4, "timeouts": np.arange(count) == 2, "next_observations": obs + 2,
    }  # fmt: skip


def written(tmp_path, **changes):
    found = {**flat(), **changes}
    np.savez(tmp_path / "maze.npz", **{name: x for name, x in found.items() if x is not None})
    return tmp_path / "maze.npz"


def test_round_trip_in_d4rls_layout(tmp_path):
    arrays.write_d4rl(tmp_path / "deep" / "data.npz", dataset())
    same(arrays.read_d4rl(tmp_path / "deep" / "data.npz", SPEC, say=quiet), dataset())
    assert sorted(np.load(tmp_path / "deep" / "data.npz").files) == [
        "actions", "next_observations/camera", "next_observations/joint", "observations/camera", "observations/joint",
        "rewards", "terminals", "timeouts",
    ]  # fmt: skip


def test_round_trip_in_ogbenchs_layout(tmp_path):
    data = dataset()._replace(extras={"qpos": jnp.arange(14.0)[:, None]})
    arrays.write_ogbench(tmp_path / "data.npz", data)
    read = arrays.read_ogbench(tmp_path / "data.npz", SPEC, say=quiet)
    none = jnp.zeros_like(data.terminated)
    over = data.terminated | data.truncated
    same(read, data._replace(reward=jnp.zeros(14), terminated=none, truncated=over))


def test_ogbench_layout_means_what_its_own_loader_reads(tmp_path):
    """s0 s1 s2 | s3 s4: the last observation of a trajectory is where its last action led."""
    obs = np.arange(10, dtype=np.float32).reshape(5, 2)
    terminals = np.array([0, 0, 1, 0, 1], np.float32)
    more = {"version": 3, "words": np.array(list("abcde"))}
    np.savez(tmp_path / "og.npz", observations=obs, actions=np.linspace(-1, 1, 5)[:, None], terminals=terminals, **more)
    rows = trajectory.to_rows(arrays.read_ogbench(tmp_path / "og.npz", FLAT, say=quiet))
    np.testing.assert_array_equal(rows.obs, obs[[0, 1, 3]])
    np.testing.assert_array_equal(rows.next_obs, obs[[1, 2, 4]])
    np.testing.assert_array_equal(rows.action[:, 0], [-1, -0.5, 0.5])
    assert rows.truncated.tolist() == [False, True, True] and not rows.terminated.any() and not rows.reward.any()
    assert rows.extras == {}


def test_timeouts_truncate_terminals_terminate_and_a_log_that_stops_truncates(tmp_path):
    data = arrays.read_d4rl(written(tmp_path), FLAT, say=quiet)
    assert trajectory.lengths(data).tolist() == [3, 2, 2]
    assert np.flatnonzero(data.terminated).tolist() == [4] and np.flatnonzero(data.truncated).tolist() == [2, 6]
    np.testing.assert_array_equal(trajectory.to_rows(data).next_obs, flat()["next_observations"])


def test_without_next_observations_no_row_leads_into_another_episode(tmp_path):
    data = arrays.read_d4rl(written(tmp_path, next_observations=None), FLAT, say=quiet)
    assert trajectory.lengths(data).tolist() == [2, 2, 1]
    rows = trajectory.to_rows(data)
    assert rows.obs[:, 0].tolist() == [0, 2, 6, 8, 10] and rows.next_obs[:, 0].tolist() == [2, 4, 8, 8, 12]
    assert rows.truncated.tolist() == [False, True, False, False, True]
    assert rows.terminated.tolist() == [False, False, False, True, False]


def test_actions_in_the_simulators_own_limits_are_rescaled(tmp_path):
    path = written(tmp_path, actions=np.linspace(2, 6, 7)[:, None])
    data = arrays.read_d4rl(path, FLAT, limits=([2.0], [6.0]), say=quiet)
    np.testing.assert_allclose(data.action[:, 0], np.linspace(-1, 1, 7), atol=1e-6)


def test_one_line_says_what_it_is(tmp_path):
    said = []
    arrays.read_d4rl(written(tmp_path), FLAT, say=said.append)
    assert said == [
        f"{tmp_path}/maze.npz: 3 episodes, 7 steps, 0.0 MB; length 2 to 3; 1 terminated, 2 truncated; "
        "reward 0 to 1.5; action -1 to 1; NaN 0 %"
    ]


def test_discrete_actions(tmp_path):
    spec = FLAT._replace(action_size=3, discrete=True)
    path = written(tmp_path, actions=np.arange(7) % 3)
    assert arrays.read_d4rl(path, spec, say=quiet).action.tolist() == [0, 1, 2, 0, 1, 2, 0]
    with pytest.raises(ValueError, match=r"maze.npz: actions is within \[0, 3\]; expected \[0, 2\]$"):
        arrays.read_d4rl(written(tmp_path, actions=np.arange(7) % 4), spec, say=quiet)


def nan_at(x, row):
    x = np.array(x, np.float32)
    x[row] = np.nan
    return x


BAD = [
    ({"timeouts": None}, r"maze.npz: has no field timeouts; expected actions, rewards, terminals, timeouts, found act"),
    (
        {"terminals": None},
        r"maze.npz: has no field terminals; expected actions, rewards, terminals, timeouts, found ac",
    ),
    (
        {"terminals": nan_at(np.zeros(7), 3)},
        "maze.npz: terminals is nan in row 3; expected 0 or 1 in each, whether the",
    ),
    ({"timeouts": -np.arange(7)}, "maze.npz: timeouts is -1 in row 1; expected 0 or 1 in each, whether the episode"),
    ({"observations": None}, r"maze.npz: has no field observations; expected observations, found actions, next_obs"),
    ({"rewards": nan_at(flat()["rewards"], 5)}, "maze.npz: rewards is not finite in 1 of 7 rows, first in row 5; exp"),
    ({"actions": 1.5 * flat()["actions"]}, r"actions is within \[-1.5, 1.5\]; expected \[-1, 1\], or the simulator's"),
    ({"actions": np.zeros((7, 2))}, r"actions is float32 \[2\] in each row; expected float32 \[1\], as in the spec"),
    ({"actions": np.zeros(7, int)}, r"actions is int32 \[\] in each row; expected float32 \[1\], as in the spec"),
    ({"observations": np.zeros((7, 3))}, r"observations is float32 \[3\] in each row; expected float32 \[2\]"),
    (
        {"terminals": np.zeros(5)},
        r"rewards has shape \[7\]; expected one number per row, found rewards \[7\], terminals \[5\]",
    ),
    (
        {"rewards": np.zeros((7, 1))},
        r"maze.npz: rewards has shape \[7, 1\]; expected one number per row, found rewards",
    ),
    ({"terminals": np.zeros((7, 1))}, r"maze.npz: terminals has shape \[7, 1\]; expected one number per row, found"),
    ({"actions": np.zeros((6, 1))}, r"maze.npz: actions has 6 rows; expected 7, as many as rewards"),
    (
        {"next_observations": np.zeros((6, 2))},
        r"maze.npz: next_observations has 6 rows; expected 7, as many as rewards",
    ),
    ({"next_observations": np.zeros((7, 3))}, r"maze.npz: next_observations is float32 \[3\] in each row; expected float"),
    ({"next_observations": np.zeros((7, 1))}, r"maze.npz: next_observations is float32 \[1\] in each row; expected float"),
    ({"next_observations": flat()["observations"]}, "next_obs of row 0 is not the observation of row 1; expected rows"),
]


@pytest.mark.parametrize(("changes", "message"), BAD, ids=[message[:40] for _, message in BAD])
def test_bad_files_are_refused(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as refused:
        arrays.read_d4rl(written(tmp_path, **changes), FLAT, say=quiet)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    "terminals, message",
    [
        (None, "has no field terminals; expected actions, terminals, found actions, observations"),
        (
            np.array([0, 0, 2, 0, 1]),
            "terminals is 2 in row 2; expected 0 or 1 in each, whether the episode ended there",
        ),
    ],
)
def test_trajectories_that_do_not_say_where_they_end_are_refused(tmp_path, terminals, message):
    fields = {"observations": np.zeros((5, 2)), "actions": np.zeros((5, 1)), "terminals": terminals}
    np.savez(tmp_path / "og.npz", **{name: x for name, x in fields.items() if x is not None})
    with pytest.raises(ValueError, match=f"og.npz: {message}"):
        arrays.read_ogbench(tmp_path / "og.npz", FLAT, say=quiet)


def test_nan_observations_are_refused(tmp_path):
    obs = nan_at(flat()["observations"], 1)
    following = np.concatenate([obs[1:], obs[:1]])
    with pytest.raises(ValueError, match="observations is not finite in 1 of 10 rows, first in row 1"):
        arrays.read_d4rl(written(tmp_path, observations=obs, next_observations=following), FLAT, say=quiet)


def test_an_episode_shorter_than_the_window_is_refused(tmp_path):
    with pytest.raises(ValueError, match="maze.npz: episode 1 has 2 steps; expected 3 and more, for a window"):
        arrays.read_d4rl(written(tmp_path), FLAT, window=3, say=quiet)
    assert min(LENGTHS) == 1


@pytest.mark.parametrize("keep", [0, 10, 400])
def test_a_truncated_file_is_refused(tmp_path, keep):
    path = written(tmp_path)
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ValueError, match="maze.npz: is no whole npz file of plain arrays") as refused:
        arrays.read_d4rl(path, FLAT, say=quiet)
    assert "\n" not in str(refused.value)


def test_a_damaged_file_is_refused(tmp_path):
    path = written(tmp_path)
    content = bytearray(path.read_bytes())
    at = content.find(flat()["rewards"].tobytes())
    content[at + 8] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no whole npz file of plain arrays"):
        arrays.read_d4rl(path, FLAT, say=quiet)


def test_python_objects_are_never_loaded(tmp_path):
    path = written(tmp_path, rewards=np.array([{}] * 7, object))
    with pytest.raises(ValueError, match="is no whole npz file of plain arrays: Object arrays cannot be loaded"):
        arrays.read_d4rl(path, FLAT, say=quiet)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match="none.npz: there is no such file"):
        arrays.read_d4rl(tmp_path / "none.npz", FLAT, say=quiet)
