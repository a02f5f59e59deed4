"""The methods of the package, as its own source tells them: what there is, of which family, in one line, and its parts.

A method is a file of `jaxrl_gen/algos` with a `make`; a `partial(make, ...)` of such a file, or in `_offline.py` one of
its `make` or Config; or one of these `on` a part of another file, such as `ppo on flow_head`, where an experiment's
header says so.
"""

import ast
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "jaxrl_gen"
# Titles of the families that are not called as their losses are, from general to special: a method that needs losses of
# several belongs to the last of them. `td` is of use to all.
TITLES = {
    "policy": "policies",
    "value": "critics",
    "dynamics": "models",
    "denoise": "denoisers",
    "latent": "latent actions",
    "group": "groups",
}


# Losses of a family that fill more than one file.
KIN = {
    "autoregressive": "value", "critic": "value", "distributional": "value", "dual": "value", "scale": "value",
    "lipschitz": "dynamics", "surrogates": "group",
}  # fmt: skip


class Method(NamedTuple):
    """What the source says of a method."""

    name: str
    file: str  # from the root
    line: str  # what it is
    losses: tuple[str, ...]  # the modules of `jaxrl_gen.losses` that it is made of
    parts: tuple[str, ...]  # what can be replaced

    @property
    def family(self) -> str:
        """The losses that its family is named after."""
        losses = [KIN.get(name, name) for name in self.losses]
        special = [name for name in losses if name not in TITLES and name != "td"]
        return (special or [name for name in TITLES if name in losses] or ["td"])[-1]


def methods() -> dict[str, Method]:
    """Every method of the package by name; variants come after what they vary."""
    found, offline = {}, ast.parse(Path(__file__).with_name("_offline.py").read_text(encoding="utf-8"))
    for path in sorted((PACKAGE / "algos").glob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        made = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == "make"]
        if made:
            parts = tuple(argument.arg for argument in made[0].args.kwonlyargs)
            whole = Method(path.stem, _from_root(path), sentence(tree), tuple(sorted(_losses(path.stem))), parts)
            found[whole.name] = whole
            variants = [*_variants(tree, ("make",), path.stem)]
            variants += _variants(offline, (f"{path.stem}.make", f"{path.stem}.Config"), path.stem)
            found |= {name: whole._replace(name=name, line=line) for name, line in variants}
    return found


def on_part(method: Method, part: str) -> Method:
    """A method with one part of the package in its place, named `method on part`.

    Args:
      method: Method.
      part: the name of a public function of the package.
    Raises:
      ValueError: if no file defines it.
    """
    losses_first = lambda path: (path.parent.name != "losses", path)  # a readout is called as the distribution it learns
    for path in sorted(PACKAGE.rglob("*.py"), key=losses_first):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.FunctionDef) and node.name == part:
                return method._replace(name=f"{method.name} on {part}", file=_from_root(path), line=sentence(node))
    raise ValueError(f"{part} is no function of jaxrl_gen")


def sentence(node: ast.Module | ast.FunctionDef) -> str:
    """The first sentence of a docstring, on one line."""
    return re.split(r"(?<=\.)\s", " ".join((ast.get_docstring(node) or "").split()), maxsplit=1)[0]


def _variants(tree: ast.Module, of: tuple[str, ...], stem: str):
    """(name, what it replaces) of every `name = partial(make, part=...)`, where `make` is one `of` those of `stem`."""
    for node in tree.body:
        call = node.value if isinstance(node, ast.Assign) else None
        if isinstance(call, ast.Call) and ast.unparse(call.func) == "partial" and ast.unparse(call.args[0]) in of:
            (target,) = node.targets
            parts = (f"`{part.arg}={re.sub(r'(group|surrogates)[.]', '', ast.unparse(part.value))}`" for part in call.keywords)
            yield target.id, f"`{stem}` with {', '.join(parts)}."


def _losses(stem: str) -> set[str]:
    """The losses that an algorithm imports, and those of the algorithms that it imports."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / "algos" / f"{stem}.py").read_text(encoding="utf-8"))):
        names = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
        if names and node.module == "jaxrl_gen.losses":
            found |= set(names)
        if names and node.module == "jaxrl_gen.algos":
            found |= set().union(*(_losses(name) for name in names))
    return found


def _from_root(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()
