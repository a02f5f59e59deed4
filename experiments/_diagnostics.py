"""What the claims of some papers are about, measured after every chunk, beside the training and not in it.

Each makes `measure(carry) -> {name: scalar}` of one member, and `listener` a callback of it for `launch.launch`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxrl_gen import replay
from jaxrl_gen.algos import acting, critics, descent, dynamics, sac
from jaxrl_gen.data import trajectory
from jaxrl_gen.data.trajectory import Dataset
from jaxrl_gen.losses import critic as regularised
from jaxrl_gen.losses import lipschitz
from jaxrl_gen.types import Env, PyTree

ROWS = 1024  # measured on, at most


def listener(measure: Callable[[Any], dict[str, jax.Array]]) -> Callable:
    """A callback that adds what is measured of every member to the metrics that are written."""

    @jax.jit
    def of_members(carry):
        return jax.vmap(measure)(carry) if carry.steps.ndim == 2 else measure(carry)

    return lambda i, carry, metrics: metrics.update(jax.device_get(of_members(carry)))


def rank(normalized: bool) -> Callable:
    """The effective rank of the first critic's last hidden layer, on rows of the replay: `critic/rank`.

    Args:
      normalized: whether critics see observations through running statistics.
    """
    observer = acting.observer(normalized)

    def measure(carry):
        rows = replay.sample(carry.replay, jax.random.key(0), ROWS)
        obs = observer.see(carry.state.normalizer, rows.obs[0])
        features = _hidden(carry.state.params["critic"], jnp.concatenate([obs, rows.action[0]], -1))
        return {"critic/rank": regularised.effective_rank(features).astype(jnp.float32)}

    return measure


def _hidden(critic: PyTree, x: jax.Array) -> jax.Array:
    """The last hidden layer, [B, D], of BEER's perceptron, which has a body of its own, or of an ensemble's first."""
    hidden = {name: critic[name] for name in sorted(critic)[:-1]}
    body = critic.get("body") or jax.tree.map(lambda leaf: leaf[0], hidden)
    for name in sorted(body):
        x = jax.nn.relu(x @ body[name]["kernel"] + body[name]["bias"])
    return x


def models(cfg: Any, env: Env, data: Dataset) -> Callable:
    """How steep critics are, and how far the values of what a model predicts are from those of what came.

    `critic/steepness`, the mean local Lipschitz constant in the observation, and `model/value_error`, on the data.

    Args:
      cfg: of `mopo`, or of `lipmbrl`, which has one in it.
      env: whose spec the data has.
      data: in the units that are learned in.
    """
    cfg = getattr(cfg, "learning", cfg)
    agent, model = sac.make(cfg.policy, env.spec), dynamics.make(cfg.model, env.spec)
    critic = critics.perceptrons(env.spec, cfg.policy.critic_hidden, cfg.policy.members, 1)
    at = jnp.arange(0, len(data.reward), -(-len(data.reward) // ROWS))
    obs, action, goes_on = trajectory.before(data)[at], data.action[at], ~data.terminated[at]
    next_obs = data.obs[at + data.episode[at] + 1]

    def measure(carry):
        state = getattr(carry.state, "state", carry.state)  # within that of what scales its data
        judge = lambda obs, action: critic.apply(state.policy.params["critic"], (obs, action))[..., 0]
        value = lambda obs: jnp.min(judge(obs, agent.act(state.policy, obs, None)[0]), 0)
        predicted, _ = model.act(state.model, (obs, action), None)
        error = lipschitz.value_aware_error(value(predicted), value(next_obs))
        steep = lipschitz.steepness(lambda obs: judge(obs, action), obs)
        return {"critic/steepness": jnp.mean(steep), "model/value_error": descent.valid_mean(error, goes_on)}

    return measure
