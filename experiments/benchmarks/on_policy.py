"""On-policy training speed: jaxrl_gen, rejax, brax.training and the simulator alone, in turn on one machine.

Run:      python -m experiments.benchmarks.on_policy   (needs the extras bench, playground and gymnax)
Hardware: any; the figures recorded in experiments/results/benchmark_on_policy.json name theirs
Minutes:  about 15 on 2 CPU cores
Expect:   environment steps per second: medians over rounds, ratios to jaxrl_gen, compile seconds, peak memory

Every side of a task has the same environment, networks, batch sizes and number of updates. Each is run in a process of
its own, round after round, so that a machine that drifts drifts for all. Steps per second leave compilation out.
"""

import statistics
import time
from functools import partial

from experiments.benchmarks._sides import Benchmark, MergedEnds, compare, figures, timed, trained


def ours(env, cfg, *, steps: int, iterations: int, seeds: int) -> dict:
    """jaxrl_gen with everything on: episode statistics, quarantine, metrics, and a host loop that reads them."""
    from jaxrl_gen import loops
    from jaxrl_gen.algos import ppo

    loop = loops.on_policy(ppo.make, env, steps=steps, iterations=iterations)
    return trained(loop, cfg, seeds=seeds, metric="episode/return")


def simulator(env, *, steps: int, rollouts: int = 1) -> dict:
    """The environment alone with uniform random actions: the limit for any learner.

    Resets are renewed before each of the rollouts, as a training loop does; lanes that nobody resets have none.
    """
    import jax
    import jax.numpy as jnp

    from jaxrl_gen import loops

    lanes, size = env.lanes, env.spec.action_size
    renew = loops.renewal(env, steps, rollouts)

    def rollout(state, row):
        def step(state, key):
            key_action, key_step = jax.random.split(key)
            if env.spec.discrete:
                action = jax.random.randint(key_action, (lanes,), 0, size)
            else:
                action = jax.random.uniform(key_action, (lanes, size), minval=-1.0)
            state, obs, outcome = env.step(state, action, jax.random.split(key_step, lanes))
            return state, (jnp.sum(outcome.reward), jax.tree.map(jnp.sum, obs))

        key_renew, key_steps = jax.random.split(row[0])
        return jax.lax.scan(step, renew(state, key_renew, row[1]), jax.random.split(key_steps, steps))

    def whole(state, key):
        return jax.lax.scan(rollout, state, (jax.random.split(key, rollouts), jnp.arange(rollouts)))

    start = time.perf_counter()
    key = jax.random.key(0)
    state, _ = jax.jit(env.reset)(key)
    run = jax.jit(whole).lower(state, key).compile()
    compile_seconds = time.perf_counter() - start
    jax.block_until_ready(run(state, key))
    return figures(compile_seconds, rollouts * steps * lanes, timed(lambda: run(state, key), 5))


def lanes_without_reset(env, lanes: int):
    """The lanes of a simulator with nothing around them."""
    import jax

    many_reset = lambda key: jax.vmap(env.reset)(jax.random.split(key, lanes))
    return env._replace(reset=many_reset, step=jax.vmap(env.step), lanes=lanes)


# ------------------------------------------------------------------------- CartPole: 4 lanes x 128 steps, 500 k steps

CARTPOLE = dict(lr=2.5e-4, lr_end=0.0, lr_updates=976.0, entropy_coefficient=0.01, value_clip=0.2, normalize_obs=False)


def cartpole_ours(seeds: int) -> dict:
    from jaxrl_gen.algos import ppo
    from jaxrl_gen.envs import gymnax, wrap

    env = wrap.fresh(gymnax.make("CartPole-v1"), 4)
    return ours(env, ppo.Config(**CARTPOLE), steps=128, iterations=244, seeds=seeds)


def cartpole_rejax(seeds: int) -> dict:
    import gymnax
    import jax
    import rejax

    inner, params = gymnax.make("CartPole-v1")
    total = 976 * 512
    algorithm = rejax.PPO.create(
        env=MergedEnds(inner), env_params=params, total_timesteps=total, eval_freq=total, skip_initial_evaluation=True,
        num_envs=4, num_steps=128, num_epochs=4, num_minibatches=4, learning_rate=2.5e-4, gamma=0.99, gae_lambda=0.95,
        clip_eps=0.2, ent_coef=0.01, vf_coef=0.5, max_grad_norm=0.5, agent_kwargs={"activation": "tanh"},
    )  # fmt: skip
    # One evaluation is left at the very end; it is replaced by nothing, so that training alone is timed.
    algorithm = algorithm.replace(eval_callback=lambda algorithm, state, key: ())
    train = type(algorithm).train if seeds == 1 else jax.vmap(type(algorithm).train, in_axes=(None, 0))
    keys = jax.random.key(0) if seeds == 1 else jax.random.split(jax.random.key(0), seeds)
    start = time.perf_counter()
    compiled = jax.jit(train).lower(algorithm, keys).compile()
    compile_seconds = time.perf_counter() - start
    return figures(compile_seconds, total * seeds, timed(lambda: compiled(algorithm, keys)))


def cartpole_simulator() -> dict:
    from jaxrl_gen.envs import gymnax

    return simulator(lanes_without_reset(gymnax.make("CartPole-v1"), 4), steps=20_000)


# ----------------------------------------------------- brax inverted pendulum (spring): 256 lanes x 16 steps, 1 M steps


