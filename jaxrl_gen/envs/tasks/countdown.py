"""Countdown: reach a target from given numbers, each used once, with + - * and exact division.

The prompt `3 7 10 > 24` asks for 24 from 3, 7 and 10; the answer is in reverse Polish notation, one token per number,
such as `7 3 10 - ...`. Any right expression counts. The verifier is a stack machine on whole numbers, in pure JAX.
"""

import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np

from jaxrl_gen.envs.tasks import tokens
from jaxrl_gen.types import Env

SIGNS = ("+", "-", "*", "/")
FIRST_NUMBER = 2 + len(SIGNS)  # the token of zero; before it stand the end, the signs and the question


def alphabet(largest: int) -> tokens.Alphabet:
    """The words of a game whose numbers and targets go up to `largest`."""
    return tokens.Alphabet(("end", *SIGNS, ">", *map(str, range(largest + 1))))


def problems(count: int = 3, largest: int = 10, target: int = 50, seed: int = 0) -> tokens.Problems:
    """Every solvable game of `count` numbers from 1 to `largest` with a target from 1 to `target`.

    Args:
      count: of numbers, 2 to 4: the more, the harder.
      largest: number.
      target: the largest.
      seed: of the order in which a prompt names its numbers.
    Returns:
      Problems; each solution is one of several, and facts are the numbers [M, count] and the target [M].
    Raises:
      ValueError: if counts are out of range.
    """
    if not 2 <= count <= 4:
        raise ValueError(f"count is {count}; allowed: 2 to 4 numbers")
    if largest < 1 or target < 1 or (largest + 1) ** count >= 2**31:
        raise ValueError(f"largest is {largest} and target {target}; allowed: 1 and more, and no product above 2^31")
    rng = np.random.default_rng(seed)
    prompts, solutions, given, wanted = [], [], [], []
    for numbers in itertools.combinations_with_replacement(range(1, largest + 1), count):
        for value, solution in sorted(_reachable(numbers).items()):
            if 1 <= value <= target:
                shown = rng.permutation(numbers)
                prompts.append(f"{' '.join(map(str, shown))} > {value}")
                solutions.append(solution)
                given.append(shown)
                wanted.append(value)
    facts = {"numbers": np.array(given, np.int32), "target": np.array(wanted, np.int32)}
    return tokens.table(alphabet(max(largest, target)), prompts, solutions, facts)


def make(problems: tokens.Problems) -> Env:
    """The task of solving such games; see `tokens.make`.

    Args:
      problems: as of `problems`, or some of them (`tokens.split`).
    Returns:
      Env of one lane that does not reset itself; a return of 1 is a right answer.
    """
    return tokens.make(problems, lambda problem, completion: verify(**problem.facts, completion=completion))


def verify(numbers: jax.Array, target: jax.Array, completion: jax.Array) -> jax.Array:
    """Whether an expression in reverse Polish notation is well formed, uses each number once and gives the target.

    Args:
      numbers: i32 [n].
      target: i32.
      completion: i32 [L], tokens of `alphabet`, up to the first end; without an end it is wrong.
    Returns:
      bool.
    """
    places = jnp.arange(completion.shape[0])

    def step(machine, token):
        stack, height, ok, ended = machine
        is_number, is_sign = token >= FIRST_NUMBER, (token >= 1) & (token <= len(SIGNS))
        right = jnp.sum(jnp.where(places == height - 1, stack, 0))
        left = jnp.sum(jnp.where(places == height - 2, stack, 0))
        divisor = jnp.where(right == 0, 1, right)
        exact = (right != 0) & (left % divisor == 0)
        result = jnp.stack([left + right, left - right, left * right, left // divisor])
        value = jnp.where(is_number, token - FIRST_NUMBER, jnp.sum(jnp.where(jnp.arange(1, 5) == token, result, 0)))
        allowed = is_number | (is_sign & (height >= 2) & ((token != len(SIGNS)) | exact))
        after = height + jnp.where(is_number, 1, -1)
        pushed = jnp.where(places == after - 1, value, stack)
        ended_now = ended | (token == 0)
        machine = (pushed, after, ok & allowed, ended)
        kept = jax.tree.map(lambda new, old: jnp.where(ended_now, old, new), machine, (stack, height, ok, ended))
        return (*kept[:3], ended_now), jnp.where(is_number & ~ended_now, token - FIRST_NUMBER, -1)

    start = (jnp.zeros_like(completion), jnp.int32(0), jnp.array(True), jnp.array(False))
    (stack, height, ok, ended), used = jax.lax.scan(step, start, completion)
    times = lambda among: jnp.sum(among == used[:, None], 1)  # noqa: E731 - how often each used number occurs there
    each_once = jnp.all((used < 0) | (times(numbers) == times(used))) & (jnp.sum(used >= 0) == numbers.shape[0])
    return ok & ended & (height == 1) & (stack[0] == target) & each_once


@cache
def _reachable(numbers: tuple[int, ...]) -> dict[int, str]:
    """Every value that the numbers give, each used once, with an expression for it, all of whose parts are positive."""
    if len(numbers) == 1:
        return {numbers[0]: str(numbers[0])}
    found: dict[int, str] = {}
    for size in range(1, len(numbers)):
        for chosen in itertools.combinations(range(len(numbers)), size):
            rest = tuple(numbers[i] for i in range(len(numbers)) if i not in chosen)
            some = _reachable(tuple(numbers[i] for i in chosen))
            for (a, left), (b, right) in itertools.product(some.items(), _reachable(rest).items()):
                values = {"+": a + b, "*": a * b, "-": a - b, "/": a // b if a % b == 0 else 0}
                for sign, value in values.items():
                    if value > 0:
                        found.setdefault(value, f"{left} {right} {sign}")
    return found
