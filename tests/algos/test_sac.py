"""SAC against a float64 NumPy version of its update, on probes whose values are known, and with its parts replaced."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen import distributions
from jaxrl_gen.algos import sac
from jaxrl_gen.envs import probe
from jaxrl_gen.losses import value
from tests.algos import reference, windows
from tests.algos.linear import BINS, UPDATES, errors, outputs, values
from tests.algos.windows import ACTIONS, BATCH, DISCRETE, LINEAR, MODEST, SPEC, batch_of, learner, same, started

NOISE = np.random.default_rng(99).normal(size=(BATCH, ACTIONS))
CFG = sac.Config(lr=0.01, gamma=0.9, tau=0.1, **MODEST)


def fixed_noise_head(size, low, high):
    """SAC's head with the same noise at every call, so that NumPy can have it too."""
    head = sac.tanh_normal_head(size, low, high)

    def sample(params, output, key):
        mean, log_std = jnp.split(output, 2, -1)
        std = jnp.exp(jnp.clip(log_std, low, high))
        choice = mean + std * jnp.asarray(NOISE, jnp.float32)
        return choice, distributions.tanh_normal(mean, std).log_prob_before_tanh(choice)

    return head._replace(sample=sample)


def one_layer(readout, cfg=CFG, **parts):
    """SAC with nets of one layer and noise that is known."""
    head = fixed_noise_head(ACTIONS, cfg.log_std_low, cfg.log_std_high)
    return sac.make(dataclasses.replace(cfg, **LINEAR), SPEC, head=head, readout=readout, **parts)


# ------------------------------------------------------------------------------------------- the update, in NumPy


def act(params, obs, cfg):
    mean, log_std = np.split(reference.dense(obs, params["actor"]["Dense_0"]), 2, -1)
    log_std = np.clip(log_std, cfg.log_std_low, cfg.log_std_high)
    before = mean + np.exp(log_std) * NOISE
    normal = -0.5 * NOISE**2 - log_std - 0.5 * np.log(2 * np.pi)
    log_cosh = np.logaddexp(before, -before) - np.log(2.0)
    return np.tanh(before), np.sum(normal + 2.0 * log_cosh, -1)


def numpy_gradients(cfg, state, batch):
    """The gradients of SAC's losses by central differences: the critics', and the policy's by the critics moved."""
    frozen, target_critic = windows.float64(state.params), windows.float64(state.target)
    obs, action, reward, next_obs, discount, valid = windows.condensed(batch, cfg.gamma)
    temperature = np.exp(frozen["log_temperature"])
    next_action, next_log_prob = act(frozen, next_obs, cfg)
    following = values(outputs(target_critic, next_obs, next_action)).min(0) - temperature * next_log_prob
    target = reward + discount * following

    def critics_loss(critic):
        return errors(outputs(critic, obs, action), target).sum(0)[valid].mean()

    of_critic = reference.gradient(critics_loss, windows.float64(state.params["critic"]))
    moved = windows.adam(frozen["critic"], of_critic, cfg.lr)

    def policy_loss(params):
        proposed, log_prob = act(params, obs, cfg)
        actor = temperature * log_prob - values(outputs(moved, obs, proposed)).min(0)
        _, known = act(frozen, obs, cfg)
        tuning = -np.exp(params["log_temperature"]) * (known + cfg.target_entropy * ACTIONS)
        return (actor + tuning)[valid].mean()

    return of_critic, reference.gradient(policy_loss, windows.float64(without_critic(state.params)))


def without_critic(params):
    return {name: part for name, part in params.items() if name != "critic"}


@UPDATES
def test_update_equals_numpy(readout, horizon):
    algo, batch = one_layer(readout), batch_of(horizon)
    state = started(algo)
    after, metrics = jax.jit(algo.update)(state, batch, jax.random.key(1))
    of_critic, of_policy = numpy_gradients(CFG, state, batch)
    critic = lambda state: (state.params["critic"], state.opt_state["critic"])
    rest = lambda state: (without_critic(state.params), state.opt_state["policy"])
    windows.close_to_numpy(state, after, of_critic, CFG.lr, critic)
    windows.close_to_numpy(state, after, of_policy, CFG.lr, rest)
    windows.check_moved_slowly(after, state, after.params["critic"])
    assert float(metrics["guard/skipped_updates"]) == 0.0
    np.testing.assert_allclose(metrics["actor/temperature"], np.exp(state.params["log_temperature"]), rtol=1e-5)


# ------------------------------------------------------------------------------------------ what must not change it


NORMALIZED = dataclasses.replace(CFG, normalize_obs=True)


def test_invalid_rows_change_nothing():
    _, update, state = learner(sac.make, NORMALIZED)
    windows.check_invalid_rows_change_nothing(update, state, batch_of(2))


def test_a_batch_without_a_valid_row_changes_no_parameter():
    _, update, state = learner(sac.make, NORMALIZED)
    batch = batch_of(2)
    after, _ = update(state, batch._replace(valid=np.zeros_like(batch.valid)), jax.random.key(3))
    assert same(after.params, state.params) and same(after.normalizer, state.normalizer)


@pytest.mark.parametrize("where", ["obs", "action", "reward", "next_obs"])
def test_a_batch_with_nan_changes_no_parameter(where):
    _, update, state = learner(sac.make, NORMALIZED)
    windows.check_nan_changes_no_parameter(update, state, batch_of(2, invalid=False), where)


def test_the_temperature_learns_from_its_own_loss_alone():
    """Other rewards move the critics, and by them the actor, and nothing else."""
    algo, batch = one_layer(value.regression()), batch_of()
    state = started(algo)
    update = jax.jit(algo.update)
    one, _ = update(state, batch, jax.random.key(5))
    other_reward, _ = update(state, batch._replace(reward=batch.reward + 1.0), jax.random.key(5))
    parts = lambda after: jax.tree.map(lambda new, old: np.asarray(new - old), after.params, state.params)
    assert not same(parts(one)["critic"], parts(other_reward)["critic"])
    assert same(parts(one)["log_temperature"], parts(other_reward)["log_temperature"])


