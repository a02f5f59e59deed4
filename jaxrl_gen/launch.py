"""The whole run of an experiment from one call: folder, devices, compilation, callbacks, checkpoints, resume, report.

    @dataclasses.dataclass(frozen=True)
    class Swingup(launch.Experiment):
        algo: ppo.Config = ppo.Config(lr=1e-3)

    def main(exp: Swingup):
        env = playground.make("CartpoleSwingup")
        loop = loops.on_policy(ppo.make, wrap.pooled(env, 64), steps=128, iterations=10)
        return launch.launch(exp, env=env, loop=loop, cfg=exp.algo)

    if __name__ == "__main__":
        launch.cli(main, Swingup)
"""

import contextlib
import dataclasses
import math
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

import jaxrl_gen
from jaxrl_gen import callbacks, checkpoint, conclude, guards, loops, record, runs
from jaxrl_gen.guards import STOPPED
from jaxrl_gen.stage import prepare
from jaxrl_gen.types import Env, PyTree, check


def option(default: Any, *, low: float | None = None, high: float | None = None) -> Any:
    """A field of an Experiment that says how it is run, not what is run: a resume may change it freely."""
    return dataclasses.field(default=default, metadata={"option": True, "low": low, "high": high})


@dataclasses.dataclass(frozen=True)
class Experiment:
    """The options of a run, inherited by every experiment; each field is a flag of its command."""

    name: str = option("run")  # of the run folder, <runs>/<name>-<time>
    runs: Path = option(Path("runs"))  # where run folders lie
    stamp: bool = option(True)  # add the time to the folder's name
    seed: int = 0  # of the first member; the others count up from it
    seeds: int = 1  # members, trained side by side in one program
    total_steps: float = option(1e6, low=1, high=1e15)  # environment steps of each member, rounded up to whole chunks
    chunks: int | None = option(None)  # instead of total_steps
    resume: Path | None = option(None)  # continue this run folder, with the settings it was started with
    replay: Path | None = option(None)  # run a failed iteration again, from the folder that a failed run left behind
    checkpoint_seconds: float = option(60.0, low=0)  # between checkpoints; the last chunk is always saved
    checkpoint_chunks: int = option(0, low=0)  # save after every so many chunks as well; 0: no
    keep: int = option(3, low=1)  # checkpoints
    eval_episodes: int = option(64, low=0)  # of each member, at the end; 0: no evaluation
    eval_steps: int | None = option(None)  # at most so many per episode; needed where there is no time limit
    eval_sample: bool = option(False)  # with actions drawn as in training, not the deterministic ones
    eval_chunks: int = option(0, low=0)  # evaluate after every so many chunks as well; 0: no
    stop_at: float = option(math.inf)  # stop once every member's return of training episodes reaches it
    export: bool = option(True)  # the best member's policy
    video: bool = option(True)  # of the best member's policy
    report: bool = option(True)  # report.html
    devices: int = option(1, low=1)  # that share the run; with several processes, all there are
    distributed: bool = option(False)  # one of several processes (SLURM, TPU pod, or JAX_COORDINATOR_ADDRESS)
    tensorboard: bool = option(False)  # write for TensorBoard as well
    precision: str = "highest"  # of float32 matrix products, in JAX's words; processors ignore it
    debug: bool = option(False)  # show the whole traceback of an error


