"""How each kind of value is read: what of it is data, got without running any code of the user.

In comes one value, by way of `reader_of(its type)`. Out comes JSON, or for a container an `Open`, whose
entries are still to be read, one by one, as far as there is room. Strings come out whole, and their reader is
`read_string`. `label` makes a short text of a value instead. A reader can raise: its caller marks the value.

What keeps it safe: types are told apart by identity alone (`type(x) is`, `id(type(x))`), as hashing or
comparing a class can run its metaclass, and `isinstance` can run a property. Subclasses are read through the
methods of the built-in base, attributes from the instance's dict and slots; no property, descriptor or
`__getattr__` of the user is asked.
"""

from __future__ import annotations

import datetime as dt
import enum
import gc
import sys
import types
from collections import deque
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Reader = Callable[[Any], object]


class Open(NamedTuple):
    """How to read a container. Objects have become dicts of their fields."""

    source: Any
    entries: Callable[[Any], Iterable[Any]]  # the items of a list, the pairs of a dict
    length: int
    is_list: bool


# ---- short texts -------------------------------------------------------------------------------------------


def label(value: Any, longest: int = 1_000, depth: int = 2) -> str:
    """Return a short text for *value* as a key or an argument; of a container or a stranger its type."""
    kind = type(value)
    if kind is str:
        return shorten(value, longest)
    if kind is int and value.bit_length() <= _LONG_INT:
        return str(value)
    if kind is tuple and depth:
        return f"({', '.join([label(item, longest >> 3, depth - 1) for item in value[:8]])})"
    read = reader_of(kind)
    if read is read_string:
        return shorten(value, longest)
    try:
        found = {} if read is _error else read(value)  # errors read their arguments by this function
    except Exception:  # as a value it would be marked unreadable
        found = {}
    if type(found) is Open or type(found) is dict:
        return f"<{type_name(kind)}>"
    return shorten(found if type(found) is str else orjson.dumps(found).decode(), longest)


def shorten(text: str, longest: int) -> str:
    """Return *text* as JSON can have it; beyond *longest* characters, its beginning and its length."""
    if type(text) is str and len(text) <= longest and text.isascii():
        return text
    length = str.__len__(text)
    kept = clean(str.__getitem__(text, slice(longest)))
    return kept if length <= longest else f"{kept}... ({length} characters)"


def clean(text: str) -> str:
    """Return *text* (exactly a str) with lone surrogates written as backslash escapes: JSON has no other way."""
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


# ---- how each kind is read: value -> JSON or Open ----------------------------------------------------------

SAFE_INT = 2**53 - 1  # what every JSON reader keeps exact
_LONG_INT = 3_322  # bits of 1,000 digits; more take quadratic time, and Python refuses from 4,300 on
_HASHED_BYTES = 16_384
MOST_MEMBERS = 8  # of a group of exceptions
# Zones whose code is known not to be the user's.
_ZONES = (("datetime", "timezone"), ("zoneinfo", "ZoneInfo"), ("pydantic_core", "TzInfo"))

# Called for what is short for sure; else whoever meets this reader cuts the string itself.
read_string: Reader = str.__str__


def _same(value: object) -> object:
    return value


def _integer(value: int) -> object:
    number = int.__int__(value)
    if -SAFE_INT <= number <= SAFE_INT:
        return number
    bits = number.bit_length()
    return {"$int": str(number) if bits <= _LONG_INT else {"bits": bits}}


def _floating(value: float) -> object:
    number = float.__float__(value)
    return number if isfinite(number) else {"$float": repr(number)}


def _datetime(value: dt.datetime) -> object:
    zone = getter(dt.datetime, "tzinfo")(value)
    known = _is_known(zone)
    clock = dt.datetime.timetz(value) if known else dt.datetime.time(value)
    # Made anew, as zones ask a subclass for its parts.
    text = dt.datetime.combine(dt.datetime.date(value), clock).isoformat()
    return text if known else {"$datetime": text, "tzinfo": type_name(type(zone))}


