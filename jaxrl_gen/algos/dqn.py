"""Deep Q-networks for discrete actions: double, of several steps, and of any readout, so also C51, QR-DQN, or HL-Gauss.

Reference: Mnih et al. 2015, "Human-level control through deep reinforcement learning"; van Hasselt et al. 2016,
arXiv 1509.06461 (double). Different from the papers: the target network moves a little at each update, and does not
jump.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl_gen import nets, normalize
from jaxrl_gen.algos import acting, descent
from jaxrl_gen.losses import td, value
from jaxrl_gen.types import Algorithm, PyTree, Spec, Transition, config, leaf, static


@config
class Config:
    """Hyper-parameters of DQN; floats are leaves and never recompile."""

    lr: float = leaf(3e-4, low=0.0)
    gamma: float = leaf(0.99, low=0.0, high=1.0)
    tau: float = leaf(0.005, low=0.0, high=1.0)  # weight of the online network in each update of the target
    epsilon: float = leaf(0.05, low=0.0, high=1.0)  # share of actions at random, in the end
    epsilon_updates: float = leaf(1e4, low=1.0)  # updates over which that share falls from 1
    double: bool = static(True)  # the online network chooses the action that the target judges
    hidden: tuple[int, ...] = static((256, 256))
    normalize_obs: bool = static(False)  # by statistics of the rows learned from


class State(NamedTuple):
    """What DQN changes."""

    params: PyTree
    target: PyTree  # moving slowly
    opt_state: PyTree
    normalizer: normalize.Normalizer
    updates: jax.Array  # f32, so far


def judging(net: nets.Net | None, spec: Spec, hidden: tuple[int, ...], size: int, activation: Callable) -> nets.Net:
    """A Net from observations to `[..., A, size]`, as many outputs for each of the A actions.

    Args:
      net: from observations to A * size numbers; None: a perceptron over their flattened leaves.
      spec: of one lane, with discrete actions.
      hidden: widths of that perceptron.
      size: of a Readout.
      activation: of that perceptron.
    Raises:
      ValueError: if actions are continuous.
    """
    if not spec.discrete:
        raise ValueError(f"a Q-network needs discrete actions; this environment has {spec.action_size} continuous ones")
    net = net or nets.flat(nets.mlp((*hidden, spec.action_size * size), activation), spec.obs)

    def apply(params, obs):
        outputs = net.apply(params, obs)
        return outputs.reshape(*outputs.shape[:-1], spec.action_size, size)

    return net._replace(apply=apply)


def greedy_but(epsilon: jax.Array, values: jax.Array, key: jax.Array | None) -> jax.Array:
    """The best action, but at random with probability epsilon.

    Args:
      epsilon: scalar.
      values: [B, A].
      key: consumed here; None: always the best.
    Returns:
      action i32 [B].
    """
    best = jnp.argmax(values, -1).astype(jnp.int32)
    if key is None:
        return best
    key_which, key_whether = jax.random.split(key)
    other = jax.random.randint(key_which, best.shape, 0, values.shape[-1], jnp.int32)
    return jnp.where(jax.random.uniform(key_whether, best.shape) < epsilon, other, best)


def annealed(cfg, updates: jax.Array) -> jax.Array:
    """The share of random actions after so many updates: from 1, in a straight line, to `cfg.epsilon`."""
    return 1.0 + (cfg.epsilon - 1.0) * jnp.minimum(updates / cfg.epsilon_updates, 1.0)


def make(
    cfg: Config, spec: Spec, *, net: nets.Net | None = None, readout: value.Readout = value.regression()
) -> Algorithm:
    """DQN as three pure functions; call it inside jit, so that `cfg` is traced.

    Args:
      cfg: Config.
      spec: of one lane, with discrete actions.
      net: Net from observations to A * readout.size numbers; default: a perceptron over their flattened leaves.
      readout: how an action's outputs stand for its value: `value.regression()`, `value.classified(low, high)`
        (HL-Gauss), `distributional.categorical(low, high)` (C51), `distributional.quantiles()` (QR-DQN).
    Returns:
      Algorithm whose batch is a Transition of windows, leaves `[H, B, ...]`.
    Raises:
      ValueError: if actions are continuous.
    """
    net = judging(net, spec, cfg.hidden, readout.size, jax.nn.relu)
    observer = acting.observer(cfg.normalize_obs)

    def init(key):
        params = net.init(key, spec.obs)
        target = jax.tree.map(jnp.copy, params)
        return State(params, target, descent.start(params), observer.init(spec.obs), jnp.zeros((), jnp.float32))

    def act(state, obs, key):
        values = readout.value(net.apply(state.params, observer.see(state.normalizer, obs)))
        return greedy_but(annealed(cfg, state.updates), values, key), {}

    def update(state, batch: Transition, key):
        normalizer, steps = acting.learned(observer, state.normalizer, td.n_step(batch, gamma=cfg.gamma))
        following = net.apply(state.target, steps.next_obs)
        chooser = net.apply(state.params, steps.next_obs) if cfg.double else following
        chosen = of_action(following, jnp.argmax(readout.value(chooser), -1))
        target = readout.target(chosen[None], steps.reward, steps.discount, value.first)

        def loss(params):
            outputs = of_action(net.apply(params, steps.obs), steps.action)
            error, metrics = value.ensemble_loss(readout.loss, outputs[None], target)
            told = {"critic/value": jnp.mean(readout.value(outputs))}
            return descent.valid_mean(error, steps.valid), metrics | told

        params, opt_state, metrics = descent.descend(loss, state.params, state.opt_state, lr=cfg.lr)
        slow = optax.incremental_update(params, state.target, cfg.tau)
        metrics |= {"actor/epsilon": annealed(cfg, state.updates)}
        return State(params, slow, opt_state, normalizer, state.updates + 1.0), metrics

    return Algorithm(init, update, act)


def of_action(outputs: jax.Array, action: jax.Array) -> jax.Array:
    """The outputs for one action of each, outputs [B, A, K], action i32 [B] -> [B, K]."""
    return jnp.take_along_axis(outputs, action[:, None, None], 1)[:, 0]
