"""A program of the user's, imported to see what it declares. Nothing is recorded or sent meanwhile."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prefactor_trace import _api, _schema
from prefactor_trace._decorate import decorator_of
from prefactor_trace._schema import DerivedType, Schema, SpanType
from prefactor_trace._types import note
from prefactor_trace.errors import ConfigurationError
from prefactor_trace.spans import SpanBlock

if TYPE_CHECKING:
    from types import ModuleType


def schema_of(target: str) -> Schema:
    """Return the schema that a run of *target* declares.

    *target*: a module's name or the path of a file; behind a colon, a name in it: a decorated function, a class with
    decorated methods, a `Schema`, a `SpanType` or a `Tracer`.

    Raises:
        ConfigurationError: There is no such module, it fails, or there is nothing of that name that declares anything.
    """
    where, _, name = target.partition(":")
    # On Windows a path can have a colon of its own.
    if len(where) == 1 and name[:1] in ("\\", "/"):
        where, _, name = target[2:].partition(":")
        where = target[:2] + where
    module = _imported(where)
    if not name:
        return _api.default_schema()
    found: Any = module
    for part in name.split("."):
        try:
            found = found.__dict__[part] if part in getattr(found, "__dict__", ()) else getattr(found, part)
        except AttributeError:
            raise ConfigurationError(f"{where} has no {name}") from None
    return _declared_by(found, target)


def _imported(where: str) -> ModuleType:
    os.environ["PREFACTOR_DISABLED"] = "1"  # beats whatever the program configures
    try:
        if where.endswith(".py") or os.sep in where:
            return _imported_file(Path(where))
        sys.path.insert(0, str(Path.cwd()))
        return importlib.import_module(where)
    except KeyboardInterrupt:
        raise
    except ConfigurationError:
        raise
    except BaseException as error:  # it is the user's, and may end in any way
        told = f"{type(error).__name__}: {error}".rstrip(": ")
        raise ConfigurationError(f"{where} cannot be imported: {told}") from error


def _imported_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise ConfigurationError(f"there is no file {path}")
    sys.path.insert(0, str(path.parent.resolve()))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module
    spec.loader.exec_module(module)
    return module


def _declared_by(found: Any, target: str) -> Schema:
    if isinstance(found, Schema):
        return found
    if isinstance(found, (SpanType, DerivedType)):
        return Schema((found,))  # type: ignore[arg-type] # as `declared` makes it
    if isinstance(found, _api.Tracer):
        return found.schema()
    found, type_name = _recorded(found)
    signature = note(found)
    origin, inside = (signature.module, signature.qualname), signature.qualname + "."
    is_class = isinstance(found, type)
    types = _schema.declared_by(
        lambda each: each == origin or (is_class and each[0] == origin[0] and each[1].startswith(inside))
    )
    if type_name is not None:  # the function can have been decorated once more, by another name
        types = tuple(each for each in types if each.name == type_name)
    if not types:
        raise ConfigurationError(
            f"{target} declares no span type: it takes @span on a function, or on methods of a class; "
            "a Schema, a SpanType or a Tracer"
        )
    return Schema(types)  # type: ignore[arg-type] # as above


def _recorded(found: Any) -> tuple[Any, str | None]:
    """Return the function whose calls are recorded in what was found, and the name of the type of their spans.

    Without a span around it: what was found itself, and None.
    """
    inner = found
    for _ in range(100):  # it could go round in a circle
        kind = type(inner)
        by = decorator_of(inner)
        if isinstance(by, SpanBlock):
            return inner.__wrapped__, _schema.derived(inner.__wrapped__, by._type).name  # noqa: SLF001 - nobody else asks
        if issubclass(kind, property):
            inner = inner.fget
        elif issubclass(kind, (classmethod, staticmethod)):
            inner = inner.__func__
        elif issubclass(kind, (functools.cached_property, functools.partialmethod)):
            inner = inner.func
        else:
            inner = getattr(inner, "__wrapped__", None)
    return found, None
