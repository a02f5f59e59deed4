"""GRPO against a float64 NumPy run of whole updates, what must not matter, and tiny tasks that every variant learns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen import loops, types
from jaxrl_gen.algos import grpo, token_cloning
from jaxrl_gen.envs.tasks import arithmetic, tokens
from jaxrl_gen.nets import transformer
from jaxrl_gen.types import Spec, Transition

VOCAB, PROMPT, LENGTH, STARTS, COUNT = 5, 2, 4, 3, 4
CFG = grpo.Config(lr=0.05, vocab=VOCAB, clip_low=0.1, clip_high=0.15, kl_coefficient=0.3, temperature=0.8, epochs=3)
SPEC = Spec(
    {"tokens": jax.ShapeDtypeStruct((PROMPT,), jnp.int32), "valid": jax.ShapeDtypeStruct((PROMPT,), jnp.bool_)}, LENGTH
)
METHODS = {
    "grpo": grpo.make, "dr_grpo": grpo.dr_grpo, "dapo": grpo.dapo, "rloo": grpo.rloo, "gspo": grpo.gspo,
    "cispo": grpo.cispo, "reinforce_plus_plus": grpo.reinforce_plus_plus,
}  # fmt: skip


def table(vocab=VOCAB, context=16):
    """A decoder whose next token depends on the last alone: its parameters are a table of logits."""

    def init(key):
        return {"table": jax.random.normal(key, (vocab, vocab))}

    def apply(params, tokens, valid, start=0):
        return params["table"][tokens[:, start:]]

    def extend(params, tokens, valid, cache):
        return params["table"][tokens[:, -1]], cache

    sizes = transformer.Sizes(vocab, context=context)
    return transformer.Decoder(init, apply, lambda rows, places: (), extend, sizes)


@functools.cache
def written():
    """A State of the table, and a batch that it wrote itself, with made-up scores."""
    algo, rng = grpo.make(types.strong(CFG), SPEC, decoder=table()), np.random.default_rng(0)
    obs = {"tokens": jnp.asarray(rng.integers(1, VOCAB, (STARTS, 1, PROMPT)).repeat(COUNT, 1)[None], jnp.int32)}
    obs["valid"] = jnp.ones(obs["tokens"].shape, bool)
    state = jax.jit(algo.init)(jax.random.key(0))
    action, extras = jax.jit(algo.act)(state, obs, jax.random.key(1))
    score = jnp.asarray(rng.normal(size=(1, STARTS, COUNT)), jnp.float32)
    yes = jnp.ones(score.shape, bool)
    return state, Transition(obs, action, score, obs, yes, ~yes, yes, extras)


def start(make=grpo.make, **changes):
    """(algorithm of the table, its State, a batch)."""
    return make(types.strong(dataclasses.replace(CFG, **changes)), SPEC, decoder=table()), *written()


def numpy_run(logits, batch, coefficient):
    """The parameters after three epochs of GRPO and Adam, by finite differences of a loss written in plain loops."""
    logits, reference = np.asarray(logits, np.float64), np.asarray(logits, np.float64)
    prompt, answers, score = (np.asarray(x[0]) for x in (batch.obs["tokens"], batch.action, batch.reward))

    def log_probs(logits, n, g):
        before, found = prompt[n, g, -1], []
        for token in answers[n, g]:
            row = logits[before] / 0.8
            found.append(row[token] - np.log(np.exp(row).sum()))
            before = token
            if token == 0:
                break
        return np.array(found)

    old = {at: log_probs(logits, *at) for at in np.ndindex(STARTS, COUNT)}

    def loss(logits):
        total = 0.0
        for n, g in old:
            advantage = (score[n, g] - score[n].mean()) / (score[n].std(ddof=1) + 1e-6)
            now, ref = log_probs(logits, n, g), log_probs(reference, n, g)
            ratio = np.exp(now - old[n, g])
            each = np.maximum(-advantage * ratio, -advantage * np.clip(ratio, 0.9, 1.15))
            total += np.mean(each + coefficient * (np.exp(ref - now) + now - ref - 1.0))
        return total / len(old)

    m = v = np.zeros_like(logits)
    for t in range(1, 4):
        gradient = np.zeros_like(logits)
        for at in np.ndindex(logits.shape):
            step = np.zeros_like(logits)
            step[at] = 1e-6
            gradient[at] = (loss(logits + step) - loss(logits - step)) / 2e-6
        gradient *= min(1.0, 1.0 / np.linalg.norm(gradient))
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        logits = logits - 0.05 * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return logits


def test_three_epochs_equal_numpy():
    algo, state, batch = start()
    after, metrics = jax.jit(algo.update)(state, batch, jax.random.key(2))
    expected = numpy_run(state.params["table"], batch, 0.3)
    assert np.abs(expected - np.asarray(state.params["table"])).max() > 0.05
    np.testing.assert_allclose(after.params["table"], expected, atol=2e-3)
    np.testing.assert_array_equal(after.reference["table"], state.params["table"])
    assert float(metrics["actor/clip_fraction"]) > 0 and float(after.updates) == 1.0


@pytest.mark.parametrize("make", [grpo.make, grpo.reinforce_plus_plus])
def test_what_stands_after_the_end_or_where_padded_never_counts(make):
    algo, state, batch = start(make, kl_in_reward=0.1, epochs=2)
    update = jax.jit(algo.update)
    after_end = np.cumsum(np.asarray(batch.action) == 0, -1) - (np.asarray(batch.action) == 0) > 0
    assert after_end.any()
    other = batch._replace(
        action=jnp.where(after_end, 3, batch.action),
        extras={"log_prob": jnp.where(after_end, -7.0, batch.extras["log_prob"])},
    )
    for one, two in zip(
        jax.tree.leaves(update(state, batch, jax.random.key(2))[0]),
        jax.tree.leaves(update(state, other, jax.random.key(2))[0]),
        strict=True,
    ):
        np.testing.assert_allclose(one, two, atol=1e-6)


def test_a_score_that_is_no_number_is_left_out_of_its_group():
    algo, state, batch = start(epochs=1)
    update = jax.jit(algo.update)
    bad = jnp.zeros(batch.reward.shape, bool).at[0, 1, 2].set(True)
    sick = batch._replace(reward=jnp.where(bad, jnp.nan, batch.reward), valid=~bad)
    other = batch._replace(reward=jnp.where(bad, 100.0, batch.reward), valid=~bad)
    (one, metrics), (two, _) = update(state, sick, jax.random.key(0)), update(state, other, jax.random.key(0))
    np.testing.assert_array_equal(one.params["table"], two.params["table"])
    assert np.all(np.isfinite(one.params["table"])) and float(metrics["guard/skipped_updates"]) == 0.0
    assert not np.array_equal(one.params["table"], update(state, batch, jax.random.key(0))[0].params["table"])


def test_scores_that_are_all_equal_move_nothing_without_a_divergence():
    algo, state, batch = start(kl_coefficient=0.0)
    equal = batch._replace(reward=jnp.ones_like(batch.reward))
    after, metrics = jax.jit(algo.update)(state, equal, jax.random.key(0))
    np.testing.assert_array_equal(after.params["table"], state.params["table"])
    assert float(metrics["actor/informative"]) == 0.0


def test_the_divergence_pulls_back_to_the_reference_in_the_loss_and_in_the_reward():
    moved = {}
    for where in ("kl_coefficient", "kl_in_reward"):
        weight = {where: 5.0}
        algo, state, batch = start(
            **{"kl_coefficient": 0.0, "temperature": 1.0, "max_grad_norm": 1e9, "epochs": 1} | weight
        )
        away = {"table": state.params["table"] + jnp.eye(VOCAB)}
        state = state._replace(params=away)
        action, extras = jax.jit(algo.act)(state, batch.obs, jax.random.key(3))
        batch = batch._replace(action=action, extras=extras, reward=jnp.zeros_like(batch.reward))
        after, metrics = jax.jit(algo.update)(state, batch, jax.random.key(0))
        step = np.asarray(after.params["table"] - away["table"])
        moved[where] = float(np.sum(step * np.asarray(state.reference["table"] - away["table"])))
        assert float(metrics["actor/kl_reference"]) > 0
    assert moved["kl_coefficient"] > 0.0 and moved["kl_in_reward"] > 0.0


def test_without_a_reference_there_is_none():
    algo, _, batch = start(reference=False)
    state = jax.eval_shape(algo.init, jax.random.key(0))
    after, metrics = jax.eval_shape(algo.update, state, batch, jax.random.key(0))
    assert state.reference == () == after.reference and "actor/kl_reference" not in metrics


def test_minibatches_of_one_epoch_have_the_weights_of_the_whole_batch():
    """With a step of zero length, the mean of the pieces' gradients is that of the whole: their norms bound it."""
    algo, state, batch = start(lr=0.0, minibatches=4, epochs=1)
    after, metrics = jax.jit(algo.update)(state, batch, jax.random.key(0))
    np.testing.assert_array_equal(after.params["table"], state.params["table"])
    whole = jax.jit(start(lr=0.0, epochs=1)[0].update)(state, batch, jax.random.key(0))[1]
    for name in ("actor/kl_reference", "actor/entropy", "actor/length"):
        np.testing.assert_allclose(metrics[name], whole[name], atol=1e-5)
    assert float(metrics["guard/grad_norm"]) >= 0.99 * float(whole["guard/grad_norm"])


