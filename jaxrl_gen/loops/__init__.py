"""Training loops as one compiled chunk, and the host loop that runs chunks and calls callbacks.

A Loop is built from `make` (an algorithm's), and an Env of many lanes or a dataset. `population` maps it over seeds and
settings, `compile_report` compiles it once and says what it costs, `run` goes through the chunks.
"""

from jaxrl_gen.loops.compiled import Compiled, compile_report, device_memory, nbytes, replay_bytes, run
from jaxrl_gen.loops.groups import group
from jaxrl_gen.loops.loop import Loop, apart, at_chunk, population, shardings
from jaxrl_gen.loops.rollout import EPISODE, collect, reduce_metrics, renewal, rollout_metrics
from jaxrl_gen.loops.training import off_policy, offline, offline_to_online, on_policy

__all__ = [
    "EPISODE", "Compiled", "Loop", "apart", "at_chunk", "collect", "compile_report", "device_memory", "group",
    "nbytes", "off_policy", "offline", "offline_to_online", "on_policy", "population", "reduce_metrics", "renewal",
    "replay_bytes", "rollout_metrics", "run", "shardings",
]  # fmt: skip
