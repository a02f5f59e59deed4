"""Evaluation: episodes of known return are counted once each; statistics equal independent ones."""

import itertools
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_gen import evaluate, sweep
from jaxrl_gen.envs import wrap
from jaxrl_gen.types import Algorithm, Env, Outcome, Scene, Spec, config, leaf

LONGEST = 8


def countdown(*, reward=1.0, terminates=True, breaks_at=None, limit=LONGEST):
    """Episodes of 1 to LONGEST steps, uniformly; the reward is `reward` a step, and a trap of 1000 after the end.

    The observation is (steps left, steps gone). From step `breaks_at` on the simulator is not finite, in lanes whose
    episode lasts that long.
    """

    def reset(key):
        left = jax.random.randint(key, (), 1, LONGEST + 1).astype(jnp.float32)
        state = jnp.stack([left, 0.0])
        return state, state

    def step(state, action, key):
        del key
        state = state + jnp.array([-1.0, 1.0])
        over = state[0] <= 0
        earned = jnp.where(state[0] < 0, 1000.0, reward + action[0])
        if breaks_at is not None:
            earned = jnp.where(state[1] >= breaks_at, jnp.nan, earned)
        none = jnp.zeros((), bool)
        return state, state, Outcome(state, earned, over & terminates, over & (not terminates) | none)

    return Env(reset, step, Spec(jax.ShapeDtypeStruct((2,), jnp.float32), 1, time_limit=limit))


@config
class Config:
    """The action that the policy takes, and how far it strays."""

    action: float = leaf(0.0)
    noise: float = leaf(0.0)


def make(cfg, spec):
    def act(state, obs, key):
        mean = jnp.full((obs.shape[0], spec.action_size), cfg.action + state)
        return (mean if key is None else mean + cfg.noise * jax.random.normal(key, mean.shape)), {}

    return Algorithm(lambda key: jnp.zeros(()), None, act)


def play(env, cfg=Config(), lanes=64, **options):
    algo = make(cfg, env.spec)
    return evaluate.episodes(algo, env, jnp.zeros(()), jax.random.key(3), lanes=lanes, **options)


@pytest.mark.parametrize("jitted", [False, True])
@pytest.mark.parametrize("terminates", [False, True])
def test_every_episode_is_counted_once(terminates, jitted):
    run = lambda: play(countdown(reward=0.5, terminates=terminates), Config(action=0.25))  # noqa: E731
    result = jax.device_get(jax.jit(run)() if jitted else run())
    np.testing.assert_allclose(result.returns, 0.75 * result.lengths, rtol=1e-6)
    assert set(result.lengths) == set(range(1, LONGEST + 1))
    assert result.ended.all() and result.valid.all()
    assert (result.terminated == terminates).all()


def test_short_episodes_are_not_counted_more_often():
    lengths = np.asarray(play(countdown(), lanes=4096).lengths)
    counts = np.bincount(lengths, minlength=LONGEST + 1)[1:]
    expected = len(lengths) / LONGEST
    assert np.sum((counts - expected) ** 2 / expected) < 24.3  # chi-square of 7 degrees of freedom at 0.1 %


def test_it_ends_although_the_environment_does_not():
    result = jax.device_get(play(countdown(limit=None), steps=3))
    np.testing.assert_array_equal(result.lengths, np.minimum(result.lengths, 3))
    assert (result.ended == result.terminated).all() and 0 < result.ended.sum() < 64
    np.testing.assert_array_equal(result.lengths[~result.ended], 3)
    np.testing.assert_array_equal(result.returns, result.lengths)


def test_more_steps_than_the_time_limit_change_nothing():
    env = wrap.time_limit(countdown(limit=None), 4)
    short, long = play(env), play(env, steps=50)
    jax.tree.map(np.testing.assert_array_equal, short, long)
    assert np.asarray(short.lengths).max() == 4 and np.asarray(short.ended).all()


def test_a_broken_simulator_ends_its_own_episode_only():
    broken, whole = jax.device_get((play(countdown(breaks_at=5)), play(countdown())))
    breaks = whole.lengths >= 5
    assert 0 < breaks.sum() < 64
    np.testing.assert_array_equal(broken.valid, ~breaks)
    assert broken.ended.all() and not broken.terminated[breaks].any()
    np.testing.assert_array_equal(broken.returns, np.minimum(whole.returns, 4))  # what was earned before
    np.testing.assert_array_equal(broken.lengths, np.minimum(whole.lengths, 4))


