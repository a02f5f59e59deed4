"""The offline methods as experiments compare them: the Config, the batches and the network widths of each.

What all methods share is said once, and most of what is a method's own is its default: an experiment says what it
changes. So rows of these methods compare what a few minutes give with little care, and do not rank the methods.

All share the widths of their layers, the learning rate, the number of updates and the batch of each step of a critic.
They are not equal in size for that: TD3+BC, ReBRAC, PRDC and A2PR make two such steps in an update, so they read twice
the rows; those that imagine give a fifth of the updates to their model; ReBRAC's and FQL's critics are normalised; BEER
has one critic, EDAC, SAC-N and RAVL have ten, and most have two; and the flow policy is a U-Net over four actions.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments import _diagnostics
from jaxrl_gen import loops
from jaxrl_gen.algos import (
    a2pr,
    arsq,
    bc,
    beer,
    cql,
    dynamics,
    edac,
    flow_policy,
    fql,
    iql,
    lipmbrl,
    mopo,
    odice,
    prdc,
    ravl,
    rebrac,
    sac,
    td3_bc,
)
from jaxrl_gen.data import sampling, statistics, trajectory
from jaxrl_gen.data.trajectory import Dataset
from jaxrl_gen.losses import autoregressive
from jaxrl_gen.types import Env, PyTree

COMPARED = 8192  # rows, at most, among which PRDC looks for the nearest
IMAGINED = 5  # steps of a rollout in a model

# Methods that are another with a field of its Config, or with a part.
cal_ql = partial(cql.Config, calibrated=True)
sac_n = partial(edac.Config, diversity=0.0)
arsq_factorised = partial(arsq.make, conditioning=autoregressive.factorised)


class Recipe(NamedTuple):
    """A method, its Config, and what an update of it learns from."""

    make: Callable
    cfg: Any
    sample: Callable = sampling.transitions  # (batch size, n of n-step targets) -> (*brought, key) -> batch
    bring: Callable = lambda data: (data,)  # what is drawn from
    updates: int = 1  # of the critics in one of the algorithm's
    imagines: bool = False  # rollouts in a model, which has to be told where episodes end


def recipes(
    *,
    gamma: float,
    lr: float = 1e-3,
    tau: float = 0.02,
    widths: tuple[int, ...] = (64, 64),
    updates: float = 5e3,
    **changes: dict[str, Any],
) -> dict[str, Recipe]:
    """Every offline method, with layers of the same widths.

    Args:
      gamma, lr, tau: of all methods that have one.
      widths: of hidden layers.
      updates: of a whole run, of which those that imagine give a fifth to the model.
      changes: fields of a method's Config, by the method's name: `iql=dict(expectile=0.9)`.
    Returns:
      Recipes by names. They take observations as they are; what normalises them is left to `loop`.
    """
    cloning = dict(lr=lr, actor_hidden=widths, normalize_obs=False)
    critics = cloning | dict(gamma=gamma, tau=tau, critic_hidden=widths)
    of_arsq = dict(lr=lr, gamma=gamma, tau=tau, hidden=widths, normalize_obs=False)
    model = partial(dynamics.Config, lr=lr, hidden=widths)
    learning = dict(model=model(members=3, elites=2), model_updates=updates / 5, horizon=IMAGINED, kept=400)
    learning |= dict(policy=sac.Config(**critics))
    in_one = mopo.Config(**learning | dict(model=model(members=1, elites=1)))
    found = {
        "bc": Recipe(bc.make, bc.Config(**cloning)),
        "iql": Recipe(iql.make, iql.Config(**critics)),
        "td3_bc": Recipe(td3_bc.make, td3_bc.Config(**critics), updates=2),
        "rebrac": Recipe(rebrac.make, rebrac.Config(**critics), with_next_actions, updates=2),
        "prdc": Recipe(prdc.make, prdc.Config(**critics), near, beside_some, updates=2),
        "a2pr": Recipe(a2pr.make, a2pr.Config(**critics, proposal_hidden=widths), updates=2),
        "beer": Recipe(beer.make, beer.Config(**critics)),
        "cql": Recipe(cql.make, cql.Config(**critics)),
        "cal_ql": Recipe(cql.make, cal_ql(**critics), bring=lambda data: (trajectory.with_returns_to_go(data, gamma),)),
        "edac": Recipe(edac.make, edac.Config(**critics)),
        "sac_n": Recipe(edac.make, sac_n(**critics)),
        "odice": Recipe(odice.make, odice.Config(**critics)),
        "arsq": Recipe(arsq.make, arsq.Config(**of_arsq)),
        "arsq_factorised": Recipe(arsq_factorised, arsq.Config(**of_arsq)),
        "mopo": Recipe(mopo.make, mopo.Config(**learning), short, imagines=True),
        "ravl": Recipe(
            ravl.make, ravl.Config(**learning | dict(policy=edac.Config(**critics, diversity=0.5))), short, imagines=True
        ),
        "lipmbrl": Recipe(lipmbrl.make, lipmbrl.Config(learning=in_one), short, imagines=True),
        "fql": Recipe(fql.make, fql.Config(**critics, closeness=1.0, scale_free=True)),
        "flow_policy": Recipe(
            flow_policy.make,
            flow_policy.Config(lr=lr, history=1, horizon=4, execute=1, channels=(32, 64), kernel=3, time_width=32),
            chunks,
        ),
    }  # fmt: skip
    for method, fields in changes.items():
        found[method] = found[method]._replace(cfg=dataclasses.replace(found[method].cfg, **fields))
    return found


def with_next_actions(batch_size: int, horizon: int) -> Callable:
    """Windows of rows that know what was done after them."""
    return sampling.transitions(batch_size, horizon, next_actions=True)


def short(batch_size: int, horizon: int) -> Callable:
    """Windows no longer than what is imagined."""
    return sampling.transitions(batch_size, min(horizon, IMAGINED))


def chunks(batch_size: int, horizon: int) -> Callable:
    """What a policy over sequences clones: chunks of four actions."""
    return sampling.windows(batch_size, 1, 4)


def near(batch_size: int, horizon: int) -> Callable:
    """Batches with the rows that PRDC compares them with."""
    sample = sampling.transitions(batch_size, horizon)
    return lambda data, obs, action, key: prdc.Among(sample(data, key), obs, action)


def beside_some(data: Dataset) -> tuple[Dataset, PyTree, jax.Array]:
    """The data, and the observations and actions of rows at even distances, at most COMPARED."""
    every = -(-len(data.reward) // COMPARED)
    return data, trajectory.before(data)[::every], data.action[::every]


METHODS = tuple(recipes(gamma=0.99))


def loop(
    recipe: Recipe,
    env: Env,
    data: Dataset,
    *,
    batch_size: int,
    horizon: int,
    terminate: Callable = dynamics.never,
    scaled: bool = False,
) -> loops.Loop:
    """The loop that learns by a recipe, 500 updates in a chunk.

    Args:
      recipe: Recipe.
      env: whose spec the data has.
      data: Dataset.
      batch_size: of each update of the critics.
      horizon: n of n-step targets.
      terminate: `(obs, action, next_obs) -> bool [B]`, for those that imagine.
      scaled: learn in units of the data's spread and range, as with `statistics.scaled`.
    Returns:
      Loop.
    """
    make, of = recipe.make, statistics.of(data) if scaled else None
    if recipe.imagines:
        make = partial(make, terminate=in_own_units(terminate, of) if scaled else terminate)
    if scaled:
        make, data = acting_scaled(make, of), in_units(data, of)
    sample = recipe.sample(batch_size * recipe.updates, horizon)
    return loops.offline(make, env, sample, recipe.bring(data), updates=500)


def listeners(recipe: Recipe, loop: loops.Loop) -> list[Callable]:
    """What is measured beside the training: of those that imagine, what their claims are about."""
    if not recipe.imagines:
        return []
    return [_diagnostics.listener(_diagnostics.models(recipe.cfg, loop.env, loop.data[0]))]


def in_units(data: Dataset, of: statistics.Statistics) -> Dataset:
    """The data as `statistics.scaled` would show it: once, and to whatever is drawn from it."""
    return data._replace(
        obs=statistics.standardized(of.obs, data.obs), action=statistics.to_unit(of.action, data.action)
    )


def acting_scaled(make: Callable, of: statistics.Statistics) -> Callable:
    """`statistics.scaled` of an algorithm that learns from data which are scaled already."""
    whole = statistics.scaled(make, of)

    def of_one(cfg, spec):
        within = make(cfg, spec)

        def update(state, batch, key):
            learned, metrics = within.update(state.state, batch, key)
            return state._replace(state=learned), metrics

        return whole(cfg, spec)._replace(update=update)

    return of_one


def in_own_units(terminate: Callable, of: statistics.Statistics) -> Callable:
    """What ends an episode, told of scaled observations and actions.

    Args:
      terminate: `(obs [B, D], action, next_obs) -> bool [B]`, of a simulator's.
      of: by which they are scaled.
    """
    spread = jnp.where(of.obs.std < statistics.FLAT, 1.0, of.obs.std)
    own = lambda obs: of.obs.mean + spread * obs
    return lambda obs, action, next_obs: terminate(own(obs), statistics.from_unit(of.action, action), own(next_obs))
