"""The page that a run leaves behind: one self-contained HTML file, made from the files of the run's folder alone.

`write` makes `report.html` and `curve.png`. Whatever is missing is said on the page; nothing read from the folder is
executed, what is shown is escaped, and no path leads out of the folder.
"""

import base64
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from jaxrl_gen import __version__, evaluate
from jaxrl_gen.runs import Run, inside, last_known, over_members, read, series

LARGEST_VIDEO = 32 * 2**20  # bytes; a longer one is linked, not embedded
RETURN = "episode/return"
EVALUATION = "evaluate/return"
EVALUATED = ("score", "iqm", "episodes", "worst", "length", "unfinished")  # of a member; the rest tells which it is


def write(folder: str | Path) -> Path:
    """Write `report.html`, and `curve.png` beside it, from the files of a run folder.

    Args:
      folder: of a run; config.json, versions.json, result.json, metrics.jsonl, a video and a policy are read if there.
    Returns:
      The page's path.
    Raises:
      FileNotFoundError: if the folder does not exist.
    """
    run = read(folder)
    if series(run, RETURN):
        curve(folder)
    page = Path(folder) / "report.html"
    page.write_text(_page(run), encoding="utf-8")
    return page


def curve(folder: str | Path) -> Path:
    """Draw the learning curve of a run folder: the mean over seeds, its 95 % interval, and a thin line for every seed.

    Args:
      folder: of a run, with metrics.jsonl.
    Returns:
      The path of `curve.png`.
    Raises:
      FileNotFoundError: if the folder does not exist.
      ValueError: if no episode return was recorded.
    """
    run = read(folder)
    if not series(run, RETURN):
        raise ValueError(f"{Path(folder) / 'metrics.jsonl'} records no {RETURN}")
    path = Path(folder) / "curve.png"
    _draw(run, (7.2, 3.6), path, dpi=160)
    return path


# ---------------------------------------------------------------------------------------------------------- pictures

# Colours that stand for roles: as they are in the PNG, and replaced by the page's own variables in the SVG.
INK, MUTED, RULE, ACCENT, SECOND = "#1b1f26", "#6b7280", "#e3e6ea", "#2457c5", "#c2571a"
ROLES = {INK: "ink", MUTED: "muted", RULE: "rule", ACCENT: "accent", SECOND: "second"}
ROLES |= {"#1d8a6b": "third", "#8a4fc4": "fourth", "#b03060": "fifth"}
PALETTE = [ACCENT, *list(ROLES)[4:]]  # of the settings of a sweep; further ones are thin and grey
MOST_POINTS = 600


