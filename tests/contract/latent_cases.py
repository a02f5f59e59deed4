"""Latent-action models for the suites that go over every algorithm."""

import functools

import jax
import jax.numpy as jnp

from jaxrl_gen import loops
from jaxrl_gen.algos import latent_action
from jaxrl_gen.envs import probe
from jaxrl_gen.envs.tasks import sprites
from jaxrl_gen.losses import latent
from jaxrl_gen.nets import vq
from tests.contract.cases import Case

UPDATES, BATCH = 2, 8


def pairs(env):
    """Rows of two frames, of an environment that was played at random for eight episodes."""

    def episode(key):
        keys = jax.random.split(key, 1 + 6)
        state, obs = env.reset(keys[0])

        def step(carry, key):
            state, obs = carry
            key_act, key_step = jax.random.split(key)
            if env.spec.discrete:
                action = jax.random.randint(key_act, (), 0, env.spec.action_size)
            else:
                action = jax.random.uniform(key_act, (env.spec.action_size,), minval=-1.0)
            state, next_obs, outcome = env.step(state, action, key_step)
            return (state, next_obs), latent_action.Pair(obs, outcome.next_obs, jnp.ones((), bool))

        return jax.lax.scan(step, (state, obs), keys[1:])[1]

    rows = jax.jit(jax.vmap(episode))(jax.random.split(jax.random.key(0), 8))
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)


def sample(rows, key):
    """A batch of pairs."""
    index = jax.random.randint(key, (BATCH,), 0, len(rows.valid))
    return jax.tree.map(lambda x: x[index], rows)


def offline(make, env):
    """A chunk of two updates from films of the environment."""
    return loops.offline(make, env, sample, (pairs(env),), updates=UPDATES)


def read(env):
    """Pairs for `act` to infer the action of."""
    rows = pairs(env)
    return rows.obs[:4], rows.next_obs[:4]


def small_sprites():
    """Frames of 6 x 6 pixels."""
    return sprites.make(places=3, pixels=2, distractors=1)


SMALL = latent_action.Config(lr=1e-2, codes=4, width=3, patch=2, features=4, hidden=8)
VECTORS = functools.partial(latent_action.make, parts=latent_action.on_vectors)
NOISY = functools.partial(VECTORS, quantizer=vq.gradient, through=latent.noise_substitution)

CASES = [
    Case("latent_action", latent_action.make, SMALL, small_sprites, offline, read=read),
    Case("latent_action_nsvq", NOISY, SMALL, probe.delayed, offline, read=read),
]
