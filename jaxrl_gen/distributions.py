"""The few distributions the policies use, as distrax objects whose numerics the tests pin.

distrax takes seconds to import, so it is imported when the first distribution is made.
"""

import math
from functools import cache

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
