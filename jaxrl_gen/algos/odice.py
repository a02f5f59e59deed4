"""Orthogonal distribution correction: a value learned as the dual of staying near the data, and a policy that clones
the steps that were better than it promised.

No action is ever judged, in the data or not: the value is of states alone. The gradient through V(s') that usually is
thrown away says which states lead into the data; what of it does not fight the gradient through V(s) is kept.

Reference: Mao et al. 2024, arXiv 2402.00348. Different from the paper: the actor's step size stays constant, and the
default value has no layer normalisation, which the authors use in some tasks; `values` may bring it. Where returns are
known they scale rewards by 1000 over the range of returns; here `reward_scale` is 1 unless it is told.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl_gen import distributions, nets, normalize
from jaxrl_gen.algos import acting, bc, descent
from jaxrl_gen.losses import dual, td, value
from jaxrl_gen.types import Algorithm, PyTree, Spec, Transition, config, leaf, static


@config
class Config:
    """Hyper-parameters of ODICE; floats are leaves and never recompile."""

    lr: float = leaf(2e-4, low=0.0)
    gamma: float = leaf(0.99, low=0.0, high=1.0)
    tau: float = leaf(0.005, low=0.0, high=1.0)  # weight of the online value in each update of the target
    reward_scale: float = leaf(1.0, low=0.0)  # the larger, the less staying near the data weighs
    residual_weight: float = leaf(0.6, low=0.0, high=1.0)  # lambda, of f*(u); V(s) itself weighs 1 - lambda
    backward_weight: float = leaf(1.0, low=0.0)  # eta, of the gradient through V(s')
    largest_weight: float = leaf(100.0, low=1e-3)  # of a cloned action
    initial_std: float = leaf(1.0, low=1e-3)  # of the actions
    smallest_std: float = leaf(0.05, low=1e-4)
    members: int = static(2, low=1)  # values
    actor_hidden: tuple[int, ...] = static((256, 256))  # 1024 wide in the release
    critic_hidden: tuple[int, ...] = static((256, 256))  # of the values
    normalize_obs: bool = static(True)  # by statistics of the rows learned from


class State(NamedTuple):
    """What ODICE changes."""

    params: PyTree  # actor, head, value
    target: PyTree  # the value's, moving slowly
    opt_state: PyTree
    normalizer: normalize.Normalizer


def make(
    cfg: Config,
    spec: Spec,
    *,
    actor: nets.Net | None = None,
    head: distributions.Head | None = None,
    values: nets.Net | None = None,
    combine: Callable = value.mean,
    conjugate: Callable = dual.pearson_conjugate,
    direction: Callable = dual.orthogonal,
    extraction: Callable = dual.residual_weighted,
) -> Algorithm:
    """ODICE as three pure functions; call it inside jit, so that `cfg` is traced.

    Args:
      cfg: Config.
      spec: of one lane, with continuous or discrete actions.
      actor: Net from observations to what the head reads; default: a perceptron over their flattened leaves.
      head: how the actor's output becomes actions, whose choices are the data's actions; default: of `bc`.
      values: Net from observations to `[N, ..., 1]`; default: an ensemble of perceptrons.
      combine: `values [N, B] -> [B]`, the value that N members stand for: `value.mean` or `value.minimum`.
      conjugate: `residual [B] -> (loss [B], metrics)`, of the divergence from the data.
      direction: `(forward, backward) -> gradient`, pytrees: `dual.orthogonal`, `semi_gradient`, `true_gradient`.
      extraction: `(log_prob [B], residual [B], *, largest) -> (loss [B], metrics)`, the policy's.
    Returns:
      Algorithm whose batch is a Transition of windows, leaves `[H, B, ...]`.
    """
    head = head or bc.default_head(cfg, spec)
    actor = actor or bc.default_actor(cfg, spec, head)
    if values is None:
        values = nets.ensemble(nets.flat(nets.mlp((*cfg.critic_hidden, 1), jax.nn.relu), spec.obs), cfg.members)

    observer = acting.observer(cfg.normalize_obs)

    def init(key):
        keys = jax.random.split(key, 3)
        params = {"actor": actor.init(keys[0], spec.obs), "head": head.init(keys[1])}
        params["value"] = values.init(keys[2], spec.obs)
        normalizer = observer.init(spec.obs)
        return State(params, jax.tree.map(jnp.copy, params["value"]), descent.start(params), normalizer)

    def judge(params, obs):
        return combine(values.apply(params, obs)[..., 0])

    def forward_loss(params, target, steps):
        """Of the residuals through V(s); they come with it."""
        next_value = judge(target, steps.next_obs)
        residual = dual.residual(steps.reward, steps.discount, judge(params, steps.obs), next_value)
        loss, metrics = conjugate(residual)
        return cfg.residual_weight * descent.valid_mean(loss, steps.valid), (residual, metrics)

    def backward_loss(params, target, steps):
        """Of the residuals through V(s')."""
        next_value = judge(params, steps.next_obs)
        loss, _ = conjugate(dual.residual(steps.reward, steps.discount, judge(target, steps.obs), next_value))
        return cfg.residual_weight * cfg.backward_weight * descent.valid_mean(loss, steps.valid)

    def other_loss(params, steps, residual, key):
        """Of all that has one gradient: the values themselves, and the policy."""
        judged = judge(params["value"], steps.obs)
        log_prob, _ = head.score(params["head"], actor.apply(params["actor"], steps.obs), steps.action, key)
        cloning, metrics = extraction(log_prob, residual, largest=cfg.largest_weight)
        total = (1.0 - cfg.residual_weight) * judged + cloning
        return descent.valid_mean(total, steps.valid), metrics | {"critic/value": jnp.mean(judged)}

    def update(state, batch: Transition, key):
        normalizer, steps = acting.learned(observer, state.normalizer, td.n_step(batch, gamma=cfg.gamma))
        steps = steps._replace(reward=cfg.reward_scale * steps.reward)
        online = state.params["value"]
        forward, (residual, of_value) = jax.grad(forward_loss, has_aux=True)(online, state.target, steps)
        backward = jax.grad(backward_loss)(online, state.target, steps)
        grads, of_rest = jax.grad(other_loss, has_aux=True)(state.params, steps, residual, key)
        grads["value"] = optax.tree.add(grads["value"], direction(forward, backward))
        params, opt_state, guarded = descent.step(grads, state.params, state.opt_state, lr=cfg.lr)
        slow = optax.incremental_update(params["value"], state.target, cfg.tau)
        metrics = of_value | of_rest | guarded | {"value/cosine": dual.cosine(forward, backward)}
        return State(params, slow, opt_state, normalizer), metrics

    return Algorithm(init, update, acting.headed(actor, head, observer.see))
