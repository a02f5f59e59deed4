"""The few distributions the policies use, as distrax objects whose numerics the tests pin.

distrax takes seconds to import, so it is imported when the first distribution is made.
"""

import math
from collections.abc import Callable
from functools import cache
from typing import NamedTuple

import jax
import jax.numpy as jnp

LARGEST_BELOW_ONE = 1.0 - 2.0**-24  # of float32


@cache
def _distrax():
    import warnings

    with warnings.catch_warnings():  # its probability backend warns about names that jax renamed
        warnings.simplefilter("ignore")
        import distrax
    return distrax


def categorical(logits: jax.Array):
    """A categorical distribution over `V = logits.shape[-1]` classes.

    Args:
      logits: [..., V].
    Returns:
      A distrax distribution with batch shape [...].
    """
    return _distrax().Categorical(logits=logits)


def normal(mean: jax.Array, std: jax.Array):
    """A diagonal normal over vectors.

    Args:
      mean, std: [..., A].
    Returns:
      A distrax distribution with batch shape [...] and event shape [A].
    """
    return _distrax().MultivariateNormalDiag(mean, std)


@cache
def _tanh_normal_class():
    distrax = _distrax()

    class TanhNormal(distrax.Distribution):
        """The image under tanh of a diagonal normal; finite log-probabilities and gradients up to the boundary."""

        def __init__(self, mean, std):
            super().__init__()
            self.before_tanh = normal(mean, std)
            self._mean, self._std = mean, std

        @property
        def event_shape(self):
            return self.before_tanh.event_shape

        def _sample_n(self, key, n):
            return jnp.tanh(self.before_tanh._sample_n(key, n))

        def _sample_n_and_log_prob(self, key, n):
            x = self.before_tanh._sample_n(key, n)
            return jnp.tanh(x), self.log_prob_before_tanh(x)

        def log_prob_before_tanh(self, x):
            """log p(tanh x) for `x` [..., A]: no inverse is taken, so nothing is lost where tanh saturates."""
            return self.before_tanh.log_prob(x) - jnp.sum(_log_det_tanh(x), -1)

        def log_prob(self, value):
            return self.log_prob_before_tanh(_atanh(value))

        def mode(self):
            """tanh of the normal's mean: the customary deterministic action (not the density's mode)."""
            return jnp.tanh(self._mean)

        def entropy_estimate(self, key):
            """Unbiased one-sample estimate of the entropy in nats, with its gradient by reparameterisation."""
            x = self.before_tanh.sample(seed=key)
            return self.before_tanh.entropy() + jnp.sum(_log_det_tanh(x), -1)

    return TanhNormal


def tanh_normal(mean: jax.Array, std: jax.Array):
    """The distribution of tanh(x) for x a diagonal normal: actions in (-1, 1)^A.

    log p(a) = log N(x; mean, std) - sum log(1 - tanh(x)^2), where log(1 - tanh(x)^2) = 2 (log 2 - x - softplus(-2 x)).
    `log_prob` inverts the tanh on actions clipped to what float32 holds inside (-1, 1), which is |x| < 8.7; where x is
    at hand, `log_prob_before_tanh` needs no inverse and has no such limit.

    Args:
      mean, std: [..., A], before the tanh.
    Returns:
      A distrax distribution with batch shape [...] and event shape [A], with `entropy_estimate(key)` beside it.
    Reference: Haarnoja et al. 2018, arXiv 1801.01290, appendix C
    """
    return _tanh_normal_class()(mean, std)


def _log_det_tanh(x):
    return 2.0 * (math.log(2.0) - x - jax.nn.softplus(-2.0 * x))


def _atanh(value):
    return jnp.arctanh(jnp.clip(value.astype(jnp.float32), -LARGEST_BELOW_ONE, LARGEST_BELOW_ONE))


class Head(NamedTuple):
    """How an actor's output becomes actions, and how likely they were, as pure functions of the head's own parameters.

    What is chosen is remembered as it was before any squashing, for there its log-probability loses nothing:
    `sample(params, output, key) -> (choice, log_prob [...])`, `action(choice) -> action`, `mode(params, output) ->
    action` and `score(params, output, choice, key) -> (log_prob [...], entropy [...])`, the entropy maybe an estimate.
    """

    init: Callable  # key -> params
    sample: Callable
    action: Callable
    mode: Callable
    score: Callable
    features: int  # how many numbers it reads of the actor


def categorical_head(size: int) -> Head:
    """Classes chosen by logits, the actor's output.

    Args:
      size: V classes.
    """

    def sample(params, output, key):
        dist = categorical(output)
        choice = dist.sample(seed=key)
        return choice, dist.log_prob(choice)

    def score(params, output, choice, key):
        dist = categorical(output)
        return dist.log_prob(choice), dist.entropy()

    return Head(
        init=lambda key: {},
        sample=sample,
        action=lambda choice: choice,
        mode=lambda params, output: categorical(output).mode(),
        score=score,
        features=size,
    )


