"""The loss of an actor that climbs its critic, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen.losses import actor

MODES = pytest.mark.parametrize("mode", [lambda f: f, jax.jit], ids=["eager", "jit"])


@MODES
@pytest.mark.parametrize("scale_free", [False, True])
def test_value_ascent(mode, scale_free):
    value = np.random.default_rng(0).normal(size=9).astype(np.float32)
    size = np.mean(np.abs(value.astype(np.float64))) if scale_free else 1.0
    run = mode(lambda x: actor.value_ascent(x, scale_free=scale_free))
    loss, metrics = run(value)
    np.testing.assert_allclose(loss, -value / size, rtol=1e-5)
    np.testing.assert_allclose(metrics["actor/q"], value.astype(np.float64).mean(), rtol=1e-5)
    gradient = jax.grad(lambda x: jnp.sum(run(x)[0]))(jnp.asarray(value))
    np.testing.assert_allclose(gradient, np.full(9, -1.0 / size), rtol=1e-5)


def test_scale_free_of_zero_values_is_finite():
    assert np.all(np.isfinite(actor.value_ascent(jnp.zeros(4), scale_free=True)[0]))


def test_refuses_a_broadcasting_head():
    with pytest.raises(AssertionError):
        actor.value_ascent(jnp.zeros((5, 1)))
