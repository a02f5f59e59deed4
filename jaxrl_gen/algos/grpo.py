"""Group-relative policy optimisation of a token policy: several answers to each prompt, each judged by the others.

Every part can be replaced on its own (`losses.group`, `losses.surrogates`), and each known method is such a choice. The
last column is its Config, which is named like it, `gspo` and `GSPO`, where it is not `Config()`: how far the walls are
from a ratio of 1, below and above, and how much of the divergence from the reference (k1) is taken off the reward.

    method               advantage            log ratio   surrogate      weights                   Config
    make (GRPO)          standardised         token       clipped        sequence_mean_token_mean  0.2, 0.2
    dr_grpo              centred              token       clipped        token_sum_constant        0.2, 0.2
    dapo                 standardised         token       clipped        token_mean, informative   0.2, 0.28
    rloo                 leave_one_out        sequence    clipped        sequence_mean_token_mean  0.2, 0.2; k1 0.03
    reinforce_plus_plus  per token, whitened  token       clipped        token_mean                0.2, 0.2; k1 0.01
    gspo                 standardised         mean        clipped        sequence_mean_token_mean  3e-4, 4e-4
    cispo                standardised         token       detached_clip  token_mean                none, 4
    clip_cov             standardised         token       clip_cov       token_mean                0.2, 0.2
    kl_cov               standardised         token       kl_cov         token_mean                none

Reference: Shao et al. 2024, arXiv 2402.03300. Different from the paper: a verifier's score in place of a reward model,
and no divergence (k3) in the loss unless `kl_coefficient` says so. Of DAPO are left out: the sampling of other groups
in place of those that teach nothing, the soft penalty for length, and the mask of answers that were cut off. PPO over
tokens is left out, for it needs a value head, which no decoder here has.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_gen.algos import descent
from jaxrl_gen.losses import group, surrogates
from jaxrl_gen.nets import transformer
from jaxrl_gen.samplers import autoregressive
from jaxrl_gen.types import Algorithm, PyTree, Spec, Transition, config, leaf, static


@config
class Config:
    """Hyper-parameters of GRPO; floats are leaves and never recompile."""

    lr: float = leaf(1e-4, low=0.0)
    clip_low: float = leaf(0.2, low=0.0)  # distances of the ratio's walls from 1
    clip_high: float = leaf(0.2, low=0.0)
    kl_coefficient: float = leaf(0.0, low=0.0)  # of the divergence from the reference, in the loss
    kl_in_reward: float = leaf(0.0, low=0.0)  # of its k1 estimate, taken off the reward
    temperature: float = leaf(1.0, low=1e-3)  # of sampling, and so of the learned policy
    max_grad_norm: float = leaf(1.0, low=0.0)
    epochs: int = static(1, low=1)
    minibatches: int = static(1, low=1)
    reference: bool = static(True)  # keep the first policy; without one both weights of the divergence must be zero
    end: int = static(0, low=0)  # the token that ends a completion
    vocab: int = static(64, low=2)  # words of the task; this and the sizes below are those of the decoder
    width: int = static(64, low=2)
    layers: int = static(2, low=1)
    heads: int = static(4, low=1)
    kv_heads: int = static(4, low=1)
    hidden: int = static(256, low=1)


class State(NamedTuple):
    """What GRPO changes; the reference stays what it is."""

    params: PyTree
    opt_state: PyTree
    reference: PyTree  # params of the reference policy, or ()
    updates: jax.Array  # f32, batches learned from


class Rows(NamedTuple):
    """A batch made ready for the epochs. Leaves `[B, ...]`, group by group."""

    prompt: jax.Array  # i32 [B, P]
    valid: jax.Array  # bool [B, P]
    completion: jax.Array  # i32 [B, L]
    mask: jax.Array  # f32 [B, L]
    weight: jax.Array  # f32 [B, L]
    old_log_prob: jax.Array
    ref_log_prob: jax.Array
    advantage: jax.Array


def sizes(cfg: Config, spec: Spec) -> transformer.Sizes:
    """The sizes of the decoder that `make` builds by default: the Config's, with room for prompt and completion.

    Args:
      cfg: Config.
      spec: of a token task.
    Returns:
      Sizes.
    Raises:
      ValueError: if the Config's vocabulary is not the task's.
    """
    words = _words(spec)
    if words and cfg.vocab != words:
        raise ValueError(f"config.vocab is {cfg.vocab}; expected {words}, the words of the task")
    context = spec.obs["tokens"].shape[0] + spec.action_size
    return transformer.Sizes(cfg.vocab, cfg.width, cfg.layers, cfg.heads, cfg.kv_heads, cfg.hidden, context)


def make(
    cfg: Config,
    spec: Spec,
    *,
    decoder: Any = None,
    advantage: Callable = group.per_sequence(group.standardised),
    log_ratio: Callable = group.token_log_ratio,
    surrogate: Callable = surrogates.clipped,
    weights: Callable = group.sequence_mean_token_mean,
    divergence: Callable = group.k3,
    counts: Callable = lambda score, valid: valid,
) -> Algorithm:
    """GRPO as three pure functions; call it inside jit, so that `cfg` is traced.

    Args:
      cfg: Config.
      spec: of a token task: `obs` is {"tokens": i32 [P], "valid": bool [P]}, an action is i32 [L], L = `action_size`.
      decoder: nets.transformer.Decoder; default: one of `sizes(cfg, spec)`.
      advantage, log_ratio, surrogate, weights, divergence: parts of `losses.group`, which says their shapes.
      counts: `(score [N, G], valid [N, G]) -> bool [N, G]`, which completions to learn from; default: all valid ones.
    Returns:
      Algorithm whose batch is a Transition of leaves `[1, N, G, ...]`: one step, G completions of each of N prompts.
    Raises:
      ValueError: if the spec is not that of a token task, its words are not those of the decoder, or a batch is not in
        groups; or for a weight of the divergence without a reference, which only numbers that are not traced can show.
    """
    if not isinstance(spec.obs, dict) or set(spec.obs) != {"tokens", "valid"} or spec.discrete:
        raise ValueError(f"spec.obs is {spec.obs}; allowed: that of a token task, tokens [P] and valid [P]")
    decoder = decoder or transformer.decoder(sizes(cfg, spec))
    known, words = decoder.sizes.vocab, _words(spec)
    if words and known < words:
        raise ValueError(f"the decoder's vocabulary is {known}; expected at least {words}, the words of the task")
    _refuse_divergence_from_nothing(cfg)
    optimizer = optax.chain(optax.clip_by_global_norm(cfg.max_grad_norm), optax.scale_by_adam())
    hook = autoregressive.temperature(cfg.temperature)

    def init(key):
        params = decoder.init(key)
        reference = jax.tree.map(jnp.copy, params) if cfg.reference else ()
        return State(params, descent.start(params, optimizer), reference, jnp.zeros((), jnp.float32))

    def act(state, obs, key):
        leading = obs["tokens"].shape[:-1]
        tokens, valid = (obs[name].reshape(-1, obs[name].shape[-1]) for name in ("tokens", "valid"))
        written = autoregressive.complete(
            decoder, state.params, tokens, valid, key, length=spec.action_size, end=cfg.end, hook=hook
        )
        written = jax.tree.map(lambda x: x.reshape(*leading, -1), written)
        return written.tokens, {"log_prob": written.log_prob}

    def log_probs(params, rows):
        return autoregressive.completion_log_probs(
            decoder, params, rows.prompt, rows.valid, rows.completion, rows.mask, hook=hook
        )

    def prepare(state, batch: Transition):
        if batch.reward.ndim != 3 or batch.reward.shape[0] != 1:
            raise ValueError(f"rewards have shape {batch.reward.shape}; allowed: [1, N, G], groups of completions")
        flat = lambda x: x.reshape(-1, x.shape[-1])
        prompt, valid, written = flat(batch.obs["tokens"]), flat(batch.obs["valid"]), flat(batch.action)
        ok, old_log_prob = batch.valid[0], flat(batch.extras["log_prob"])
        score = jnp.where(ok, batch.reward[0], 0.0)
        until_end = autoregressive.until_end(batch.action[0], cfg.end)
        length = jnp.sum(until_end, -1)
        mask = until_end * (ok & counts(score, ok))[..., None]
        rows = Rows(prompt, valid, written, flat(mask), weights(flat(mask)), old_log_prob, old_log_prob, flat(mask))
        if cfg.reference:
            rows = rows._replace(ref_log_prob=log_probs(state.reference, rows))
        penalty = cfg.kl_in_reward * group.k1(rows.old_log_prob, rows.ref_log_prob)
        rows = rows._replace(advantage=flat(advantage(score, penalty.reshape(mask.shape), mask)))
        return rows, {
            "actor/entropy": -descent.valid_mean(old_log_prob, rows.mask > 0),
            "actor/length": jnp.mean(length),
            "actor/unfinished": jnp.mean(jnp.all(batch.action != cfg.end, -1)),
            "actor/informative": jnp.mean(group.informative(score, ok)),
        }

    def loss(params, rows, key):
        log_prob, valid, walls = log_probs(params, rows), rows.mask > 0, {"low": cfg.clip_low, "high": cfg.clip_high}
        moved = log_ratio(log_prob, rows.old_log_prob, rows.mask)
        total = surrogate(moved, rows.advantage, log_prob, rows.mask, key, **walls)
        metrics = {
            "actor/clip_fraction": descent.valid_mean(surrogates.outside(moved, **walls), valid),
            "actor/kl": descent.valid_mean(group.k3(rows.old_log_prob, log_prob), valid),
        }
        if cfg.reference:
            apart = divergence(log_prob, rows.ref_log_prob)
            total = total + cfg.kl_coefficient * apart
            metrics["actor/kl_reference"] = descent.valid_mean(apart, valid)
        return jnp.sum(rows.weight * total) * cfg.minibatches, metrics

    def update(state, batch, key):
        rows, told = prepare(state, batch)

        def minibatch(carry, some):
            *carry, metrics = descent.descend(
                lambda params: loss(params, *some), *carry, lr=cfg.lr, optimizer=optimizer
            )
            return carry, metrics

        def epoch(carry, keys):
            some = _split(keys[0], rows, cfg.minibatches), jax.random.split(keys[1], cfg.minibatches)
            return jax.lax.scan(minibatch, carry, some)

        carry = [state.params, state.opt_state]
        carry, metrics = jax.lax.scan(epoch, carry, tuple(jax.random.split(key, (2, cfg.epochs))))
        return State(*carry, state.reference, state.updates + 1.0), jax.tree.map(jnp.mean, metrics) | told

    return Algorithm(init, update, act)


dr_grpo = partial(make, advantage=group.per_sequence(group.centred), weights=group.token_sum_constant)
dapo = partial(make, weights=group.token_mean, counts=group.informative)
rloo = partial(make, advantage=group.per_sequence(group.leave_one_out), log_ratio=group.sequence_log_ratio)
reinforce_plus_plus = partial(make, advantage=group.per_token(), weights=group.token_mean)
gspo = partial(make, log_ratio=group.mean_log_ratio)
cispo = partial(make, surrogate=surrogates.detached_clip, weights=group.token_mean)
clip_cov = partial(make, surrogate=surrogates.clip_cov, weights=group.token_mean)
kl_cov = partial(make, surrogate=surrogates.kl_cov, weights=group.token_mean)

DAPO = Config(clip_high=0.28)
RLOO = Config(kl_in_reward=0.03)
REINFORCE_PLUS_PLUS = Config(kl_in_reward=0.01)
GSPO = Config(clip_low=3e-4, clip_high=4e-4)
CISPO = Config(clip_low=1.0, clip_high=4.0)  # ratios are positive: no wall below


def _words(spec: Spec) -> int | None:
    """How many words a task has, where the dtype of its tokens says so: see `envs.tasks.tokens`."""
    return (spec.obs["tokens"].dtype.metadata or {}).get("words")


def _refuse_divergence_from_nothing(cfg: Config) -> None:
    for name in ("kl_coefficient", "kl_in_reward"):
        weight = getattr(cfg, name)
        if not cfg.reference and not isinstance(weight, jax.core.Tracer) and np.any(np.asarray(weight) > 0):
            raise ValueError(f"config.{name} is {weight} without a reference; allowed: 0, or with config.reference")


def _split(key, rows: Rows, minibatches: int):
    """Shuffle rows into `minibatches` pieces on a leading axis."""
    count = rows.mask.shape[0]
    if count % minibatches:
        raise ValueError(f"config.minibatches is {minibatches}; it must divide the {count} completions")
    if minibatches == 1:
        return jax.tree.map(lambda x: x[None], rows)
    order = jax.random.permutation(key, count).reshape(minibatches, -1)
    return jax.tree.map(lambda x: x[order], rows)
