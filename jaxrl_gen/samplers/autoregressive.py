"""Writing tokens one after the other from a decoder with a cache, and the log-probabilities a trainer needs of them.

A hook is a pure function `logits [..., V] -> logits [..., V]`. Whoever samples with one scores with the same one.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from jaxrl_gen.types import PyTree

NEVER = -1e30  # the logit of a token that a hook forbids


class Completion(NamedTuple):
    """What was written after B prompts, at most L tokens each."""

    tokens: jax.Array  # i32 [B, L]; after the end: the token that ends
    mask: jax.Array  # f32 [B, L], one up to and including the end, then zero
    log_prob: jax.Array  # f32 [B, L] under the distribution that was sampled from, zero where masked


def complete(
    decoder: Any,
    params: PyTree,
    tokens: jax.Array,
    valid: jax.Array,
    key: jax.Array | None,
    *,
    length: int,
    end: int,
    hook: Callable = lambda logits: logits,
) -> Completion:
    """Continue prompts token by token until each ends or has `length` tokens; the keys and values so far are cached.

    Args:
      decoder: `nets.Decoder`, of vocabulary V.
      params: its parameters.
      tokens: i32 [B, P], prompts, padded on the left.
      valid: bool [B, P], False where padded.
      key: consumed here; None: the likeliest token each time.
      length: L, the longest completion.
      end: the token that ends a completion, and belongs to it.
      hook: changes the logits before a token is drawn, such as `temperature(0.7)`.
    Returns:
      Completion.
    Raises:
      ValueError: if prompt and completion are longer than the decoder's context, or `end` is no token of it.
    """
    _fits(decoder, tokens, valid, length, end)
    rows, count = tokens.shape
    last, cache = decoder.extend(params, tokens, valid, decoder.cache(rows, count + length - 1))

    def pick(logits, alive, key):
        logits = hook(logits)
        token = jnp.argmax(logits, -1) if key is None else jax.random.categorical(key, logits)
        token = jnp.where(alive, token, end).astype(jnp.int32)
        return token, jnp.where(alive, log_prob_of(logits, token), 0.0)

    def step(writing, key):
        logits, cache, alive = writing
        token, log_prob = pick(logits, alive, key)
        on = alive & (token != end)
        logits, cache = decoder.extend(params, token[:, None], on[:, None], cache)
        return (logits, cache, on), (token, alive, log_prob)

    keys = None if key is None else jax.random.split(key, length)
    writing = (last, cache, jnp.ones((rows,), bool))
    writing, written = jax.lax.scan(step, writing, None if key is None else keys[:-1], length - 1)
    token, log_prob = pick(writing[0], writing[2], None if key is None else keys[-1])
    join = lambda most, one: jnp.concatenate([jnp.moveaxis(most, 0, 1), one[:, None]], 1)  # noqa: E731
    chosen, alive, scored = jax.tree.map(join, written, (token, writing[2], log_prob))
    return Completion(chosen, alive.astype(jnp.float32), scored)


def completion_log_probs(
    decoder: Any,
    params: PyTree,
    tokens: jax.Array,
    valid: jax.Array,
    completion: jax.Array,
    mask: jax.Array,
    *,
    hook: Callable = lambda logits: logits,
) -> jax.Array:
    """The log-probabilities of given completions in one pass, as `complete` would give them: what a trainer needs.

    The logits at a place predict the token at the next: those from the prompt's last place on are used.

    Args:
      decoder, params, tokens, valid, hook: as of `complete`.
      completion: i32 [B, L].
      mask: [B, L], one for its tokens, then zero.
    Returns:
      log_prob [B, L], float32, zero where masked.
    Raises:
      AssertionError: if shapes differ.
      ValueError: if prompt and completion are longer than the decoder's context.
    """
    chex.assert_rank([tokens, valid, completion, mask], 2)
    chex.assert_equal_shape([completion, mask])
    _fits(decoder, tokens, valid, completion.shape[1], 0)
    row = jnp.concatenate([tokens, completion[:, :-1]], 1)
    filled = jnp.concatenate([valid, mask[:, :-1] > 0], 1)
    logits = hook(decoder.apply(params, row, filled, start=tokens.shape[1] - 1))
    return jnp.where(mask > 0, log_prob_of(logits, completion), 0.0)


def log_prob_of(logits: jax.Array, token: jax.Array) -> jax.Array:
    """The log-probability of tokens [...] under logits [..., V], in float32."""
    logits = logits.astype(jnp.float32)
    chosen = jnp.take_along_axis(logits, token[..., None], -1)[..., 0]
    return chosen - jax.nn.logsumexp(logits, -1)


def until_end(tokens: jax.Array, end: int) -> jax.Array:
    """The mask of completions: one up to and including the first `end`, then zero, whatever stands there.

    Args:
      tokens: i32 [..., L].
      end: the token that ends.
    Returns:
      f32 [..., L].
    """
    ends = (tokens == end).astype(jnp.int32)
    return (jnp.cumsum(ends, -1) - ends == 0).astype(jnp.float32)


def temperature(value: jax.Array | float) -> Callable:
    """The hook that divides logits by a temperature: below 1 likely tokens get likelier.

    Args:
      value: positive, scalar.
    """
    return lambda logits: logits / value


def top_k(count: int) -> Callable:
    """The hook that leaves the `count` likeliest tokens; the others are forbidden, and the rest is scaled up to one.

    Args:
      count: at least 1.
    Raises:
      ValueError: if count < 1.
    """
    if count < 1:
        raise ValueError(f"count is {count}; allowed: 1 and more")

    def hook(logits):
        least = jax.lax.top_k(logits, min(count, logits.shape[-1]))[0][..., -1:]
        return jnp.where(logits < least, NEVER, logits)

    return hook


def _fits(decoder, tokens, valid, length, end):
    chex.assert_rank([tokens, valid], 2)
    chex.assert_equal_shape([tokens, valid])
    prompt, context, vocab = tokens.shape[1], decoder.sizes.context, decoder.sizes.vocab
    if prompt < 1 or length < 1:
        raise ValueError(f"a prompt of {prompt} and a completion of {length} tokens; allowed: 1 and more of either")
    if prompt + length - 1 > context:
        raise ValueError(
            f"a prompt of {prompt} and a completion of {length} tokens need a cache of {prompt + length - 1} places; "
            f"allowed: up to the decoder's context of {context}"
        )
    if not 0 <= end < vocab:
        raise ValueError(f"end is {end}; allowed: a token of the decoder, 0 to {vocab - 1}")
