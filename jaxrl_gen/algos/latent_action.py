"""Latent actions from films without actions: an inverse model, a codebook, and a forward model that needs the code.

`obs` of this method is a pair of frames; what `act` infers is the code of what happened between them.

Reference: Ye et al. 2024, arXiv 2410.11758 (LAPA); Bruce et al. 2024, arXiv 2402.15391 (Genie). Different from both:
small networks on patches and their neighbours in place of transformers, and a codebook of running means.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_gen import nets
from jaxrl_gen.algos import descent
from jaxrl_gen.losses import latent as losses
from jaxrl_gen.nets import patches, vq
from jaxrl_gen.types import Algorithm, PyTree, Spec, config, leaf, static


@config
class Config:
    """Hyper-parameters of a latent-action model; floats are leaves and never recompile."""

    lr: float = leaf(3e-3, low=0.0)
    codebook_coefficient: float = leaf(1.0, low=0.0)  # nothing for a codebook of running means
    commitment_coefficient: float = leaf(0.02, low=0.0)  # small, as the error of frames is where little moves
    decay: float = leaf(0.95, low=0.0, high=1.0)  # of the running means of the codebook, per update
    least_usage: float = leaf(0.1, low=0.0, high=1.0)  # of the average: a code used less is moved
    codes: int = static(8, low=1)  # K
    tokens: int = static(1, low=1)  # N codes for each pair of frames: K^N latent actions
    width: int = static(8, low=1)  # D of a code
    patch: int = static(4, low=1)  # pixels along a patch
    features: int = static(32, low=1)  # of a patch
    hidden: int = static(64, low=1)


class State(NamedTuple):
    """What a latent-action model changes."""

    params: PyTree  # embed, inverse, forward, codes
    usage: PyTree  # of the codes
    opt_state: PyTree


class Pair(NamedTuple):
    """Two frames, the second after the first: the batch, leaves [B, ...]."""

    obs: PyTree
    next_obs: PyTree
    valid: jax.Array  # bool


class Parts(NamedTuple):
    """What the method is made of, each to be replaced; all leading axes are allowed.

    `see(frame) -> x` is what is predicted, and what `embed` reads; `inverse` takes the pair of their features to N D
    numbers; `forward` takes the first one's features and the N D numbers of the codes to the next x.
    """

    see: Callable
    embed: nets.Net
    inverse: nets.Net
    forward: nets.Net


def on_patches(cfg: Config, spec: Spec) -> Parts:
    """Parts for frames [height, width, channels]: networks on patches and their neighbours."""
    shape = spec.obs.shape
    if len(shape) != 3 or shape[0] % cfg.patch or shape[1] % cfg.patch:
        raise ValueError(f"config.patch is {cfg.patch}; it must divide height and width of the observation {shape}")
    return Parts(
        lambda frame: patches.cut(frame, cfg.patch),
        patches.each(cfg.features),
        patches.change(cfg.hidden, cfg.tokens * cfg.width),
        patches.repaint(cfg.hidden, cfg.patch**2 * shape[-1]),
    )


def on_vectors(cfg: Config, spec: Spec) -> Parts:
    """Parts for observations that are one vector [D]: perceptrons, and features that are the observation itself."""
    (size,) = spec.obs.shape
    seen = jax.ShapeDtypeStruct((size,), jnp.float32)
    code = jax.ShapeDtypeStruct((cfg.tokens * cfg.width,), jnp.float32)
    return Parts(
        lambda obs: obs.astype(jnp.float32),
        nets.Net(lambda key, example: (), lambda params, x: x),
        nets.flat(nets.mlp((cfg.hidden, cfg.hidden, cfg.tokens * cfg.width), jax.nn.relu), (seen, seen)),
        nets.flat(nets.mlp((cfg.hidden, cfg.hidden, size), jax.nn.relu), (seen, code)),
    )


def make(
    cfg: Config,
    spec: Spec,
    *,
    parts: Callable = on_patches,
    quantizer: Callable = vq.ema,
    through: Callable = losses.straight_through,
) -> Algorithm:
    """A latent-action model as three pure functions; call it inside jit, so that `cfg` is traced.

    Args:
      cfg: Config.
      spec: of one lane; of it, only the frames matter.
      parts: `(cfg, spec) -> Parts`.
      quantizer: `(size, width, *, decay, least) -> vq.Quantizer`.
      through: `(latent, code, key) -> what the forward model is told`, with the gradient that the encoder learns from.
    Returns:
      Algorithm whose batch is a Pair; `act(state, (obs, next_obs), key)` gives the index of the code, [...] int32, or
      [..., N] where there are several tokens, and in its extras the `latent` before and the `code` after quantising.
    """
    see, embed, inverse, forward = parts(cfg, spec)
    quantize = quantizer(cfg.codes, cfg.width, decay=cfg.decay, least=cfg.least_usage)
    if quantize.width != cfg.width:
        raise ValueError(f"config.width is {cfg.width}; allowed: {quantize.width}, the width of the quantizer's codes")

    def init(key):
        keys = jax.random.split(key, 4)
        seen = jax.eval_shape(see, spec.obs)
        params = {"embed": embed.init(keys[0], seen)}
        features = jax.eval_shape(embed.apply, params["embed"], seen)
        params["inverse"] = inverse.init(keys[1], (features, features))
        told = jax.ShapeDtypeStruct((cfg.tokens * cfg.width,), jnp.float32)
        params["forward"] = forward.init(keys[2], (features, told))
        params["codes"], usage = quantize.init(keys[3])
        return State(params, usage, descent.start(params))

    def infer(params, frames):
        """The first frame's features; latents and codes [..., N, D]; indices [..., N]."""
        before, after = (embed.apply(params["embed"], x) for x in frames)
        said = inverse.apply(params["inverse"], (before, after))
        said = said.reshape(*said.shape[:-1], cfg.tokens, cfg.width)
        return before, *quantize.apply(params["codes"], said)

    def loss(params, batch, key):
        frames = see(batch.obs), see(batch.next_obs)
        before, latent, code, index = infer(params, frames)
        told = through(latent, code, key).reshape(*code.shape[:-2], -1)
        predict = lambda features, told: forward.apply(params["forward"], (features, told))
        error, of_forward = losses.forward_model(predict, before, told, frames[1])
        near, of_codes = losses.codebook_loss(latent, code)
        bound, of_latents = losses.commitment(latent, code)
        total = error + cfg.codebook_coefficient * near + cfg.commitment_coefficient * bound
        seen = {"latent": latent, "index": index}  # for the codebook; no metrics
        return descent.valid_mean(total, batch.valid), of_forward | of_codes | of_latents | seen

    def update(state, batch, key):
        key_through, key_codes = jax.random.split(key)
        params, opt_state, metrics = descent.descend(
            lambda params: loss(params, batch, key_through), state.params, state.opt_state, lr=cfg.lr
        )
        latent, index = metrics.pop("latent"), metrics.pop("index")
        counts = jnp.broadcast_to(batch.valid[:, None], index.shape)
        codes, usage = quantize.update(params["codes"], state.usage, latent, index, counts, key_codes)
        skipped = metrics["guard/skipped_updates"] > 0.0  # what was not finite must not reach the codes either
        codes, usage = jax.tree.map(
            lambda old, new: jnp.where(skipped, old, new), (params["codes"], state.usage), (codes, usage)
        )
        metrics |= losses.codebook_health(usage.share, least=cfg.least_usage)
        return State(params | {"codes": codes}, usage, opt_state), metrics

    def act(state, obs, key):
        del key  # nothing here is random
        _, latent, code, index = infer(state.params, tuple(map(see, obs)))
        extras = {"latent": latent, "code": code}
        return (index[..., 0] if cfg.tokens == 1 else index), extras

    return Algorithm(init, update, act)


