"""Flow policy: what it makes of a known velocity, and of one, two and ten steps. Its update: test_diffusion_policy.py."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen import nets, samplers
from jaxrl_gen.algos import flow_policy
from jaxrl_gen.types import Recalled, Spec

SPEC = Spec(jax.ShapeDtypeStruct((1,), jnp.float32), 1)
CFG = flow_policy.Config(history=1, horizon=2, execute=1, normalize_obs=False)
LANES, STD = 4000, 0.1


def known():
    """The velocity of normal actions of mean `obs` and deviation STD: a net without parameters."""

    def apply(params, noisy):
        t, mean = noisy.t[:, None, None], noisy.condition
        slope = (t * STD**2 - (1 - t)) / ((1 - t) ** 2 + t**2 * STD**2)
        return mean + slope * (noisy.x - t * mean)

    return nets.Net(lambda key, example: {"none": jnp.zeros(())}, apply)


def actions(steps, sampler=None):
    algo = flow_policy.make(dataclasses.replace(CFG, steps=steps), SPEC, net=known(), sampler=sampler)
    state = algo.init(jax.random.key(0))
    obs = jnp.where(jnp.arange(LANES) % 2 == 0, 0.3, -0.5)[:, None]
    act = jax.jit(lambda key: algo.act(state, Recalled(obs, algo.memory(LANES)), key)[0])
    return np.asarray(act(jax.random.key(1)))[:, 0].reshape(-1, 2)


@pytest.mark.parametrize("steps, sampler", [(100, None), (20, samplers.heun()), (100, samplers.ddpm())])
def test_the_actions_are_the_data_that_the_velocity_leads_to(steps, sampler):
    drawn = actions(steps, sampler)
    np.testing.assert_allclose(drawn.mean(0), [0.3, -0.5], atol=0.01)
    np.testing.assert_allclose(drawn.std(0), STD, rtol=0.12)


def test_one_step_gives_the_mean_and_more_steps_the_spread():
    """With one step of Euler's every action is the mean of the data, E[data | noise] = E[data]."""
    spread = [actions(steps).std(0).max() for steps in (1, 2, 10)]
    assert spread[0] < 1e-5 < spread[1] < spread[2] < STD


def test_ten_steps_are_the_default():
    assert flow_policy.Config().steps == 10 and flow_policy.Config(lr=1.0).lr == 1.0
    assert jax.tree.leaves(flow_policy.Config(lr=2.0))[0] == 2.0
