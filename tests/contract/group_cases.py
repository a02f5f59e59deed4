"""Group-relative methods on tasks that cost nothing: their entries in the suites over all algorithms."""

from functools import partial

import jax

from jaxrl_gen import loops
from jaxrl_gen.algos import group_ppo, grpo
from jaxrl_gen.envs import probe
from jaxrl_gen.envs.tasks import arithmetic
from jaxrl_gen.losses import group
from tests.contract.cases import Case

STARTS, GROUP = 4, 4


def in_groups(make, env):
    """A chunk of two updates on four starts with four tries each."""
    return loops.group(make, env, starts=STARTS, group=GROUP, iterations=2)


def seen(env):
    """Observations of a few starts."""
    return jax.vmap(env.reset)(jax.random.split(jax.random.key(5), STARTS))[1]


def sums():
    """Addition modulo three, prompts of one length."""
    return arithmetic.make(arithmetic.problems(3))


GRPO = grpo.Config(
    lr=1e-2,
    vocab=len(arithmetic.ALPHABET.words),
    width=8,
    layers=1,
    heads=2,
    kv_heads=1,
    hidden=16,
    kl_coefficient=0.01,
)
SPLIT = grpo.Config(**{**vars(GRPO), "epochs": 2, "minibatches": 2, "kl_in_reward": 0.01})
PPO = group_ppo.Config(lr=1e-2, epochs=2, minibatches=2, actor_hidden=(8,))

CASES = [
    Case("grpo", grpo.make, GRPO, sums, in_groups, read=seen),
    Case("reinforce_plus_plus", grpo.reinforce_plus_plus, SPLIT, sums, in_groups, read=seen),
    Case("clip_cov", grpo.clip_cov, GRPO, sums, in_groups, read=seen),
    Case("group_ppo", partial(group_ppo.make, relative=group.leave_one_out), PPO, probe.delayed, in_groups, read=seen),
]
