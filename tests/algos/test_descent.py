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
