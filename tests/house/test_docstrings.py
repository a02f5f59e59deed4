"""Every public name says in one sentence what it is."""

import ast

import pytest

from tests.house import source

FILES = [source.PACKAGE / module for module in source.modules()] + source.experiments()


def first_paragraph(node) -> str:
    """The first paragraph of a docstring on one line, or an empty string."""
    text = ast.get_docstring(node) or ""
    return " ".join(text.split("\n\n")[0].split())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(source.ROOT).as_posix())
def test_public_names_have_a_sentence(path):
    parsed = source.tree(path)
    in_benchmarks = path.parent.name == "benchmarks"  # whose table of sides names each function in its place
    named = [("module", parsed)]
    named += [] if in_benchmarks else [(node.name, node) for node in source.public_definitions(parsed)]
    wrong = [name for name, node in named if not first_paragraph(node).endswith((".", ".)", "`.", "?"))]
    assert not wrong, f"{path.name}: no first sentence, or no full stop after it: {', '.join(wrong)}"


def test_the_table_of_contents_is_complete():
    import jaxrl_gen

    parts = {module.split("/")[0].removesuffix(".py") for module in source.modules()} - {"__init__", "__main__"}
    assert parts <= set(jaxrl_gen.__all__), "a part of the package is missing from jaxrl_gen.__all__"
    for name in jaxrl_gen.__all__:
        assert getattr(jaxrl_gen, name) is not None
    for part in parts:
        assert f"\n    {part} " in jaxrl_gen.__doc__, f"the docstring of jaxrl_gen does not say what {part} is"
