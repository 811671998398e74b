"""Puts taps into modules, and takes them out again; into those that are not imported yet, as soon as they are.

Nothing is imported for the sake of a tap. A finder on `sys.meta_path` waits for the modules that are still to come; it
answers only for their names, lets the others find them, and is gone when the last one has come.
"""

from __future__ import annotations

import importlib.abc
import sys
import threading
from typing import TYPE_CHECKING, Any, NamedTuple

from prefactor_trace import _guard

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from importlib.machinery import ModuleSpec
    from types import ModuleType

_MISSING: Any = object()


class Patch(NamedTuple):
    """A function that stands in the place of another. *original*: `_MISSING` if the owner had inherited it."""

    owner: Any
    name: str
    original: Any
    replacement: Any

    def undo(self) -> bool:
        """Put the original back, if what stands there is ours; say whether it was."""
        if vars(self.owner).get(self.name) is not self.replacement:
            return False
        if self.original is _MISSING:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, self.original)
        return True


class Inside(NamedTuple):
    """A function that stands in the place of another inside the function around it, in its closure's *cell*."""

    cell: Any
    original: Any
    replacement: Any

    def undo(self) -> bool:
        """Put the original back, if what stands there is ours; say whether it was."""
        is_ours: bool = self.cell.cell_contents is self.replacement
        if is_ours:
            self.cell.cell_contents = self.original
        return is_ours


def place(where: str, wrap: Callable[[Any], Any]) -> Patch | Inside:
    """Replace the function at *where*. Raises AttributeError if there is none.

    *where*: "module:function", "module:Class.method", or "module:function/variable": what a function that has been
    decorated calls by that variable of its closure. So it is also tapped for those who have the function already.
    """
    module, _, path = where.partition(":")
    path, _, variable = path.partition("/")
    *owners, name = path.split(".")
    owner: Any = sys.modules[module]
    for each in owners:
        owner = getattr(owner, each)
    if variable:
        return _place_inside(getattr(owner, name), variable, wrap)
    original = vars(owner).get(name, _MISSING)
    function = getattr(owner, name) if original is _MISSING else original
    if isinstance(function, (classmethod, staticmethod)):
        replacement: Any = type(function)(wrap(function.__func__))
    else:
        replacement = wrap(function)
    setattr(owner, name, replacement)
    return Patch(owner, name, original, replacement)


def _place_inside(function: Any, variable: str, wrap: Callable[[Any], Any]) -> Inside:
    names = function.__code__.co_freevars
    if variable not in names:
        raise AttributeError(f"{function.__qualname__} has no {variable!r} inside")
    cell = function.__closure__[names.index(variable)]
    inside = Inside(cell, cell.cell_contents, wrap(cell.cell_contents))
    cell.cell_contents = inside.replacement
    return inside


class _Finder(importlib.abc.MetaPathFinder):
    """Calls back when a module has been imported that somebody waits for."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._waiting: dict[str, list[Callable[[], None]]] = {}

    def when_imported(self, module: str, act: Callable[[], None]) -> None:
        """Call *act* when *module* has been imported."""
        with self._lock:
            self._waiting.setdefault(module, []).append(act)
            if self not in sys.meta_path:
                sys.meta_path.insert(0, self)

    def forget(self, act: Callable[[], None]) -> None:
        """Do not call *act* any more."""
        with self._lock:
            for module, acts in list(self._waiting.items()):
                if act in acts:
                    acts.remove(act)
                    self._stop_waiting(module)

    def _stop_waiting(self, module: str) -> None:
        if not self._waiting.get(module):
            self._waiting.pop(module, None)
        if not self._waiting and self in sys.meta_path:
            sys.meta_path.remove(self)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return the spec that the others find, if it is of a module that is waited for."""
        if fullname not in self._waiting:
            return None
        for finder in list(sys.meta_path):
            find = getattr(finder, "find_spec", None)
            spec = None if finder is self or find is None else find(fullname, path, target)
            if spec is not None:
                self._watch(spec)
                return spec  # type: ignore[no-any-return]
        return None

    def _watch(self, spec: ModuleSpec) -> None:
        """Let the loader of *spec* say when it is done. It stays what it is, and is as it was afterwards."""
        loader: Any = spec.loader
        try:
            execute = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                del loader.exec_module
                execute(module)
                self._came(spec.name)

            loader.exec_module = exec_module
        except Exception:  # a loader of another kind: the module is imported, and not tapped
            _guard.failed("wait for a module")

    def _came(self, module: str) -> None:
        with self._lock:
            acts = self._waiting.pop(module, [])
            self._stop_waiting(module)
        for act in acts:
            try:
                act()
            except Exception:
                _guard.failed("tap a module")


finder = _Finder()
