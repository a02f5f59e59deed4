"""Policy-gradient losses: one number per sample, to be weighted, masked and averaged by the caller."""

import chex
import jax
import jax.numpy as jnp


def clipped_surrogate(
    log_prob: jax.Array, old_log_prob: jax.Array, advantage: jax.Array, *, clip: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """PPO's clipped surrogate, -min(rho A, clip(rho, 1 - clip, 1 + clip) A), with rho = pi(a|s) / pi_old(a|s).

    Args:
      log_prob: [B], of the policy being learned.
      old_log_prob: [B], of the policy that acted; a constant.
      advantage: [B], a constant.
      clip: half-width of the trust interval of the ratio, scalar.
    Returns:
      loss [B], unreduced; metrics of scalars.
    Raises:
      AssertionError: if shapes differ.
    Reference: Schulman et al. 2017, arXiv 1707.06347, eq. 7
    """
    chex.assert_equal_shape([log_prob, old_log_prob, advantage])
    chex.assert_rank(clip, 0)
    advantage, old_log_prob = jax.lax.stop_gradient((advantage, old_log_prob))
    ratio = jnp.exp(log_prob - old_log_prob)
    clipped = jnp.clip(ratio, 1.0 - clip, 1.0 + clip)
    loss = -jnp.minimum(ratio * advantage, clipped * advantage)
    return loss, {"actor/clip_fraction": jnp.mean(jnp.abs(ratio - 1.0) > clip)}


def value_loss(value: jax.Array, target: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Half squared error of a value, (V - target)^2 / 2.

    Args:
      value: [B].
      target: [B], a constant.
    Returns:
      loss [B], unreduced; metrics of scalars.
    Raises:
      AssertionError: if shapes differ.
    Reference: Sutton and Barto 2018, eq. 9.1
    """
    chex.assert_equal_shape([value, target])
    loss = 0.5 * (value - jax.lax.stop_gradient(target)) ** 2
    return loss, {"critic/loss": jnp.mean(loss)}


def clipped_value_loss(
    value: jax.Array, target: jax.Array, old_value: jax.Array, *, clip: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Half squared error of a value kept near its old self: max of the plain error and that of V_old + clip(V - V_old).

    Args:
      value: [B].
      target: [B], a constant.
      old_value: [B], before this update; a constant.
      clip: half-width of the interval around `old_value`, in units of value.
    Returns:
      loss [B], unreduced; metrics of scalars.
    Raises:
      AssertionError: if shapes differ.
    Reference: Engstrom et al. 2020, arXiv 2005.12729, section 3 (an implementation detail of PPO)
    """
    chex.assert_equal_shape([value, target, old_value])
    chex.assert_rank(clip, 0)
    target, old_value = jax.lax.stop_gradient((target, old_value))
    near = old_value + jnp.clip(value - old_value, -clip, clip)
    loss = 0.5 * jnp.maximum((value - target) ** 2, (near - target) ** 2)
    return loss, {"critic/loss": jnp.mean(loss)}


def entropy_bonus(entropy: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss whose minimum is the most random policy: -H(pi(.|s)).

    Args:
      entropy: [B], exact or a one-sample estimate, in nats.
    Returns:
      loss [B], unreduced; metrics of scalars.
    Reference: Williams and Peng 1991, "Function optimization using connectionist reinforcement learning algorithms"
    """
    return -entropy, {"actor/entropy": jnp.mean(entropy)}


def kl_penalty(log_prob: jax.Array, old_log_prob: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """A non-negative estimate of KL(pi_old || pi) from the actions pi_old took: rho - 1 - log rho.

    It is unbiased in value and in gradient, because the samples come from pi_old.

    Args:
      log_prob: [B], of the policy being learned.
      old_log_prob: [B], of the policy that acted; a constant.
    Returns:
      loss [B], unreduced, in nats; metrics of scalars.
    Raises:
      AssertionError: if shapes differ.
    Reference: Schulman 2020, "Approximating KL divergence", estimator k3
    """
    chex.assert_equal_shape([log_prob, old_log_prob])
    log_ratio = log_prob - jax.lax.stop_gradient(old_log_prob)
    kl = jnp.expm1(log_ratio) - log_ratio
    return kl, {"actor/kl": jnp.mean(kl)}


def adapt_kl_coefficient(coefficient: jax.Array, kl: jax.Array, *, target: jax.Array) -> jax.Array:
    """The next penalty coefficient: halved when kl < target / 1.5, doubled when kl > 1.5 target, else kept.

    A coefficient of zero stays zero, so the penalty can be left out without a flag.

    Args:
      coefficient: scalar.
      kl: scalar, measured over the update just made, in nats.
      target: the wanted kl per update, in nats.
    Returns:
      coefficient, scalar, within [0, 1e6].
    Reference: Schulman et al. 2017, arXiv 1707.06347, section 4
    """
    factor = jnp.where(kl > 1.5 * target, 2.0, jnp.where(kl < target / 1.5, 0.5, 1.0))
    adapted = jnp.clip(coefficient * factor, 1e-6, 1e6)
    return jax.lax.stop_gradient(jnp.where(coefficient > 0, adapted, 0.0))


def soft_policy(
    value: jax.Array, log_prob: jax.Array, *, temperature: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The reparameterised loss of a stochastic actor: temperature log pi(a|s) - Q(s, a), with a = f(s, noise).

    The gradient reaches the actor through the action in both terms, so `value` must be that of the sampled action, by
    a critic whose parameters are constants.

    Args:
      value: [B], differentiable in the action.
      log_prob: [B], of the sampled action, in nats.
      temperature: scalar, a constant.
    Returns:
      loss [B], unreduced; metrics of scalars.
    Raises:
      AssertionError: if shapes differ.
    Reference: Haarnoja et al. 2018, arXiv 1801.01290, eq. 12
    """
    chex.assert_equal_shape([value, log_prob])
    chex.assert_rank(temperature, 0)
    loss = jax.lax.stop_gradient(temperature) * log_prob - value
    return loss, {"actor/q": jnp.mean(value), "actor/entropy": -jnp.mean(log_prob)}


def temperature_loss(
    log_temperature: jax.Array, log_prob: jax.Array, *, target_entropy: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss that moves the temperature until the policy's entropy is the target: -temperature (log pi + target).

    Args:
      log_temperature: scalar, log of the temperature.
      log_prob: [B], of sampled actions, in nats; a constant.
      target_entropy: scalar, in nats.
    Returns:
      loss [B], unreduced; metrics of scalars.
    Raises:
      AssertionError: if shapes differ.
    Reference: Haarnoja et al. 2018, arXiv 1812.05905, eq. 18
    """
    chex.assert_rank([log_temperature, log_prob, target_entropy], [0, 1, 0])
    temperature = jnp.exp(log_temperature)
    loss = -temperature * (jax.lax.stop_gradient(log_prob) + target_entropy)
    return loss, {"actor/temperature": temperature}


def cloning(log_prob: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Maximum likelihood of the actions that someone else took: -log pi(a|s).

    Args:
      log_prob: [B], of the actions in the data, in nats.
    Returns:
      loss [B], unreduced; metrics of scalars.
    Reference: Pomerleau 1989, "ALVINN: an autonomous land vehicle in a neural network"
    """
    return -log_prob, {"actor/log_prob": jnp.mean(log_prob)}


def advantage_weighted(
    log_prob: jax.Array, advantage: jax.Array, *, sharpness: jax.Array, largest: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Cloning in which better actions weigh more: -min(exp(sharpness A), largest) log pi(a|s).

    Args:
      log_prob: [B], of the actions in the data, in nats.
      advantage: [B], a constant, in units of value.
      sharpness: inverse temperature, per unit of value; zero is cloning.
      largest: weight, scalar above 0.
    Returns:
      loss [B], unreduced; metrics of scalars.
    Raises:
      AssertionError: if shapes differ.
    Reference: Peng et al. 2019, arXiv 1910.00177, eq. 8; Kostrikov et al. 2021, arXiv 2110.06169, eq. 7
    """
    chex.assert_equal_shape([log_prob, advantage])
    chex.assert_rank([sharpness, largest], 0)
    advantage = jax.lax.stop_gradient(advantage)
    weight = jnp.exp(jnp.minimum(sharpness * advantage, jnp.log(largest)))
    metrics = {"actor/log_prob": jnp.mean(log_prob), "actor/weight": jnp.mean(weight)}
    return -weight * log_prob, metrics | {"actor/advantage": jnp.mean(advantage)}


def value_ascent(
    value: jax.Array, *, scale_free: bool = False, valid: jax.Array | None = None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The deterministic policy gradient: -Q(s, a) with a = f(s), by a critic whose parameters are constants.

    Where it is scale free it is divided by the batch's mean of |Q|, a constant, so that what is added to it needs no
    weight in units of value.

    Args:
      value: [B], differentiable in the action.
      scale_free: whether to divide.
      valid: [B] bool, the samples whose |Q| counts for that mean; default: all.
    Returns:
      loss [B], unreduced; metrics of scalars.
    Raises:
      AssertionError: if the value is not [B], or shapes differ.
    Reference: Lillicrap et al. 2016, arXiv 1509.02971, eq. 6; Fujimoto and Gu 2021, arXiv 2106.06860, eq. 5
    """
    chex.assert_rank(value, 1)
    chex.assert_equal_shape([value] + ([] if valid is None else [valid]))
    counts = jnp.ones(value.shape, bool) if valid is None else valid
    total = jnp.sum(jnp.where(counts, jnp.abs(jax.lax.stop_gradient(value)), 0.0))
    size = jnp.maximum(total / jnp.maximum(jnp.sum(counts), 1), 1e-6) if scale_free else 1.0
    return -value / size, {"actor/q": jnp.mean(value)}


def closeness(action: jax.Array, wanted: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """How far an action is from another: the mean over coordinates of the squared difference.

    Args:
      action: [B, A], differentiable.
      wanted: [B, A], a constant.
    Returns:
      loss [B], unreduced; metrics of scalars.
    Raises:
      AssertionError: if shapes differ.
    Reference: Fujimoto and Gu 2021, arXiv 2106.06860, eq. 3
    """
    chex.assert_equal_shape([action, wanted])
    chex.assert_rank(action, 2)
    loss = jnp.mean((action - jax.lax.stop_gradient(wanted)) ** 2, -1)
    return loss, {"actor/distance": jnp.mean(loss)}


def autoencoding(
    copied: jax.Array,
    data: jax.Array,
    mean: jax.Array,
    log_std: jax.Array,
    *,
    weight: jax.Array = 1.0,
    divergence: jax.Array = 1.0,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of a variational autoencoder of actions: weighted squared error, and the divergence of its code.

    weight sum_d (copied - data)^2 + divergence sum_k (mean^2 + std^2 - 1 - 2 log std) / 2.

    Args:
      copied: [B, D], what was made of the code.
      data: [B, D], a constant.
      mean, log_std: [B, K], of the code.
      weight: [B] or scalar, a constant.
      divergence: scalar.
    Returns:
      loss [B], unreduced; metrics of scalars.
    Raises:
      AssertionError: if shapes do not fit.
    Reference: Kingma and Welling 2014, arXiv 1312.6114, eq. 10
    """
    chex.assert_rank([copied, data, mean, log_std], 2)
    chex.assert_equal_shape([copied, data])
    chex.assert_equal_shape([mean, log_std])
    chex.assert_equal_shape_prefix([copied, mean], 1)
    chex.assert_is_broadcastable(jnp.shape(weight), copied.shape[:1])
    error = jnp.sum((copied - jax.lax.stop_gradient(data)) ** 2, -1)
    kl = 0.5 * jnp.sum(mean**2 + jnp.exp(2.0 * log_std) - 1.0 - 2.0 * log_std, -1)
    metrics = {"proposal/reconstruction": jnp.mean(error), "proposal/kl": jnp.mean(kl)}
    return jax.lax.stop_gradient(weight) * error + divergence * kl, metrics
