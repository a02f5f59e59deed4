"""Evaluation: whole episodes counted once each, and what they say over seeds, with intervals.

`episodes` and `evaluator` are pure and run on the device. `hosted` and `side_by_side` judge a policy in simulators that
do not run in JAX. `iqm`, `interval`, `proportion` and `summary` are NumPy, on the host.
"""

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_gen.envs import wrap
from jaxrl_gen.types import Algorithm, Env, PyTree, Recalled, Spec, ended


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


def hosted(make: Callable, spec: Spec, play: Callable, lanes: int, *, sample: bool = False) -> Callable:
    """An evaluation in simulators that do not run in JAX, as a function of config, State and seed of one member.

    Args:
      make: `(cfg, spec) -> Algorithm`.
      spec: of one lane.
      play: `(act, memory, episodes, seed) -> Episodes` of NumPy arrays [N], such as a `side_by_side` with its
        environments; act is `(memory, obs [N, ...]) -> (memory, action [N, ...])`, jitted for N = `lanes`.
      lanes: N, episodes.
      sample: draw actions as in training; default: the deterministic ones (`act` with `key=None`).
    Returns:
      `(cfg, state, seed) -> Episodes`, NumPy leaves [N].
    Raises:
      ValueError: for no lanes; when called, if `play` returns other leaves than [N].
    """
    if lanes < 1:
        raise ValueError(f"lanes is {lanes}; allowed: 1 and more")

    act = jax.jit(lambda cfg, *seen: _acted(make(cfg, spec), *seen, sample=sample))

    def evaluate(cfg, state, seed):
        remembered = jax.random.key(seed), make(cfg, spec).memory(lanes)
        played = Episodes(*map(np.asarray, play(partial(act, cfg, jax.device_put(state)), remembered, lanes, seed)))
        for field, x in played._asdict().items():
            if x.shape != (lanes,):
                raise ValueError(f"play returned {field} of shape {x.shape}; expected ({lanes},), one of each episode")
        return played

    return evaluate


def watched(algo: Algorithm, state: PyTree, env: Env, play: Callable, seed: int) -> PyTree:
    """What the scene shows of an episode that is played on the host, NumPy leaves [T + 1, ...].

    Args:
      algo: whose deterministic actions play.
      state: of one member.
      env: whose `scene.view(None)` looks at the simulator of the first episode that `play` plays.
      play: as of `hosted`.
      seed: of the episode.
    Raises:
      ValueError: if there is no scene.
    """
    if env.scene is None:
        raise ValueError("this environment has no scene to draw")
    act, views = jax.jit(partial(_acted, algo, sample=False)), []

    def look():
        views.append(jax.tree.map(np.array, env.scene.view(None)))  # copies: the simulator goes on

    def seen(remembered, obs):
        look()
        return act(state, remembered, obs)

    play(seen, (jax.random.key(seed), algo.memory(1)), 1, seed)
    look()
    return jax.tree.map(lambda *x: np.stack(x), *views)


def _acted(algo: Algorithm, state: PyTree, remembered: tuple, obs: PyTree, *, sample: bool) -> tuple[tuple, jax.Array]:
    """(what is remembered then, actions) of a policy whose key lies beside its memory."""
    key, memory = remembered
    key, key_act = jax.random.split(key)
    read = obs if memory is None else Recalled(obs, memory)
    action, extras = algo.act(state, read, key_act if sample else None)
    return (key, None if memory is None else extras["memory"]), action