@pytest.mark.parametrize("name", [name for name in METHODS if name != "reinforce_plus_plus"])
def test_one_completion_of_each_prompt_is_refused_where_the_group_is_the_baseline(name):
    algo, state, batch = start(METHODS[name])
    single = jax.tree.map(lambda x: x[:, :, :1], batch)
    with pytest.raises(ValueError, match="G >= 2 completions of each prompt; found G = 1"):
        jax.eval_shape(algo.update, state, single, jax.random.key(0))


def test_one_completion_is_enough_for_reinforce_plus_plus():
    algo, state, batch = start(grpo.reinforce_plus_plus)
    after, _ = jax.jit(algo.update)(state, jax.tree.map(lambda x: x[:, :, :1], batch), jax.random.key(0))
    assert not np.array_equal(after.params["table"], state.params["table"])


def test_bad_input_is_refused():
    algo, state, batch = start(minibatches=5)
    with pytest.raises(ValueError, match="config.minibatches is 5; it must divide the 12 completions"):
        jax.eval_shape(algo.update, state, batch, jax.random.key(0))
    with pytest.raises(ValueError, match=r"rewards have shape \(3, 4\); allowed: \[1, N, G\]"):
        algo.update(state, batch._replace(reward=batch.reward[0]), jax.random.key(0))
    with pytest.raises(ValueError, match="allowed: that of a token task"):
        grpo.make(CFG, Spec(jax.ShapeDtypeStruct((3,), jnp.float32), 2))


