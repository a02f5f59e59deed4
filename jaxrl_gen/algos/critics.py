"""What algorithms have in common whose critics judge actions: networks, and learning by temporal differences.

What sets one method's critics apart from another's is a part of this: how outputs stand for a value, what becomes of an
ensemble's values, and a further term of the loss.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxrl_gen import nets
from jaxrl_gen.algos import descent
from jaxrl_gen.losses import scale, td, value
from jaxrl_gen.types import Algorithm, PyTree, Spec


class Judged(NamedTuple):
    """What a further term of the critics' loss reads: `term(judged, key) -> (loss [B], metrics)`."""

    values: Callable  # (obs, action [..., A]) -> [N, ...], differentiable in the critics' parameters
    each: Callable  # (obs, action [N, ..., A]) -> [N, ...], the value that each member gives an action of its own
    members: int  # N
    steps: td.Steps
    next_action: jax.Array  # [B, A], the one in the target, a constant
    propose: Callable  # (obs, key) -> (action [B, A], log_prob [B]), the policy's own, constants
    params: PyTree  # the critics', differentiable
    slow: PyTree  # the target's


Term = Callable[[Judged, jax.Array], tuple[jax.Array, dict[str, jax.Array]]]


def no_term(judged: Judged, key: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Nothing beside the temporal difference."""
    return jnp.zeros_like(judged.steps.reward), {}


def together(*terms: Term) -> Term:
    """The sum of several terms, each with a key of its own; those that are `no_term` do not count.

    Args:
      terms: with metrics of different names.
    """
    terms = [term for term in terms if term is not no_term] or [no_term]
    if len(terms) == 1:
        return terms[0]

    def term(judged, key):
        told = [term(judged, key) for term, key in zip(terms, jax.random.split(key, len(terms)))]
        return sum(loss for loss, _ in told), {name: x for _, metrics in told for name, x in metrics.items()}

    return term


def judged(spec: Spec) -> tuple[PyTree, jax.ShapeDtypeStruct]:
    """The shapes of what critics judge: an observation, and a continuous action."""
    return spec.obs, jax.ShapeDtypeStruct((spec.action_size,), jnp.float32)


def perceptrons(
    spec: Spec, hidden: Sequence[int], members: int, size: int, activation: Callable = jax.nn.relu
) -> nets.Net:
    """An ensemble of perceptrons over (observation, action), flattened, `[N, ..., size]`.

    Args:
      spec: of one lane, with continuous actions.
      hidden: widths.
      members: N.
      size: of the output, such as a Readout's.
      activation: after each hidden layer.
    """
    return nets.ensemble(nets.flat(nets.mlp((*hidden, size), activation), judged(spec)), members)


def learning(critic: nets.Net, readout: value.Readout, target_value: Callable, term: Term) -> Callable:
    """What critics learn from rows: `(params, slow, steps, next_action, cost, propose, key) -> (scalar, metrics)`.

    Each member's loss towards the target of `readout` at (next_obs, next_action), in which `cost` [B] is taken from the
    next value, and the further term.

    Args:
      critic: Net from (observation, action) to `[N, ..., readout.size]`.
      readout: how outputs stand for a value.
      target_value: `(values [N, B], key) -> [B]`, or `[N, B]` where each learns from itself.
      term: a further one.
    """

    def each(params, obs, actions):
        """Members one by one: all that an ensemble's parameters have is their leading axis."""
        alone = lambda member: jax.tree.map(lambda x: x[None], member)
        of_one = lambda member, action: readout.value(critic.apply(alone(member), (obs, action)))[0]
        return jax.vmap(of_one)(params, actions)

    def loss(params, slow, steps, next_action, cost, propose, key):
        key_members, key_term = jax.random.split(key)
        next_outputs = critic.apply(slow, (steps.next_obs, next_action))
        reward = steps.reward - steps.discount * cost
        target = readout.target(next_outputs, reward, steps.discount, lambda values: target_value(values, key_members))
        outputs = critic.apply(params, (steps.obs, steps.action))
        error, of_error = value.ensemble_loss(readout.loss, outputs, target)
        values = lambda obs, action: readout.value(critic.apply(params, (obs, action)))
        judged = Judged(
            values, lambda obs, actions: each(params, obs, actions), len(outputs), steps, next_action, propose, params,
            slow,
        )  # fmt: skip
        more, of_term = term(judged, key_term)
        metrics = of_error | of_term | {"critic/value": jnp.mean(readout.value(outputs))}
        return descent.valid_mean(error + more, steps.valid), metrics

    return loss


class Rescaled(NamedTuple):
    """The State of an algorithm, and the units that its critics learn in."""

    state: PyTree
    scale: scale.Scale


def rescaled(make: Callable, *, rate: float = 1e-3) -> Callable:
    """`make` of an algorithm whose critics learn in units of their targets' spread, whatever the size of rewards.

    After each update the units follow its targets, and the last layers of the critics, slow ones too, move against them
    so that all values stay as they are (PopArt). The first batch gives the units alone: in those of nothing known its
    gradient could be so large that Adam would not forget it for a thousand updates.

    Args:
      make: `(cfg, spec, *, readout) -> Algorithm` with perceptrons for critics, in `params["critic"]` and in `target`
        or `target["critic"]`: `sac.make`, `td3.make` and what is made of them.
      rate: of the units, see `scale.follow`.
    Returns:
      `(cfg, spec) -> Algorithm` on a State `Rescaled`.
    Reference: van Hasselt et al. 2016, arXiv 1602.07714. Different from the paper: a batch counts for the units of the
      next one, not for its own.
    """

    def of_one(cfg, spec: Spec) -> Algorithm:
        within = lambda units: make(cfg, spec, readout=scale.regression(units))
        plain = within(scale.unit())

        def update(state, batch, key):
            after, metrics = within(state.scale).update(state.state, batch, key)
            units = scale.follow(state.scale, metrics["critic/target"], metrics["critic/target_std"], rate=rate)
            keep = lambda tree: tree | {"critic": scale.preserved(tree["critic"], state.scale, units)}
            slow = keep(after.target) if "critic" in after.target else keep({"critic": after.target})["critic"]
            moved, first = after._replace(params=keep(after.params), target=slow), state.scale.count == 0
            learned = jax.tree.map(lambda new, old: jnp.where(first, old, new), moved, state.state)
            return Rescaled(learned, units), metrics | {"critic/unit": units.std}

        act = lambda state, obs, key: plain.act(state.state, obs, key)
        return Algorithm(lambda key: Rescaled(plain.init(key), scale.unit()), update, act, plain.memory)

    return of_one
