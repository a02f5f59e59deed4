"""One step of descent on a pytree, against optax's own Adam leaf by leaf."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxrl_gen.algos import descent

PARAMS = {"a": jnp.arange(6.0).reshape(2, 3), "b": {"c": jnp.array(2.0), "d": jnp.full(4, -1.0)}}


def loss(params, scale=1.0):
    value = sum(jnp.sum((x - 0.5) ** 2) for x in jax.tree.leaves(params))
    return scale * value, {"critic/loss": value}


def test_steps_are_those_of_adam_on_each_leaf():
    ours, state = PARAMS, descent.start(PARAMS)
    theirs, adam = PARAMS, optax.adam(0.1)
    their_state = adam.init(theirs)
    step = jax.jit(lambda params, state: descent.descend(loss, params, state, lr=0.1))
    for _ in range(5):
        ours, state, metrics = step(ours, state)
        moves, their_state = adam.update(jax.grad(lambda p: loss(p)[0])(theirs), their_state)
        theirs = optax.apply_updates(theirs, moves)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), ours, theirs)
    assert set(metrics) == {"critic/loss", "guard/skipped_updates", "guard/grad_norm"}


def test_a_gradient_that_is_not_finite_moves_nothing():
    state = descent.start(PARAMS)
    params, after, metrics = descent.descend(lambda p: loss(p, jnp.nan), PARAMS, state, lr=0.1)
    jax.tree.map(np.testing.assert_array_equal, (params, after), (PARAMS, state))
    assert float(metrics["guard/skipped_updates"]) == 1.0


def test_valid_mean():
    per_sample = jnp.array([1.0, jnp.nan, 4.0])
    assert float(descent.valid_mean(per_sample, jnp.array([True, False, True]))) == 2.5
    assert float(descent.valid_mean(per_sample, jnp.zeros(3, bool))) == 0.0


def test_decayed_weights_are_those_of_adamw():
    ours, optimizer = PARAMS, descent.adamw(0.3)
    state = descent.start(ours, optimizer)
    theirs, adam = PARAMS, optax.adamw(0.1, weight_decay=0.3)
    their_state = adam.init(theirs)
    for _ in range(3):
        ours, state, _ = descent.descend(loss, ours, state, lr=0.1, optimizer=optimizer)
        moves, their_state = adam.update(jax.grad(lambda p: loss(p)[0])(theirs), their_state, theirs)
        theirs = optax.apply_updates(theirs, moves)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5, atol=1e-6), ours, theirs)


def test_nothing_moves_unless_it_may():
    state = descent.start(PARAMS)
    params, after, metrics = descent.descend(loss, PARAMS, state, lr=0.1, unless=jnp.array(True))
    jax.tree.map(np.testing.assert_array_equal, (params, after), (PARAMS, state))
    assert bool(descent.skipped(metrics))


def test_shares_are_descended_one_after_the_other():
    rows, key = jnp.arange(12.0).reshape(6, 2), jax.random.key(0)
    of_rows = lambda params, rows, key: (jnp.mean((params["w"] - rows) ** 2), {"critic/loss": jnp.mean(rows)})
    params, state = {"w": jnp.zeros(2)}, descent.start({"w": jnp.zeros(2)})
    found, after, metrics = descent.descend_by_shares(of_rows, params, state, descent.shares(rows, 3), key, lr=0.1)
    for part in (rows[:2], rows[2:4], rows[4:]):
        params, state, _ = descent.descend(lambda params, part=part: of_rows(params, part, key), params, state, lr=0.1)
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-6), (found, after), (params, state))
    np.testing.assert_allclose(metrics["critic/loss"], 5.5)


def test_of_several_descents_the_worst_is_told():
    told = lambda skipped, norm: {"guard/skipped_updates": jnp.float32(skipped), "guard/grad_norm": jnp.float32(norm)}
    joined = descent.together(told(0.5, 3.0) | {"a": 1.0}, told(0.0, 4.0) | {"b": 2.0})
    assert joined == {"guard/skipped_updates": 0.5, "guard/grad_norm": 5.0, "a": 1.0, "b": 2.0}
