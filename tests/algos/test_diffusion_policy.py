"""Diffusion policy against a float64 NumPy version of its update, and on data of two modes."""

import dataclasses
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen import evaluate, loops, nets, samplers, types
from jaxrl_gen.algos import diffusion_policy, flow_policy
from jaxrl_gen.data.sampling import Windows
from jaxrl_gen.envs import probe
from jaxrl_gen.losses import denoise
from jaxrl_gen.types import Recalled, Spec
from tests.algos import reference
from tests.algos.windows import float64, same

HISTORY, HORIZON, ACTIONS, BATCH = 2, 4, 2, 5
SPEC = Spec({"a": jax.ShapeDtypeStruct((3,), jnp.float32), "b": jax.ShapeDtypeStruct((), jnp.float32)}, ACTIONS)
SIZES = dict(history=HISTORY, horizon=HORIZON, execute=2, steps=4)
CFG = diffusion_policy.Config(lr=0.01, warmup=4.0, weight_decay=0.1, normalize_obs=False, **SIZES)


def linear():
    """A denoiser that is linear in all that it reads."""

    def init(key, example):
        draw = lambda key, *shape: 0.5 * jax.random.normal(key, shape)
        keys = jax.random.split(key, 3)
        return {"x": draw(keys[0], HORIZON, HORIZON), "t": draw(keys[1], HORIZON, ACTIONS), "seen": draw(keys[2], 8)}

    def apply(params, noisy):
        seen = jnp.concatenate([noisy.condition["a"].reshape(-1, 6), noisy.condition["b"]], -1) @ params["seen"]
        mixed = jnp.einsum("gh,bha->bga", params["x"], noisy.x)
        return mixed + noisy.t[:, None, None] * params["t"] + seen[:, None, None]

    return nets.Net(init, apply)


def batch_of(seed=0):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=(BATCH, *shape)).astype(np.float32)
    valid = np.arange(HORIZON) < np.array([[4], [2], [0], [4], [1]])
    return Windows({"a": draw(HISTORY, 3), "b": draw(HISTORY)}, np.tanh(draw(HORIZON, ACTIONS)), valid)


def numpy_loss(params, batch, noise, t, name):
    """The mean, over samples with a valid entry, of the mean over those of the squared error."""
    if name == "flow":
        signal, level = t, 1 - t
    else:
        betas = np.asarray(denoise.cosine_betas(100))
        kept = np.append(1.0, np.cumprod(1 - betas))[np.round(t * 100).astype(int)]
        signal, level = np.sqrt(kept), np.sqrt(1 - kept)
    data = np.where(batch.valid[..., None], batch.action, 0.0)
    x = signal[:, None, None] * data + level[:, None, None] * noise
    target = data - noise if name == "flow" else noise
    seen = np.concatenate([batch.obs["a"].reshape(BATCH, 6), batch.obs["b"]], -1) @ params["seen"]
    predicted = np.einsum("gh,bha->bga", params["x"], x) + t[:, None, None] * params["t"] + seen[:, None, None]
    each = ((predicted - target) ** 2).mean(-1)
    return np.mean([each[i, batch.valid[i]].mean() for i in range(BATCH) if batch.valid[i].any()])


MAKES = {"ddpm": diffusion_policy.make, "flow": flow_policy.make}
EVERY_MAKE = pytest.mark.parametrize("name", MAKES)


@cache
def learner(name, **changes):
    algo = MAKES[name](dataclasses.replace(CFG, **changes), SPEC, net=linear())
    return algo, jax.jit(algo.update), algo.init(jax.random.key(0))


