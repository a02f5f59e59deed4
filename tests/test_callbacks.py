"""Callbacks: what they write, show and stop, on numbers made by hand."""

import io
import json
import os
import re
import signal
import sys
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import rich.console
from scipy import stats

from jaxrl_gen import callbacks, checkpoint, guards, loops
from tests import toy_run


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_jsonl_writes_numbers_lists_and_null(tmp_path):
    write = callbacks.jsonl(tmp_path / "m.jsonl")
    write(0, None, {"a/b": np.float32(0.1), "member": np.array([1.0, np.nan, np.inf]), "n": np.array(3)})
    write(1, None, {"flag": np.array(True)})
    text = (tmp_path / "m.jsonl").read_text()  # before anything is closed
    first, second = rows(tmp_path / "m.jsonl")
    assert np.float32(first["a/b"]) == np.float32(0.1) and first["member"] == [1.0, None, None] and first["n"] == 3
    assert second == {"chunk": 1, "flag": True}
    assert "NaN" not in text and "Infinity" not in text and text.endswith("\n")


def test_jsonl_cuts_off_the_line_that_a_kill_fell_into(tmp_path):
    path = tmp_path / "m.jsonl"
    path.write_text('{"chunk": 0, "x": 1.0}\n{"chunk": 1, "x": 2.')
    callbacks.jsonl(path)(1, None, {"x": np.array(2.5)})
    assert rows(path) == [{"chunk": 0, "x": 1.0}, {"chunk": 1, "x": 2.5}]
    path.write_text('{"chunk"')
    callbacks.jsonl(path)(0, None, {})
    assert rows(path) == [{"chunk": 0}]


