"""Latent actions from films of sprites, and a policy on them that few labels teach to act.

Run:      python -m experiments.latent_action_sprites
Method:   latent_action
Hardware: AMD EPYC, 2 cores, jax 0.10.2
Minutes:  13.4
Expect:   probe accuracy in per cent, 8 codes, 0 distractors: IQM 100, 95 % interval 100 to 100, over 5 seeds

Three questions. How well does a linear probe read the true action from the codes, in episodes that were held out, as
the codebook and the number of distractors grow? How does that compare with an inverse model trained on all true
actions? And with L labelled steps: what wins, a policy on codes decoded by those labels, cloning of what an inverse
model says that learned from them, or cloning of them alone?

What came out, seed by seed in the record: without distractors eight codes are the actions. With one, nothing tells the
model whom to follow: most seeds follow the sprite, and the probe is all but perfect; the others follow the distractor,
and the probe knows nothing. Policies on codes beat cloning of few labels, but from 32 labels on not cloning of what an
inverse model says: in this world, where every action is seen, few labels are enough for one.
"""

import dataclasses
import time
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments import _scored
from jaxrl_gen import evaluate, launch, loops, nets
from jaxrl_gen.algos import bc, latent_action
from jaxrl_gen.envs.tasks import sprites
from jaxrl_gen.nets import patches
from jaxrl_gen.types import Algorithm, Env, PyTree, Transition, check, static, strong


@dataclasses.dataclass(frozen=True)
class Sprites(launch.Experiment):
    """Latent actions on the sprite world."""

    name: str = launch.option("latent_action_sprites")
    seeds: int = 5
    total_steps: float = launch.option(400, low=1)  # updates of every model
    eval_episodes: int = launch.option(64, low=1)
    places: int = static(5, low=3)
    pixels: int = static(4, low=1)  # of a place: frames of 20 x 20
    actions: int = static(5, low=2)
    distractors: tuple[int, ...] = static((0, 1))
    codes: tuple[int, ...] = static((4, 8, 32))
    headline: tuple[int, int] = static((8, 0))  # codes and distractors of the score
    policy_world: tuple[int, int] = static((32, 1))  # codes and distractors of the policies
    labels: tuple[int, ...] = static((8, 32, 128))  # of the policies; none: no policies
    lanes: int = static(96, low=2)  # of a film, a quarter of them held out
    steps: int = static(64, low=1)  # of each
    slips: float = 0.1  # of the behaviour that the policies learn from
    batch: int = static(64, low=1)
    algo: latent_action.Config = latent_action.Config(patch=4, features=16, hidden=32)
    cloning: bc.Config = bc.Config(lr=1e-3, actor_hidden=(128,), normalize_obs=False)


class Film(NamedTuple):
    """Steps of a film as rows, leaves [M, ...]."""

    obs: jax.Array
    next_obs: jax.Array
    action: jax.Array


def shoot(exp: Sprites, distractors: int, slips: float) -> tuple[Env, Film, Film]:
    """The world, a film of it to learn from, and one of other episodes."""
    env = sprites.make(
        places=exp.places, pixels=exp.pixels, actions=exp.actions, distractors=distractors, time_limit=2 * exp.places
    )
    behave = sprites.seeker(places=exp.places, actions=exp.actions, slips=slips)
    film = jax.jit(partial(sprites.film, env, behave, lanes=exp.lanes, steps=exp.steps))(jax.random.key(exp.seed))
    cut = exp.lanes - exp.lanes // 4
    rows = lambda part: jax.tree.map(lambda x: x[:, part].reshape(-1, *x.shape[2:]), film)
    return env, *(Film(x.obs, x.next_obs, x.action) for x in (rows(slice(cut)), rows(slice(cut, None))))