def side_by_side(envs: Sequence[Any], act: Callable, memory: PyTree, *, steps: int, seed: int) -> Episodes:
    """One episode in each of N gymnasium environments, stepped in turn, with the policy asked for all of them at once.

    Args:
      envs: N environments with gymnasium's `reset(seed=...)` and `step`, whose continuous actions are in [-1, 1]
        (`gymnasium.wrappers.RescaleAction`).
      act: `(memory, obs [N, ...]) -> (memory, action [N, ...])`, also for those whose episode is over.
      memory: at the start.
      steps: T, at most so many per episode.
      seed: each environment's own is drawn from it.
    Returns:
      Episodes, NumPy leaves [N].
    """
    count = len(envs)
    seeds = np.random.default_rng(seed).integers(2**31, size=count)
    obs = [env.reset(seed=int(own))[0] for env, own in zip(envs, seeds, strict=True)]
    returns, lengths = np.zeros(count, np.float32), np.zeros(count, np.int32)
    over, terminated, valid = np.zeros(count, bool), np.zeros(count, bool), np.ones(count, bool)
    for _ in range(steps):
        memory, action = act(memory, jax.tree.map(lambda *x: _narrow(np.stack(x)), *obs))
        action = np.asarray(action)
        action = np.clip(action, -1.0, 1.0) if action.dtype.kind == "f" else action
        for i in np.flatnonzero(~over):
            obs[i], reward, ends, cut, _ = envs[i].step(action[i])
            valid[i] = np.isfinite(reward) and all(np.all(np.isfinite(x)) for x in jax.tree.leaves(obs[i]))
            returns[i] += reward if valid[i] else 0.0
            lengths[i] += valid[i]
            terminated[i] = ends and valid[i]
            over[i] = ends or cut or not valid[i]
        if over.all():
            break
    return Episodes(returns, lengths, over, terminated, valid)


def decision_ms(algo: Algorithm, state: PyTree, spec: Spec, *, rounds: int = 50, seconds: float = 2.0) -> float:
    """The median time of one deterministic decision for one lane at the start of its episode, jitted, in milliseconds.

    A policy that plans chunks of actions plans then.

    Args:
      algo: whose `act` decides.
      state: of one member.
      spec: of one lane.
      rounds: decisions, after one that is not counted.
      seconds: fewer of them, but no fewer than five, where they take longer.
    """
    obs = jax.tree.map(lambda x: jnp.zeros((1, *x.shape), x.dtype), spec.obs)
    memory = algo.memory(1)
    act = jax.jit(lambda state, read: algo.act(state, read, None)[0])
    state, read = jax.device_put((state, obs if memory is None else Recalled(obs, memory)))
    jax.block_until_ready(act(state, read))
    taken: list[float] = []
    while len(taken) < min(rounds, 5) or (len(taken) < rounds and sum(taken) < seconds):
        begun = time.perf_counter()
        jax.block_until_ready(act(state, read))
        taken.append(time.perf_counter() - begun)
    return 1e3 * float(np.median(taken))


def _narrow(x: np.ndarray) -> np.ndarray:
    return x.astype(np.float32) if x.dtype.kind == "f" else x


def _checked_steps(env: Env, lanes: int, steps: int | None) -> int:
    if lanes < 1:
        raise ValueError(f"lanes is {lanes}; allowed: 1 and more")
    if env.reset is None:
        raise ValueError("the environment is a spec alone and cannot be stepped: say who plays, play=...")
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


def proportion(successes: int, trials: int, confidence: float = 0.95) -> tuple[float, float]:
    """An interval of the chance of success after so many independent trials, by Jeffreys' prior.

    It is where all but (1 - confidence) / 2 at either end of Beta(k + 1/2, n - k + 1/2) lies; from 0 where nothing
    succeeded, and to 1 where all did. Episodes of several policies, pooled, vary more than it says.

    Args:
      successes: k of n.
      trials: n, 1 and more.
      confidence: of the interval, in (0, 1).
    Returns:
      (low, high).
    Raises:
      ValueError: for other numbers.
    Reference: Brown, Cai and DasGupta 2001, "Interval estimation for a binomial proportion", section 3.1.2
    """
    from scipy import stats

    if trials < 1 or not 0 <= successes <= trials or not 0.0 < confidence < 1.0:
        raise ValueError(
            f"{successes} of {trials} at a confidence of {confidence}; allowed: 0 <= successes <= trials, trials from "
            "1, and a confidence between 0 and 1"
        )
    tail, of = (1.0 - confidence) / 2.0, stats.beta(successes + 0.5, trials - successes + 0.5)
    return float(of.ppf(tail)) if successes else 0.0, float(of.ppf(1.0 - tail)) if successes < trials else 1.0


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
