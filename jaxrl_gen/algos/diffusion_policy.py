"""Diffusion policy: chunks of actions cloned by a denoiser, planned from the latest observations, executed in part.

Reference: Chi et al. 2023, arXiv 2303.04137. Different from the paper: observations are normalised by running
statistics that the State holds, and what is beyond an episode's end is masked out of the loss, where the paper repeats
the last action and learns it. Actions are in [-1, 1] by the Spec.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl_gen import nets, normalize, samplers
from jaxrl_gen.algos import descent
from jaxrl_gen.losses import denoise
from jaxrl_gen.types import Algorithm, PyTree, Spec, config, leaf, static


@config
class Config:
    """Hyper-parameters of policies that denoise chunks of actions; floats are leaves and never recompile."""

    lr: float = leaf(1e-4, low=0.0)
    warmup: float = leaf(500.0, low=1.0)  # updates until the learning rate is whole
    lr_updates: float = leaf(jnp.inf, low=1.0)  # it falls to zero as half a cosine over so many; infinite: it stays
    weight_decay: float = leaf(1e-6, low=0.0)
    adam_epsilon: float = leaf(1e-8, low=0.0)
    average_power: float = leaf(0.75, low=0.0, high=1.0)  # the average forgets 1 / (1 + updates)^power of itself ...
    average_least: float = leaf(1e-4, low=0.0, high=1.0)  # ... per update, but no less than this
    history: int = static(2, low=1)  # To, observations seen
    horizon: int = static(16, low=1)  # H, actions planned, the first at the time of the first observation
    execute: int = static(8, low=1)  # Ta, actions executed before the next look
    steps: int = static(100, low=1)  # of the sampler
    channels: tuple[int, ...] = static((256, 512, 1024))  # of the U-Net's levels
    kernel: int = static(5, low=1)
    time_width: int = static(256, low=4)
    normalize_obs: bool = static(True)  # by statistics of the windows learned from


class State(NamedTuple):
    """What cloning by a denoiser changes."""

    params: PyTree
    average: PyTree  # of the parameters over updates: what acts
    opt_state: PyTree
    normalizer: normalize.Normalizer
    updates: jax.Array  # f32, windows' batches learned from


def make(
    cfg: Config,
    spec: Spec,
    *,
    net: nets.Net | None = None,
    process: denoise.Process | None = None,
    kind: Callable = denoise.eps,
    sampler: samplers.Sampler | None = None,
    spacing: Callable = samplers.leading,
) -> Algorithm:
    """Diffusion policy as pure functions; call it inside jit, so that `cfg` is traced.

    Args:
      cfg: Config.
      spec: of one lane, with continuous actions.
      net: denoiser, a Net on `nets.Noisy` whose x is [H, A] and whose condition is the observations [To, ...]; default:
        `nets.unet1d`.
      process: from data to noise; default: 100 steps of squared-cosine noise, `denoise.ddpm`.
      kind: what the denoiser predicts.
      sampler: from noise to actions; default: `samplers.ddpm()`. `samplers.ddim()` with ten steps is ten times faster.
      spacing: the times of the sampler's steps.
    Returns:
      Algorithm with memory, whose batch has `obs` [B, To, ...], `action` [B, H, A] and `valid` [B, H], as
      `data.sampling.windows` draws them.
    Raises:
      ValueError: if actions are discrete, the horizon is too short for what is executed, or sampler, process, steps,
        spacing and kind do not belong together; from `update`, if windows are of another history or horizon.
    """
    if spec.discrete:
        raise ValueError(f"a denoiser needs continuous actions; this environment has {spec.action_size} discrete ones")
    net = net or nets.unet1d(cfg.channels, cfg.kernel, cfg.time_width)
    process = process or denoise.ddpm(denoise.cosine_betas(100))
    sampler = sampler or samplers.ddpm()
    samplers.belong(sampler, process, kind, cfg.steps, spacing)
    several = lambda leaf: jax.ShapeDtypeStruct((cfg.history, *leaf.shape), leaf.dtype)
    float32 = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    noisy = nets.Noisy(float32(cfg.horizon, spec.action_size), float32(), jax.tree.map(several, spec.obs))
    adam = optax.scale_by_adam(b1=0.95, eps=cfg.adam_epsilon)
    optimizer = optax.chain(adam, optax.add_decayed_weights(cfg.weight_decay))

    def init(key):
        params = net.init(key, noisy)
        normalizer = normalize.init(spec.obs if cfg.normalize_obs else ())
        return State(
            params, jax.tree.map(jnp.copy, params), optimizer.init(params), normalizer, jnp.zeros((), jnp.float32)
        )

    def denoiser(params, normalizer, obs):
        condition = normalize.apply(normalizer, obs) if cfg.normalize_obs else obs
        return lambda x, t: net.apply(params, nets.Noisy(x, t, condition))

    def drawn(state, past, key):
        """Chunks of actions [B, H, A]."""
        key_start, key_steps = jax.random.split(key)
        lanes = jax.tree.leaves(past)[0].shape[0]
        start = jax.random.normal(key_start, (lanes, cfg.horizon, spec.action_size))
        chunk = samplers.sample(
            sampler, denoiser(state.average, state.normalizer, past), start, key_steps, process=process, kind=kind,
            steps=cfg.steps, spacing=spacing, on_data=lambda data, x, t: jnp.clip(data, -1.0, 1.0),
        )  # fmt: skip
        return jnp.clip(chunk, -1.0, 1.0)

    def plan(state, past, key):
        """Without a key, of the same noise every time and in every lane: zero would lie between two modes."""
        if key is not None:
            return drawn(state, past, key), {}
        lane = lambda past: drawn(state, jax.tree.map(lambda x: x[None], past), jax.random.key(0))[0]
        return jax.vmap(lane)(past), {}

    def loss(params, normalizer, batch, key):
        predict = denoiser(params, normalizer, batch.obs)
        error, metrics = denoise.denoising(predict, batch.action, key, process=process, kind=kind, valid=batch.valid)
        return descent.valid_mean(error, jnp.any(batch.valid, axis=-1)), metrics

    def update(state, batch, key):
        _check_windows(batch, cfg, spec)
        normalizer = state.normalizer
        if cfg.normalize_obs:
            seen = jnp.ones((batch.valid.shape[0], cfg.history), bool)
            normalizer = normalize.update(normalizer, batch.obs, seen)
        grads, metrics = jax.grad(loss, has_aux=True)(state.params, normalizer, batch, key)
        norm = optax.tree.norm(grads)
        ok = jnp.isfinite(norm)  # a non-finite gradient leaves no trace
        kept = lambda new, old: jax.tree.map(lambda x, y: jnp.where(ok, x, y), new, old)
        step, opt_state = optimizer.update(grads, state.opt_state, state.params)
        lr = cfg.lr * jnp.minimum((state.updates + 1.0) / cfg.warmup, 1.0)
        lr *= 0.5 + 0.5 * jnp.cos(jnp.pi * jnp.minimum(state.updates / cfg.lr_updates, 1.0))
        params = kept(jax.tree.map(lambda x, y: x - lr * y, state.params, step), state.params)
        share = jnp.maximum((1.0 + state.updates) ** -cfg.average_power, cfg.average_least)
        average = optax.incremental_update(params, state.average, share)
        metrics |= {"denoise/lr": lr, "guard/skipped_updates": 1.0 - ok, "guard/grad_norm": norm}
        return State(params, average, kept(opt_state, state.opt_state), normalizer, state.updates + 1.0), metrics

    return samplers.chunked(
        Algorithm(init, update, plan), spec, history=cfg.history, horizon=cfg.horizon, execute=cfg.execute
    )


def _check_windows(batch, cfg: Config, spec: Spec) -> None:
    """Refuse windows of other lengths than those planned with: many a denoiser would take them, and learn the wrong."""
    expected = {"obs": (cfg.history,), "action": (cfg.horizon, spec.action_size), "valid": (cfg.horizon,)}
    found = {"obs": jax.tree.leaves(batch.obs)[0].shape[1:2], "action": batch.action.shape[1:]}
    found["valid"] = batch.valid.shape[1:]
    for field, shape in expected.items():
        if found[field] != shape:
            raise ValueError(
                f"windows have {field} [B, {', '.join(map(str, found[field]))}, ...]; expected "
                f"[B, {', '.join(map(str, shape))}, ...] of history {cfg.history} and horizon {cfg.horizon}"
            )