def test_deterministic_by_default_and_sampled_by_choice():
    cfg = Config(noise=1.0)
    still, moved = np.asarray(play(countdown(), cfg).returns), np.asarray(play(countdown(), cfg, sample=True).returns)
    np.testing.assert_array_equal(still, np.round(still))
    lengths = np.asarray(play(countdown(), cfg).lengths)
    deviations = (moved - still) / np.sqrt(lengths)  # each is a standard normal
    assert abs(deviations.mean()) < 4 / 8 and 0.6 < deviations.std() < 1.5


def test_memory_is_carried_from_step_to_step():
    env = countdown(reward=0.0)

    def act(state, read, key):
        assert key is None
        return read.memory["count"], {"memory": {"count": read.memory["count"] + 1.0}}

    algo = Algorithm(None, None, act, lambda lanes: {"count": jnp.zeros((lanes, 1))})
    result = jax.device_get(evaluate.episodes(algo, env, None, jax.random.key(3), lanes=64))
    np.testing.assert_array_equal(result.returns, result.lengths * (result.lengths - 1) / 2)


def test_evaluator_maps_over_a_population_in_one_trace():
    traces = 0

    def counted_make(cfg, spec):
        nonlocal traces
        traces += 1
        return make(cfg, spec)

    evaluator = evaluate.evaluator(counted_make, countdown(reward=0.0), 16)
    population = jax.jit(sweep.mapped(evaluator))
    keys = jax.random.split(jax.random.key(0), 3)
    for actions in ([1.0, 2.0, 3.0], [4.0, 5.0, 6.0]):
        cfgs = sweep.grid(Config(), action=actions)
        result = jax.device_get(population(cfgs, jnp.array([0.0, 0.5, 1.0]), keys))
        assert result.returns.shape == (3, 16)
        expected = (np.array(actions) + [0.0, 0.5, 1.0])[:, None] * result.lengths
        np.testing.assert_allclose(result.returns, expected, rtol=1e-6)
    assert traces == 1
    alone = jax.jit(evaluator)(Config(action=5.0), jnp.array(0.5), keys[1])
    np.testing.assert_allclose(result.returns[1], alone.returns, rtol=1e-6)
    np.testing.assert_array_equal(result.lengths[1], alone.lengths)


