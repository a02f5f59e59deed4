"""What policies have in common: observations seen through running statistics, and a network under a head that acts."""

from collections.abc import Callable
from typing import NamedTuple

from jaxrl_gen import distributions, nets, normalize
from jaxrl_gen.types import PyTree


class Observer(NamedTuple):
    """How observations are seen: three pure functions around a `normalize.Normalizer`."""

    init: Callable  # (spec of one lane's observation) -> Normalizer
    see: Callable  # (normalizer, obs) -> obs
    learn: Callable  # (normalizer, obs, valid) -> Normalizer


def observer(normalized: bool) -> Observer:
    """Observations centred and scaled by the statistics of what was learned from, or as they are.

    Args:
      normalized: or as they are, with an empty normaliser.
    """
    if normalized:
        return Observer(normalize.init, normalize.apply, normalize.update)
    return Observer(
        init=lambda spec: normalize.init(()),
        see=lambda normalizer, obs: obs,
        learn=lambda normalizer, obs, valid: normalizer,
    )


def learned(observer: Observer, normalizer: normalize.Normalizer, steps: NamedTuple) -> tuple[PyTree, NamedTuple]:
    """Statistics that know the rows `steps`, and the rows as they look through them.

    Args:
      observer: how to see.
      normalizer: before these rows.
      steps: with `obs`, `next_obs` and `valid`.
    Returns:
      (normalizer, steps).
    """
    normalizer = observer.learn(normalizer, steps.obs, steps.valid)
    obs, next_obs = (observer.see(normalizer, x) for x in (steps.obs, steps.next_obs))
    return normalizer, steps._replace(obs=obs, next_obs=next_obs)


def headed(actor: nets.Net, head: distributions.Head, see: Callable) -> Callable:
    """The `act` of an Algorithm whose State has `params["actor"]`, `params["head"]` and `normalizer`.

    Args:
      actor: Net from observations to what the head reads.
      head: how its output becomes actions.
      see: of an Observer.
    Returns:
      `(state, obs, key) -> (action, extras)`; without a key the head's mode.
    """

    def act(state, obs, key):
        output = actor.apply(state.params["actor"], see(state.normalizer, obs))
        if key is None:
            return head.mode(state.params["head"], output), {}
        return head.action(head.sample(state.params["head"], output, key)[0]), {}

    return act
