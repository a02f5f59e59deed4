"""A decoder-only transformer over tokens (RMSNorm, rotary positions, grouped-query attention, SwiGLU: Qwen2's layout).

Pure functions over plain dictionaries, with the cache of keys and values in the open. Rows are padded on the left:
positions count valid tokens alone, so that padding changes nothing. `save` and `load` speak safetensors, with the names
and shapes of the `transformers` library.
"""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_gen.types import PyTree

MASKED = -1e30  # large and finite: a row that attends to nothing must not become NaN


class Sizes(NamedTuple):
    """The shape of a decoder; numbers of Qwen2's configuration have its names in brackets."""

    vocab: int  # V tokens (vocab_size)
    width: int = 64  # D features (hidden_size)
    layers: int = 2  # (num_hidden_layers)
    heads: int = 4  # (num_attention_heads)
    kv_heads: int = 2  # of keys and values; each serves heads / kv_heads queries (num_key_value_heads)
    hidden: int = 256  # of the feed-forward part (intermediate_size)
    context: int = 512  # longest row, tokens (max_position_embeddings)
    tied: bool = True  # the embedding is also the last layer (tie_word_embeddings)
    theta: float = 10_000.0  # base of the rotary wavelengths (rope_theta)
    epsilon: float = 1e-6  # of RMSNorm (rms_norm_eps)


class Cache(NamedTuple):
    """Keys and values of the tokens so far, one leaf per layer, and which places hold a token."""

    keys: tuple[jax.Array, ...]  # each [B, K, C, D / heads], K = kv_heads, C places
    values: tuple[jax.Array, ...]
    valid: jax.Array  # bool [B, C]
    used: jax.Array  # i32, places written, padding included; the same for all rows


class Decoder(NamedTuple):
    """A transformer as pure functions.

    `init(key) -> params`; `apply(params, tokens [B, T], valid [B, T], start=0) -> logits [B, T - start, V]`, where the
    row at t predicts the token at t + 1; `cache(rows, places) -> Cache`, empty; `extend(params, tokens [B, S],
    valid [B, S], cache) -> (logits [B, V] of the last token, Cache)`, where the logits are NaN if the tokens run over
    the end of the cache.
    """

    init: Callable
    apply: Callable
    cache: Callable
    extend: Callable
    sizes: Sizes