def save(draw: Callable, inches: tuple[float, float], labels: tuple[str, ...], out: Any, **options: Any) -> None:
    """Write a figure of returns, with a panel for each label; matplotlib takes a second to load, so it waits until now.

    Args:
      draw: on the panels' axes.
      inches: width and height.
      labels: of what is on each panel's axis of abscissas.
      out, options: of matplotlib's `savefig`.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter, MaxNLocator

    settings = {"font.size": 10, "text.parse_math": False, "svg.fonttype": "none", "svg.hashsalt": str(inches)}
    with rc_context(settings):
        figure = Figure(inches, layout="constrained", facecolor="white")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(labels), sharey=True, squeeze=False, subplot_kw={"facecolor": "none"})[0]
        draw(*panels)
        for axes, label in zip(panels, labels):
            axes.set_xlabel(label, color=MUTED)
            axes.xaxis.set_major_formatter(EngFormatter(sep=" "))
            if axes.get_xscale() == "linear":
                axes.xaxis.set_major_locator(MaxNLocator(6))
            axes.yaxis.set_major_locator(MaxNLocator(6))
            axes.grid(axis="y", color=RULE, linewidth=0.8)
            axes.tick_params(which="both", length=0, colors=MUTED, pad=6)
            axes.set_axisbelow(True)
            axes.spines[:].set_visible(False)
            axes.spines["bottom"].set(visible=True, color=RULE)
            axes.margins(x=0.01)
        axes = panels[0]
        axes.set_title("return of training episodes", loc="left", fontsize=10, color=MUTED)
        if len(axes.get_legend_handles_labels()[0]) > 1:
            axes.legend(frameon=False, labelcolor=INK, loc="best", handlelength=1.4)
        figure.savefig(out, **options)


def _draw(run: Run, inches: tuple[float, float], out: Any, **options: Any) -> None:
    """Write the learning curve of a run to a file."""
    save(lambda axes: _draw_lines(axes, run), inches, ("environment steps of each member",), out, **options)


def _draw_lines(axes, run: Run) -> None:
    """Every setting's mean over its seeds with the interval, thin lines for the seeds, dots for evaluations."""
    steps, values = series(run, RETURN)
    stride = max(1, len(steps) // MOST_POINTS)
    steps, values = steps[::stride], values[::stride]
    settings = _settings(run, values.shape[1])
    for colour, (label, members) in zip(PALETTE, settings):
        mean, low, high = over_members(values[:, members])
        if len(members) > 1:
            band = "95 % interval of the mean" if len(settings) == 1 else None
            axes.fill_between(steps, low, high, color=colour, alpha=0.18, linewidth=0, label=band)
            for i in members:
                first = "every seed" if i == 0 and len(settings) == 1 else None
                axes.plot(steps, values[:, i], color=colour, alpha=0.38, linewidth=0.8, label=first)
        label = label or (f"mean of {len(members)} seeds" if len(members) > 1 else "training")
        axes.plot(steps, mean, color=colour, linewidth=2.2, label=label)
    for i in [i for _, members in settings[len(PALETTE) :] for i in members]:
        axes.plot(steps, values[:, i], color=MUTED, alpha=0.5, linewidth=0.8)
    if (evaluated := series(run, EVALUATION)) and len(settings) == 1:
        at, (mean, _, _) = evaluated[0], over_members(evaluated[1])
        axes.plot(at, mean, color=SECOND, linestyle="", marker="o", markersize=5, label="evaluation, mean")


def _settings(run: Run, count: int) -> list[tuple[str, list[int]]]:
    """(what sets it apart, its members) of each setting of a sweep; one without a name where nothing is swept."""
    members = run.result.get("members")
    if not isinstance(members, list) or len(members) != count or not all(isinstance(x, dict) for x in members):
        return [("", list(range(count)))]
    found: dict[str, list[int]] = {}
    for i, member in enumerate(members):
        swept = [f"{k} {number(x)}" for k, x in member.items() if k != "seed" and k not in EVALUATED]
        found.setdefault(", ".join(swept), []).append(i)
    return list(found.items())


def _svg(run: Run, inches: tuple[float, float]) -> str:
    """The learning curve as inline SVG in the page's own font and colours, light or dark."""
    out = io.StringIO()
    _draw(run, inches, out, format="svg", transparent=True)
    text = out.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'(<svg [^>]*?) width="[^"]*"', r"\1", re.sub(r'(<svg [^>]*?) height="[^"]*"', r"\1", text, 1), 1)
    text = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", text)
    for colour, role in ROLES.items():
        text = text.replace(colour, f"var(--{role})")
    return text


