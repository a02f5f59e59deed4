"""Parallelised Q-network: Q-learning on many lanes at once, without a replay and without a target network.

Lambda-returns of the rollout itself are the targets, and normalised layers keep the network from diverging.

Reference: Gallici et al. 2024, arXiv 2407.04811.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_gen import nets, normalize
from jaxrl_gen.algos import acting, descent, dqn
from jaxrl_gen.losses import td, value
from jaxrl_gen.types import Algorithm, PyTree, Spec, Transition, config, ended, leaf, static


@config
class Config:
    """Hyper-parameters of PQN; floats are leaves and never recompile."""

    lr: float = leaf(5e-4, low=0.0)
    gamma: float = leaf(0.99, low=0.0, high=1.0)
    lam: float = leaf(0.65, low=0.0, high=1.0)  # of the lambda-returns
    epsilon: float = leaf(0.05, low=0.0, high=1.0)  # share of actions at random, in the end
    epsilon_updates: float = leaf(100.0, low=1.0)  # updates over which that share falls from 1
    epochs: int = static(2, low=1)
    minibatches: int = static(8, low=1)
    hidden: tuple[int, ...] = static((128, 128))
    normalize_obs: bool = static(False)  # by statistics of the rows learned from


class State(NamedTuple):
    """What PQN changes."""

    params: PyTree
    opt_state: PyTree
    normalizer: normalize.Normalizer
    updates: jax.Array  # f32, so far


class Rows(NamedTuple):
    """What a minibatch is made of; leaves [B, ...]."""

    obs: PyTree
    action: jax.Array
    target: jax.Array
    valid: jax.Array


def make(
    cfg: Config, spec: Spec, *, net: nets.Net | None = None, readout: value.Readout = value.regression()
) -> Algorithm:
    """PQN as three pure functions; call it inside jit, so that `cfg` is traced.

    Args:
      cfg: Config.
      spec: of one lane, with discrete actions.
      net: Net from observations to A * readout.size numbers; default: a perceptron with normalised layers.
      readout: how an action's outputs stand for its value; one whose target is a number.
    Returns:
      Algorithm whose batch is a Transition `[T, E, ...]`, as `loops.on_policy` collects it.
    Raises:
      ValueError: if actions are continuous, or rows do not divide into minibatches.
    """
    net = dqn.judging(net, spec, cfg.hidden, readout.size, nets.normalized(jax.nn.relu))
    observer = acting.observer(cfg.normalize_obs)

    def init(key):
        params = net.init(key, spec.obs)
        return State(params, descent.start(params), observer.init(spec.obs), jnp.zeros((), jnp.float32))

    def act(state, obs, key):
        values = readout.value(net.apply(state.params, observer.see(state.normalizer, obs)))
        return dqn.greedy_but(dqn.annealed(cfg, state.updates), values, key), {}

    def prepare(state, normalizer, batch: Transition):
        """The rows with their targets, by the network before it learns."""
        see = lambda obs: observer.see(normalizer, obs)
        next_value = jnp.max(readout.value(net.apply(state.params, see(batch.next_obs))), -1)
        # A row that is invalid is zero throughout, so no NaN passes; and the one before it bootstraps, as if truncated.
        clean = lambda x: jnp.where(batch.valid, x, 0.0)
        cut = ended(batch) | ~jnp.roll(batch.valid, -1, axis=0)
        target = td.lambda_returns(
            clean(batch.reward), clean(next_value), batch.terminated, cut, gamma=cfg.gamma, lam=cfg.lam
        )
        rows = Rows(see(batch.obs), batch.action, target, batch.valid)
        shaped = lambda x: batch.valid.reshape(batch.valid.shape + (1,) * (x.ndim - 2))
        rows = jax.tree.map(lambda x: jnp.where(shaped(x), x, jnp.zeros_like(x)), rows)
        return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), rows)

    def loss(params, rows, key):
        outputs = dqn.of_action(net.apply(params, rows.obs), rows.action)
        error, metrics = value.ensemble_loss(readout.loss, outputs[None], rows.target[None])
        return descent.valid_mean(error, rows.valid), metrics | {"critic/value": jnp.mean(readout.value(outputs))}

    def update(state, batch: Transition, key):
        normalizer = observer.learn(state.normalizer, batch.obs, batch.valid)
        rows = prepare(state, normalizer, batch)

        def epoch(carry, key):
            key_order, key_loss = jax.random.split(key)
            order = jax.random.permutation(key_order, len(rows.valid))
            shares = descent.shares(jax.tree.map(lambda x: x[order], rows), cfg.minibatches)
            *carry, metrics = descent.descend_by_shares(loss, *carry, shares, key_loss, lr=cfg.lr)
            return tuple(carry), metrics

        keys = jax.random.split(key, cfg.epochs)
        (params, opt_state), metrics = jax.lax.scan(epoch, (state.params, state.opt_state), keys)
        metrics = jax.tree.map(lambda x: jnp.mean(x, 0), metrics)
        metrics |= {"actor/epsilon": dqn.annealed(cfg, state.updates)}
        return State(params, opt_state, normalizer, state.updates + 1.0), metrics

    return Algorithm(init, update, act)
