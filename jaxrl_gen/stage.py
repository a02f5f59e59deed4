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
    play: Callable | None  # jitted (cfg, state, seed, chunk) -> Episodes

    def first_carry(self, in_background: bool) -> Callable[[], PyTree]:
        """`() -> carry`, which is compiled now, in the background, or else when it is called."""
        seed = np.int32(self.group.first)  # an argument: another seed is the same program
        init = ahead(self.init, self.cfg, seed) if in_background else self.init
        return lambda: init(self.cfg, seed)

    def evaluation(self) -> Callable[[int, PyTree], evaluate.Episodes] | None:
        """`(chunk, carry) -> Episodes`, compiled in the background from now on; None where there is no evaluation."""
        if self.play is None:
            return None
        seed = np.int32(self.group.first)
        play = ahead(self.play, self.cfg, self.target.state, seed, np.int32(0))
        return lambda chunk, carry: play(self.cfg, carry.state, seed, np.int32(chunk))


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
    Returns:
      Stage.
    Raises:
      ValueError: if swept leaves differ in length, if neither members nor lanes divide over the devices, or as
        `evaluate.evaluator`.
    """
    group = members.group(cfg, seed, seeds)
    cfg = group.config(cfg)
    devices = jax.device_count() if jax.process_count() > 1 else devices
    mesh = jax.make_mesh((devices,), ("devices",), (jax.sharding.AxisType.Auto,), devices=jax.devices()[:devices])
    mapped = loops.apart(mesh) if devices > 1 and group.count and group.count % devices == 0 else sweep.mapped
    evaluator = evaluate.evaluator(make or loop.make, env, episodes, steps, sample=sample) if episodes else None
    play = evaluator and group.evaluation(evaluator, mapped)
    plain_init = group.init(loop.init, mapped)
    loop = guards.watched(loop)
    loop = loop if group.count is None else loops.population(loop, mapped)
    init = jax.jit(plain_init)
    target = jax.eval_shape(init, cfg, np.int32(seed))
    if devices == 1:
        return Stage(loop, cfg, target, group, init, play and jax.jit(play))
    whole = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    places = loops.shardings(mesh, loop, target, members=group.count)._replace(steps=whole)
    target = jax.tree.map(lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), target, places)
    init, play = jax.jit(plain_init, out_shardings=places), play and jax.jit(play, out_shardings=whole)
    return Stage(_readable_everywhere(loop, whole), jax.device_put(cfg, whole), target, group, init, play)


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
