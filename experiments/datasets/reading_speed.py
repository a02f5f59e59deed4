"""How fast datasets are read, from files to the device with all checks: RLDS and npz, 1000 episodes of 200 steps.

Run:      python -m experiments.datasets.reading_speed
Hardware: not measured
Minutes:  not measured
Expect:   not measured
"""

import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.datasets._recording import cli
from jaxrl_gen.data import arrays, rlds, trajectory
from jaxrl_gen.types import Spec

SPEC = Spec(jax.ShapeDtypeStruct((17,), jnp.float32), 6)


@dataclasses.dataclass(frozen=True)
class Reading:
    """How much, and how often."""

    episodes: int = 1000
    steps: int = 200  # of each
    repeats: int = 5  # the median is told


def main(command: Reading) -> None:
    """Write random episodes in each format, and read them."""
    rng, count = np.random.default_rng(0), command.episodes * command.steps
    over = np.arange(count) % command.steps == command.steps - 1
    obs = rng.normal(size=(count + command.episodes, 17))
    data = trajectory.make(obs, rng.uniform(-1, 1, (count, 6)), rng.normal(size=count), over & False, over)
    with tempfile.TemporaryDirectory() as folder:
        for name, write, read in (
            ("rlds", rlds.write, rlds.read),
            ("npz, D4RL's layout", arrays.write_d4rl, arrays.read_d4rl),
            ("npz, OGBench's layout", arrays.write_ogbench, arrays.read_ogbench),
        ):
            path = Path(folder) / f"data.{name.partition(',')[0]}"
            wrote = _seconds(lambda: write(path, data))
            once = lambda: jax.block_until_ready(read(path, SPEC, say=_nobody))
            reads = [_seconds(once) for _ in range(command.repeats)]
            middle, slow, fast = (count / x for x in (statistics.median(reads), max(reads), min(reads)))
            print(
                f"{name}: written at {count / wrote:,.0f} steps/s, read at {middle:,.0f} steps/s "
                f"(median of {command.repeats}; {slow:,.0f} to {fast:,.0f})"
            )


def _seconds(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return time.perf_counter() - begun


def _nobody(line: str) -> None:
    """To whom a line is said that nobody needs."""


if __name__ == "__main__":
    cli(main, Reading)
