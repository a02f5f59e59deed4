"""Flow Q-learning: a flow clones the data, and a policy of one step is pulled to the flow and pushed up the critic.

The critic is never differentiated through the flow's many steps, and the flow never learns from the critic. The same
update learns from data alone and goes on online.

Reference: Park et al. 2025, arXiv 2502.02538. Different from its release: critics are normalised after each layer
without a scale and an offset of their own, which the following layer's weights stand for.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxrl_gen import nets, normalize, samplers
from jaxrl_gen.algos import acting, critics, descent
from jaxrl_gen.losses import denoise, policy, td, value
from jaxrl_gen.types import Algorithm, PyTree, Spec, Transition, config, leaf, static


@config
class Config:
    """Hyper-parameters of FQL; floats are leaves and never recompile."""

    lr: float = leaf(3e-4, low=0.0)
    gamma: float = leaf(0.99, low=0.0, high=1.0)
    tau: float = leaf(0.005, low=0.0, high=1.0)  # weight of the online critic in each update of the target
    closeness: float = leaf(10.0, low=0.0)  # weight of the distance to the flow, in units of value: 10 to 1000, by task
    members: int = static(2, low=1)  # critics
    flow_steps: int = static(10, low=1)
    actor_hidden: tuple[int, ...] = static((512, 512, 512, 512))  # of the flow too
    critic_hidden: tuple[int, ...] = static((512, 512, 512, 512))
    scale_free: bool = static(False)  # divide the critic's push by the mean size of its values; closeness 0.03 to 10
    normalize_obs: bool = static(False)  # by statistics of the rows learned from


class State(NamedTuple):
    """What FQL changes."""

    params: PyTree  # flow, actor, critic
    target: PyTree  # the critic's, moving slowly
    opt_state: PyTree
    normalizer: normalize.Normalizer


class Draws(NamedTuple):
    """What the actor makes an action of: where it is, and a noise [..., A]."""

    obs: PyTree
    noise: jax.Array


def make(
    cfg: Config,
    spec: Spec,
    *,
    flow: nets.Net | None = None,
    actor: nets.Net | None = None,
    critic: nets.Net | None = None,
    sampler: samplers.Sampler | None = None,
    target_value: Callable = value.mean,
    actor_value: Callable = value.mean,
) -> Algorithm:
    """FQL as three pure functions; call it inside jit, so that `cfg` is traced.

    Args:
      cfg: Config.
      spec: of one lane, with continuous actions.
      flow: Net from `nets.Noisy`, whose condition is the observation, to A velocities; default: a perceptron.
      actor: Net from `Draws` to A actions; default: a perceptron.
      critic: Net from (observation, action) to `[N, ..., 1]`; default: an ensemble of perceptrons.
      sampler: from noise to the flow's actions; default: `samplers.euler()`.
      target_value, actor_value: `(values [N, B], key) -> [B]`, as of `sac.make`; `value.minimum` where values explode.
    Returns:
      Algorithm whose batch is a Transition of windows, leaves `[H, B, ...]`.
    Raises:
      ValueError: if actions are discrete.
    """
    if spec.discrete:
        raise ValueError(f"FQL needs continuous actions; this environment has {spec.action_size} discrete ones")
    action = jax.ShapeDtypeStruct((spec.action_size,), jnp.float32)
    noisy = nets.Noisy(action, jax.ShapeDtypeStruct((), jnp.float32), spec.obs)
    drawn, judged = Draws(spec.obs, action), critics.judged(spec)
    acts = nets.mlp((*cfg.actor_hidden, spec.action_size), jax.nn.gelu)
    flow, actor = flow or nets.flat(acts, noisy), actor or nets.flat(acts, drawn)
    critic = critic or critics.perceptrons(spec, cfg.critic_hidden, cfg.members, 1, nets.normalized(jax.nn.gelu))
    sampler = sampler or samplers.euler()
    path = denoise.flow()
    samplers.belong(sampler, path, denoise.velocity, cfg.flow_steps)

    observer = acting.observer(cfg.normalize_obs)

    def init(key):
        keys = jax.random.split(key, 3)
        params = {"flow": flow.init(keys[0], noisy), "actor": actor.init(keys[1], drawn)}
        params["critic"] = critic.init(keys[2], judged)
        normalizer = observer.init(spec.obs)
        return State(params, jax.tree.map(jnp.copy, params["critic"]), descent.start(params), normalizer)

    def bounded(action):
        return jnp.clip(action, -1.0, 1.0)

    def propose(params, obs, noise):
        """What the actor does in one step."""
        return bounded(actor.apply(params["actor"], Draws(obs, noise)))

    def act(state, obs, key):
        """Without a key, from the same noise every time and in every lane: zero would lie between two modes."""
        lanes = jax.tree.leaves(obs)[0].shape[0]
        fixed = key is None
        noise = jax.random.normal(jax.random.key(0) if fixed else key, (1 if fixed else lanes, spec.action_size))
        noise = jnp.broadcast_to(noise, (lanes, spec.action_size))
        return propose(state.params, observer.see(state.normalizer, obs), noise), {}

    def velocity(params, obs):
        return lambda x, t: flow.apply(params["flow"], nets.Noisy(x, t, obs))

    def target_of(state, steps, key_noise, key_members):
        following = propose(state.params, steps.next_obs, jax.random.normal(key_noise, steps.action.shape))
        values = critic.apply(state.target, (steps.next_obs, following))[..., 0]
        return td.bootstrapped(steps, target_value(values, key_members))

    def teach(params, obs, noise):
        """What the flow makes of the noise, in many steps."""
        end = samplers.sample(
            sampler, velocity(params, obs), noise, None, process=path, kind=denoise.velocity, steps=cfg.flow_steps
        )
        return bounded(end)

    def loss(params, steps, target, noise, teacher, keys):
        outputs = critic.apply(params["critic"], (steps.obs, steps.action))
        error, of_critic = value.ensemble_loss(value.regression().loss, outputs, target[None])
        cloning, of_flow = denoise.flow_matching(velocity(params, steps.obs), steps.action, keys[0])
        student = actor.apply(params["actor"], Draws(steps.obs, noise))
        distance, of_actor = denoise.distillation(student, teacher)
        frozen = jax.lax.stop_gradient(params["critic"])
        values = critic.apply(frozen, (steps.obs, bounded(student)))[..., 0]
        push, of_value = policy.value_ascent(actor_value(values, keys[1]), scale_free=cfg.scale_free, valid=steps.valid)
        metrics = of_critic | of_flow | of_actor | of_value | {"critic/value": jnp.mean(outputs)}
        return descent.valid_mean(error + cloning + cfg.closeness * distance + push, steps.valid), metrics

    def update(state, batch: Transition, key):
        normalizer, steps = acting.learned(observer, state.normalizer, td.n_step(batch, gamma=cfg.gamma))
        keys = jax.random.split(key, 5)
        target = target_of(state, steps, keys[0], keys[1])
        noise = jax.random.normal(keys[2], steps.action.shape)
        teacher = teach(state.params, steps.obs, noise)
        params, opt_state, metrics = descent.descend(
            lambda params: loss(params, steps, target, noise, teacher, keys[3:]),
            state.params, state.opt_state, lr=cfg.lr,
        )  # fmt: skip
        slow = optax.incremental_update(params["critic"], state.target, cfg.tau)
        return State(params, slow, opt_state, normalizer), metrics

    return Algorithm(init, update, act)