def launch(
    exp: Experiment,
    *,
    env: Env,
    loop: loops.Loop,
    cfg: Any,
    make: Callable | None = None,
    play: Callable | None = None,
    what: str = "mean return",
    also: dict[str, Callable] | None = None,
    listeners: Sequence[callbacks.Callback] = (),
) -> Path:
    """Run an experiment from its checks to its report.

    Args:
      exp: the options.
      env: one lane, to evaluate in; of a simulator that does not run in JAX, its spec alone: `Env(None, None, spec)`,
        perhaps with a scene, see `evaluate.watched`.
      loop: of one member; seeds and swept leaves of `cfg` are added here.
      cfg: Config of the algorithm; leaves [M] are M settings, each of which runs with every seed.
      make: `(cfg, spec) -> Algorithm` to evaluate and export; default: the loop's.
      play: `(act, memory, episodes, seed) -> Episodes` of NumPy arrays, which judges a policy in simulators on the
        host instead; see `evaluate.hosted`.
      what: is measured, for people to read: "success rate" where an episode's reward is 1 at success, and else 0.
      also: other `(cfg, spec) -> Algorithm` of the same State by names, such as a sampler of fewer steps, that are
        evaluated at the end as well.
      listeners: callbacks of the experiment's own; what they add to the metrics is written.
    Returns:
      The run folder.
    Raises:
      ValueError, FileExistsError, FileNotFoundError, PermissionError: for bad input, before anything is compiled.
      FloatingPointError: when the run turned non-finite; it says how to replay that.
      SystemExit: of code 0, after SIGTERM or Ctrl-C; the run is saved.
    """
    start(exp)
    chunks = _checked(exp, loop, cfg)
    described = _described(exp, loop, cfg)
    recorded = _recorded(exp.resume, exp) if exp.resume else None
    changed = record.changes(recorded, described) if recorded else []
    described |= _history(recorded)
    stage = prepare(
        loop, cfg, seed=exp.seed, seeds=exp.seeds, devices=exp.devices, make=make, env=env, episodes=exp.eval_episodes,
        steps=exp.eval_steps, sample=exp.eval_sample, play=play, also=also,
    )  # fmt: skip
    if exp.replay:
        guards.replay(stage.loop, stage.cfg, exp.replay)
        return exp.replay
    say = _say_once()
    say(_headline(stage.target))
    with callbacks.stop_on_signals() as asked_to_stop, _folder(exp) as folder:
        init = stage.first_carry(in_background=not exp.resume)
        compiled = loops.compile_report(stage.loop, stage.cfg, stage.target, kept=guards.kept(stage.target))
        say(f"compiled: {compiled}")
        checkpointer = checkpoint.Checkpointer(folder / "checkpoints", exp.keep)
        restored = _restored(exp, stage.target, checkpointer, folder, chunks, say)
        carry, first, before = restored or (init(), 0, 0.0)
        _write_down(exp, folder, described, changed, first, say)
        evaluation = stage.evaluation()
        steps = loop.steps_per_chunk * (stage.group.count or 1)
        measuring = [callbacks.clock(steps, before, lambda: last["over"]), *_evaluations(exp, evaluation), *listeners]
        guard = guards.stop_on_nonfinite(stage.loop, stage.cfg, carry, folder, command=_command("--replay"), say=say)
        saving = callbacks.checkpoint_every(
            checkpointer, chunks, seconds=exp.checkpoint_seconds or None, every=exp.checkpoint_chunks
        )
        stopping = [callbacks.stop_at_return(exp.stop_at), asked_to_stop]
        last: dict[str, Any] = {"chunk": first - 1, "metrics": {callbacks.SAVED: True}}

        def remember(i, carry, metrics):
            last.update(chunk=i, metrics=metrics, over=time.perf_counter())

        every = [*measuring, guard, *_writers(exp, folder, chunks, first), saving, *stopping, remember]
        last["over"] = time.perf_counter()  # when the next chunk begins
        if not asked_to_stop(first, carry, {}):
            carry = loops.run(
                compiled.chunk, stage.cfg, carry, chunks=chunks, callbacks=every, start=first, feed=compiled.feed
            )
        seconds, ran = float(last["metrics"].get("time/seconds", before)), last["chunk"] + 1
        if ran < chunks:
            say("")  # the line of the progress has not come to its end
        if STOPPED not in last["metrics"] and callbacks.SAVED not in last["metrics"]:
            callbacks.save(checkpointer, ran - 1, carry, last["metrics"])
        checkpointer.close()
        if STOPPED in last["metrics"]:
            raise FloatingPointError(f"the run turned non-finite in chunk {ran - 1}: see {folder}/nonfinite-{ran - 1}")
        if asked_to_stop(ran, carry, {}):
            say(f"stopped after {ran} of {chunks} chunks; continue with: {_going_on(exp, folder)}")
            raise SystemExit(0)
    end = conclude.Ran(
        exp, described, env, make or loop.make, stage.cfg, carry, stage.group, evaluation, ran, compiled, before,
        seconds, what, {name: (also[name], evaluate) for name, evaluate in stage.others().items()}, play,
    )  # fmt: skip
    with callbacks.exit_on_sigterm():
        conclude.conclude(end, folder, say)
    return folder