def spark(values: np.ndarray, width: float = 160, height: float = 36) -> str:
    """The points of a small line over the run, as an SVG path; an unknown value is a gap in it."""
    values = values[:: max(1, len(values) // 200)]
    known = values[np.isfinite(values)]
    if not known.size:
        return ""
    low, span = known.min(), np.ptp(known) or 1.0
    x = np.linspace(2, width - 2, len(values)) if len(values) > 1 else np.array([width / 2])
    y = height - 3 - (values - low) / span * (height - 6) if np.ptp(known) else np.full(len(values), height / 2)
    path, pen = [], "M"
    for at, up in zip(x, y):
        if np.isfinite(up):
            path.append(f"{pen}{at:.1f} {up:.1f}")
        pen = "L" if np.isfinite(up) else "M"
    return " ".join(path)


# -------------------------------------------------------------------------------------------------------------- page


def _page(run: Run) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    environment.filters |= {"number": number, "size": size}
    files = _files(run.folder)
    names, seeds = _seeds(run)
    return environment.get_template("report.html").render(
        name=run.folder.resolve().name,
        lead=[_command(run), str(run.versions.get("chip", ""))],
        run=run,
        tiles=_tiles(run),
        curves=[_svg(run, inches) for inches in ((8.6, 3.9), (4.4, 3.6))] if series(run, RETURN) else [],
        video=_video(run),
        seed_names=names,
        seeds=seeds,
        acting=_acting(run),
        others=_others(run),
        metrics=_metrics(run),
        config={kind: flatten(fields) for kind, fields in _config(run).items() if fields},
        versions=flatten({**run.versions, **part(run.versions, "packages"), "packages": {}}),
        timing=_timing(run),
        policies=[file for file in files if file["name"].startswith("policy")],
        plain_policy=any(file["name"] == "policy.npz" for file in files),
        files=files,
        version=__version__,
    )


def part(tree: dict[str, Any], name: str) -> dict[str, Any]:
    """The dictionary under a name, empty where there is something else or nothing."""
    found = tree.get(name)
    return found if isinstance(found, dict) else {}


def _config(run: Run) -> dict[str, dict[str, Any]]:
    """The configuration by what a change of it means; as one table where it is not told apart."""
    kinds = {"static": "shapes the program", "floats": "numbers, free to sweep", "options": "how it was run"}
    if not part(run.config, "static"):
        return {"": run.config}
    return {title: _without_copies(part(run.config, kind)) for kind, title in kinds.items()}


def _without_copies(fields: dict[str, Any]) -> dict[str, Any]:
    """Fields without those of the Config that ran which are equal to the fields that it was made from."""
    made_from = {name.partition(".")[2]: x for name, x in fields.items() if not name.startswith("config.")}
    ran = {name: x for name, x in fields.items() if name.startswith("config.")}
    copies = {name for name, x in ran.items() if made_from.get(name.removeprefix("config."), ...) == x}
    return {name: x for name, x in fields.items() if name not in copies}


def _command(run: Run) -> str:
    """How the run was started, without this machine's path to Python."""
    return re.sub(r"^\S*python\S*", "python", str(run.result.get("command") or ""))


def _tiles(run: Run) -> list[tuple[str, str, str]]:
    """The headline figures: (what, figure, detail)."""
    tiles, found, score = [], series(run, RETURN), part(run.result, "score")
    if score:
        tiles.append(("score", number(score.get("iqm")), f"{score.get('what', '')}, {_interval(score)}"))
    elif found and np.isfinite(ends := last_known(found[1])).any():
        told = evaluate.summary(ends[np.isfinite(ends)])
        tiles.append(("last return", number(told["iqm"]), f"of training episodes, {_interval(told)}"))
    if found:
        members = found[1].shape[1]
        tiles.append(("environment steps", short(found[0][-1]), f"of each of {members} members" if members > 1 else ""))
    if speed := series(run, "time/steps_per_second"):
        tiles.append(("steps per second", short(np.nanmedian(speed[1])), "all members together, median of the chunks"))
    if clock := series(run, "time/seconds"):
        total = part(run.result, "seconds").get("total")
        whole = f"{number(total)} from start to report" if total else ""
        tiles.append(("seconds of training", number(clock[1][-1, 0]), whole))
    return tiles


def _interval(told: dict[str, Any]) -> str:
    """Of what the figure is the interquartile mean, and how sure it is."""
    if told.get("runs") in (None, 1):
        return "one member"
    low, high = number(told.get("low")), number(told.get("high"))
    return f"IQM of {number(told['runs'])} members, 95 % interval {low} to {high}"


def _acting(run: Run) -> str:
    """How the evaluated policy chose."""
    sampled = part(run.config, "options").get("eval_sample")
    return "actions drawn as in training" if sampled else "the deterministic policy"


def _others(run: Run) -> dict[str, str]:
    """What other policies of the same parameters were found to do, and the time of a decision of each."""
    told = {}
    for name, found in part(run.result, "also").items():
        score = part(found, "score") if isinstance(found, dict) else {}
        if score:
            took = number(found.get("decision_ms"))
            told[name] = f"{number(score.get('iqm'))} ({_interval(score)}), {took} ms a decision"
    return told


def _timing(run: Run) -> dict[str, str]:
    """Where the time went and what compiling told."""
    seconds = {f"{name}, seconds": number(x) for name, x in part(run.result, "seconds").items()}
    facts = {"traces of the chunk": run.result.get("traces"), "chunks": run.result.get("chunks")}
    facts["decision of one lane, milliseconds"] = run.result.get("decision_ms")
    peak = run.result.get("peak_bytes")
    facts = {name: number(x) for name, x in facts.items() if x is not None}
    return seconds | facts | ({"peak memory, forecast": size(peak)} if isinstance(peak, int | float) else {})


def _seeds(run: Run) -> tuple[list[str], list[dict[str, Any]]]:
    """The names of the columns that tell members apart, and one row per member: names, training, evaluation, curve."""
    members = run.result.get("members")
    members = [x for x in members if isinstance(x, dict)] if isinstance(members, list) else []
    found, evaluated = series(run, RETURN), series(run, EVALUATION)
    count = found[1].shape[1] if found else len(members)
    members = members if len(members) == count else [{"seed": i} for i in range(count)]
    names = [name for name in (members[0] if members else {}) if name not in EVALUATED]
    tests = last_known(evaluated[1]) if evaluated else ()
    rows = []
    for i, member in enumerate(members):
        column = found[1][:, i] if found else np.full(1, np.nan)
        score = member.get("score", tests[i] if i < len(tests) else None)
        rows.append({
            "names": [number(member.get(name)) for name in names],
            "last": last_known(column[:, None])[0],
            "best": np.nanmax(column) if np.isfinite(column).any() else None,
            "score": score,
            "worst": member.get("worst"),
            "filmed": i == run.result.get("best"),
            "spark": spark(column),
        })  # fmt: skip
    return names, rows


def _metrics(run: Run) -> list[dict[str, Any]]:
    """Every recorded metric's mean over members, in small."""
    cards = []
    for name in sorted({name for row in run.rows for name in row} - {"chunk", "steps"}):
        if found := series(run, name):
            finite = np.isfinite(found[1])
            mean = np.sum(found[1], 1, where=finite) / np.where(finite.any(1), finite.sum(1), np.nan)
            cards.append({"name": name, "last": last_known(mean[:, None])[0], "spark": spark(mean)})
    return cards


def _video(run: Run) -> dict[str, Any]:
    """The video as a data URL, with a still as its poster; what is not there is `None`."""
    path, still = inside(run.folder, "video.mp4"), inside(run.folder, "video.png")
    fits = path is not None and path.stat().st_size <= LARGEST_VIDEO
    return {
        "data": data_url(path, "video/mp4") if fits else None,
        "link": "video.mp4" if path is not None and not fits else None,
        "still": data_url(still, "image/png") if still is not None else None,
    }


def data_url(path: Path, kind: str) -> str:
    """A file's bytes as a `data:` URL."""
    return f"data:{kind};base64,{base64.b64encode(path.read_bytes()).decode()}"


def _files(folder: Path) -> list[dict[str, Any]]:
    """What lies in the folder, with links that stay inside it."""
    found = []
    for path in sorted(folder.iterdir()):
        if path.name != "report.html" and inside(folder, path.name) is not None:
            parts = path.rglob("*") if path.is_dir() else [path]
            total = sum(x.lstat().st_size for x in parts if x.is_file())
            found.append({"name": path.name, "link": quote(path.name), "folder": path.is_dir(), "bytes": total})
    return found


def flatten(tree: Any, name: str = "") -> dict[str, str]:
    """Nested dictionaries as dotted names with values to print, in their order."""
    if isinstance(tree, dict):
        return {k: v for key, value in tree.items() for k, v in flatten(value, f"{name}.{key}".strip(".")).items()}
    if isinstance(tree, list):
        return {name: ", ".join(number(x) for x in tree)}
    return {name: number(tree)}


def number(x: Any) -> str:
    """A number as people write it: four digits that count, thousands apart, a dash where it is unknown; or any text."""
    if x is None or isinstance(x, float) and np.isnan(x):
        return "–"
    if isinstance(x, bool | np.bool) or not isinstance(x, int | float | np.number) or np.isinf(x):
        return str(x)
    if abs(x) >= 1000 or x == int(x):
        return f"{x:,.0f}".replace(",", "\u2009")
    return f"{x:.4g}"


def short(x: float) -> str:
    """A large number in thousands or millions, three digits that count."""
    for unit, name in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= 0.9995 * unit:
            return f"{x / unit:.3g}\u2009{name}"
    return number(x)


def size(count: float) -> str:
    """A number of bytes as people write it."""
    for unit in ("B", "kB", "MB"):
        if count < 999.5:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"
