"""Denoisers' speed: diffusion policy's U-Net against PyTorch and diffusers, and FQL against a single-file loop.

Run:      python -m experiments.benchmarks.denoise   (needs the extra bench, and torch and diffusers where installed)
Hardware: any; the figures recorded in experiments/results/benchmark_denoise.json name theirs
Minutes:  about 10 on 2 CPU cores
Expect:   samples or updates per second: medians over rounds, ratios to jaxrl_gen, compile seconds, peak memory

The U-Net has 65.8 M parameters (256, 512 and 1024 channels, kernels of 5), chunks of 16 steps of 2 numbers, and 2
observations of 20 numbers; 10 steps of DDIM of 100 levels make one sample, and a training step has a batch of 256 and
AdamW. FQL has networks of 4 x 512 units, batches of 256, and 10 steps of the flow; its single-file loop is written the
way reference agents are: a NumPy batch per update, and one jitted update with a joint loss and Adam. The table's steps
are calls of the sampler (for a whole batch), or updates.
"""

import importlib.util
import time
from functools import partial

from experiments.benchmarks._sides import Benchmark, compare, figures, timed, trained

HORIZON, ACTIONS, FEATURES, STEPS, LEVELS, BATCH = 16, 2, 20, 10, 100, 256
CHANNELS, KERNEL, TIME, GROUPS = (256, 512, 1024), 5, 256, 8


# ------------------------------------------------------------------------------------------------ the U-Net, in JAX


def windows(batch: int):
    """Windows of noise."""
    import jax

    from jaxrl_gen.data.sampling import Windows

    keys = jax.random.split(jax.random.key(0), 2)
    obs = jax.random.normal(keys[0], (batch, 2, FEATURES))
    action = jax.random.uniform(keys[1], (batch, HORIZON, ACTIONS), minval=-1.0)
    return Windows(obs, action, jax.numpy.ones((batch, HORIZON), bool))


def policy():
    """(diffusion policy with DDIM, its State)."""
    import jax

    from jaxrl_gen import samplers, types
    from jaxrl_gen.algos import diffusion_policy

    spec = types.Spec(jax.ShapeDtypeStruct((FEATURES,), "float32"), ACTIONS)
    cfg = types.strong(diffusion_policy.Config(steps=STEPS, normalize_obs=False))
    algo = diffusion_policy.make(cfg, spec, sampler=samplers.ddim())
    return algo, jax.jit(algo.init)(jax.random.key(0))


def sample_ours(batch: int) -> dict:
    import jax

    from jaxrl_gen.types import Recalled

    algo, state = policy()
    obs, key = Recalled(windows(batch).obs[:, 0], algo.memory(batch)), jax.random.key(1)
    start = time.perf_counter()
    act = jax.jit(algo.act).lower(state, obs, key).compile()  # the first act of an episode plans
    compile_seconds = time.perf_counter() - start
    jax.block_until_ready(act(state, obs, key))
    return figures(compile_seconds, 1, timed(lambda: act(state, obs, key), 10))


def train_ours() -> dict:
    import jax

    algo, state = policy()
    batch, key, kept = windows(BATCH), jax.random.key(1), [state]
    start = time.perf_counter()
    update = jax.jit(algo.update, donate_argnums=0).lower(state, batch, key).compile()
    compile_seconds = time.perf_counter() - start

    def step():
        kept[0], metrics = update(kept[0], batch, key)
        return metrics

    jax.block_until_ready(step())
    return figures(compile_seconds, 1, timed(step, 5))


# --------------------------------------------------------------------------------------------- the same in PyTorch


