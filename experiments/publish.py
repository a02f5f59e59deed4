"""Publish finished runs: the recorded result, the experiment's header and the README's tables say what was measured.

    python -m experiments.publish runs/ppo_swingup-20261120-224358 [...]  # record these runs
    python -m experiments.publish                                         # rewrite headers and tables from the records

Nothing here is typed by hand: a figure in a header or in a table is the one in `experiments/results/<name>.json`, what
is said of a method is read from its source, and a test holds them together. An experiment that imports one algorithm
measures that one; another has a line in its header that says which methods it measures with which flags, such as
`Method: iql; bc: --clone`, or, where a flag takes the name of a method, or of the part it
is on, `Method: grpo; dapo, rloo: --method NAME`.

What papers claim is in `_claims.py`, and what was seen of it is written beside it. Experiments on one task, as in
`PICTURES`, are drawn together: their records keep a few points of each learning curve.

Of an experiment with a line such as `Table: offline, by task, data` in its header, each value of these fields makes a
column of the README's table of that name, whose rows are methods. The table of all methods tells its default column.
"""

import json
import re
import shlex
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from experiments import _claims, _methods
from jaxrl_gen import report, runs

HERE = Path(__file__).parent
RESULTS = HERE / "results"
README = HERE.parent / "README.md"
PICTURES = {"swingup": ("ppo_swingup", "off_policy_swingup")}  # experiments whose curves are drawn together
POINTS = 60  # of a recorded curve, at most
BESIDE = ("critic/rank", "critic/steepness", "model/value_error")  # metrics whose last values are recorded


class Entry(NamedTuple):
    """An experiment, run in one way: a row of the README's table."""

    method: str
    name: str  # of the record
    command: str
    result: dict | None  # None: not measured yet
    unit: str  # of its steps
    table: str = ""  # that compares it with other experiments, if any
    column: tuple[str, ...] = ()  # there: the values of the fields that make it
    usual: bool = True  # whether these are the defaults


