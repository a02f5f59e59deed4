"""A small dataset and a Python memory of it: what the tests of this folder compare with."""

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_gen.data import trajectory
from jaxrl_gen.types import Spec

SPEC = Spec({"camera": jax.ShapeDtypeStruct((2, 2, 3), jnp.uint8), "joint": jax.ShapeDtypeStruct((3,), jnp.float32)}, 2)
LENGTHS = (4, 1, 7, 2)
TERMINATED = (True, False, False, True)


def episodes(lengths=LENGTHS, seed=0):
    """Episodes as lists: observations (one more than steps), actions, rewards; no number occurs twice in a field."""
    rng, lived, steps = np.random.default_rng(seed), [], 0
    for length in lengths:
        joint = rng.normal(size=(length + 1, 3)).astype(np.float32)
        camera = rng.integers(0, 256, (length + 1, 2, 2, 3), np.uint8)
        action = rng.uniform(-1, 1, (length, 2)).astype(np.float32)
        lived.append({"camera": camera, "joint": joint, "action": action, "reward": np.arange(length) / 8 + steps})
        steps += length
    return lived


def dataset(lengths=LENGTHS, terminated=TERMINATED, seed=0):
    """Those episodes as a Dataset."""
    lived = episodes(lengths, seed)
    whole = lambda field: np.concatenate([episode[field] for episode in lived])
    last = np.cumsum(lengths) - 1
    over, failed = np.zeros(sum(lengths), bool), np.zeros(sum(lengths), bool)
    over[last], failed[last] = True, terminated
    obs = {"camera": whole("camera"), "joint": whole("joint")}
    return trajectory.make(obs, whole("action"), whole("reward"), failed, over & ~failed)


def same(x, y):
    """Bit for bit the same pytree, types included."""
    assert jax.tree.structure(x) == jax.tree.structure(y)
    for (path, a), b in zip(jax.tree_util.tree_flatten_with_path(x)[0], jax.tree.leaves(y), strict=True):
        assert a.dtype == b.dtype, path
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b), err_msg=str(path))
