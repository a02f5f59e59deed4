"""What papers claim of their methods, each beside what the records show of it.

The claims are written here, in words; what was seen of them comes out of the records, and so does the comparison.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxrl_gen import evaluate

Result = dict[str, Any]


class Arm(NamedTuple):
    """A run that a claim compares: the record whose static fields are these."""

    name: str
    fields: dict[str, Any]
    score: Callable[[Result], dict[str, float]] = lambda result: result["score"]


class Trial(NamedTuple):
    """An experiment that tests a claim: the first arm should be better than each of the others."""

    experiment: str
    where: str  # on what, as flags
    arms: list[Arm]
    told: tuple[str, str] = ("", "")  # a metric that is told beside the scores, and its name


class Claim(NamedTuple):
    """What a paper says, in our words."""

    method: str
    paper: str  # arXiv
    says: str
    trials: list[Trial]


def _methods(*names: str, **fields: str) -> list[Arm]:
    return [Arm(f"`{name}`", fields | {"method": name}) for name in names]


def _critics(members: int) -> Arm:
    """The cells of `edge_of_reach` in which so many critics learn from rollouts of 5 steps, in per cent."""

    def score(result: Result) -> dict[str, float]:
        (cell,) = [x for x in result["cells"] if (x["members"], x["horizon"], x["deviation"]) == (members, 5, 20.0)]
        return evaluate.summary([100.0 * earned / cell["optimum"] for earned in cell["earned"]])

    return Arm(f"{members} critics" if members > 1 else "1 critic", {}, score)


STEEP = ("critic/steepness", "steepness")
MODELS = "One model suffices where values are kept from being steep; an ensemble of models does not do better."
CLAIMS = [
    Claim(
        "ravl", "2402.12527",
        "Rollouts that are cut short ruin values even in an exact model, at the edge of reach; many critics cure it.",
        [
            Trial("edge_of_reach", "", [_critics(10), _critics(2), _critics(1)]),
            Trial("offline_point_maze", "--data medium", _methods("ravl", "mopo", data="medium")),
        ],
    ),
    Claim(
        "odice", "2402.00348", "The orthogonal gradient is better than the forward one alone and than the sum of both.",
        [Trial("odice_corridor", "", [Arm(x, {"direction": x}) for x in ("orthogonal", "semi", "true")])],
    ),
    Claim(
        "prdc", "2306.06569", "To keep close to the data set is better than to keep close to each row's own action.",
        [Trial("offline_point_maze", "--data narrow", _methods("prdc", "td3_bc", data="narrow"))],
    ),
    Claim(
        "a2pr", "2405.19909", "Where good and bad are mixed, only what is better than average should be kept close to.",
        [Trial("offline_point_maze", "--data mixed", _methods("a2pr", "td3_bc", "bc", data="mixed"))],
    ),
    Claim(
        "arsq", "2502.00288", "From suboptimal data, choices that know those before them learn more than others.",
        [Trial("offline_point_maze", "--data mixed", _methods("arsq", "arsq_factorised", "bc", data="mixed"))],
    ),
    Claim(
        "lipmbrl", "2302.01244", MODELS,
        [
            Trial("offline_point_maze", "--data medium", _methods("lipmbrl", "mopo", data="medium"), STEEP),
            Trial(
                "offline_brax", "--data medium_replay",
                _methods("lipmbrl", "mopo", task="hopper", data="medium_replay"), STEEP,
            ),
        ],
    ),
    Claim(
        "sac on classified", "2403.03950", "Critics that classify gain more from width than critics that regress.",
        [
            Trial(
                "sac_hl_gauss", f"--width {width}",
                [
                    Arm("classified", {"classify": True, "width": width}),
                    Arm("regressed", {"classify": False, "width": width}),
                ],
            )
            for width in (64, 256)
        ],
    ),
    Claim(
        "beer", "2404.12754", "A bound on the likeness of a critic's features from step to step is better than none.",
        [Trial("off_policy_swingup", "", _methods("beer", "td3"), ("critic/rank", "effective rank"))],
    ),
]  # fmt: skip


def table(records: dict[str, Result]) -> str:
    """The README's table of claims.

    Args:
      records: by their names.
    """
    columns = ["method", "what the paper claims", "tested here by", "seen: IQM over seeds (95 % interval)"]
    lines = [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}"]
    for claim in CLAIMS:
        about = [f"`{claim.method}`", f"{claim.says} [{claim.paper}](https://arxiv.org/abs/{claim.paper})"]
        for trial in claim.trials:
            by = f"[`{trial.experiment}`](experiments/{trial.experiment}.py) {trial.where}".strip()
            lines.append(f"| {' | '.join([*about, by, _seen(trial, records)])} |")
            about = ["", ""]
    return "\n".join(lines)


def _seen(trial: Trial, records: dict[str, Result]) -> str:
    """Each arm's figures, and how those after the first compare with it."""
    told, first = [], None
    for i, arm in enumerate(trial.arms):
        name = _found(trial.experiment, arm, records)
        if name is None:
            told.append(f"{arm.name}: not measured yet")
            continue
        score = arm.score(records[name])
        first = score if i == 0 else first
        figures = "{iqm:.4g} ({low:.4g} to {high:.4g})".format(**score)
        text = f"{arm.name}: [{figures}](experiments/results/{name}.json)"
        metric, called = trial.told
        if metric in records[name].get("last", {}):
            text += f", {called} {records[name]['last'][metric]:.3g}"
        told.append(text + (f", {compared(first, score)}" if i and first else ""))
    return "; ".join(told)


def compared(first: dict[str, float], other: dict[str, float]) -> str:
    """How another does beside the first: not told apart where their intervals overlap."""
    if other["high"] < first["low"]:
        return "worse"
    if first["low"] == first["high"] == other["low"] == other["high"]:
        return "the same with every seed, so this does not test it"
    return "better" if other["low"] > first["high"] else "not told apart"


def _found(experiment: str, arm: Arm, records: dict[str, Result]) -> str | None:
    """The record of an arm, of several that with the shortest command."""

    def fits(result: Result) -> bool:
        told = result.get("config", {}).get("static", {})
        of_this = result.get("experiment", "").partition(".")[0] == experiment
        return of_this and all(told.get(field) == value for field, value in arm.fields.items())

    fitting = [name for name in records if fits(records[name])]
    return min(fitting, key=lambda name: len(records[name]["command"]), default=None)
