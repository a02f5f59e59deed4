"""Token tasks: every known solution is right, and the verifiers agree with exact arithmetic done another way."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxrl_gen.envs import wrap
from jaxrl_gen.envs.tasks import arithmetic, countdown, tokens

WORDS = countdown.alphabet(50)
LENGTH = 8
VERIFY = jax.jit(lambda numbers, target, completion: countdown.verify(numbers, target, completion))


def by_hand(numbers, target, completion):
    """Whether the words before the first end solve the game: Python's lists and fractions."""
    stack, used, words = [], [], [WORDS.words[token] for token in completion]
    if "end" not in words:
        return False
    for word in words[: words.index("end")]:
        if word.isdigit():
            used.append(int(word))
            stack.append(Fraction(int(word)))
        elif word not in countdown.SIGNS or len(stack) < 2:
            return False
        else:
            b, a = stack.pop(), stack.pop()
            if word == "/" and (b == 0 or (a / b).denominator != 1):
                return False
            stack.append({"+": lambda: a + b, "-": lambda: a - b, "*": lambda: a * b, "/": lambda: a / b}[word]())  # noqa: B023
    return len(stack) == 1 and stack[0] == target and sorted(used) == sorted(numbers)


def padded(text):
    found = WORDS.encode(text)
    return found + [0] * (LENGTH - len(found))


RIGHT = [("3 7 2", 13, "3 2 * 7 +"), ("3 7 2", 8, "7 3 2 - +"), ("9 3 3", 8, "9 3 3 / -"), ("4 4 4", 4, "4 4 - 4 +")]
WRONG = [
    ("3 7 2", 14, "3 2 * 7 +"), ("3 7 2", 10, "3 7 +"), ("3 7 2", 13, "3 2 * 7"), ("3 7 2", 17, "3 7 + 7 +"),
    ("3 7 2", 3, "7 2 / 3 *"), ("3 7 2", 13, "3 2 * 7 + +"), ("3 7 2", 13, "> 3 2 * 7 +"), ("3 3 7", 13, "3 7 7 - +"),
    ("5 5 5", 5, "5 5 5 - / 5"), ("5 5 5", 5, "5 5 5 - /"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("numbers", "target", "text", "right"), [(*x, True) for x in RIGHT] + [(*x, False) for x in WRONG]
)
def test_countdown_examples(numbers, target, text, right):
    numbers = [int(x) for x in numbers.split()]
    assert by_hand(numbers, target, padded(text)) == right
    assert bool(VERIFY(jnp.array(numbers), target, jnp.array(padded(text)))) == right


def test_countdown_without_an_end_is_wrong_and_what_follows_the_end_does_not_matter():
    numbers, solution = jnp.array([1, 2, 3, 4]), WORDS.encode("1 2 + 3 + 4 +")
    verify = lambda completion: bool(VERIFY(numbers, 10, jnp.array(completion)))  # noqa: E731
    assert not verify(solution) and verify([*solution, 0]) and verify([*solution, 0, 1, 9])


sign_or_number = st.sampled_from(WORDS.encode("end + - * / > 0 1 2 3 4 6 8"))


@settings(max_examples=300, deadline=None)
@given(st.lists(sign_or_number, min_size=LENGTH, max_size=LENGTH), st.integers(-5, 20))
@example(WORDS.encode("2 4 8 / * end + end"), 1)
def test_countdown_agrees_with_fractions_on_anything_that_may_be_written(completion, target):
    numbers = [2, 4, 8]
    assert bool(VERIFY(jnp.array(numbers), target, jnp.array(completion))) == by_hand(numbers, target, completion)


@settings(max_examples=200, deadline=None)
@given(st.permutations([2, 4, 8]), st.lists(st.sampled_from("+-*/"), min_size=2, max_size=2), st.booleans())
def test_countdown_agrees_with_fractions_on_well_formed_expressions(order, signs, left):
    a, b, c = order
    text = f"{a} {b} {signs[0]} {c} {signs[1]}" if left else f"{a} {b} {c} {signs[0]} {signs[1]}"
    for target in range(-4, 70, 2):
        expected = by_hand(order, target, padded(text))
        assert bool(VERIFY(jnp.array(order), target, jnp.array(padded(text)))) == expected


@pytest.mark.parametrize("count", [2, 3])
def test_every_countdown_solution_is_right(count):
    problems = countdown.problems(count, largest=9, target=40)
    rewards = jax.jit(jax.vmap(lambda facts, x: countdown.verify(**facts, completion=x)))(
        problems.facts, problems.solution
    )
    assert np.all(rewards) and len(rewards) > 300 * (count - 2)
    words = countdown.alphabet(40)
    for i in range(0, len(rewards), 37):
        numbers, target = problems.facts["numbers"][i], problems.facts["target"][i]
        assert words.decode(problems.tokens[i][problems.valid[i]]) == f"{' '.join(map(str, numbers))} > {target}"


def test_every_solvable_countdown_is_there():
    """Two numbers: what + - * / reach, by hand."""
    problems, expected = countdown.problems(2, largest=6, target=36), set()
    for a in range(1, 7):
        for b in range(a, 7):
            reached = {a + b, a * b, b - a} | ({b // a} if b % a == 0 else set())
            expected |= {(a, b, x) for x in reached if x > 0}
    found = {(*sorted(n), t) for n, t in zip(problems.facts["numbers"].tolist(), problems.facts["target"].tolist())}
    assert found == expected


@pytest.mark.parametrize("operations", [("+",), ("+", "-", "*")])
def test_modular_arithmetic(operations):
    problems = arithmetic.problems(11, operations)
    assert len(problems.tokens) == 121 * len(operations)
    verify = jax.jit(jax.vmap(tokens.same_as_solution))
    assert np.all(verify(problems, problems.solution))
    for row, valid, solution in zip(problems.tokens, problems.valid, problems.solution):
        text = arithmetic.ALPHABET.decode(row[valid]).replace(" ", "").removesuffix("=")
        sign = next(x for x in "+-*" if x in text)
        a, b = map(int, text.split(sign))
        answer = {"+": a + b, "-": a - b, "*": a * b}[sign] % 11
        assert arithmetic.ALPHABET.decode(solution).replace(" ", "") == str(answer)
    assert np.all(problems.valid[:, -1]) and not np.all(problems.valid[:, 0])  # padded, on the left


def test_an_answer_must_be_whole_and_must_end():
    problem = tokens.table(arithmetic.ALPHABET, ["1 + 1 =", "9 + 9 ="], ["2", "1 8"])
    right = lambda i, answer: bool(  # noqa: E731
        tokens.same_as_solution(jax.tree.map(lambda x: x[i], problem), jnp.array(answer))
    )
    one, two, eight = (arithmetic.ALPHABET.encode(x)[0] for x in "128")
    assert right(0, [two, 0, 0]) and right(0, [two, 0, eight]) and right(1, [one, eight, 0])
    assert not right(0, [two, two, 0]) and not right(0, [0, 0, 0]) and not right(1, [one, eight, eight])


def test_the_task_is_one_step_that_terminates():
    problems = arithmetic.problems(5)
    env = arithmetic.make(problems)
    lanes = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), 500))
    state, obs = lanes
    assert env.spec.time_limit == 1 and env.spec.action_size == problems.solution.shape[1]
    shapes = jax.tree.map(lambda x, shaped: (x.shape[1:], x.dtype) == (shaped.shape, shaped.dtype), obs, env.spec.obs)
    assert all(jax.tree.leaves(shapes))
    wrong = state.solution.at[::2].add(1)
    _, _, outcome = jax.jit(jax.vmap(wrap.quarantine(env).step))(state, wrong, jax.random.split(jax.random.key(1), 500))
    np.testing.assert_array_equal(outcome.reward, np.arange(500) % 2)
    assert np.all(outcome.terminated) and not np.any(outcome.truncated) and np.all(outcome.valid)
    assert len({tuple(row) for row in np.asarray(obs["tokens"])}) == 25  # all problems are asked


