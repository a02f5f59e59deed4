"""Off-policy training speed: jaxrl_gen's SAC, rejax's and sbx's on Pendulum, one update per step, in turn.

Run:      python -m experiments.benchmarks.off_policy   (needs the extras bench and gymnax; runs sbx-rl if it is there)
Hardware: any; the figures recorded in experiments/results/benchmark_off_policy.json name theirs
Minutes:  about 3 on 2 CPU cores
Expect:   environment steps per second: medians over rounds, ratios to jaxrl_gen, compile seconds, peak memory

Every side has one environment, actor and twin critics of 2 x 64 units with swish, batches of 256 from a replay of
10,000, observations normalised by running statistics (but for sbx, which has none), and one update per step. Each is
run in a process of its own, round after round. Steps per second leave compilation and evaluation out.
"""

import importlib.util
import time
from functools import partial

from experiments.benchmarks._sides import Benchmark, MergedEnds, compare, figures, timed, trained

STEPS = 10_000


def pendulum_ours(seeds: int) -> dict:
    import jax

    from jaxrl_gen import loops, nets
    from jaxrl_gen.algos import sac
    from jaxrl_gen.envs import gymnax, wrap

    env = wrap.fresh(gymnax.make("Pendulum-v1"), 1)

    def make(cfg, spec):
        judged = (spec.obs, jax.ShapeDtypeStruct((1,), "float32"))
        actor = nets.flat(nets.mlp((64, 64, 2), jax.nn.swish), spec.obs)
        critic = nets.ensemble(nets.flat(nets.mlp((64, 64, 1), jax.nn.swish), judged), 2)
        return sac.make(cfg, spec, actor=actor, critic=critic)

    loop = loops.off_policy(
        make, env, steps=1, updates=1, batch_size=256, capacity=STEPS, warmup=256, iterations=STEPS // 4
    )
    return trained(loop, sac.Config(lr=0.01, tau=0.02, normalize_obs=True), seeds=seeds, metric="episode/return")


def pendulum_rejax() -> dict:
    import gymnax
    import jax
    import rejax

    inner, params = gymnax.make("Pendulum-v1")
    algorithm = rejax.SAC.create(
        env=MergedEnds(inner), env_params=params, agent_kwargs={"activation": "swish"}, num_envs=1, buffer_size=STEPS,
        fill_buffer=256, batch_size=256, learning_rate=0.01, num_epochs=1, total_timesteps=STEPS, eval_freq=STEPS,
        skip_initial_evaluation=True, gamma=0.99, polyak=0.98, target_entropy_ratio=None, normalize_observations=True,
    )  # fmt: skip
    algorithm = algorithm.replace(eval_callback=lambda algorithm, state, key: ())  # training alone is timed
    start = time.perf_counter()
    train = jax.jit(type(algorithm).train).lower(algorithm, jax.random.key(0)).compile()
    compile_seconds = time.perf_counter() - start
    return figures(compile_seconds, STEPS, timed(lambda: train(algorithm, jax.random.key(0))), last=float("nan"))


def pendulum_sbx() -> dict:
    import gymnasium
    import sbx
    from flax import linen as nn

    env = gymnasium.make("Pendulum-v1")
    arguments = dict(
        learning_rate=0.01, buffer_size=STEPS, learning_starts=256, batch_size=256, tau=0.02, train_freq=1,
        gradient_steps=1, policy_kwargs={"net_arch": [64, 64], "activation_fn": nn.swish},
    )  # fmt: skip
    start = time.perf_counter()
    model = sbx.SAC("MlpPolicy", env, **arguments).learn(400)  # it compiles at its first updates
    compile_seconds = time.perf_counter() - start
    seconds = timed(lambda: model.learn(2000, reset_num_timesteps=False) and None)
    return figures(compile_seconds, 2000, seconds, last=float("nan"))


SIDES = {  # name: what to run; the first side of each task is the one that ratios are taken to
    "Pendulum, 1 seed | jaxrl_gen": partial(pendulum_ours, 1),
    "Pendulum, 1 seed | rejax": pendulum_rejax,
    "Pendulum, 8 seeds | jaxrl_gen": partial(pendulum_ours, 8),
}
if importlib.util.find_spec("sbx"):
    SIDES["Pendulum, 1 seed | sbx"] = pendulum_sbx


if __name__ == "__main__":
    import tyro

    compare(tyro.cli(Benchmark, description=__doc__), SIDES, "off_policy")