def imagine(cfg: Config, spec: Spec, state: State, obs: PyTree, index: jax.Array, *, parts: Callable = on_patches):
    """What the forward model paints after a frame, for a code of one's choice.

    Args:
      cfg, spec, parts: as of `make`.
      state: of the model, with a codebook.
      obs: frames [..., height, width, channels].
      index: [...] or [..., N], indices of codes.
    Returns:
      As `parts.see` gives frames: for `on_patches`, a grid that `patches.join` makes a picture of.
    """
    see, embed, _, forward = parts(cfg, spec)
    code = state.params["codes"][index.reshape(*index.shape[: index.ndim - (cfg.tokens > 1)], cfg.tokens)]
    told = code.reshape(*code.shape[:-2], math.prod(code.shape[-2:]))
    return forward.apply(state.params["forward"], (embed.apply(state.params["embed"], see(obs)), told))


def meanings(
    code: jax.Array, action: jax.Array, valid: jax.Array, *, codes: int, actions: int, prior: jax.Array = 0.1
) -> jax.Array:
    """What codes mean, counted in labelled steps: p(a|k) = (n_ka + prior p(a)) / (n_k + prior), with p(a) of all.

    Args:
      code: [L] int32, as the model inferred it.
      action: [L] int32, the true one.
      valid: [L] bool; False: not a label.
      codes, actions: K and A.
      prior: labels that the average action is worth; it is what a code without labels means.
    Returns:
      [K, A].
    Reference: Schmidt and Jiang 2023, arXiv 2312.10812, section 4.3, where a network is trained in the table's place.
    """
    taken = jnp.zeros((codes, actions)).at[code, action].add(valid.astype(jnp.float32))
    overall = (jnp.sum(taken, 0) + 1.0) / (jnp.sum(taken) + actions)
    return (taken + prior * overall) / (jnp.sum(taken, 1, keepdims=True) + prior)