def record(run: Path) -> Path:
    """Copy a run's `result.json`, learning curve and a still of its video beside the experiments; returns its path.

    The record has a few points of the curve besides, and the last values of what claims are about.

    Raises:
      ValueError: if the run was resumed with other settings, which the command that began it does not say.
    """
    result = json.loads((run / "result.json").read_text())
    config = result["config"]
    if changes := config.get("changes"):
        fields = ", ".join(change["field"] for change in changes)
        raise ValueError(f"{run}: {fields} changed when it was resumed, and no one command gives this result")
    name = config["options"]["name"]
    result["command"] = re.sub(r" --runs[ =]\S+", "", re.sub(r"^\S*python\S*", "python", result["command"]))
    config["options"]["runs"] = "runs"  # where it lay on someone's disk is nobody's business
    config.pop("command", None)
    config["resumed"] = len(config.get("resumed", []))
    told = runs.read(run)
    result |= {"curve": curve(told), "last": last(told)}
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    if (run / "curve.png").exists():
        shutil.copy(run / "curve.png", RESULTS / f"{name}.png")
    if (run / "video.mp4").exists():
        import imageio.v3 as iio

        frames = iio.imread(run / "video.mp4")
        iio.imwrite(RESULTS / f"{name}_still.png", frames[len(frames) // 2])
    return path


def curve(run: runs.Run) -> dict[str, list]:
    """Some points of a run's learning curve: steps of a member, seconds of all, mean return with its interval."""
    found, clock = runs.series(run, report.RETURN), runs.series(run, "time/seconds")
    if not found or not clock or len(found[0]) != len(clock[0]):
        return {}
    at = np.unique(np.linspace(0, len(found[0]) - 1, min(POINTS, len(found[0]))).round().astype(int))
    told = dict(zip(("mean", "low", "high"), runs.over_members(found[1][at])))
    told = {"steps": found[0][at], "seconds": clock[1][at, 0], **told}
    return {name: [float(f"{x:.5g}") if np.isfinite(x) else None for x in xs] for name, xs in told.items()}


def last(run: runs.Run) -> dict[str, float]:
    """The last value of each metric that a claim is about, over members on the mean."""
    found = {name: runs.series(run, name) for name in BESIDE}
    return {name: float(np.mean(runs.last_known(series[1]))) for name, series in found.items() if series}


# ------------------------------------------------------------------------------------------------------------- headers


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


def measures(source: str) -> list[tuple[str, str]]:
    """(method, flags with which it is measured) of an experiment, as its header tells, or else its one algorithm."""
    told = re.search(r"^Method: +(.+(?:\n {10}.+)*)$", source, re.M)
    imported = re.search(r"^from jaxrl_gen.algos import (\w+)$", source, re.M)
    ways = []
    for part in " ".join(told[1].split()).split("; ") if told else [imported[1]] if imported else []:
        names, _, flags = part.partition(": ")
        ways += [(name, flags.replace("NAME", name.split()[-1])) for name in names.split(", ")]
    return ways


def compared(source: str) -> tuple[str, dict[str, str]]:
    """The table in which an experiment stands, and the fields that make its columns there with their defaults."""
    told = re.search(r"^Table: +(\w+), by (.+)$", source, re.M)
    fields = told[2].split(", ") if told else []
    defaults = {field: re.search(rf'^    {field}: .*static\("(.+?)"\)', source, re.M) for field in fields}
    if unknown := [field for field, default in defaults.items() if default is None]:
        raise ValueError(f"Table: by {', '.join(unknown)}; allowed: static fields of the experiment that are words")
    return told[1] if told else "", {field: default[1] for field, default in defaults.items()}


# -------------------------------------------------------------------------------------------------------------- tables


def records() -> dict[str, dict]:
    """Every record, by its name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}


def entries() -> Iterator[Entry]:
    """Every record, and every way to run an experiment of which there is none, by the names of experiments."""
    known = records()
    for path in sorted(HERE.glob("[a-z]*.py")):
        source = path.read_text(encoding="utf-8")
        ways = measures(source)
        unit = re.search(r"^    total_steps: .*  # (\w+)", source, re.M)
        unit = unit[1] if unit else "steps"
        name_of_table, defaults = compared(source)
        usual = tuple(defaults.values())
        missing = dict.fromkeys(ways)
        for name, result in known.items():
            if not result.get("score") or result.get("experiment", "").partition(".")[0] != path.stem:
                continue
            words = shlex.split(result["command"])
            fitting = [way for way in ways if _contains(words, shlex.split(way[1]))]
            if not fitting:
                raise ValueError(f"{path.name} does not say what {result['command']} measures: give it a line Method:")
            way = max(fitting, key=lambda way: len(way[1]))
            column = tuple(result["config"]["static"].get(field, default) for field, default in defaults.items())
            if column == usual:
                missing.pop(way, None)
            yield Entry(way[0], name, result["command"], result, unit, name_of_table, column, column == usual)
        for method, flags in missing:
            name = "_".join([path.stem, *(word.lstrip("-").replace("-", "_") for word in flags.split()[-1:])])
            flags = f" {flags} --name {name}" if flags else ""
            command = f"python -m experiments.{path.stem}{flags}"
            yield Entry(method, name, command, None, unit, name_of_table, usual)


def methods() -> list[tuple[_methods.Method, list[Entry]]]:
    """Every method with its entries, measured ones first, by families."""
    known, found = _methods.methods(), {}
    for entry in entries():
        plain, _, part = entry.method.partition(" on ")
        if plain not in known:
            raise ValueError(f"{entry.command} measures {plain!r}; allowed: {', '.join(known)}")
        if entry.method not in known:
            known[entry.method] = _methods.on_part(known[plain], part)
        found.setdefault(entry.method, []).append(entry)
    titled = [*_methods.TITLES, *sorted({method.family for method in known.values()} - set(_methods.TITLES))]
    order = list(known)  # of files, variants after what they vary
    place = lambda method: (titled.index(method.family), order.index(method.name.partition(" on ")[0]))
    unmeasured = lambda entry: entry.result is None
    return [(x, sorted(found.get(x.name, []), key=unmeasured)) for x in sorted(known.values(), key=place)]


def table() -> str:
    """The README's table of methods: what each is, and what was measured of it, with which command."""
    columns = ["method", "family", "what it is", "command", "result: IQM over seeds (95 % interval)", "minutes"]
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for method, found in methods():
        plain, _, part = method.name.partition(" on ")
        name = f"[`{plain}`]({method.file})" if not part else f"`{plain}` on [`{part}`]({method.file})"
        about = [name, title(method.family), method.line]
        usual = [entry for entry in found if entry.usual]
        # What a table across experiments shows as not measured is no row here, but where nothing else is known.
        for entry in [entry for entry in usual if entry.result or not entry.table] or usual[:1] or [None]:
            lines.append(f"| {' | '.join([*about, *_measured(entry)])} |")
            about = ["", "", ""]
    return "\n".join(lines)


def across(name: str) -> str:
    """A table of the README, methods by data of several experiments, whose figures are links to the records."""
    rows = {method.name: [entry for entry in found if entry.table == name] for method, found in methods()}
    rows = {method: found for method, found in rows.items() if found}
    place = lambda entry: (_file(entry), not entry.usual, entry.column)
    columns: dict[tuple, list[Entry]] = {at: [] for at in sorted(place(e) for found in rows.values() for e in found)}
    for entry in (entry for found in rows.values() for entry in found if entry.result):
        columns[place(entry)].append(entry)
    lines = [f"| {' | '.join(['method', *_titles(columns)])} |", f"|{' --- |' * (1 + len(columns))}"]
    for method, found in rows.items():
        linked = lambda entry: f"[{_figures(entry.result)}](experiments/results/{entry.name}.json)"
        cells = ["; ".join(linked(entry) for entry in here if entry in found) or "-" for here in columns.values()]
        lines.append(f"| {' | '.join([f'`{method}`', *cells])} |")
    return "\n".join(lines)


def families() -> str:
    """The README's table of families: their losses, their parts, and a picture of the longest run that left one."""
    columns = ["family", "losses", "parts that you replace", ""]
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    of: dict[str, list] = {}
    for method, found in methods():
        of.setdefault(method.family, []).append((method, found))
    for family, members in of.items():
        each = lambda values: ", ".join(f"`{value}`" for value in dict.fromkeys(values))
        losses, parts = ([x for method, _ in members for x in getattr(method, what)] for what in ("losses", "parts"))
        picture = _picture([entry for _, found in members for entry in found if entry.result])
        lines.append(f"| {title(family)} | {each(losses)} | {each(parts)} | {picture} |")
    return "\n".join(lines)


def curves(name: str) -> dict[str, dict]:
    """The recorded curves of a picture, by what they are of; of each method the first record that has one."""
    found: dict[str, dict] = {}
    for entry in entries():
        drawn = Path(_file(entry)).stem in PICTURES[name] and entry.result and entry.result.get("curve")
        if drawn and entry.method not in found:
            found[entry.method] = entry.result["curve"] | {"seeds": entry.result["score"]["runs"]}
    return {f"{method}, {drawn['seeds']} seeds": drawn for method, drawn in found.items()}


def draw(drawn: dict[str, dict], path: Path) -> None:
    """Draw curves, by their labels, over steps and over seconds."""

    def lines(*panels):
        for axes, along in zip(panels, ("steps", "seconds")):
            axes.set_xscale("log")
            for colour, (label, curve) in zip([*report.PALETTE, report.MUTED, report.INK], drawn.items()):
                x, mean, low, high = (np.array(curve[name], float) for name in (along, "mean", "low", "high"))
                axes.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
                axes.plot(x, mean, color=colour, linewidth=2.0, label=label)

    labels = ("environment steps of each seed", "seconds of training, of all seeds together")
    report.save(lines, (10, 3.8), labels, path, dpi=110)


def picture(name: str) -> str:
    """What the README says where a picture is, or will be."""
    if len(curves(name)) < 2:
        return "Not measured yet."
    return f"![return over steps and over seconds](experiments/results/beside_{name}.png)"


def title(family: str) -> str:
    """What the README calls a family."""
    return _methods.TITLES.get(family, family.replace("_", " "))


def with_tables(readme: str) -> str:
    """The README with today's tables between their marks."""
    marked = {"families": families(), "results": table(), "offline": across("offline")}
    marked |= {"claims": _claims.table(records())} | {name: picture(name) for name in PICTURES}
    for mark, written in marked.items():
        pattern = rf"(<!-- {mark} -->\n).*?(<!-- /{mark} -->)"
        readme = re.sub(pattern, lambda m: f"{m[1]}{written}\n{m[2]}", readme, flags=re.S)
    return readme


def _measured(entry: Entry | None) -> list[str]:
    """Command, with a link to the file whose header says more, result and minutes."""
    if entry is None:
        return ["", "not measured yet", ""]
    command = f"[`{entry.command}`]({_file(entry)})"
    if entry.result is None:
        return [command, "not measured yet", ""]
    score, steps = entry.result["score"], entry.result["steps"]
    taken = f"{steps / 1e6:.2g} M" if steps >= 1e6 else f"{steps:,.0f}"
    return [
        command,
        f"{score['what']}: {_figures(entry.result)}, {score['runs']} seeds of {taken} {entry.unit}",
        f"{entry.result['seconds']['total'] / 60:.1f}",
    ]


def _figures(result: dict) -> str:
    """IQM and its interval."""
    return "{iqm:.4g} ({low:.4g} to {high:.4g})".format(**result["score"])


def _titles(columns: dict[tuple, list[Entry]]) -> Iterator[str]:
    """Of each column, by (file, unusual, values of fields): the experiment, the data, and what was measured on them."""
    for (file, _, values), found in columns.items():
        whats = dict.fromkeys(entry.result["score"]["what"] for entry in found)
        for value in values:
            whats = dict.fromkeys(what.replace(f" in {value}", "") for what in whats)  # said already
        yield "<br>".join([f"[`{Path(file).stem}`]({file})", ", ".join(values), *whats])


def _file(entry: Entry) -> str:
    """The experiment's, from the root."""
    return entry.command.split()[2].replace(".", "/") + ".py"  # python -m experiments.ppo_ant ...


def _picture(found: list[Entry]) -> str:
    """The picture of the longest run that has one: a still of its video, or else its curve."""
    for entry in sorted(found, key=lambda entry: -entry.result["seconds"]["total"]):
        for path in (RESULTS / f"{entry.name}_still.png", RESULTS / f"{entry.name}.png"):
            if path.exists():
                return f"![{entry.name}](experiments/results/{path.name})"
    return ""


def _contains(words: list[str], flags: list[str]) -> bool:
    """Whether flags stand in a command, side by side."""
    return any(words[i : i + len(flags)] == flags for i in range(len(words) - len(flags) + 1))


def main(runs: list[str]) -> None:
    """Record the runs, then rewrite every header and the tables."""
    for run in runs:
        print(record(Path(run)))
    for path in sorted(RESULTS.glob("*.json")):
        source = HERE / f"{path.stem}.py"
        result = json.loads(path.read_text())
        if source.exists() and result.get("score"):
            source.write_text(header(source.read_text(), result))
    for name in PICTURES:
        if len(drawn := curves(name)) > 1:
            draw(drawn, RESULTS / f"beside_{name}.png")
    README.write_text(with_tables(README.read_text()))


if __name__ == "__main__":
    main(sys.argv[1:])
