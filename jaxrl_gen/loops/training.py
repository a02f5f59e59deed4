"""The kinds of training: what one iteration collects, keeps and learns from.

Each is built from `make` (an algorithm's) and gives a Loop: one compiled chunk of iterations.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_gen import replay
from jaxrl_gen.loops.loop import Loop
from jaxrl_gen.loops.rollout import collect, reduce_metrics, renewal
from jaxrl_gen.types import Algorithm, Carry, Env, PyTree, Spec, Transition, add_steps, branch


def on_policy(make: Callable, env: Env, *, steps: int, iterations: int) -> Loop:
    """Collect `steps` steps in every lane, update once, repeat: one chunk is `iterations` of these.

    Args:
      make: `(cfg, spec) -> Algorithm` whose batch is a Transition `[T, E, ...]`.
      env: of E lanes that reset themselves (`envs.wrap`).
      steps: T, steps per lane and update.
      iterations: updates per chunk; metrics are averaged over a chunk.
    Returns:
      Loop.
    Raises:
      ValueError: if steps or iterations < 1.
    """
    lanes = _lanes(env)
    _at_least_one(steps=steps, iterations=iterations)

    def init(cfg, key):
        key, key_state, key_env = jax.random.split(key, 3)
        algo = make(cfg, env.spec)
        env_state, obs = env.reset(key_env)
        return Carry(algo.init(key_state), env_state, obs, algo.memory(lanes), key, jnp.zeros((2,), jnp.uint32))

    renew = renewal(env, steps, iterations)

    def iteration(cfg, carry, i=0):
        algo = make(cfg, env.spec)
        key, key_renew, key_collect, key_update = jax.random.split(carry.key, 4)
        carry = carry._replace(env_state=renew(carry.env_state, key_renew, i))
        carry, rows, sums = collect(algo, env, carry, key_collect, steps)
        state, metrics = algo.update(carry.state, rows, key_update)
        carry = carry._replace(state=state, key=key, steps=add_steps(carry.steps, steps * lanes))
        return carry, metrics | sums, rows

    def chunk(cfg, carry):
        carry, metrics = jax.lax.scan(lambda carry, i: iteration(cfg, carry, i)[:2], carry, jnp.arange(iterations))
        return carry, reduce_metrics(metrics)

    return Loop(init, chunk, iteration, make, env, steps * lanes * iterations)


def off_policy(
    make: Callable,
    env: Env,
    *,
    steps: int,
    updates: int,
    batch_size: int,
    capacity: int,
    warmup: int,
    iterations: int,
    horizon: int = 1,
    logged: Callable | None = None,
    data: tuple = (),
) -> Loop:
    """Collect `steps` steps in every lane into a replay, update `updates` times from it, repeat.

    Args:
      make: `(cfg, spec) -> Algorithm` whose batch is a Transition of windows, leaves `[H, B, ...]`.
      env: of E lanes that reset themselves (`envs.wrap`).
      steps: T, steps per lane and iteration.
      updates: per iteration; updates / (T E) is the update-to-data ratio.
      batch_size: B, windows per update.
      capacity: rows kept, all lanes together; rounded up to whole rollouts.
      warmup: rows, all lanes together, that uniformly random actions collect before anything is learned.
      iterations: per chunk.
      horizon: H, rows per window: n of n-step returns.
      logged: `(*data, key) -> Transition [H, B', ...]`, windows of logged data that each batch has besides.
      data: what `logged` draws from.
    Returns:
      Loop; its carry holds the replay.
    Raises:
      ValueError: if a count is below 1, or the replay is smaller than the warm-up or a window.
    """
    lanes = _lanes(env)
    _at_least_one(steps=steps, updates=updates, batch_size=batch_size, iterations=iterations, horizon=horizon)
    block = steps * lanes
    rows = -(-capacity // block) * steps  # per lane
    least = max(warmup, block * (-(-(horizon + 1) // steps)))
    if rows * lanes < least:
        raise ValueError(f"capacity is {capacity} rows; allowed: {least} and more, for warm-up and windows")
    begun = -(-max(least, 1) // block) * block  # rows there must be before learning begins

    def init(cfg, key):
        key, key_state, key_env = jax.random.split(key, 3)
        algo = make(cfg, env.spec)
        env_state, obs = env.reset(key_env)
        counter = jnp.zeros((2,), jnp.uint32)
        ring = replay.init(env.spec, rows, lanes)
        return Carry(algo.init(key_state), env_state, obs, algo.memory(lanes), key, counter, ring)

    renew = renewal(env, steps, iterations)

    def advance(cfg, carry, i, data):
        algo = make(cfg, env.spec)
        key, key_renew, key_collect, key_learn = jax.random.split(carry.key, 4)
        carry = carry._replace(env_state=renew(carry.env_state, key_renew, i))
        warm = carry.replay.size * lanes >= begun  # of the rows before this rollout
        carry, rollout, sums = collect(_at_random_until(warm, algo, env.spec), env, carry, key_collect, steps)
        ring = replay.add(carry.replay, rollout)
        ready = ring.size * lanes >= begun
        keys = jax.random.split(key_learn, (updates, 3))

        def draw(keys):
            batch = replay.sample(ring, keys[0], batch_size, horizon)
            return batch if logged is None else _joined(batch, logged(*data, keys[1]))

        def learn():
            state, metrics = jax.lax.scan(
                lambda state, keys: algo.update(state, draw(keys), keys[2]), carry.state, keys
            )
            return state, jax.tree.map(lambda x: jnp.mean(x, 0), metrics)

        nothing = lambda: (carry.state, jax.tree.map(jnp.zeros_like, jax.eval_shape(learn)[1]))
        state, metrics = branch(ready, learn, nothing)
        carry = carry._replace(state=state, key=key, steps=add_steps(carry.steps, block), replay=ring)
        return carry, metrics | sums | {"learned": ready.astype(jnp.float32)}, lambda: draw(keys[-1])

    def iteration(cfg, carry, i=0, *data):
        carry, metrics, last_batch = advance(cfg, carry, i, data)
        return carry, metrics, last_batch()

    def chunk(cfg, carry, *data):
        carry, metrics = jax.lax.scan(lambda carry, i: advance(cfg, carry, i, data)[:2], carry, jnp.arange(iterations))
        return carry, reduce_metrics(metrics)

    return Loop(init, chunk, iteration, make, env, block * iterations, data)


def offline_to_online(make: Callable, env: Env, logged: Callable, data: tuple, **arguments) -> Loop:
    """As `off_policy`, with windows of logged data in every batch: the same `update` as in `offline`.

    Args:
      make, env: as of `off_policy`.
      logged: `(*data, key) -> Transition [H, B', ...]`; with B' = B, half of each batch is logged data, and so is half
        of each share that an update cuts it into. Its extras are zero, and marks such as "demonstration" False, in rows
        lived online; `extras["logged"]` says which rows are not.
      data: what it draws from.
      arguments: as of `off_policy`.
    Returns:
      Loop. To go on from what `offline` learned, put its State into the first carry.
    Reference: Ball et al. 2023, arXiv 2302.02948 (symmetric sampling)
    """
    return off_policy(make, env, logged=logged, data=data, **arguments)


def offline(
    make: Callable, env: Env, sample: Callable, data: tuple = (), *, updates: int, feed: Callable | None = None
) -> Loop:
    """Update from data alone: one chunk is `updates` batches, drawn within the compiled program.

    Args:
      make: `(cfg, spec) -> Algorithm`.
      env: whose `spec` the data has; one lane, and never stepped.
      sample: `(*data, key) -> batch`, for that algorithm.
      data: pytrees of arrays, held once for all members, and never part of a checkpoint.
      updates: per chunk; the loop's steps are updates.
      feed: `(i) -> data` of the i-th chunk instead, on the host, of the same shapes for every i, such as a
        `data.streaming.Stream`.
    Returns:
      Loop.
    Raises:
      ValueError: if updates < 1, or if there are both data and a feed, or neither; and when the chunk is traced, if the
        data are of another Spec.
    """
    _at_least_one(updates=updates)
    if bool(data) == (feed is not None):
        raise ValueError(f"there are {'both data and a feed' if data else 'neither data nor a feed'}; allowed: one")
    data = data or jax.eval_shape(lambda *shown: shown, *feed(0))  # the block itself is let go

    def init(cfg, key):
        key, key_state = jax.random.split(key)
        return Carry(make(cfg, env.spec).init(key_state), (), (), None, key, jnp.zeros((2,), jnp.uint32))

    def iteration(cfg, carry, i=0, *data):
        algo = make(cfg, env.spec)
        key, key_sample, key_update = jax.random.split(carry.key, 3)
        batch = _of_spec(sample(*data, key_sample), env.spec)
        state, metrics = algo.update(carry.state, batch, key_update)
        return carry._replace(state=state, key=key, steps=add_steps(carry.steps, 1)), metrics, batch

    def chunk(cfg, carry, *data):
        carry, metrics = jax.lax.scan(lambda carry, i: iteration(cfg, carry, i, *data)[:2], carry, jnp.arange(updates))
        return carry, reduce_metrics(metrics)

    return Loop(init, chunk, iteration, make, env, updates, data, feed)


def _at_random_until(warm: jax.Array, algo: Algorithm, spec: Spec) -> Algorithm:
    """The algorithm, acting uniformly at random until `warm`."""

    def act(state, obs, key):
        key_act, key_random = jax.random.split(key)
        action, extras = algo.act(state, obs, key_act)
        if spec.discrete:
            uniform = jax.random.randint(key_random, action.shape, 0, spec.action_size, action.dtype)
        else:
            uniform = jax.random.uniform(key_random, action.shape, action.dtype, -1.0, 1.0)
        return jnp.where(warm, action, uniform), extras

    return algo._replace(act=act)


def _of_spec(batch: PyTree, spec: Spec) -> PyTree:
    """The batch, unless it has windows of another Spec in it; batches of other kinds are the algorithm's business.

    Windows, such as a Transition, have an observation and an action for each place in `valid`.
    """
    fields = getattr(batch, "_asdict", dict)()
    for part in fields.values():
        _of_spec(part, spec)
    if not {"obs", "action", "valid"} <= set(fields) or batch.obs is None or batch.valid is None:
        return batch
    of_each = lambda x: x.shape[batch.valid.ndim :]
    found = {"obs": jax.tree.map(of_each, batch.obs), "action": of_each(batch.action)}
    sizes = () if spec.discrete else (spec.action_size,)
    expected = {"obs": jax.tree.map(lambda x: x.shape, spec.obs), "action": sizes}
    for name in found:
        if found[name] != expected[name]:
            raise ValueError(
                f"the data have {name} of shape {found[name]} in their {type(batch).__name__}; expected "
                f"{expected[name]}, as in the Spec"
            )
    return batch


def _joined(lived: Transition, logged: Transition) -> Transition:
    """Windows from the replay and logged ones as one batch, spread evenly, `extras["logged"]` telling which are which.

    Nothing stands for a number that was not recorded: where it was lived, the extras are zero.

    Raises:
      ValueError: if they are windows of another length, or of another Spec.
    """
    shapes = lambda rows: jax.tree.map(lambda x: (len(x), *x.shape[2:]), (rows.obs, rows.action))
    if shapes(logged) != shapes(lived):
        raise ValueError(
            f"logged windows have observations and actions [H, ...] of {shapes(logged)}; expected {shapes(lived)}, as "
            "those from the environment"
        )
    told = logged.extras | {"logged": jnp.ones(logged.reward.shape, bool)}
    untold = jax.tree.map(lambda x: jnp.zeros(lived.reward.shape + x.shape[2:], x.dtype), told)
    order = _spread(lived.reward.shape[1], logged.reward.shape[1])
    both = lambda x, y: jnp.concatenate([x, y.astype(x.dtype)], axis=1)[:, order]
    return jax.tree.map(both, lived._replace(extras=untold), logged._replace(extras=told))


def _spread(first: int, second: int) -> np.ndarray:
    """An order of `first + second` rows in which each stretch has its part of both: from the start, to less than a row.

    Each row has a stratum of its own, in which those of the second kind move by the golden ratio: an order with a
    period, such as turn by turn, would show one kind alone to a method that picks every n-th row.
    """
    golden = (5.0**0.5 - 1.0) / 2.0
    i, j = np.arange(first), np.arange(second)
    return np.argsort(np.concatenate([(i + 0.5) / first, (j + j * golden % 1.0) / second]), kind="stable")


def _lanes(env: Env) -> int:
    if env.lanes is None:
        raise ValueError("the environment is one lane; make it many: wrap.pooled(env, lanes) or wrap.fresh(env, lanes)")
    return env.lanes


def _at_least_one(**counts: int) -> None:
    for name, value in counts.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; allowed: 1 and more")