# ------------------------------------------------------------------------------------------------------------ learning


def letters():
    """Read a letter and write another: what a table can know."""
    words = tokens.Alphabet(("end", "a", "b", "x", "y"))
    problems = tokens.table(words, ["a", "b"], ["x", "y"])
    return tokens.make(problems, tokens.same_as_solution), len(words.words)


@pytest.mark.parametrize("name", [name for name in METHODS if name != "grpo"])  # which learns more, below
def test_every_method_learns_what_a_table_can_know(name):
    env, vocab = letters()
    learner = lambda cfg, spec: METHODS[name](cfg, spec, decoder=table(vocab))  # noqa: E731
    loop = loops.group(learner, env, starts=16, group=8, iterations=60)
    cfg = types.strong(grpo.Config(lr=0.05, vocab=vocab, epochs=2, kl_coefficient=0.0))
    carry = jax.jit(loop.init)(cfg, jax.random.key(0))
    chunk = jax.jit(loop.chunk)
    for _ in range(3):
        carry, metrics = chunk(cfg, carry)
    assert float(metrics["episode/return"]) > 0.95


def test_a_cloned_transformer_goes_on_learning_from_its_own_tries():
    """Sums modulo five are cloned for a moment, then learned from tries."""
    problems = arithmetic.problems(5)
    env = arithmetic.make(problems)
    cfg = types.strong(grpo.Config(lr=3e-3, vocab=len(arithmetic.ALPHABET.words), width=32, hidden=64, layers=1))
    cloning = token_cloning.make(cfg, env.spec)
    rows = jax.tree.map(lambda x: jnp.asarray(x)[None], problems)
    one = jnp.ones(rows.tokens.shape[:2], bool)
    obs = {"tokens": rows.tokens, "valid": rows.valid}
    batch = Transition(obs, rows.solution, one.astype(jnp.float32), obs, one, ~one, one)

    def clone(state, _):
        state, metrics = cloning.update(state, batch, None)
        return state, metrics["cloning/loss"]

    state, losses = jax.jit(lambda key: jax.lax.scan(clone, cloning.init(key), None, 8))(jax.random.key(0))
    assert losses[-1] < 0.8 * losses[0]
    state = token_cloning.reference(cfg, state)
    jax.tree.map(np.testing.assert_array_equal, state.reference, state.params)
    loop = loops.group(grpo.make, env, starts=16, group=8, iterations=40)
    carry = jax.jit(loop.init)(cfg, jax.random.key(1))._replace(state=state)
    chunk = jax.jit(loop.chunk)
    told = []
    for _ in range(4):
        carry, metrics = chunk(cfg, carry)
        told.append(float(metrics["episode/return"]))
    assert told[0] < 0.7 and told[-1] > 0.9, told
