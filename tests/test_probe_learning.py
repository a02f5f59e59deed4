"""PPO on environments whose answers are known: every seed must find them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_gen import loops, nets, normalize, types
from jaxrl_gen.algos import ppo
from jaxrl_gen.envs import probe, wrap

SEEDS, LANES, GAMMA, HIDDEN = 3, 16, 0.9, (16,)
CFG = ppo.Config(lr=1e-2, gamma=GAMMA, minibatches=2, actor_hidden=HIDDEN, critic_hidden=HIDDEN, max_grad_norm=1e9)


def train(env, updates, make=ppo.make, steps=10, **changes):
    """(env of many lanes, config, States of all seeds, metrics averaged over all updates)."""
    env = wrap.fresh(env, LANES)
    loop = loops.on_policy(make, env, steps=steps, iterations=updates)
    cfg = types.strong(dataclasses.replace(CFG, **changes))
    init, chunk = jax.jit(loop.init), jax.jit(loop.chunk)
    runs = [chunk(cfg, init(cfg, key)) for key in jax.random.split(jax.random.key(0), SEEDS)]
    state, metrics = jax.tree.map(lambda *x: jnp.stack(x), *[(carry.state, metrics) for carry, metrics in runs])
    return env, cfg, state, metrics


def values(state, obs):
    """The critic's values [seeds, B] of observations [B, ...]."""
    one = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), obs)
    critic = nets.flat(nets.mlp((*HIDDEN, 1)), one)

    def judge(state):
        return critic.apply(state.params["critic"], normalize.apply(state.normalizer, obs))[..., 0]

    return jax.vmap(judge)(state)


def actions(env, cfg, state, obs, make=ppo.make):
    """The deterministic actions [seeds, B, ...] for observations [B, ...]."""
    return jax.vmap(lambda state: make(cfg, env.spec).act(state, obs, None)[0])(state)


def every_seed(result, expected, atol):
    np.testing.assert_allclose(result, np.broadcast_to(expected, result.shape), atol=atol)


def recurrent(cfg, spec):
    actor, critic = (nets.flat(nets.gru(8, (out,)), spec.obs) for out in (spec.action_size, 1))
    return ppo.make(cfg, spec, actor=actor, critic=critic)


def test_a_truncated_episode_is_worth_what_an_endless_one_is():
    _, _, state, _ = train(probe.truncating(steps=5), 60)
    every_seed(values(state, jnp.ones((1, 1))), 1.0 / (1.0 - GAMMA), atol=0.1)


def test_a_terminated_episode_is_worth_its_finite_sum():
    _, _, state, _ = train(probe.terminating(steps=5), 60)
    left = 5 - np.arange(5)
    every_seed(values(state, jnp.eye(5)), (1.0 - GAMMA**left) / (1.0 - GAMMA), atol=0.1)


def test_a_truncated_episode_is_bootstrapped_with_the_memory_it_had():
    env, cfg, state, _ = train(probe.truncating(steps=5), 60, recurrent)
    algo = recurrent(cfg, env.spec)
    critic = nets.flat(nets.gru(8, (1,)), env.spec.obs)

    def judge(state):
        memory, seen = algo.memory(1)["critic"], normalize.apply(state.normalizer, jnp.ones((5, 1, 1)))
        return nets.unroll(critic, state.params["critic"], seen, memory, jnp.zeros((5, 1), bool))[0][..., 0, 0]

    every_seed(jax.vmap(judge)(state), 1.0 / (1.0 - GAMMA), atol=0.3)


def test_a_value_reads_the_observation():
    _, _, state, _ = train(probe.observed_reward(), 60)
    every_seed(values(state, jnp.array([[1.0], [-1.0]])), [1.0, -1.0], atol=0.05)


def test_the_best_continuous_action_is_found():
    env, cfg, state, _ = train(probe.continuous_action(), 80, lr=5e-3, entropy_coefficient=0.01)
    every_seed(actions(env, cfg, state, jnp.array([[1.0], [-1.0]]))[..., 0], [0.5, -0.5], atol=0.1)


def test_the_best_discrete_action_is_found():
    env, cfg, state, _ = train(probe.discrete_action(), 60)
    every_seed(actions(env, cfg, state, jnp.eye(3)), [0, 1, 2], atol=0)
    every_seed(values(state, jnp.eye(3)), 1.0, atol=0.05)


def test_credit_travels_back_over_a_step():
    env, cfg, state, _ = train(probe.delayed(), 60)
    every_seed(actions(env, cfg, state, jnp.eye(3)[:2]), [0, 1], atol=0)
    every_seed(values(state, jnp.eye(3)), [GAMMA, GAMMA, 1.0], atol=0.05)


def test_an_asymmetric_critic_values_what_the_actor_cannot_see():
    make = lambda cfg, spec: ppo.make(cfg, spec, actor_view=lambda obs: obs["cue"])
    env, cfg, state, _ = train(probe.dict_observation(), 80, make, lr=5e-3, entropy_coefficient=0.01)
    obs = {"cue": {"sign": jnp.array([[1.0], [-1.0], [1.0]])}, "luck": jnp.array([[1.0], [-1.0], [-1.0]])}
    every_seed(actions(env, cfg, state, obs, make)[..., 0], [0.5, -0.5, 0.5], atol=0.1)
    every_seed(values(state, obs), [2.0, 0.0, 0.0], atol=0.1)


def test_memory_solves_what_a_policy_without_it_cannot():
    _, _, _, remembering = train(probe.memory(), 40, recurrent, steps=16)
    _, _, _, forgetting = train(probe.memory(), 40, steps=16)
    assert np.all(remembering["episode/return"] > 0.85), remembering["episode/return"]  # learning included
    assert np.all(forgetting["episode/return"] < 0.6), forgetting["episode/return"]
