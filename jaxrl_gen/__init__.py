"""jaxrl_gen: reinforcement learning and generative modelling in JAX, as pure functions.

Table of contents; every name below is loaded when it is first used, so importing the package costs nothing.

    types           the six nouns: Spec, Config (`config`, `static`, `leaf`), State, Algorithm, Env, Carry
    losses          td, value, policy, denoise, latent, group: the mathematics, one number per sample
    nets            Net(init, apply): mlp, ensemble, conv, gru, unet1d, dit, transformer; vq
    samplers        from a denoiser or a decoder to samples; chunks of actions, executed one by one
    distributions   what the policies sample from
    normalize       running mean and deviation, a pytree
    algos           one file, one method: ppo, sac, td3, dqn, pqn, bc, iql, td3_bc, rebrac, prdc, a2pr, cql, edac, beer,
                    odice, arsq, mopo, diffusion_policy, flow_policy, fql, latent_action, grpo
    envs            wrap, mjx, playground, brax, gymnax, probe
    data            recorded episodes: read, checked, held once on the device, and drawn from
    replay          a ring of past rows on the device, a pytree
    loops           on_policy, off_policy, offline, offline_to_online; population, compile_report, run
    launch          a whole experiment from one call: run folder, callbacks, resume, report
    members         every setting with every seed, side by side in one program
    stage           members on devices, made ready to compile
    conclude        what follows training: evaluation, policy, video, result, report
    callbacks       progress, metrics files, evaluation, checkpoints, early stops
    guards          stop_on_nonfinite, and the replay of what went wrong
    evaluate        fixed-length masked rollouts; IQM and bootstrap intervals
    checkpoint      the whole carry, saved and restored
    export          a trained policy as files
    deploy          those files as a policy again; needs nothing of the training code
    sweep           many settings in one program
    render          videos through MuJoCo's renderer
    record          what a run writes down about itself
    runs            what the files of a run folder say
    report          the page that a run leaves behind

`python -m jaxrl_gen` prints what is installed.
"""

import importlib

__version__ = "0.1.0"

_MODULES = (
    "algos", "callbacks", "checkpoint", "conclude", "data", "deploy", "distributions", "envs", "evaluate", "export",
    "guards", "launch", "loops", "losses", "members", "nets", "normalize", "record", "render", "replay", "report",
    "runs", "samplers", "stage", "sweep", "types",
)  # fmt: skip
_TYPES = (
    "Algorithm", "Carry", "Env", "Outcome", "Recalled", "Scene", "Spec", "Transition", "config", "leaf", "static",
)  # fmt: skip

__all__ = ["__version__", *_MODULES, *_TYPES]


def __getattr__(name: str):
    """Load a public module, or a noun of `types`, when it is first asked for."""
    if name in _MODULES:
        return importlib.import_module(f"{__name__}.{name}")
    if name in _TYPES:
        return getattr(importlib.import_module(f"{__name__}.types"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """The table of contents."""
    return sorted(__all__)
