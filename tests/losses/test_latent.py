"""Latent-action losses against float64 NumPy, SciPy, finite differences and what the stop-gradients promise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxrl_gen.losses import latent

MODES = pytest.mark.parametrize("mode", [lambda f: f, jax.jit], ids=["eager", "jit"])


def draw(*shapes, seed=0, scale=1.0):
    rng = np.random.default_rng(seed)
    return [(scale * rng.normal(size=shape)).astype(np.float32) for shape in shapes]


def central(function, x, step=1e-2):
    """Central differences of a scalar function, one number of x at a time."""
    gradient = np.zeros(x.shape)
    for at in np.ndindex(*x.shape):
        up, down = x.copy(), x.copy()
        up[at] += step
        down[at] -= step
        gradient[at] = (float(function(up)) - float(function(down))) / (2 * step)
    return gradient


@MODES
def test_straight_through_is_the_code_with_the_gradient_of_what_follows(mode):
    """The gradient that reaches the latent is that of the decoder at the code: against finite differences of it."""
    z, c, weight = draw((3, 4), (3, 4), (4,))
    decoder = lambda x: jnp.sum(jnp.tanh(x @ weight) ** 2)  # noqa: E731
    np.testing.assert_allclose(mode(latent.straight_through)(z, c), c, rtol=1e-5, atol=1e-6)
    grad_z, grad_c = mode(jax.grad(lambda z, c: decoder(latent.straight_through(z, c)), (0, 1)))(z, c)
    np.testing.assert_allclose(grad_z, central(decoder, c), rtol=1e-2, atol=1e-3)
    assert not np.any(grad_c)
    jacobian = mode(jax.jacobian(latent.straight_through))(z[0], c[0])
    np.testing.assert_array_equal(jacobian, np.eye(4))


@MODES
def test_noise_substitution_moves_as_far_as_the_code_is(mode):
    z, c = draw((64, 3, 5), (64, 3, 5), seed=1)
    key = jax.random.key(0)
    moved = np.asarray(mode(latent.noise_substitution)(z, c, key), np.float64)
    np.testing.assert_allclose(
        np.linalg.norm(moved - z, axis=-1), np.linalg.norm(z.astype(np.float64) - c, axis=-1), rtol=1e-4
    )
    direction = (moved - z) / np.linalg.norm(moved - z, axis=-1, keepdims=True)
    assert np.abs(direction.mean((0, 1))).max() < 0.15  # it has none of its own
    grad_z, grad_c = jax.grad(lambda z, c: jnp.sum(latent.noise_substitution(z, c, key) ** 2), (0, 1))(z, c)
    assert np.any(grad_z) and np.any(grad_c)
    np.testing.assert_array_equal(latent.noise_substitution(z, c, None), c)


def test_noise_substitution_gradient_equals_finite_differences():
    z, c = draw((2, 3), (2, 3), seed=2)
    for i in range(2):
        of = lambda x, i=i: jnp.sum(
            latent.noise_substitution(*[x if k == i else y for k, y in enumerate((z, c))], jax.random.key(1)) ** 2
        )  # noqa: E501, E731
        np.testing.assert_allclose(jax.grad(of)((z, c)[i]), central(of, (z, c)[i]), rtol=2e-2, atol=1e-2)


def test_noise_substitution_is_finite_where_the_latent_is_its_code():
    z = jnp.ones((2, 3))
    gradient = jax.grad(lambda z: jnp.sum(latent.noise_substitution(z, jnp.ones((2, 3)), jax.random.key(0))))(z)
    assert np.all(np.isfinite(gradient))


PULLS = {"codebook_loss": (latent.codebook_loss, 1, "codebook/error"),
         "commitment": (latent.commitment, 0, "codebook/commitment")}  # fmt: skip


@MODES
@pytest.mark.parametrize("loss, moves, metric", PULLS.values(), ids=PULLS)
def test_the_two_pulls_of_a_codebook(mode, loss, moves, metric):
    arguments = draw((6, 2, 4), (6, 2, 4), seed=3)
    found, metrics = mode(loss)(*arguments)
    z, c = (x.astype(np.float64) for x in arguments)
    np.testing.assert_allclose(found, ((z - c) ** 2).mean((1, 2)), rtol=1e-5)
    np.testing.assert_allclose(metrics[metric], ((z - c) ** 2).mean(), rtol=1e-5)
    gradients = mode(jax.grad(lambda *a: jnp.sum(loss(*a)[0]), (0, 1)))(*arguments)
    np.testing.assert_allclose(gradients[moves], (1 if moves == 0 else -1) * 2 * (z - c) / 8, rtol=1e-4, atol=1e-6)
    assert not np.any(gradients[1 - moves])


@MODES
def test_perplexity_is_the_exponential_of_the_entropy(mode):
    counts = np.random.default_rng(4).integers(0, 20, (5, 7)).astype(np.float32)
    counts[0] = [3, 0, 0, 0, 0, 0, 0]
    counts[1] = 2
    found = mode(latent.perplexity)(counts)
    np.testing.assert_allclose(found, np.exp(scipy.stats.entropy(counts.astype(np.float64), axis=-1)), rtol=1e-5)
    np.testing.assert_allclose(found[:2], [1.0, 7.0], rtol=1e-6)
    assert float(latent.perplexity(jnp.zeros(4))) == 1.0


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 100), min_size=6, max_size=6).filter(any), st.floats(0.5, 50.0))
def test_perplexity_counts_codes_and_knows_no_scale(counts, scale):
    counts = np.float32(counts)
    found = float(latent.perplexity(counts))
    assert 1.0 - 1e-4 <= found <= np.sum(counts > 0) * (1 + 1e-4)
    assert float(latent.perplexity(counts * np.float32(scale))) == pytest.approx(found, rel=1e-3)


@MODES
@pytest.mark.parametrize(
    "usage, expected",
    [([1.0, 0.0, 0.0, 0.0], (1.0, 0.75, 1.0)), ([5.0, 5.0, 5.0, 5.0], (4.0, 0.0, 0.0)),
     ([0.98, 0.02, 0.0, 0.0], (1.1030, 0.75, 1.0)), ([50.0, 50.0, 0.0, 0.0], (2.0, 0.5, 0.0)),
     ([1.0], (1.0, 0.0, 0.0))],
)  # fmt: skip
def test_a_collapsed_codebook_is_told_from_one_in_use(mode, usage, expected):
    found = mode(latent.codebook_health)(jnp.array(usage))
    told = [float(found[f"codebook/{name}"]) for name in ("perplexity", "dead", "collapsed")]
    assert told == pytest.approx(expected, rel=1e-3)


def test_codebook_health_takes_one_codebook():
    with pytest.raises(AssertionError):
        latent.codebook_health(jnp.ones((3, 4)))


def predictor(weight):
    """A forward model of two linear maps."""
    return lambda features, code: {"x": features["a"] @ weight[0] + code @ weight[1]}


@MODES
def test_forward_model(mode):
    a, code, target, w0, w1 = draw((5, 3), (5, 2), (5, 4), (3, 4), (2, 4), seed=5)
    run = lambda a, code, target: latent.forward_model(predictor((w0, w1)), {"a": a}, code, {"x": target})  # noqa: E731
    loss, metrics = mode(run)(a, code, target)
    oracle = ((a.astype(np.float64) @ w0 + code.astype(np.float64) @ w1 - target) ** 2).mean(1)
    np.testing.assert_allclose(loss, oracle, rtol=1e-5)
    np.testing.assert_allclose(metrics["forward/error"], oracle.mean(), rtol=1e-5)
    total = lambda *args: jnp.sum(run(*args)[0])  # noqa: E731
    gradients = mode(jax.grad(total, (0, 1, 2)))(a, code, target)
    assert not np.any(gradients[0]), "the previous frame's features must not learn from the forward model"
    assert not np.any(gradients[2])
    np.testing.assert_allclose(gradients[1], central(lambda c: total(a, c, target), code), rtol=2e-2, atol=1e-2)


def test_forward_model_weighs_every_number_of_a_tree_alike():
    x, y = draw((4, 3), (4, 2, 5), seed=6)
    zeros = {"x": np.zeros_like(x), "y": np.zeros_like(y)}
    loss, _ = latent.forward_model(lambda features, code: zeros, (), jnp.zeros((4, 1)), {"x": x, "y": y})
    both = np.concatenate([x, y.reshape(4, 10)], 1).astype(np.float64)
    np.testing.assert_allclose(loss, (both**2).mean(1), rtol=1e-5)


@MODES
def test_inverse_model(mode):
    (logits,) = draw((6, 5), seed=7)
    action = np.int32([0, 4, 2, 2, 1, 3])
    loss, metrics = mode(latent.inverse_model)(logits, action)
    exact = logits.astype(np.float64)
    oracle = np.log(np.exp(exact).sum(1)) - exact[np.arange(6), action]
    np.testing.assert_allclose(loss, oracle, rtol=1e-5)
    np.testing.assert_allclose(metrics["inverse/loss"], oracle.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["inverse/accuracy"], np.mean(exact.argmax(1) == action), rtol=1e-6)
    softmax = np.exp(exact) / np.exp(exact).sum(1, keepdims=True)
    gradient = mode(jax.grad(lambda x: jnp.sum(latent.inverse_model(x, action)[0])))(logits)
    np.testing.assert_allclose(gradient, softmax - np.eye(5)[action], rtol=1e-4, atol=1e-6)


@MODES
def test_masked_reconstruction(mode):
    prediction, target = draw((4, 6, 3), (4, 6, 3), seed=8)
    hidden = np.random.default_rng(0).random((4, 6)) < 0.5
    hidden[0] = False
    loss, metrics = mode(latent.masked_reconstruction)(prediction, target, hidden)
    oracle = [
        ((p - t)[h].astype(np.float64) ** 2).mean() if h.any() else 0.0 for p, t, h in zip(prediction, target, hidden)
    ]  # noqa: E501
    np.testing.assert_allclose(loss, oracle, rtol=1e-5)
    np.testing.assert_allclose(metrics["masked/error"], np.mean(oracle), rtol=1e-5)
    np.testing.assert_allclose(metrics["masked/share"], hidden.mean(), rtol=1e-6)
    of = lambda p, t: jnp.sum(latent.masked_reconstruction(p, t, hidden)[0])  # noqa: E731
    grad_p, grad_t = mode(jax.grad(of, (0, 1)))(prediction, target)
    assert not np.any(grad_p[~hidden]) and np.all(grad_p[hidden] != 0.0) and not np.any(grad_t)


def forward(prediction, target):
    return latent.forward_model(lambda features, code: prediction, (), jnp.zeros((5, 1)), target)


REFUSED = {
    "codebook_loss": (latent.codebook_loss, [(5, 3), (5, 3)]),
    "commitment": (latent.commitment, [(5, 3), (5, 3)]),
    "straight_through": (lambda *a: (latent.straight_through(*a)[:, 0],), [(5, 3), (5, 3)]),
    "noise_substitution": (lambda *a: (latent.noise_substitution(*a, jax.random.key(0))[:, 0],), [(5, 3), (5, 3)]),
    "forward_model": (forward, [(5, 3), (5, 3)]),
    "masked_reconstruction": (latent.masked_reconstruction, [(5, 4, 3), (5, 4, 3), (5, 4)]),
}


@pytest.mark.parametrize("loss, shapes", REFUSED.values(), ids=REFUSED)
def test_refuses_to_broadcast(loss, shapes):
    arguments = [jnp.ones(shape, bool if len(shape) == 2 and len(shapes) == 3 else jnp.float32) for shape in shapes]
    assert loss(*arguments)[0].shape == (5,)
    for i in range(len(arguments)):
        for bad in (arguments[i][:1], arguments[i][..., :1], arguments[i][..., None]):
            with pytest.raises(AssertionError):
                loss(*[bad if k == i else x for k, x in enumerate(arguments)])


@pytest.mark.parametrize("action", [jnp.zeros((5, 1), jnp.int32), jnp.zeros((1,), jnp.int32), jnp.zeros((5,))])
def test_inverse_model_refuses_actions_that_do_not_fit(action):
    with pytest.raises(AssertionError):
        latent.inverse_model(jnp.zeros((5, 3)), action)
