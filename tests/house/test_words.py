"""Words and constructs that the package does without."""

import ast
import re

import pytest

from tests.house import source

FILES = [source.PACKAGE / module for module in source.modules()]
DONE = re.compile(r"(?<![A-Za-z])(?i:dones?)(?![A-Za-z])")
# Host-side places that count in float64: no compiled code comes near them.
FLOAT64 = {"types.py": {"check"}, "evaluate.py": None, "report.py": None, "runs.py": None}


def words(parsed: ast.Module):
    """Every identifier and every string of a tree that is not a docstring, with its line and node."""
    docstrings = source.docstrings(parsed)
    for node in ast.walk(parsed):
        line = getattr(node, "lineno", 0)
        for field in ("id", "arg", "attr", "name", "asname"):
            if isinstance(word := getattr(node, field, None), str):
                yield word, line, node
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value, line, node


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(source.PACKAGE).as_posix())
def test_an_episode_is_terminated_or_truncated(path):
    in_envs = path.parent.name == "envs"
    for word, line, node in words(source.tree(path)):
        reads_a_simulator = in_envs and isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
        assert reads_a_simulator or not DONE.search(word.replace("_", " ")), f"{path.name}:{line}: {word!r}"


def test_the_word_is_found_where_it_stands():
    parsed = ast.parse('done = 1\nepisode_done = state.done\nf(dones=2)\n{"done": 3}\nabandoned = "undone"\n')
    lines = {line for word, line, _ in words(parsed) if DONE.search(word.replace("_", " "))}
    assert lines == {1, 2, 3, 4}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(source.PACKAGE).as_posix())
def test_opening_a_file_never_executes_it(path):
    parsed = source.tree(path)
    for name, line in source.imports(parsed):
        root = name.split(".")[0]
        assert root not in {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal", "yaml"}, (
            f"{path}:{line}: {root}"
        )
    for node in ast.walk(parsed):
        if isinstance(node, ast.Call):
            called = node.func.id if isinstance(node.func, ast.Name) else ""
            assert called not in {"eval", "exec", "compile", "__import__"}, f"{path}:{node.lineno}: {called}"
            for keyword in node.keywords:
                refused = keyword.arg == "allow_pickle" and getattr(keyword.value, "value", True) is not False
                assert not refused, f"{path}:{node.lineno}: allow_pickle"


def test_no_yaml_in_the_repository():
    ours = [source.ROOT / name for name in ("jaxrl_gen", "experiments", "notebooks", "tests")]
    assert not [path for folder in ours for kind in ("*.yaml", "*.yml") for path in folder.rglob(kind)]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(source.PACKAGE).as_posix())
def test_no_float64_in_compiled_code(path):
    parsed, allowed = source.tree(path), FLOAT64.get(path.relative_to(source.PACKAGE).as_posix(), set())
    host = set()
    for function in source.functions(parsed):
        if allowed is not None and function.name in allowed:
            host |= {id(node) for node in ast.walk(function)}
    for word, line, node in words(parsed):
        if re.search(r"float64|complex128|enable_x64", word):
            assert allowed is None or id(node) in host, f"{path.name}:{line}: {word}"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(source.PACKAGE).as_posix())
def test_keys_are_typed(path):
    for node in ast.walk(source.tree(path)):
        legacy = isinstance(node, ast.Attribute) and node.attr in {"PRNGKey", "default_rng_impl"}
        assert not legacy, f"{path.name}:{node.lineno}: jax.random.key makes a typed key"


ARITHMETIC = {
    "abs", "clip", "exp", "expm1", "log", "log1p", "logaddexp", "logsumexp", "log_softmax", "minimum", "one_hot",
    "power", "softmax", "softplus", "square", "sqrt", "tanh", "var",
}  # fmt: skip


@pytest.mark.parametrize("module", [m for m in source.modules() if m.startswith("algos/") and m != "algos/__init__.py"])
def test_algorithms_add_and_weight_losses_and_do_no_arithmetic_of_their_own(module):
    parsed = source.tree(source.PACKAGE / module)
    losses = [function for function in source.functions(parsed) if re.search(r"(^|_)loss$", function.name)]
    for node in (node for function in losses for node in ast.walk(function)):
        assert not (isinstance(node, ast.BinOp) and isinstance(node.op, ast.Pow)), f"{module}:{node.lineno}: a power"
        called = node.func if isinstance(node, ast.Call) else None
        from_array_library = isinstance(called, ast.Attribute) and getattr(called.value, "id", "") in {
            "jnp",
            "np",
            "nn",
        }
        assert not (from_array_library and called.attr in ARITHMETIC), f"{module}:{node.lineno}: {called.attr}"
    for name, line in source.imports(parsed):
        assert not name.startswith(("optax.losses", "rlax")), f"{module}:{line}: losses come from jaxrl_gen.losses"
