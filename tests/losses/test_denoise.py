"""Noise processes, kinds of prediction and objectives against float64 NumPy and what is known of normal data."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jaxrl_gen.losses import denoise

MODES = pytest.mark.parametrize("mode", [lambda f: f, jax.jit], ids=["eager", "jit"])
LEVELS = 20


def numpy_kept(levels=LEVELS):
    """The squared signal of the squared-cosine table, after 0, 1, ..., T steps of noise."""
    left = lambda u: np.cos((u + 0.008) / 1.008 * np.pi / 2) ** 2
    i = np.arange(levels, dtype=np.float64)
    betas = np.minimum(1.0 - left((i + 1) / levels) / left(i / levels), 0.999)
    return np.append(1.0, np.cumprod(1.0 - betas)), betas


def numpy_path(name, t):
    t = np.asarray(t, np.float64)
    if name == "flow":
        return t, 1.0 - t
    if name == "cosine":
        return np.cos(np.pi * t / 2), np.sin(np.pi * t / 2)
    kept = numpy_kept()[0][np.round(t * LEVELS).astype(int)]
    return np.sqrt(kept), np.sqrt(1.0 - kept)


def numpy_velocity(name, t, data, noise):
    t = np.asarray(t, np.float64)[:, None]
    if name == "flow":
        return data - noise
    return np.pi / 2 * (np.cos(np.pi * t / 2) * noise - np.sin(np.pi * t / 2) * data)


PROCESSES = {
    "flow": denoise.flow(), "cosine": denoise.cosine(), "ddpm": denoise.ddpm(denoise.cosine_betas(LEVELS)),
}  # fmt: skip
KINDS = {
    "eps": denoise.eps, "x0": denoise.x0, "v": denoise.v, "score": denoise.score, "velocity": denoise.velocity,
}  # fmt: skip
EVERY_PROCESS = pytest.mark.parametrize("name", PROCESSES)


def numpy_kind(kind, name, t, data, noise):
    signal, level = (x[:, None] for x in numpy_path(name, t))
    return {
        "eps": lambda: noise, "x0": lambda: data, "v": lambda: signal * noise - level * data,
        "score": lambda: -noise / level, "velocity": lambda: numpy_velocity(name, t, data, noise),
    }[kind]()  # fmt: skip


def draw(seed=0, batch=7, size=3):
    rng = np.random.default_rng(seed)
    return rng.normal(size=(batch, size)), rng.normal(size=(batch, size))


def middle(name, batch=7):
    """Times away from both ends."""
    return np.arange(3, 3 + batch) / LEVELS if name == "ddpm" else np.linspace(0.1, 0.9, batch)


@EVERY_PROCESS
def test_path(name):
    t = np.linspace(0.0, 1.0, LEVELS + 1)
    for ours, oracle in zip(PROCESSES[name].path(jnp.asarray(t, jnp.float32)), numpy_path(name, t), strict=True):
        np.testing.assert_allclose(ours, oracle, rtol=2e-6, atol=2e-7)


@EVERY_PROCESS
def test_time_runs_the_way_the_process_says(name):
    it = PROCESSES[name]
    signal, noise = it.path(jnp.array([it.data_at, 1.0 - it.data_at], jnp.float32))
    np.testing.assert_allclose(signal, [1.0, 0.0], atol=0.01)
    np.testing.assert_allclose(noise, [0.0, 1.0], atol=1e-4)


def test_betas():
    """Those of squared cosines against NumPy, those that grow evenly against what the paper says of them."""
    np.testing.assert_allclose(denoise.cosine_betas(LEVELS), numpy_kept()[1], rtol=1e-12)
    assert max(denoise.cosine_betas(100)) == 0.999
    np.testing.assert_allclose(denoise.linear_betas(1000), np.linspace(1e-4, 0.02, 1000), rtol=1e-12)


@pytest.mark.parametrize("betas", [(), (0.1, 0.0), (1.0,), (0.2, -0.1), (float("nan"),)])
def test_betas_out_of_range_are_refused(betas):
    with pytest.raises(ValueError, match=rf"betas has {len(betas)} variances.*allowed: numbers in \(0, 1\)"):
        denoise.ddpm(betas)


@EVERY_PROCESS
def test_times_that_are_learned_from(name):
    t = np.asarray(PROCESSES[name].draw(jax.random.key(0), (4000,)))
    assert t.dtype == np.float32
    if name == "ddpm":
        level = t * LEVELS
        np.testing.assert_allclose(level, np.round(level), atol=1e-5)
        assert set(np.round(level).astype(int)) == set(range(1, LEVELS + 1))
    else:
        assert t.min() >= 0.0 and t.max() <= 1.0 and abs(t.mean() - 0.5) < 0.02


def told(name):
    """The kinds that this process has."""
    return [kind for kind in KINDS if name != "ddpm" or kind != "velocity"]


@MODES
@EVERY_PROCESS
def test_every_kind_follows_from_every_other(mode, name):
    (data, noise), t = draw(), middle(name)
    signal, level = (x[:, None] for x in numpy_path(name, t))
    known = {kind: numpy_kind(kind, name, t, data, noise) for kind in told(name)}

    def convert(known, x, t):
        pairs = itertools.product(known, known)
        call = lambda one, two: denoise.convert(known[one], x, t, PROCESSES[name], given=KINDS[one], wanted=KINDS[two])
        return {f"{one} {two}": call(one, two) for one, two in pairs}

    float32 = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), tree)
    for pair, got in mode(convert)(*float32((known, signal * data + level * noise, t))).items():
        np.testing.assert_allclose(got, known[pair.split()[1]], rtol=3e-5, atol=3e-5, err_msg=pair)


@MODES
@EVERY_PROCESS
def test_target_and_diffuse(mode, name):
    (data, noise), t = draw(1), middle(name)
    arrays = [jnp.asarray(x, jnp.float32) for x in (data, noise, t)]
    targets = lambda *a: {kind: denoise.target(*a, PROCESSES[name], kind=KINDS[kind]) for kind in told(name)}
    for kind, got in mode(targets)(*arrays).items():
        np.testing.assert_allclose(got, numpy_kind(kind, name, t, data, noise), rtol=1e-5, atol=1e-5)
    signal, level = (x[:, None] for x in numpy_path(name, t))
    x_t = mode(lambda *a: denoise.diffuse(*a, PROCESSES[name]))(*arrays)
    np.testing.assert_allclose(x_t, signal * data + level * noise, rtol=1e-5, atol=1e-6)
    assert not np.any(mode(jax.grad(lambda data: sum(map(jnp.sum, targets(data, *arrays[1:]).values()))))(arrays[0]))


def test_the_velocity_of_a_table_is_refused():
    with pytest.raises(ValueError, match="a table of 20 levels; a velocity needs one that is continuous"):
        denoise.velocity(PROCESSES["ddpm"], jnp.ones(3))


@jax.jit
def round_trips(data, noise, t):
    """Data and noise, made a prediction of each kind and recovered from it."""
    for process, kind in itertools.product((denoise.flow(), denoise.cosine()), KINDS.values()):
        prediction = denoise.target(data, noise, t, process, kind=kind)
        data, noise = denoise.recover(prediction, denoise.diffuse(data, noise, t, process), t, process, kind=kind)
    return data, noise


@given(st.floats(0.02, 0.98), st.floats(-3, 3), st.floats(-3, 3))
def test_recover_undoes_target(t, data, noise):
    arrays = [jnp.array([[x]], jnp.float32) for x in (data, noise)]
    for got, expected in zip(round_trips(*arrays, jnp.array([t], jnp.float32)), arrays, strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-3, atol=1e-3)


# ------------------------------------------------------------------------------------------------------- objectives


def spied(kind, process, data):
    """A denoiser that knows the data, and keeps what it was shown."""
    shown = {}

    def predict(x, t):
        shown["x"], shown["t"] = x, t
        signal, level = (part.reshape(-1, *[1] * (x.ndim - 1)) for part in process.path(t))
        return denoise.target(data, (x - signal * data) / level, t, process, kind=kind)

    return predict, shown


@pytest.mark.parametrize("kind, name", [("eps", "ddpm"), ("x0", "flow"), ("v", "cosine"), ("velocity", "flow")])
def test_who_knows_the_data_has_no_loss_and_an_offset_costs_its_square(kind, name):
    it, data = PROCESSES[name], jnp.asarray(np.random.default_rng(2).normal(size=(5, 4, 3)), jnp.float32)
    predict, _ = spied(KINDS[kind], it, data)
    key = jax.random.key(1)
    loss, metrics = denoise.denoising(predict, data, key, process=it, kind=KINDS[kind])
    np.testing.assert_allclose(loss, np.zeros(5), atol=1e-6)
    offset = lambda x, t: predict(x, t) + 0.3 * jnp.arange(5.0)[:, None, None]
    loss, metrics = denoise.denoising(offset, data, key, process=it, kind=KINDS[kind])
    np.testing.assert_allclose(loss, 0.09 * np.arange(5) ** 2, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(metrics["denoise/error"], np.mean(loss), rtol=1e-6)


@MODES
@EVERY_PROCESS
def test_the_loss_of_nothing_is_the_mean_square_of_the_noise(mode, name):
    """For eps, with the noise worked out in float64 from what the denoiser was shown."""
    it, data = PROCESSES[name], np.random.default_rng(3).normal(size=(6, 3)).astype(np.float32)

    def run(key):
        shown = {}

        def predict(x, t):
            shown.update(x=x, t=t)
            return jnp.zeros_like(x)

        return denoise.denoising(predict, jnp.asarray(data), key, process=it, kind=denoise.eps)[0], shown

    loss, shown = mode(run)(jax.random.key(4))
    signal, level = (part[:, None] for part in numpy_path(name, shown["t"]))
    noise = (np.asarray(shown["x"], np.float64) - signal * data) / level
    np.testing.assert_allclose(loss, np.mean(noise**2, -1), rtol=1e-3)


def test_noise_is_standard_normal_and_every_sample_has_a_time_of_its_own():
    shown = {}
    predict = lambda x, t: shown.update(x=x, t=t) or x
    data = jnp.zeros((20_000, 2))
    denoise.flow_matching(predict, data, jax.random.key(5))
    noise = np.asarray(shown["x"]) / (1.0 - np.asarray(shown["t"])[:, None])
    np.testing.assert_allclose(noise.mean(0), 0.0, atol=0.03)
    np.testing.assert_allclose(np.cov(noise.T), np.eye(2), atol=0.03)
    assert len(np.unique(shown["t"])) > 19_000


def test_the_true_velocity_of_normal_data_cannot_be_improved_on():
    """The residual of the conditional mean is uncorrelated with whatever the denoiser sees; that of another is not."""
    mean, std = 0.4, 0.3

    def truth(x, t):
        t = t[:, None]
        slope = (t * std**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * std**2)
        return mean + slope * (x - t * mean)

    def total(weight, key, data):
        predict = lambda x, t: truth(x, t) + weight[0] + weight[1] * x + weight[2] * (t * x[:, 0])[:, None]
        return jnp.mean(denoise.flow_matching(predict, data, key)[0])

    data = mean + std * jax.random.normal(jax.random.key(6), (200_000, 1))
    gradient = jax.grad(total)(jnp.zeros(3), jax.random.key(7), data)
    np.testing.assert_allclose(gradient, np.zeros(3), atol=0.02)
    assert np.abs(jax.grad(total)(jnp.array([0.1, 0.0, 0.0]), jax.random.key(7), data)[0]) > 0.15


def test_flow_matching_is_denoising_of_the_velocity_on_the_straight_path():
    data = jnp.asarray(draw(8)[0], jnp.float32)
    shown = {}

    def predict(x, t):
        shown.update(x=x, t=t)
        return jnp.zeros_like(x)

    loss, _ = denoise.flow_matching(predict, data, jax.random.key(9))
    t, x = np.asarray(shown["t"], np.float64)[:, None], np.asarray(shown["x"], np.float64)
    noise = (x - t * np.asarray(data)) / (1 - t)
    np.testing.assert_allclose(loss, np.mean((np.asarray(data) - noise) ** 2, -1), rtol=1e-3)


# ------------------------------------------------------------------------------------------------------------- masks


def mixing(w):
    """A denoiser in which every entry depends on all."""
    return lambda x, t: x * w + jnp.mean(x, axis=1, keepdims=True) * t[:, None, None]


@EVERY_PROCESS
def test_what_stands_in_padded_entries_changes_nothing(name):
    kind = denoise.v
    rng = np.random.default_rng(10)
    data = rng.normal(size=(4, 6, 2)).astype(np.float32)
    valid = np.arange(6) < np.array([[6], [3], [1], [0]])
    run = jax.value_and_grad(
        lambda w, data: jnp.sum(
            denoise.denoising(mixing(w), data, jax.random.key(11), process=PROCESSES[name], kind=kind, valid=valid)[0]
        )
    )
    one = run(jnp.float32(0.5), jnp.asarray(data))
    for soil in (3.0, np.nan, np.inf):
        two = run(jnp.float32(0.5), jnp.asarray(np.where(valid[..., None], data, soil), jnp.float32))
        np.testing.assert_array_equal(one[0], two[0])
        np.testing.assert_array_equal(one[1], two[1])
    other = run(jnp.float32(0.5), jnp.asarray(data + 1.0))
    assert one[0] != other[0]


def test_the_mean_is_over_valid_entries():
    data = jnp.zeros((3, 4, 2))
    valid = jnp.array([[True] * 4, [True, False, True, False], [False] * 4])
    shown = {}

    def predict(x, t):
        shown.update(x=x, t=t)
        return jnp.zeros_like(x)

    loss, _ = denoise.flow_matching(predict, data, jax.random.key(12), valid=valid)
    noise = np.asarray(shown["x"], np.float64) / (1 - np.asarray(shown["t"], np.float64))[:, None, None]
    each = np.mean(noise**2, -1)
    np.testing.assert_allclose(loss, [each[0].mean(), each[1, [0, 2]].mean(), 0.0], rtol=1e-4)


# ------------------------------------------------------------------------------------------------------------ shapes


def test_refuses_a_broadcasting_head():
    data, key = jnp.zeros((5, 4, 3)), jax.random.key(0)
    fine = lambda x, t: x
    assert denoise.flow_matching(fine, data, key)[0].shape == (5,)
    for wrong in (lambda x, t: x[..., :1], lambda x, t: x[:, :1], lambda x, t: x[:1], lambda x, t: x[..., None]):
        with pytest.raises(AssertionError):
            denoise.flow_matching(wrong, data, key)
    for valid in (jnp.ones((5,), bool), jnp.ones((5, 1), bool), jnp.ones((5, 4, 1), bool), jnp.ones((1, 4), bool)):
        with pytest.raises(AssertionError):
            denoise.flow_matching(fine, data, key, valid=valid)


def test_conversions_refuse_broadcasting():
    x, t = jnp.ones((5, 3)), jnp.full((5,), 0.5)
    calls = [
        lambda a, b, t: denoise.diffuse(a, b, t, denoise.flow()),
        lambda a, b, t: denoise.target(a, b, t, denoise.flow(), kind=denoise.v),
        lambda a, b, t: denoise.recover(a, b, t, denoise.flow(), kind=denoise.v),
        lambda a, b, t: denoise.convert(a, b, t, denoise.flow(), given=denoise.v, wanted=denoise.eps),
    ]
    for call in calls:
        call(x, x, t)
        for wrong in ((x[:, :1], x, t), (x, x[:1], t), (x, x, t[:, None]), (x, x, t[:1]), (x, x, t[0])):
            with pytest.raises(AssertionError):
                call(*wrong)


# ------------------------------------------------------------------------------------------------------ distillation


@MODES
def test_distillation(mode):
    student, teacher = (x.astype(np.float32) for x in draw(13))
    loss, metrics = mode(denoise.distillation)(student, teacher)
    oracle = np.mean((student.astype(np.float64) - teacher) ** 2, -1)
    np.testing.assert_allclose(loss, oracle, rtol=1e-5)
    np.testing.assert_allclose(metrics["denoise/distillation"], oracle.mean(), rtol=1e-5)
    arrays = jnp.asarray(student), jnp.asarray(teacher)
    gradients = mode(jax.grad(lambda *a: jnp.sum(denoise.distillation(*a)[0]), (0, 1)))(*arrays)
    np.testing.assert_allclose(gradients[0], 2 * (student - teacher) / 3, rtol=1e-5, atol=1e-6)
    assert not np.any(gradients[1])


def test_distillation_refuses_a_broadcasting_head():
    x = jnp.ones((5, 3))
    for wrong in ((x[:, :1], x), (x, x[:1]), (x[:, 0], x[:, 0])):
        with pytest.raises(AssertionError):
            denoise.distillation(*wrong)
