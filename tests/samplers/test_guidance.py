"""Classifier-free guidance: its identities, and that a condition is dropped whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen import samplers

CONDITION = {"goal": jnp.arange(8.0).reshape(4, 2) + 1.0, "speed": jnp.arange(4.0) + 1.0}
NULL = {"goal": jnp.zeros(2), "speed": jnp.zeros(())}
X, T = jax.random.normal(jax.random.key(0), (4, 3)), jnp.linspace(0.1, 0.9, 4)


def predict(x, t, condition):
    return x * t[:, None] + jnp.sum(condition["goal"], -1)[:, None] ** 2 + condition["speed"][:, None]


@pytest.mark.parametrize("weight", [0.0, 1.0, 2.5, -1.0])
def test_guided(weight):
    null = jax.tree.map(lambda x, c: jnp.broadcast_to(x, c.shape), NULL, CONDITION)
    with_it, without = (np.asarray(predict(X, T, c), np.float64) for c in (CONDITION, null))
    got = jax.jit(lambda w: samplers.guided(predict, CONDITION, NULL, weight=w)(X, T))(jnp.float32(weight))
    np.testing.assert_allclose(got, without + weight * (with_it - without), rtol=1e-5)


def test_a_weight_for_each_sample():
    weights = jnp.array([0.0, 1.0, 2.0, 3.0])
    got = samplers.guided(predict, CONDITION, NULL, weight=weights)(X, T)
    for i, weight in enumerate(weights):
        one = samplers.guided(predict, CONDITION, NULL, weight=weight)(X, T)
        np.testing.assert_allclose(got[i], one[i], rtol=1e-5)
    with pytest.raises(AssertionError):
        samplers.guided(predict, CONDITION, NULL, weight=jnp.ones(3))(X, T)


def test_the_denoiser_is_asked_once():
    calls = []
    samplers.guided(lambda x, t, c: calls.append(x.shape) or x, CONDITION, NULL, weight=2.0)(X, T)
    assert calls == [(8, 3)]


def test_conditions_are_dropped_whole_and_as_often_as_said():
    many = jax.tree.map(lambda x: jnp.concatenate([x] * 1000), CONDITION)
    got = jax.jit(lambda key: samplers.dropped(many, NULL, key, rate=0.2))(jax.random.key(1))
    gone = np.asarray(got["speed"]) == 0
    np.testing.assert_array_equal(gone, np.all(np.asarray(got["goal"]) == 0, -1))
    np.testing.assert_array_equal(np.asarray(got["goal"])[~gone], np.asarray(many["goal"])[~gone])
    assert abs(gone.mean() - 0.2) < 0.03
    for rate, share in ((0.0, 0.0), (1.0, 1.0)):
        assert np.mean(samplers.dropped(many, NULL, jax.random.key(2), rate=rate)["speed"] == 0) == share
