"""Looks into the source of SDKs for what is tapped, without importing them: that takes seconds, and does what they like.

In: places, written as `_patch.place` takes them. Out: whether they are there, as far as the source tells. What only
running it would make is not found here, so a place that is not found may exist all the same.
"""

from __future__ import annotations

import ast
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

# Names are imported from module to module, and classes inherit; in a ring nothing is found.
_MOST_STEPS = 20


class _Found(NamedTuple):
    """What a name stands for, and the module that it was found in."""

    module: str
    node: ast.stmt


class _Module(NamedTuple):
    """What the names in a module stand for, and the package that its relative imports begin at."""

    package: str
    names: dict[str, ast.stmt]


class Sources:
    """The source of modules, each read once."""

    def __init__(self) -> None:
        self._modules: dict[str, _Module] = {}

    def has(self, where: str) -> bool:
        """Say whether the source has what stands at *where*. Never raises: what cannot be read has nothing."""
        try:
            return self._has(where)
        except Exception:  # no Python that this one knows, say, or a ring of imports
            return False

    def _has(self, where: str) -> bool:
        module, _, path = where.partition(":")
        path, _, variable = path.partition("/")
        owner, *rest = path.split(".")
        found = self._find(module, owner)
        for name in rest:
            found = self._member(found, name)
        return found is not None and (not variable or self._wraps(found, variable))

    def _find(self, module: str, name: str, steps: int = _MOST_STEPS) -> _Found | None:
        """Find what *name* is in *module*, wherever it comes from."""
        if module not in self._modules:
            self._modules[module] = _read(module)
        read = self._modules[module]
        node = read.names.get(name)
        if not isinstance(node, ast.ImportFrom):
            return None if node is None else _Found(module, node)
        # Relative: from the package, or from one above it.
        above = read.package.split(".")[: 1 - node.level or None] if node.level else []
        origin = ".".join([*above, *filter(None, [node.module])])
        original = next(each.name for each in node.names if (each.asname or each.name) == name)
        return self._find(origin, original, steps - 1) if steps else None

    def _member(self, found: _Found | None, name: str, steps: int = _MOST_STEPS) -> _Found | None:
        """Find the attribute *name* of a class, or of what it inherits from."""
        if found is None or not isinstance(found.node, ast.ClassDef):
            return None
        for node in _flat(found.node.body):
            if name in _named(node):
                return _Found(found.module, node)
        for base in found.node.bases if steps else ():
            named = base.value if isinstance(base, ast.Subscript) else base  # Base[T]
            inherits = self._find(found.module, named.id) if isinstance(named, ast.Name) else None
            member = self._member(inherits, name, steps - 1)
            if member is not None:
                return member
        return None

    def _wraps(self, found: _Found, variable: str) -> bool:
        """Say whether a decorator of a function is a function with that parameter."""
        for decorator in getattr(found.node, "decorator_list", ()):
            made = self._find(found.module, decorator.id) if isinstance(decorator, ast.Name) else None
            if made is not None and isinstance(made.node, ast.FunctionDef):
                return variable in [each.arg for each in made.node.args.args]
        return False


def _file(module: str) -> Path | None:
    """Return the source file of *module*. To ask importlib would import the packages it is in."""
    top, *inner = module.split(".")
    spec = PathFinder.find_spec(top)
    if spec is None:
        return None
    if not inner:
        return None if spec.origin is None else Path(spec.origin)
    bases = [Path(folder, *inner) for folder in spec.submodule_search_locations or ()]
    files = [file for base in bases for file in (base / "__init__.py", base.with_suffix(".py"))]
    return next(filter(Path.is_file, files), None)


def _read(module: str) -> _Module:
    """Read the source of *module*; nothing is in it if there is none."""
    file = _file(module)
    if file is None:
        return _Module(module, {})
    names = {name: node for node in _flat(ast.parse(file.read_bytes()).body) for name in _named(node)}
    return _Module(module if file.stem == "__init__" else module.rpartition(".")[0], names)


def _flat(body: Iterable[ast.stmt]) -> Iterator[ast.stmt]:
    """Yield the statements of *body*, those of its branches too."""
    for node in body:
        yield node
        if isinstance(node, (ast.If, ast.Try)):
            handlers = node.handlers if isinstance(node, ast.Try) else ()
            for branch in (node.body, node.orelse, *(each.body for each in handlers)):
                yield from _flat(branch)


def _named(node: ast.stmt) -> Iterator[str]:
    """Yield the names that a statement gives a meaning."""
    if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
        yield node.name
    elif isinstance(node, ast.ImportFrom):
        yield from (each.asname or each.name for each in node.names)
    elif isinstance(node, ast.Assign):
        yield from (each.id for each in node.targets if isinstance(each, ast.Name))
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id