def cli(main: Callable[[Any], Any], experiment: type, args: Sequence[str] | None = None) -> Any:
    """Read an experiment's flags and run it; an error of the user's is one line and exit code 2.

    With `--resume RUN` the settings recorded in RUN are the defaults, so that only changes need saying.

    Args:
      main: called with the experiment.
      experiment: a dataclass that inherits from Experiment.
      args: default: the command line's.
    Returns:
      What `main` returns.
    """
    import tyro

    args = list(sys.argv[1:] if args is None else args)
    errors = (ValueError, FileNotFoundError, FileExistsError, PermissionError, ModuleNotFoundError, FloatingPointError)
    try:
        exp = tyro.cli(experiment, default=_default(experiment, args), args=args, description=main.__doc__)
        start(exp)
        return main(exp)
    except errors as error:
        replays = isinstance(error, FloatingPointError) and any(arg.startswith("--replay") for arg in args)
        if "--debug" in args or os.environ.get("JAXRL_GEN_DEBUG") or replays:
            raise
        hint = "" if isinstance(error, FloatingPointError) else " (--debug shows where)"
        print(f"error: {error}{hint}", file=sys.stderr)
        raise SystemExit(2) from error


def start(exp: Experiment) -> None:
    """Join the other processes, if any, and prepare JAX; to be called before anything is computed."""
    if (exp.distributed or "JAX_COORDINATOR_ADDRESS" in os.environ) and not jax.distributed.is_initialized():
        numbers = [os.environ.get(name) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID")]
        jax.distributed.initialize(
            os.environ.get("JAX_COORDINATOR_ADDRESS"), *[None if number is None else int(number) for number in numbers]
        )
    prepare_jax(exp.precision)


def prepare_jax(precision: str = "highest") -> None:
    """Set the precision of float32 matrix products, and keep compiled programs on disk for the next start."""
    jax.config.update("jax_default_matmul_precision", precision)
    jax.config.update("jax_compilation_cache_dir", str(compilation_cache()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def compilation_cache() -> Path:
    """The folder of compiled programs: JAX_COMPILATION_CACHE_DIR, or `jaxrl_gen` in the user's cache folder."""
    chosen = jax.config.jax_compilation_cache_dir or os.environ.get("JAX_COMPILATION_CACHE_DIR")
    return Path(chosen or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "jaxrl_gen")


def _checked(exp: Experiment, loop: loops.Loop, cfg: Any) -> int:
    """The number of chunks, once every number is known to be allowed."""
    check(exp, "experiment")
    check(cfg, "config")
    for name, low in {"seeds": 1, "chunks": 1, "eval_steps": 1, "seed": 0}.items():
        if getattr(exp, name) is not None and getattr(exp, name) < low:
            raise ValueError(f"{name} is {getattr(exp, name)}; allowed: {low} and more")
    if exp.seed + exp.seeds > 2**31 - 1:
        raise ValueError(f"seed + seeds is {exp.seed + exp.seeds}; allowed: up to {2**31 - 1}, for seeds are int32")
    if not exp.name or exp.name[0] in ".-" or not all(c.isalnum() or c in "._-" for c in exp.name):
        raise ValueError(f"name is {exp.name!r}; allowed: letters, digits, '.', '_' and '-'")
    if exp.devices > jax.device_count():
        hint = "; to split a processor: XLA_FLAGS=--xla_force_host_platform_device_count=N"
        hint = hint if jax.default_backend() == "cpu" else ""
        raise ValueError(f"devices is {exp.devices}; allowed: 1 to {jax.device_count()}{hint}")
    if exp.chunks is None and not loop.steps_per_chunk:
        raise ValueError("this loop takes no environment steps: say how long it runs with chunks")
    return exp.chunks or math.ceil(exp.total_steps / loop.steps_per_chunk)


def _described(exp: Experiment, loop: loops.Loop, cfg: Any) -> dict[str, Any]:
    """What `config.json` records: the experiment as it was given, the config that ran, and the loop's size.

    Of a config that the experiment made from a field of its own, only what it changed is told: a resume begins from the
    field as it was given, and changes it again.
    """
    described = record.describe(exp, config=cfg)
    alike = [field.name for field in dataclasses.fields(exp) if type(getattr(exp, field.name)) is type(cfg)]
    if len(alike) == 1:
        for kind in ("static", "floats", "options"):
            fields = described[kind]
            given = {path: fields.get(path.replace("config", alike[0], 1), ...) for path in fields}
            same = {path for path, x in fields.items() if path.startswith("config.") and given[path] == x}
            described[kind] = {path: x for path, x in fields.items() if path not in same}
    described["static"] |= {"loop.steps_per_chunk": loop.steps_per_chunk, "loop.lanes": loop.env.lanes}
    return described


def _history(recorded: dict[str, Any] | None) -> dict[str, Any]:
    """The command that began the run, those that resumed it, and what they changed."""
    command, before = " ".join(sys.orig_argv), recorded or {}
    return {
        "command": before.get("command", command),
        "resumed": [*before.get("resumed", []), *([command] if before else [])],
        "changes": before.get("changes", []),
    }


def _recorded(folder: Path, exp: Any) -> dict[str, Any]:
    path = runs.inside(folder, "config.json")
    if path is None:
        raise FileNotFoundError(f"{folder} holds no run to resume: there is no config.json in it")
    recorded = record.read_json(path)
    record.refuse_others(exp, recorded)
    return recorded


def _default(experiment: type, args: list[str]) -> Any:
    """The experiment with its own defaults, or with those of the run that the flags resume or replay."""
    default, flags = experiment(), {arg.partition("=")[0].replace("_", "-") for arg in args}
    for i, arg in enumerate(args):
        flag, _, value = arg.partition("=")
        value = value or (args[i + 1] if i + 1 < len(args) else "")
        if flag in ("--resume", "--replay") and value:
            folder = Path(value).parent if flag == "--replay" else Path(value)
            default = record.recover(default, _recorded(folder, default))
            if "--total-steps" in flags and "--chunks" not in flags:
                default = dataclasses.replace(default, chunks=None)  # which would go before
    return default


@contextlib.contextmanager
def _folder(exp: Experiment) -> Iterator[Path]:
    """The run folder, made new or resumed; one that stays empty is taken away again."""
    if exp.resume:
        yield exp.resume
        return
    stamp = time.strftime("-%Y%m%d-%H%M%S") if exp.stamp else ""
    folder = exp.runs / _same_everywhere(f"{exp.name}{stamp}")
    if jax.process_index() == 0:
        if folder.exists():
            raise FileExistsError(f"{folder} exists and is not overwritten: choose another name")
        try:
            exp.runs.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
        except OSError as error:
            raise PermissionError(f"cannot write a run folder into {exp.runs}: {error.strerror}") from error
    try:
        yield folder
    finally:
        if jax.process_index() == 0 and not any(folder.rglob("*.json*")):
            with contextlib.suppress(OSError):
                (folder / "checkpoints").rmdir()
            with contextlib.suppress(OSError):
                folder.rmdir()


def _same_everywhere(text: str) -> str:
    """The text of the first process, in all of them: their clocks differ."""
    if jax.process_count() == 1:
        return text
    from jax.experimental import multihost_utils

    letters = np.frombuffer(text.encode().ljust(256), np.uint8)
    return bytes(multihost_utils.broadcast_one_to_all(letters)).decode().rstrip()


def _restored(exp, target, checkpointer, folder, chunks, say) -> tuple[PyTree, int, float] | None:
    """The carry to go on with, the first chunk to run and the seconds before it; None where a run begins."""
    if not exp.resume:
        return None
    restored = checkpointer.restore_latest(target, say)
    first = restored.step if restored else 0
    if first > chunks:
        raise ValueError(f"the run has {first} chunks behind it, and {chunks} were asked for")
    checkpointer.set_aside(after=first if restored else -1)
    if jax.process_index() == 0:
        moved = callbacks.rows_before(folder / "metrics.jsonl", first)
        say(f"resumed at chunk {first} of {chunks}" + (f"; {moved} later rows superseded" if moved else ""))
        before, now = folder / "versions.json", record.versions(exp.devices)
        if before.is_file() and (differing := record.differences(record.read_json(before), now)):
            say(f"not bit for bit the same as without a stop, for this is {', '.join(differing)}")
    return (restored.carry, first, restored.meta["seconds"]) if restored else None


def _write_down(exp, folder: Path, described: dict, changed: list[dict], first: int, say: Callable) -> None:
    """Write `config.json`, with all changes so far, and `versions.json`."""
    for change in changed:
        say(f"changed: {change['field']} from {change['was']} to {change['now']}, from chunk {first} on")
    described["changes"] = [*described["changes"], *({**change, "chunk": first} for change in changed)]
    if jax.process_index() == 0:
        record.write_json(folder / "config.json", described)
        record.write_json(folder / "versions.json", record.versions(exp.devices))
    say(f"run: {folder}")


def _evaluations(exp: Experiment, evaluation: Callable | None) -> list[callbacks.Callback]:
    if not exp.eval_chunks or not evaluation:
        return []
    return [callbacks.evaluate_every(exp.eval_chunks, lambda i, carry: conclude.metrics(evaluation(i + 1, carry)))]


def _writers(exp: Experiment, folder: Path, chunks: int, first: int) -> list[callbacks.Callback]:
    if jax.process_index() != 0:
        return []
    writers = [callbacks.jsonl(folder / "metrics.jsonl")]
    if exp.tensorboard:
        writers.append(callbacks.tensorboard(folder / "tensorboard"))
    return [*writers, callbacks.progress(chunks, start=first)]


def _say_once() -> Callable[[str], None]:
    """`print`, in the first process alone."""
    return (lambda line: print(line, flush=True)) if jax.process_index() == 0 else (lambda line: None)


def _headline(carry: PyTree) -> str:
    """What runs on what, and how much of that the past rows take that a carry of these shapes has."""
    replay = loops.replay_bytes(carry)
    count = f"{jax.device_count()} x " if jax.device_count() > 1 else ""
    processes = f" in {jax.process_count()} processes" if jax.process_count() > 1 else ""
    return (
        f"jaxrl_gen {jaxrl_gen.__version__}, jax {jax.__version__}, {count}{record.chip()}{processes}, "
        f"matmul precision {jax.config.jax_default_matmul_precision}\ncompilation cache: {compilation_cache()}"
        + (f"\nreplay: {replay / 2**30:.3g} GB of {loops.device_memory() / 2**30:.3g} GB" if replay else "")
    )


def _going_on(exp: Experiment, folder: Path) -> str:
    """The command that resumes the run as it ran: what a resume does not inherit is repeated."""
    devices = f" --devices {exp.devices}" if exp.devices > 1 else ""
    return f"{_command('--resume')} {folder}{devices}{' --distributed' * exp.distributed}"


def _command(flag: str) -> str:
    """This program's command with a flag, as a user would type it; empty in a notebook."""
    module = getattr(sys.modules["__main__"], "__spec__", None)
    file = getattr(sys.modules["__main__"], "__file__", None)
    return f"python -m {module.name} {flag}" if module else f"python {file} {flag}" if file else ""
