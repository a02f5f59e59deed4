"""Files and functions stay short enough to be read aloud."""

import pytest

from tests.house import source

FILE_LINES = 400
FUNCTION_LINES = 70  # without its docstring and the functions inside it, which have a budget of their own
NAMES_THAT_SAY_NOTHING = {"utils.py", "util.py", "helpers.py", "misc.py", "common.py", "core.py", "base.py"}

FILES = [source.PACKAGE / module for module in source.modules()] + source.experiments()


def own_lines(function) -> int:
    """The lines of a function without its docstring and without nested functions."""
    import ast

    lines = set(range(function.lineno, function.end_lineno + 1))
    nested = [node for node in source.functions(function) if node is not function]
    docstring = [function.body[0]] if ast.get_docstring(function) else []
    for node in [*nested, *docstring]:
        lines -= set(range(node.lineno, node.end_lineno + 1))
    return len(lines)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(source.ROOT).as_posix())
def test_files_and_functions_are_short(path):
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= FILE_LINES, f"{path.name}: split it by idea"
    assert path.name not in NAMES_THAT_SAY_NOTHING
    long = {f.name: own_lines(f) for f in source.functions(source.tree(path)) if own_lines(f) > FUNCTION_LINES}
    assert not long, f"{path.name}: {long}, at most {FUNCTION_LINES} lines each"
    wide = [number for number, line in enumerate(text.splitlines(), 1) if len(line) > 120]
    assert not wide, f"{path.name}: lines longer than 120 columns: {wide}"
