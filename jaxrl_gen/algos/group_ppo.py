"""PPO whose baseline is the group: several rollouts from each start state, and no critic.

What a rollout still earns from a step on is judged against what the others from the same start earn from that step on.
Rollouts that ended earlier count there with nothing, so an early end is as bad, or as good, as it was.

Reference: Shao et al. 2024, arXiv 2402.03300 (the group as baseline); Schulman et al. 2017, arXiv 1707.06347 (PPO)
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrl_gen import nets
from jaxrl_gen.algos import ppo
from jaxrl_gen.losses import group, td
from jaxrl_gen.types import Algorithm, Spec, Transition, ended

Config = ppo.Config
State = ppo.State


def make(cfg: Config, spec: Spec, *, relative: Callable = group.centred, **parts) -> Algorithm:
    """Group-relative PPO as three pure functions; call it inside jit, so that `cfg` is traced.

    Args:
      cfg: PPO's Config; `lam` and what concerns the critic have no effect.
      spec: of one lane.
      relative: `(score [N, G], valid [N, G]) -> advantage [N, G]`, of `losses.group`.
      parts: as of `ppo.make`.
    Returns:
      Algorithm whose batch is a Transition of leaves `[T, N, G, ...]`: rollouts from N start states, G from each.
    Raises:
      ValueError: if a batch is not in groups, or G is 1.
    """
    nothing = nets.Net(lambda key, example: {}, lambda params, x: jnp.zeros((*x.shape[:-1], 1)))
    view = parts.get("critic_view", lambda obs: obs)
    algo = ppo.make(cfg, spec, critic=nets.flat(nothing, view(spec.obs)), **parts)

    def credited(batch: Transition):
        """Rows `[T, N G, ...]` whose reward is their advantage; with it known, each row is an episode of its own."""
        if batch.reward.ndim != 3:
            raise ValueError(f"rewards have shape {batch.reward.shape}; allowed: [T, N, G], rollouts in groups")
        steps, starts, count = batch.reward.shape
        lost = jnp.any(ended(batch) & ~batch.valid, 0)  # the simulator turned non-finite: what it earns is not known
        batch = jax.tree.map(lambda x: x.reshape(steps, starts * count, *x.shape[3:]), batch)
        zero = jnp.zeros_like(batch.reward)
        reward = jnp.where(batch.valid, batch.reward, 0.0)
        to_come = td.gae(reward, zero, zero, batch.terminated, ended(batch), gamma=cfg.gamma, lam=1.0)
        advantage = jax.vmap(relative, (0, None))(to_come.reshape(steps, starts, count), ~lost)
        over, valid = jnp.ones_like(batch.terminated), batch.valid & ~lost.reshape(-1)
        return batch._replace(
            reward=advantage.reshape(zero.shape), terminated=over, truncated=jnp.zeros_like(over), valid=valid
        )

    def update(state, batch, key):
        state, metrics = algo.update(state, credited(batch), key)
        return state, {name: x for name, x in metrics.items() if not name.startswith("critic/")}

    return Algorithm(algo.init, update, algo.act, algo.memory)
