"""How steep a function is: spectral norms of its weights, and how far its values move when its input is pushed.

Axis letters: B batch, N members of an ensemble, I and O inputs and outputs of a layer.
"""

from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp

from jaxrl_gen.types import PyTree


def power_iteration(kernel: jax.Array, direction: jax.Array, *, iterations: int = 1) -> tuple[jax.Array, jax.Array]:
    """An estimate of the largest singular value of a matrix from below, and the direction to go on from.

    v = W^T u / ||W^T u||, u = W v / ||W v||, sigma = u^T W v. Where the matrix moves slowly, one iteration for each of
    its moves is enough. The gradient of sigma with respect to W is u v^T; the directions are constants.

    Args:
      kernel: [..., I, O].
      direction: u [..., I], not zero, of any length.
      iterations: at least 1.
    Returns:
      (sigma [...], u [..., I] of length one).
    Raises:
      AssertionError: if shapes do not fit.
      ValueError: if iterations < 1.
    Reference: Miyato et al. 2018, arXiv 1802.05957, appendix A
    """
    chex.assert_shape(direction, kernel.shape[:-1])
    if iterations < 1:
        raise ValueError(f"iterations is {iterations}; allowed: 1 and more")
    constant, u = jax.lax.stop_gradient((kernel, direction))
    ahead = lambda u: _unit(jnp.einsum("...io,...i->...o", constant, u))
    back = lambda v: _unit(jnp.einsum("...io,...o->...i", constant, v))
    u = jax.lax.fori_loop(1, iterations, lambda _, u: back(ahead(u)), _unit(u))
    v = ahead(u)
    u = back(v)
    return jnp.einsum("...i,...io,...o->...", u, kernel, v), u


def clip_spectral(kernel: jax.Array, sigma: jax.Array, limit: jax.Array) -> jax.Array:
    """A matrix no larger than a limit in spectral norm: W min(1, limit / sigma).

    Args:
      kernel: [..., I, O].
      sigma: [...], its largest singular value.
      limit: above 0, scalar.
    Returns:
      [..., I, O].
    Raises:
      AssertionError: if shapes do not fit.
    Reference: Gouk et al. 2021, arXiv 1804.04368
    """
    chex.assert_shape(sigma, kernel.shape[:-2])
    chex.assert_rank(limit, 0)
    return kernel * jnp.minimum(1.0, limit / jnp.maximum(sigma, 1e-12))[..., None, None]


def first_directions(layers: dict[str, PyTree], key: jax.Array) -> dict[str, jax.Array]:
    """Random directions for `clip_layers` to start from, [..., I] for every layer but the last.

    Args:
      layers: parameters of a perceptron or an ensemble of them, `{"Dense_0": {"kernel": [..., I, O], ...}, ...}`.
      key: consumed here.
    Raises:
      ValueError: if the parameters are not those of a perceptron.
    """
    names = _hidden(layers)
    keys = jax.random.split(key, max(len(names), 1))
    draw = lambda name, key: _unit(jax.random.normal(key, layers[name]["kernel"].shape[:-1], jnp.float32))
    return {name: draw(name, key) for name, key in zip(names, keys)}


def clip_layers(
    layers: dict[str, PyTree], directions: dict[str, jax.Array], limit: jax.Array
) -> tuple[dict[str, PyTree], dict[str, jax.Array], jax.Array]:
    """Bring every layer but the last back under a limit in spectral norm, by one power iteration each.

    Between layers whose activations have slope 1 at most, a perceptron of L layers then is steeper than its last layer
    by no more than limit^(L - 1).

    Args:
      layers: as of `first_directions`, which gave the first directions.
      directions: of the last call.
      limit: above 0, scalar.
    Returns:
      (layers, directions, the largest norm found among all, before clipping, scalar).
    Raises:
      ValueError: if the parameters are not those of a perceptron.
    Reference: Zheng et al. 2023, arXiv 2302.01244 (LipMBRL)
    """
    clipped, following, largest = dict(layers), {}, jnp.zeros(())
    for name in _hidden(layers):
        kernel = layers[name]["kernel"]
        sigma, following[name] = power_iteration(kernel, directions[name])
        clipped[name] = layers[name] | {"kernel": clip_spectral(kernel, sigma, limit)}
        largest = jnp.maximum(largest, jnp.max(sigma))
    return clipped, following, largest