@EVERY_MAKE
def test_update_equals_numpy(name):
    """Two updates: gradient, Adam with decay, warm-up of the learning rate, and the average of the parameters."""
    _, update, state = learner(name)
    process = denoise.flow() if name == "flow" else denoise.ddpm(denoise.cosine_betas(100))
    params, average = float64(state.params), float64(state.average)
    first, second = (jax.tree.map(np.zeros_like, params) for _ in range(2))
    for i in range(2):
        batch, key = batch_of(i), jax.random.key(10 + i)
        state, metrics = update(state, batch, key)
        key_noise, key_time = jax.random.split(key)
        noise = np.asarray(jax.random.normal(key_noise, batch.action.shape), np.float64)
        t = np.asarray(process.draw(key_time, (BATCH,)), np.float64)
        loss = lambda params: numpy_loss(params, float64(batch), noise, t, name)
        gradient = reference.gradient(loss, params)
        np.testing.assert_allclose(metrics["denoise/error"] * BATCH / 4, loss(params), rtol=1e-4)
        lr, share = 0.01 * (i + 1) / 4, (1.0 + i) ** -0.75
        for leaf, g in gradient.items():
            first[leaf] = 0.95 * first[leaf] + 0.05 * g
            second[leaf] = 0.999 * second[leaf] + 0.001 * g**2
            step = first[leaf] / (1 - 0.95 ** (i + 1)) / (np.sqrt(second[leaf] / (1 - 0.999 ** (i + 1))) + 1e-8)
            params[leaf] = params[leaf] - lr * (step + 0.1 * params[leaf])
            average[leaf] = (1 - share) * average[leaf] + share * params[leaf]
            np.testing.assert_allclose(state.params[leaf], params[leaf], rtol=1e-3, atol=1e-5)
            np.testing.assert_allclose(state.average[leaf], average[leaf], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(metrics["denoise/lr"], lr, rtol=1e-5)


def test_the_learning_rate_falls_as_half_a_cosine():
    _, update, state = learner("flow", warmup=1.0, lr_updates=4.0)
    rates = []
    for i in range(6):
        state, metrics = update(state, batch_of(), jax.random.key(i))
        rates.append(float(metrics["denoise/lr"]))
    np.testing.assert_allclose(rates, 0.005 * (1 + np.cos(np.pi * np.minimum(np.arange(6) / 4, 1))), atol=1e-8)


@EVERY_MAKE
@pytest.mark.parametrize("garbage", [5.0, np.nan])
def test_what_stands_in_padded_entries_changes_nothing(name, garbage):
    _, update, state = learner(name)
    batch = batch_of()
    soiled = batch._replace(action=np.where(batch.valid[..., None], batch.action, np.float32(garbage)))
    one, two = (update(state, x, jax.random.key(1))[0] for x in (batch, soiled))
    assert same(one, two) and not same(one.params, state.params)


def test_a_batch_without_a_valid_entry_has_no_gradient():
    _, update, state = learner("flow", weight_decay=0.0)
    batch = batch_of()
    after, _ = update(state, batch._replace(valid=np.zeros_like(batch.valid)), jax.random.key(1))
    assert same(after.params, state.params)


@pytest.mark.parametrize("where", ["obs", "action"])
def test_a_batch_with_nan_changes_no_parameter(where):
    _, update, state = learner("ddpm", normalize_obs=True)
    state, _ = update(state, batch_of(), jax.random.key(0))
    bad = batch_of(1)
    poisoned = jax.tree.map(lambda x: np.where(np.arange(BATCH).reshape(-1, *[1] * (x.ndim - 1)) == 0, np.nan, x),
                            getattr(bad, where))  # fmt: skip
    bad = bad._replace(**{where: jax.tree.map(lambda x: x.astype(np.float32), poisoned)})
    after, metrics = update(state, bad, jax.random.key(1))
    assert same(after.params, state.params) and same(after.opt_state, state.opt_state)
    assert float(metrics["guard/skipped_updates"]) == 1.0
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(after))


def test_observations_are_normalised_by_what_was_learned_from():
    _, update, state = learner("ddpm", normalize_obs=True)
    state, _ = update(state, batch_of(), jax.random.key(0))
    seen = batch_of().obs["a"].reshape(-1, 3)
    np.testing.assert_allclose(state.normalizer.mean["a"], seen.mean(0), rtol=1e-4, atol=1e-6)
    assert float(state.normalizer.count) == BATCH * HISTORY


# ------------------------------------------------------------------------------------------------------------- acting


def looked(algo, lanes=3):
    obs = {"a": jnp.ones((lanes, 3)), "b": jnp.zeros((lanes,))}
    return Recalled(obs, algo.memory(lanes))


@EVERY_MAKE
def test_actions_are_those_of_the_average_within_their_range(name):
    algo, _, state = learner(name)
    act = jax.jit(lambda state, key: algo.act(state, looked(algo), key)[0])
    without = jax.jit(lambda state: algo.act(state, looked(algo), None)[0])
    action = act(state, jax.random.key(0))
    assert action.shape == (3, ACTIONS) and np.all(np.abs(action) <= 1.0)
    other = jax.tree.map(lambda x: x + 1.0, state.params)
    assert same(action, act(state._replace(params=other), jax.random.key(0)))
    assert not same(action, act(state._replace(average=other), jax.random.key(0)))
    assert not same(action, act(state, jax.random.key(1)))
    assert same(without(state), without(state)) and not same(action[0], action[1])
    np.testing.assert_allclose(without(state), without(state)[:1].repeat(3, 0), atol=1e-6)


@EVERY_MAKE
def test_without_a_key_a_lane_acts_as_it_would_alone(name):
    algo, _, state = learner(name)
    obs = {"a": jax.random.normal(jax.random.key(5), (4, 3)), "b": jnp.arange(4.0)}
    act = lambda obs: algo.act(state, Recalled(obs, algo.memory(len(obs["b"]))), None)[0]
    alone = jnp.concatenate([act(jax.tree.map(lambda x: x[i : i + 1], obs)) for i in range(4)])
    np.testing.assert_allclose(act(obs), alone, atol=1e-5)
    assert not same(alone[0], alone[1])


