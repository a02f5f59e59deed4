"""Cases of models of dynamics, and of policies that learn in them."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxrl_gen.algos import dynamics, edac, lipmbrl, mopo, ravl, sac
from jaxrl_gen.envs import probe
from tests.contract import td_cases
from tests.contract.cases import LANES, Case

MODEL = dynamics.Config(lr=1e-2, members=3, elites=2, hidden=(8,), held_out=0.3)
LEARNING = mopo.Config(
    model=MODEL, policy=sac.Config(lr=1e-2, actor_hidden=(8,), critic_hidden=(8,)), model_updates=1.0, rollouts=4,
    horizon=3, kept=4, real=0.25,
)  # fmt: skip
ONE = mopo.Config(**{**vars(LEARNING), "model": dynamics.Config(lr=1e-2, members=1, elites=1, hidden=(8,))})
EDAC = edac.Config(lr=1e-2, members=2, actor_hidden=(8,), critic_hidden=(8,))
RAVL = ravl.Config(**{**vars(LEARNING), "policy": EDAC, "model_updates": 0.0})


def drifting(obs, action, key):
    """A world that is known, which costs less to compile than a model that learns."""
    return 0.9 * obs + 0.1 * action, -jnp.sum(obs**2, -1)


def pairs(env):
    """What a model reads: four observations, and four actions."""
    rows = jax.tree.map(lambda x: x[:LANES], td_cases.rows(env.spec))
    return rows.obs, rows.action


CASES = [
    Case("dynamics", dynamics.make, MODEL, probe.continuous_action, td_cases.offline, read=pairs),
    Case("mopo", mopo.make, LEARNING, probe.continuous_action, td_cases.offline, "penalty", td_cases.seen),
    Case("ravl_in_a_simulator", partial(ravl.make, model=dynamics.exact(drifting)), RAVL, probe.continuous_action,
         td_cases.offline, "real", td_cases.seen),
    Case("lipmbrl", lipmbrl.make, lipmbrl.Config(learning=ONE), probe.continuous_action, td_cases.offline, "coefficient",
         td_cases.seen),
    Case("lipmbrl_spectral", partial(lipmbrl.make, flatten=lipmbrl.spectral), lipmbrl.Config(learning=ONE, limit=1.0),
         probe.continuous_action, td_cases.offline, "epsilon", td_cases.seen),
]  # fmt: skip