def decoded(policy: Algorithm, meaning: jax.Array) -> Algorithm:
    """A policy over codes that acts: its code's likeliest action, or, given a key, one drawn from the code's meaning.

    Args:
      policy: whose actions are codes; cloned, say, from what `act` of the model inferred in films without actions.
      meaning: [K, A], of `meanings`.
    Returns:
      The policy with another `act`.
    """

    def act(state, obs, key):
        if key is None:
            code, extras = policy.act(state, obs, None)
            return jnp.argmax(meaning[code], -1).astype(jnp.int32), extras | {"code": code}
        key_code, key_action = jax.random.split(key)
        code, extras = policy.act(state, obs, key_code)
        return jax.random.categorical(key_action, jnp.log(meaning[code])).astype(jnp.int32), extras | {"code": code}

    return policy._replace(act=act)


def collapsed(state: State, *, fewest: float = 1.5) -> list[str]:
    """A line for each model, of one or of a population, whose latents all chose the same code.

    Args:
      state: of one model, or leaves [M, ...].
      fewest: the least perplexity of the codes in use that is allowed.
    Returns:
      Lines that name the member, its perplexity and what was expected; none where all is well.
    """
    share = jnp.atleast_2d(state.usage.share)
    return [
        f"the codebook of member {member} has collapsed: of its {share.shape[-1]} codes {in_use:.2f} are in use "
        f"(perplexity); expected: {fewest:g} and more; try a lower lr or a higher least_usage"
        for member, in_use in enumerate(np.asarray(losses.perplexity(share))) if not in_use >= fewest
    ]  # fmt: skip


def refuse_collapsed(state: State, *, fewest: float = 1.5) -> None:
    """Refuse a model, or a population of them, any of whose codebooks has collapsed.

    Args:
      state, fewest: as of `collapsed`.
    Raises:
      ValueError: with the lines of `collapsed`.
    """
    if lines := collapsed(state, fewest=fewest):
        raise ValueError("; ".join(lines))
