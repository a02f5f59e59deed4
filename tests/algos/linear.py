"""Critics of one layer in float64 NumPy: what they output, what that stands for, and how far it is from a target."""

import numpy as np
import pytest
from scipy.stats import norm

from jaxrl_gen.losses import value

BINS, LOW, HIGH = 11, -4.0, 4.0
CENTRES = np.linspace(LOW, HIGH, 2 * BINS + 1)[1::2]
CLASSIFIED = value.classified(LOW, HIGH, BINS)
UPDATES = pytest.mark.parametrize(
    "readout, horizon", [(value.regression(), 1), (CLASSIFIED, 3)], ids=["regression", "hl_gauss_three_steps"]
)


def outputs(critic, *features):
    """[N, B, out] of an ensemble's parameters, at features that are joined."""
    x, layer = np.concatenate(features, -1), critic["Dense_0"]
    return np.stack([x @ kernel + bias for kernel, bias in zip(layer["kernel"], layer["bias"])])


def softmax(x):
    exponents = np.exp(x - x.max(-1, keepdims=True))
    return exponents / exponents.sum(-1, keepdims=True)


def values(out):
    """[N, B], by regression where there is one output, else by classification."""
    return out[..., 0] if out.shape[-1] == 1 else softmax(out) @ CENTRES


def errors(out, target):
    """[N, B], by regression, or by classification with HL-Gauss."""
    if out.shape[-1] == 1:
        return 0.5 * (out[..., 0] - target) ** 2
    edges, width = np.linspace(LOW, HIGH, BINS + 1), (HIGH - LOW) / BINS
    cdf = norm.cdf(edges, np.clip(target, LOW, HIGH)[:, None], 0.75 * width)
    mass = np.diff(cdf, axis=1) / (cdf[:, -1:] - cdf[:, :1])
    logits = out - out.max(-1, keepdims=True)
    return -np.sum(mass * (logits - np.log(np.exp(logits).sum(-1, keepdims=True))), -1)
