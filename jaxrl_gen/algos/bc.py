"""Behaviour cloning: the policy under which the actions in the data are most likely, and the baseline of whatever
claims to do better than the data.

Reference: Pomerleau 1989, "ALVINN: an autonomous land vehicle in a neural network".
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_gen import distributions, nets, normalize
from jaxrl_gen.algos import acting, descent
from jaxrl_gen.losses import policy
from jaxrl_gen.types import Algorithm, PyTree, Spec, Transition, config, leaf, static


@config
class Config:
    """Hyper-parameters of behaviour cloning; floats are leaves and never recompile."""

    lr: float = leaf(3e-4, low=0.0)
    initial_std: float = leaf(1.0, low=1e-3)  # of the actions
    smallest_std: float = leaf(0.05, low=1e-4)  # a likelihood has no bound where data can be matched exactly
    actor_hidden: tuple[int, ...] = static((256, 256))
    normalize_obs: bool = static(True)  # by statistics of the rows learned from


class State(NamedTuple):
    """What behaviour cloning changes."""

    params: PyTree  # actor, head
    opt_state: PyTree
    normalizer: normalize.Normalizer


def normal_head(size: int, initial_std: jax.Array = 1.0, smallest_std: jax.Array = 0.05) -> distributions.Head:
    """Normal actions around tanh of the actor's output, with one deviation for all states, clipped to [-1, 1].

    An action of the data is a choice as it is: nothing is squashed after it was sampled, so one on the boundary has an
    ordinary likelihood, where that of a tanh-normal would be extreme.

    Args:
      size: A.
      initial_std, smallest_std: of the normal.
    """

    def of(params, output):
        std = jnp.maximum(jnp.exp(params["log_std"]), smallest_std)
        return distributions.normal(jnp.tanh(output), jnp.broadcast_to(std, output.shape))

    def sample(params, output, key):
        dist = of(params, output)
        choice = dist.sample(seed=key)
        return choice, dist.log_prob(choice)

    def score(params, output, choice, key):
        dist = of(params, output)
        return dist.log_prob(choice), dist.entropy()

    return distributions.Head(
        init=lambda key: {"log_std": jnp.full((size,), jnp.log(initial_std), jnp.float32)},
        sample=sample,
        action=lambda choice: jnp.clip(choice, -1.0, 1.0),
        mode=lambda params, output: jnp.tanh(output),
        score=score,
        features=size,
    )


def make(
    cfg: Config, spec: Spec, *, actor: nets.Net | None = None, head: distributions.Head | None = None
) -> Algorithm:
    """Behaviour cloning as three pure functions; call it inside jit, so that `cfg` is traced.

    Args:
      cfg: Config.
      spec: of one lane.
      actor: Net from observations to what the head reads; default: a perceptron over their flattened leaves.
      head: how the actor's output becomes actions, whose choices are the data's actions; default: `normal_head`, or
        categorical.
    Returns:
      Algorithm whose batch is a Transition of windows, leaves `[H, B, ...]`, of which every row is learned from.
    """
    head = head or default_head(cfg, spec)
    actor = actor or default_actor(cfg, spec, head)

    observer = acting.observer(cfg.normalize_obs)

    def init(key):
        key_actor, key_head = jax.random.split(key)
        params = {"actor": actor.init(key_actor, spec.obs), "head": head.init(key_head)}
        return State(params, descent.start(params), observer.init(spec.obs))

    def loss(params, obs, action, valid, key):
        log_prob, _ = head.score(params["head"], actor.apply(params["actor"], obs), action, key)
        error, metrics = policy.cloning(log_prob)
        return descent.valid_mean(error, valid), metrics

    def update(state, batch: Transition, key):
        normalizer = observer.learn(state.normalizer, batch.obs, batch.valid)
        # Zeros where invalid: a mask after the loss would still let a NaN through in the gradient.
        shaped = lambda x: batch.valid.reshape(batch.valid.shape + (1,) * (x.ndim - 2))
        seen = observer.see(normalizer, batch.obs)
        obs, action = jax.tree.map(lambda x: jnp.where(shaped(x), x, jnp.zeros_like(x)), (seen, batch.action))
        params, opt_state, metrics = descent.descend(
            lambda params: loss(params, obs, action, batch.valid, key), state.params, state.opt_state, lr=cfg.lr
        )
        return State(params, opt_state, normalizer), metrics

    return Algorithm(init, update, acting.headed(actor, head, observer.see))


def default_head(cfg, spec: Spec) -> distributions.Head:
    """The head of a policy that is cloned: categorical where actions are discrete, else normal."""
    if spec.discrete:
        return distributions.categorical_head(spec.action_size)
    return normal_head(spec.action_size, cfg.initial_std, cfg.smallest_std)


def default_actor(cfg, spec: Spec, head: distributions.Head) -> nets.Net:
    """A perceptron over the flattened leaves of the observation."""
    return nets.flat(nets.mlp((*cfg.actor_hidden, head.features), jax.nn.relu, last_scale=0.01), spec.obs)
