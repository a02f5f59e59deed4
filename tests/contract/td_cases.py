"""Cases of the TD critics: online, from data alone, and from both."""

from functools import partial

import jax
import jax.numpy as jnp

from jaxrl_gen import loops
from jaxrl_gen.algos import a2pr, bc, beer, cql, critics, dqn, edac, iql, pqn, prdc, rebrac, sac, td3, td3_bc
from jaxrl_gen.envs import probe, wrap
from jaxrl_gen.losses import distributional, value
from jaxrl_gen.types import Transition
from tests.contract.cases import LANES, Case

ROWS = 64
SMALL = dict(lr=1e-2, actor_hidden=(8,), critic_hidden=(8,))
SAC = sac.Config(**SMALL, normalize_obs=True)
IQL = iql.Config(**SMALL)


def off_policy(make, env, horizon=1):
    """A chunk of four iterations, all but the first of which learn, twice each."""
    return loops.off_policy(
        make, wrap.fresh(env, LANES), steps=2, updates=2, batch_size=16, capacity=64, warmup=8, iterations=4,
        horizon=horizon,
    )  # fmt: skip


def rows(spec) -> Transition:
    """Rows of made-up data for a Spec, leaves [ROWS, ...]."""
    keys = jax.random.split(jax.random.key(0), 3)
    obs = jax.tree.map(lambda leaf: jax.random.normal(keys[0], (ROWS, *leaf.shape)), spec.obs)
    action = jax.random.uniform(keys[1], (ROWS, spec.action_size), minval=-1.0)
    ends = jnp.arange(ROWS) % 8 == 7
    reward = jax.random.normal(keys[2], (ROWS,))
    return Transition(obs, action, reward, obs, ends & (reward > 0), ends & (reward <= 0), jnp.ones(ROWS, bool))


def sample(rows, key):
    """Sixteen rows, as windows of one: leaves [1, 16, ...]."""
    chosen = jax.random.randint(key, (16,), 0, ROWS)
    return jax.tree.map(lambda x: x[chosen][None], rows)


def seen(env):
    """What a policy that never acted reads: the observations of four rows."""
    return jax.tree.map(lambda x: x[:LANES], rows(env.spec).obs)


def offline(make, env, sample=sample):
    """A chunk of two updates from data."""
    return loops.offline(make, env, sample, (rows(env.spec),), updates=2)


def told(rows, key):
    """As `sample`, with what was done next, and the return from there on."""
    batch = sample(rows, key)
    return batch._replace(
        extras={"next_action": -batch.action, "next_known": batch.valid, "return_to_go": batch.reward}
    )


def among(rows, key):
    """As `sample`, with all rows brought along."""
    return prdc.Among(sample(rows, key), rows.obs, rows.action)


def offline_to_online(make, env):
    """As `off_policy`, half of each batch being logged data."""
    return loops.offline_to_online(
        make, wrap.fresh(env, LANES), sample, (rows(env.spec),), steps=2, updates=2, batch_size=16, capacity=64,
        warmup=8, iterations=4,
    )  # fmt: skip


CLASSIFIED = value.classified(-4.0, 4.0, 11)
REDQ = partial(sac.make, target_value=partial(value.random_subset_minimum, size=2), actor_value=value.mean)

ATOMS = distributional.categorical(-4.0, 4.0, 11)
TD3 = td3.Config(**SMALL, normalize_obs=True)
PQN = pqn.Config(lr=1e-2, hidden=(8,), epochs=2, minibatches=2)

CASES = [
    Case("sac", sac.make, SAC, probe.continuous_action, off_policy),
    Case("sac_hl_gauss_3_steps", partial(sac.make, readout=CLASSIFIED), SAC, probe.truncating,
         partial(off_policy, horizon=3)),
    Case("sac_redq", REDQ, sac.Config(**SMALL, members=4), probe.dict_observation, off_policy),
    Case("td3_rescaled", critics.rescaled(td3.make), TD3, probe.continuous_action, off_policy),
    Case("iql_offline", iql.make, IQL, probe.continuous_action, offline, read=seen),
    Case("iql_offline_to_online", iql.make, IQL, probe.continuous_action, offline_to_online),
    Case("td3", td3.make, TD3, probe.continuous_action, off_policy),
    Case("fast_td3_3_steps", partial(td3.make, readout=ATOMS, target_value=value.own), TD3, probe.truncating,
         partial(off_policy, horizon=3)),
    Case("td3_bc_offline", td3_bc.make, td3_bc.Config(**SMALL), probe.continuous_action, offline, read=seen),
    Case("td3_bc_offline_to_online", td3_bc.make, td3_bc.Config(**SMALL), probe.continuous_action, offline_to_online),
    Case("rebrac_offline", rebrac.make, rebrac.Config(**SMALL), probe.continuous_action, partial(offline, sample=told),
         read=seen),
    Case("prdc_offline", prdc.make, prdc.Config(**SMALL, block=48), probe.continuous_action,
         partial(offline, sample=among), read=seen),
    Case("a2pr_offline", a2pr.make, a2pr.Config(**SMALL, proposal_hidden=(8,)), probe.continuous_action, offline,
         read=seen),
    Case("beer", beer.make, beer.Config(**SMALL), probe.continuous_action, off_policy),
    Case("cal_ql_offline", cql.make, cql.Config(**SMALL, samples=2, calibrated=True), probe.continuous_action,
         partial(offline, sample=told), read=seen),
    Case("edac_offline", edac.make, edac.Config(**SMALL, members=3), probe.continuous_action, offline, read=seen),
    Case("dqn", dqn.make, dqn.Config(lr=1e-2, hidden=(8,)), probe.discrete_action, off_policy),
    Case("c51", partial(dqn.make, readout=ATOMS), dqn.Config(lr=1e-2, hidden=(8,)), probe.delayed, off_policy),
    Case("pqn", pqn.make, PQN, probe.delayed),
    Case("bc_offline", bc.make, bc.Config(lr=1e-2, actor_hidden=(8,)), probe.continuous_action, offline, read=seen),
]  # fmt: skip
