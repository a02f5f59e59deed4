"""TD3 that keeps close to the data set: to the action of the nearest (observation, action) in it, wherever that was.

Reference: Ran et al. 2023, arXiv 2306.06569.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_gen.algos import acting, td3_bc
from jaxrl_gen.types import Algorithm, Spec, Transition, config, leaf, static


@config
class Config(td3_bc.Config):
    """Hyper-parameters of PRDC; floats are leaves and never recompile."""

    nearness: float = leaf(2.0, low=0.0)  # beta: what a distance in observations counts beside one in actions
    block: int = static(256, low=1)  # rows of the data looked through at a time


class Among(NamedTuple):
    """A batch, and all that it is part of: passed through, not copied."""

    rows: Transition  # leaves [H, B, ...]
    obs: jax.Array  # [N, D], of every row of the data
    action: jax.Array  # [N, A]


def among(sample: Callable) -> Callable:
    """`(data, obs, key) -> Among`, from `sample(data, key) -> Transition`; loops are given (data, obs).

    Args:
      sample: such as `data.sampling.transitions(256)`.
    """
    return lambda data, obs, key: Among(sample(data, key), obs, data.action)


def nearest(queries: jax.Array, keys: jax.Array, *, block: int = 256) -> jax.Array:
    """The row of `keys` at the least Euclidean distance from each query, i32 [B]; exact, by brute force.

    First the least distance in each block of rows, by one product, |k|^2 - 2 q k, which lacks only |q|^2, the same for
    all; then the place of the least, among the rows of the best block alone: to find a place takes ten times as long.

    Args:
      queries: [B, D].
      keys: [N, D].
      block: rows compared at a time.
    Returns:
      i32 [B]; of several at the same distance any.
    """
    count = len(keys)
    block = min(block, count)
    firsts = jnp.minimum(jnp.arange(0, count, block), count - block)  # the last block overlaps the one before it
    centre = jnp.mean(keys, 0)  # far from the origin, squares would drown the distances
    keys, queries = keys - centre, queries - centre
    known = jnp.concatenate([keys, jnp.sum(keys**2, -1, keepdims=True)], -1)
    asked = jnp.concatenate([-2.0 * queries, jnp.ones_like(queries[:, :1])], -1)

    def least(_, first):
        part = jax.lax.dynamic_slice_in_dim(known, first, block)
        return None, jnp.min(jnp.matmul(part, asked.T, precision=jax.lax.Precision.HIGHEST), 0)

    _, of_blocks = jax.lax.scan(least, None, firsts)  # [N / block, B]
    rows = firsts[jnp.argmin(of_blocks, 0)][:, None] + jnp.arange(block)
    at = jnp.argmin(jnp.sum((keys[rows] - queries[:, None]) ** 2, -1), -1)
    return jnp.take_along_axis(rows, at[:, None], -1)[:, 0]


def make(cfg: Config, spec: Spec, **parts) -> Algorithm:
    """PRDC as three pure functions; call it inside jit, so that `cfg` is traced.

    Args:
      cfg: Config.
      spec: of one lane, with continuous actions and one vector as an observation.
      parts: of `td3_bc.make`.
    Returns:
      Algorithm whose batch is `Among`.
    Raises:
      ValueError: if observations are not one vector.
    """
    leaves = jax.tree.leaves(spec.obs)
    if len(leaves) != 1 or len(leaves[0].shape) != 1:
        raise ValueError(f"PRDC measures distances between vectors; this environment's observations are {spec.obs}")
    observer = acting.observer(cfg.normalize_obs)
    plain = td3_bc.make(cfg, spec, **parts)

    def update(state, batch: Among, key):
        known = observer.learn(observer.init(spec.obs), batch.obs, jnp.ones(len(batch.obs), bool))
        keys = jnp.concatenate([cfg.nearness * observer.see(known, batch.obs), batch.action], -1)

        def wanted(action, steps, judge, key):
            queries = jnp.concatenate([cfg.nearness * steps.obs, jax.lax.stop_gradient(action)], -1)
            return batch.action[nearest(queries, keys, block=cfg.block)], jnp.ones(steps.reward.shape, bool)

        # Rows of the batch are seen as those they are compared with: by the statistics of all the data.
        of_all = observer._replace(learn=lambda normalizer, obs, valid: known)
        return td3_bc.make(cfg, spec, wanted=wanted, observer=of_all, **parts).update(state, batch.rows, key)

    return Algorithm(plain.init, update, plain.act)
