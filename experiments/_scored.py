"""Experiments that are no run of `launch` and make their own score: their folder, and a `result.json` like any other."""

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from jaxrl_gen import conclude, evaluate, launch, record


def make_folder(exp: launch.Experiment) -> Path:
    """The new folder of a run, <runs>/<name>-<time>.

    Raises:
      FileExistsError: if it is there already.
    """
    folder = exp.runs / (exp.name + (time.strftime("-%Y%m%d-%H%M%S") if exp.stamp else ""))
    folder.mkdir(parents=True)
    return folder


def write(
    exp: launch.Experiment, folder: Path, *, what: str, scores: np.ndarray, training: float, **found: Any
) -> None:
    """Write `result.json`: what was run, its score, what else was found, and what it depends on.

    Args:
      exp: the settings.
      folder: of the run.
      what: the score is, in words.
      scores: of each member.
      training: seconds.
      found: further entries, by name.
    """
    result = {
        "experiment": record.identity(exp),
        "command": " ".join(sys.orig_argv),
        "score": {"what": what, **evaluate.summary(scores), "per_member": scores},
        **found,
        "steps": int(exp.total_steps),
        "seconds": {"training": training, "total": conclude.seconds_since_start()},
        "versions": record.versions(),
        "config": record.describe(exp),
    }
    (folder / "result.json").write_text(json.dumps(record.plain(result), indent=1))
