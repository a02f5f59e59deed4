"""Maximum likelihood of given completions: the warm start that a group-relative method needs.

Where no try is ever right, nothing is better than anything else. The State is GRPO's, so `reference` turns what was
cloned into GRPO's beginning.

Reference: Ouyang et al. 2022, arXiv 2203.02155, section 3.5 (supervised fine-tuning)
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxrl_gen.algos import descent, grpo
from jaxrl_gen.losses import policy
from jaxrl_gen.nets import transformer
from jaxrl_gen.samplers import autoregressive
from jaxrl_gen.types import Algorithm, Spec, Transition

Config = grpo.Config
State = grpo.State


def make(cfg: Config, spec: Spec, *, decoder: Any = None) -> Algorithm:
    """Cloning of completions as three pure functions; call it inside jit, so that `cfg` is traced.

    Args:
      cfg: GRPO's Config, of which `lr`, `max_grad_norm`, `end` and the sizes count.
      spec: of a token task.
      decoder: as of `grpo.make`.
    Returns:
      Algorithm whose batch is a Transition of leaves `[1, B, ...]`: prompts, and completions to imitate as actions.
    Raises:
      ValueError: as `grpo.make`.
    """
    decoder = decoder or transformer.decoder(grpo.sizes(cfg, spec))
    algo = grpo.make(cfg, spec, decoder=decoder)
    optimizer = optax.chain(optax.clip_by_global_norm(cfg.max_grad_norm), optax.scale_by_adam())

    def update(state, batch: Transition, key):
        completion = batch.action[0]
        mask = autoregressive.until_end(completion, cfg.end) * batch.valid[0][:, None]

        def loss(params):
            log_prob = autoregressive.completion_log_probs(
                decoder, params, batch.obs["tokens"][0], batch.obs["valid"][0], completion, mask
            )
            error, _ = policy.cloning(log_prob)
            mean = descent.valid_mean(error, mask > 0)
            return mean, {"cloning/loss": mean}

        params, opt_state, metrics = descent.descend(
            loss, state.params, state.opt_state, lr=cfg.lr, optimizer=optimizer
        )
        return State(params, opt_state, state.reference, state.updates + 1.0), metrics

    return algo._replace(update=update)


def reference(cfg: Config, state: State) -> State:
    """A State to go on from with a group-relative method: the policy is its own reference, the optimiser is new.

    Args:
      cfg: Config.
      state: cloned.
    Returns:
      State.
    """
    first = jax.tree.map(jnp.copy, state.params) if cfg.reference else ()
    fresh = jax.tree.map(jnp.zeros_like, state.opt_state)
    return State(state.params, fresh, first, jnp.zeros_like(state.updates))
