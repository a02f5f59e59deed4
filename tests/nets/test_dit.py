"""The diffusion transformer against float64 NumPy, and what must not change it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen import nets

DEPTH, WIDTH, HEADS, TIME, ACTIONS, HORIZON = 2, 8, 2, 6, 3, 5


def example(condition=True):
    shaped = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    return nets.Noisy(shaped(HORIZON, ACTIONS), shaped(), {"a": shaped(2, 2)} if condition else ())


def inputs(*leading, seed=0):
    rng = np.random.default_rng(seed)
    noisy = jax.tree.map(lambda leaf: rng.normal(size=(*leading, *leaf.shape)).astype(np.float32), example())
    return noisy._replace(t=rng.uniform(size=leading).astype(np.float32))


@functools.cache
def built():
    """A net whose layers that begin at zero do not."""
    net = nets.dit(DEPTH, WIDTH, HEADS, TIME)
    leaves, tree = jax.tree.flatten(jax.jit(lambda key: net.init(key, example()))(jax.random.key(0)))
    rng = np.random.default_rng(1)
    moved = [np.asarray(x + 0.3 * rng.normal(size=x.shape), np.float32) for x in leaves]
    return net._replace(apply=jax.jit(net.apply)), jax.tree.unflatten(tree, moved)


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def silu(x):
    return x / (1 + np.exp(-x))


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def normalized(x):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)


def attention(p, x):
    query, key, value = (part.reshape(len(x), HEADS, -1) for part in np.split(dense(p["read"], x), 3, -1))
    mixed = []
    for head in range(HEADS):
        logits = query[:, head] @ key[:, head].T / np.sqrt(WIDTH / HEADS)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        mixed.append(weights / weights.sum(-1, keepdims=True) @ value[:, head])
    return dense(p["write"], np.concatenate(mixed, -1))


def forward(params, x, t, condition):
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    frequency = 100.0 * 1e4 ** -np.linspace(0, 1, TIME // 2)
    time = np.concatenate([np.sin(t * frequency), np.cos(t * frequency)])
    time = dense(p["time_out"], silu(dense(p["time_in"], time)))
    condition = silu(time + dense(p["condition"], condition))
    x = dense(p["embed"], x) + p["place"]
    for i in range(DEPTH):
        block = p[f"block_{i}"]
        shift, scale, gate, shift2, scale2, gate2 = np.split(dense(block["modulation"]["Dense_0"], condition), 6)
        x = x + gate * attention(block, normalized(x) * (1 + scale) + shift)
        wide = dense(block["wide"], normalized(x) * (1 + scale2) + shift2)
        x = x + gate2 * dense(block["narrow"], gelu(wide))
    shift, scale = np.split(dense(p["last_modulation"]["Dense_0"], condition), 2)
    return dense(p["out"], normalized(x) * (1 + scale) + shift)


def test_forward():
    net, params = built()
    noisy = inputs(3)
    got = net.apply(params, noisy)
    for i in range(3):
        arrays = (noisy.x[i], noisy.t[i], noisy.condition["a"][i].ravel())
        oracle = forward(params, *(np.asarray(x, np.float64) for x in arrays))
        np.testing.assert_allclose(got[i], oracle, rtol=1e-3, atol=1e-4)


def test_it_begins_at_zero():
    net = nets.dit(DEPTH, WIDTH, HEADS, TIME)
    run = jax.jit(lambda key: net.apply(net.init(key, example()), inputs(3)))
    assert not np.any(run(jax.random.key(0)))


def test_without_places_it_does_not_know_an_order():
    net, params = built()
    params = params | {"place": jnp.zeros_like(params["place"])}
    noisy, order = inputs(2), np.array([3, 0, 4, 1, 2])
    one = net.apply(params, noisy)[:, order]
    np.testing.assert_allclose(net.apply(params, noisy._replace(x=noisy.x[:, order])), one, rtol=1e-4, atol=1e-5)


def test_any_leading_axes_and_none():
    net, params = built()
    noisy = inputs(2, 3)
    whole = net.apply(params, noisy)
    assert whole.shape == noisy.x.shape
    np.testing.assert_allclose(whole[1, 2], net.apply(params, jax.tree.map(lambda x: x[1, 2], noisy)), atol=1e-5)


def test_without_a_condition():
    net, like = nets.dit(DEPTH, WIDTH, HEADS, TIME), example(condition=False)
    params = jax.eval_shape(lambda key: net.init(key, like), jax.random.key(0))
    shaped = jax.eval_shape(net.apply, params, inputs(2)._replace(condition=()))
    assert shaped.shape == (2, HORIZON, ACTIONS) and "condition" not in params


def test_it_can_be_differentiated_forwards():
    """As mean flows need: against finite differences."""
    net, params = built()
    noisy = inputs(2)
    run = lambda t: net.apply(params, noisy._replace(t=t))
    _, slope = jax.jvp(run, (noisy.t,), (jnp.ones(2),))
    step = 1e-3
    differences = (run(noisy.t + step) - run(noisy.t - step)) / (2 * step)
    np.testing.assert_allclose(slope, differences, atol=0.02 * np.abs(differences).max())


@pytest.mark.parametrize(
    "sizes, message", [((2, 9, 2, 6), "width is 9; allowed: multiples of the 2 heads"), ((0, 8, 2, 6), "1 and more")]
)
def test_wrong_sizes_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        nets.dit(*sizes)