def torch_unet():
    """The same network: the numbers of parameters are compared."""
    import math

    import torch
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inside, out):
            super().__init__()
            self.conv, self.norm = nn.Conv1d(inside, out, KERNEL, padding=KERNEL // 2), nn.GroupNorm(GROUPS, out)

        def forward(self, x):
            return nn.functional.mish(self.norm(self.conv(x)))

    class Residual(nn.Module):
        def __init__(self, inside, out):
            super().__init__()
            self.first, self.second = Block(inside, out), Block(out, out)
            self.film = nn.Linear(TIME + 2 * FEATURES, 2 * out)
            self.shortcut = nn.Conv1d(inside, out, 1) if inside != out else nn.Identity()

        def forward(self, x, condition):
            scale, offset = self.film(nn.functional.mish(condition))[..., None].chunk(2, 1)
            return self.second(self.first(x) * scale + offset) + self.shortcut(x)

    class UNet(nn.Module):
        def __init__(self):
            super().__init__()
            self.time = nn.Sequential(nn.Linear(TIME, 4 * TIME), nn.Mish(), nn.Linear(4 * TIME, TIME))
            inside = (ACTIONS, *CHANNELS)
            self.down = nn.ModuleList(Residual(inside[i + k], CHANNELS[i]) for i in range(3) for k in (0, 1))
            self.shorter = nn.ModuleList(nn.Conv1d(c, c, 3, 2, 1) for c in CHANNELS[:-1])
            self.middle = nn.ModuleList(Residual(CHANNELS[-1], CHANNELS[-1]) for _ in range(2))
            self.up = nn.ModuleList(
                Residual((2 * CHANNELS[i + 1], CHANNELS[i])[k], CHANNELS[i]) for i in (1, 0) for k in (0, 1)
            )
            self.longer = nn.ModuleList(nn.ConvTranspose1d(c, c, 4, 2, 1) for c in CHANNELS[-2::-1])
            self.last = nn.Sequential(Block(CHANNELS[0], CHANNELS[0]), nn.Conv1d(CHANNELS[0], ACTIONS, 1))

        def forward(self, x, level, obs):
            frequency = torch.exp(-math.log(1e4) * torch.linspace(0, 1, TIME // 2))
            phase = level[:, None] * frequency
            condition = torch.cat([self.time(torch.cat([phase.sin(), phase.cos()], -1)), obs], -1)
            x, kept = x.transpose(1, 2), []
            for i in range(3):
                x = self.shorter[i - 1](x) if i else x
                x = self.down[2 * i + 1](self.down[2 * i](x, condition), condition)
                kept.append(x)
            for block in self.middle:
                x = block(x, condition)
            for i in range(2):
                x = torch.cat([x, kept.pop()], 1)
                x = self.longer[i](self.up[2 * i + 1](self.up[2 * i](x, condition), condition))
            return self.last(x).transpose(1, 2)

    torch.manual_seed(0)
    torch.set_num_threads(2)
    return UNet()


def sample_torch(batch: int) -> dict:
    import torch
    from diffusers import DDIMScheduler

    net = torch_unet().eval()
    scheduler = DDIMScheduler(LEVELS, beta_schedule="squaredcos_cap_v2", clip_sample=True)
    scheduler.set_timesteps(STEPS)
    obs = torch.randn(batch, 2 * FEATURES)

    @torch.inference_mode()
    def act():
        x = torch.randn(batch, HORIZON, ACTIONS)
        for level in scheduler.timesteps:
            x = scheduler.step(net(x, level.expand(batch).float(), obs), level, x).prev_sample
        return x.numpy()

    act()
    return figures(0.0, 1, timed(act, 10))


def train_torch() -> dict:
    import torch
    from diffusers import DDPMScheduler

    net = torch_unet()
    average = [x.detach().clone() for x in net.parameters()]
    optimizer = torch.optim.AdamW(net.parameters(), 1e-4, betas=(0.95, 0.999), weight_decay=1e-6)
    scheduler = DDPMScheduler(LEVELS, beta_schedule="squaredcos_cap_v2")
    obs, action = torch.randn(BATCH, 2 * FEATURES), torch.rand(BATCH, HORIZON, ACTIONS) * 2 - 1

    def step():
        noise, level = torch.randn_like(action), torch.randint(0, LEVELS, (BATCH,))
        loss = torch.nn.functional.mse_loss(net(scheduler.add_noise(action, noise, level), level.float(), obs), noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            torch._foreach_lerp_(average, list(net.parameters()), 0.01)
        return float(loss)

    step()
    return figures(0.0, 1, timed(step, 5))


# ---------------------------------------------------------------------------------------------------------------- FQL

ROWS, WIDTHS, SIZES = 100_000, (512,) * 4, (28, 5)  # rows of data; units; numbers of an observation and of an action


def synthetic():
    """Rows of normal numbers, with ends: a Transition of NumPy arrays."""
    import numpy as np

    from jaxrl_gen.types import Transition

    rng = np.random.default_rng(0)
    draw = lambda *more: rng.normal(size=(ROWS, *more)).astype(np.float32)
    ends = rng.random((2, ROWS)) < 0.002
    obs, following, action = draw(SIZES[0]), draw(SIZES[0]), np.tanh(draw(SIZES[1]))
    return Transition(obs, action, draw(), following, ends[0], ends[1] & ~ends[0], np.ones(ROWS, bool))


def fql_ours() -> dict:
    import jax

    from jaxrl_gen import loops
    from jaxrl_gen.algos import fql
    from jaxrl_gen.types import Env, Spec

    env = Env(None, None, Spec(jax.ShapeDtypeStruct(SIZES[:1], "float32"), SIZES[1]))

    def sample(rows, key):
        chosen = jax.random.randint(key, (BATCH,), 0, ROWS)
        return jax.tree.map(lambda x: x[chosen][None], rows)

    loop = loops.offline(fql.make, env, sample, (jax.device_put(synthetic()),), updates=50)
    return trained(loop, fql.Config(), chunks=2, metric="critic/loss")


def fql_single_file() -> dict:
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    class MLP(nn.Module):
        out: int
        norm: bool = False

        @nn.compact
        def __call__(self, *x):
            x = jnp.concatenate(x, -1)
            for width in WIDTHS:
                x = nn.gelu(nn.Dense(width)(x))
                x = nn.LayerNorm()(x) if self.norm else x
            return nn.Dense(self.out)(x)

    many = nn.vmap(MLP, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=2)
    critic, flow, actor = many(1, True), MLP(SIZES[1]), MLP(SIZES[1])
    obs, action, t = (jnp.zeros((1, n)) for n in (*SIZES, 1))
    keys = jax.random.split(jax.random.key(0), 3)
    params = {
        "critic": critic.init(keys[0], obs, action), "flow": flow.init(keys[1], obs, action, t),
        "actor": actor.init(keys[2], obs, action),
    }  # fmt: skip
    optimizer = optax.adam(3e-4)
    state = params, params["critic"], optimizer.init(params), jax.random.key(1)

    def loss(params, frozen, target_critic, batch, key):
        obs, action, reward, following, mask = batch
        keys = jax.random.split(key, 4)
        normal = lambda key: jax.random.normal(key, action.shape)
        next_action = jnp.clip(actor.apply(frozen["actor"], following, normal(keys[0])), -1, 1)
        target = reward + 0.99 * mask * critic.apply(target_critic, following, next_action).mean(0)[:, 0]
        error = (critic.apply(params["critic"], obs, action)[..., 0] - target) ** 2
        start, t = normal(keys[1]), jax.random.uniform(keys[2], (BATCH, 1))
        velocity = flow.apply(params["flow"], obs, (1 - t) * start + t * action, t)
        noise = taught = normal(keys[3])
        for k in range(STEPS):
            taught += flow.apply(frozen["flow"], obs, taught, jnp.full((BATCH, 1), k / STEPS)) / STEPS
        student = actor.apply(params["actor"], obs, noise)
        distance = (student - jnp.clip(taught, -1, 1)) ** 2
        value = critic.apply(frozen["critic"], obs, jnp.clip(student, -1, 1))
        return error.mean() + ((velocity - (action - start)) ** 2).mean() + 10.0 * distance.mean() - value.mean()

    @jax.jit
    def update(state, batch):
        params, target_critic, opt_state, key = state
        key, key_loss = jax.random.split(key)
        value, grads = jax.value_and_grad(loss)(params, params, target_critic, batch, key_loss)
        steps, opt_state = optimizer.update(grads, opt_state)
        params = optax.apply_updates(params, steps)
        return (params, optax.incremental_update(params["critic"], target_critic, 0.005), opt_state, key), value

    rows, rng = synthetic(), np.random.default_rng(0)
    columns = rows.obs, rows.action, rows.reward, rows.next_obs, 1.0 - rows.terminated.astype(np.float32)
    kept = [state]

    def run(count=100):
        for _ in range(count):
            chosen = rng.integers(0, ROWS, BATCH)
            kept[0], value = update(kept[0], tuple(x[chosen] for x in columns))
        return value

    start = time.perf_counter()
    jax.block_until_ready(run(1))
    compile_seconds = time.perf_counter() - start
    return figures(compile_seconds, 100, timed(run))


PYTORCH = {
    "DDIM-10, batch 1 | PyTorch and diffusers": partial(sample_torch, 1),
    "DDIM-10, batch 64 | PyTorch and diffusers": partial(sample_torch, 64),
    "training step, batch 256 | PyTorch and diffusers": train_torch,
}
SIDES = {  # name: what to run; the first side of each task is the one that ratios are taken to
    "DDIM-10, batch 1 | jaxrl_gen": partial(sample_ours, 1),
    "DDIM-10, batch 64 | jaxrl_gen": partial(sample_ours, 64),
    "training step, batch 256 | jaxrl_gen": train_ours,
    "FQL, 4 x 512 | jaxrl_gen": fql_ours,
    "FQL, 4 x 512 | a single-file loop": fql_single_file,
}
if importlib.util.find_spec("torch") and importlib.util.find_spec("diffusers"):
    SIDES = SIDES | PYTORCH


if __name__ == "__main__":
    import tyro

    compare(tyro.cli(Benchmark, description=__doc__), SIDES, "denoise")