def _time(value: dt.time) -> object:
    zone = getter(dt.time, "tzinfo")(value)
    if _is_known(zone):
        return dt.time.isoformat(value)
    naive = dt.time(*[getter(dt.time, part)(value) for part in ("hour", "minute", "second", "microsecond")])
    return {"$datetime": naive.isoformat(), "tzinfo": type_name(type(zone))}


def _is_known(zone: object) -> bool:
    return zone is None or any(type(zone) is _loaded(module, name) for module, name in _ZONES)


def _timedelta(value: dt.timedelta) -> str:
    days, seconds, micros = [
        getter(dt.timedelta, part)(value) for part in ("days", "seconds", "microseconds")
    ]
    total = (days * 86_400 + seconds) * 1_000_000 + micros
    whole, fraction = divmod(abs(total), 1_000_000)
    clock = f"{whole % 86_400}.{fraction:06}".rstrip("0").rstrip(".")
    return f"{'-' if total < 0 else ''}P{whole // 86_400}DT{clock}S"


def _binary(kind: Any) -> Reader:
    def read(value: Any) -> object:
        import hashlib  # 4 ms, and few agents pass bytes

        start = kind.__getitem__(value, slice(_HASHED_BYTES))
        return {"$bytes": kind.__len__(value), "sha256": hashlib.sha256(start).hexdigest()[:16]}

    return read


def _view(value: memoryview) -> object:
    start = bytes(value.cast("B")[:_HASHED_BYTES]) if value.c_contiguous else b""
    return {**_binary(bytes)(start), "$bytes": value.nbytes}  # type: ignore[dict-item]


def _exact_text(value: object) -> str:
    return str.__str__(str(value))


def _decimal(value: Any) -> object:
    return str(value) if value.__sizeof__() < 4_096 else _stranger(type(value))(value)


def _path(value: Any) -> object:
    raw = _own(value, "_raw_paths")  # since Python 3.12, what it was made of, which can be a user's str
    if type(raw) is list and not _are_all(raw, str):
        return _stranger(type(value))(value)
    return _exact_text(value)


def error_message(error: BaseException, read: Callable[[Any], str] = label) -> str:
    """Join the arguments of *error*, each that is no string as text by *read*."""
    most = 1 if members(error) else 16  # in a group, its members come next
    args = getter(BaseException, "args")(error)[:most]
    if len(args) == 1 and type(args[0]) is str:
        return args[0]
    parts = [shorten(one, 1_000) if type(one) is str else read(one) for one in args]
    if len(parts) == 2 and is_a(error, OSError):
        name = getter(OSError, "filename")(error)
        place = f": {shorten(name, 1_000)!r}" if type(name) is str else ""
        return f"[Errno {parts[0]}] {parts[1]}{place}"
    return ", ".join(parts)


def members(error: BaseException) -> list[BaseException]:
    """Return the first members if *error* is a group, which can be groups themselves."""
    group: Any = _loaded("builtins", "BaseExceptionGroup")
    # The package exceptiongroup, for Python 3.10, has them in an attribute of its own.
    found = getter(group, "exceptions")(error) if is_a(error, group) else _own(error, "_exceptions")
    first = found[:MOST_MEMBERS] if type(found) is tuple else ()
    return [one for one in first if is_a(one, BaseException)]


def _error(value: BaseException) -> object:
    return {"error_type": type_name(type(value)), "message": shorten(error_message(value), 1_000)}


def _function(value: Any) -> object:
    while type(value) is types.MethodType:
        value = value.__func__
    if type(value) is types.FunctionType:
        return _named("function", value.__module__, value.__qualname__)
    return _named("function", None, value.__name__ if type(value) is types.BuiltinFunctionType else None)


def _named(kind: str, *names: object) -> object:
    return {"$type": kind, "name": ".".join([shorten(name, 200) for name in names if type(name) is str])}


def _enum(value: Any) -> object:
    inner = _own(value, "_value_")
    if is_a(inner, enum.Enum):  # not into an enum of enums: it can turn in a circle
        return {"$type": type_name(type(value))}
    return reader_of(type(inner))(inner)


def _proxy(value: Any) -> object:
    inner = gc.get_referents(value)[0]  # the mapping behind it, which can be anything
    return _pairs(inner) if is_a(inner, dict) else _stranger(type(inner))(inner)


