"""Classifier-free guidance: its identities, that a condition is dropped whole, and what it makes of two clusters."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy import stats

from jaxrl_gen import nets, samplers
from jaxrl_gen.losses import denoise

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


# --------------------------------------------------------------------- learned on two clusters, and sampled from them

MEANS, STDS = np.array([-0.8, 1.0]), np.array([0.9, 0.9])  # of what has label 0, and what has label 1; they overlap
STEPS, UPDATES = 20, 3000
NET = nets.mlp((32, 32, 1), activation=jax.nn.silu)


def of_labels(params, x, t, label):
    """A velocity that reads x [B, 1], the time and a label, one-hot; zeros are none."""
    return NET.apply(params, jnp.concatenate([x, t[:, None], label], -1))


@functools.cache
def learned():
    """The denoiser, who was not told one label in four."""
    optimizer = optax.adam(optax.cosine_decay_schedule(5e-3, UPDATES))

    def update(carry, key):
        (params, opt_state), keys = carry, jax.random.split(key, 4)
        label = jax.random.randint(keys[0], (512,), 0, 2)
        x = jnp.asarray(MEANS)[label] + jnp.asarray(STDS)[label] * jax.random.normal(keys[1], (512,))
        told = samplers.dropped(jax.nn.one_hot(label, 2), jnp.zeros(2), keys[2], rate=0.25)
        loss = lambda params: jnp.mean(
            denoise.flow_matching(lambda x, t: of_labels(params, x, t, told), x[:, None], keys[3])[0]
        )
        steps, opt_state = optimizer.update(jax.grad(loss)(params), opt_state)
        return (optax.apply_updates(params, steps), opt_state), None

    def run(key):
        key_init, key_updates = jax.random.split(key)
        params = NET.init(key_init, jax.ShapeDtypeStruct((4,), jnp.float32))
        return jax.lax.scan(update, (params, optimizer.init(params)), jax.random.split(key_updates, UPDATES))[0][0]

    return jax.jit(run)(jax.random.key(0))


@functools.cache
def drawn(weight, label):
    """Samples [N] that the denoiser makes of `noise()`, guided to a label."""
    start = jnp.asarray(noise()[:, None], jnp.float32)
    told = jnp.broadcast_to(jax.nn.one_hot(label, 2), (len(start), 2))
    predict = samplers.guided(functools.partial(of_labels, learned()), told, jnp.zeros(2), weight=weight)
    parts = dict(process=denoise.flow(), kind=denoise.velocity, steps=STEPS)
    return np.asarray(jax.jit(lambda x: samplers.sample(samplers.euler(), predict, x, None, **parts))(start))[:, 0]


def noise():
    return np.random.default_rng(0).normal(size=4000)


def exact(weight, label):
    """The same of the true velocities, in float64: E[data - noise | x_t] of one cluster, and of both alike often."""
    x = noise()
    for t in np.arange(STEPS) / STEPS:
        variance = (1 - t) ** 2 + t**2 * STDS**2
        each = MEANS + (t * STDS**2 - (1 - t)) / variance * (x[:, None] - t * MEANS)
        density = stats.norm.pdf(x[:, None], t * MEANS, np.sqrt(variance))
        without = np.sum(density * each, 1) / np.sum(density, 1)
        x = x + (without + weight * (each[:, label] - without)) / STEPS
    return x


@pytest.mark.parametrize("label", [0, 1])
@pytest.mark.parametrize("weight", [0.0, 1.0, 3.0])
def test_samples_of_a_learned_denoiser_lie_where_guidance_by_the_true_one_leads(weight, label):
    ours, best = drawn(weight, label), exact(weight, label)
    assert ours.mean() == pytest.approx(best.mean(), abs=0.1) and ours.std() == pytest.approx(best.std(), abs=0.15)
    np.testing.assert_allclose(np.quantile(ours, [0.1, 0.5, 0.9]), np.quantile(best, [0.1, 0.5, 0.9]), atol=0.25)


@pytest.mark.parametrize("label, side", [(0, -1), (1, 1)])
def test_weight_0_forgets_the_label_1_obeys_it_and_3_exaggerates(label, side):
    none, plain, strong = (drawn(weight, label) for weight in (0.0, 1.0, 3.0))
    assert none.mean() == pytest.approx(MEANS.mean(), abs=0.1) and 0.4 < np.mean(none * side > 0) < 0.6
    assert plain.mean() == pytest.approx(MEANS[label], abs=0.1) and plain.std() == pytest.approx(STDS[label], abs=0.1)
    wrong = lambda x: np.mean(x * side < 0)
    assert strong.std() < 0.85 * plain.std() and wrong(strong) < 0.25 * wrong(plain) and wrong(plain) > 0.05
    assert abs(strong.mean()) > abs(plain.mean()) and np.abs(strong).max() < 5.0
