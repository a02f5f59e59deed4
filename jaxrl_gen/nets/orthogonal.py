"""Orthogonal initialisation of kernels, by plain operations alone."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp


def orthogonal(scale: float = 1.0) -> Callable:
    """An initialiser of kernels whose columns (or rows, where those are fewer) are orthogonal, of length `scale`.

    Gram-Schmidt on normal numbers, which draws uniformly among all such kernels; each vector is orthogonalised twice,
    which is enough for float32. LAPACK is not called: on a processor of few cores, several of its QR decompositions at
    once, each of a kernel of all members of a population, can wait for each other for ever (seen in jaxlib 0.10.2).

    Args:
      scale: length of the vectors, the gain.
    Returns:
      `(key, shape [..., in, out], dtype) -> kernel`, where all axes but the last count as one.
    Reference: Saxe et al. 2013, arXiv 1312.6120; Giraud et al. 2005, "The loss of orthogonality in the Gram-Schmidt
      orthogonalization process"
    """

    def init(key, shape, dtype=jnp.float32):
        rows, columns = math.prod(shape[:-1]), shape[-1]
        basis = _orthonormal(jax.random.normal(key, (min(rows, columns), max(rows, columns)), jnp.float32))
        return (scale * (basis.T if columns < rows else basis)).reshape(shape).astype(dtype)

    return init


@jax.jit  # a cache, for nets that are initialised outside of any program
def _orthonormal(vectors: jax.Array) -> jax.Array:
    """Gram-Schmidt on the rows of `vectors` [n, m], n at most m."""
    dot = lambda x, y: jnp.dot(x, y, precision=jax.lax.Precision.HIGHEST)

    def add(i, basis):
        vector = vectors[i]
        for _ in range(2):
            vector = vector - dot(dot(basis, vector), basis)
        return basis.at[i].set(vector / jnp.linalg.norm(vector))

    return jax.lax.fori_loop(0, vectors.shape[0], add, jnp.zeros_like(vectors))
