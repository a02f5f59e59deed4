"""A flow policy cloned from a slow teacher who goes both ways, then improved online by PPO through its denoising steps.

Run:      python -m experiments.flow_ppo_fork
Method:   ppo on flow_head; ppo: --policy gaussian; ppo: --policy scratch
Hardware: AMD EPYC, 2 cores, jax 0.10.2
Minutes:  12.1
Expect:   mean return of 64 episodes: IQM 41.31, 95 % interval 39.85 to 43.24, over 5 seeds

Demonstrations, cloning and PPO are one compiled program for all seeds: cloning happens in `init`. Compare with
`--policy gaussian`, a tanh-normal policy cloned from the same demonstrations, `--policy scratch`, the same policy from
nothing, and `--algo.lr 0 --chunks 1`, which is the clone before it is improved.
"""

import dataclasses
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp
import optax

from jaxrl_gen import distributions, launch, loops, nets
from jaxrl_gen.algos import ppo
from jaxrl_gen.envs import wrap
from jaxrl_gen.envs.tasks import fork
from jaxrl_gen.losses import denoise
from jaxrl_gen.types import leaf, static

IDENTITY = nets.Net(lambda key, example: {}, lambda params, x: x)  # an actor that leaves all to its head


@dataclasses.dataclass(frozen=True)
class FlowPPO(launch.Experiment):
    """Cloning, then PPO, on the fork."""

    name: str = launch.option("flow_ppo_fork")
    seeds: int = 5
    eval_sample: bool = launch.option(True)  # a policy of two modes has no best single action
    total_steps: float = launch.option(1.5e5, low=1)  # decisions of ten steps each
    policy: Literal["flow", "gaussian", "scratch"] = static("flow")
    lanes: int = static(64, low=1)
    chunk: int = static(10, low=1)  # actions decided at once: who decides anew at every step never commits to a side
    steps: int = static(12, low=1)  # decisions per lane and update
    demonstrations: int = static(256, low=2)  # episodes, half of them to each side
    clone_updates: int = static(6000, low=0)
    denoising_steps: int = static(8, low=1)
    noise: float = leaf(0.4, low=1e-3)  # of the denoising steps
    algo: ppo.Config = ppo.Config(
        lr=3e-4, lr_end=0.0, clip=0.1, epochs=4, minibatches=8, initial_std=0.5, normalize_obs=False,
    )  # fmt: skip


def demonstrate(key: jax.Array, episodes: int, chunk: int) -> tuple[jax.Array, jax.Array]:
    """Observations [N, 4] and chunks of actions [N, 2 chunk] of the teacher, half of whose episodes go to each side."""
    env = fork.make()

    def episode(key, side):
        key_reset, key_steps = jax.random.split(key)
        state, obs = env.reset(key_reset)

        def step(playing, key):
            state, obs = playing
            key_act, key_step = jax.random.split(key)
            action = fork.teacher(obs, side, key_act)
            state, following, _ = env.step(state, action, key_step)
            return (state, following), (obs, action)

        return jax.lax.scan(step, (state, obs), jax.random.split(key_steps, env.spec.time_limit))[1]

    sides = jnp.where(jnp.arange(episodes) % 2 == 0, 1.0, -1.0)
    obs, action = jax.vmap(episode)(jax.random.split(key, episodes), sides)
    begins = jnp.arange(0, env.spec.time_limit, chunk)  # where a chunk begins when it is played
    action = action[:, begins[:, None] + jnp.arange(chunk)]  # [episodes, begins, chunk, 2]
    return obs[:, begins].reshape(-1, 4), action.reshape(-1, 2 * chunk)


def clone(loss, params, rows, key: jax.Array, updates: int, *, lr: float = 1e-3, batch_size: int = 256):
    """Fit `loss(params, obs, action, key) -> [B]` to rows by Adam."""
    optimizer = optax.adam(optax.cosine_decay_schedule(lr, max(updates, 1)))

    def update(carry, key):
        params, opt_state = carry
        key_rows, key_loss = jax.random.split(key)
        at = jax.random.randint(key_rows, (batch_size,), 0, len(rows[0]))
        obs, action = (x[at] for x in rows)
        grads = jax.grad(lambda params: jnp.mean(loss(params, obs, action, key_loss)))(params)
        steps, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, steps), opt_state), None

    return jax.lax.scan(update, (params, optimizer.init(params)), jax.random.split(key, updates))[0][0]


def flow(exp: FlowPPO) -> tuple:
    """(PPO's parts, cloning loss over the policy's parameters) of a flow policy."""
    size = 2 * exp.chunk
    net = nets.mlp((256, 256, size), activation=jax.nn.silu)

    def velocity(params, x, t, obs):
        t = t[..., None]
        return net.apply(params, jnp.concatenate([x, t, jnp.sin(jnp.pi * t), 3.0 * obs], -1))

    init = lambda key: net.init(key, jax.ShapeDtypeStruct((size + 6,), jnp.float32))
    head = distributions.flow_head(velocity, init, size, 4, steps=exp.denoising_steps, noise=exp.noise)

    def loss(params, obs, action, key):
        return denoise.flow_matching(lambda x, t: velocity(params["head"], x, t, obs), action, key)[0]

    return partial(ppo.make, actor=IDENTITY, head=head), loss


def gaussian(exp: FlowPPO) -> tuple:
    """The same of a tanh-normal policy: its cloning loss is the negative log-likelihood."""
    size = 2 * exp.chunk
    actor, head = nets.mlp((256, 256, size)), distributions.tanh_normal_head(size, exp.algo.initial_std)

    def loss(params, obs, action, key):
        before = jnp.arctanh(jnp.clip(action, -0.99, 0.99))
        return -head.score(params["head"], actor.apply(params["actor"], obs), before, key)[0]

    return partial(ppo.make, actor=actor, head=head), loss


def main(exp: FlowPPO):
    """Clone a teacher who goes both ways, improve the clone by PPO, and leave a report."""
    make, loss = (flow if exp.policy == "flow" else gaussian)(exp)
    env = wrap.action_chunk(fork.make(), exp.chunk)
    loop = loops.on_policy(make, wrap.pooled(env, exp.lanes), steps=exp.steps, iterations=10)

    def init(cfg, key):
        key, key_rows, key_clone = jax.random.split(key, 3)
        carry = loop.init(cfg, key)
        if exp.policy == "scratch":
            return carry
        critic = carry.state.params["critic"]
        actor = {name: x for name, x in carry.state.params.items() if name != "critic"}
        actor = clone(loss, actor, demonstrate(key_rows, exp.demonstrations, exp.chunk), key_clone, exp.clone_updates)
        return carry._replace(state=carry.state._replace(params={**actor, "critic": critic}))

    cfg = dataclasses.replace(exp.algo, lr_updates=max(1.0, exp.total_steps / (exp.lanes * exp.steps)))
    return launch.launch(exp, env=env, loop=loop._replace(init=init), cfg=cfg)


if __name__ == "__main__":
    launch.cli(main, FlowPPO)
