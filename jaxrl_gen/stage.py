"""A run made ready: its members and devices, the shapes of its carry, and what is compiled while other things go on."""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxrl_gen import evaluate, guards, loops, members, sweep
from jaxrl_gen.types import Env, PyTree


class Stage(NamedTuple):
    """What runs, on what, from what; nothing of it is compiled."""

    loop: loops.Loop  # of all members, watched and placed
    cfg: PyTree  # its config, float32 leaves
    target: PyTree  # the shapes and places of the carry
    group: members.Group
    init: Callable  # jitted (cfg, seed) -> the first carry
    play: Callable | None  # (cfg, state, seed, chunk) -> Episodes, jitted unless it plays on the host
    also: dict[str, Callable]  # the same, by other policies of the same State

    def first_carry(self, in_background: bool) -> Callable[[], PyTree]:
        """`() -> carry`, which is compiled now, in the background, or else when it is called."""
        seed = np.int32(self.group.first)  # an argument: another seed is the same program
        init = ahead(self.init, self.cfg, seed) if in_background else self.init
        return lambda: init(self.cfg, seed)

    def evaluation(self) -> Callable[[int, PyTree], evaluate.Episodes] | None:
        """`(chunk, carry) -> Episodes`, compiled in the background from now on; None where there is no evaluation."""
        if self.play is None:
            return None
        play, first = self.play, np.int32(0)
        if hasattr(play, "lower"):
            play = ahead(play, self.cfg, self.target.state, np.int32(self.group.first), first)
        return self._played_by(play)

    def others(self) -> dict[str, Callable]:
        """Evaluations by other policies of the same State; they are compiled when they are called."""
        return {name: self._played_by(play) for name, play in self.also.items()}

    def _played_by(self, play: Callable) -> Callable:
        return lambda chunk, carry: play(self.cfg, carry.state, np.int32(self.group.first), np.int32(chunk))


def prepare(
    loop: loops.Loop,
    cfg: Any,
    *,
    seed: int = 0,
    seeds: int = 1,
    devices: int = 1,
    make: Callable | None = None,
    env: Env | None = None,
    episodes: int = 0,
    steps: int | None = None,
    sample: bool = False,
    play: Callable | None = None,
    also: dict[str, Callable] | None = None,
) -> Stage:
    """Every setting of a config with every seed, shared out over devices.

    Args:
      loop: of one member.
      cfg: its config; leaves [M] are M settings.
      seed, seeds: the first seed, and how many of them.
      devices: how many share the run; with several processes it is all there are.
      make, env: to evaluate with: `(cfg, spec) -> Algorithm`, and one lane.
      episodes: of each member in an evaluation; 0: none.
      steps: at most so many per episode; needed where there is no time limit.
      sample: evaluate with actions drawn as in training, not the deterministic ones.
      play: evaluate with it on the host and not in `env`, see `evaluate.hosted`.
      also: other `(cfg, spec) -> Algorithm`, of the same State, to evaluate as well.
    Returns:
      Stage.
    Raises:
      ValueError: if swept leaves differ in length, if neither members nor lanes divide over the devices, if steps are
        given to, or several processes share, what plays on the host, or as `evaluate.evaluator`.
    """
    if play and steps is not None:
        raise ValueError(f"eval_steps is {steps}; allowed with a play of its own, which knows its steps: None")
    if play and jax.process_count() > 1:
        raise ValueError(f"{jax.process_count()} processes run, and what plays on the host is for one")
    group = members.group(cfg, seed, seeds)
    cfg = group.config(cfg)
    devices = jax.device_count() if jax.process_count() > 1 else devices
    mesh = jax.make_mesh((devices,), ("devices",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices])
    mapped = loops.apart(mesh) if devices > 1 and group.count and group.count % devices == 0 else sweep.mapped
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())

    def evaluation(make):
        if play:
            return _on_host(evaluate.hosted(make, env.spec, play, episodes, sample=sample), group)
        evaluator = evaluate.evaluator(make, env, episodes, steps, sample=sample)
        return jax.jit(group.evaluation(evaluator, mapped), **({} if devices == 1 else {"out_shardings": whole}))

    plays = {name: evaluation(one) for name, one in {None: make or loop.make, **(also or {})}.items() if episodes}
    first = plays.pop(None, None)
    plain_init = group.init(loop.init, mapped)
    loop = guards.watched(loop)
    loop = loop if group.count is None else loops.population(loop, mapped)
    init = jax.jit(plain_init)
    target = jax.eval_shape(init, cfg, np.int32(seed))
    if devices == 1:
        return Stage(loop, cfg, target, group, init, first, plays)
    places = loops.shardings(mesh, loop, target, members=group.count)._replace(steps=whole)
    target = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), target, places)
    init = jax.jit(plain_init, out_shardings=places)
    return Stage(_readable_everywhere(loop, whole), jax.device_put(cfg, whole), target, group, init, first, plays)


def _on_host(evaluate_one: Callable, group: members.Group) -> Callable:
    """`(cfg, state, seed, chunk) -> Episodes` of all members, one after the other, each from its own seed."""

    def call(cfg, state, seed, chunk):
        def of_member(i):
            own = np.random.SeedSequence((members.EVALUATION, int(seed) + i % group.seeds, int(chunk)))
            settings = jax.tree.map(lambda x: x[i] if np.ndim(x) else x, cfg)
            return evaluate_one(settings, group.member(state, i), int(own.generate_state(1)[0] >> 1))

        if group.count is None:
            return of_member(0)
        return jax.tree.map(lambda *x: np.stack(x), *map(of_member, range(group.count)))

    return call


def ahead(function: Callable, *arguments: Any) -> Callable:
    """A jitted function that is compiled in a thread from now on; the first call waits for it.

    Processes of one run compile when they call, in step with each other.

    Args:
      function: jitted.
      arguments: as it will be called with, or their shapes.
    """
    if jax.process_count() > 1:
        return function
    with_one_thread = ThreadPoolExecutor(1)
    compiled = with_one_thread.submit(lambda: function.lower(*arguments).compile())
    with_one_thread.shutdown(wait=False)
    return lambda *arguments: compiled.result()(*arguments)


def _readable_everywhere(loop: loops.Loop, whole: jax.sharding.NamedSharding) -> loops.Loop:
    """The loop with metrics that lie whole on every device, for each process to read."""

    def chunk(cfg, carry, *data):
        carry, metrics = loop.chunk(cfg, carry, *data)
        return carry, jax.lax.with_sharding_constraint(metrics, whole)

    return loop._replace(chunk=chunk)