def robustness(*, epsilon: jax.Array, coefficient: jax.Array = 1.0, start: jax.Array = 0.1) -> Callable:
    """A term that makes values hold still where an adversary pushes the observation: c max_d (Q(s + d, a) - Q(s, a))^2.

    The maximum over ||d||_inf <= epsilon is approached by one step of the fast gradient sign method, which starts from
    a little noise, as the gradient at d = 0 is zero: d = epsilon sign(grad_d (Q(s + d, a) - Q(s, a))^2) taken at
    d = start epsilon xi, xi uniform in [-1, 1]. An ensemble is summed over its members, pushed by one adversary.

    Args:
      epsilon: in units of the observation as the critic sees it, scalar.
      coefficient: c, scalar.
      start: size of the noise, a share of epsilon.
    Returns:
      `term(judged, key) -> (loss [B], metrics)`, where `judged.values(obs, action) -> [N, B]` is differentiable in the
      critics' parameters, and `judged.steps` has `obs` and `action`.
    Reference: Zheng et al. 2023, arXiv 2302.01244 (LipMBRL); Goodfellow et al. 2015, arXiv 1412.6572
    """

    def term(judged, key):
        obs, action = judged.steps.obs, judged.steps.action
        values = judged.values(obs, action)
        chex.assert_shape(values, (None, action.shape[0]))

        def change(pushed, values):
            return jnp.sum((judged.values(pushed, action) - values) ** 2, 0)

        calm = jax.lax.stop_gradient(values)
        noisy = jax.tree.map(lambda x, xi: x + start * epsilon * xi, obs, _noise(key, obs))
        slope = jax.grad(lambda pushed: jnp.sum(change(pushed, calm)))(noisy)
        pushed = jax.lax.stop_gradient(jax.tree.map(lambda x, g: x + epsilon * jnp.sign(g), obs, slope))
        moved = change(pushed, values)
        return coefficient * moved, {"critic/moved": jnp.sqrt(jnp.mean(moved))}

    return term


def steepness(predict: Callable, obs: PyTree) -> jax.Array:
    """How steep values are around each observation, ||grad_s Q_n(s)||_2: a local Lipschitz constant.

    Args:
      predict: `obs -> [N, B]`, each row of its own observation alone.
      obs: leaves [B, ...].
    Returns:
      [N, B].
    Reference: Zheng et al. 2023, arXiv 2302.01244 (LipMBRL)
    """
    values, pull = jax.vjp(predict, obs)
    chex.assert_rank(values, 2)

    def of_member(chosen):
        (slope,) = pull(jnp.broadcast_to(chosen[:, None], values.shape).astype(values.dtype))
        squares = [jnp.sum(x.reshape(x.shape[0], -1) ** 2, -1) for x in jax.tree.leaves(slope)]
        return jnp.sqrt(sum(squares))

    return jax.vmap(of_member)(jnp.eye(values.shape[0]))


def value_aware_error(value: jax.Array, true_value: jax.Array) -> jax.Array:
    """How much a wrong prediction of what follows matters to the value, |V(s'_model) - V(s')|.

    By steepness L of V it is at most L times the distance between the two, which is why a flat value forgives a model.

    Args:
      value: [B], of what the model predicted.
      true_value: [B], of what came.
    Returns:
      [B].
    Raises:
      AssertionError: if shapes differ.
    Reference: Farahmand et al. 2017, "Value-aware loss function for model-based reinforcement learning"
    """
    chex.assert_rank(value, 1)
    chex.assert_equal_shape([value, true_value])
    return jnp.abs(value - true_value)


def _unit(x):
    return x / jnp.maximum(jnp.sqrt(jnp.sum(x**2, -1, keepdims=True)), 1e-12)


def _noise(key, obs):
    """Uniform numbers in [-1, 1], like `obs`."""
    leaves, structure = jax.tree.flatten(obs)
    keys = jax.random.split(key, len(leaves))
    draw = [jax.random.uniform(key, x.shape, x.dtype, -1.0, 1.0) for x, key in zip(leaves, keys)]
    return structure.unflatten(draw)


def _hidden(layers) -> list[str]:
    """The names of all layers but the last, in order."""
    is_layer = lambda name, x: name.rpartition("_")[2].isdigit() and isinstance(x, dict) and "kernel" in x
    if not isinstance(layers, dict) or not all(is_layer(name, x) for name, x in layers.items()):
        raise ValueError(
            "spectral norms are of a perceptron's layers, Dense_0, Dense_1, ...; the parameters are of something else"
        )
    return sorted(layers, key=lambda name: int(name.rpartition("_")[2]))[:-1]
