"""Parts of critics: several terms as one, and values learned in units of their own spread."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen import nets
from jaxrl_gen.algos import beer, cql, critics, edac, rebrac, sac, td3
from jaxrl_gen.envs import probe
from jaxrl_gen.losses import scale
from tests.algos import windows
from tests.algos.windows import MODEST, SPEC, batch_of, gradient_of, same, started

SMALL = dict(lr=0.01, gamma=0.9, tau=0.1, **MODEST)


def calm(judged, key):
    """A term that pulls all values to zero."""
    size = jnp.sum(judged.values(judged.steps.obs, judged.steps.action) ** 2, 0)
    return 3.0 * size, {"critic/size": jnp.mean(size)}


# ------------------------------------------------------------------------------------------------------------- terms


def test_terms_are_added_and_have_keys_of_their_own():
    drawn = lambda name: lambda judged, key: (judged * jax.random.uniform(key, (3,)), {name: jnp.ones(())})
    loss, metrics = critics.together(drawn("one"), critics.no_term, drawn("two"))(2.0, jax.random.key(0))
    one, two = (jax.random.uniform(key, (3,)) for key in jax.random.split(jax.random.key(0)))
    np.testing.assert_allclose(loss, 2.0 * (one + two), rtol=1e-6)
    assert set(metrics) == {"one", "two"}
    assert critics.together(critics.no_term, calm) is calm and critics.together(critics.no_term) is critics.no_term


OWN = {
    "critic/alike": (edac.make, edac.Config(**SMALL, members=3)),
    "critic/conservative_gap": (cql.make, cql.Config(**SMALL, samples=2)),
    "critic/above_bound": (beer.make, beer.Config(**SMALL)),
}


@pytest.mark.parametrize("own", OWN)
def test_a_term_that_is_given_does_not_replace_the_methods_own(own):
    make, cfg = OWN[own]
    algo, batch = make(cfg, SPEC, critic_term=calm), batch_of(invalid=False)
    _, metrics = jax.jit(algo.update)(started(algo), batch, jax.random.key(1))
    assert {own, "critic/size"} <= set(metrics)


def test_a_term_that_is_given_to_edac_is_added():
    """What it adds to the gradient is what it adds to that of SAC with as many critics."""
    cfg, batch = edac.Config(**SMALL, members=3, diversity=2.0), batch_of(invalid=False)
    state = started(edac.make(cfg, SPEC))

    def slope(make, **parts):
        after, _ = jax.jit(make(cfg, SPEC, **parts).update)(state, batch, jax.random.key(1))
        return gradient_of(after.opt_state["critic"])

    added = slope(sac.make, critic_term=calm) - slope(sac.make)
    found = slope(edac.make, critic_term=calm) - slope(edac.make)
    assert np.max(np.abs(added)) > 1.0
    np.testing.assert_allclose(found, added, atol=1e-4 * np.max(np.abs(added)))
    assert np.max(np.abs(slope(edac.make) - slope(sac.make))) > 1e-3


# ------------------------------------------------------------------------------------------------------------- units


def next_actions(batch):
    return batch._replace(extras={"next_action": batch.action, "next_known": batch.valid})


RESCALED = {
    "sac": (sac.make, sac.Config(**SMALL)),
    "td3": (td3.make, td3.Config(**SMALL, critic_updates=1)),
    "rebrac": (rebrac.make, rebrac.Config(**SMALL, critic_updates=1)),
}


@pytest.mark.parametrize("method", RESCALED)
def test_no_value_changes_where_units_do(method):
    """An update is the plain one in units that are known; after it critics say the same in others, slow ones too."""
    make, cfg = RESCALED[method]
    units = scale.Scale(*map(jnp.float32, (2, 400.0, 900.0)))
    algo, plain = critics.rescaled(make)(cfg, SPEC), make(cfg, SPEC, readout=scale.regression(units))
    batch = next_actions(batch_of(invalid=False))
    batch = batch._replace(reward=5000.0 * batch.reward - 300.0)
    begun = critics.Rescaled(started(plain), units)
    after, metrics = jax.jit(algo.update)(begun, batch, jax.random.key(1))
    expected, _ = jax.jit(plain.update)(begun.state, batch, jax.random.key(1))
    assert float(after.scale.std) == float(metrics["critic/unit"]) > 1200.0 and float(after.scale.count) == 3
    width = {} if method != "rebrac" else {"activation": nets.normalized(jax.nn.relu)}
    net = critics.perceptrons(SPEC, cfg.critic_hidden, cfg.members, 1, **width)
    seen, slow = (batch.obs[0], batch.action[0]), lambda state: state.target.get("critic", state.target)
    for critic in (lambda state: state.params["critic"], slow):
        one, two = net.apply(critic(expected), seen), net.apply(critic(after.state), seen)
        assert np.max(np.abs(one - two)) > 0.05
        values = (scale.regression(s).value(x) for s, x in ((units, one), (after.scale, two)))
        np.testing.assert_allclose(*values, rtol=1e-4, atol=0.1)
    one, two = (algo.act(begun._replace(state=state), batch.obs[0], None)[0] for state in (after.state, expected))
    np.testing.assert_array_equal(one, two)


def test_the_first_batch_gives_the_units_alone():
    """They are those of its targets: of single steps, rewards."""
    algo = critics.rescaled(sac.make)(sac.Config(**SMALL), SPEC)
    batch = batch_of(invalid=False)
    batch = batch._replace(reward=1000.0 * batch.reward, terminated=np.ones_like(batch.terminated))
    begun = algo.init(jax.random.key(0))
    update = jax.jit(algo.update)
    first, _ = update(begun, batch, jax.random.key(1))
    assert same(first.state, begun.state)
    np.testing.assert_allclose(first.scale, [1.0, np.mean(batch.reward), np.std(batch.reward)], rtol=1e-5)
    second, _ = update(first, batch, jax.random.key(2))
    assert not same(second.state.params["critic"], first.state.params["critic"])


def test_values_of_thousands_are_learned_as_fast_as_values_of_one():
    """Of single steps, whose value is their reward; without units the critics do not get there."""
    env = probe.continuous_action()
    rows = windows.rows_of(env, 512)
    rows = rows._replace(reward=5000.0 + 1000.0 * rows.reward)
    cfg = sac.Config(lr=3e-3, tau=0.05, actor_hidden=(8,), critic_hidden=(16,))
    net = critics.perceptrons(env.spec, cfg.critic_hidden, cfg.members, 1)

    def missed(state, units):
        said = scale.regression(units).value(net.apply(state.params["critic"], (rows.obs, rows.action)))
        return jnp.sqrt(jnp.mean((said - rows.reward) ** 2))

    plain, _ = windows.learn_offline(sac.make, cfg, env, rows, 400)
    rescaled, _ = windows.learn_offline(critics.rescaled(sac.make), cfg, env, rows, 400)
    assert np.all(jax.vmap(lambda state: missed(state, scale.unit()))(plain) > 4000.0)
    assert np.all(jax.vmap(lambda known: missed(*known))(rescaled) < 0.3 * np.std(rows.reward))
