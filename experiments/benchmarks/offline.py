"""Offline learning speed: jaxrl_gen's IQL, one compiled scan, against a single-file loop that samples on the host.

Run:      python -m experiments.benchmarks.offline   (needs the extra bench)
Hardware: any; the figures recorded in experiments/results/benchmark_offline.json name theirs
Minutes:  about 3 on 2 CPU cores
Expect:   updates per second: medians over rounds, ratios to jaxrl_gen, compile seconds, peak memory

Every side has networks of 2 x 256 units, batches of 256, and the same synthetic data (100,000 rows, observations of 11
numbers, actions of 3). The single-file loop is written the way reference agents are: a NumPy batch per update, and one
jitted update with a joint loss and Adam. The table's steps are updates.
"""

import time
from functools import partial

from experiments.benchmarks._sides import Benchmark, compare, figures, timed, trained

ROWS, FEATURES, ACTIONS, BATCH = 100_000, 11, 3, 256


def synthetic():
    """Rows of normal numbers, of the right shapes, with ends: a Transition of NumPy arrays."""
    import numpy as np

    from jaxrl_gen.types import Transition

    rng = np.random.default_rng(0)
    draw = lambda *more: rng.normal(size=(ROWS, *more)).astype(np.float32)
    ends = rng.random((2, ROWS)) < 0.002
    return Transition(
        draw(FEATURES), np.tanh(draw(ACTIONS)), draw(), draw(FEATURES), ends[0], ends[1] & ~ends[0], np.ones(ROWS, bool)
    )


def iql_ours(seeds: int) -> dict:
    import jax

    from jaxrl_gen import loops
    from jaxrl_gen.algos import iql
    from jaxrl_gen.types import Env, Spec

    env = Env(None, None, Spec(jax.ShapeDtypeStruct((FEATURES,), "float32"), ACTIONS))

    def sample(rows, key):
        chosen = jax.random.randint(key, (BATCH,), 0, ROWS)
        return jax.tree.map(lambda x: x[chosen][None], rows)

    loop = loops.offline(iql.make, env, sample, (jax.device_put(synthetic()),), updates=250)
    return trained(loop, iql.Config(normalize_obs=False), seeds=seeds, chunks=4, metric="critic/loss")


def iql_single_file(on_device: bool) -> dict:
    import distrax
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    class MLP(nn.Module):
        out: int

        @nn.compact
        def __call__(self, x):
            for _ in range(2):
                x = nn.relu(nn.Dense(256)(x))
            return nn.Dense(self.out)(x)

    actor, value = MLP(ACTIONS), MLP(1)
    critic = nn.vmap(MLP, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=2)(1)
    optimizer = optax.adam(3e-4)

    def loss(params, target, batch):
        obs, action, reward, next_obs, over = batch
        both = jnp.concatenate([obs, action], -1)
        slow = critic.apply(target, both)[..., 0].min(0)
        v = value.apply(params["value"], obs)[..., 0]
        following = jax.lax.stop_gradient(value.apply(params["value"], next_obs)[..., 0])
        residual = slow - v
        of_value = jnp.mean(jnp.where(residual > 0, 0.7, 0.3) * residual**2)
        error = jnp.mean((critic.apply(params["critic"], both)[..., 0] - (reward + 0.99 * (1 - over) * following)) ** 2)
        mean = jnp.tanh(actor.apply(params["actor"], obs))
        policy = distrax.MultivariateNormalDiag(mean, jnp.broadcast_to(jnp.exp(params["log_std"]), mean.shape))
        weight = jax.lax.stop_gradient(jnp.minimum(jnp.exp(3.0 * residual), 100.0))
        return of_value + error - jnp.mean(weight * policy.log_prob(action))

    def update(state, batch):
        params, target, opt_state = state
        value_of_loss, grads = jax.value_and_grad(loss)(params, target, batch)
        steps, opt_state = optimizer.update(grads, opt_state)
        params = optax.apply_updates(params, steps)
        target = jax.tree.map(lambda slow, new: slow + 0.005 * (new - slow), target, params["critic"])
        return (params, target, opt_state), value_of_loss

    keys = jax.random.split(jax.random.key(0), 3)
    obs, both = jnp.zeros((1, FEATURES)), jnp.zeros((1, FEATURES + ACTIONS))
    params = {
        "actor": actor.init(keys[0], obs),
        "critic": critic.init(keys[1], both),
        "value": value.init(keys[2], obs),
    }
    params["log_std"] = jnp.zeros(ACTIONS)
    state = params, jax.tree.map(jnp.copy, params["critic"]), optimizer.init(params)
    rows = synthetic()
    data = [rows.obs, rows.action, rows.reward, rows.next_obs, rows.terminated.astype(np.float32)]
    start, updates, rng = time.perf_counter(), 1000, np.random.default_rng(1)
    if on_device:
        data = jax.device_put(data)

        def scan(state, data, key):
            def one(state, key):
                chosen = jax.random.randint(key, (BATCH,), 0, ROWS)
                return update(state, [x[chosen] for x in data])

            return jax.lax.scan(one, state, jax.random.split(key, updates))

        run = jax.jit(scan).lower(state, data, keys[0]).compile()
        call = lambda: run(state, data, keys[0])
    else:
        step = jax.jit(update, donate_argnums=0).lower(state, [x[:BATCH] for x in data]).compile()

        def call():
            current = jax.tree.map(jnp.copy, state)
            for _ in range(updates):
                chosen = rng.integers(0, ROWS, BATCH)
                current, value_of_loss = step(current, [x[chosen] for x in data])
            return current, value_of_loss

    compile_seconds = time.perf_counter() - start
    return figures(compile_seconds, updates, timed(call), last=0.0)


SIDES = {
    "IQL | jaxrl_gen": partial(iql_ours, 1),
    "IQL | jaxrl_gen, 5 seeds in one program, updates of all": partial(iql_ours, 5),
    "IQL | single file, sampled on the host": partial(iql_single_file, False),
    "IQL | single file, sampled and scanned on the device": partial(iql_single_file, True),
}


if __name__ == "__main__":
    import tyro

    compare(tyro.cli(Benchmark, description=__doc__), SIDES, "offline")
