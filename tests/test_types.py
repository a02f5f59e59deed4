"""The Config's machinery and the step counter."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrl_gen import types
from jaxrl_gen.types import config, leaf, static


@config
class Inner:
    """A Config of its own."""

    rate: float = leaf(0.5, low=0.0, high=1.0)
    free: float = leaf(1.0)
    layers: tuple[int, ...] = static((8, 8))
    count: int = static(4, low=1)


@config
class Outer:
    """A Config that holds another."""

    inner: Inner = leaf(Inner())
    scale: float = leaf(2.0, low=0.0)
    flag: bool = static(True)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A plain dataclass that holds a Config."""

    algo: Outer = Outer()
    name: str = "x"
    seconds: float = 1.0


def test_float_fields_are_leaves_and_the_rest_is_structure():
    assert jax.tree.leaves(Outer()) == [0.5, 1.0, 2.0]
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(Outer())]
    assert names == [".inner.rate", ".inner.free", ".scale"]
    structure = jax.tree.structure
    assert structure(Outer(scale=3.0)) == structure(Outer())
    assert structure(Outer(flag=False)) != structure(Outer())
    assert structure(Outer(inner=Inner(layers=(4,)))) != structure(Outer())


def test_a_config_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Inner().rate = 0.1


@pytest.mark.parametrize(
    "cfg, message",
    [
        (Inner(rate=-0.1), "config.rate is -0.1; allowed: numbers in [0, 1]"),
        (Inner(rate=1.5), "config.rate is 1.5; allowed: numbers in [0, 1]"),
        (Inner(rate=math.nan), "config.rate is nan; allowed: numbers in [0, 1]"),
        (Inner(free=math.nan), "config.free is nan; allowed: numbers in [-inf, inf]"),
        (Inner(count=0), "config.count is 0; allowed: numbers in [1, inf]"),
        (Outer(scale=-1.0), "config.scale is -1.0; allowed: numbers in [0, inf]"),
        (Outer(inner=Inner(rate=2.0)), "config.inner.rate is 2.0; allowed: numbers in [0, 1]"),
        (Experiment(algo=Outer(inner=Inner(count=-3))), "config.algo.inner.count is -3; allowed: numbers in [1, inf]"),
        (Experiment(seconds=math.nan), "config.seconds is nan; allowed: numbers in [-inf, inf]"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_check_names_the_field_what_it_was_and_what_is_allowed(cfg, message):
    with pytest.raises(ValueError) as refusal:
        types.check(cfg)
    assert str(refusal.value) == message


@pytest.mark.parametrize("rates", [[0.1, 2.0], [0.1, math.nan]])
def test_check_looks_at_every_member_of_a_sweep(rates):
    with pytest.raises(ValueError, match="config.rate is "):
        types.check(Inner(rate=jnp.array(rates)))


@pytest.mark.parametrize(
    "cfg", [Inner(), Outer(), Experiment(), Inner(free=math.inf), Inner(rate=np.array([0.0, 1.0]))]
)
def test_check_lets_good_configs_pass(cfg):
    assert types.check(cfg) is None


def test_check_calls_the_config_by_the_name_it_is_given():
    with pytest.raises(ValueError, match="^algo.rate is -1.0"):
        types.check(Inner(rate=-1.0), "algo")


def test_strong_makes_floats_and_arrays_trace_alike():
    traces = 0

    @jax.jit
    def double(cfg):
        nonlocal traces
        traces += 1
        return cfg.scale * 2.0

    cfgs = [Outer(scale=0.1), Outer(scale=3), Outer(scale=jnp.float32(0.2)), Outer(scale=np.float64(0.3))]
    assert [round(float(double(types.strong(cfg))), 5) for cfg in cfgs] == [0.2, 6.0, 0.4, 0.6]
    assert traces == 1
    assert all(x.dtype == jnp.float32 and not x.weak_type for x in jax.tree.leaves(types.strong(Outer())))


def test_a_sweep_maps_over_the_leaves():
    cfgs = Outer(scale=jnp.array([1.0, 2.0, 3.0]), inner=Inner(rate=jnp.zeros(3), free=jnp.ones(3)))
    np.testing.assert_array_equal(jax.vmap(lambda cfg: cfg.scale * cfg.inner.count)(cfgs), [4.0, 8.0, 12.0])


ADD = jax.jit(types.add_steps)


@given(st.integers(0, 2**40), st.lists(st.integers(0, 2**32 - 1), max_size=8))
def test_the_counter_counts(start, counts):
    steps = jnp.array([start % 2**32, start >> 32], jnp.uint32)
    for count in counts:
        steps = ADD(steps, np.uint32(count))
    assert steps.dtype == jnp.uint32 and types.total_steps(steps) == start + sum(counts)


def test_the_counter_passes_four_billion():
    steps = jnp.array([2**32 - 3, 0], jnp.uint32)
    steps, seen = jax.lax.scan(lambda s, _: (types.add_steps(s, 2),) * 2, steps, None, 4)
    assert [types.total_steps(s) for s in seen] == [2**32 - 1, 2**32 + 1, 2**32 + 3, 2**32 + 5]
    assert types.total_steps(np.stack([steps, steps])) == 2**32 + 5  # a population's members count alike


def test_ended_is_either_way():
    row = types.Outcome((), jnp.zeros(4), jnp.array([0, 0, 1, 1], bool), jnp.array([0, 1, 0, 1], bool))
    np.testing.assert_array_equal(types.ended(row), [False, True, True, True])


@pytest.mark.parametrize("shape", [(), (3,), (2, 3)], ids=["single", "members", "settings-and-members"])
@pytest.mark.parametrize("who", ["none", "some", "all"])
def test_a_branch_is_each_members_own_and_left_out_where_nobody_takes_it(shape, who):
    taken = []

    def one(condition, x):
        def function():
            jax.debug.callback(lambda: taken.append(1))
            return {"x": 2.0 * x, "n": jnp.int32(1)}

        return types.branch(condition, function, lambda: {"x": x, "n": jnp.int32(0)})

    rng = np.random.default_rng(0)
    condition = {"none": np.zeros(shape, bool), "all": np.ones(shape, bool), "some": rng.random(shape) < 0.5}[who]
    x, run = rng.normal(size=(*shape, 4)).astype(np.float32), one
    for _ in shape:
        run = jax.vmap(run)
    got = jax.block_until_ready(jax.jit(run)(condition, x))
    jax.effects_barrier()
    np.testing.assert_array_equal(got["x"], np.where(condition[..., None], 2.0 * x, x))
    np.testing.assert_array_equal(got["n"], condition.astype(np.int32))
    assert bool(taken) == bool(condition.any())
