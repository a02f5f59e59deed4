"""Fine-tuning a flow policy by PPO through its denoising steps: a compiled loop in MJX, or PyTorch over CPU simulators.

Run:      python -m experiments.benchmarks.finetune   (needs torch and gymnasium; without: --only jaxrl_gen)
Hardware: any; the figures recorded in experiments/results/benchmark_finetune.json name theirs
Minutes:  about 5 on 2 CPU cores
Expect:   environment steps per second: medians over rounds, ratios to jaxrl_gen, compile seconds, peak memory

Both sides push a puck around a hole (`envs/tasks/fork.xml`): 64 lanes, 12 decisions of ten steps each per update, each
decision made in 8 denoising steps; then 4 epochs of 8 minibatches over all steps of all chains, with Adam. In PyTorch
the same MJCF is stepped by MuJoCo itself in gymnasium's vector of environments, both substeps in one call; it uses one
thread or all, whichever was faster at its first updates. `simulator alone` takes random actions and learns nothing.
"""

import importlib.util
import math
import time
from functools import partial

from experiments.benchmarks._sides import Benchmark, compare, figures, timed, trained

LANES, DECISIONS, CHUNK, SIZE, STEPS, NOISE = 64, 12, 10, 20, 8, 0.4
EPOCHS, MINIBATCHES, LR, CLIP, GAMMA, LAM = 4, 8, 3e-4, 0.1, 0.99, 0.95
UPDATES = 4  # to a measurement


# ------------------------------------------------------------------------------------------ one compiled loop, in MJX


def lanes():
    """The fork in chunks of ten steps, in 64 lanes that reset themselves."""
    from jaxrl_gen.envs import wrap
    from jaxrl_gen.envs.tasks import fork

    return wrap.pooled(wrap.action_chunk(fork.make(), CHUNK), LANES)


def ours(units: int) -> dict:
    import jax
    import jax.numpy as jnp

    from jaxrl_gen import distributions, loops, nets
    from jaxrl_gen.algos import ppo

    net = nets.mlp((units, units, SIZE), activation=jax.nn.silu)

    def velocity(params, x, t, obs):
        t = t[..., None]
        return net.apply(params, jnp.concatenate([x, t, jnp.sin(jnp.pi * t), 3.0 * obs], -1))

    init = lambda key: net.init(key, jax.ShapeDtypeStruct((SIZE + 6,), jnp.float32))
    head = distributions.flow_head(velocity, init, SIZE, 4, steps=STEPS, noise=NOISE)
    make = partial(ppo.make, actor=nets.Net(lambda key, example: {}, lambda params, x: x), head=head)
    cfg = ppo.Config(
        lr=LR, clip=CLIP, gamma=GAMMA, lam=LAM, epochs=EPOCHS, minibatches=MINIBATCHES, normalize_obs=False
    )
    loop = loops.on_policy(make, lanes(), steps=DECISIONS, iterations=UPDATES)
    told = trained(loop, cfg, chunks=1, metric="episode/return")
    return told | {"steps_per_second": CHUNK * told["steps_per_second"]}  # the loop counts decisions


def simulator_ours() -> dict:
    import jax

    env = lanes()

    def step(state, key):
        key_action, key_step = jax.random.split(key)
        action = jax.random.uniform(key_action, (LANES, SIZE), minval=-1.0)
        state, _, outcome = env.step(state, action, jax.random.split(key_step, LANES))
        return state, outcome.reward

    whole = lambda state, key: jax.lax.scan(step, state, jax.random.split(key, UPDATES * DECISIONS))
    state, start = jax.jit(env.reset)(jax.random.key(0))[0], time.perf_counter()
    run = jax.jit(whole).lower(state, jax.random.key(1)).compile()
    compile_seconds = time.perf_counter() - start
    return figures(compile_seconds, UPDATES * LANES * DECISIONS * CHUNK, timed(lambda: run(state, jax.random.key(1))))


