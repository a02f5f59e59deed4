"""Publish finished runs: the recorded result, the experiment's header and the README's table all say what was measured.

    python -m experiments.publish runs/ppo_swingup-20261120-224358 [...]  # record these runs
    python -m experiments.publish                                         # rewrite headers and table from the records

Nothing here is typed by hand: a figure in a header or in the table is the one in `experiments/results/<name>.json`,
and a test holds them together.
"""

import json
import re
import shutil
import sys
from pathlib import Path

HERE = Path(__file__).parent
RESULTS = HERE / "results"
README = HERE.parent / "README.md"
FIELDS = ("Hardware", "Minutes", "Expect")


def record(run: Path) -> Path:
    """Copy a run's `result.json`, learning curve and a still of its video beside the experiments; returns its path."""
    result = json.loads((run / "result.json").read_text())
    name = result["config"]["options"]["name"]
    result["command"] = re.sub(r" --runs[ =]\S+", "", re.sub(r"^\S*python\S*", "python", result["command"]))
    result["config"]["options"]["runs"] = "runs"  # where it lay on someone's disk is nobody's business
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    if (run / "curve.png").exists():
        shutil.copy(run / "curve.png", RESULTS / f"{name}.png")
    if (run / "video.mp4").exists():
        import imageio.v3 as iio

        frames = iio.imread(run / "video.mp4")
        iio.imwrite(RESULTS / f"{name}_still.png", frames[len(frames) // 2])
    return path


def facts(result: dict) -> dict[str, str]:
    """The header's lines of an experiment, from its recorded result."""
    score, versions = result["score"], result["versions"]
    return {
        "Hardware": f"{versions['chip']}, {versions['cores']} cores, jax {versions['packages']['jax']}",
        "Minutes": f"{result['seconds']['total'] / 60:.1f}",
        "Expect": f"{score['what']}: IQM {score['iqm']:.4g}, 95 % interval {score['low']:.4g} to {score['high']:.4g}, "
        f"over {score['runs']} seeds",
    }


def header(source: str, result: dict) -> str:
    """The source of an experiment with the measured lines in its header."""
    for field, value in facts(result).items():
        start, rest = re.split(rf"^{field}: +.*$", source, maxsplit=1, flags=re.M)
        source = start + f"{field}:".ljust(10) + value + rest
    return source


def table() -> str:
    """The README's table of all recorded experiments, in alphabetical order."""
    columns = ["experiment", "result (IQM over seeds, 95 % interval)", "steps per seed", "minutes"]
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text())
        if "score" not in result:
            continue
        source = HERE / f"{result['experiment'].partition('.')[0]}.py"
        what, score = source.read_text().split('"""')[1].splitlines()[0], result["score"]
        lines.append(
            f"| `{result['command']}`: {what} "
            f"| {score['what']}: {score['iqm']:.4g} ({score['low']:.4g} to {score['high']:.4g}), {score['runs']} seeds "
            f"| {result['steps'] / 1e6:.2g} M | {result['seconds']['total'] / 60:.1f} |"
        )
    return "\n".join(lines)


def with_table(readme: str) -> str:
    """The README with today's table between its two marks."""
    return re.sub(
        r"(<!-- results -->\n).*?(<!-- /results -->)", lambda m: f"{m[1]}{table()}\n{m[2]}", readme, flags=re.S
    )


def main(runs: list[str]) -> None:
    """Record the runs, then rewrite every header and the table."""
    for run in runs:
        print(record(Path(run)))
    for path in sorted(RESULTS.glob("*.json")):
        source = HERE / f"{path.stem}.py"
        result = json.loads(path.read_text())
        if source.exists() and "score" in result:
            source.write_text(header(source.read_text(), result))
    README.write_text(with_table(README.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