TWO_MODES = dict(lr=3e-3, warmup=1.0, history=1, horizon=2, execute=2, normalize_obs=False)


def perceptron():
    """A denoiser of two actions of one coordinate."""
    example = nets.Noisy(jax.ShapeDtypeStruct((2, 1), jnp.float32), jax.ShapeDtypeStruct((), jnp.float32), ())
    example = example._replace(condition=jax.ShapeDtypeStruct((1, 1), jnp.float32))
    net = nets.flat(nets.mlp((64, 64, 2), jax.nn.gelu), example)
    return net._replace(apply=lambda params, noisy: net.apply(params, noisy).reshape(noisy.x.shape))


@pytest.mark.parametrize(
    "make, cfg",
    [
        (partial(flow_policy.make, net=perceptron()), flow_policy.Config(**TWO_MODES, steps=10)),
        (
            partial(diffusion_policy.make, net=perceptron(), sampler=samplers.ddim()),
            diffusion_policy.Config(**TWO_MODES, steps=20),
        ),
    ],
    ids=["flow", "ddim"],
)
def test_two_modes_are_cloned_as_two(make, cfg):
    """The action is half of the observation, up or down: its mean, which is zero, is never right."""
    env = probe.continuous_action()

    def sample(data, key):
        key_obs, key_side = jax.random.split(key)
        obs, side = (jax.random.choice(k, jnp.array([-1.0, 1.0]), (128, 1, 1)) for k in (key_obs, key_side))
        action = jnp.broadcast_to(side * (0.6 + 0.1 * obs), (128, 2, 1))
        return Windows(obs, action, jnp.ones((128, 2), bool))

    loop = loops.offline(make, env, sample, ((),), updates=800)
    cfg = types.strong(cfg)
    carry, _ = jax.jit(loop.chunk)(cfg, jax.jit(loop.init)(cfg, jax.random.key(0)), ())
    algo = make(cfg, env.spec)
    for obs in (1.0, -1.0):
        action, _ = algo.act(carry.state, Recalled(jnp.full((400, 1), obs), algo.memory(400)), jax.random.key(1))
        high = np.asarray(action)[:, 0] > 0
        assert 0.35 < high.mean() < 0.65
        off = np.abs(np.abs(np.asarray(action)[:, 0]) - (0.6 + 0.1 * obs))
        assert np.median(off) < 0.08 and np.quantile(off, 0.9) < 0.3
    played = evaluate.episodes(algo, env, carry.state, jax.random.key(2), lanes=4)
    assert np.all(np.isfinite(played.returns))


@EVERY_MAKE
def test_what_does_not_belong_is_refused_before_anything_is_made(name):
    make = partial(MAKES[name], net=linear())
    with pytest.raises(ValueError, match="a denoiser needs continuous actions; this environment has 2 discrete ones"):
        make(CFG, SPEC._replace(discrete=True))
    with pytest.raises(ValueError, match="horizon is 4; allowed: 5 and more"):
        make(dataclasses.replace(CFG, execute=4), SPEC)


def test_windows_of_another_length_are_refused():
    """A denoiser that takes any length would learn the wrong one without a word."""
    algo, _, state = learner("ddpm")
    batch = batch_of()
    short = batch._replace(action=batch.action[:, 1:], valid=batch.valid[:, 1:])
    with pytest.raises(ValueError, match=r"windows have action \[B, 3, 2, ...\]; expected \[B, 4, 2, ...\] of history"):
        algo.update(state, short, jax.random.key(0))
    longer = batch._replace(obs=jax.tree.map(lambda x: jnp.concatenate([x, x], 1), batch.obs))
    with pytest.raises(ValueError, match=r"windows have obs \[B, 4, ...\]; expected \[B, 2, ...\]"):
        algo.update(state, longer, jax.random.key(0))


def test_the_spacing_is_judged_with_the_rest():
    make = partial(diffusion_policy.make, CFG, SPEC, net=linear(), process=denoise.flow(), sampler=samplers.ddim())
    with pytest.raises(ValueError, match="eps does not tell the data from it"):
        make(kind=denoise.eps)
    make(kind=denoise.eps, spacing=lambda process, steps: 0.1 + 0.9 * samplers.leading(process, steps))
    with pytest.raises(ValueError, match="the first step is from pure noise, at time 0"):
        make(kind=denoise.eps, spacing=samplers.trailing)


def test_a_sampler_of_another_process_is_refused():
    with pytest.raises(ValueError, match="the process is a table of 100 levels"):
        diffusion_policy.make(CFG, SPEC, net=linear(), sampler=samplers.euler())
    with pytest.raises(ValueError, match="steps is 101; allowed: 1 to 100, the levels"):
        diffusion_policy.make(dataclasses.replace(CFG, steps=101), SPEC, net=linear())
