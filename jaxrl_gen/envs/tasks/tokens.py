"""Token tasks: a prompt is read, a completion written, and a verifier says whether it is right. One step, one lane.

A task is a table of problems, made on the host, and a verifier in pure JAX. Observations are
{"tokens": i32 [P], "valid": bool [P]}, padded on the left; an action is a completion, i32 [L].
"""

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_gen.types import Env, Outcome, PyTree, Spec


class Alphabet(NamedTuple):
    """Words as tokens; the first word ends a completion, and fills what is empty."""

    words: tuple[str, ...]

    @property
    def dtype(self) -> np.dtype:
        """That of tokens, int32, which says in its metadata how many words there are."""
        return np.dtype(np.int32, metadata={"words": len(self.words)})

    def encode(self, text: str) -> list[int]:
        """The tokens of words with spaces between.

        Raises:
          ValueError: for a word that is not in the alphabet.
        """
        unknown = [word for word in text.split() if word not in self.words]
        if unknown:
            raise ValueError(f"word {unknown[0]!r} of {text!r}; allowed: {' '.join(self.words)}")
        return [self.words.index(word) for word in text.split()]

    def decode(self, tokens: Iterable[int]) -> str:
        """The words of tokens, the first end and what follows it left out."""
        words = []
        for token in tokens:
            if int(token) == 0:
                break
            words.append(self.words[int(token)])
        return " ".join(words)


class Problems(NamedTuple):
    """A table of M problems; each has one known solution, which ends within L tokens."""

    tokens: np.ndarray  # i32 [M, P], prompts, padded on the left; of the alphabet's dtype
    valid: np.ndarray  # bool [M, P]
    solution: np.ndarray  # i32 [M, L], the end included, filled up with ends
    facts: PyTree = ()  # leaves [M, ...], for a verifier


def table(alphabet: Alphabet, prompts: Sequence[str], solutions: Sequence[str], facts: PyTree = ()) -> Problems:
    """Problems from texts.

    Args:
      alphabet: Alphabet.
      prompts, solutions: [M] texts of words in it; solutions without their end.
      facts: leaves [M, ...].
    Returns:
      Problems.
    Raises:
      ValueError: for no problems, different numbers of them, or unknown words.
    """
    if not prompts or len(prompts) != len(solutions):
        raise ValueError(f"{len(prompts)} prompts and {len(solutions)} solutions; allowed: as many, at least one")
    read, wanted = [alphabet.encode(text) for text in prompts], [alphabet.encode(text) for text in solutions]
    width, length = max(map(len, read)), 1 + max(map(len, wanted))
    tokens, valid = np.zeros((len(read), width), alphabet.dtype), np.zeros((len(read), width), bool)
    solution = np.zeros((len(read), length), np.int32)
    for i, (prompt, answer) in enumerate(zip(read, wanted)):
        tokens[i, width - len(prompt) :], valid[i, width - len(prompt) :] = prompt, True
        solution[i, : len(answer)] = answer
    return Problems(tokens, valid, solution, facts)


def split(problems: Problems, share: float = 0.2, seed: int = 0) -> tuple[Problems, Problems]:
    """Problems to learn from and problems held out, drawn once and for all.

    Args:
      problems: M of them.
      share: of the problems held out, between 0 and 1.
      seed: of the draw.
    Returns:
      (to learn from, held out).
    Raises:
      ValueError: if either would be empty.
    """
    count = len(problems.tokens)
    out = round(share * count)
    if not 0 < out < count:
        raise ValueError(f"share is {share} of {count} problems; allowed: so that at least one is on either side")
    order = np.random.default_rng(seed).permutation(count)
    some = lambda which: jax.tree.map(lambda x: x[which], problems)  # noqa: E731
    return some(order[out:]), some(order[:out])


def make(problems: Problems, verify: Callable) -> Env:
    """The task of answering one of the problems, drawn evenly: one step of reward 1 for a right answer, and else 0.

    Args:
      problems: Problems.
      verify: `(problem, completion i32 [L]) -> bool`, where `problem` is one row of `problems`.
    Returns:
      Env of one lane that does not reset itself; the dtype of tokens in its Spec says how many words there are.
    """
    count, width = problems.tokens.shape
    tokens, valid = (jax.ShapeDtypeStruct((width,), x.dtype) for x in (problems.tokens, problems.valid))
    see = lambda problem: {"tokens": problem.tokens, "valid": problem.valid}  # noqa: E731

    def reset(key):
        i = jax.random.randint(key, (), 0, count)
        problem = jax.tree.map(lambda x: jnp.asarray(x)[i], problems)
        return problem, see(problem)

    def step(problem, action, key):
        reward = verify(problem, action).astype(jnp.float32)
        return problem, see(problem), Outcome(see(problem), reward, jnp.array(True), jnp.array(False), jnp.array(True))

    return Env(reset, step, Spec({"tokens": tokens, "valid": valid}, problems.solution.shape[1], time_limit=1))


def same_as_solution(problem: Problems, completion: jax.Array) -> jax.Array:
    """The verifier of tasks with one right answer: the completion is the solution up to its end.

    Args:
      problem: one row.
      completion: i32 [L].
    Returns:
      bool.
    """
    ends = jnp.cumsum(problem.solution == 0)
    within = ends - (problem.solution == 0) == 0
    return jnp.all((completion == problem.solution) | ~within)
