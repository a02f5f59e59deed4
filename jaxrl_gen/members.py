"""The members of a run: every setting of a swept config with every seed, or a single one."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_gen import sweep
from jaxrl_gen.types import PyTree, strong

EVALUATION = 0x6576616C  # separates the keys of evaluation from those of training


class Group(NamedTuple):
    """Who runs: member i has setting `i // seeds` and seed `first + i % seeds`.

    `count` is None where there is one setting and one seed: then nothing has a leading axis.
    """

    first: int
    seeds: int
    settings: int
    count: int | None

    def config(self, cfg: Any) -> Any:
        """The config with float32 leaves, swept ones [N]."""
        return strong(jax.tree.map(lambda x: np.repeat(np.asarray(x), self.seeds) if np.ndim(x) else x, cfg))

    def init(self, init: Callable, mapped: Callable = sweep.mapped) -> Callable:
        """`(cfg, seed) -> carry` of all members, from a loop's `(cfg, key) -> carry` of one."""
        return lambda cfg, seed: (mapped(init) if self.count else init)(cfg, self.keys(seed))

    def evaluation(self, evaluate: Callable, mapped: Callable = sweep.mapped) -> Callable:
        """`(cfg, state, seed, chunk) -> Episodes` of all members, from `(cfg, state, key) -> Episodes` of one.

        The keys depend on the seed and the chunk alone: evaluating more or less often changes nothing in training.
        """

        def call(cfg, state, seed, chunk):
            fold = jax.vmap(jax.random.fold_in, (0, None)) if self.count else jax.random.fold_in
            keys = fold(fold(self.keys(seed), EVALUATION), chunk)
            return (mapped(evaluate) if self.count else evaluate)(cfg, state, keys)

        return call

    def keys(self, seed: jax.Array) -> jax.Array:
        """Typed keys, [N] or one, from the first seed: each seed's key is the same in any company."""
        if self.count is None:
            return jax.random.key(seed)
        return jax.vmap(jax.random.key)(jnp.tile(seed + jnp.arange(self.seeds), self.settings))

    def names(self, cfg: Any) -> list[dict[str, float]]:
        """What tells each member from the others: the values of the swept fields, and the seed.

        Args:
          cfg: with leaves [N], as `config` gives it.
        """
        if self.count is None:
            return [{"seed": self.first}]
        swept = sweep.members(cfg) if sweep.size(cfg) else [{}] * self.count
        return [{**settings, "seed": self.first + i % self.seeds} for i, settings in enumerate(swept)]

    def member(self, tree: PyTree, i: int) -> PyTree:
        """Member i of a pytree of all members."""
        return tree if self.count is None else jax.tree.map(lambda x: x[i], tree)


def group(cfg: Any, seed: int, seeds: int) -> Group:
    """Every setting of a config, whose leaves [M] are M settings, with `seeds` seeds from `seed` on.

    Raises:
      ValueError: if swept leaves differ in length.
    """
    settings = sweep.size(cfg)
    is_one = settings is None and seeds == 1
    return Group(seed, seeds, settings or 1, None if is_one else (settings or 1) * seeds)
