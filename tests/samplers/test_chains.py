"""Chains of known density, against scipy and against the samples they are."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from jaxrl_gen import samplers
from jaxrl_gen.losses import denoise

PROCESSES = {"flow": denoise.flow(), "ddpm": denoise.ddpm(denoise.cosine_betas(10))}
KINDS = {"flow": denoise.velocity, "ddpm": denoise.eps}  # of pure noise in a flow, eps says nothing about the data
EVERY_PROCESS = pytest.mark.parametrize("name", PROCESSES)
SAMPLER = samplers.ddpm(min_std=0.05)
STEPS = 5


def predict(w):
    return lambda x, t: jnp.tanh(w * x + t[:, None, None])


def made(name, w=0.7, sampler=SAMPLER):
    start = jax.random.normal(jax.random.key(0), (6, 3, 2))
    parts = dict(process=PROCESSES[name], kind=KINDS[name], steps=STEPS)
    return start, parts, jax.jit(lambda key: samplers.chain(sampler, predict(w), start, key, **parts))


@EVERY_PROCESS
def test_a_chain_is_the_sample_of_the_same_key(name):
    start, parts, chain = made(name)
    chain = chain(jax.random.key(1))
    end = samplers.sample(SAMPLER, predict(0.7), start, jax.random.key(1), **parts)
    np.testing.assert_allclose(chain.x[-1], end, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(chain.x[0], start)
    assert chain.x.shape == (STEPS + 1, 6, 3, 2) and chain.log_prob.shape == (STEPS, 6)
    assert chain.time.shape == (STEPS + 1,) and np.isfinite(chain.x).all()


@EVERY_PROCESS
def test_log_probs_are_those_of_scipy_and_stay_the_same_under_the_same_denoiser(name):
    _, parts, chain = made(name)
    chain = chain(jax.random.key(2))
    advance = samplers.advancing(SAMPLER, predict(0.7), process=PROCESSES[name], kind=KINDS[name])
    oracle = []
    for i in range(STEPS):
        mean, std = advance(chain.x[i], *(jnp.full((6,), chain.time[i + k]) for k in (0, 1)))
        each = stats.norm(np.asarray(mean, np.float64), np.asarray(std, np.float64)[:, None, None])
        oracle.append(each.logpdf(np.asarray(chain.x[i + 1], np.float64)).sum((1, 2)))
    np.testing.assert_allclose(chain.log_prob, oracle, rtol=1e-3, atol=1e-2)
    del parts["steps"]
    again = jax.jit(lambda chain: samplers.log_probs(SAMPLER, predict(0.7), chain, **parts))(chain)
    np.testing.assert_allclose(again, chain.log_prob, rtol=1e-4, atol=1e-3)
    other = samplers.log_probs(SAMPLER, predict(0.6), chain, **parts)
    assert np.abs(np.asarray(other) - chain.log_prob).max() > 0.1


def test_the_gradient_of_log_probs_is_a_score():
    """Its mean over chains of the same denoiser is zero, and it is finite."""
    start = jax.random.normal(jax.random.key(3), (4000, 1, 1))
    parts = dict(process=PROCESSES["flow"], kind=denoise.velocity)
    chain = samplers.chain(SAMPLER, predict(0.7), start, jax.random.key(4), steps=STEPS, **parts)
    total = lambda w: jnp.sum(samplers.log_probs(SAMPLER, predict(w), chain, **parts), 0)
    each = np.asarray(jax.jacfwd(total)(0.7))
    assert np.isfinite(each).all() and np.abs(each).mean() > 0.1
    assert abs(each.mean()) < 4 * each.std() / np.sqrt(len(each))


@pytest.mark.parametrize("sampler", [samplers.ddim(), samplers.euler(), samplers.heun(), samplers.ddpm()])
def test_a_sampler_without_a_density_is_refused(sampler):
    start, parts, chain = made("flow", sampler=sampler)
    with pytest.raises(ValueError, match=r"the sampler has no density.*allowed for log-probabilities: ddpm\(min_std"):
        chain(jax.random.key(5))
    kept = made("flow")[2](jax.random.key(5))
    with pytest.raises(ValueError, match="the sampler has no density"):
        samplers.log_probs(sampler, predict(0.7), kept, process=PROCESSES["flow"], kind=denoise.eps)