# --------------------------------------------------------------------------- PyTorch over MuJoCo's simulator on the CPU


def vector():
    """The same task for gymnasium: 64 environments, stepped in turn, that reset themselves where an episode ends."""
    import gymnasium as gym
    import mujoco
    import numpy as np

    from jaxrl_gen.envs.tasks import fork

    class Fork(gym.Env):
        """The fork in chunks of ten steps, by MuJoCo itself."""

        observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
        action_space = gym.spaces.Box(-1.0, 1.0, (SIZE,), np.float32)

        def __init__(self):
            self.model = mujoco.MjModel.from_xml_path(str(fork.MJCF))
            self.data = mujoco.MjData(self.model)

        def observe(self):
            return np.concatenate([self.data.qpos, self.data.qvel]).astype(np.float32)

        def reset(self, *, seed=None, options=None):
            super().reset(seed=seed)
            mujoco.mj_resetData(self.model, self.data)
            self.data.qpos[:] = self.np_random.normal(size=2) * 0.05 + (fork.START, 0.0)
            self.decisions = 0
            return self.observe(), {}

        def step(self, action):
            total, fallen = 0.0, False
            for force in fork.FORCE * action.reshape(CHUNK, 2):
                self.data.ctrl[:] = force
                mujoco.mj_step(self.model, self.data, 2)
                along, across = self.data.qpos
                total += 1.0 / (1.0 + ((along - fork.RING) ** 2 + across**2) / 0.3**2)
                fallen = along**2 + across**2 < fork.HOLE**2
                if fallen:
                    break
            self.decisions += 1
            return self.observe(), total, fallen, self.decisions == DECISIONS and not fallen, {}

    return gym.vector.SyncVectorEnv([Fork] * LANES, autoreset_mode=gym.vector.AutoresetMode.SAME_STEP)


def torch_policy(units: int):
    """A flow policy and a critic: (what draws chains, what scores them, the critic, their parameters)."""
    import torch
    from torch import nn

    velocity = nn.Sequential(
        nn.Linear(SIZE + 6, units), nn.SiLU(), nn.Linear(units, units), nn.SiLU(), nn.Linear(units, SIZE)
    )
    critic = nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 1))
    times = torch.arange(STEPS) / STEPS
    std, one, constant = NOISE * ((1 - times) / STEPS) ** 0.5, torch.ones(()), 0.5 * math.log(2 * math.pi)

    def mean(x, t, obs):
        """Where the next step of the chain is expected, of x [..., 20], t [...] and obs [..., 4]."""
        t = t[..., None]
        v = velocity(torch.cat([x, t, torch.sin(math.pi * t), 3.0 * obs], -1))
        return x + (v - 0.5 * NOISE**2 * (x - t * v)) / STEPS

    def density(x, mean, std):
        return (-0.5 * ((x - mean) / std) ** 2 - torch.log(std) - constant).sum(-1)

    def draw(obs):
        """Chains [B, 9, 20] and their log-probabilities [B]."""
        chain = [torch.randn(len(obs), SIZE)]
        log_prob = density(chain[0], 0.0, one)
        for k in range(STEPS):
            expected = mean(chain[-1], times[k].expand(len(obs)), obs)
            chain.append(expected + std[k] * torch.randn_like(expected))
            log_prob = log_prob + density(chain[-1], expected, std[k])
        return torch.stack(chain, 1), log_prob

    def score(chain, obs):
        """The log-probabilities of given chains, all steps at once."""
        before, after = chain[:, :-1], chain[:, 1:]
        expected = mean(before, times.expand(len(obs), -1), obs[:, None].expand(-1, STEPS, -1))
        return density(after, expected, std[:, None]).sum(-1) + density(chain[:, 0], 0.0, one)

    return draw, score, critic, [*velocity.parameters(), *critic.parameters()]


