"""Sweeps: combinations in a known order, bad requests refused by name, and members that equal single runs."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrl_gen import loops, sweep, types
from jaxrl_gen.algos import ppo
from jaxrl_gen.envs import probe, wrap

SMALL = ppo.Config(actor_hidden=(8,), critic_hidden=(8,), epochs=2, minibatches=2, max_grad_norm=10.0)


@types.config
class Inner:
    """A Config within a Config."""

    lr: float = types.leaf(1e-3, low=0.0)
    decay: float = types.leaf(0.9, low=0.0, high=1.0)
    width: int = types.static(64)


@types.config
class Outer:
    """A Config that holds another."""

    algo: Inner = types.leaf(Inner())
    scale: float = types.leaf(1.0)
    frozen: Inner = types.static(Inner())


def test_grid_is_the_product_with_the_last_field_fastest():
    cfgs = sweep.grid(SMALL, lr=[1e-4, 3e-4, 1e-3], gamma=(0.9, 0.99))
    expected = list(itertools.product([1e-4, 3e-4, 1e-3], [0.9, 0.99]))
    np.testing.assert_array_equal(np.stack([cfgs.lr, cfgs.gamma], -1), np.float32(expected))
    assert cfgs.lr.dtype == jnp.float32 and not cfgs.lr.weak_type
    assert sweep.size(cfgs) == 6
    assert sweep.members(cfgs) == [{"lr": lr, "gamma": gamma} for lr, gamma in expected]


def test_fields_that_are_not_swept_stay_what_they_were():
    cfgs = sweep.grid(SMALL, lr=np.array([1e-4, 3e-4]))
    axes = [
        name for name in vars(SMALL) if np.ndim(getattr(cfgs, name)) and name not in ("actor_hidden", "critic_hidden")
    ]
    assert axes == ["lr"]
    assert all(getattr(cfgs, name) == getattr(SMALL, name) for name in vars(SMALL) if name != "lr")


def test_a_field_of_a_config_within_a_config():
    cfgs = sweep.grid(Outer(), scale=[1.0, 2.0], algo__lr=[0.1, 0.2])
    np.testing.assert_allclose(cfgs.algo.lr, [0.1, 0.2, 0.1, 0.2])
    assert cfgs.algo.decay == 0.9 and cfgs.algo.width == 64
    assert sweep.members(cfgs)[1] == {"algo.lr": 0.2, "scale": 1.0}
    assert sweep.member(cfgs, 2).algo.lr == np.float32(0.1)


@given(st.lists(st.integers(1, 4), min_size=1, max_size=3), st.integers(1, 3), st.data())
def test_members_and_cross_agree_with_nested_loops(counts, seeds, data):
    names = ["lr", "gamma", "lam"][: len(counts)]
    values = {
        name: data.draw(st.lists(st.integers(0, 100).map(lambda n: n / 100), min_size=n, max_size=n, unique=True))
        for name, n in zip(names, counts)
    }
    key = jax.random.key(7)
    cfgs, keys = sweep.cross(sweep.grid(SMALL, **values), seeds, key)
    separate = jax.random.split(key, seeds)
    expected = [dict(zip(names, row)) for row in itertools.product(*values.values())]
    expected = [row | ({"seed": seed} if seeds > 1 else {}) for row in expected for seed in range(seeds)]
    assert sweep.members(cfgs, seeds) == expected
    assert keys.shape == (len(expected),)
    for i, row in enumerate(expected):
        one = sweep.member(cfgs, i)
        assert all(np.float32(row[name]) == getattr(one, name) for name in names)
        np.testing.assert_array_equal(jax.random.key_data(keys[i]), jax.random.key_data(separate[i % seeds]))


def test_seeds_alone_leave_the_config_plain():
    cfg, keys = sweep.cross(SMALL, 3, jax.random.key(0))
    assert cfg == SMALL and keys.shape == (3,) and sweep.size(cfg) is None
    assert sweep.members(cfg, 3) == [{"seed": 0}, {"seed": 1}, {"seed": 2}]
    assert len(np.unique(jax.random.key_data(keys), axis=0)) == 3


@pytest.mark.parametrize(
    "cfg, values, error, message",
    [
        (SMALL, {"learning_rate": [1.0]}, ValueError, "config.learning_rate does not exist"),
        (SMALL, {"gama": [0.9]}, ValueError, "nearest: gamma"),
        (
            SMALL,
            {"epochs": [1, 2]},
            ValueError,
            "config.epochs is static: it shapes the program; run one sweep per value",
        ),
        (SMALL, {"gamma": [0.9, 1.5]}, ValueError, r"config.gamma is 1.5; allowed: numbers in \[0, 1\]"),
        (SMALL, {"lr": [1e-3, -1e-3]}, ValueError, "config.lr is -0.001"),
        (SMALL, {"reward_scale": [float("nan")]}, ValueError, "config.reward_scale is nan"),
        (SMALL, {"lr": []}, ValueError, "config.lr is given no values"),
        (SMALL, {"lr": 1e-3}, TypeError, "config.lr is given 0.001; allowed: a list of numbers"),
        (SMALL, {"lr": "fast"}, TypeError, "config.lr is given 'fast'"),
        (SMALL, {"lr": [[1e-3], [1e-4]]}, TypeError, "allowed: a list of numbers"),
        (SMALL, {}, ValueError, "no field to sweep; allowed: lr, "),
        (SMALL, {"lr__inner": [1.0]}, ValueError, "config.lr.inner does not exist"),
        (
            Outer(),
            {"algo": [1.0]},
            ValueError,
            "config.algo is a Config; name one of its fields: algo__lr, algo__decay",
        ),
        (Outer(), {"algo__width": [1.0]}, ValueError, "config.algo.width is static"),
        (Outer(), {"frozen__lr": [1.0]}, ValueError, "config.frozen is static"),
        (Outer(), {"algo__decay": [2.0]}, ValueError, "config.algo.decay is 2.0"),
        ({"lr": 1.0}, {"lr": [1.0]}, TypeError, "dict is not a Config"),
    ],
)
def test_bad_grids_are_refused_by_name(cfg, values, error, message):
    with pytest.raises(error, match=message):
        sweep.grid(cfg, **values)


def test_a_swept_config_is_not_swept_again():
    with pytest.raises(ValueError, match="config.lr is swept already"):
        sweep.grid(sweep.grid(SMALL, lr=[1e-3, 1e-4]), gamma=[0.9])


@pytest.mark.parametrize("i", [-1, 2])
def test_members_that_do_not_exist_are_refused(i):
    with pytest.raises(ValueError, match=f"member {i} does not exist; allowed: 0 to 1"):
        sweep.member(sweep.grid(SMALL, lr=[1e-3, 1e-4]), i)


def test_mixed_populations_and_bad_seed_counts_are_refused():
    with pytest.raises(ValueError, match="nothing is swept"):
        sweep.member(SMALL, 0)
    with pytest.raises(ValueError, match=r"leading axes differ: \[2, 3\]"):
        sweep.size({"a": jnp.zeros(2), "b": jnp.zeros((3, 2))})
    with pytest.raises(ValueError, match="seeds is 0"):
        sweep.cross(SMALL, 0, jax.random.key(0))
    with pytest.raises(ValueError, match="seeds is 2; it must divide the 3 members"):
        sweep.members(sweep.grid(SMALL, lr=[1e-3, 1e-4, 1e-5]), 2)


def test_mapped_shares_what_has_no_axis():
    function = sweep.mapped(lambda cfg, x: cfg.algo.lr * x + cfg.scale)
    np.testing.assert_allclose(function(Outer(), jnp.array([1.0, 2.0])), [1.001, 1.002])
    cfgs = sweep.grid(Outer(), algo__lr=[1.0, 10.0])
    np.testing.assert_allclose(function(cfgs, jnp.array([1.0, 2.0])), [2.0, 21.0])


def test_member_of_a_sweep_equals_the_single_run_in_one_trace():
    traces = 0
    loop = loops.on_policy(ppo.make, wrap.fresh(probe.continuous_action(), 8), steps=8, iterations=3)

    def counted(cfg, carry):
        nonlocal traces
        traces += 1
        return loop.chunk(cfg, carry)

    population = loops.population(loop._replace(chunk=counted))
    init, chunk = jax.jit(population.init), jax.jit(population.chunk)
    # Two sweeps of the same fields; the second one is looked at, so that a retrace or a stale value would be seen.
    for lrs in ([1e-3, 2e-3], [1e-4, 1e-2]):
        cfgs, keys = sweep.cross(
            types.strong(sweep.grid(SMALL, lr=lrs, entropy_coefficient=[0.0, 0.1])), 2, jax.random.key(1)
        )
        carry, metrics = chunk(cfgs, init(cfgs, keys))
    assert traces == 1
    assert all(value.shape == (8,) for value in metrics.values())
    single_init, single_chunk = jax.jit(loop.init), jax.jit(loop.chunk)
    for i in (0, 3, 6):
        named = sweep.members(cfgs)[i]
        cfg = types.strong(ppo.Config(**{**vars(SMALL), **named}))
        alone, alone_metrics = single_chunk(cfg, single_init(cfg, keys[i]))
        one = sweep.member(carry, i)
        assert jax.tree.structure(one) == jax.tree.structure(alone)
        np.testing.assert_array_equal(one.steps, alone.steps)
        for name, x in {"params": (one.state.params, alone.state.params), "obs": (one.obs, alone.obs)}.items():
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6, err_msg=name), *x)
        for name, value in alone_metrics.items():
            np.testing.assert_allclose(metrics[name][i], value, rtol=1e-3, atol=1e-5, err_msg=name)
    params = jax.tree.leaves(carry.state.params)[-1].reshape(8, -1)
    assert len(np.unique(np.asarray(params), axis=0)) == 8  # every member went its own way


# ------------------------------------------------------------------------------------------------ choosing by a bandit


def test_one_episode_chooses_nothing_and_enough_choose_the_best():
    """Of policies whose episodes are all alike: the mean of all at first, and of the best of each draw in the end."""
    level = np.array([3.0, -1.0, 7.0, 2.0, 5.0])
    chosen = sweep.choose_by_bandit(np.repeat(level[:, None], 4, 1), 12, policies=3, trials=20_000)
    best_of_three = np.mean([max(level[list(drawn)]) for drawn in itertools.combinations(range(5), 3)])
    assert chosen.mean[0] == pytest.approx(level.mean(), abs=0.08)
    np.testing.assert_allclose(chosen.mean[2:], best_of_three, atol=0.05)  # by then each was played once
    assert np.all(chosen.low <= chosen.mean) and np.all(chosen.mean <= chosen.high)


def test_with_two_noisy_policies_the_first_choice_is_a_coin_that_is_known():
    """After one episode of each, the worse looks better as often as two draws say, and later ever more rarely."""
    returns = np.array([[0.0, 10.0], [4.0, 5.0]])  # means 5 and 4.5; the first looks worse at 0, half of the time
    chosen = sweep.choose_by_bandit(returns, 200, policies=2, trials=20_000, seed=3)
    assert chosen.mean[1] == pytest.approx(0.5 * 5.0 + 0.5 * 4.5, abs=0.01)
    assert chosen.mean[-1] > chosen.mean[1] + 0.1


def test_noise_is_explored_as_a_loop_says():
    """One trial, pull by pull, against a loop over lists."""
    rng = np.random.default_rng(5)
    returns = rng.normal(size=(4, 6)) + np.arange(4)[:, None]
    found = sweep.choose_by_bandit(returns, 30, policies=4, trials=1, seed=11)
    rng = np.random.default_rng(11)
    arms = np.argsort(rng.random((1, 4)), 1)[0]
    lists, spread = [[] for _ in range(4)], returns.max() - returns.min()
    for t in range(30):
        bounds = [np.mean(x) + spread * np.sqrt(2.0 * np.log(t + 1) / len(x)) if x else np.inf for x in lists]
        arm = bounds.index(max(bounds))
        lists[arm].append(returns[arms[arm], rng.integers(0, 6, 1)[0]])
        means = [np.mean(x) if x else -np.inf for x in lists]
        assert found.mean[t] == pytest.approx(returns[arms[means.index(max(means))]].mean())


def test_what_a_bandit_refuses():
    fine = np.zeros((3, 2))
    for returns, arguments, said in (
        (np.zeros(3), {}, r"returns have shape \(3,\); allowed: finite numbers"),
        (np.full((3, 2), np.nan), {}, "allowed: finite numbers"),
        (fine, {"policies": 4}, "policies is 4; allowed: 1 to 3"),
        (fine, {"pulls": 0}, "pulls is 0; allowed: 1 to inf"),
    ):
        with pytest.raises(ValueError, match=said):
            sweep.choose_by_bandit(returns, **{"pulls": 3, "policies": 2} | arguments)
