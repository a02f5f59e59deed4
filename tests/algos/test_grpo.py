"""GRPO against a float64 NumPy run of whole updates, what must not matter, and tiny tasks that every variant learns."""

import dataclasses
import functools
import itertools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxrl_gen import loops, types
from jaxrl_gen.algos import grpo, token_cloning
from jaxrl_gen.envs.tasks import arithmetic, countdown, tokens
from jaxrl_gen.nets import transformer
from jaxrl_gen.types import Spec, Transition

VOCAB, PROMPT, LENGTH, STARTS, COUNT = 5, 2, 4, 3, 4
CFG = grpo.Config(lr=0.05, vocab=VOCAB, clip_low=0.1, clip_high=0.15, kl_coefficient=0.3, temperature=0.8, epochs=3)
SPEC = Spec(
    {"tokens": jax.ShapeDtypeStruct((PROMPT,), jnp.int32), "valid": jax.ShapeDtypeStruct((PROMPT,), jnp.bool_)}, LENGTH
)
METHODS = {
    "grpo": grpo.make, "dr_grpo": grpo.dr_grpo, "dapo": grpo.dapo, "rloo": grpo.rloo, "gspo": grpo.gspo,
    "cispo": grpo.cispo, "reinforce_plus_plus": grpo.reinforce_plus_plus, "clip_cov": grpo.clip_cov,
    "kl_cov": grpo.kl_cov,
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


@pytest.mark.parametrize("name", METHODS)
def test_scores_that_are_all_equal_move_nothing_without_a_divergence(name):
    """Nor do they where one of the group is no number."""
    algo, state, batch = start(METHODS[name], kl_coefficient=0.0)
    bad = jnp.zeros(batch.reward.shape, bool).at[0, 1, 2].set(True)
    equal = batch._replace(reward=jnp.where(bad, jnp.nan, 100.1), valid=~bad)
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
    algo, _, batch = start(reference=False, kl_coefficient=0.0)
    state = jax.eval_shape(algo.init, jax.random.key(0))
    after, metrics = jax.eval_shape(algo.update, state, batch, jax.random.key(0))
    assert state.reference == () == after.reference and "actor/kl_reference" not in metrics


# ------------------------------------------------------------------------------- each method's gradient, in NumPy


class Method(NamedTuple):
    """A row of the table of methods, from their papers: plain words, read by `numpy_gradient`."""

    cfg: grpo.Config
    relative: str = "standardised"
    level: str = "token"
    surrogate: str = "clipped"
    mean: str = "of tokens"
    low: float = 0.2
    high: float = 0.2
    beta: float = 0.0  # of k1 in the reward


PAPERS = {
    "grpo": Method(grpo.Config(), mean="of sequences"),
    "dr_grpo": Method(grpo.Config(), "centred", mean="by room"),
    "dapo": Method(grpo.DAPO, high=0.28),
    "rloo": Method(grpo.RLOO, "leave_one_out", "sum", mean="of sequences", beta=0.03),
    "reinforce_plus_plus": Method(grpo.REINFORCE_PLUS_PLUS, "whitened", beta=0.01),
    "gspo": Method(grpo.GSPO, level="mean", mean="of sequences", low=3e-4, high=4e-4),
    "cispo": Method(grpo.CISPO, surrogate="detached", low=1.0, high=4.0),
    "cispo, nearer": Method(grpo.Config(), surrogate="detached"),  # walls that some ratios leave
    "clip_cov": Method(grpo.Config(), surrogate="clip_cov"),
    "kl_cov": Method(grpo.Config(), surrogate="kl_cov"),
}


def token_log_probs(logits, batch):
    """{(n, g): [its tokens' log-probabilities]} of a table of logits, in float64, up to the end of each completion."""
    prompt, answers, found = np.asarray(batch.obs["tokens"][0]), np.asarray(batch.action[0]), {}
    for at in np.ndindex(answers.shape[:2]):
        before, found[at] = prompt[at][-1], []
        for token in answers[at]:
            row = np.asarray(logits[before], np.float64)
            found[at].append(row[token] - np.log(np.exp(row).sum()))
            before = token
            if token == 0:
                break
    return {at: np.array(row) for at, row in found.items()}


def judged(method, score, old, reference):
    """{(n, g): the advantages of its tokens}."""
    penalty = {at: method.beta * (old[at] - reference[at]) for at in old}
    if method.relative == "whitened":
        gain = {at: score[at] - np.cumsum(penalty[at][::-1])[::-1] for at in old}
        every = np.concatenate(list(gain.values()))
        return {at: (x - every.mean()) / np.sqrt(every.var(ddof=1) + 1e-8) for at, x in gain.items()}
    total = np.array([[score[n, g] - penalty[n, g].sum() for g in range(score.shape[1])] for n in range(len(score))])
    found = {}
    for (n, g), row in old.items():
        others = np.delete(total[n], g) if method.relative == "leave_one_out" else total[n]
        scale = total[n].std(ddof=1) + 1e-6 if method.relative == "standardised" else 1.0
        found[n, g] = np.full(len(row), (total[n, g] - others.mean()) / scale)
    return found


def chosen(method, advantage, now, old):
    """The tokens (n, g, t) that Clip-Cov may drop, of which it drops one, or the one that KL-Cov holds back."""
    mean = lambda rows: np.concatenate(list(rows.values())).mean()  # noqa: E731
    a, p = mean(advantage), mean(now)
    cov = {(*at, t): (advantage[at][t] - a) * (now[at][t] - p) for at in now for t in range(len(now[at]))}
    if method.surrogate == "kl_cov":
        return [max(cov, key=cov.get)]
    ratio = lambda n, g, t: np.exp(now[n, g][t] - old[n, g][t])  # noqa: E731
    stopped = lambda at: ratio(*at) > 1.2 if advantage[at[:2]][at[2]] > 0 else ratio(*at) < 0.8  # noqa: E731
    return [at for at in cov if 1.0 < cov[at] < 5.0 and not stopped(at)]


def numpy_tokens(method, now, old, frozen, advantage, special):
    """[the losses of its tokens] of each completion; `frozen` are the log-probabilities that are constants in them."""
    rows = []
    for at, a in advantage.items():
        difference = now[at] - old[at]
        if method.level != "token":
            difference = np.full(len(a), difference.sum() if method.level == "sum" else difference.mean())
        ratio, here = np.exp(difference), np.array([(*at, t) in special for t in range(len(a))])
        each = np.maximum(-a * ratio, -a * np.clip(ratio, 1 - method.low, 1 + method.high))
        if method.surrogate == "detached":
            each = -np.clip(np.exp(frozen[at] - old[at]), 1 - method.low, 1 + method.high) * a * now[at]
        if method.surrogate == "clip_cov":
            each = np.where(here, 0.0, each)
        if method.surrogate == "kl_cov":
            each = -a * ratio + here * np.abs(difference)
        rows.append(each)
    return rows


def averaged(method, rows):
    """The objective, of the losses of tokens."""
    if method.mean == "of sequences":
        return np.mean([row.mean() for row in rows])
    return np.concatenate(rows).sum() / (len(rows) * LENGTH if method.mean == "by room" else sum(map(len, rows)))


def by_differences(function, x):
    """The gradient of a scalar function, by central differences."""
    gradient = np.zeros_like(x)
    for at in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[at] = 1e-6
        gradient[at] = (function(x + step) - function(x - step)) / 2e-6
    return gradient


def moved(size):
    """(State, batch, old, reference): a policy `size` away from the one that wrote, and a reference that is another.

    Old and reference are the log-probabilities of `token_log_probs`.
    """
    state, batch = written()
    state = state._replace(params={"table": 1.5 * state.params["table"]})
    action, _ = jax.jit(start()[0].act)(state, batch.obs, jax.random.key(3))
    batch = batch._replace(action=action)
    other = lambda size, seed: {  # noqa: E731
        "table": state.params["table"] + size * jax.random.normal(jax.random.key(seed), (VOCAB, VOCAB))
    }
    away = state._replace(params=other(size, 8), reference=other(1.0, 9))
    old, reference = (token_log_probs(x["table"], batch) for x in (state.params, away.reference))
    told = np.zeros(batch.action.shape, np.float32)
    for at, row in old.items():
        told[0, *at, : len(row)] = row
    return away, batch._replace(extras={"log_prob": jnp.asarray(told)}), old, reference


def gradient_of(make, cfg, state, batch, **changes):
    """What one update without length steps along, ten times Adam's first moment after it; and its metrics."""
    cfg = dataclasses.replace(cfg, lr=0.0, max_grad_norm=1e9, vocab=VOCAB, **changes)
    update = jax.jit(make(types.strong(cfg), SPEC, decoder=table()).update)
    after, metrics = update(state, batch, jax.random.key(3))
    np.testing.assert_array_equal(after.params["table"], state.params["table"])
    return 10.0 * np.asarray(after.opt_state[1].mu["table"], np.float64), metrics


SIZES = (1e-3, 0.3)  # the walls of GSPO are near, those of the others far


@pytest.mark.parametrize(("name", "size"), [*itertools.product(PAPERS, SIZES)])
def test_the_gradient_of_each_method_with_its_config_is_that_of_its_paper(name, size):
    method, (state, batch, old, reference) = PAPERS[name], moved(size)
    found, metrics = gradient_of(METHODS[name.partition(",")[0]], method.cfg, state, batch)
    logits = np.asarray(state.params["table"], np.float64)
    frozen, advantage = token_log_probs(logits, batch), judged(method, np.asarray(batch.reward[0]), old, reference)
    some = chosen(method, advantage, frozen, old)
    assert some or not method.surrogate.endswith("cov")

    def gradient(special):
        loss = lambda x: averaged(  # noqa: E731
            method, numpy_tokens(method, token_log_probs(x, batch), old, frozen, advantage, special)
        )
        return by_differences(loss, logits)

    expected = [gradient([at]) for at in some] if method.surrogate == "clip_cov" else [gradient(some)]
    assert np.abs(found).max() > 0.01
    assert min(np.abs(found - x).max() for x in expected) < 2e-5 * max(1.0, np.abs(found).max())
    if method.surrogate.endswith("cov"):
        assert np.abs(found - gradient([])).max() > 1e-3
    if size == 0.3 and name != "cispo":
        assert 0.0 < float(metrics["actor/clip_fraction"]) <= 1.0


def test_the_walls_of_gspo_are_its_own():
    state, batch, *_ = moved(1e-3)
    near, far = (gradient_of(grpo.gspo, cfg, state, batch)[0] for cfg in (grpo.GSPO, grpo.Config()))
    assert np.abs(near - far).max() > 0.01


def test_minibatches_have_the_weights_of_the_whole_batch():
    """Adam's first moment after two halves of a batch is that of one of the 924 ways to halve it."""
    method, (state, batch, old, reference) = PAPERS["dapo"], moved(0.3)
    found, _ = gradient_of(grpo.dapo, grpo.DAPO, state, batch, minibatches=2)
    logits, score = np.asarray(state.params["table"], np.float64), np.asarray(batch.reward[0])
    advantage = judged(method, score, old, reference)
    losses = lambda x: numpy_tokens(method, token_log_probs(x, batch), old, None, advantage, [])  # noqa: E731
    rows = np.stack([by_differences(lambda x: losses(x)[i].sum(), logits) for i in range(len(old))])  # noqa: B023
    tokens = np.array([len(row) for row in old.values()])
    assert len(set(tokens)) > 2  # ragged

    def error(weighed):
        halves = [np.array(some) for some in itertools.combinations(range(len(old)), len(old) // 2)]
        others = [np.setdiff1d(np.arange(len(old)), some) for some in halves]
        return min(np.abs(found - 0.9 * weighed(x) - weighed(y)).max() for x, y in zip(halves, others))

    assert error(lambda some: 2 * rows[some].sum(0) / tokens.sum()) < 1e-5
    assert error(lambda some: rows[some].sum(0) / tokens[some].sum()) > 1e-3  # weights of each half
    assert error(lambda some: 4 * rows[some].sum(0) / tokens.sum()) > 1e-3  # scaled once too often


def test_minibatches_tell_the_metrics_of_the_whole_batch():
    algo, state, batch = start(lr=0.0, minibatches=4, epochs=1)
    _, metrics = jax.jit(algo.update)(state, batch, jax.random.key(0))
    whole = jax.jit(start(lr=0.0, epochs=1)[0].update)(state, batch, jax.random.key(0))[1]
    for name in ("actor/entropy", "actor/length", "actor/informative"):
        np.testing.assert_allclose(metrics[name], whole[name], atol=1e-5)


# ------------------------------------------------------------------------------------------------------------ bad input


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


@pytest.mark.parametrize("make", [grpo.make, token_cloning.make])
def test_another_vocabulary_than_the_task_has_is_refused(make):
    problems = countdown.problems(3, 10, 100)
    for some in problems, tokens.split(problems)[1]:
        spec = countdown.make(some).spec
        with pytest.raises(ValueError, match="config.vocab is 64; expected 107, the words of the task"):
            make(grpo.Config(), spec)
        make(grpo.Config(vocab=107), spec)
        with pytest.raises(ValueError, match="the decoder's vocabulary is 64; expected at least 107"):
            make(grpo.Config(), spec, decoder=table(64))
        make(grpo.Config(), spec, decoder=table(128))


@pytest.mark.parametrize("name", ["kl_coefficient", "kl_in_reward"])
def test_a_divergence_from_no_reference_is_refused(name):
    free = grpo.Config(vocab=VOCAB, reference=False)
    for weight in 0.1, jnp.float32(0.1), np.array([0.0, 0.1]):
        wrong = dataclasses.replace(free, **{name: weight})
        with pytest.raises(ValueError, match=rf"config.{name} is .*0.1.* without a reference; allowed: 0"):
            grpo.make(wrong, SPEC)
    grpo.make(types.strong(free), SPEC)


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
