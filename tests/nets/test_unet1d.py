"""The U-Net against plain loops in float64 NumPy, and its convolutions against the framework's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen import nets
from jaxrl_gen.nets.denoiser import waves
from jaxrl_gen.nets.unet1d import _convolve

QUICK = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})  # compiles faster
CHANNELS, KERNEL, GROUPS, TIME, ACTIONS, HORIZON = (4, 6, 8), 5, 2, 8, 3, 8
FEWER = CHANNELS[:2]  # levels, for what does not depend on their number: a program compiles as long as it is deep


def example(horizon=HORIZON, actions=ACTIONS, condition=None):
    shaped = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    condition = {"a": shaped(2, 3), "b": shaped()} if condition is None else condition
    return nets.Noisy(shaped(horizon, actions), shaped(), condition)


def inputs(*leading, seed=0, like=None):
    rng = np.random.default_rng(seed)
    noisy = jax.tree.map(lambda leaf: rng.normal(size=(*leading, *leaf.shape)).astype(np.float32), like or example())
    return noisy._replace(t=rng.uniform(size=leading).astype(np.float32))


@functools.cache
def built(channels=CHANNELS):
    net = nets.unet1d(channels, KERNEL, TIME, GROUPS)
    params = QUICK(lambda key: net.init(key, example()))(jax.random.key(0))
    leaves, tree = jax.tree.flatten(params)  # scales and offsets of normalisation other than one and zero
    rng = np.random.default_rng(1)
    moved = [np.asarray(x + 0.1 * rng.normal(size=x.shape), np.float32) for x in leaves]
    return net._replace(apply=QUICK(net.apply)), jax.tree.unflatten(tree, moved)


# ------------------------------------------------------------------------------------- the network in float64 NumPy


def mish(x):
    return x * np.tanh(np.log1p(np.exp(x)))


def dense(p, x):
    return x @ p["kernel"] + p["bias"]


def conv(p, x, stride=1):
    """x [L, C]: what the kernel of odd width reads beyond the ends is zero."""
    pad = len(p["kernel"]) // 2
    padded = np.pad(x, ((pad, pad), (0, 0)))
    return np.stack([
        sum(padded[i + tap] @ p["kernel"][tap] for tap in range(len(p["kernel"]))) + p["bias"]
        for i in range(0, len(x), stride)
    ])  # fmt: skip


def upsample(p, x):
    """A transposed convolution: step i of the input adds to steps 2 i - 1 to 2 i + 2 of the output."""
    out = np.zeros((2 * len(x) + 2, x.shape[1]))
    for i, row in enumerate(x):
        for tap in range(4):
            out[2 * i + tap] += row @ p["kernel"][tap]
    return out[1:-1] + p["bias"]


def conv_norm(p, x):
    x = conv(p["_Conv_0"], x)
    grouped = x.reshape(len(x), GROUPS, -1)
    mean, variance = grouped.mean((0, 2), keepdims=True), grouped.var((0, 2), keepdims=True)
    return mish(((grouped - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape) * p["scale"] + p["offset"])


def residual(p, x, condition):
    film = dense(p["Dense_0"], mish(condition))
    scale, offset = film[: len(film) // 2], film[len(film) // 2 :]
    y = conv_norm(p["_ConvNorm_1"], conv_norm(p["_ConvNorm_0"], x) * scale + offset)
    return y + (dense(p["Dense_1"], x) if "Dense_1" in p else x)


def forward(params, x, t, condition):
    """One sample; blocks are named in the order in which they are made."""
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    frequency = 100.0 * 1e4 ** -np.linspace(0, 1, TIME // 2)
    time = np.concatenate([np.sin(t * frequency), np.cos(t * frequency)])
    time = dense(p["Dense_1"], mish(dense(p["Dense_0"], time)))
    condition = np.concatenate([time, condition])
    blocks, kept = iter(range(100)), []
    block = lambda x: residual(p[f"_Residual_{next(blocks)}"], x, condition)
    for level in range(len(CHANNELS)):
        x = conv(p[f"_Conv_{level - 1}"], x, stride=2) if level else x
        x = block(block(x))
        kept.append(x)
    x = block(block(x))
    for level in range(len(CHANNELS) - 1):
        x = upsample(p[f"_Upsample_{level}"], block(block(np.concatenate([x, kept.pop()], -1))))
    return dense(p["Dense_2"], conv_norm(p["_ConvNorm_0"], x))


def test_forward():
    net, params = built()
    noisy = inputs(3)
    got = net.apply(params, noisy)
    for i in range(3):
        condition = np.append(noisy.condition["a"][i].ravel(), noisy.condition["b"][i])
        oracle = forward(params, *(np.asarray(x, np.float64) for x in (noisy.x[i], noisy.t[i], condition)))
        np.testing.assert_allclose(got[i], oracle, rtol=1e-3, atol=1e-4)


# ------------------------------------------------------------------------------------------------------ convolutions


def theirs(x, kernel, stride):
    pad = kernel.shape[0] // 2
    layout = ("WNC", "WIO", "WNC")
    return jax.lax.conv_general_dilated(x, kernel, (stride,), [(pad, pad)], dimension_numbers=layout)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("length, width", [(8, 3), (4, 5), (2, 7), (1, 5), (6, 1)])
def test_convolutions_and_their_gradients_are_the_frameworks_own(length, width, stride):
    rng = np.random.default_rng(0)
    x, kernel = (rng.normal(size=shape).astype(np.float32) for shape in ((length, 2, 3), (width, 3, 4)))

    def both(x, kernel):
        weighed = lambda f: lambda x, kernel: (jnp.sum(jnp.sin(y := f(x, kernel, stride))), y)
        return [jax.value_and_grad(weighed(f), (0, 1), has_aux=True)(x, kernel) for f in (_convolve, theirs)]

    ours, others = jax.jit(both)(x, kernel)
    for one, two in zip(jax.tree.leaves(ours), jax.tree.leaves(others), strict=True):
        np.testing.assert_allclose(one, two, rtol=1e-3, atol=1e-4)


# --------------------------------------------------------------------------------------------------------- properties


def test_the_network_of_the_paper_has_its_number_of_parameters():
    """65.8 million with observations of 20 numbers twice: weights of Conv1d and ConvTranspose1d, counted by hand."""
    like = example(16, 2, {"obs": jax.ShapeDtypeStruct((2, 20), jnp.float32)})
    shapes = jax.eval_shape(lambda key: nets.unet1d().init(key, like), jax.random.key(0))
    count = sum(x.size for x in jax.tree.leaves(shapes))

    def block(inside, out, condition=256 + 40):
        convs = 5 * inside * out + out + 5 * out * out + out + 4 * out
        return convs + condition * 2 * out + 2 * out + (inside * out + out if inside != out else 0)

    by_hand = 256 * 1024 + 1024 + 1024 * 256 + 256
    for inside, out in ((2, 256), (256, 512), (512, 1024), (1024, 1024)):
        by_hand += block(inside, out) + block(out, out)
    for inside, out in ((2048, 512), (1024, 256)):
        by_hand += block(inside, out) + block(out, out) + 4 * out * out + out
    for width in (256, 512):
        by_hand += 3 * width * width + width
    by_hand += 5 * 256 * 256 + 3 * 256 + 256 * 2 + 2
    assert count == by_hand and abs(count / 1e6 - 65.8) < 0.1


def test_any_leading_axes():
    net, params = built(FEWER)
    noisy = inputs(3)
    whole = net.apply(params, jax.tree.map(lambda x: x[None], noisy))
    assert whole.shape == (1, 3, HORIZON, ACTIONS)
    np.testing.assert_allclose(whole[0], net.apply(params, noisy), rtol=1e-4, atol=1e-5)


def test_members_side_by_side():
    net = nets.unet1d(FEWER, KERNEL, TIME, GROUPS)
    init = QUICK(jax.vmap(lambda key: net.init(key, example())))
    params = init(jax.random.split(jax.random.key(2), 3))
    noisy = inputs(3)
    many = QUICK(jax.vmap(net.apply, in_axes=(0, None)))(params, noisy)
    one = built(FEWER)[0].apply(jax.tree.map(lambda x: x[1], params), noisy)
    np.testing.assert_allclose(many[1], one, rtol=1e-3, atol=1e-4)


def test_it_reads_all_of_its_input():
    _, params = built(FEWER)
    noisy = inputs(2)
    plain = nets.unet1d(FEWER, KERNEL, TIME, GROUPS)
    gradient = QUICK(jax.grad(lambda noisy: jnp.sum(plain.apply(params, noisy)[:, 0, 0])))(noisy)
    for leaf in jax.tree.leaves(gradient):
        assert np.all(np.asarray(leaf) != 0.0)


def test_without_a_condition():
    like = example(condition=())
    net = nets.unet1d(CHANNELS, KERNEL, TIME, GROUPS)
    run = lambda key: net.apply(net.init(key, like), inputs(2, like=like))
    assert jax.eval_shape(run, jax.random.key(0)).shape == (2, HORIZON, ACTIONS)


def test_a_horizon_that_cannot_be_halved_is_refused():
    net = nets.unet1d(CHANNELS, KERNEL, TIME, GROUPS)
    with pytest.raises(ValueError, match="the horizon is 6; allowed with 3 levels: multiples of 4"):
        jax.eval_shape(lambda key: net.init(key, example(horizon=6)), jax.random.key(0))


@pytest.mark.parametrize(
    "arguments, message",
    [
        (dict(channels=(4, 7)), r"channels are \(4, 7\); allowed: multiples of the 2 groups"),
        (dict(channels=()), "at least one"),
        (dict(kernel=4), "kernel is 4; allowed: odd numbers from 1"),
    ],
)
def test_wrong_sizes_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        nets.unet1d(**(dict(channels=CHANNELS, kernel=KERNEL, groups=GROUPS) | arguments))


def test_refuses_broadcasting():
    net, params = built(FEWER)
    noisy = inputs(3)
    for wrong in (noisy._replace(t=noisy.t[:1]), noisy._replace(t=noisy.t[:, None]), noisy._replace(x=noisy.x[:1])):
        with pytest.raises(AssertionError):
            net.apply(params, wrong)


def test_waves():
    t = np.array([0.0, 0.01, 1.0])
    frequency = 100.0 * np.exp(-np.log(1e4) * np.arange(4) / 3)
    oracle = np.concatenate([np.sin(t[:, None] * frequency), np.cos(t[:, None] * frequency)], -1)
    np.testing.assert_allclose(waves(jnp.asarray(t, jnp.float32), 8), oracle, atol=2e-5)
    for width in (3, 2):
        with pytest.raises(ValueError, match=f"times is {width}; allowed: even numbers from 4"):
            waves(jnp.zeros(2), width)
