"""Modular arithmetic, written digit by digit: read `1 7 * 2 5 =` and write the result modulo a prime.

Prompts differ in length, so they are padded; every problem has exactly one right answer.
"""

from collections.abc import Sequence

from jaxrl_gen.envs.tasks import tokens
from jaxrl_gen.types import Env

ALPHABET = tokens.Alphabet(("end", *map(str, range(10)), "+", "-", "*", "="))
COMPUTE = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b}


def problems(modulus: int = 97, operations: Sequence[str] = ("+",)) -> tokens.Problems:
    """Every problem `a op b =` with a and b below the modulus.

    Args:
      modulus: at least 2.
      operations: of `+`, `-` and `*`.
    Returns:
      Problems, modulus^2 for each operation.
    Raises:
      ValueError: for a modulus below 2, or no or an unknown operation.
    """
    if modulus < 2:
        raise ValueError(f"modulus is {modulus}; allowed: 2 and more")
    if not operations or not set(operations) <= set(COMPUTE):
        raise ValueError(f"operations are {tuple(operations)}; allowed: some of {' '.join(COMPUTE)}")
    asked = [(a, op, b) for op in operations for a in range(modulus) for b in range(modulus)]
    spaced = lambda number: " ".join(str(number))  # noqa: E731
    prompts = [f"{spaced(a)} {op} {spaced(b)} =" for a, op, b in asked]
    return tokens.table(ALPHABET, prompts, [spaced(COMPUTE[op](a, b) % modulus) for a, op, b in asked])


def make(problems: tokens.Problems) -> Env:
    """The task of answering such problems; see `tokens.make`.

    Args:
      problems: as of `problems`, or some of them (`tokens.split`).
    Returns:
      Env of one lane that does not reset itself; a return of 1 is a right answer.
    """
    return tokens.make(problems, tokens.same_as_solution)