def test_rows_after_a_resume_are_moved_and_none_is_lost(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text("".join(f'{{"chunk": {i}}}\n' for i in range(5)) + '{"chunk": 5, "x"')
    assert callbacks.rows_before(path, 3) == 2
    assert [row["chunk"] for row in rows(path)] == [0, 1, 2]
    callbacks.jsonl(path)(3, None, {})
    assert callbacks.rows_before(path, 2) == 2
    assert [row["chunk"] for row in rows(path)] == [0, 1]
    assert [row["chunk"] for row in rows(tmp_path / "metrics.superseded.jsonl")] == [3, 4, 2, 3]
    assert callbacks.rows_before(path, 2) == 0 and callbacks.rows_before(tmp_path / "none.jsonl", 2) == 0


def metrics(**more):
    return {"steps": np.array(1_234_567), "episode/return": np.array([1.0, 2.0, 4.0]), **more}


def test_plain_lines_where_the_output_is_a_file():
    out = io.StringIO()
    show = callbacks.progress(4, out=out, every_seconds=1e9)
    for i in range(4):
        show(i, None, metrics(**{"time/steps_per_second": np.array(38_300.0)}))
    lines = out.getvalue().splitlines()
    assert len(lines) == 2, "the first and the last, as less than every_seconds lay between"
    assert "\x1b" not in out.getvalue() and "\r" not in out.getvalue()
    half = stats.t.ppf(0.975, 2) * np.std([1, 2, 4], ddof=1) / np.sqrt(3)
    told = re.fullmatch(r"1/4  1.23M steps  38.3k/s  return 2.333 \[(.*), (.*)\]  \d:\d\d left", lines[0])
    assert np.allclose([float(told[1]), float(told[2])], [7 / 3 - half, 7 / 3 + half], rtol=2e-3)
    assert lines[1].startswith("4/4") and lines[1].endswith("0:00 left")


def test_one_line_is_redrawn_in_a_terminal(monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    out = io.StringIO()
    out.isatty = lambda: True
    show = callbacks.progress(3, out=out)
    for i in range(3):
        show(i, None, metrics())
    assert out.getvalue().count("\n") == 1 and out.getvalue().endswith("\n")
    assert out.getvalue().count("\r\x1b[2K") == 3 and "2/3" in out.getvalue()
    visible = re.sub(r"\x1b\[[0-9;]*[mK]", "", out.getvalue()).replace("\r", "\n").splitlines()
    assert max(map(len, visible)) < 100


def test_one_cell_output_is_updated_in_a_notebook(monkeypatch):
    shown = []
    handle = types.SimpleNamespace(update=lambda data, raw: shown.append(data["text/plain"]))
    module = types.ModuleType("IPython.display")
    module.display = lambda data, raw, display_id: handle
    monkeypatch.setitem(sys.modules, "IPython", types.ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    monkeypatch.setattr(rich.console, "_is_jupyter", lambda: True)
    show = callbacks.progress(2)
    for i in range(2):
        show(i, None, metrics())
    assert [line[:3] for line in shown] == ["1/2", "2/2"]


@pytest.mark.parametrize("count", [2, 5, 9, 10, 11, 30])
def test_the_interval_over_members_is_students(count):
    values = np.random.default_rng(count).normal(5.0, 2.0, count)
    told = [float(x) for x in re.findall(r"-?[\d.]+", callbacks.over_members(values))]
    half = stats.t.ppf(0.975, count - 1) * stats.sem(values)
    assert np.allclose(told, [values.mean(), values.mean() - half, values.mean() + half], rtol=1e-2, atol=1e-2)
    assert callbacks.over_members([np.nan, 3.0]) == "3" and callbacks.over_members(np.nan) == "-"


def test_time_left_and_quantities_in_words():
    assert callbacks.progress_line(0, 2, {}, 3_725.0) == "1/2  1:02:05 left"
    assert callbacks.progress_line(0, 2, {}, 65.2) == "1/2  1:06 left"
    assert [callbacks.quantity(x) for x in (0, 999, 1_000, 2.5e6, 3e9)] == ["0", "999", "1k", "2.5M", "3G"]


def test_tensorboard_writes_each_member_as_a_run(tmp_path):
    from tensorboardX import record_writer  # noqa: F401  the extra is there

    write = callbacks.tensorboard(tmp_path)
    write(0, None, {"steps": np.array(64), "shared": np.array(0.5), "a/b": np.array([1.0, 2.0])})
    files = {path.parent.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*tfevents*")}
    assert set(files) == {".", "member-0", "member-1"}
    assert b"shared" in files["."] and all(b"a/b" in files[f"member-{k}"] for k in (0, 1))
    assert np.float32(2.0).tobytes() in files["member-1"]


def test_the_tensorboard_extra_is_named_where_it_is_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'jaxrl_gen\[tensorboard\]'"):
        callbacks.tensorboard(tmp_path)


def test_the_clock_goes_on_from_the_seconds_before():
    tick = callbacks.clock(1000, seconds_before=50.0)
    first, second = {}, {}
    tick(0, None, first)
    tick(1, None, second)
    assert 50.0 < first["time/seconds"] < second["time/seconds"] < 60.0
    passed = second["time/seconds"] - first["time/seconds"]
    assert second["time/steps_per_second"] == pytest.approx(1000 / passed, rel=1e-6)


def test_the_clock_counts_what_passed_since_a_chunk_began(monkeypatch):
    now, began = iter([0.0, 7.0, 20.0]), iter([5.0, 16.0])
    monkeypatch.setattr(callbacks.time, "perf_counter", lambda: next(now))
    tick = callbacks.clock(1000, 50.0, lambda: next(began))
    first, second = {}, {}
    tick(0, None, first)
    tick(1, None, second)
    assert (first["time/seconds"], first["time/steps_per_second"]) == (52.0, 500.0)
    assert (second["time/seconds"], second["time/steps_per_second"]) == (56.0, 250.0)


def test_evaluation_comes_every_so_many_chunks():
    seen = []
    call = callbacks.evaluate_every(2, lambda i, carry: seen.append((i, carry)) or {"evaluate/return": jnp.arange(2.0)})
    found = [{} for _ in range(5)]
    for i in range(5):
        call(i, f"carry {i}", found[i])
    assert seen == [(1, "carry 1"), (3, "carry 3")]
    assert found[0] == {} and np.array_equal(found[3]["evaluate/return"], [0.0, 1.0])
    with pytest.raises(ValueError, match="every is 0"):
        callbacks.evaluate_every(0, dict)


class Recorder:
    """Stands in for a Checkpointer."""

    def __init__(self):
        self.saved = []

    def save(self, step, carry, meta):
        self.saved.append((step, carry, meta))


def test_checkpoints_by_chunks_by_seconds_and_always_at_the_end(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: now[0])
    for arguments, expected in (
        ({"seconds": None}, [7]),
        ({"seconds": None, "every": 3}, [3, 6, 7]),
        ({"seconds": 2.0}, [2, 4, 6, 7]),
        ({"seconds": 4.0, "every": 5}, [4, 5, 7]),
    ):
        recorder = Recorder()
        now[0] = 0.0
        call = callbacks.checkpoint_every(recorder, 7, **arguments)
        for i in range(7):
            now[0] += 1.0
            told = {"steps": np.array(10 * i), "time/seconds": np.array(0.5 * i)}
            call(i, i, told)
            assert (callbacks.SAVED in told) == (i + 1 in expected)
        assert [step for step, _, _ in recorder.saved] == expected
        assert recorder.saved[-1] == (7, 6, {"chunks": 7, "steps": 60, "seconds": 3.0})
    recorder = Recorder()
    callbacks.checkpoint_every(recorder, 1)(0, None, {guards.STOPPED: np.array(1.0)})
    assert recorder.saved == []


def test_a_run_stops_when_every_member_has_reached_the_return():
    stop = callbacks.stop_at_return(2.0)
    assert not stop(0, None, {})
    assert not stop(0, None, {"episode/return": np.array([3.0, 1.9])})
    assert not stop(0, None, {"episode/return": np.array([3.0, np.nan])})
    assert stop(0, None, {"episode/return": np.array([3.0, 2.0])})


def test_signals_ask_for_a_stop_and_the_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    for number in (signal.SIGTERM, signal.SIGINT):
        with callbacks.stop_on_signals() as stop:
            assert not stop(0, None, {})
            signal.raise_signal(number)
            assert stop(0, None, {}) and stop(1, None, {})
            with pytest.raises(KeyboardInterrupt):
                signal.raise_signal(signal.SIGINT)
    with callbacks.exit_on_sigterm(), pytest.raises(SystemExit) as left:
        signal.raise_signal(signal.SIGTERM)
    assert left.value.code == 0
    assert before == (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT))
    answers = []

    def elsewhere():  # Python lets no other thread handle signals: the callback is there and never stops
        with callbacks.stop_on_signals() as stop, callbacks.exit_on_sigterm():
            answers.append(stop(0, None, {}))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert answers == [False]


# ------------------------------------------------------------------------------------------------------------- guards


def toy_loop(population: bool):
    env = toy_run.wrap.fresh(toy_run.probe.continuous_action(), 4)
    loop = guards.watched(loops.on_policy(toy_run.make, env, steps=2, iterations=3))
    return loops.population(loop) if population else loop


@pytest.mark.parametrize("population", [False, True])
def test_the_first_bad_iteration_is_found_written_and_replayed(tmp_path, population):
    """The toy method takes the root of a negative number in update number `limit` + 2, counted from one."""
    loop = toy_loop(population)
    key = jax.random.split(jax.random.key(0), 2) if population else jax.random.key(0)
    limit = jnp.array([1e9, 6.0]) if population else 6.0
    cfg = toy_run.types.strong(toy_run.Config(limit=limit))
    carry = jax.jit(loop.init)(cfg, key)
    iteration, before = jax.jit(loop.iteration), carry
    for _ in range(7):
        before = iteration(cfg, before)[0]
    said, seen = [], []
    guard = guards.stop_on_nonfinite(loop, cfg, carry, tmp_path, command="python -m x --replay", say=said.append)
    compiled = loops.compile_report(loop, cfg, carry)
    loops.run(compiled.chunk, cfg, carry, chunks=9, callbacks=[guard, lambda i, carry, metrics: seen.append(metrics)])
    assert len(seen) == 3 and guards.STOPPED in seen[2] and guards.STOPPED not in seen[1]
    assert np.array_equal(np.ravel(seen[2][guards.WATCHED]) > 0, [False, True] if population else [True])
    assert said[-1] == f"replay: python -m x --replay {tmp_path / 'nonfinite-2'}"
    assert "chunk 2, iteration 1: " in said[-2] and "metrics/toy/loss" in said[-2] and "params/weights" in said[-2]

    assert {path.name for path in tmp_path.iterdir()} == {"nonfinite-2"}
    facts = json.loads((tmp_path / "nonfinite-2" / "facts.json").read_text())
    assert (facts["chunk"], facts["iteration"]) == (2, 1)
    good = guards.read_carry(tmp_path / "nonfinite-2", jax.eval_shape(lambda: carry))
    for found, wanted in zip(checkpoint.by_path(good).values(), checkpoint.by_path(before).values()):
        assert np.array_equal(found, wanted)
    with np.load(tmp_path / "nonfinite-2" / "batch.npz", allow_pickle=False) as batch:
        assert np.array_equal(batch[".reward"], iteration(cfg, before)[2].reward)

    with pytest.raises(FloatingPointError, match="nan"):
        guards.replay(loop, cfg, tmp_path / "nonfinite-2", say=said.append)
    assert "params/weights" in said[-1]
    healthy = toy_run.types.strong(toy_run.Config(limit=jnp.array([1e9, 1e9]) if population else 1e9))
    assert guards.replay(loop, healthy, tmp_path / "nonfinite-2", say=said.append) == []


def test_a_folder_with_nothing_to_replay_is_refused(tmp_path):
    loop = toy_loop(False)
    cfg = toy_run.types.strong(toy_run.Config())
    target = jax.eval_shape(loop.init, cfg, jax.random.key(0))
    with pytest.raises(FileNotFoundError, match="holds no carry.npz to replay"):
        guards.read_carry(tmp_path, target)
    carry = loop.init(cfg, jax.random.key(0))
    guards.write(tmp_path / "x", carry, jnp.ones((2,), jnp.bfloat16), {})
    wider = jax.eval_shape(loop.init, toy_run.types.strong(toy_run.Config(width=9)), jax.random.key(0))
    with pytest.raises(ValueError, match=r"found .*bias.* float32\[4\], expected float32\[9\]"):
        guards.read_carry(tmp_path / "x", wider)
    assert not [name for name in os.listdir(tmp_path) if name.startswith(".")]
    with np.load(tmp_path / "x" / "batch.npz", allow_pickle=False) as batch:
        assert np.array_equal(batch[""].view(jnp.bfloat16), np.ones((2,)))


def nothing_to_find(monkeypatch):
    """No iteration is looked for: rows of metrics are made up here."""
    monkeypatch.setattr(guards, "first_bad", lambda loop, cfg, carry, key: (carry, None, 0, []))
    monkeypatch.setattr(guards, "write", lambda *arguments: None)


@pytest.mark.parametrize(
    "skipped, state, stops", [(0.25, 1.0, False), (1.0, 1.0, True), (0.0, 1.0, True), (0.25, np.nan, True)]
)
def test_a_skipped_update_ends_no_run_but_nothing_learned_or_a_hurt_state_does(
    skipped, state, stops, tmp_path, monkeypatch
):
    nothing_to_find(monkeypatch)
    loop, cfg = toy_loop(False), toy_run.types.strong(toy_run.Config())
    carry, said = loop.init(cfg, jax.random.key(0)), []
    guard = guards.stop_on_nonfinite(loop, cfg, carry, tmp_path, say=said.append)
    hurt = carry._replace(state=carry.state._replace(updates=jnp.asarray(state)))
    row = {"critic/loss": np.float32(np.nan), guards.SKIPPED: np.float32(skipped), guards.WATCHED: np.float32(0.0)}
    assert guard(0, hurt, row) == stops
    assert ("updates skipped, as their gradients were not finite: 25.0 %" in said[0]) == (not stops)


def test_a_member_that_skipped_does_not_excuse_another(tmp_path, monkeypatch):
    nothing_to_find(monkeypatch)
    loop, cfg = toy_loop(False), toy_run.types.strong(toy_run.Config())
    carry = loop.init(cfg, jax.random.key(0))
    guard = guards.stop_on_nonfinite(loop, cfg, carry, tmp_path, say=lambda line: None)
    skipped, both = np.array([0.5, 0.0]), np.array([np.nan, np.nan])
    assert not guard(0, carry, {"critic/loss": np.array([np.nan, 1.0]), guards.SKIPPED: skipped})
    assert guard(1, carry, {"critic/loss": both, guards.SKIPPED: skipped})


def test_a_copy_survives_donation():
    carry = {"x": jnp.arange(5.0), "key": jax.random.key(2)}
    kept = guards.copy(carry)
    jax.jit(lambda tree: {**tree, "x": tree["x"] + 1.0}, donate_argnums=0)(carry)
    assert np.array_equal(kept["x"], np.arange(5.0))
    assert np.array_equal(jax.random.key_data(kept["key"]), jax.random.key_data(jax.random.key(2)))


def test_the_guard_holds_one_copy_and_lets_go_of_it_before_the_next(tmp_path, monkeypatch):
    """Each copy is made where the carry that runs is all there is: two carries at once, and no third."""
    size, there, plain = 12_347, [], guards.copy

    def counting(tree):
        there.append(sum(x.shape == (size,) for x in jax.live_arrays()))
        return plain(tree)

    monkeypatch.setattr(guards, "copy", counting)
    carry = {"x": jnp.zeros((size,)), "key": jax.random.key(0)}
    guard = guards.stop_on_nonfinite(None, None, carry, tmp_path)
    for i in range(3):
        carry = {**carry, "x": carry["x"] + 1.0}
        assert not guard(i, carry, {"a/b": np.float32(1.0)})
    assert there == [1] * 4
    assert guards.kept(carry) == guards.kept(jax.eval_shape(lambda: carry)) == 4 * size + 8
