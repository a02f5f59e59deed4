"""Evaluation: whole episodes counted once each, and what they say over seeds, with intervals.

`episodes` and `evaluator` are pure and run on the device; `iqm`, `interval` and `summary` are NumPy, on the host.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_gen.envs import wrap
from jaxrl_gen.types import Algorithm, Env, PyTree, Recalled, ended


class Episodes(NamedTuple):
    """One episode of each lane: leaves [N], or [members, N] of a population.

    Where `ended` is False the steps ran out first: return and length are those so far. Where `valid` is False the
    simulator went non-finite: the episode ended there, and its return is not one to average.
    """

    returns: jax.Array  # f32, undiscounted
    lengths: jax.Array  # i32, steps
    ended: jax.Array  # bool
    terminated: jax.Array  # bool
    valid: jax.Array  # bool


def episodes(
    algo: Algorithm,
    env: Env,
    state: PyTree,
    key: jax.Array,
    *,
    lanes: int,
    steps: int | None = None,
    sample: bool = False,
) -> Episodes:
    """Play one episode in every lane, for a fixed number of steps, and count each once.

    An average over whichever episodes happen to finish favours short ones; here every lane has exactly one, and what
    follows its end is masked out. The number of steps is fixed, so it always ends.

    Args:
      algo: whose `act` plays.
      env: one lane that does not reset itself.
      state: the algorithm's State.
      key: consumed here.
      lanes: N, episodes.
      steps: T, at most so many per episode; default: the environment's time limit.
      sample: draw actions as in training; default: the deterministic ones (`act` with `key=None`).
    Returns:
      Episodes, leaves [N].
    Raises:
      ValueError: for no lanes, no steps, an environment of many lanes, or one without a time limit and `steps` None.
    """
    steps = _checked_steps(env, lanes, steps)
    env = wrap.quarantine(env)
    key_reset, key_steps = jax.random.split(key)
    env_state, obs = jax.vmap(env.reset)(jax.random.split(key_reset, lanes))
    off, on = jnp.zeros((lanes,), bool), jnp.ones((lanes,), bool)
    so_far = Episodes(jnp.zeros((lanes,), jnp.float32), jnp.zeros((lanes,), jnp.int32), off, off, on)

    def step(playing, key):
        env_state, obs, memory, so_far = playing
        key_act, key_env = jax.random.split(key)
        read = obs if memory is None else Recalled(obs, memory)
        action, extras = algo.act(state, read, key_act if sample else None)
        env_state, obs, outcome = jax.vmap(env.step)(env_state, action, jax.random.split(key_env, lanes))
        alive, valid = ~so_far.ended, outcome.valid
        so_far = Episodes(
            returns=so_far.returns + jnp.where(alive, outcome.reward.astype(jnp.float32), 0.0),
            lengths=so_far.lengths + (alive & valid),
            ended=so_far.ended | ended(outcome),
            terminated=so_far.terminated | (alive & outcome.terminated),
            valid=so_far.valid & (valid | ~alive),
        )
        return (env_state, obs, None if memory is None else extras["memory"], so_far), None

    playing = (env_state, obs, algo.memory(lanes), so_far)
    return jax.lax.scan(step, playing, jax.random.split(key_steps, steps))[0][-1]


def evaluator(make: Callable, env: Env, lanes: int, steps: int | None = None, *, sample: bool = False) -> Callable:
    """An evaluation as one pure function of config, State and key, to be jitted, and mapped by `sweep.mapped`.

    Args:
      make: `(cfg, spec) -> Algorithm`.
      env, lanes, steps, sample: as of `episodes`.
    Returns:
      `(cfg, state, key) -> Episodes`, leaves [N].
    Raises:
      ValueError: as `episodes`, before anything is traced.
    """
    steps = _checked_steps(env, lanes, steps)

    def evaluate(cfg, state, key):
        return episodes(make(cfg, env.spec), env, state, key, lanes=lanes, steps=steps, sample=sample)

    return evaluate


def _checked_steps(env: Env, lanes: int, steps: int | None) -> int:
    if lanes < 1:
        raise ValueError(f"lanes is {lanes}; allowed: 1 and more")
    if env.lanes is not None:
        raise ValueError(
            f"the environment has {env.lanes} lanes that reset themselves; evaluate the one lane it is made of"
        )
    limit = env.spec.time_limit
    if steps is None and limit is None:
        raise ValueError("the environment has no time limit: say how many steps an episode may take, steps=...")
    if steps is not None and steps < 1:
        raise ValueError(f"steps is {steps}; allowed: 1 and more")
    return min(x for x in (steps, limit) if x is not None)


def iqm(x: np.ndarray, axis: int | None = None) -> np.ndarray:
    """The interquartile mean: of what is left after the lowest and the highest quarter are dropped.

    Of S numbers floor(S / 4) are dropped at either end. It resists outliers as the median does, and wastes less data.

    Args:
      x: scores of any shape.
      axis: the one to reduce; default: all of them.
    Returns:
      The mean, without that axis.
    Reference: Agarwal et al. 2021, arXiv 2108.13264, section 4.2
    """
    from scipy import stats  # takes a quarter of a second, and only evaluation needs it

    return stats.trim_mean(np.asarray(x, np.float64), 0.25, axis)


def interval(
    scores: np.ndarray,
    statistic: Callable = iqm,
    confidence: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
) -> tuple[float, float]:
    """A stratified percentile bootstrap interval of a statistic over runs.

    Each resample draws as many runs as there are, with replacement and for each task on its own, and pools all tasks.

    Args:
      scores: [R] runs of one task, or [tasks, R].
      statistic: `(scores [..., S], axis=-1) -> [...]`, for example `np.mean`.
      confidence: of the interval, in (0, 1).
      resamples: how many.
      seed: of the resampling, so that the same scores give the same interval.
    Returns:
      (low, high).
    Raises:
      ValueError: for scores that are not finite, fewer than two runs, or a confidence outside (0, 1).
    Reference: Agarwal et al. 2021, arXiv 2108.13264, section 4.1
    """
    from scipy import stats

    scores = _checked_scores(scores)
    if scores.shape[1] < 2:
        raise ValueError("scores has 1 run; an interval over runs needs 2 and more")
    if not 0.0 < confidence < 1.0:
        raise ValueError(f"confidence is {confidence}; allowed: numbers between 0 and 1")
    if resamples < 1:
        raise ValueError(f"resamples is {resamples}; allowed: 1 and more")
    result = stats.bootstrap(
        tuple(scores),
        lambda *tasks, axis: statistic(np.concatenate(tasks, axis), axis=axis),
        n_resamples=resamples,
        vectorized=True,
        confidence_level=confidence,
        method="percentile",
        rng=np.random.default_rng(seed),
    )
    return float(result.confidence_interval.low), float(result.confidence_interval.high)


def summary(scores: np.ndarray, confidence: float = 0.95, resamples: int = 2000, seed: int = 0) -> dict[str, float]:
    """What to report of the scores of several runs: the interquartile mean with its interval, and the plain figures.

    Args:
      scores: [R] runs of one task, or [tasks, R].
      confidence, resamples, seed: as of `interval`.
    Returns:
      runs, iqm, low, high, mean, std (over all scores, n - 1), median, min, max; NaN where one run does not tell.
    Raises:
      ValueError: as `interval`, except that one run is allowed.
    """
    checked = _checked_scores(scores)
    several = checked.shape[1] > 1
    low, high = interval(checked, iqm, confidence, resamples, seed) if several else (np.nan, np.nan)
    return {
        "runs": checked.shape[1],
        "iqm": float(iqm(checked)),
        "low": float(low),
        "high": float(high),
        "mean": float(np.mean(checked)),
        "std": float(np.std(checked, ddof=1)) if checked.size > 1 else np.nan,
        "median": float(np.median(checked)),
        "min": float(np.min(checked)),
        "max": float(np.max(checked)),
    }


def _checked_scores(scores: np.ndarray) -> np.ndarray:
    """Scores as float64 [tasks, R]."""
    scores = np.asarray(scores, np.float64)
    if scores.ndim not in (1, 2) or scores.size == 0:
        raise ValueError(f"scores has shape {scores.shape}; allowed: [runs] or [tasks, runs], not empty")
    bad = np.argwhere(~np.isfinite(scores))
    if len(bad):
        named = ", ".join(f"scores[{', '.join(map(str, at))}] is {scores[tuple(at)]}" for at in bad[:3])
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise ValueError(f"{named}{more}; a run that failed needs a score of its own, or must be left out by name")
    return np.atleast_2d(scores)
