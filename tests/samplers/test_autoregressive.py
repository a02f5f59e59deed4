"""Token by token decoding against a plain loop over whole rows, and the trainer's log-probabilities against NumPy's."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen.nets import transformer
from jaxrl_gen.samplers import autoregressive

SIZES = transformer.Sizes(vocab=11, width=16, layers=2, heads=2, kv_heads=1, hidden=24, context=16)
NET = transformer.decoder(SIZES)
END, LENGTH = 2, 6
HOOKS = {
    "none": lambda logits: logits,
    "both": lambda logits: autoregressive.top_k(4)(autoregressive.temperature(1.5)(logits)),
}
EVERY_HOOK = pytest.mark.parametrize("hook", HOOKS.values(), ids=HOOKS.keys())


@functools.cache
def prompts(rows=64, length=5):
    rng = np.random.default_rng(0)
    pads = rng.integers(0, length, rows)
    return (
        jax.jit(NET.init)(jax.random.key(1)),
        rng.integers(3, SIZES.vocab, (rows, length), np.int32),
        np.arange(length) >= pads[:, None],
    )


@functools.cache
def written(hook=HOOKS["none"], key=0):
    params, tokens, valid = prompts()
    run = jax.jit(functools.partial(autoregressive.complete, NET, length=LENGTH, end=END, hook=hook))
    return run(params, tokens, valid, None if key is None else jax.random.key(key))


APPLY = jax.jit(NET.apply)


def next_logits(row):
    """Logits after a row of tokens, from a forward over the whole of it."""
    seen = np.zeros((1, SIZES.context), np.int32)
    seen[0, SIZES.context - len(row) :] = row
    valid = np.arange(SIZES.context)[None] >= SIZES.context - len(row)
    return APPLY(prompts()[0], seen, valid)[0, -1]


def numpy_log_prob(hook, tokens, completion):
    """Log-probabilities of one completion: a whole forward for each token, softmax in float64."""
    row, found = list(tokens), []
    for token in completion:
        logits = np.asarray(hook(next_logits(row)), np.float64)
        found.append(logits[token] - logits.max() - np.log(np.sum(np.exp(logits - logits.max()))))
        row.append(int(token))
    return np.array(found)


@EVERY_HOOK
def test_the_log_probs_are_those_of_what_was_drawn(hook):
    _, tokens, valid = prompts()
    out = written(hook)
    for i in range(0, 64, 16):
        length = int(out.mask[i].sum())
        expected = numpy_log_prob(hook, tokens[i][valid[i]], np.asarray(out.tokens[i])[:length])
        np.testing.assert_allclose(out.log_prob[i, :length], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(out.log_prob[i, length:], 0.0)


@EVERY_HOOK
def test_the_trainer_recomputes_the_same_log_probs(hook):
    params, tokens, valid = prompts()
    out = written(hook)
    run = jax.jit(functools.partial(autoregressive.completion_log_probs, NET, hook=hook))
    again = run(params, tokens, valid, out.tokens, out.mask)
    np.testing.assert_allclose(again, out.log_prob, atol=1e-5)
    assert float(jnp.min(out.log_prob)) < -0.1  # there is something to compare


def test_the_likeliest_tokens_are_those_of_a_loop_over_whole_rows():
    _, tokens, valid = prompts()
    out = written(key=None)
    for i in range(0, 64, 9):
        row, expected = list(tokens[i][valid[i]]), []
        while len(expected) < LENGTH and END not in expected:
            expected.append(int(np.argmax(next_logits(row))))
            row.append(expected[-1])
        np.testing.assert_array_equal(np.asarray(out.tokens[i])[: len(expected)], expected)
        assert int(out.mask[i].sum()) == len(expected)


def test_the_mask_goes_up_to_and_with_the_first_end():
    out = written()
    lengths = set()
    for row, mask in zip(np.asarray(out.tokens), np.asarray(out.mask)):
        ends = np.flatnonzero(row == END)
        length = ends[0] + 1 if len(ends) else LENGTH
        lengths.add(int(length))
        np.testing.assert_array_equal(mask, np.arange(LENGTH) < length)
        assert np.all(row[length:] == END)
    assert len(lengths) > 2  # some end soon, some late
    np.testing.assert_array_equal(autoregressive.until_end(out.tokens, END), out.mask)


def test_until_end_where_padding_is_the_end_and_where_there_is_none():
    tokens = jnp.array([[5, 2, 2, 2], [2, 5, 5, 2], [5, 5, 5, 5]])
    expected = [[1, 1, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]]
    np.testing.assert_array_equal(autoregressive.until_end(tokens, 2), expected)


def test_padding_on_the_left_changes_nothing():
    params, tokens, valid = prompts()
    run = jax.jit(functools.partial(autoregressive.complete, NET, params, key=None, length=LENGTH, end=END))
    one, two = written(key=None), run(np.pad(tokens, ((0, 0), (3, 0))), np.pad(valid, ((0, 0), (3, 0))))
    np.testing.assert_array_equal(one.tokens, two.tokens)
    np.testing.assert_allclose(one.log_prob, two.log_prob, atol=1e-5)


def test_tokens_are_drawn_in_proportion_to_their_probability():
    params, tokens, valid = prompts()
    many = np.broadcast_to(tokens[:1], (20_000, 5)), np.broadcast_to(valid[:1], (20_000, 5))
    hook = HOOKS["both"]
    run = jax.jit(functools.partial(autoregressive.complete, NET, length=1, end=END, hook=hook))
    out = run(params, *many, jax.random.key(3))
    probability = jax.nn.softmax(hook(next_logits(tokens[0][valid[0]])))
    share = np.bincount(np.asarray(out.tokens)[:, 0], minlength=SIZES.vocab) / 20_000
    np.testing.assert_allclose(share, probability, atol=0.015)
    assert np.count_nonzero(share) == 4  # top 4


def test_another_key_writes_something_else():
    assert not np.array_equal(written(key=0).tokens, written(key=1).tokens)


@pytest.mark.parametrize("how", [autoregressive.complete, autoregressive.completion_log_probs])
def test_prompts_longer_than_the_cache_are_refused(how):
    params, tokens, valid = prompts()
    long = dict(tokens=np.tile(tokens, (1, 3)), valid=np.tile(valid, (1, 3)))
    message = "a prompt of 15 and a completion of 6 tokens need a cache of 20 places; .* context of 16"
    with pytest.raises(ValueError, match=message):
        if how is autoregressive.complete:
            how(NET, params, **long, key=None, length=LENGTH, end=END)
        else:
            how(NET, params, **long, completion=np.zeros((64, LENGTH), np.int32), mask=np.ones((64, LENGTH)))


def test_bad_input_is_refused():
    params, tokens, valid = prompts()
    with pytest.raises(ValueError, match="end is 11; allowed: a token of the decoder, 0 to 10"):
        autoregressive.complete(NET, params, tokens, valid, None, length=LENGTH, end=11)
    with pytest.raises(ValueError, match="a completion of 0 tokens; allowed: 1 and more"):
        autoregressive.complete(NET, params, tokens, valid, None, length=0, end=END)
    with pytest.raises(ValueError, match="count is 0"):
        autoregressive.top_k(0)
    with pytest.raises(AssertionError):
        autoregressive.complete(NET, params, tokens, valid[:, :1], None, length=LENGTH, end=END)
