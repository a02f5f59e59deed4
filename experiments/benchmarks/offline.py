"""Offline learning speed: jaxrl_gen's IQL, TD3+BC and ReBRAC, one compiled scan each, against single-file loops.

Run:      python -m experiments.benchmarks.offline   (needs the extra bench)
Hardware: any; the figures recorded in experiments/results/benchmark_offline.json name theirs
Minutes:  about 6 on 2 CPU cores
Expect:   updates per second: medians over rounds, ratios to jaxrl_gen, compile seconds, peak memory

Every side has networks of 2 x 256 units (ReBRAC's of 3), batches of 256, and the same synthetic data (100,000 rows,
observations of 11 numbers, actions of 3). The single-file loops are written the way reference agents are: one jitted
update with Adam, of a NumPy batch, or scanned with batches drawn on the device. The table's steps are updates; one of
TD3+BC or ReBRAC is two of the critics, each with a batch of its own, and one of the actor.
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


def ours(name: str, seeds: int = 1) -> dict:
    """jaxrl_gen's algorithm of that name with everything on."""
    import jax

    from jaxrl_gen import loops
    from jaxrl_gen.algos import iql, rebrac, td3_bc
    from jaxrl_gen.types import Env, Spec

    algo, batches = {"iql": (iql, 1), "td3_bc": (td3_bc, 2), "rebrac": (rebrac, 2)}[name]
    env = Env(None, None, Spec(jax.ShapeDtypeStruct((FEATURES,), "float32"), ACTIONS))

    def sample(rows, key):
        chosen = jax.random.randint(key, (BATCH * batches,), 0, ROWS)
        batch = jax.tree.map(lambda x: x[chosen][None], rows)
        # Which action follows is of no weight here: as many numbers are read as if it were the right one.
        return batch._replace(extras={"next_action": batch.action, "next_known": batch.valid})

    loop = loops.offline(algo.make, env, sample, (jax.device_put(synthetic()),), updates=250)
    return trained(loop, algo.Config(normalize_obs=False), seeds=seeds, chunks=4, metric="critic/loss")


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


def near_data_single_file(rebrac: bool) -> dict:
    """TD3+BC, or ReBRAC: deeper, with normalised critics and a penalty in the target; scanned on the device."""
    import flax.linen as nn
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    class MLP(nn.Module):
        out: int
        normed: bool

        @nn.compact
        def __call__(self, x):
            for _ in range(3 if rebrac else 2):
                x = nn.relu(nn.Dense(256)(x))
                x = nn.LayerNorm(use_bias=False, use_scale=False)(x) if self.normed else x
            return nn.Dense(self.out)(x)

    actor = MLP(ACTIONS, False)
    many = nn.vmap(MLP, variable_axes={"params": 0}, split_rngs={"params": True}, in_axes=None, axis_size=2)
    critic, optimizer = many(1, rebrac), optax.adam(1e-3 if rebrac else 3e-4)
    decide = lambda params, obs: jnp.tanh(actor.apply(params, obs))
    judge = lambda params, obs, action: critic.apply(params, jnp.concatenate([obs, action], -1))[..., 0]

    def critic_loss(params, slow, batch, key):
        obs, action, reward, next_obs, over = batch
        noise = jnp.clip(0.2 * jax.random.normal(key, action.shape), -0.5, 0.5)
        next_action = jnp.clip(decide(slow["actor"], next_obs) + noise, -1.0, 1.0)
        following = judge(slow["critic"], next_obs, next_action).min(0)
        if rebrac:
            following = following - 0.1 * jnp.mean((next_action - action) ** 2, -1)
        target = jax.lax.stop_gradient(reward + 0.99 * (1 - over) * following)
        return jnp.mean((judge(params, obs, action) - target) ** 2)

    def actor_loss(params, judging, batch):
        obs, action = batch[:2]
        chosen = decide(params, obs)
        values = judge(judging, obs, chosen)
        value = values.min(0) if rebrac else values[0]
        push = value.mean() / jax.lax.stop_gradient(jnp.abs(value).mean())
        return 0.4 * jnp.mean((chosen - action) ** 2) - push

    def descend(loss, params, opt_state, *inputs):
        of_loss, grads = jax.value_and_grad(loss)(params, *inputs)
        steps, opt_state = optimizer.update(grads, opt_state)
        return optax.apply_updates(params, steps), opt_state, of_loss

    def update(state, data, key):
        params, slow, opt_state = state
        keys = jax.random.split(key, 4)
        for i in range(2):
            batch = [x[jax.random.randint(keys[2 * i], (BATCH,), 0, ROWS)] for x in data]
            judging, opt_critic, of_loss = descend(
                critic_loss, params["critic"], opt_state["critic"], slow, batch, keys[2 * i + 1]
            )
            params, opt_state = params | {"critic": judging}, opt_state | {"critic": opt_critic}
        acting, opt_actor, _ = descend(actor_loss, params["actor"], opt_state["actor"], judging, batch)
        params, opt_state = params | {"actor": acting}, opt_state | {"actor": opt_actor}
        slow = jax.tree.map(lambda old, new: old + 0.005 * (new - old), slow, params)
        return (params, slow, opt_state), of_loss

    keys = jax.random.split(jax.random.key(0), 3)
    obs, both = jnp.zeros((1, FEATURES)), jnp.zeros((1, FEATURES + ACTIONS))
    params = {"actor": actor.init(keys[0], obs), "critic": critic.init(keys[1], both)}
    state = params, jax.tree.map(jnp.copy, params), {name: optimizer.init(x) for name, x in params.items()}
    rows = synthetic()
    data = [rows.obs, rows.action, rows.reward, rows.next_obs, rows.terminated.astype(np.float32)]
    data, start, updates = jax.device_put(data), time.perf_counter(), 1000
    scan = lambda state, data, key: jax.lax.scan(
        lambda state, key: update(state, data, key), state, jax.random.split(key, updates)
    )
    run = jax.jit(scan).lower(state, data, keys[2]).compile()
    compile_seconds = time.perf_counter() - start
    return figures(compile_seconds, updates, timed(lambda: run(state, data, keys[2])), last=0.0)


SIDES = {
    "IQL | jaxrl_gen": partial(ours, "iql"),
    "IQL | jaxrl_gen, 5 seeds in one program, updates of all": partial(ours, "iql", 5),
    "IQL | single file, sampled on the host": partial(iql_single_file, False),
    "IQL | single file, sampled and scanned on the device": partial(iql_single_file, True),
    "TD3+BC | jaxrl_gen": partial(ours, "td3_bc"),
    "TD3+BC | single file, sampled and scanned on the device": partial(near_data_single_file, False),
    "ReBRAC | jaxrl_gen": partial(ours, "rebrac"),
    "ReBRAC | single file, sampled and scanned on the device": partial(near_data_single_file, True),
}


if __name__ == "__main__":
    import tyro

    compare(tyro.cli(Benchmark, description=__doc__), SIDES, "offline")
