"""The family of denoisers on data that cost nothing: see `cases.py`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_gen import loops, nets, samplers
from jaxrl_gen.algos import diffusion_policy, flow_policy, fql
from jaxrl_gen.data import sampling
from jaxrl_gen.envs import probe
from jaxrl_gen.types import Recalled, Transition
from tests.contract.cases import Case

BATCH, ROWS, LANES = 8, 64, 3


def drawn(example, *leading, seed):
    """Random numbers in [-1, 1] shaped like a spec's leaves."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: jnp.asarray(rng.uniform(-1, 1, (*leading, *leaf.shape)), leaf.dtype), example)


def clone(make, env):
    """Two updates from windows of noise, half of them padded."""
    cfg = SMALL
    action = jax.ShapeDtypeStruct((env.spec.action_size,), jnp.float32)
    data = sampling.Windows(
        drawn(env.spec.obs, ROWS, cfg.history, seed=0), drawn(action, ROWS, cfg.horizon, seed=1),
        jnp.arange(cfg.horizon) < jnp.arange(1, ROWS + 1)[:, None] % 8,
    )  # fmt: skip
    return loops.offline(make, env, _some, (data,), updates=2)


def learn(make, env):
    """Two updates from transitions of noise."""
    action = jax.ShapeDtypeStruct((env.spec.action_size,), jnp.float32)
    number = jax.ShapeDtypeStruct((), jnp.float32)
    obs, following = (drawn(env.spec.obs, ROWS, 1, seed=seed) for seed in (0, 1))
    over = jnp.arange(ROWS)[:, None] % 5 == 0
    rows = Transition(
        obs, drawn(action, ROWS, 1, seed=2), drawn(number, ROWS, 1, seed=3), following, over, ~over & False,
        jnp.ones((ROWS, 1), bool),
    )  # fmt: skip
    time_first = lambda data, key: jax.tree.map(lambda x: jnp.swapaxes(x, 0, 1), _some(data, key))
    return loops.offline(make, env, time_first, (rows,), updates=2)


def online(make, env):
    """Acting in the environment, and learning from a replay."""
    from jaxrl_gen.envs import wrap

    return loops.off_policy(
        make, wrap.fresh(env, 4), steps=6, updates=2, batch_size=BATCH, capacity=96, warmup=24, iterations=3
    )


def _some(data, key):
    """Any BATCH rows."""
    first = jax.random.randint(key, (BATCH,), 0, ROWS)
    return jax.tree.map(lambda x: x[first], data)


def seen(env):
    """Observations of a few lanes."""
    return drawn(env.spec.obs, LANES, seed=4)


def recalled(env):
    """Observations of a few lanes, and the memory before the first of an episode."""
    algo = flow_policy.make(SMALL, env.spec)
    return Recalled(seen(env), algo.memory(LANES))


def transformer(cfg, spec):
    """Flow policy whose denoiser is a transformer."""
    return flow_policy.make(cfg, spec, net=nets.dit(1, 8, 2, 8))


# A bias before a normalisation has no gradient but rounding errors, whose sign Adam would follow: hence the epsilon.
SIZES = dict(
    lr=1e-2, adam_epsilon=1e-2, warmup=1.0, horizon=4, execute=2, steps=3, channels=(8,), kernel=1, time_width=8
)  # fmt: skip
SMALL = flow_policy.Config(**SIZES)
SLOW = diffusion_policy.Config(**SIZES)
FQL = fql.Config(lr=1e-2, flow_steps=2, actor_hidden=(8,), critic_hidden=(8,))

CASES = [
    Case("diffusion_policy", diffusion_policy.make, SLOW, probe.continuous_action, clone, read=recalled),
    Case(
        "diffusion_policy_ddim", partial(diffusion_policy.make, sampler=samplers.ddim()), SLOW,
        probe.dict_observation, clone, read=recalled,
    ),
    Case("flow_policy", flow_policy.make, SMALL, probe.continuous_action, clone, read=recalled),
    Case("flow_policy_transformer", transformer, SMALL, probe.continuous_action, clone, read=recalled),
    Case("fql_offline", fql.make, FQL, probe.continuous_action, learn, read=seen),
    Case("fql_online", fql.make, FQL, probe.dict_observation, online),
]  # fmt: skip
