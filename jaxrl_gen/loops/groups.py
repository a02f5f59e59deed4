"""Training on groups: several tries from each start, judged against each other."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from jaxrl_gen.envs import wrap
from jaxrl_gen.loops.loop import Loop
from jaxrl_gen.loops.rollout import reduce_metrics, rollout_metrics
from jaxrl_gen.types import Carry, Env, Transition, add_steps, ended


def group(make: Callable, env: Env, *, starts: int, group: int, iterations: int, steps: int | None = None) -> Loop:
    """Draw `starts` start states, try each `group` times, update once, repeat: one chunk is `iterations` of these.

    A start is a prompt and a try a completion, or a start is a state of a simulator and a try an episode. A try ends
    with its first episode; rows after that are not valid.

    Args:
      make: `(cfg, spec) -> Algorithm` without memory, whose batch is a Transition `[T, N, G, ...]`.
      env: one lane that does not reset itself.
      starts: N, per update.
      group: G, tries of each.
      iterations: updates per chunk; metrics are averaged over a chunk.
      steps: T, longest try; default: the environment's time limit.
    Returns:
      Loop; between two iterations its carry holds no environment.
    Raises:
      ValueError: if a count is below 1, if the environment resets itself, or has no time limit and `steps` is None.
    """
    steps = env.spec.time_limit if steps is None else steps
    if env.lanes is not None:
        raise ValueError(f"the environment has {env.lanes} lanes that reset themselves; allowed: the one they are of")
    if steps is None:
        raise ValueError("the environment has no time limit: say how many steps a try may take, steps=...")
    for name, value in {"starts": starts, "group": group, "iterations": iterations, "steps": steps}.items():
        if value < 1:
            raise ValueError(f"{name} is {value}; allowed: 1 and more")
    lane, lanes = wrap.episode_sums(wrap.quarantine(env)), starts * group

    def init(cfg, key):
        key, key_state = jax.random.split(key)
        algo = make(cfg, env.spec)
        if algo.memory(1) is not None:
            raise ValueError("the policy has memory; allowed in groups: policies without")
        return Carry(algo.init(key_state), (), (), None, key, jnp.zeros((2,), jnp.uint32))

    def tries(algo, state, key):
        """The rows of all tries, `[T, N G, ...]`, and their metrics."""
        key_start, key_steps = jax.random.split(key)
        begun = jax.vmap(lane.reset)(jax.random.split(key_start, starts))
        begun = jax.tree.map(lambda x: jnp.repeat(x, group, axis=0), begun)

        def step(trying, keys):
            env_state, obs, alive = trying
            action, extras = algo.act(state, obs, keys[0])
            env_state, next_obs, outcome = jax.vmap(lane.step)(env_state, action, keys[1:])
            over = ended(outcome)
            row = Transition(
                obs, action, jnp.where(alive, outcome.reward, 0.0), outcome.next_obs, alive & outcome.terminated,
                alive & outcome.truncated, outcome.valid | ~alive, extras,
            )  # fmt: skip
            return (env_state, next_obs, alive & ~over), (row, outcome.info, alive)

        keys = jax.random.split(key_steps, (steps, 1 + lanes))
        _, (rows, info, alive) = jax.lax.scan(step, (*begun, jnp.ones((lanes,), bool)), keys)
        return rows._replace(valid=rows.valid & alive), rollout_metrics(rows, info)

    def iteration(cfg, carry, i=0):
        algo = make(cfg, env.spec)
        key, key_tries, key_update = jax.random.split(carry.key, 3)
        rows, sums = tries(algo, carry.state, key_tries)
        batch = jax.tree.map(lambda x: x.reshape(steps, starts, group, *x.shape[2:]), rows)
        state, metrics = algo.update(carry.state, batch, key_update)
        carry = carry._replace(state=state, key=key, steps=add_steps(carry.steps, steps * lanes))
        return carry, metrics | sums, batch

    def chunk(cfg, carry):
        carry, metrics = jax.lax.scan(lambda carry, i: iteration(cfg, carry, i)[:2], carry, jnp.arange(iterations))
        return carry, reduce_metrics(metrics)

    return Loop(init, chunk, iteration, make, env, steps * lanes * iterations)