# -------------------------------------------------------------------------------------------------------- its parts


def test_discrete_actions_are_refused():
    with pytest.raises(ValueError, match="SAC needs continuous actions; this environment has 2 discrete ones"):
        sac.make(CFG, DISCRETE)


def test_the_critics_are_different_and_as_many_as_asked_for():
    state = sac.make(dataclasses.replace(CFG, members=5), SPEC).init(jax.random.key(6))
    kernel = state.params["critic"]["Dense_0"]["kernel"]
    assert kernel.shape[0] == 5 and np.all(np.std(kernel, axis=0) > 1e-3)
    assert same(state.target, state.params["critic"])


def test_other_aggregates_replace_a_part():
    """Randomised ensembles (REDQ): many critics, the minimum of a random pair for targets, the mean for the actor."""
    cfg, batch = dataclasses.replace(CFG, members=5), batch_of()
    pair = partial(value.random_subset_minimum, size=2)
    make = partial(sac.make, cfg, SPEC, actor_value=value.mean)
    algo, pessimist = make(target_value=pair), make(target_value=value.minimum)
    state = started(algo)
    targets, lowest = (
        jax.jit(jax.vmap(lambda key: one.update(state, batch, key)[1]["critic/target"]))(
            jax.random.split(jax.random.key(6), 8)
        )
        for one in (algo, pessimist)
    )
    assert np.all(targets >= lowest) and np.any(targets > lowest + 1e-3)


def test_the_support_of_a_classifying_critic_is_a_leaf_of_whoever_holds_it():
    """Two supports in one program: a Config of one's own around SAC's, whose floats are swept like any other."""

    def update(low, high, batch, key):
        algo = sac.make(CFG, SPEC, readout=value.classified(low, high, BINS))
        return algo.update(algo.init(jax.random.key(7)), batch, key)[1]["critic/clipped"]

    batch = jax.tree.map(jnp.asarray, batch_of(invalid=False))
    batch = batch._replace(reward=jnp.full_like(batch.reward, 3.0), terminated=jnp.ones_like(batch.terminated))
    clipped = jax.jit(jax.vmap(update, in_axes=(0, 0, None, None)))(
        jnp.array([-2.0, -4.0]), jnp.array([2.0, 4.0]), batch, jax.random.key(8)
    )
    np.testing.assert_allclose(clipped, [1.0, 0.0])


def test_the_temperature_moves_towards_the_target_entropy():
    batch = batch_of(invalid=False)
    for target_entropy, direction in ((-20.0, -1.0), (20.0, 1.0)):
        _, update, state = learner(sac.make, dataclasses.replace(CFG, target_entropy=target_entropy))
        after, _ = update(state, batch, jax.random.key(9))
        assert np.sign(after.params["log_temperature"] - state.params["log_temperature"]) == direction


def test_actions_are_bounded_and_the_deterministic_one_is_in_the_middle():
    algo, _, state = learner(sac.make, CFG)
    obs = np.random.default_rng(10).normal(size=(200, 3)).astype(np.float32)
    action, extras = algo.act(state, 30.0 * obs, jax.random.key(11))
    assert action.shape == (200, ACTIONS) and np.all(np.abs(action) <= 1.0) and extras == {}
    best, _ = algo.act(state, obs[:1], None)
    many, _ = algo.act(state, jnp.broadcast_to(obs[:1], (4001, 3)), jax.random.key(12))
    np.testing.assert_allclose(np.median(many, 0), best[0], atol=0.1)


# ---------------------------------------------------------------------------------------------------------- learning

GAMMA = 0.9
PROBING = sac.Config(lr=1e-2, gamma=GAMMA, tau=0.05, actor_hidden=(16,), critic_hidden=(16,))
UNSURPRISED = dataclasses.replace(PROBING, initial_temperature=1e-4, target_entropy=-50.0)  # entropy counts for nothing
WIDE = value.classified(-3.0, 13.0, 41)


def test_a_truncated_episode_is_worth_what_an_endless_one_is():
    env = probe.truncating(steps=5)
    state, _ = windows.learn_online(sac.make, UNSURPRISED, env)
    found = windows.judged(PROBING, env.spec, state, (jnp.ones((3, 1)), jnp.array([[-0.5], [0.0], [0.5]])))
    np.testing.assert_allclose(found, 1.0 / (1.0 - GAMMA), atol=0.6)


def test_a_terminated_episode_is_worth_its_finite_sum():
    """By classification and three-step targets, whose windows go past the end of an episode."""
    env = probe.terminating(steps=5)
    state, _ = windows.learn_online(partial(sac.make, readout=WIDE), UNSURPRISED, env, horizon=3)
    found = windows.judged(PROBING, env.spec, state, (jnp.eye(5), jnp.zeros((5, 1))), WIDE)
    left = 5 - np.arange(5)
    np.testing.assert_allclose(found, np.broadcast_to((1 - GAMMA**left) / (1 - GAMMA), found.shape), atol=0.3)


def test_the_best_action_is_found():
    env, cfg = probe.continuous_action(), dataclasses.replace(PROBING, target_entropy=-2.0)
    state, _ = windows.learn_online(sac.make, cfg, env)
    best = jax.vmap(lambda s: sac.make(cfg, env.spec).act(s, jnp.array([[1.0], [-1.0]]), None)[0])(state)
    np.testing.assert_allclose(best[..., 0], np.broadcast_to([0.5, -0.5], (3, 2)), atol=0.15)