def _stranger(kind: type) -> Reader:
    """Make the reader of objects of which only the type is told."""
    return lambda _: {"$type": type_name(kind)}


def _container(kind: Any, entries: Callable[[Any], Iterable[Any]] | None = None) -> Reader:
    """Make the reader of containers whose length and entries *kind*, a built-in base, knows."""
    return lambda value: Open(value, entries or kind.__iter__, kind.__len__(value), kind is not dict)


def _set(kind: Any) -> Reader:
    """Make the reader of sets: small ones of only strings or ints are sorted, so equal sets look equal."""

    def entries(value: Any) -> Iterable[Any]:
        if kind.__len__(value) > 1_000:
            return kind.__iter__(value)  # type: ignore[no-any-return]
        items = list(kind.__iter__(value))
        return sorted(items) if _are_all(items, str) or _are_all(items, int) else items

    return _container(kind, entries)


def _are_all(items: list[Any], kind: type) -> bool:
    return not [item for item in items if type(item) is not kind]


def _object(bases: tuple[type, ...], names: list[str]) -> Reader:
    """Make the reader of objects with fields: from slots and the instance's dict, so no property is asked."""
    slots = [(name, _slot(bases, name)) for name in names]
    own_dict, extra = _dict_of(bases), _slot(bases, "__pydantic_extra__")

    def read(value: Any) -> object:
        own = own_dict(value)
        fields: dict[str, object] = {}
        for name, slot in slots:
            found = own.get(name, _UNSET) if slot is None else slot(value)
            if found is not _UNSET:
                fields[name] = found
        more = extra(value) if extra else None
        if type(more) is dict and _are_all(list(more), str):
            fields |= more
        return _pairs(fields)

    return read


def _named_tuple(names: tuple[str, ...]) -> Reader:
    return lambda value: _pairs(dict(zip(names, tuple.__iter__(value), strict=False)))


_UNSET = object()
_pairs = _container(dict, dict.items)

