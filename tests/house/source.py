"""The package's source as the house tests read it: files, syntax trees, imports, docstrings."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "jaxrl_gen"


def modules() -> list[str]:
    """The package's modules as paths relative to it, `algos/ppo.py`, in order."""
    return sorted(path.relative_to(PACKAGE).as_posix() for path in PACKAGE.rglob("*.py"))


def experiments() -> list[Path]:
    """The experiment files; `__init__.py` and files that begin with an underscore are no experiments."""
    return sorted(path for path in (ROOT / "experiments").rglob("*.py") if not path.name.startswith("_"))


@cache
def tree(path: Path) -> ast.Module:
    """The syntax tree of a file."""
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def imports(parsed: ast.AST) -> Iterator[tuple[str, int]]:
    """Every absolute module name that a tree imports anywhere, with its line; `from a import b` gives `a.b`."""
    for node in ast.walk(parsed):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import; write the whole name"
            yield from ((f"{node.module}.{alias.name}", node.lineno) for alias in node.names)


def functions(parsed: ast.AST) -> Iterator[ast.FunctionDef]:
    """Every function of a tree, nested ones and methods included."""
    return (node for node in ast.walk(parsed) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def public_definitions(parsed: ast.Module) -> Iterator[ast.FunctionDef | ast.ClassDef]:
    """The public functions and classes of a module, and the public methods of these classes."""
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    for node in parsed.body:
        if isinstance(node, kinds) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from (part for part in node.body if isinstance(part, kinds) and not part.name.startswith("_"))


def docstrings(parsed: ast.Module) -> set[int]:
    """The identities of the nodes that are docstrings."""
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = set()
    for node in ast.walk(parsed):
        if isinstance(node, owners) and node.body and isinstance(node.body[0], ast.Expr):
            if isinstance(node.body[0].value, ast.Constant) and isinstance(node.body[0].value.value, str):
                found.add(id(node.body[0].value))
    return found
