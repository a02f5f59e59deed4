"""Orthogonal initialisation against NumPy's QR in float64, and free of calls that may wait for each other."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrl_gen import nets
from jaxrl_gen.nets.orthogonal import orthogonal


@pytest.mark.parametrize("shape", [(64, 64), (5, 64), (64, 3), (1, 7), (7, 1), (1, 1), (3, 3, 4, 16), (2, 2, 1, 9)])
def test_it_is_the_orthogonal_factor_of_normal_numbers(shape):
    rows, columns = int(np.prod(shape[:-1])), shape[-1]
    kernel = orthogonal(2.0)(jax.random.key(3), shape, jnp.float32)
    assert kernel.shape == shape and kernel.dtype == jnp.float32
    found = np.asarray(kernel, np.float64).reshape(rows, columns)
    found = found if rows > columns else found.T  # orthogonal columns, as QR gives them
    normal = jax.random.normal(jax.random.key(3), (min(rows, columns), max(rows, columns)), jnp.float32)
    q, r = np.linalg.qr(np.asarray(normal, np.float64).T)
    np.testing.assert_allclose(found, 2.0 * q * np.sign(np.diag(r)), atol=2e-4)
    np.testing.assert_allclose(found.T @ found, 4.0 * np.eye(found.shape[1]), atol=1e-5)


def test_members_of_a_population_are_those_drawn_alone():
    keys = jax.random.split(jax.random.key(0), 3)
    init = lambda key: orthogonal()(key, (6, 4))
    np.testing.assert_allclose(jax.jit(jax.vmap(init))(keys), [init(key) for key in keys], atol=1e-6)


def test_directions_are_uniform():
    """A coordinate of a uniform direction in three dimensions is uniform in [-1, 1] (Archimedes)."""
    init = lambda key: orthogonal()(key, (3, 2))
    drawn = jax.jit(jax.vmap(init))(jax.random.split(jax.random.key(1), 2000))
    for coordinate in np.asarray(drawn).reshape(2000, -1).T:
        assert stats.kstest(coordinate, stats.uniform(-1, 2).cdf).pvalue > 1e-3


@pytest.mark.parametrize(
    ("net", "shape"),
    [(nets.mlp((8, 2)), (3,)), (nets.gru(8, (8, 2)), (3,)), (nets.conv((4,), (8, 2), (3,), (2,)), (9, 9, 1))],
    ids=["mlp", "gru", "conv"],
)
def test_no_net_calls_lapack(net, shape):
    init = lambda key: net.init(key, jax.ShapeDtypeStruct(shape, jnp.float32))
    program = jax.jit(jax.vmap(init)).lower(jax.random.split(jax.random.key(0), 8)).as_text()
    assert "while" in program and "custom_call" not in program.replace("custom_call @Sharding", "")