# By the id of the type. Subclasses are read like the first of their bases that is here.
_READERS: dict[int, Reader] = {
    id(kind): read
    for kind, read in (
        (str, read_string),
        (bool, _same),
        (type(None), _same),
        (int, _integer),
        (float, _floating),
        (complex, complex.__repr__),
        (bytes, _binary(bytes)),
        (bytearray, _binary(bytearray)),
        (memoryview, _view),
        (dict, _pairs),
        (types.MappingProxyType, _proxy),
        (list, _container(list)),
        (tuple, _container(tuple)),
        (deque, _container(deque)),
        (range, _container(range)),
        (set, _set(set)),
        (frozenset, _set(frozenset)),
        (dt.datetime, _datetime),
        (dt.date, dt.date.isoformat),
        (dt.time, _time),
        (dt.timedelta, _timedelta),
        (enum.Enum, _enum),
        (BaseException, _error),
        (type, lambda value: _named("type", type_name(value))),
        (types.ModuleType, lambda value: _named("module", _module_dict(value).get("__name__"))),
        (types.FunctionType, _function),
        (types.MethodType, _function),
        (types.BuiltinFunctionType, _function),
    )
}
# The same for kinds whose modules are not imported for this; these without their subclasses.
_LATE_READERS: tuple[tuple[str, tuple[str, ...], Reader], ...] = (
    ("uuid", ("UUID",), _exact_text),
    ("decimal", ("Decimal",), _decimal),
    ("pathlib", ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"), _path),
)


def reader_of(kind: type) -> Reader:
    """Choose how values of type *kind* are read."""
    read = _READERS.get(id(kind))
    if read is not None:
        return read
    bases = bases_of(kind)
    if _has(bases, enum.Enum):
        return _enum
    if _has(bases, _loaded("pydantic.types", "_SecretBase")):
        return lambda _: "**********"
    names = _field_names(bases)
    if names is not None:
        return _object(bases, names)
    fields = _class_attribute(bases, "_fields")
    if _has(bases, tuple) and type(fields) is tuple and _are_all(list(fields), str):
        return _named_tuple(fields)
    for base in bases:
        read = _READERS.get(id(base))
        if read is not None:
            return read
    for module, types_of_it, late in _LATE_READERS:
        if any(kind is _loaded(module, name) for name in types_of_it):
            return late
    return _stranger(kind)


def _field_names(bases: tuple[type, ...]) -> list[str] | None:
    """Return the names of the fields if this is a pydantic model, a dataclass or an attrs class."""
    fields = _class_attribute(bases, "__pydantic_fields__")
    if fields is None and _class_attribute(bases, "__pydantic_core_schema__") is not None:
        fields = _class_attribute(bases, "model_fields")  # pydantic before 2.10
    if type(fields) is dict:
        return [name for name, field in fields.items() if type(name) is str and not _is_excluded(field)]
    fields = _class_attribute(bases, "__dataclass_fields__")
    if type(fields) is dict:
        return [name for name in fields if type(name) is str]
    fields = _class_attribute(bases, "__attrs_attrs__")
    if fields is not None and is_a(fields, tuple):
        return [name for name in [_own(one, "name") for one in tuple.__iter__(fields)] if type(name) is str]
    return None


def _is_excluded(field: object) -> bool:
    # A condition for leaving a field out is the user's code: it is left out without asking.
    return _own(field, "exclude") is True or _own(field, "exclude_if") is not None


# ---- reading classes and instances without running code ----------------------------------------------------


def getter(kind: type, name: str) -> Callable[[Any], Any]:
    """Return what reads attribute *name* as *kind* itself defines it, whatever a subclass has made of it."""
    return kind.__dict__[name].__get__  # type: ignore[no-any-return]


bases_of: Callable[[type], tuple[type, ...]] = getter(type, "__mro__")
_namespace = getter(type, "__dict__")
_qualname = getter(type, "__qualname__")
_module = getter(type, "__module__")
_module_dict: Callable[[Any], Any] = getter(types.ModuleType, "__dict__")


def type_name(kind: type) -> str:
    """Return "module.QualName", or the name alone of what is built in."""
    module, name = _module(kind), shorten(_qualname(kind), 200)
    return name if type(module) is not str or module == "builtins" else f"{shorten(module, 200)}.{name}"


def _has(bases: tuple[type, ...], base: object) -> bool:
    return any(one is base for one in bases)


def is_a(value: object, base: object) -> bool:
    """Do what `isinstance` does, without asking *value* or a metaclass."""
    return _has(bases_of(type(value)), base)


def _class_attribute(bases: tuple[type, ...], name: str) -> Any:
    """Return the raw attribute *name* of a class with *bases*: a property or descriptor is not called."""
    for base in bases:
        found = _namespace(base).get(name)
        if found is not None:
            return found
    return None


def _dict_of(bases: tuple[type, ...]) -> Callable[[Any], dict[str, Any]]:
    """Return what reads the dict of an instance, which is empty if the class has none or hides it."""
    own = _class_attribute(bases, "__dict__")
    if type(own) is not types.GetSetDescriptorType:
        return lambda _: {}
    read = own.__get__
    return lambda value: found if type(found := read(value)) is dict else {}


def _slot(bases: tuple[type, ...], name: str) -> Callable[[Any], Any] | None:
    """Return what reads the slot *name*, or `_UNSET` if it has no value; None if there is no such slot."""
    slot = _class_attribute(bases, name)
    if type(slot) is not types.MemberDescriptorType:
        return None

    def read(value: Any) -> Any:
        try:
            return slot.__get__(value)
        except AttributeError:
            return _UNSET

    return read


def _own(value: object, name: str) -> Any:
    """Return what *value* itself stores under *name*, in a slot or in its dict, or None."""
    bases = bases_of(type(value))
    slot = _slot(bases, name)
    found = slot(value) if slot else _dict_of(bases)(value).get(name)
    return None if found is _UNSET else found


def _loaded(module: str, name: str) -> object:
    """Return attribute *name* of a module if that has been imported: if there is a value of it, it has."""
    found = sys.modules.get(module)
    return _module_dict(found).get(name, _UNSET) if type(found) is types.ModuleType else _UNSET