def test_the_spec_says_how_many_words_a_task_has():
    for problems, words in (arithmetic.problems(5), 15), (countdown.problems(2, 5, 10), 17):
        for some in (problems, *tokens.split(problems)):
            kind = tokens.make(some, tokens.same_as_solution).spec.obs["tokens"].dtype
            assert kind == np.int32 and dict(kind.metadata) == {"words": words}


def test_held_out_problems_are_apart_from_the_others():
    problems = arithmetic.problems(7)
    learn, held = tokens.split(problems, 0.25)
    rows = lambda some: {tuple(row) for row in some.tokens}  # noqa: E731
    assert len(held.tokens) == 12 and not rows(learn) & rows(held) and rows(learn) | rows(held) == rows(problems)
    assert rows(tokens.split(problems, 0.25)[1]) == rows(held)
    facts = tokens.split(countdown.problems(2, 5, 10), 0.5)[0].facts
    assert len(facts["numbers"]) == len(facts["target"])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: arithmetic.problems(1), "modulus is 1"),
        (lambda: arithmetic.problems(5, ("^",)), r"operations are \('\^',\); allowed: some of \+ - \*"),
        (lambda: arithmetic.ALPHABET.encode("1 plus 1"), "word 'plus' of '1 plus 1'; allowed: end 0 1"),
        (lambda: countdown.problems(5), "count is 5; allowed: 2 to 4"),
        (lambda: countdown.problems(4, 500), "largest is 500"),
        (lambda: tokens.table(WORDS, [], []), "0 prompts and 0 solutions"),
        (lambda: tokens.split(arithmetic.problems(3), 0.0), "share is 0.0 of 9 problems"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