def in_torch(units: int) -> dict:
    import os

    import numpy as np
    import torch

    torch.manual_seed(0)
    draw, score, critic, params = torch_policy(units)
    optimizer = torch.optim.Adam(params, LR, eps=1e-5, fused=True)
    envs = vector()
    seen, returns, so_far = [envs.reset(seed=0)[0]], [], np.zeros(LANES)

    @torch.inference_mode()
    def collect():
        rows = []
        for _ in range(DECISIONS):
            obs = torch.from_numpy(seen[0])
            chain, log_prob = draw(obs)
            after, reward, terminated, truncated, info = envs.step(chain[:, -1].clamp(-1, 1).numpy())
            last, over = after.copy(), terminated | truncated
            for i in np.flatnonzero(over):
                last[i] = info["final_obs"][i]
            so_far[:] += reward
            returns.extend(so_far[over])
            so_far[over] = 0.0
            rows.append((obs, chain, log_prob, *(torch.tensor(x) for x in (reward, last, terminated, over))))
            seen[0] = after
        obs, chain, log_prob, reward, last, terminated, over = (torch.stack(x) for x in zip(*rows))
        value, following = critic(obs)[..., 0], critic(last)[..., 0]
        error = reward.float() + GAMMA * following * ~terminated - value
        advantage, ahead = torch.zeros_like(error), torch.zeros(LANES)
        for i in reversed(range(DECISIONS)):
            ahead = advantage[i] = error[i] + GAMMA * LAM * ahead * ~over[i]
        target = advantage + value
        advantage = (advantage - advantage.mean()) / (advantage.std(correction=0) + 1e-8)
        return [x.flatten(0, 1) for x in (obs, chain, log_prob, advantage, target)]

    def update():
        rows = [x.clone() for x in collect()]
        for _ in range(EPOCHS):
            for chosen in torch.randperm(LANES * DECISIONS).chunk(MINIBATCHES):
                obs, chain, old, advantage, target = (x[chosen] for x in rows)
                ratio = torch.exp(score(chain, obs) - old)
                policy = -torch.minimum(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
                error = 0.5 * (critic(obs)[:, 0] - target) ** 2
                loss = (policy + 0.5 * error).mean()
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_(params, 0.5)
                optimizer.step()

    def slowness(threads):
        torch.set_num_threads(threads)
        return timed(update, 1)[0]

    update()
    threads = min({1, os.cpu_count()}, key=slowness)  # several wait for each other where other work runs beside
    torch.set_num_threads(threads)
    seconds, last = timed(lambda: [update() for _ in range(UPDATES)]), float(np.mean(returns[-LANES:]))
    return figures(0.0, UPDATES * LANES * DECISIONS * CHUNK, seconds, last=last, threads=threads)


def simulator_torch() -> dict:
    import numpy as np

    envs, rng = vector(), np.random.default_rng(0)
    envs.reset(seed=0)

    def run():
        for _ in range(DECISIONS):
            envs.step(rng.uniform(-1.0, 1.0, (LANES, SIZE)).astype(np.float32))

    return figures(0.0, LANES * DECISIONS * CHUNK, timed(run, 5))


SIDES = {  # name: what to run; the first side of each task is the one that ratios are taken to
    "2 x 256 units | jaxrl_gen": partial(ours, 256),
    "2 x 256 units | PyTorch": partial(in_torch, 256),
    "2 x 64 units | jaxrl_gen": partial(ours, 64),
    "2 x 64 units | PyTorch": partial(in_torch, 64),
    "simulator alone | jaxrl_gen": simulator_ours,
    "simulator alone | PyTorch": simulator_torch,
}


if __name__ == "__main__":
    import tyro

    benchmark = tyro.cli(Benchmark, description=__doc__)
    wanted = [name for name in SIDES if benchmark.only in name and benchmark.side in ("", name)]
    if any("PyTorch" in name for name in wanted):
        for package in ("torch", "gymnasium"):
            if not importlib.util.find_spec(package):
                raise SystemExit(f"error: {package} is not installed: pip install {package}, or --only jaxrl_gen")
    compare(benchmark, SIDES, "finetune")