def tanh_normal_head(size: int, initial_std: jax.Array = 1.0) -> Head:
    """Actions tanh(x) with x normal: its mean is the actor's output, its deviation a parameter of its own.

    Args:
      size: A coordinates.
      initial_std: before the tanh.
    """

    def of(params, output):
        return tanh_normal(output, jnp.broadcast_to(jnp.exp(params["log_std"]), output.shape))

    def sample(params, output, key):
        dist = of(params, output)
        choice = dist.before_tanh.sample(seed=key)
        return choice, dist.log_prob_before_tanh(choice)

    def score(params, output, choice, key):
        dist = of(params, output)
        return dist.log_prob_before_tanh(choice), dist.entropy_estimate(key)

    return Head(
        init=lambda key: {"log_std": jnp.full((size,), jnp.log(initial_std), jnp.float32)},
        sample=sample,
        action=jnp.tanh,
        mode=lambda params, output: of(params, output).mode(),
        score=score,
        features=size,
    )


def flow_head(
    velocity: Callable, init: Callable, size: int, features: int, *, steps: int = 10, noise: jax.Array = 0.5
) -> Head:
    """Actions made by a flow from noise to data in `steps` stochastic steps, each of known density.

    From x_0 ~ N(0, I), with t = k / steps (t = 1 is data) and dt = 1 / steps:

        x_{k+1} = x_k + [v - noise^2 / 2 (x_k - t v)] dt + noise sqrt((1 - t) dt) eps_k,    v = velocity(x_k, t)

    The correction is half the squared diffusion, noise^2 (1 - t), times the score -(x - t v) / (1 - t) of the path
    (1 - t) noise + t data: so that, for small steps, the noise moves no marginal, and with noise = 0 this is Euler's
    method. What is chosen is the whole chain, and its log-probability the sum over steps: with it a policy gradient
    goes through a denoiser as through any other policy. The action is the chain's end, clipped to [-1, 1].

    Args:
      velocity: `(params, x [..., A], t [...], output [..., features]) -> [..., A]`.
      init: key -> params of the velocity.
      size: A.
      features: numbers of the actor's output that the velocity reads.
      steps: K; the chain is [..., K + 1, A].
      noise: above 0, for without it no step has a density; scalar.
    Returns:
      Head. Its `mode` follows the flow without noise from one x_0, the same always and everywhere: x_0 = 0 would lie
      between two modes. Its entropy is zero: that of the steps is a constant.
    Raises:
      ValueError: for no step, or no noise, as far as its number is known.
    Different from DPPO: a choice has one ratio, of its whole chain; there each denoising step has its own, averaged
      over coordinates, with advantages that count for less the earlier it is. So a clip is reached sooner here.
    Reference: Ren et al. 2024, arXiv 2409.00588 (PPO over denoising steps); Liu et al. 2025, arXiv 2505.05470 (a flow
      with noise and the same marginals)
    """
    _refuse_without_density(steps, noise)
    dt = 1.0 / steps

    def mean(params, x, k, output, noise):
        t = jnp.broadcast_to(k * dt, x.shape[:-1])
        v = velocity(params, x, t, output)
        return x + (v - 0.5 * noise**2 * (x - t[..., None] * v)) * dt

    def deviation(k):
        return noise * jnp.sqrt((1.0 - k * dt) * dt)

    def log_density(x, mean, std):
        return jnp.sum(-0.5 * ((x - mean) / std) ** 2 - jnp.log(std) - 0.5 * math.log(2.0 * math.pi), -1)

    def sample(params, output, key):
        key_first, key_steps = jax.random.split(key)
        first = jax.random.normal(key_first, (*output.shape[:-1], size), jnp.float32)
        eps = jax.random.normal(key_steps, (steps, *first.shape), jnp.float32)

        def step(x, row):
            k, eps = row
            expected = mean(params, x, k, output, noise)
            following = expected + deviation(k) * eps
            return following, (following, log_density(following, expected, deviation(k)))

        _, (chain, log_prob) = jax.lax.scan(step, first, (jnp.arange(steps, dtype=jnp.float32), eps))
        chain = jnp.moveaxis(jnp.concatenate([first[None], chain]), 0, -2)
        return chain, jnp.sum(log_prob, 0) + log_density(first, 0.0, jnp.ones(()))

    def score(params, output, choice, key):
        """All steps at once: the chain is known, so nothing has to wait for anything."""
        k = jnp.arange(steps, dtype=jnp.float32)
        before, after = choice[..., :-1, :], choice[..., 1:, :]
        seen = jnp.broadcast_to(output[..., None, :], (*before.shape[:-1], output.shape[-1]))
        expected = mean(params, before, k, seen, noise)
        log_prob = jnp.sum(log_density(after, expected, deviation(k)[:, None]), -1)
        log_prob += log_density(choice[..., 0, :], 0.0, jnp.ones(()))
        return log_prob, jnp.zeros_like(log_prob)

    def mode(params, output):
        first = jnp.broadcast_to(jax.random.normal(jax.random.key(0), (size,), jnp.float32), (*output.shape[:-1], size))
        step = lambda x, k: (mean(params, x, k, output, 0.0), None)
        return jnp.clip(jax.lax.scan(step, first, jnp.arange(steps, dtype=jnp.float32))[0], -1.0, 1.0)

    return Head(init, sample, lambda choice: jnp.clip(choice[..., -1, :], -1.0, 1.0), mode, score, features)


def _refuse_without_density(steps: int, noise: jax.Array) -> None:
    if steps < 1:
        raise ValueError(f"steps is {steps}; allowed: 1 and more")
    if not isinstance(noise, jax.core.Tracer) and not float(noise) > 0.0:
        raise ValueError(f"noise is {noise}; allowed: above 0, for without it no step has a density to learn from")
