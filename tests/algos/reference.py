"""PPO's update in float64 NumPy: loops, central differences for the gradient, and Adam written out.

It knows two nets, both without a hidden layer but for the recurrent unit: `linear` and `recurrent`. Parameters are the
nested dictionaries that the package uses; a batch is a Transition of NumPy arrays.
"""

import jax
import numpy as np
from scipy.special import log_softmax

STEP = 1e-5


def dense(x, layer):
    return x @ layer["kernel"] + layer["bias"]


class Linear:
    """One dense layer; its memory is None throughout."""

    @staticmethod
    def apply(params, x, memory):
        return dense(x, params["Dense_0"]), memory

    start = staticmethod(lambda memory: None)
    forget = staticmethod(lambda memory, ended: None)


class Recurrent:
    """A tanh layer, a gated recurrent unit, and a dense layer."""

    @staticmethod
    def apply(params, x, memory):
        sigmoid = lambda z: 1.0 / (1.0 + np.exp(-z))
        cell, x = params["GRUCell_0"], np.tanh(dense(x, params["Dense_0"]))
        reset = sigmoid(dense(x, cell["ir"]) + memory @ cell["hr"]["kernel"])
        gate = sigmoid(dense(x, cell["iz"]) + memory @ cell["hz"]["kernel"])
        proposal = np.tanh(dense(x, cell["in"]) + reset * dense(memory, cell["hn"]))
        memory = (1.0 - gate) * proposal + gate * memory
        return dense(memory, params["Dense_1"]), memory

    start = staticmethod(lambda memory: memory)
    forget = staticmethod(lambda memory, ended: np.where(ended[:, None], 0.0, memory))


def unroll(net, params, x, memory, ended):
    """Outputs [T, E, ...] and the memory after each row."""
    outputs, memories = [], []
    for t in range(len(x)):
        output, memory = net.apply(params, x[t], memory)
        outputs.append(output)
        memories.append(memory)
        memory = net.forget(memory, ended[t])
    return np.stack(outputs), memories


def log_prob_and_entropy(params, output, choice, discrete):
    """Of the choices; the entropy only where it is exact."""
    if discrete:
        logits = log_softmax(output, -1)
        return np.take_along_axis(logits, choice[..., None], -1)[..., 0], -np.sum(np.exp(logits) * logits, -1)
    std = np.exp(params["head"]["log_std"])
    normal = -0.5 * ((choice - output) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)
    log_cosh = np.logaddexp(choice, -choice) - np.log(2.0)
    return np.sum(normal + 2.0 * log_cosh, -1), 0.0


def targets(cfg, net, params, batch, memory):
    """Old values, normalised advantages and value targets, with invalid rows at zero."""
    ended, valid = batch.terminated | batch.truncated, batch.valid
    values, memories = unroll(net, params["critic"], batch.obs, net.start(memory and memory["critic"]), ended)
    value, reward = values[..., 0], batch.reward * cfg.reward_scale
    advantage = np.zeros_like(value)
    for e in range(value.shape[1]):
        following = 0.0
        for t in reversed(range(len(value))):
            after = None if memories[t] is None else memories[t][e]
            next_value = net.apply(params["critic"], batch.next_obs[t, e], after)[0][0]
            delta = reward[t, e] + cfg.gamma * next_value * (1 - batch.terminated[t, e]) - value[t, e]
            following = delta + (0.0 if ended[t, e] else cfg.gamma * cfg.lam * following)
            following = following if valid[t, e] else 0.0
            advantage[t, e] = following
    mean, std = advantage[valid].mean(), advantage[valid].std()
    return value, (advantage - mean) / (std + 1e-8), advantage + value


def loss(cfg, net, params, batch, memory, known, discrete):
    """The mean over valid rows of all four terms."""
    old_value, advantage, target = known
    ended, valid = batch.terminated | batch.truncated, batch.valid
    actor_memory, critic_memory = (net.start(memory and memory[name]) for name in ("actor", "critic"))
    output, _ = unroll(net, params["actor"], batch.obs, actor_memory, ended)
    value = unroll(net, params["critic"], batch.obs, critic_memory, ended)[0][..., 0]
    log_prob, entropy = log_prob_and_entropy(params, output, batch.extras["choice"], discrete)
    log_ratio = log_prob - batch.extras["log_prob"]
    ratio = np.exp(log_ratio)
    surrogate = -np.minimum(ratio * advantage, np.clip(ratio, 1 - cfg.clip, 1 + cfg.clip) * advantage)
    near = old_value + np.clip(value - old_value, -cfg.value_clip, cfg.value_clip)
    error = 0.5 * np.maximum((value - target) ** 2, (near - target) ** 2)
    penalty = ratio - 1.0 - log_ratio
    total = surrogate + cfg.value_coefficient * error - cfg.entropy_coefficient * entropy + cfg.kl_coefficient * penalty
    return total[valid].mean()


def gradient(function, params):
    """Central differences of a scalar function of a pytree of float64 arrays."""
    leaves, treedef = jax.tree.flatten(params)
    gradients = [np.zeros_like(leaf) for leaf in leaves]
    for leaf, out in zip(leaves, gradients):
        for i in np.ndindex(leaf.shape):
            here = leaf[i]
            leaf[i] = here + STEP
            up = function(params)
            leaf[i] = here - STEP
            out[i] = (up - function(params)) / (2 * STEP)
            leaf[i] = here
    return treedef.unflatten(gradients)


def update(cfg, net, params, batch, memory, discrete):
    """Parameters after `cfg.epochs` steps of clipped Adam on the whole batch, and the norm of each gradient."""
    params = jax.tree.map(lambda x: np.array(x, np.float64), params)
    known = targets(cfg, net, params, batch, memory)
    first = second = jax.tree.map(np.zeros_like, params)
    norms = []
    for t in range(1, cfg.epochs + 1):
        slope = gradient(lambda p: loss(cfg, net, p, batch, memory, known, discrete), params)
        norms.append(np.sqrt(sum(np.sum(x**2) for x in jax.tree.leaves(slope))))
        slope = jax.tree.map(lambda x: x * min(1.0, cfg.max_grad_norm / norms[-1]), slope)
        first = jax.tree.map(lambda m, x: 0.9 * m + 0.1 * x, first, slope)
        second = jax.tree.map(lambda v, x: 0.999 * v + 0.001 * x**2, second, slope)
        params = jax.tree.map(
            lambda p, m, v: p - cfg.lr * m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + cfg.adam_epsilon),
            params, first, second,
        )  # fmt: skip
    return params, norms