def learn(exp: Sprites, make, cfg, env: Env, sample, shared: tuple, own: tuple = ()) -> tuple[PyTree, dict, float]:
    """Train all seeds in one program: their States, the last tenth's metrics, and the seconds without compiling.

    Args:
      sample: `(*shared, *own, key) -> batch`.
      shared, own: data of all seeds, and of each: leaves [S, ...].
    """
    of_one = (*shared, *jax.tree.map(lambda x: x[0], own))  # of one seed, as an example; the chunk is given all
    loop = loops.offline(make, env, sample, of_one, updates=max(1, int(exp.total_steps) // 10))
    cfg, keys = strong(cfg), jax.random.split(jax.random.key(exp.seed + 1), exp.seeds)
    axes = (None, 0, *[None] * len(shared), *[0] * len(own))
    carry = jax.jit(jax.vmap(loop.init, (None, 0)))(cfg, keys)
    chunk = jax.jit(jax.vmap(loop.chunk, axes), donate_argnums=1).lower(cfg, carry, *shared, *own).compile()
    start = time.perf_counter()
    for _ in range(10):
        carry, metrics = chunk(cfg, carry, *shared, *own)
    return carry.state, jax.device_get(metrics), time.perf_counter() - start


def pairs(film: Film, batch: int, key: jax.Array) -> latent_action.Pair:
    """A batch of pairs of frames."""
    index = jax.random.randint(key, (batch,), 0, len(film.action))
    return latent_action.Pair(film.obs[index], film.next_obs[index], jnp.ones((batch,), bool))


def labelled(obs: PyTree, batch: int, action: jax.Array, order: jax.Array, count: jax.Array, key: jax.Array):
    """A batch of the first `count` rows of an order, with actions, as cloning takes it: windows of one row."""
    index = order[jax.random.randint(key, (batch,), 0, count)]
    zeros, ones = jnp.zeros((1, batch)), jnp.ones((1, batch), bool)
    seen = jax.tree.map(lambda x: x[index][None], obs)
    return Transition(seen, action[index][None], zeros, seen, ~ones, ~ones, ones)


def infer(algo: Algorithm, states: PyTree, obs: PyTree, batch: int = 256) -> jax.Array:
    """What each seed's model says of all rows, [S, M] or [S, M, N], a few rows at a time."""
    count = jax.tree.leaves(obs)[0].shape[0]
    pad = -count % batch
    pieces = jax.tree.map(
        lambda x: jnp.concatenate([x, jnp.repeat(x[:1], pad, 0)]).reshape(-1, batch, *x.shape[1:]), obs
    )

    def of_seed(state):
        said = jax.lax.map(lambda piece: algo.act(state, piece, None)[0], pieces)
        return said.reshape(-1, *said.shape[2:])[:count]

    return jax.jit(lambda states: jax.lax.map(of_seed, states))(states)


def probe(codes: int, train: tuple, test: tuple, ridge: float = 1e-3) -> np.ndarray:
    """Accuracy of each seed's linear probe from one-hot codes to actions, by least squares, in float64: [S]."""

    def seen(code):
        one_hot = np.eye(codes)[np.asarray(code)].reshape(len(code), -1)
        return np.concatenate([one_hot, np.ones((len(code), 1))], 1)

    accuracy = []
    for code, held_out in zip(train[0], test[0]):
        x, y = seen(code), np.eye(int(train[1].max()) + 1)[train[1]]
        weight = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T @ y)
        accuracy.append(np.mean((seen(held_out) @ weight).argmax(1) == test[1]))
    return np.array(accuracy)


def of_pairs(env: Env) -> Env:
    """A world whose observation is a pair of frames, for who learns to tell what happened between them."""
    return env._replace(spec=env.spec._replace(obs=(env.spec.obs, env.spec.obs)))


def inverse_model(exp: Sprites, cfg: bc.Config, spec) -> Algorithm:
    """Cloning from pairs of frames."""
    change = patches.of_images(patches.change(exp.algo.hidden, exp.actions), exp.algo.patch, exp.algo.features)
    return bc.make(cfg, spec, actor=change)


def policy(exp: Sprites, choices: int, cfg: bc.Config, spec) -> Algorithm:
    """Cloning from frames, of actions or of codes."""
    across = exp.places * exp.pixels // exp.algo.patch
    grid = jax.ShapeDtypeStruct((across, across, exp.algo.features), jnp.float32)
    head = nets.flat(nets.mlp((*cfg.actor_hidden, choices), jax.nn.relu), grid)
    actor = patches.of_images(head, exp.algo.patch, exp.algo.features)
    return bc.make(cfg, spec._replace(action_size=choices), actor=actor)


def complaints(states: PyTree, say) -> list[str]:
    """What is wrong with the seeds' codebooks, said and handed on: one that collapsed must not end the others' run."""
    lines = latent_action.collapsed(states)
    for line in lines:
        say(line)
    return lines


def codebooks(exp: Sprites, say) -> list[dict]:
    """Probe accuracy for every codebook and number of distractors, beside an inverse model that has all the labels."""
    rows = []
    for distractors in exp.distractors:
        env, film, other = shoot(exp, distractors, 1.0)
        actions = np.asarray(film.action), np.asarray(other.action)
        everything = jnp.arange(len(film.action))[None].repeat(exp.seeds, 0)
        both, held_out = (film.obs, film.next_obs), (other.obs, other.next_obs)
        states, _, seconds = learn(
            exp, partial(inverse_model, exp), exp.cloning, of_pairs(env),
            lambda obs, action, order, key: labelled(obs, exp.batch, action, order, len(action), key),
            (both, film.action), (everything,),
        )  # fmt: skip
        said = infer(inverse_model(exp, exp.cloning, of_pairs(env).spec), states, held_out)
        accuracy = np.mean(np.asarray(said) == actions[1], 1)
        rows.append({"distractors": distractors, "model": "labels", "accuracy": accuracy, "seconds": seconds})
        say(f"{distractors} distractors, all labels: {told(accuracy)}, {seconds:.0f} s")
        for codes in exp.codes:
            cfg = dataclasses.replace(exp.algo, codes=codes)
            states, metrics, seconds = learn(
                exp, latent_action.make, cfg, env, lambda film, key: pairs(film, exp.batch, key), (film,)
            )
            algo = latent_action.make(cfg, env.spec)
            untrained = jax.vmap(algo.init)(jax.random.split(jax.random.key(exp.seed + 2), exp.seeds))
            accuracy, at_first = (
                probe(codes, (infer(algo, x, both), actions[0]), (infer(algo, x, held_out), actions[1]))
                for x in (states, untrained)
            )
            rows.append({
                "distractors": distractors, "model": codes, "accuracy": accuracy, "untrained": at_first,
                "perplexity": metrics["codebook/perplexity"], "collapsed": metrics["codebook/collapsed"],
                "error": metrics["forward/error"], "complaints": complaints(states, say), "seconds": seconds,
            })  # fmt: skip
            in_use = float(np.mean(metrics["codebook/perplexity"]))
            say(f"{distractors} distractors, {codes} codes: {told(accuracy)}, untrained {told(at_first)}, "
                f"{in_use:.1f} codes in use, {seconds:.0f} s")  # fmt: skip
    return rows


def policies(exp: Sprites, say) -> list[dict]:
    """Success of policies by the number of labelled steps that each has, and of cloning that has them all."""
    codes, distractors = exp.policy_world
    env, film, _ = shoot(exp, distractors, exp.slips)
    count, keys = len(film.action), jax.random.split(jax.random.key(exp.seed + 3), exp.seeds)
    orders = jax.vmap(lambda key: jax.random.permutation(key, count))(keys)  # whose first L are the labelled ones
    truth = film.action[None].repeat(exp.seeds, 0)
    everything, both = jnp.full((exp.seeds,), count), (film.obs, film.next_obs)
    of_rows = lambda obs, action, order, count, key: labelled(obs, exp.batch, action, order, count, key)
    clone = lambda choices, action, known: learn(
        exp, partial(policy, exp, choices), exp.cloning, env, of_rows, (film.obs,), (action, orders, known)
    )[0]

    def success(states, meaning=None):
        choices = exp.actions if meaning is None else codes

        def of_seed(state, meaning, key):
            algo = policy(exp, choices, exp.cloning, env.spec)
            algo = algo if meaning is None else latent_action.decoded(algo, meaning)
            return jnp.mean(evaluate.episodes(algo, env, state, key, lanes=exp.eval_episodes).returns)

        keys = jax.random.split(jax.random.key(exp.seed + 4), exp.seeds)
        return np.asarray(jax.jit(jax.vmap(of_seed, (0, None if meaning is None else 0, 0)))(states, meaning, keys))

    def row(name, labels, score):
        say(f"{labels} labels, {name}: success {told(score)}")
        return {"method": name, "labels": labels, "success": score}

    cfg = dataclasses.replace(exp.algo, codes=codes)
    model, _, _ = learn(exp, latent_action.make, cfg, env, lambda film, key: pairs(film, exp.batch, key), (film,))
    wrong = {"complaints": complaints(model, say)}  # a seed that learns from a dead codebook counts, and is named
    code = infer(latent_action.make(cfg, env.spec), model, both)
    on_codes = clone(codes, code, everything)
    rows = [row("cloning", count, success(clone(exp.actions, truth, everything)))]
    for labels in exp.labels:
        known = jnp.full((exp.seeds,), labels)
        mean = partial(latent_action.meanings, codes=codes, actions=exp.actions)
        meaning = jax.vmap(lambda code, order: mean(code[order[:labels]], film.action[order[:labels]],
                                                    jnp.ones((labels,), bool)))(code, orders)  # fmt: skip
        rows.append(row("codes", labels, success(on_codes, meaning)) | wrong)
        inverse, _, _ = learn(
            exp, partial(inverse_model, exp), exp.cloning, of_pairs(env), of_rows, (both,), (truth, orders, known)
        )
        said = infer(inverse_model(exp, exp.cloning, of_pairs(env).spec), inverse, both)
        rows.append(row("inverse model", labels, success(clone(exp.actions, said, everything))))
        rows.append(row("cloning", labels, success(clone(exp.actions, truth, known))))
    return rows


def told(scores: np.ndarray) -> str:
    """The mean over seeds and the worst."""
    return f"{np.mean(scores):.3f} (worst {np.min(scores):.3f})"


def picture(path: Path, accuracies: list[dict], successes: list[dict]) -> None:
    """Accuracy by codes and distractors, and success by labels, each seed a dot."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6))
    for number in sorted({row["distractors"] for row in accuracies}):
        rows = [row for row in accuracies if row["distractors"] == number]
        names = [str(row["model"]) for row in rows[1:]] + ["labels"]
        scores = [row["accuracy"] for row in rows[1:]] + [rows[0]["accuracy"]]
        (line,) = left.plot(names, [np.mean(x) for x in scores], "o-", label=f"{number} distractors")
        for x, of_seeds in zip(names, scores):
            left.plot([x] * len(of_seeds), of_seeds, ".", color=line.get_color(), ms=4)
    left.set(xlabel="codes", title="accuracy of a linear probe, held out", ylim=(0, 1.05))
    for name in ("codes", "inverse model", "cloning"):
        rows = [row for row in successes[1:] if row["method"] == name]
        (line,) = right.plot([row["labels"] for row in rows], [np.mean(row["success"]) for row in rows], label=name)
        for row in rows:
            right.plot([row["labels"]] * len(row["success"]), row["success"], ".", color=line.get_color(), ms=4)
    if successes:
        right.axhline(np.mean(successes[0]["success"]), color="0.5", ls=":", label="cloning, all labels")
    right.set(xlabel="labelled steps", xscale="log", title="success of the policy", ylim=(0, 1.05))
    for axes in (left, right):
        axes.legend(frameon=False, fontsize=8)
        axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main(exp: Sprites) -> Path:
    """Train latent-action models and policies on them, and write down how well both read the true actions."""
    check(exp, "experiment")
    codes, distractors = exp.headline
    if codes not in exp.codes or distractors not in exp.distractors:
        raise ValueError(
            f"headline is {exp.headline}; allowed: one of codes {exp.codes} and distractors {exp.distractors}"
        )
    folder = _scored.make_folder(exp)
    say = partial(print, flush=True)
    accuracies = codebooks(exp, say)
    successes = policies(exp, say) if exp.labels else []
    of_headline = {row["model"]: row for row in accuracies if row["distractors"] == distractors}
    score = 100.0 * of_headline[codes]["accuracy"]
    what = f"probe accuracy in per cent, {codes} codes, {distractors} distractors"
    seconds = of_headline[codes]["seconds"]
    _scored.write(
        exp, folder, what=what, scores=score, training=seconds, accuracies=accuracies, successes=successes
    )  # fmt: skip
    picture(folder / "curve.png", accuracies, successes)
    say(f"look at {folder}")
    return folder


if __name__ == "__main__":
    launch.cli(main, Sprites)
