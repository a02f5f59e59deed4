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
from jaxrl_gen.losses import td, value
from jaxrl_gen.types import PyTree, Spec


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
