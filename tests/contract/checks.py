"""What every algorithm promises, whatever it learns: rules of the house on carry, trace, key, population and resume.

Each family has a module of tests that imports these and names its `CASES`, for which conftest.py calls them. A module is
left with nothing compiled: a process has room for about thirty cases' programs.
"""

import dataclasses
import functools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen import checkpoint, loops, types
from jaxrl_gen.envs import probe
from tests.contract.cases import LANES
from tests.toy_process import CACHE, ROOT

KEPT = {"jax_compilation_cache_dir": CACHE.name, "jax_persistent_cache_min_compile_time_secs": 0.0}
RATES = np.array([1e-3, 3e-3, 1e-2])


def describe(tree):
    """Shape, dtype and weak type of every leaf, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): (x.shape, x.dtype, getattr(x, "weak_type", False)) for path, x in leaves}


def numbers(tree):
    """The leaves as NumPy arrays, keys as their data."""
    plain = lambda x: jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
    return [np.asarray(plain(x)) for x in jax.tree.leaves(tree)]


def same(one, two):
    return all(np.array_equal(x, y, equal_nan=True) for x, y in zip(numbers(one), numbers(two), strict=True))


def committed(tree):
    """Bound to its device, as a restored carry is: for arguments that are not, jit makes another program."""
    return jax.device_put(tree, jax.devices()[0])


@dataclasses.dataclass(frozen=True)
class Ready:
    """A case compiled once for all tests here, on lanes that can be poisoned and are not."""

    loop: loops.Loop
    cfg: Any
    key: jax.Array
    init: Callable
    chunk: Callable
    traces: list  # one entry for each trace of the chunk

    @functools.cached_property
    def carry(self) -> types.Carry:
        """The first; who resumes needs no more of it than its shapes."""
        return self.init(self.cfg, self.key)


@functools.cache
def ready(case) -> Ready:
    loop, cfg, traces = case.loop(probe.poisonable), case.config(), []

    def counted(cfg, carry, *data):
        traces.append(1)
        return loop.chunk(cfg, carry, *data)

    starts, jitted = jax.jit(loop.init), jax.jit(counted)
    init = lambda cfg, key: committed(starts(cfg, key))
    chunk = lambda cfg, carry: jitted(cfg, carry, *loop.data)
    return Ready(loop, cfg, jax.random.key(0), init, chunk, traces)


@functools.cache
def populated(case) -> Ready:
    """The same as a population: three seeds, and as many learning rates."""
    it, traces = ready(case), []
    many = loops.population(it.loop)
    starts, jitted = jax.jit(many.init), jax.jit(many.chunk)
    init = lambda cfg, key: committed(starts(cfg, key))
    chunk = lambda cfg, carry: jitted(cfg, carry, *many.data)
    keys = jax.random.split(jax.random.key(1), len(RATES))
    return Ready(many, case.config(**{case.rate: RATES}), keys, init, chunk, traces)


def test_the_config_passes_its_own_check(case):
    assert types.check(case.cfg) is None


def test_carry_out_is_like_carry_in(case):
    it = ready(case)
    carry = jax.eval_shape(it.loop.init, it.cfg, jax.random.key(0))
    after, metrics = jax.eval_shape(it.loop.chunk, it.cfg, carry, *it.loop.data)
    assert jax.tree.structure(after) == jax.tree.structure(carry)
    assert describe(after) == describe(carry)
    assert not any(weak for *_, weak in describe(carry).values())
    assert {(x.shape, x.dtype.kind) for x in metrics.values()} == {((), "f")}
    assert all("/" in name for name in metrics)


def test_one_trace_for_all_chunks_and_learning_rates(case):
    it = ready(case)
    carry = it.carry
    for rate in (1e-2, 3e-3, 0.0):
        carry, _ = it.chunk(case.config(**{case.rate: rate}), carry)
    assert len(it.traces) == 1


def test_it_learns_and_is_the_same_twice(case):
    it = ready(case)
    one, metrics = it.chunk(it.cfg, it.carry)
    two, again = it.chunk(it.cfg, it.carry)
    assert same(one, two) and same(metrics, again)
    assert not same(one.state, it.carry.state)
    assert all(np.all(np.isfinite(x)) for x in numbers(one.state))
    assert types.total_steps(one.steps) == it.loop.steps_per_chunk


def test_another_key_is_another_run(case):
    it = ready(case)
    other = it.carry._replace(key=committed(jax.random.key(99)))
    assert not same(it.chunk(it.cfg, it.carry)[0].state, it.chunk(it.cfg, other)[0].state)


def test_no_key_is_used_twice(case):
    """Of a single run: under vmap the checker takes the scan over keys that were split for a second use."""
    loop, cfg = case.loop(), case.config()
    with jax.debug_key_reuse(True):
        carry = jax.eval_shape(jax.jit(loop.init), cfg, jax.random.key(0))
        jax.eval_shape(jax.jit(loop.chunk), cfg, carry, *loop.data)


def test_a_key_used_twice_is_found(one_of_each_loop):
    """The check above sees what happens inside a chunk, of each kind: here it is given a key that was used before."""
    loop, cfg = one_of_each_loop.loop(), one_of_each_loop.config()
    carry = jax.eval_shape(loop.init, cfg, jax.random.key(0))

    def careless(cfg, carry):
        jax.random.normal(carry.key)
        return loop.chunk(cfg, carry, *loop.data)

    with jax.debug_key_reuse(True), pytest.raises(jax.errors.KeyReuseError):
        jax.eval_shape(jax.jit(careless), cfg, carry)


def test_nothing_is_sent_to_or_from_the_device_within_a_run(case):
    it = ready(case)
    carry, _ = it.chunk(it.cfg, it.carry)
    with jax.transfer_guard("disallow"):
        for _ in range(2):
            carry, metrics = it.chunk(it.cfg, carry)
        with pytest.raises(Exception, match="[Dd]isallowed host-to-device transfer"):
            jnp.add(carry.steps, np.ones(2, np.uint32))  # the guard is awake
    assert all(np.isfinite(x) or name.startswith("episode/") for name, x in jax.device_get(metrics).items())


def test_a_member_of_a_population_is_the_single_run(case):
    """Seeds and learning rates of one program against one program each."""
    it, many = ready(case), populated(case)
    keys, carries = jax.random.split(jax.random.key(1), len(RATES)), many.carry
    after, metrics = many.chunk(many.cfg, carries)
    assert {x.shape for x in metrics.values()} == {(len(RATES),)}
    for k in range(len(RATES)):
        member = lambda tree: jax.tree.map(lambda x: x[k], tree)
        single = it.init(it.cfg, keys[k])
        assert same(member(carries).key, single.key) and same(member(carries).env_state, single.env_state)
        for one, two in zip(numbers(member(carries)), numbers(single), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6)
        expected, _ = it.chunk(case.config(**{case.rate: float(RATES[k])}), single)
        for one, two in zip(numbers(member(after)), numbers(expected), strict=True):
            np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-4)


def test_act_without_a_key_is_deterministic(case):
    it = ready(case)
    carry, spec = it.carry, it.loop.env.spec
    obs = case.read(it.loop.env) if case.read else carry.obs
    if carry.memory is not None:
        obs = types.Recalled(obs, carry.memory)
    act = jax.jit(lambda cfg, state, obs: it.loop.make(cfg, spec).act(state, obs, None))
    one, two = act(it.cfg, carry.state, obs), act(it.cfg, carry.state, obs)
    assert same(one, two)
    action, extras = one
    if not case.read:
        assert action.shape == ((LANES,) if spec.discrete else (LANES, spec.action_size))
    assert ("memory" in extras) == isinstance(obs, types.Recalled)


def lived(carry, batch):
    """The rows that an iteration collected, leaves [T, E, ...]: its batch, or what it wrote into an empty replay."""
    if carry.replay == ():
        return batch
    ring, count = carry.replay, int(carry.replay.position)
    taken = {name: x for name, x in ring._asdict().items() if name in types.Transition._fields}
    return types.Transition(**jax.tree.map(lambda x: x[:count], taken), next_obs=())


def test_a_poisoned_lane_is_contained(case):
    """One simulator turns NaN: the rows of the other lanes are the same to the bit, and the State stays finite."""
    it = ready(case)
    if it.loop.env.lanes is None:
        pytest.skip("it learns from data alone, or from tries that end with their first episode")
    sick = it.carry._replace(env_state=probe.poison(it.carry.env_state, lane=2))
    iteration = jax.jit(lambda cfg, carry: it.loop.iteration(cfg, carry, 0, *it.loop.data))
    (well, healthy, rows), (after, metrics, poisoned) = iteration(it.cfg, it.carry), iteration(it.cfg, sick)
    rows, poisoned = lived(well, rows), lived(after, poisoned)
    assert float(healthy["env/quarantined"]) == 0.0 and float(metrics["env/quarantined"]) == 1.0
    others = np.array([0, 1, 3])
    assert same(jax.tree.map(lambda x: x[:, others], rows), jax.tree.map(lambda x: x[:, others], poisoned))
    np.testing.assert_array_equal(np.argwhere(~np.asarray(poisoned.valid)), [[0, 2]])
    after, metrics = it.chunk(it.cfg, sick)
    assert all(np.all(np.isfinite(x)) for x in numbers(after.state))
    assert float(metrics["guard/skipped_updates"]) == 0.0
    assert not same(after.state, it.carry.state)


def everything(cases):
    """All cases by name, single and as a population."""
    return {f"{case.name}{kind}": of(case) for case in cases for kind, of in {"": ready, "_members": populated}.items()}


def go_on(folder, cases):
    """In the new process: one chunk more of every carry."""
    them, saver = everything(cases), checkpoint.Checkpointer(Path(folder))
    shapes = {name: jax.eval_shape(it.loop.init, it.cfg, it.key) for name, it in them.items()}
    saved = saver.restore_latest(shapes)
    assert saved.step == 1
    saver.save(2, {name: it.chunk(it.cfg, saved.carry[name])[0] for name, it in them.items()}, {})
    saver.close()


def test_all_go_on_bit_for_bit_in_a_new_process(tmp_path, request):
    """Two chunks, single and vmapped, against one chunk, a checkpoint, a new process and the other chunk."""
    them, saver = everything(request.module.CASES), checkpoint.Checkpointer(tmp_path)
    once = {name: it.chunk(it.cfg, it.carry)[0] for name, it in them.items()}
    saver.save(1, once, {})
    saver.close()
    twice = {name: it.chunk(it.cfg, once[name])[0] for name, it in them.items()}
    environment = {**os.environ, **{name.upper(): str(value) for name, value in KEPT.items()}}
    code = f"from {request.module.__name__} import CASES, go_on; go_on({str(tmp_path)!r}, CASES)"
    out = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    resumed = checkpoint.Checkpointer(tmp_path).restore_latest(jax.eval_shape(lambda: twice))
    assert resumed.step == 2
    leaves = zip(checkpoint.by_path(resumed.carry).items(), checkpoint.by_path(twice).values(), strict=True)
    differing = [path for (path, x), y in leaves if np.asarray(x).tobytes() != np.asarray(y).tobytes()]
    assert len(checkpoint.by_path(twice)) > len(them) and not differing
