"""Auto-regressive soft Q-learning: actions are chosen coordinate after coordinate, from coarse bins to fine ones.

Coordinates that are chosen knowing those before them can hold several good actions apart, of which independent ones
make a mixture that may be bad. The value needs no maximum over actions, and the policy no network of its own. The same
update learns from data alone and goes on online; rows whose extras say `demonstration` may be kept ahead of all others
by a margin.

Reference: Liu et al. 2025, arXiv 2502.00288. Different from the paper: one perceptron serves all places, told where it
is, and value and advantages take their steps from the same parameters, not one after another.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl_gen import nets, normalize
from jaxrl_gen.algos import acting, descent
from jaxrl_gen.losses import autoregressive, td, value
from jaxrl_gen.types import Algorithm, PyTree, Spec, Transition, config, leaf, static


@config
class Config:
    """Hyper-parameters of ARSQ; floats are leaves and never recompile."""

    lr: float = leaf(3e-4, low=0.0)
    gamma: float = leaf(0.99, low=0.0, high=1.0)
    tau: float = leaf(0.005, low=0.0, high=1.0)  # weight of the online value in each update of the target
    temperature: float = leaf(0.01, low=1e-6)  # alpha, units of value per nat
    margin: float = leaf(0.1, low=0.0)  # of demonstrations, in units of value
    margin_coefficient: float = leaf(0.0, low=0.0)  # zero: demonstrations are rows as all others
    levels: int = static(2, low=1)
    bins: int = static(7, low=2)  # per level; levels of bins make bins^levels cells
    members: int = static(2, low=1)  # values
    hidden: tuple[int, ...] = static((256, 256))  # of advantages and values
    normalize_obs: bool = static(True)  # by statistics of the rows learned from


class State(NamedTuple):
    """What ARSQ changes."""

    params: PyTree  # advantage, value
    target: PyTree  # the value's, moving slowly
    opt_state: PyTree
    normalizer: normalize.Normalizer


def make(
    cfg: Config,
    spec: Spec,
    *,
    network: nets.Net | None = None,
    values: nets.Net | None = None,
    conditioning: Callable = autoregressive.sequential,
    target_value: Callable = value.minimum,
) -> Algorithm:
    """ARSQ as three pure functions; call it inside jit, so that `cfg` is traced.

    Args:
      cfg: Config.
      spec: of one lane, with continuous actions.
      network: Net from (observation, context [..., C]) to one number for each bin; default: a perceptron.
      values: Net from observations to `[N, ..., 1]`; default: an ensemble of perceptrons.
      conditioning: `(tokens [..., L, A], place, *, bins) -> context [..., C]`, what the choice at a place knows of
        those before it: `autoregressive.sequential` or `autoregressive.factorised`.
      target_value: `(values [N, B], key) -> [B]`, what the target makes of N values.
    Returns:
      Algorithm whose batch is a Transition of windows, leaves `[H, B, ...]`; `extras["demonstration"]` (bool), where
      there is one, says which rows the margin is for: otherwise for all.
    Raises:
      ValueError: if actions are discrete, or cells too many.
    """
    if spec.discrete:
        raise ValueError(f"ARSQ needs continuous actions; this environment has {spec.action_size} discrete ones")
    places = jnp.arange(cfg.levels * spec.action_size)
    tokenise = partial(autoregressive.encode, levels=cfg.levels, bins=cfg.bins)
    knows = partial(conditioning, bins=cfg.bins)
    chosen = jax.eval_shape(tokenise, jax.ShapeDtypeStruct((spec.action_size,), jnp.float32))
    seen = (spec.obs, jax.eval_shape(knows, chosen, jax.ShapeDtypeStruct((), jnp.int32)))
    network = network or nets.flat(nets.mlp((*cfg.hidden, cfg.bins), jax.nn.relu, last_scale=0.01), seen)
    if values is None:
        values = nets.ensemble(nets.flat(nets.mlp((*cfg.hidden, 1), jax.nn.relu), spec.obs), cfg.members)

    observer = acting.observer(cfg.normalize_obs)

    def init(key):
        key_network, key_values = jax.random.split(key)
        params = {"advantage": network.init(key_network, seen), "value": values.init(key_values, spec.obs)}
        normalizer = observer.init(spec.obs)
        return State(params, jax.tree.map(jnp.copy, params["value"]), descent.start(params), normalizer)

    def judge(params, obs):
        return values.apply(params, obs)[..., 0]

    def advantages(params, obs, tokens):
        """Of all tokens at all places at once, as those before each are known: [B, L, A, K]."""
        of_place = lambda place: network.apply(params, (obs, knows(tokens, place)))
        logits = jax.vmap(of_place, out_axes=-2)(places).reshape(*tokens.shape, cfg.bins)
        return autoregressive.soft_advantages(logits, temperature=cfg.temperature)

    def act(state, obs, key):
        obs = observer.see(state.normalizer, obs)
        first, shaped = jax.tree.leaves(obs)[0], jax.tree.leaves(spec.obs)[0]
        leading = first.shape[: first.ndim - len(shaped.shape)]

        def choose(tokens, row):
            place, key = row
            logits = network.apply(state.params["advantage"], (obs, knows(tokens, place)))
            token = jnp.argmax(logits, -1) if key is None else jax.random.categorical(key, logits / cfg.temperature)
            level, coordinate = place // spec.action_size, place % spec.action_size
            return tokens.at[..., level, coordinate].set(token.astype(jnp.int32)), None

        keys = None if key is None else jax.random.split(key, len(places))
        tokens, _ = jax.lax.scan(choose, jnp.zeros((*leading, *chosen.shape), chosen.dtype), (places, keys))
        return autoregressive.decode(tokens, bins=cfg.bins), {}

    def loss(params, steps, target):
        tokens = tokenise(steps.action)
        judged = advantages(params["advantage"], steps.obs, tokens)
        joint = autoregressive.joint_advantage(judged, tokens)
        error, of_critic = autoregressive.soft_q_loss(judge(params["value"], steps.obs), joint, target)
        hinge, of_margin = autoregressive.demonstration_margin(judged, tokens, margin=cfg.margin)
        shown = steps.valid & steps.extras.get("demonstration", steps.valid)
        total = descent.valid_mean(error, steps.valid) + cfg.margin_coefficient * descent.valid_mean(hinge, shown)
        return total, of_critic | of_margin

    def update(state, batch: Transition, key):
        normalizer, steps = acting.learned(observer, state.normalizer, td.n_step(batch, gamma=cfg.gamma))
        target = td.bootstrapped(steps, target_value(judge(state.target, steps.next_obs), key))
        params, opt_state, metrics = descent.descend(
            lambda params: loss(params, steps, target), state.params, state.opt_state, lr=cfg.lr
        )
        slow = optax.incremental_update(params["value"], state.target, cfg.tau)
        return State(params, slow, opt_state, normalizer), metrics

    return Algorithm(init, update, act)
