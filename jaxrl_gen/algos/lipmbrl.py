"""Offline learning in one model, whose errors matter little because the values of what it imagines are not steep.

If V is L-Lipschitz, a model at distance W moves a backup by gamma L W at most: so a flat value can stand in for an
ensemble of models. Two ways to have one are parts here: `robust`, a term in the critics' loss, and `spectral`, a limit
on the critics' weights after each update.

Reference: Zheng et al. 2023, arXiv 2302.01244. Different from the paper: it learns from logged data, as `mopo` does
without a penalty, and the term is of all rows of a batch, the share of real ones included.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax

from jaxrl_gen.algos import dynamics, mopo, sac
from jaxrl_gen.losses import dynamics as doubt
from jaxrl_gen.losses import lipschitz
from jaxrl_gen.types import Algorithm, PyTree, Spec, config, leaf


@config
class Config:
    """Hyper-parameters of offline learning in one model; floats are leaves and never recompile."""

    learning: mopo.Config = mopo.Config(model=dynamics.Config(members=1, elites=1))
    epsilon: float = leaf(0.1, low=0.0)  # how far an adversary pushes each coordinate that the critics see
    coefficient: float = leaf(0.1, low=0.0)  # of how far the values then move, squared
    limit: float = leaf(3.0, low=1e-3)  # of the spectral norm of each layer


class Limited(NamedTuple):
    """A policy's State, and the directions in which the layers of its critics stretch most."""

    policy: PyTree
    directions: dict[str, jax.Array]


def robust(policy: Callable, cfg: Config) -> Callable:
    """A policy whose critics also learn to stay where they are when an adversary pushes the observation.

    Args:
      policy: `(cfg, spec, *, critic_term) -> Algorithm`; one that has a term of its own, such as EDAC, adds this to it.
      cfg: of which `epsilon` and `coefficient` are read.
    Returns:
      `(cfg, spec) -> Algorithm`.
    """
    return partial(policy, critic_term=lipschitz.robustness(epsilon=cfg.epsilon, coefficient=cfg.coefficient))


def spectral(policy: Callable, cfg: Config) -> Callable:
    """A policy whose critics' layers, but for the last, are brought back under a spectral norm after each update.

    The norms come from one step of power iteration per update, whose directions the State carries: the weights move
    slowly, so that the directions follow them.

    Args:
      policy: `(cfg, spec) -> Algorithm` whose State has the parameters of perceptrons in `params["critic"]`.
      cfg: of which `limit` is read.
    Returns:
      `(cfg, spec) -> Algorithm`, whose State is Limited.
    """

    def make(policy_cfg, spec: Spec) -> Algorithm:
        agent = policy(policy_cfg, spec)

        def init(key):
            key_policy, key_directions = jax.random.split(key)
            state = agent.init(key_policy)
            return Limited(state, lipschitz.first_directions(state.params["critic"], key_directions))

        def update(state, batch, key):
            after, metrics = agent.update(state.policy, batch, key)
            critic, directions, norm = lipschitz.clip_layers(after.params["critic"], state.directions, cfg.limit)
            after = after._replace(params=after.params | {"critic": critic})
            return Limited(after, directions), metrics | {"critic/largest_norm": norm}

        return Algorithm(init, update, lambda state, obs, key: agent.act(state.policy, obs, key))

    return make


def make(cfg: Config, spec: Spec, *, policy: Callable = sac.make, flatten: Callable = robust, **parts) -> Algorithm:
    """Offline learning in one model as three pure functions; call it inside jit, so that `cfg` is traced.

    Args:
      cfg: Config, whose model may have more members after all.
      spec: of one lane, whose observation is one vector.
      policy: `(cfg.learning.policy, spec, ...) -> Algorithm`.
      flatten: `(policy, cfg) -> policy`, what keeps its values from being steep: `robust` or `spectral`.
      parts: as of `mopo.make`.
    Returns:
      Algorithm, as of `mopo.make`.
    """
    parts = {"uncertainty": doubt.no_doubt} | parts
    return mopo.make(cfg.learning, spec, policy=flatten(policy, cfg), **parts)