def decoder(sizes: Sizes) -> Decoder:
    """A decoder of the given sizes, its logits in float32.

    Args:
      sizes: Sizes.
    Returns:
      Decoder.
    Raises:
      ValueError: if a count is below 1, or heads do not divide the width, or kv_heads the heads.
    """
    for name in ("vocab", "width", "layers", "heads", "kv_heads", "hidden", "context"):
        if getattr(sizes, name) < 1:
            raise ValueError(f"sizes.{name} is {getattr(sizes, name)}; allowed: 1 and more")
    if sizes.width % sizes.heads or (sizes.width // sizes.heads) % 2:
        raise ValueError(f"sizes.heads is {sizes.heads}; it must divide width {sizes.width} into even parts")
    if sizes.heads % sizes.kv_heads:
        raise ValueError(f"sizes.kv_heads is {sizes.kv_heads}; it must divide the {sizes.heads} heads")

    def apply(params, tokens, valid, start: int = 0):
        chex.assert_equal_shape([tokens, valid])
        _fits(tokens.shape[1], sizes)
        causal = jnp.tril(jnp.ones((tokens.shape[1],) * 2, bool))
        angles = _angles(jnp.maximum(jnp.cumsum(valid, 1, jnp.int32) - 1, 0), sizes)
        sees = valid[:, None, :] & causal
        x = params["embed"][tokens]
        for layer in params["layers"]:
            query, key, value = _project(layer, x, angles, sizes)
            x = _feed(layer, x + _attend(query, key, value, sees) @ layer["out"], sizes)
        return _read(params, x[:, start:], sizes)

    def cache(rows, places):
        _fits(places, sizes)
        empty = jnp.zeros((rows, sizes.kv_heads, places, sizes.width // sizes.heads), jnp.float32)
        filled = jnp.zeros((rows, places), bool)
        return Cache((empty,) * sizes.layers, (empty,) * sizes.layers, filled, jnp.zeros((), jnp.int32))

    def extend(params, tokens, valid, cache):
        chex.assert_equal_shape([tokens, valid])
        rows, count = tokens.shape
        places = cache.valid.shape[1]
        if count > places:
            raise ValueError(f"{count} tokens do not fit into a cache of {places} places")
        before = jnp.sum(cache.valid, 1, keepdims=True, dtype=jnp.int32)
        angles = _angles(jnp.maximum(before + jnp.cumsum(valid, 1, jnp.int32) - 1, 0), sizes)
        filled = jax.lax.dynamic_update_slice(cache.valid, valid, (0, cache.used))
        causal = jnp.arange(places) <= cache.used + jnp.arange(count)[:, None]
        sees = filled[:, None, :] & causal
        x, keys, values = params["embed"][tokens], [], []
        put = lambda old, new: jax.lax.dynamic_update_slice(old, new, (0, 0, cache.used, 0))  # noqa: E731
        for layer, old_keys, old_values in zip(params["layers"], cache.keys, cache.values, strict=True):
            query, key, value = _project(layer, x, angles, sizes)
            keys.append(put(old_keys, key))
            values.append(put(old_values, value))
            x = _feed(layer, x + _attend(query, keys[-1], values[-1], sees) @ layer["out"], sizes)
        used = cache.used + count
        logits = jnp.where(used > places, jnp.nan, _read(params, x[:, -1], sizes))  # what did not fit was put elsewhere
        return logits, Cache(tuple(keys), tuple(values), filled, used)

    return Decoder(lambda key: _init(key, sizes), apply, cache, extend, sizes)


def _init(key, sizes):
    """Normal weights of variance 1 / inputs; those that write into the residual are smaller the deeper the decoder."""
    head = sizes.width // sizes.heads
    shapes = {
        "qkv": (sizes.width, (sizes.heads + 2 * sizes.kv_heads) * head),
        "out": (sizes.heads * head, sizes.width),
        "gate_up": (sizes.width, 2 * sizes.hidden),
        "down": (sizes.hidden, sizes.width),
    }
    shrunk = {"out": (2 * sizes.layers) ** -0.5, "down": (2 * sizes.layers) ** -0.5}

    def normal(key, shape, inputs, scale=1.0):
        return scale * inputs**-0.5 * jax.random.normal(key, shape, jnp.float32)

    keys, ones = jax.random.split(key, (sizes.layers + 1, len(shapes))), jnp.ones((sizes.width,), jnp.float32)
    layers = []
    for row in keys[:-1]:
        layer = {name: normal(k, shapes[name], shapes[name][0], shrunk.get(name, 1.0)) for name, k in zip(shapes, row)}
        layers.append(layer | {"bias": jnp.zeros(shapes["qkv"][1:]), "norm_in": ones, "norm_mid": ones})
    embed = normal(keys[-1, 0], (sizes.vocab, sizes.width), sizes.width)
    params = {"embed": embed, "layers": layers, "norm": ones}
    return params if sizes.tied else params | {"head": normal(keys[-1, 1], (sizes.width, sizes.vocab), sizes.width)}


def _fits(places, sizes):
    if places > sizes.context:
        raise ValueError(f"a row has {places} tokens; allowed: up to the context of {sizes.context}")


def _norm(scale, x, sizes):
    return x * jax.lax.rsqrt(jnp.mean(x**2, -1, keepdims=True) + sizes.epsilon) * scale


def _angles(positions, sizes):
    """Cosine and sine of the rotary angles, [B, 1, T, D / heads / 2]."""
    half = sizes.width // sizes.heads // 2
    wavelength = sizes.theta ** (jnp.arange(half, dtype=jnp.float32) / half)
    angle = positions[:, None, :, None].astype(jnp.float32) / wavelength
    return jnp.cos(angle), jnp.sin(angle)


def _rotate(x, angles):
    """Rotary positions: the first half of the features are the one coordinate, the second half the other."""
    (cos, sin), (one, two) = angles, jnp.split(x, 2, -1)
    return jnp.concatenate([one * cos - two * sin, two * cos + one * sin], -1)


def _project(layer, x, angles, sizes):
    """Queries [B, H, T, D / H], keys and values [B, K, T, D / H], positions put in."""
    rows, count, _ = x.shape
    both = (_norm(layer["norm_in"], x, sizes) @ layer["qkv"] + layer["bias"]).reshape(
        rows, count, -1, sizes.width // sizes.heads
    )
    both = jnp.moveaxis(both, 1, 2)
    query, key, value = jnp.split(both, [sizes.heads, sizes.heads + sizes.kv_heads], 1)
    return _rotate(query, angles), _rotate(key, angles), value


def _attend(query, key, value, sees):
    """Softmax attention, [B, T, D]; each head of keys serves its share of the queries."""
    rows, heads, count, size = query.shape
    query = query.reshape(rows, key.shape[1], -1, count, size)
    score = jnp.einsum("bkgtd,bksd->bkgts", query, key) / size**0.5
    weight = jax.nn.softmax(jnp.where(sees[:, None, None], score, MASKED), -1)
    mixed = jnp.einsum("bkgts,bksd->bkgtd", weight, value).reshape(rows, heads, count, size)
    return jnp.moveaxis(mixed, 1, 2).reshape(rows, count, heads * size)


def _feed(layer, x, sizes):
    gate, up = jnp.split(_norm(layer["norm_mid"], x, sizes) @ layer["gate_up"], 2, -1)
    return x + (jax.nn.silu(gate) * up) @ layer["down"]


def _read(params, x, sizes):
    """Logits, in float32."""
    x = _norm(params["norm"], x, sizes)
    return (x @ (params["embed"].T if sizes.tied else params["head"])).astype(jnp.float32)


def tensors(params: PyTree, sizes: Sizes) -> dict[str, np.ndarray]:
    """The parameters under the names and in the shapes of the `transformers` library's Qwen2.

    Args:
      params: of a decoder of these sizes.
      sizes: Sizes.
    Returns:
      Tensors by name; matrices are [outputs, inputs].
    """
    head = sizes.width // sizes.heads
    ends = [sizes.heads * head, (sizes.heads + sizes.kv_heads) * head]
    found = {"model.embed_tokens.weight": params["embed"], "model.norm.weight": params["norm"]}
    if not sizes.tied:
        found["lm_head.weight"] = params["head"].T
    for i, layer in enumerate(params["layers"]):
        at, parts = f"model.layers.{i}.", "qkv"
        for part, weight, bias in zip(parts, np.split(layer["qkv"], ends, 1), np.split(layer["bias"], ends)):
            found[f"{at}self_attn.{part}_proj.weight"] = weight.T
            found[f"{at}self_attn.{part}_proj.bias"] = bias
        gate, up = np.split(layer["gate_up"], 2, 1)
        found |= {
            f"{at}self_attn.o_proj.weight": layer["out"].T,
            f"{at}mlp.gate_proj.weight": gate.T,
            f"{at}mlp.up_proj.weight": up.T,
            f"{at}mlp.down_proj.weight": layer["down"].T,
            f"{at}input_layernorm.weight": layer["norm_in"],
            f"{at}post_attention_layernorm.weight": layer["norm_mid"],
        }
    return {name: np.ascontiguousarray(x, np.float32) for name, x in found.items()}


def from_tensors(found: dict[str, np.ndarray], sizes: Sizes, source: str = "tensors") -> PyTree:
    """The parameters of a decoder from tensors that have the names and shapes of `tensors`.

    Args:
      found: tensors by name.
      sizes: Sizes.
      source: what they were read from, for messages.
    Returns:
      params, float32.
    Raises:
      ValueError: for a missing, an unknown or a misshapen tensor, naming source, tensor, found and expected.
    """
    shapes = jax.eval_shape(lambda key: _init(key, sizes), jax.random.key(0))
    wanted = tensors(jax.tree.map(lambda x: np.zeros(x.shape, np.float32), shapes), sizes)
    for name in sorted(wanted.keys() | found.keys()):
        if name not in found:
            raise ValueError(f"{source}: tensor {name}: found none, expected shape {wanted[name].shape}")
        if name not in wanted:
            raise ValueError(f"{source}: tensor {name}: found shape {found[name].shape}, expected none of this name")
        if found[name].shape != wanted[name].shape:
            shape = found[name].shape
            raise ValueError(f"{source}: tensor {name}: found shape {shape}, expected {wanted[name].shape}")
        if not np.issubdtype(found[name].dtype, np.floating) and found[name].dtype.name != "bfloat16":
            raise ValueError(f"{source}: tensor {name}: found {found[name].dtype}, expected floating-point numbers")
    get = lambda *names: [np.asarray(found[name], np.float32) for name in names]  # noqa: E731
    layers = []
    for i in range(sizes.layers):
        at = f"model.layers.{i}."
        attention = [f"{at}self_attn.{part}_proj." for part in "qkv"]
        (out, down, norm_in, norm_mid) = get(
            f"{at}self_attn.o_proj.weight", f"{at}mlp.down_proj.weight", f"{at}input_layernorm.weight",
            f"{at}post_attention_layernorm.weight",
        )  # fmt: skip
        layers.append({
            "qkv": np.concatenate(get(*[name + "weight" for name in attention])).T,
            "bias": np.concatenate(get(*[name + "bias" for name in attention])),
            "out": out.T,
            "gate_up": np.concatenate(get(f"{at}mlp.gate_proj.weight", f"{at}mlp.up_proj.weight")).T,
            "down": down.T,
            "norm_in": norm_in,
            "norm_mid": norm_mid,
        })  # fmt: skip
    embed, norm = get("model.embed_tokens.weight", "model.norm.weight")
    params = {"embed": embed, "layers": layers, "norm": norm}
    params = params if sizes.tied else params | {"head": get("lm_head.weight")[0].T}
    return jax.tree.map(jnp.asarray, params)


def save(path: Path | str, params: PyTree, sizes: Sizes) -> None:
    """Write the parameters as a safetensors file that the `transformers` library reads.

    Args:
      path: of the file.
      params: of a decoder of these sizes.
      sizes: Sizes.
    """
    from safetensors import numpy as safetensors

    params = jax.tree.map(np.asarray, params)
    safetensors.save_file(tensors(params, sizes), path, metadata={"format": "pt"})


def load(path: Path | str, sizes: Sizes) -> PyTree:
    """Read the parameters of a decoder from a safetensors file.

    Args:
      path: of the file.
      sizes: Sizes that it should have.
    Returns:
      params, float32.
    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: as `from_tensors`, naming the file; or if it is no safetensors file.
    """
    import safetensors
    from safetensors import numpy as of_numpy

    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        found = of_numpy.load_file(path)
    except safetensors.SafetensorError as error:
        raise ValueError(f"{path} is not a safetensors file: {error}") from error
    return from_tensors(found, sizes, str(path))