@pytest.mark.parametrize(
    "env, lanes, steps, message",
    [
        (countdown(), 0, None, "lanes is 0"),
        (countdown(limit=None), 4, None, "no time limit"),
        (countdown(), 4, 0, "steps is 0"),
        (wrap.fresh(countdown(), 2), 4, None, "has 2 lanes"),
        (Env(None, None, countdown().spec), 4, None, "is a spec alone"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_traced(env, lanes, steps, message):
    with pytest.raises(ValueError, match=message):
        evaluate.evaluator(None, env, lanes, steps)
    with pytest.raises(ValueError, match=message):
        evaluate.episodes(None, env, None, jax.random.key(0), lanes=lanes, steps=steps)


# Statistics. The recorded numbers are rliable 1.2.0's (NumPy 2.4.6), with 50,000 resamples of three different seeds.

SCORES = np.array([[812.0, 845.0, 790.0, 901.0, 860.0], [0.31, 0.62, 0.45, 0.44, 0.97], [-12.0, 3.0, 41.0, 7.5, -3.25]])
ONE_TASK = np.array([812.0, 845.0, 790.0, 901.0, 860.0, 866.5, 120.0])


def test_iqm_equals_rliable():
    np.testing.assert_allclose(evaluate.iqm(SCORES), 183.99777777777777, rtol=1e-14)
    np.testing.assert_allclose(evaluate.iqm(ONE_TASK), 834.7, rtol=1e-14)


@pytest.mark.parametrize(
    "scores, statistic, low, high",
    [
        (SCORES, evaluate.iqm, 176.830, 198.19),
        (SCORES, np.mean, 271.121, 295.757),
        (ONE_TASK, evaluate.iqm, 540.4, 871.4),
        (ONE_TASK, np.mean, 528.4, 865.71),
    ],
)
def test_interval_equals_rliable(scores, statistic, low, high):
    np.testing.assert_allclose(evaluate.interval(scores, statistic, resamples=50_000), (low, high), rtol=1.5e-3)


def every_resample(scores, statistic):
    """The whole bootstrap distribution: all ways to draw the runs of each task, R^(R tasks) of them."""
    ways = [list(itertools.product(task, repeat=len(task))) for task in scores]
    return np.array([statistic(np.array(choice)) for choice in itertools.product(*ways)])


@pytest.mark.parametrize("confidence", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("scores", [[[1.0, 2.0, 4.0, 8.0]], [[1.0, 2.0, 4.0], [10.0, 10.5, 12.0]]])
def test_interval_equals_the_whole_bootstrap_distribution(scores, confidence):
    def by_sorting(x):
        x = np.sort(x.ravel())
        cut = len(x) // 4
        return x[cut : len(x) - cut].mean()

    exact = every_resample(scores, by_sorting)
    low, high = evaluate.interval(np.array(scores), confidence=confidence, resamples=20_000)
    for bound, share in ((low, (1 - confidence) / 2), (high, (1 + confidence) / 2)):
        # A discrete distribution has no sharp quantiles: the bound lies between those slightly below and above.
        below, above = np.quantile(exact, np.clip([share - 0.015, share + 0.015], 0, 1))
        assert below - 1e-12 <= bound <= above + 1e-12


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=12), st.floats(-1e3, 1e3), st.integers(0, 5))
def test_interval_contains_the_statistic_and_moves_with_the_scores(scores, shift, seed):
    low, high = evaluate.interval(scores, np.mean, resamples=200, seed=seed)
    assert min(scores) - 1e-9 <= low <= high <= max(scores) + 1e-9
    moved = evaluate.interval(np.array(scores) + shift, np.mean, resamples=200, seed=seed)
    np.testing.assert_allclose(moved, (low + shift, high + shift), atol=1e-9)
    assert evaluate.interval(scores, np.mean, resamples=200, seed=seed) == (low, high)


def test_tasks_are_resampled_apart():
    """Two tasks far apart: pooled resampling would move the mean by hundreds, within the tasks it cannot."""
    low, high = evaluate.interval([[0.0, 1.0, 0.0, 1.0], [1000.0, 1001.0, 1000.0, 1001.0]], np.mean)
    assert 500.0 <= low <= high <= 501.0


def test_summary_of_known_numbers():
    found = evaluate.summary([4.0, 1.0, 2.0, 3.0, 100.0])
    low, high = evaluate.interval([4.0, 1.0, 2.0, 3.0, 100.0])
    expected = dict(runs=5, iqm=3.0, low=low, high=high, mean=22.0, std=43.617656, median=3.0, min=1.0, max=100.0)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-6, err_msg=name)


def test_summary_of_one_run_has_no_interval():
    found = evaluate.summary([5.0])
    assert (found["runs"], found["iqm"], found["mean"]) == (1, 5.0, 5.0)
    assert np.isnan([found["low"], found["high"], found["std"]]).all()


@pytest.mark.parametrize(
    "scores, options, message",
    [
        ([1.0, np.nan, 3.0], {}, r"scores\[1\] is nan"),
        ([[1.0, 2.0], [np.inf, 3.0]], {}, r"scores\[1, 0\] is inf"),
        ([], {}, "shape"),
        (1.0, {}, "shape"),
        ([1.0], {}, "1 run"),
        ([1.0, 2.0], {"confidence": 95.0}, "confidence is 95"),
        ([1.0, 2.0], {"resamples": 0}, "resamples is 0"),
    ],
)
def test_bad_scores_are_named(scores, options, message):
    with pytest.raises(ValueError, match=message):
        evaluate.interval(scores, **options)


# Simulators on the host. One of them is a plain class with gymnasium's `reset` and `step`.


class Walk:
    """Goes where the actions say, and pays what they are; its first place is its seed's, its end that place's steps."""

    def __init__(self, breaks_at=None):
        self.breaks_at = breaks_at
        self.actions = []

    def reset(self, *, seed):
        self.left = 1 + seed % LONGEST
        self.actions = []
        return self.seen(), {}

    def seen(self):
        return {"left": np.float64(self.left), "gone": np.array([len(self.actions)])}

    def step(self, action):
        assert self.left > 0 and len(self.actions) != self.breaks_at, "stepped after its end"
        self.actions.append(action)
        self.left -= 1
        broken = self.breaks_at == len(self.actions)
        ends, cut = self.left == 0 and len(self.actions) % 2 == 0, self.left == 0 and len(self.actions) % 2 == 1
        return self.seen(), np.nan if broken else float(action[0]), ends, cut, {}


def counting(memory, obs):
    """Acts as it is told by its memory, which counts the steps."""
    assert obs["left"].dtype == np.float32 and obs["gone"].dtype.kind == "i"
    return memory + 1, np.full((len(obs["left"]), 1), 0.25 * memory + 10.0 * (memory == 3), np.float32)


def test_episodes_on_the_host_are_counted_once_each():
    envs = [Walk() for _ in range(64)]
    played = evaluate.side_by_side(envs, counting, 0, steps=6, seed=3)
    np.testing.assert_array_equal(played.lengths, [len(env.actions) for env in envs])
    assert set(played.lengths) == {1, 2, 3, 4, 5, 6} and (played.lengths == 6).sum() > (played.lengths == 5).sum()
    paid = np.cumsum([0.0, 0.25, 0.5, 1.0, 1.0, 1.0])  # those of steps 3 and 5 are clipped
    np.testing.assert_allclose(played.returns, paid[played.lengths - 1])
    whole = [env.left == 0 for env in envs]
    np.testing.assert_array_equal(played.ended, whole)
    np.testing.assert_array_equal(played.terminated, whole & (played.lengths % 2 == 0))
    assert played.valid.all()
    again = evaluate.side_by_side(envs, counting, 0, steps=6, seed=3)
    np.testing.assert_array_equal(again.lengths, played.lengths)
    other = evaluate.side_by_side(envs, counting, 0, steps=6, seed=4)
    assert (other.lengths != played.lengths).any()


def test_a_broken_simulator_on_the_host_ends_its_own_episode_only():
    envs = [Walk(breaks_at=3 if i % 2 else None) for i in range(32)]
    broken = evaluate.side_by_side(envs, counting, 0, steps=LONGEST, seed=3)
    whole = evaluate.side_by_side([Walk() for _ in envs], counting, 0, steps=LONGEST, seed=3)
    breaks = (np.arange(32) % 2 == 1) & (whole.lengths >= 3)
    assert 0 < breaks.sum() < 16
    np.testing.assert_array_equal(broken.valid, ~breaks)
    np.testing.assert_allclose(broken.returns, np.where(breaks, 0.25, whole.returns))
    np.testing.assert_array_equal(broken.lengths, np.where(breaks, 2, whole.lengths))
    assert broken.ended.all() and not broken.terminated[breaks].any()


def remembering(cfg, spec):
    """Adds the config's action, what it remembers, its State and, with a key, noise."""

    def act(state, read, key):
        noise = 0.0 if key is None else jax.random.normal(key, read.memory.shape)
        return read.memory + cfg.action + state + noise + 0.0 * read.obs[:, :1], {"memory": read.memory + 1.0}

    return Algorithm(None, None, act, lambda lanes: jnp.zeros((lanes, 1)))


def test_a_hosted_policy_has_its_config_state_memory_and_keys():
    spec, asked = Spec(jax.ShapeDtypeStruct((2,), jnp.float32), 1), []

    def play(act, memory, episodes, seed):
        actions = []
        for _ in range(3):
            memory, action = act(memory, np.zeros((episodes, 2), np.float32))
            actions.append(np.asarray(action)[:, 0])
        asked.append((episodes, seed))
        returns = np.sum(actions, 0)
        yes = np.ones(episodes, bool)
        return evaluate.Episodes(returns, np.full(episodes, 3), yes, yes, yes)

    still = evaluate.hosted(remembering, spec, play, 5)
    played = still(Config(action=2.0), jnp.float32(0.5), 7)
    np.testing.assert_allclose(played.returns, np.full(5, 3 * 2.5 + 0 + 1 + 2))
    assert asked == [(5, 7)] and played.returns.shape == (5,)
    moved = evaluate.hosted(remembering, spec, play, 400, sample=True)
    noise = moved(Config(action=2.0), jnp.float32(0.5), 7).returns - 10.5  # of three draws, of variance 3
    assert abs(noise.mean()) < 0.35 and 2.2 < noise.var() < 4.0
    assert (moved(Config(action=2.0), jnp.float32(0.5), 8).returns != noise + 10.5).any()


def test_what_plays_on_the_host_must_return_a_number_for_each_episode():
    spec = Spec(jax.ShapeDtypeStruct((2,), jnp.float32), 1)
    with pytest.raises(ValueError, match="lanes is 0"):
        evaluate.hosted(remembering, spec, None, 0)
    one = lambda act, memory, episodes, seed: evaluate.Episodes(*[np.ones(1)] * 5)  # noqa: E731
    with pytest.raises(ValueError, match=r"play returned returns of shape \(1,\); expected \(3,\)"):
        evaluate.hosted(remembering, spec, one, 3)(Config(), jnp.float32(0.0), 0)


def test_a_scene_watches_the_first_episode_on_the_host():
    envs = [Walk(), Walk()]
    scene = Scene(lambda state: np.float64(envs[0].left), None)
    env = Env(None, None, Spec({"left": jax.ShapeDtypeStruct((), jnp.float32)}, 1), scene=scene)
    play = lambda act, memory, episodes, seed: evaluate.side_by_side(envs[:episodes], act, memory, steps=9, seed=seed)  # noqa: E731
    act = lambda state, obs, key: (jnp.full((1, 1), state), {})  # noqa: E731
    views = evaluate.watched(Algorithm(None, None, act), jnp.float32(0.5), env, play, 3)
    np.testing.assert_array_equal(views, np.arange(len(views))[::-1])
    assert len(views) == 1 + len(envs[0].actions) > 1 and envs[0].actions[0] == 0.5
    with pytest.raises(ValueError, match="no scene to draw"):
        evaluate.watched(None, None, env._replace(scene=None), play, 3)


def test_a_decision_takes_the_time_of_its_work():
    spec = Spec({"x": jax.ShapeDtypeStruct((3,), jnp.float32)}, 3)

    def slow(x):
        time.sleep(0.02)
        return x

    def act(state, obs, key):
        assert key is None and obs["x"].shape == (1, 3)
        return jax.pure_callback(slow, obs["x"], obs["x"]) + state, {}

    took = evaluate.decision_ms(Algorithm(None, None, act), jnp.float32(1.0), spec, rounds=4)
    assert 20.0 <= took < 200.0


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_the_interval_of_a_proportion_holds_the_share_of_the_posterior_that_it_claims(confidence):
    """Jeffreys' posterior density integrated on a grid; and how often the interval holds the truth."""
    p = (np.arange(200_000) + 0.5) / 200_000
    for k, n in ((3, 10), (40, 50), (1, 250)):
        density = np.exp((k - 0.5) * np.log(p) + (n - k - 0.5) * np.log1p(-p))
        below = np.cumsum(density) / density.sum()
        low, high = evaluate.proportion(k, n, confidence)
        for bound, share in ((low, (1 - confidence) / 2), (high, (1 + confidence) / 2)):
            np.testing.assert_allclose(np.interp(bound, p + 2.5e-6, below), share, atol=2e-5)
    counts = np.random.default_rng(0).binomial(40, 0.3, 4000)
    bounds = np.array([evaluate.proportion(k, 40, confidence) for k in range(41)])[counts]
    assert abs(np.mean((bounds[:, 0] <= 0.3) & (0.3 <= bounds[:, 1])) - confidence) < 0.03


def test_the_interval_of_a_proportion_reaches_the_ends_that_were_seen():
    low, high = evaluate.proportion(0, 50)
    assert low == 0.0 and 0.0 < high < 0.06
    assert evaluate.proportion(50, 50) == pytest.approx((1.0 - high, 1.0))
    for bad in ((1, 0, 0.95), (6, 5, 0.95), (-1, 5, 0.95), (1, 5, 95.0)):
        with pytest.raises(ValueError, match="allowed: 0 <= successes <= trials"):
            evaluate.proportion(*bad)
