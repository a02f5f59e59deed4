"""Cases of what learns from logged data by a dual, and of values of actions that are chosen token by token."""

from functools import partial

from jaxrl_gen.algos import arsq, odice
from jaxrl_gen.envs import probe
from jaxrl_gen.losses import autoregressive, dual, value
from tests.contract.cases import Case
from tests.contract.td_cases import off_policy, offline, offline_to_online, seen

ODICE = odice.Config(lr=1e-2, actor_hidden=(8,), critic_hidden=(8,))
ARSQ = arsq.Config(lr=1e-2, temperature=0.1, levels=2, bins=3, hidden=(8,))
TRUE = partial(odice.make, direction=dual.true_gradient, combine=value.minimum)

CASES = [
    Case("odice_offline", odice.make, ODICE, probe.continuous_action, offline, read=seen),
    Case("odice_true_gradient", TRUE, ODICE, probe.delayed, partial(off_policy, horizon=2)),
    Case("arsq_offline", arsq.make, ARSQ, probe.dict_observation, offline, read=seen),
    Case("arsq_factorised_offline_to_online", partial(arsq.make, conditioning=autoregressive.factorised), ARSQ,
         probe.continuous_action, offline_to_online),
]  # fmt: skip
