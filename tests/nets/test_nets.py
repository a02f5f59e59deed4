"""Networks: shapes with any leading axes, members that differ, and layers against NumPy written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.signal

from jaxrl_gen import nets

MODES = pytest.mark.parametrize("mode", [lambda f: f, jax.jit], ids=["eager", "jit"])
LEADING = pytest.mark.parametrize("leading", [(), (3, 4)], ids=str)


def shaped(*shape, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(shape, dtype)


def float64(tree):
    return jax.tree.map(lambda x: np.asarray(x, np.float64), tree)


def dense(x, layer):
    return x @ layer["kernel"] + layer["bias"]


def jitter(params, key=7):
    """Parameters away from their initialisation, so that biases count."""
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(key), len(leaves))
    return treedef.unflatten([x + 0.1 * jax.random.normal(k, x.shape) for x, k in zip(leaves, keys)])


@MODES
@LEADING
def test_mlp(mode, leading):
    net = nets.mlp((8, 6, 2))
    params = jitter(net.init(jax.random.key(0), shaped(5)))
    x = np.random.default_rng(0).normal(size=(*leading, 5)).astype(np.float32)
    y, layers = mode(net.apply)(params, x), float64(params)
    hidden = np.tanh(dense(np.tanh(dense(x, layers["Dense_0"])), layers["Dense_1"]))
    assert y.shape == (*leading, 2)
    np.testing.assert_allclose(y, dense(hidden, layers["Dense_2"]), rtol=1e-4, atol=1e-5)


def test_mlp_is_initialised_orthogonally_with_its_gains():
    params = float64(nets.mlp((16, 4), hidden_scale=3.0, last_scale=0.01).init(jax.random.key(1), shaped(5)))
    first, last = params["Dense_0"]["kernel"], params["Dense_1"]["kernel"]
    np.testing.assert_allclose(first @ first.T, 9.0 * np.eye(5), atol=1e-4)
    np.testing.assert_allclose(last.T @ last, 1e-4 * np.eye(4), atol=1e-8)
    assert not np.any(params["Dense_0"]["bias"]) and not np.any(params["Dense_1"]["bias"])


def test_parameters_are_plain_dictionaries_of_float32():
    for net, example in ((nets.mlp((3,)), shaped(2)), (nets.gru(3, (2,)), shaped(2))):
        params = net.init(jax.random.key(0), example)
        assert type(params) is dict and all(type(layer) is dict for layer in params.values())
        assert all(x.dtype == jnp.float32 and not x.weak_type for x in jax.tree.leaves(params))


@MODES
def test_ensemble_members_differ_and_each_is_its_own_net(mode):
    net = nets.mlp((8, 2))
    many = nets.ensemble(net, 5)
    params = mode(many.init, **({"static_argnums": 1} if mode is jax.jit else {}))(jax.random.key(2), shaped(3))
    assert all(x.shape[0] == 5 for x in jax.tree.leaves(params))
    x = jax.random.normal(jax.random.key(3), (7, 3))
    y = mode(many.apply)(params, x)
    assert y.shape == (5, 7, 2)
    for i in range(5):
        np.testing.assert_allclose(y[i], net.apply(jax.tree.map(lambda p: p[i], params), x), rtol=1e-5, atol=1e-6)
        assert all(np.max(np.abs(y[i] - y[j])) > 1e-3 for j in range(i))


@MODES
@LEADING
def test_conv(mode, leading):
    net = nets.conv((3, 4), (6, 2), kernels=(3, 2), strides=(2, 1))
    params = jitter(net.init(jax.random.key(4), shaped(9, 7, 2)))
    x = np.random.default_rng(5).normal(size=(*leading, 9, 7, 2)).astype(np.float32)
    y, layers = mode(net.apply)(params, x), float64(params)
    assert y.shape == (*leading, 2)

    def convolve(image, layer, stride):
        channels = [
            sum(
                scipy.signal.correlate2d(image[..., i], layer["kernel"][..., i, o], "valid")
                for i in range(image.shape[-1])
            )
            for o in range(layer["kernel"].shape[-1])
        ]
        return np.maximum(np.stack(channels, -1)[::stride, ::stride] + layer["bias"], 0.0)

    for row in np.ndindex(leading):
        hidden = convolve(convolve(x[row].astype(np.float64), layers["Conv_0"], 2), layers["Conv_1"], 1).reshape(-1)
        oracle = dense(np.maximum(dense(hidden, layers["Dense_0"]), 0.0), layers["Dense_1"])
        np.testing.assert_allclose(y[row], oracle, rtol=1e-4, atol=1e-5)


def test_conv_divides_integer_pixels_by_255():
    net = nets.conv((3,), (2,), kernels=(2,), strides=(1,))
    params = net.init(jax.random.key(6), shaped(4, 4, 1, dtype=jnp.uint8))
    pixels = np.random.default_rng(7).integers(0, 256, (5, 4, 4, 1)).astype(np.uint8)
    np.testing.assert_allclose(
        net.apply(params, pixels), net.apply(params, (pixels / 255.0).astype(np.float32)), rtol=1e-5, atol=1e-6
    )


def numpy_gru(params, x, memory):
    """Cho et al., with the reset gate applied after the recurrent product."""
    sigmoid = lambda z: 1.0 / (1.0 + np.exp(-z))
    cell = params["GRUCell_0"]
    x = np.tanh(dense(x, params["Dense_0"]))
    reset = sigmoid(dense(x, cell["ir"]) + memory @ cell["hr"]["kernel"])
    gate = sigmoid(dense(x, cell["iz"]) + memory @ cell["hz"]["kernel"])
    proposal = np.tanh(dense(x, cell["in"]) + reset * dense(memory, cell["hn"]))
    memory = (1.0 - gate) * proposal + gate * memory
    return dense(np.tanh(dense(memory, params["Dense_1"])), params["Dense_2"]), memory


@MODES
@LEADING
def test_gru(mode, leading):
    net = nets.gru(4, (5, 2))
    params = jitter(net.init(jax.random.key(8), shaped(3)))
    rng = np.random.default_rng(9)
    x, memory = rng.normal(size=(*leading, 3)).astype(np.float32), rng.normal(size=(*leading, 4)).astype(np.float32)
    y, after = mode(net.apply)(params, x, memory)
    oracle_y, oracle_after = numpy_gru(float64(params), x, memory)
    np.testing.assert_allclose(y, oracle_y, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(after, oracle_after, rtol=1e-4, atol=1e-5)
    assert net.memory(6).shape == (6, 4) and not np.any(net.memory(6))


@MODES
def test_unroll_equals_steps_with_resets(mode):
    net = nets.gru(4, (2,))
    params = jitter(net.init(jax.random.key(10), shaped(3)))
    rng = np.random.default_rng(11)
    x, ended = rng.normal(size=(12, 5, 3)).astype(np.float32), rng.random((12, 5)) < 0.3
    start = rng.normal(size=(5, 4)).astype(np.float32)
    y, memory = mode(lambda p, x, m, e: nets.unroll(net, p, x, m, e))(params, x, start, ended)
    assert y.shape == (12, 5, 2) and memory.shape == (12, 5, 4)
    for lane in range(5):
        now = start[lane]
        for t in range(12):
            expected, now = net.apply(params, x[t, lane], now)
            np.testing.assert_allclose(y[t, lane], expected, rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(memory[t, lane], now, rtol=1e-4, atol=1e-5)
            now = np.zeros(4, np.float32) if ended[t, lane] else now


def test_unroll_forgets_everything_at_an_end():
    net = nets.gru(4, (2,))
    params = jitter(net.init(jax.random.key(12), shaped(3)))
    x = jax.random.normal(jax.random.key(13), (8, 1, 3))
    ended = jnp.zeros((8, 1), bool).at[3].set(True)
    y, _ = nets.unroll(net, params, x, net.memory(1), ended)
    other, _ = nets.unroll(net, params, x.at[:4].add(5.0), jnp.ones((1, 4)), ended)
    np.testing.assert_array_equal(y[4:], other[4:])
    assert np.all(np.abs(y[:4] - other[:4]) > 0)
    with pytest.raises(AssertionError):
        nets.unroll(net, params, x[:4], net.memory(1), ended)


def test_forget_keeps_the_other_lanes_in_every_leaf():
    memory = {"a": jnp.ones((3, 2)), "b": jnp.ones((3,))}
    initial = jax.tree.map(jnp.zeros_like, memory)
    after = nets.forget(memory, initial, jnp.array([False, True, False]))
    np.testing.assert_array_equal(after["a"], [[1, 1], [0, 0], [1, 1]])
    np.testing.assert_array_equal(after["b"], [1, 0, 1])


@MODES
@LEADING
def test_flat_joins_the_leaves_of_a_pytree(mode, leading):
    example = {"image": shaped(2, 3), "count": shaped(dtype=jnp.int32), "inner": {"x": shaped(4)}}
    inner = nets.mlp((8, 2))
    net = nets.flat(inner, example)
    params = net.init(jax.random.key(14), example)
    rng = np.random.default_rng(15)
    x = jax.tree.map(lambda leaf: rng.normal(0.0, 3.0, (*leading, *leaf.shape)).astype(leaf.dtype), example)
    joined = np.concatenate(  # in the order of sorted names
        [x["count"][..., None].astype(np.float32), x["image"].reshape(*leading, 6), x["inner"]["x"]], -1
    )
    y = mode(net.apply)(params, x)
    assert y.shape == (*leading, 2) and params["Dense_0"]["kernel"].shape == (11, 8)
    np.testing.assert_allclose(y, inner.apply(params, joined), rtol=1e-5, atol=1e-6)


def test_flat_passes_memory_on():
    example = {"a": shaped(2), "b": shaped()}
    net = nets.flat(nets.gru(4, (2,)), example)
    params = net.init(jax.random.key(16), example)
    x = {"a": jnp.ones((5, 2)), "b": jnp.ones((5,))}
    y, memory = net.apply(params, x, net.memory(5))
    assert y.shape == (5, 2) and memory.shape == (5, 4)
    trajectory = jax.tree.map(lambda leaf: jnp.broadcast_to(leaf, (3, *leaf.shape)), x)
    assert nets.unroll(net, params, trajectory, net.memory(5), jnp.zeros((3, 5), bool))[0].shape == (3, 5, 2)


def test_flat_and_ensemble_commute():
    example = {"a": shaped(2), "b": shaped(3)}
    x = {"a": jnp.ones((4, 2)), "b": jnp.full((4, 3), 2.0)}
    one, two = (
        nets.flat(nets.ensemble(nets.mlp((2,)), 3), example),
        nets.ensemble(nets.flat(nets.mlp((2,)), example), 3),
    )
    key = jax.random.key(17)
    np.testing.assert_allclose(
        one.apply(one.init(key, example), x), two.apply(two.init(key, example), x), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: nets.mlp(()), r"sizes of layers are \(\); allowed: at least one, each 1 and more"),
        (lambda: nets.mlp((64, 0)), r"\(64, 0\)"),
        (lambda: nets.gru(0, (2,)), r"\(0,\)"),
        (lambda: nets.gru(4, ()), "at least one"),
        (lambda: nets.ensemble(nets.mlp((2,)), 0), "size of the ensemble is 0; allowed: 1 and more"),
        (lambda: nets.ensemble(nets.gru(4, (2,)), 2), "memory"),
        (lambda: nets.conv((3, 4), (2,), (3,), (1, 1)), "equally long"),
        (lambda: nets.conv((3,), (2,), (3,), (0,)), r"\(0,\)"),
        (
            lambda: nets.conv((3, 3), (2,), (3, 3), (2, 2)).init(jax.random.key(0), shaped(6, 20, 1)),
            r"an image \(6, 20, 1\) is too small for kernels \(3, 3\) with strides \(2, 2\)",
        ),
    ],
)
def test_bad_sizes_are_refused_in_one_line(call, message):
    with pytest.raises(ValueError, match=message) as refusal:
        call()
    assert "\n" not in str(refusal.value)


def test_a_normalized_activation_has_mean_zero_and_deviation_one():
    x = np.random.default_rng(3).normal(size=(4, 5, 32)).astype(np.float32) * 7 + 3
    y = np.asarray(nets.normalized(jax.nn.relu)(x), np.float64)
    oracle = np.maximum(x.astype(np.float64), 0.0)
    oracle = (oracle - oracle.mean(-1, keepdims=True)) / np.sqrt(oracle.var(-1, keepdims=True) + 1e-6)
    np.testing.assert_allclose(y, oracle, atol=1e-4)
    assert np.all(np.isfinite(nets.normalized(jax.nn.relu)(-np.ones((2, 3), np.float32))))