def pendulum_ours() -> dict:
    from jaxrl_gen.algos import ppo
    from jaxrl_gen.envs import brax, wrap

    env = wrap.pooled(brax.make("inverted_pendulum", backend="spring"), 256)
    cfg = ppo.Config(lr=3e-4, gamma=0.97, entropy_coefficient=1e-2, max_grad_norm=1.0, epochs=4, minibatches=4)
    return ours(env, cfg, steps=16, iterations=64, seeds=1)


def pendulum_brax() -> dict:
    import jax
    from brax import envs
    from brax.training.agents.ppo import networks, train

    if not hasattr(jax, "device_put_replicated"):  # removed in jax 0.10, still called by brax's trainers
        import jax.numpy as jnp

        def replicate(tree, devices):
            return jax.tree.map(lambda x: jnp.stack([x] * len(devices)), tree)

        jax.device_put_replicated = replicate
    marks, metrics = [], []
    start = time.perf_counter()

    def progress(steps, values):
        marks.append((time.perf_counter(), steps))
        metrics.append(values)

    train.train(
        envs.get_environment("inverted_pendulum", backend="spring"), num_timesteps=4 * 64 * 4096, num_envs=256,
        episode_length=1000, learning_rate=3e-4, entropy_cost=1e-2, discounting=0.97, unroll_length=16, batch_size=64,
        num_minibatches=4, num_updates_per_batch=4, normalize_observations=True, max_grad_norm=1.0, run_evals=False,
        num_evals=5, progress_fn=progress,
        network_factory=partial(
            networks.make_ppo_networks, policy_hidden_layer_sizes=(64, 64), value_hidden_layer_sizes=(64, 64)
        ),
    )  # fmt: skip
    seconds = [later[0] - earlier[0] for earlier, later in zip(marks, marks[1:])]
    steps = marks[1][1] - marks[0][1]
    return figures(marks[0][0] - start - statistics.median(seconds), steps, seconds)


def pendulum_simulator() -> dict:
    from jaxrl_gen.envs import brax

    return simulator(lanes_without_reset(brax.make("inverted_pendulum", backend="spring"), 256), steps=400)


# ------------------------------------------------------------------------------- CheetahRun: 128 lanes x 64 steps


def cheetah_ours(together: int | None) -> dict:
    from jaxrl_gen.algos import ppo
    from jaxrl_gen.envs import playground, wrap

    env = wrap.pooled(playground.make("CheetahRun"), 128, together=together)
    cfg = ppo.Config(lr=1e-3, epochs=2, minibatches=8, actor_hidden=(128, 128), critic_hidden=(128, 128))
    return ours(env, cfg, steps=64, iterations=10, seeds=1)


def cheetah_simulator() -> dict:
    from jaxrl_gen.envs import playground

    return simulator(lanes_without_reset(playground.make("CheetahRun"), 128), steps=128)


def cheetah_pooled(together: int | None) -> dict:
    from jaxrl_gen.envs import playground, wrap

    return simulator(wrap.pooled(playground.make("CheetahRun"), 128, together=together), steps=64, rollouts=10)


# --------------------------------------------------------------------- CartpoleSwingup: 4 seeds x 64 lanes x 128 steps


def swingup_ours() -> dict:
    from jaxrl_gen.algos import ppo
    from jaxrl_gen.envs import playground, wrap

    env = wrap.pooled(playground.make("CartpoleSwingup"), 64)
    return ours(env, ppo.Config(lr=1e-3, epochs=2, minibatches=8), steps=128, iterations=10, seeds=4)


def swingup_simulator() -> dict:
    from jaxrl_gen.envs import playground

    return simulator(lanes_without_reset(playground.make("CartpoleSwingup"), 256), steps=128, rollouts=10)


def swingup_pooled() -> dict:
    from jaxrl_gen.envs import playground, wrap

    return simulator(wrap.pooled(playground.make("CartpoleSwingup"), 256), steps=128, rollouts=10)


SIDES = {  # name: what to run; the first side of each task is the one that ratios are taken to
    "cartpole, 1 seed | jaxrl_gen": partial(cartpole_ours, 1),
    "cartpole, 1 seed | rejax": partial(cartpole_rejax, 1),
    "cartpole, 1 seed | simulator alone": cartpole_simulator,
    "cartpole, 8 seeds | jaxrl_gen": partial(cartpole_ours, 8),
    "cartpole, 8 seeds | rejax": partial(cartpole_rejax, 8),
    "brax inverted pendulum | jaxrl_gen": pendulum_ours,
    "brax inverted pendulum | brax.training": pendulum_brax,
    "brax inverted pendulum | simulator alone": pendulum_simulator,
    "CheetahRun | jaxrl_gen, 32 lanes at a time": partial(cheetah_ours, 32),
    "CheetahRun | jaxrl_gen": partial(cheetah_ours, None),
    "CheetahRun | simulator alone": cheetah_simulator,
    "CheetahRun | simulator with resets, quarantine and sums": partial(cheetah_pooled, None),
    "CheetahRun | the same, 32 lanes at a time": partial(cheetah_pooled, 32),
    "CartpoleSwingup, 4 seeds | jaxrl_gen": swingup_ours,
    "CartpoleSwingup, 4 seeds | simulator alone": swingup_simulator,
    "CartpoleSwingup, 4 seeds | simulator with resets, quarantine and sums": swingup_pooled,
}


if __name__ == "__main__":
    import tyro

    compare(tyro.cli(Benchmark, description=__doc__), SIDES, "on_policy")
