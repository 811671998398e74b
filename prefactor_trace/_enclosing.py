"""What names mean that an annotation, as text, has from a function around its class or function.

Such names are gone when the function returns, and nobody else knows them. In comes a name; out comes what it stands
for, if the function is still running in this thread; else whether it is a variable of the function at all, and
whether that is a class or what it imports: its code tells so for ever. Nothing of the user's is run.
"""

from __future__ import annotations

import dis
import functools
import inspect
import sys
import types
from typing import TYPE_CHECKING, Any

from prefactor_trace._peek import UNSET, bases_of, class_attribute, is_a, module_dict, namespace_of

if TYPE_CHECKING:
    from collections.abc import Iterator

_LOCALS = "<locals>"
_MOST_FRAMES = 1_000


class Enclosing:
    """The functions around what is called *qualname*, in a module with the names in *namespace*.

    Attributes:
        is_known: Whether the code of all of them was found.
    """

    def __init__(self, namespace: dict[str, Any], qualname: str) -> None:
        self._namespace = namespace
        self._owners = qualname.split(".")[:-1] if f"{_LOCALS}." in qualname else []
        codes = list(_codes_around(namespace, self._owners))
        self._codes = [code for code in codes if code is not None]
        self.is_known = len(codes) == len(self._codes)

    def has(self, name: str) -> bool:
        """Say whether *name* is a variable of one of them."""
        return any(_has(code, name) for code in self._codes)

    def value(self, name: str) -> Any:
        """Return what *name* stands for in one that is running, `UNSET` if it does in none."""
        frame: types.FrameType | None = sys._getframe(1) if self._owners else None  # noqa: SLF001 - as `logging` does
        for _ in range(_MOST_FRAMES):
            if frame is None:
                break
            code = frame.f_code
            # No others are looked at: Python would keep the values of all their variables until they return.
            if code.co_name in self._owners and frame.f_globals is self._namespace and _has(code, name):
                found = frame.f_locals.get(name, UNSET)
                if found is not UNSET:
                    return found
            frame = frame.f_back
        return UNSET

    def makes_class(self, name: str) -> bool:
        """Say whether *name* is that of a class, whose values say themselves what is hidden in them.

        Those of a `TypedDict` do not: where there is one, this is false.
        """
        made = _made_in(self._owner_of(name), name)
        are_classes = all("__qualname__" in code.co_names for code in made)  # and no `type` statements
        return bool(made) and are_classes and not any(map(self._names_a_dict, self._codes))

    def imported(self, name: str) -> Any:
        """Return what *name* stands for if it never is but what an import makes it; else `UNSET`."""
        owner = self._owner_of(name)
        if len(owner.co_code) > _LONGEST or _IMPORT not in owner.co_code[::2]:
            return UNSET
        found = {id(each): each for code in _sharing(owner, name) for each in _stored(code, name)}
        is_given = name in owner.co_varnames[: _count_of_parameters(owner)]
        return next(iter(found.values())) if len(found) == 1 and not is_given else UNSET

    def _owner_of(self, name: str) -> types.CodeType:
        return next(code for code in reversed(self._codes) if _has(code, name))

    def _names_a_dict(self, code: types.CodeType) -> bool:
        words = (*code.co_names, *code.co_varnames, *code.co_cellvars, *code.co_freevars)
        named: list[Any] = [self._namespace.get(word) for word in words]
        return "TypedDict" in words or any(
            is_a(each, type) and type(namespace_of(each).get("__required_keys__")) is frozenset
            for each in named
        )


def _has(code: types.CodeType, name: str) -> bool:
    return name in code.co_varnames or name in code.co_cellvars


def _count_of_parameters(code: types.CodeType) -> int:
    stars = bool(code.co_flags & inspect.CO_VARARGS) + bool(code.co_flags & inspect.CO_VARKEYWORDS)
    return code.co_argcount + code.co_kwonlyargcount + stars


def _sharing(code: types.CodeType, name: str) -> Iterator[types.CodeType]:
    """Yield *code* and what is inside it and has its variable *name* too."""
    yield code
    for each in code.co_consts:
        if type(each) is types.CodeType and name in each.co_freevars:
            yield from _sharing(each, name)


def _stored(code: types.CodeType, name: str) -> Iterator[Any]:
    """Yield what *code* makes of its variable *name*, each time; `UNSET` where that is no import or not to be told."""
    module: Any = UNSET  # the name of the one that is being imported
    steps = _steps_of(code)
    for at, step in enumerate(steps):
        before = steps[at - 1]
        if step.opname == "IMPORT_NAME":
            is_absolute = steps[at - 2].argval == 0
            module = step.argval if is_absolute else UNSET
        if not step.opname.startswith(("STORE_", "DELETE_")):
            continue
        names = step.argval if type(step.argval) is tuple else (step.argval,)
        if names[0] == name and step.opname.startswith("STORE_") and before.opname == "IMPORT_FROM":
            yield _in_module(module, before.argval)
        elif names[0] == name and step.opname.startswith("STORE_") and before.opname == "IMPORT_NAME":
            yield UNSET if module is UNSET else sys.modules.get(module.partition(".")[0], UNSET)
        elif name in names:
            yield UNSET


@functools.lru_cache(maxsize=8)  # there are many names in a class
def _steps_of(code: types.CodeType) -> list[dis.Instruction]:
    return list(dis.get_instructions(code))


_IMPORT = dis.opmap["IMPORT_NAME"]
_LONGEST = 4_000  # bytes of code; they are read while the program waits, once, and these take milliseconds


def _in_module(module: Any, name: str) -> Any:
    found = UNSET if module is UNSET else sys.modules.get(module)
    return module_dict(found).get(name, UNSET) if is_a(found, types.ModuleType) else UNSET


def _made_in(code: types.CodeType, name: str) -> list[types.CodeType]:
    """Return the code of each class body, function and type alias called *name* that *code* makes."""
    made = [each for each in code.co_consts if type(each) is types.CodeType]
    generic = [each for each in made if each.co_name == f"<generic parameters of {name}>"]
    if generic:  # since Python 3.12 these have a function of their own around what is made
        made = [each for one in generic for each in one.co_consts if type(each) is types.CodeType]
    return [each for each in made if each.co_name == name]


def _codes_around(namespace: dict[str, Any], owners: list[str]) -> Iterator[types.CodeType | None]:
    """Yield the code of each of *owners*, the outermost first, and of class bodies in them; None: not to be found."""
    code: types.CodeType | None = None
    found: Any = None
    for at, owner in enumerate(owners):
        if owner == _LOCALS:
            continue
        if code is not None:
            made = _made_in(code, owner)
            code = made[0] if len(made) == 1 else None
        else:
            found = namespace.get(owner) if not at else class_attribute(bases_of(found), owner)
            if is_a(found, type):
                continue
            code = _code_of(found)
            code = code if code is not None and code.co_name == owner else None  # a decorator's, say
        yield code
        if code is None:
            return


_DEEPEST = 8


def _code_of(thing: Any) -> types.CodeType | None:
    """Return the code of *thing*, a Python function, also under decorators that name it; else None."""
    for _ in range(_DEEPEST):
        if type(thing) is types.FunctionType:
            if "__wrapped__" not in thing.__dict__:
                return thing.__code__
            thing = thing.__dict__["__wrapped__"]
        elif type(thing) in (types.MethodType, classmethod, staticmethod):
            thing = thing.__func__
        elif type(thing) is property:
            thing = thing.fget
    return None
