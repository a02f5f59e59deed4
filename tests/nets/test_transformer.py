"""The decoder against a float64 NumPy forward, what the `transformers` library said or, installed, says, and its cache."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen.nets import transformer

TIED = transformer.Sizes(vocab=23, width=32, layers=2, heads=4, kv_heads=2, hidden=48, context=24)
APART = TIED._replace(tied=False, kv_heads=4, theta=1e6, layers=3)
SMALL = {
    "tied": transformer.Sizes(vocab=11, width=16, layers=2, heads=4, kv_heads=2, hidden=24, context=24),
    "apart": transformer.Sizes(11, 16, 1, 4, 4, 24, 24, tied=False, theta=100.0, epsilon=1e-3),
}
GOLDEN, WRITER = Path(__file__).with_name("qwen2_golden.npz"), "transformers 5.23.0"
EVERY = pytest.mark.parametrize("sizes", [TIED, APART], ids=["tied", "apart"])


def weights(sizes, seed=0):
    """Parameters none of which is zero or one, so that every one of them matters."""
    params, rng = transformer.decoder(sizes).init(jax.random.key(seed)), np.random.default_rng(seed)
    return jax.tree.map(lambda x: jnp.asarray(x + rng.normal(size=x.shape, scale=0.1), jnp.float32), params)


def batch(sizes, rows=3, length=9, seed=1):
    """Tokens padded on the left: the first row has no padding, the others some."""
    rng = np.random.default_rng(seed)
    pads = rng.integers(1, length - 2, rows)
    pads[0] = 0
    return rng.integers(0, sizes.vocab, (rows, length), np.int32), np.arange(length) >= pads[:, None]


def numpy_forward(found, tokens, sizes):
    """Logits of one row without padding from tensors of Qwen2's names, in float64, position by position."""
    w = {name: np.asarray(x, np.float64) for name, x in found.items()}
    norm = lambda scale, x: x / np.sqrt(np.mean(x**2, -1, keepdims=True) + sizes.epsilon) * scale  # noqa: E731
    size, share = sizes.width // sizes.heads, sizes.heads // sizes.kv_heads

    def rotated(x):  # [T, heads, size]
        out = np.empty_like(x)
        for t in range(x.shape[0]):
            for i in range(size // 2):
                angle = t * sizes.theta ** (-2.0 * i / size)
                one, two = x[t, :, i], x[t, :, i + size // 2]
                out[t, :, i] = one * np.cos(angle) - two * np.sin(angle)
                out[t, :, i + size // 2] = two * np.cos(angle) + one * np.sin(angle)
        return out

    x = w["model.embed_tokens.weight"][tokens]
    for layer in range(sizes.layers):
        at = f"model.layers.{layer}."
        seen = norm(w[at + "input_layernorm.weight"], x)
        project = lambda part: (
            (  # noqa: E731
                seen @ w[f"{at}self_attn.{part}_proj.weight"].T + w[f"{at}self_attn.{part}_proj.bias"]  # noqa: B023
            ).reshape(len(tokens), -1, size)
        )
        query, key, value = rotated(project("q")), rotated(project("k")), project("v")
        mixed = np.zeros((len(tokens), sizes.heads, size))
        for t in range(len(tokens)):
            for h in range(sizes.heads):
                score = key[: t + 1, h // share] @ query[t, h] / np.sqrt(size)
                weight = np.exp(score - score.max())
                mixed[t, h] = weight / weight.sum() @ value[: t + 1, h // share]
        x = x + mixed.reshape(len(tokens), -1) @ w[at + "self_attn.o_proj.weight"].T
        seen = norm(w[at + "post_attention_layernorm.weight"], x)
        gate, up = seen @ w[at + "mlp.gate_proj.weight"].T, seen @ w[at + "mlp.up_proj.weight"].T
        x = x + (gate / (1.0 + np.exp(-gate)) * up) @ w[at + "mlp.down_proj.weight"].T
    last = w["model.embed_tokens.weight" if sizes.tied else "lm_head.weight"]
    return norm(w["model.norm.weight"], x) @ last.T


@EVERY
@pytest.mark.parametrize("mode", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_logits_equal_a_forward_in_float64(sizes, mode):
    params, (tokens, valid) = weights(sizes), batch(sizes)
    logits = mode(transformer.decoder(sizes).apply)(params, tokens, valid)
    assert logits.shape == (*tokens.shape, sizes.vocab) and logits.dtype == jnp.float32
    found = transformer.tensors(jax.tree.map(np.asarray, params), sizes)
    for row, ok, ours in zip(tokens, valid, logits):
        expected = numpy_forward(found, row[ok], sizes)
        np.testing.assert_allclose(np.asarray(ours)[ok], expected, rtol=1e-4, atol=1e-4)


def library_config(sizes):
    """The library's Config of these sizes."""
    import transformers

    config = transformers.Qwen2Config(
        vocab_size=sizes.vocab, hidden_size=sizes.width, num_hidden_layers=sizes.layers, hidden_act="silu",
        num_attention_heads=sizes.heads, num_key_value_heads=sizes.kv_heads, intermediate_size=sizes.hidden,
        max_position_embeddings=sizes.context, rope_theta=sizes.theta, rms_norm_eps=sizes.epsilon,
        tie_word_embeddings=sizes.tied, use_sliding_window=False,
    )  # fmt: skip
    if hasattr(config, "rope_parameters"):
        config.rope_parameters = {"rope_type": "default", "rope_theta": sizes.theta}
    return config


def library_logits(model, tokens, valid):
    """What a model of the library says of padded rows."""
    import torch

    positions = np.maximum(np.cumsum(valid, 1) - 1, 0)
    with torch.no_grad():
        return model(
            input_ids=torch.tensor(tokens, dtype=torch.long), attention_mask=torch.tensor(valid.astype(np.int64)),
            position_ids=torch.tensor(positions),
        ).logits.numpy()  # fmt: skip


def write_golden():
    """Let the library make both models, of numbers that half precision holds, and write what they say; by hand alone."""
    import torch
    import transformers

    torch.manual_seed(0)
    kept = {"writer": f"transformers {transformers.__version__}"}
    for name, sizes in SMALL.items():
        model, (tokens, valid) = transformers.Qwen2ForCausalLM(library_config(sizes)).float().eval(), batch(sizes)
        for each in model.parameters():
            each.data = (each.data + 0.3 * torch.randn_like(each)).half().float()
        kept |= {f"{name}/{at}": each.detach().numpy().astype(np.float16) for at, each in model.named_parameters()}
        kept |= {f"{name} tokens": tokens, f"{name} valid": valid}
        kept |= {f"{name} logits": library_logits(model, tokens, valid)}
    np.savez_compressed(GOLDEN, **kept)


@pytest.mark.parametrize("name", SMALL)
def test_logits_equal_those_that_the_transformers_library_wrote_down(name):
    """`write_golden` wrote them, with the version that WRITER names."""
    golden, sizes = np.load(GOLDEN), SMALL[name]
    assert golden["writer"] == WRITER
    found = {at.removeprefix(f"{name}/"): golden[at] for at in golden.files if at.startswith(f"{name}/")}
    tokens, valid, theirs = (golden[f"{name} {what}"] for what in ("tokens", "valid", "logits"))
    assert 0 < np.sum(~valid) < valid.size / 2 and np.std(theirs) > 0.5
    ours = transformer.decoder(sizes).apply(transformer.from_tensors(found, sizes), tokens, valid)
    np.testing.assert_allclose(np.asarray(ours)[valid], theirs[valid], atol=1e-4)


@EVERY
def test_logits_equal_those_of_the_transformers_library(sizes, tmp_path):
    """For the same random weights, which go there and back through a safetensors file; padded rows included."""
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    params, (tokens, valid) = weights(sizes, 3), batch(sizes, seed=4)
    library_config(sizes).save_pretrained(tmp_path)
    transformer.save(tmp_path / "model.safetensors", params, sizes)
    model = transformers.Qwen2ForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    ours, theirs = transformer.decoder(sizes).apply(params, tokens, valid), library_logits(model, tokens, valid)
    np.testing.assert_allclose(np.asarray(ours)[valid], theirs[valid], atol=1e-4)
    model.save_pretrained(tmp_path / "back", safe_serialization=True)
    again = transformer.load(tmp_path / "back" / "model.safetensors", sizes)
    jax.tree.map(np.testing.assert_array_equal, again, params)


@EVERY
def test_padding_on_the_left_changes_nothing(sizes):
    net, params, (tokens, _) = transformer.decoder(sizes), weights(sizes), batch(sizes)
    apply = jax.jit(net.apply, static_argnames="start")
    plain = apply(params, tokens, np.ones(tokens.shape, bool))
    padded = np.concatenate([np.full((len(tokens), 4), 7, np.int32), tokens], 1)
    valid = np.concatenate([np.zeros((len(tokens), 4), bool), np.ones(tokens.shape, bool)], 1)
    np.testing.assert_allclose(apply(params, padded, valid)[:, 4:], plain, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(apply(params, padded, valid, start=4), plain, rtol=1e-4, atol=1e-5)


@EVERY
def test_the_past_does_not_see_the_future(sizes):
    net, params, (tokens, valid) = transformer.decoder(sizes), weights(sizes), batch(sizes)
    other = tokens.copy()
    other[:, 5:] = (other[:, 5:] + 1) % sizes.vocab
    apply = jax.jit(net.apply)
    one, two = (np.asarray(apply(params, x, valid)) for x in (tokens, other))
    np.testing.assert_allclose(one[:, :5][valid[:, :5]], two[:, :5][valid[:, :5]], atol=1e-6)
    assert np.all(np.abs(one - two)[0, 5:].max(1) > 1e-3)


@EVERY
def test_the_cache_gives_the_logits_of_the_whole_row(sizes):
    """A prompt at once, then token by token."""
    net, params, (tokens, valid) = transformer.decoder(sizes), weights(sizes), batch(sizes)
    whole, extend = jax.jit(net.apply)(params, tokens, valid), jax.jit(net.extend)
    logits, cache = extend(params, tokens[:, :4], valid[:, :4], net.cache(3, 9))
    for t in range(4, 9):
        seen = valid[:, :t].any(1)
        np.testing.assert_allclose(logits[seen], whole[seen, t - 1], rtol=1e-4, atol=1e-5)
        logits, cache = extend(params, tokens[:, t : t + 1], valid[:, t : t + 1], cache)
    np.testing.assert_allclose(logits, whole[:, -1], rtol=1e-4, atol=1e-5)
    assert int(cache.used) == 9


def test_a_row_of_nothing_but_padding_is_finite_also_in_its_gradient():
    net, params, (tokens, _) = transformer.decoder(TIED), weights(TIED), batch(TIED)
    nothing = np.zeros(tokens.shape, bool)
    logits, gradient = jax.jit(jax.value_and_grad(lambda p: jnp.sum(net.apply(p, tokens, nothing))))(params)
    assert np.isfinite(logits) and all(np.all(np.isfinite(x)) for x in jax.tree.leaves(gradient))


def test_members_side_by_side_are_those_apart():
    net, (tokens, valid) = transformer.decoder(TIED), batch(TIED)
    many = jax.jit(jax.vmap(net.init))(jax.random.split(jax.random.key(0), 3))
    both, apply = jax.jit(jax.vmap(net.apply, (0, None, None)))(many, tokens, valid), jax.jit(net.apply)
    for k in range(3):
        one = apply(jax.tree.map(lambda x: x[k], many), tokens, valid)  # noqa: B023
        np.testing.assert_allclose(both[k], one, rtol=1e-4, atol=1e-5)


@EVERY
def test_weights_come_back_from_a_file(sizes, tmp_path):
    params = weights(sizes)
    transformer.save(tmp_path / "model.safetensors", params, sizes)
    jax.tree.map(np.testing.assert_array_equal, transformer.load(tmp_path / "model.safetensors", sizes), params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.norm.weight"), r"tensor model.norm.weight: found none, expected shape \(32,\)"),
        (lambda t: t.update(extra=np.zeros(3, np.float32)), r"tensor extra: found shape \(3,\), expected none"),
        (
            lambda t: t.update({"model.norm.weight": np.zeros(31, np.float32)}),
            r"tensor model.norm.weight: found shape \(31,\), expected \(32,\)",
        ),
        (
            lambda t: t.update({"model.norm.weight": np.zeros(32, np.int32)}),
            "tensor model.norm.weight: found int32, expected floating-point",
        ),
    ],
    ids=["missing", "unknown", "misshapen", "integers"],
)
def test_other_tensors_are_refused_by_name(change, message, tmp_path):
    from safetensors import numpy as safetensors

    found = transformer.tensors(jax.tree.map(np.asarray, weights(TIED)), TIED)
    change(found)
    safetensors.save_file(found, tmp_path / "wrong.safetensors")
    with pytest.raises(ValueError, match=f"wrong.safetensors: {message}"):
        transformer.load(tmp_path / "wrong.safetensors", TIED)


def test_what_is_no_such_file_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        transformer.load(tmp_path / "none.safetensors", TIED)
    (tmp_path / "text.safetensors").write_text("not tensors at all")
    with pytest.raises(ValueError, match="text.safetensors is not a safetensors file"):
        transformer.load(tmp_path / "text.safetensors", TIED)


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        (TIED._replace(layers=0), "sizes.layers is 0"),
        (TIED._replace(heads=3), "sizes.heads is 3; it must divide width 32"),
        (TIED._replace(kv_heads=3), "sizes.kv_heads is 3; it must divide the 4 heads"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        transformer.decoder(sizes)


def test_rows_longer_than_the_context_or_the_cache_are_refused():
    net, params = transformer.decoder(TIED), weights(TIED)
    tokens = np.zeros((1, 25), np.int32)
    with pytest.raises(ValueError, match="25 tokens; allowed: up to the context of 24"):
        net.apply(params, tokens, tokens == 0)
    with pytest.raises(ValueError, match="up to the context of 24"):
        net.cache(1, 25)
    with pytest.raises(ValueError, match="25 tokens do not fit into a cache of 8 places"):
        net.extend(params, tokens, tokens == 0, net.cache(1, 8))


def test_tokens_that_run_over_the_end_of_the_cache_give_nan_and_no_logits_of_something_else():
    net, params, (tokens, valid) = transformer.decoder(TIED), weights(TIED), batch(TIED)
    extend = jax.jit(net.extend)
    _, cache = extend(params, tokens[:, :6], valid[:, :6], net.cache(3, 8))
    logits, full = extend(params, tokens[:, 6:8], valid[:, 6:8], cache)
    np.testing.assert_allclose(logits, net.apply(params, tokens[:, :8], valid[:, :8])[:, -1], rtol=1e-4, atol=1e-5)
    assert np.all(np.isnan(extend(params, tokens[:, 6:9], valid[:, 6:9], cache)[0]))
    assert np.all(np.isnan(extend(params, tokens[:, 8:], valid[:, 8:], full)[0]))
