"""The generators of datasets do what their cards say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from scipy.sparse import csgraph, csr_matrix

from experiments.datasets import _recording, metaworld_demos, ogbench_play, own_logs, point_maze
from jaxrl_gen import evaluate
from jaxrl_gen.algos import ppo
from jaxrl_gen.data import arrays, card, trajectory
from jaxrl_gen.envs import probe, wrap
from jaxrl_gen.envs.tasks import point_maze as maze
from jaxrl_gen.types import Transition


def test_episodes_are_whole_and_as_many_as_asked_for():
    env = wrap.time_limit(probe.terminating(5), 7)
    data = _recording.episodes(env, lambda obs, key: jnp.zeros((len(obs), 1)), jax.random.key(0), 5, lanes=2)
    assert trajectory.lengths(data).tolist() == [5] * 5 and data.terminated.sum() == 5
    assert trajectory.returns(data).tolist() == [5.0] * 5


def test_whole_episodes_are_played_until_there_are_enough_steps():
    env = wrap.time_limit(probe.terminating(5), 7)
    data = _recording.whole(env, lambda obs, key: jnp.zeros((len(obs), 1)), jax.random.key(0), 21, lanes=2)
    assert trajectory.lengths(data).tolist() == [5] * 6


def test_stitching_never_leads_from_start_to_goal():
    data = point_maze.stitching(maze.U_MAZE, jax.random.key(0), 50, maze.hurry)
    scale, (start,), (goal,) = 2.5, maze.centres(maze.U_MAZE, "S"), maze.centres(maze.U_MAZE, "G")
    place = np.asarray(data.obs)[:, :2] * scale + 2.5
    np.testing.assert_allclose(np.asarray(data.obs)[:, 2:], np.broadcast_to((goal - 2.5) / scale, (len(place), 2)))
    at_start, at_goal = (np.hypot(*(place - x).T) < 0.5 for x in (start, goal))
    assert at_start.any() and at_goal.any()
    first = np.asarray(data.start) + np.arange(len(data.start))
    for begin, end in zip(first[:-1], first[1:]):
        assert not (at_start[begin:end].any() and at_goal[begin:end].any())
    rows = trajectory.to_rows(data)
    reached = np.hypot(*(rows.next_obs[:, :2] - rows.next_obs[:, 2:]).T) * scale < maze.REACHED
    np.testing.assert_array_equal(rows.terminated, reached)
    np.testing.assert_array_equal(rows.reward, reached - 1.0)


def test_the_expert_is_better_than_the_medium_and_the_noisy_policy():
    lengths = {
        kind: float(trajectory.lengths(point_maze.KINDS[kind](maze.U_MAZE, jax.random.key(1), 40)).mean())
        for kind in ("expert", "medium", "noisy")
    }
    assert lengths["expert"] < 0.6 * min(lengths["medium"], lengths["noisy"])


def test_narrow_data_are_eight_ways_that_the_expert_goes():
    data = point_maze.narrow(maze.U_MAZE, jax.random.key(2), 60)
    first, rows = np.asarray(data.start)[:-1], trajectory.to_rows(data)
    assert len(np.unique(rows.obs[first], axis=0)) == 8 and rows.terminated.sum() == 60
    best = np.asarray(jax.vmap(maze.oracle(maze.U_MAZE))(rows.obs))
    assert 0 < np.abs(rows.action - best).mean() < 0.02


def test_of_mixed_data_the_experts_tenth_is_marked():
    data = point_maze.mixed(maze.U_MAZE, jax.random.key(3), 25)
    marks, rows = np.asarray(data.extras["demonstration"]), trajectory.to_rows(data)
    shown = np.arange(25) < 3  # a tenth, rounded up
    np.testing.assert_array_equal(marks, np.repeat(shown, trajectory.lengths(data)))
    assert (trajectory.returns(data)[shown] == 1.0).all()
    away = np.abs(rows.action - np.asarray(jax.vmap(maze.oracle(maze.U_MAZE))(rows.obs))).mean(-1)
    assert away[marks].mean() < 0.1 and np.abs(rows.action[~marks].mean(0)).max() < 0.05
    np.testing.assert_allclose(rows.action[~marks].std(0), 1 / 3**0.5, atol=0.03)


def test_medium_is_a_third_of_the_way():
    returns = np.array([np.nan, 0, 3, 3, 6, 9, 12, 15])
    assert own_logs.halfway(returns, 0.0, 24.0, over=2) == 7  # (9 + 12) / 2 is the first above 8
    assert own_logs.halfway(returns, 0.0, 240.0, over=2) == 8
    with pytest.raises(ValueError, match="the expert returns 3, and a random policy 3: expected more"):
        own_logs.halfway(returns, 3.0, 3.0)


def test_logs_of_ppo_from_random_to_expert(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(own_logs, "LANES", 32)
    monkeypatch.setattr(own_logs, "STEPS", 8)
    algo = ppo.Config(lr=1e-3, minibatches=2, actor_hidden=(16,), critic_hidden=(16,))
    command = own_logs.Logs(total_steps=200 * 256, steps=2000, replay_steps=1000, algo=algo)
    made, ends, steps = own_logs.record(probe.continuous_action(), command)
    assert "0.05 M of 0.05 M steps, return 0." in capsys.readouterr().out
    # A uniform action is 1/3 + 1/4 away from the best one in the mean of squares, and the best policy's return is 1.
    assert ends["random/return"] == pytest.approx(1 - 7 / 12, abs=0.03) and 0.8 < ends["expert/return"] < 1
    means = {kind: trajectory.returns(data).mean() for kind, data in made.items()}
    share = lambda kind: (means[kind] - means["random"]) / (means["expert"] - means["random"])
    assert 0.1 < share("medium") < 0.7 and share("medium_replay") < share("medium") + 0.1
    assert 2560 <= steps < 200 * 256 and steps % 256 == 0
    counts = {kind: len(data.reward) for kind, data in made.items()}
    assert counts == {"random": 2000, "expert": 2000, "medium": 2000, "medium_replay": 768}
    arrays.write_d4rl(tmp_path / "medium.npz", made["medium"])
    _recording.describe(tmp_path / "medium.npz", made["medium"], 0, ends)
    assert own_logs.references(tmp_path / "medium.npz") == (means["random"], means["expert"])


def test_tasks_of_own_logs_have_defaults_that_flags_change():
    flags = ["--task", "brax/hopper", "--algo.lr", "0.01"]
    command = tyro.cli(own_logs.Logs, args=flags, default=own_logs.defaults(flags))
    assert command.task == "brax/hopper" and command.total_steps == 4e6
    assert (command.algo.lr, command.algo.gamma, command.algo.minibatches) == (0.01, 0.99, 32)
    assert own_logs.defaults([]) == own_logs.Logs()


def test_a_replay_is_the_last_rollouts_lane_by_lane(monkeypatch):
    monkeypatch.setattr(own_logs, "LANES", 2)
    monkeypatch.setattr(own_logs, "STEPS", 3)
    number = np.arange(18.0, dtype=np.float32).reshape(9, 2)
    no = np.zeros((9, 2), bool)
    rows = Transition(number[..., None], number[..., None] / 99, number, number[..., None] + 2, no, no, ~no)
    logged = [jax.tree.map(lambda x: x[i : i + 3], rows) for i in (0, 3, 6)]
    data = own_logs.replayed(logged, 12)
    assert data.reward.tolist() == [6, 8, 10, 12, 14, 16, 7, 9, 11, 13, 15, 17]
    assert np.flatnonzero(data.truncated).tolist() == [5, 11]


def test_demonstrations_of_meta_world_succeed_from_many_places():
    pytest.importorskip("metaworld")
    data, share = metaworld_demos.demonstrate("button-press-topdown-v3", 2, seed=0)
    assert share > 0.5 and trajectory.returns(data).tolist() == [1.0, 1.0] and data.terminated.sum() == 2
    first = np.asarray(data.obs)[[0, int(data.start[1]) + 1]]
    assert np.abs(first[0] - first[1]).max() > 0.01
    again, _ = metaworld_demos.demonstrate("button-press-topdown-v3", 2, seed=0)
    np.testing.assert_array_equal(again.obs, data.obs)
    play, scene = metaworld_demos.judge("button-press-topdown-v3")
    expert, firsts = metaworld_demos._expert("button-press-topdown-v3"), []

    def by_expert(memory, obs):
        firsts.append(obs) if memory == 0 else None
        return memory + 1, np.stack([expert(np.float64(x)) for x in obs])

    idle = lambda memory, obs: (memory, np.zeros((len(obs), 4), np.float32))
    played, still, again = play(by_expert, 0, 3, 1), play(idle, 0, 2, 1), play(by_expert, 0, 3, 1)
    assert played.returns.tolist() == [1.0] * 3 and played.terminated.all() and (played.lengths < 120).all()
    assert still.returns.tolist() == [0.0] * 2 and still.lengths.tolist() == [metaworld_demos.STEPS] * 2
    np.testing.assert_array_equal(played.lengths, again.lengths)
    np.testing.assert_array_equal(*firsts)  # the same places from the same seed, whatever was played before
    assert np.abs(firsts[0][0] - firsts[0][1]).max() > 0.01
    before = {name: np.array(x) for name, x in scene.view(None).items()}
    play(idle, 0, 1, 2)
    assert np.abs(scene.view(None)["qpos"] - before["qpos"]).max() > 0.01  # of what is played first
    with pytest.raises(ValueError, match="fly-v3 is no task of Meta-World; allowed: assembly-v3, "):
        metaworld_demos.make("fly-v3", 0)


def test_play_of_ogbench_and_its_tasks(tmp_path):
    pytest.importorskip("ogbench")
    name, path = "pointmaze-medium-singletask-task1-v0", tmp_path / "maze.npz"
    found = ogbench_play.play_maze("pointmaze-medium-v0", 3, 150, seed=3)
    assert found["terminals"].sum() == 3 and len(found["observations"]) == 3 * 151
    arrays.save(path, found)
    data = arrays.read_ogbench(path, ogbench_play.spec(name), say=lambda line: None)
    np.testing.assert_allclose(data.extras["qpos"], trajectory.to_rows(data).obs, rtol=1e-6)
    _recording.describe(path, data, 3, {})
    assert card.read(path)["counts"] == {"episodes": 3, "steps": 450, "terminated": 0, "truncated": 3}
    goal = ogbench_play._make(name, 0).unwrapped.cur_goal_xy
    task = ogbench_play.task(path, name)
    play, scene = ogbench_play.judge(name)
    one, two = (play(lambda memory, obs: (memory, obs * 0), None, 2, 7) for _ in range(2))
    assert one.lengths.tolist() == two.lengths.tolist() == [1000, 1000] and not one.terminated.any()
    assert one.returns.tolist() == [0.0, 0.0]
    rows = trajectory.to_rows(task)
    near = np.linalg.norm(rows.next_obs - goal, axis=1) <= 1.0
    np.testing.assert_array_equal(rows.terminated, near)
    np.testing.assert_array_equal(rows.reward, near - 1.0)


def test_play_to_be_stitched_stays_four_cells_away(tmp_path):
    pytest.importorskip("ogbench")
    name, path = "pointmaze-medium-stitch-v0", tmp_path / "stitch.npz"
    assert ogbench_play.file(name) == ogbench_play.file("pointmaze-medium-stitch-singletask-task2-v0") == (
        "pointmaze_medium_stitch.npz"
    )  # fmt: skip
    assert ogbench_play.file("pointmaze-medium-v0") == "pointmaze_medium_play.npz"
    ogbench_play.write(path, name, 4, seed=1)
    data = ogbench_play.task(path, "pointmaze-medium-stitch-singletask-task1-v0")
    rows, free = trajectory.to_rows(data), ogbench_play._make(name, 0).unwrapped.maze_map == 0
    assert len(rows.reward) == 800 and card.read(path)["environment"] == "pointmaze-medium-v0"
    cells = np.arange(free.size).reshape(free.shape)
    pairs = [(cells[:, :-1], cells[:, 1:], free[:, :-1] & free[:, 1:])]
    pairs += [(cells[:-1], cells[1:], free[:-1] & free[1:])]
    pairs = np.array([pair for x, y, open in pairs for pair in zip(x[open], y[open])])
    far = csgraph.shortest_path(csr_matrix((np.ones(len(pairs)), pairs.T), shape=(free.size,) * 2), directed=False)
    episodes = np.asarray(data.extras["qpos"]).reshape(4, 200, 2)
    at = np.round(episodes / 4 + 1).astype(int)  # cells are 4 wide, and the first has its middle at -4
    cell = cells[at[..., 1], at[..., 0]]
    away = far[cell[:, :1], cell]
    assert (away[:, -20:] == 4).all() and away.max() == 4 and len(np.unique(cell[:, 0])) > 1
    with pytest.raises(ValueError, match="scene-stitch-v0 is no maze"):
        ogbench_play.write(path, "scene-stitch-v0", 1)


def test_play_in_a_scene_moves_one_thing_after_the_other(tmp_path):
    pytest.importorskip("ogbench")
    name, path = "scene-play-singletask-task2-v0", tmp_path / ogbench_play.file("scene-v0")
    assert path.name == ogbench_play.file(name) == "scene_play.npz"
    arrays.save(path, ogbench_play.play_things("scene-v0", 2, 300, seed=0))
    data = ogbench_play.task(path, name)
    rows, env = trajectory.to_rows(data), ogbench_play._make(name, 0).unwrapped
    state = np.concatenate([data.extras["qpos"], data.extras["button_states"]], 1).reshape(2, 300, -1)
    moved = np.ptp(state, axis=1).max(0)  # within an episode
    assert sum((moved[14:17].max() > 0.1, moved[23] > 0.1, moved[24] > 0.1, moved[25:].max() == 1)) >= 3
    qpos, buttons = np.asarray(data.extras["qpos"]), np.asarray(data.extras["button_states"])
    env.reset()
    for row in range(0, len(rows.reward) - 1, 37):
        if not (rows.terminated | rows.truncated)[row]:
            env.set_state(np.float64(qpos[row + 1]), np.float64(data.extras["qvel"][row + 1]), buttons[row + 1])
            assert rows.reward[row] == env.compute_reward(), row
    assert rows.reward.min() >= -5 and len(np.unique(rows.reward)) > 1
    np.testing.assert_array_equal(rows.terminated, rows.reward == 0)


def test_a_cube_out_of_sight_is_told_from_one_in_the_drawer():
    at = lambda y, z: {"qpos": np.concatenate([np.zeros((1, 14)), [[0.4, y, z]], np.zeros((1, 8))], 1)}
    seen = {(0.0, 0.02): True, (-0.35, 0.065): True, (0.3, 0.02): False, (-0.35, 0.02): False, (-0.35, 0.1): False}
    assert {place: ogbench_play._in_sight(at(*place)) for place in seen} == seen


def test_success_is_a_reward_of_one_and_an_end():
    seeds, moved = [], []

    class Counting:
        """Succeeds at its third step, and pays for each."""

        def reset(self, *, seed):
            seeds.append(seed)
            self.steps = 0
            return np.zeros(1), {}

        def step(self, action):
            self.steps += 1
            return np.full(1, self.steps), -7.0, False, False, {"success": np.float64(self.steps == 3)}

    made = [_recording.Succeeding(Counting(), moved.append) for _ in range(3)]
    act = lambda memory, obs: (memory, np.zeros((len(obs), 1)))
    played = evaluate.side_by_side(made, act, None, steps=10, seed=5)
    assert played.returns.tolist() == [1.0] * 3 and played.lengths.tolist() == [3] * 3
    assert played.terminated.all() and played.ended.all() and len(set(seeds)) == 3 and moved == seeds
    assert evaluate.side_by_side(made, act, None, steps=2, seed=5).returns.tolist() == [0.0] * 3
