"""How each kind of value is read: what of it is data, got without running any code of the user.

In comes one value, by way of `reader_of(its type)`. Out comes JSON, or for a container an `Open`, whose
entries are still to be read, one by one, as far as there is room, or a `Given`, if the user has registered a
function for the type. Strings come out whole, and their reader is `read_string`. `label` makes a short text of a
value instead. A reader can raise: its caller marks the value.

What keeps it safe: see `_peek`, by which everything of an unknown kind is looked at. Subclasses are read through
the methods of the built-in base.
"""

from __future__ import annotations

import datetime as dt
import enum
import gc
import types
from collections import deque
from itertools import islice
from math import isfinite
from typing import TYPE_CHECKING, Any, NamedTuple

import orjson

from prefactor_trace import _conversions
from prefactor_trace._arrays import reader_of_array, scalar_of
from prefactor_trace._marks import Omit, Plan, Ruled, obeyed, ruled, rules_of
from prefactor_trace._peek import (
    UNSET,
    bases_of,
    class_attribute,
    dict_of,
    getter,
    has_base,
    is_a,
    loaded,
    module_dict,
    own,
    package_of,
    reader_of_own,
    shorten,
    slot_of,
    slots_of,
    type_name,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    Reader = Callable[[Any], object]
    Clear = Callable[[str], str]


class Open(NamedTuple):
    """How to read a container. Objects have become dicts of their fields."""

    source: Any
    entries: Callable[[Any], Iterable[Any]]  # the items of a list, the pairs of a dict
    length: int
    is_list: bool


class Given(NamedTuple):
    """A value that is not read but given to the function that the user has registered for its type."""

    value: Any
    function: Callable[[Any], object]


def followed(opened: Open, plan: Plan) -> Open:
    """Return *opened*, a container, with its entries as *plan* will have them."""
    if opened.is_list:
        others = plan.others

        def items(_: Any) -> Iterable[Any]:
            found = opened.entries(opened.source)
            return found if others is None else (Ruled(item, others) for item in found)

        return Open(None, items, opened.length, is_list=True)
    if opened.length > _MOST_MERGED:  # to count those to be omitted would take its time: they are marked

        def pairs(_: Any) -> Iterable[Any]:
            for key, item in opened.entries(opened.source):
                rule = plan.rule(key)
                yield key, item if rule is None else ruled(item, rule)

        return Open(None, pairs, opened.length, is_list=False)
    kept = deque(
        (key, item if rule is None else ruled(item, rule))
        for key, item in list(opened.entries(opened.source))
        if (rule := plan.rule(key)) is not Omit
    )
    return Open(kept, deque.__iter__, len(kept), is_list=False)


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
    if type(found) is Given and depth:
        made = _conversions.convert(found.function, found.value)
        return f"<{type_name(kind)}>" if made is _conversions.FAILED else label(made, longest, depth - 1)
    if type(found) in (Open, dict, Given, Ruled):
        return f"<{type_name(kind)}>"
    return shorten(found if type(found) is str else orjson.dumps(found).decode(), longest)


# ---- how each kind is read: value -> JSON or Open ----------------------------------------------------------

SAFE_INT = 2**53 - 1  # what every JSON reader keeps exact
_LONG_INT = 3_322  # bits of 1,000 digits; more take quadratic time, and Python refuses from 4,300 on
_HASHED_BYTES = 16_384
MOST_MEMBERS = 8  # of a group of exceptions
_MOST_ROOTS = 32  # root models inside each other
_MOST_EXTRA = 1_000  # values beside the fields of a pydantic model
_MOST_SORTED = 65_536  # characters of the strings in a set
_MOST_MERGED = 1_000  # maps of a ChainMap, and entries of them all
# Zones whose code is known not to be the user's.
_ZONES = (("datetime", "timezone"), ("zoneinfo", "ZoneInfo"), ("pydantic_core", "TzInfo"))

# Those of pydantic 2, and of pydantic 1 by both its names.
_SECRETS = (
    ("pydantic.types", "_SecretBase"),
    ("pydantic.v1.types", "SecretField"),
    ("pydantic.types", "SecretField"),
)

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
    return zone is None or any(type(zone) is loaded(module, name) for module, name in _ZONES)


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
    if not value.c_contiguous or not value.nbytes:  # its bytes would have to be gathered
        return {"$bytes": value.nbytes}
    start = bytes(value.cast("B")[:_HASHED_BYTES])
    return {**_binary(bytes)(start), "$bytes": value.nbytes}  # type: ignore[dict-item]


def _exact_text(value: object) -> str:
    return str.__str__(str(value))


def _decimal(value: Any) -> object:
    return str(value) if value.__sizeof__() < 4_096 else _stranger(type(value))(value)


def _made_of_ints(*names: str) -> Reader:
    """Make the reader of values that are text if what they hold under *names* are ints, not a user's."""

    def read(value: Any) -> object:
        parts = [own(value, name) for name in names]
        if _are_all(parts, int) and not [part for part in parts if part.bit_length() > _LONG_INT]:
            return _exact_text(value)
        return _stranger(type(value))(value)

    return read


def _network(value: Any) -> object:
    address, length = own(value, "network_address"), own(value, "_prefixlen")
    known = type(length) is int and type(_scoped(address)) is str
    return _exact_text(value) if known else _stranger(type(value))(value)


def _scoped(value: Any) -> object:
    scope = own(value, "_scope_id")
    names = ("_ip",) if type(scope) is str or scope is None else ("_scope_id",)
    return _made_of_ints(*names)(value)


def _interface(value: Any) -> object:
    return _scoped(value) if type(own(value, "_prefixlen")) is int else _stranger(type(value))(value)


def _pattern(value: Any) -> object:
    pattern = getter(type(value), "pattern")(value)
    text = {"pattern": shorten(pattern, 1_000)} if is_a(pattern, str) else {}
    return {"$type": "re.Pattern", **text}


def _data(value: Any) -> object:
    """Read a UserDict, a UserList or a UserString, by what they hold."""
    inner = own(value, "data")
    if is_a(inner, str) or is_a(inner, dict) or is_a(inner, list):
        return reader_of(type(inner))(inner)
    return _stranger(type(value))(value)


_PLAIN_KEYS = (str, int, float, bool, bytes, type(None))


def _chain_map(value: Any) -> object:
    """Read the maps as the one dict they look like, if that is a small one with keys whose hash is not the user's."""
    maps = own(value, "maps")
    if is_a(maps, list) and list.__len__(maps) > _MOST_MERGED:
        return _container(list)(maps)
    if not is_a(maps, list) or [one for one in list.__iter__(maps) if not is_a(one, dict)]:
        return _stranger(type(value))(value)
    if sum(map(dict.__len__, list.__iter__(maps))) > _MOST_MERGED:
        return _container(list)(maps)
    merged = [pair for one in list.__reversed__(maps) for pair in dict.items(one)]
    # By `is`, one by one: `in` would ask the class of a key's class.
    is_plain = not [key for key, _ in merged if not [kind for kind in _PLAIN_KEYS if type(key) is kind]]
    return _pairs(dict(merged)) if is_plain else _container(list)(maps)


def _path(value: Any) -> object:
    raw = own(value, "_raw_paths")  # since Python 3.12, what it was made of, which can be a user's str
    if type(raw) is list and not _are_all(raw, str):
        return _stranger(type(value))(value)
    return _exact_text(value)


def error_message(
    error: BaseException, read: Callable[[Any], str] = label, clear: Clear | None = None
) -> str:
    """Join the arguments of *error*, each that is no string as text by *read*; *clear* is for those that are."""
    args = arguments_of_error(error)
    if clear is not None:
        args = tuple(clear(str.__getitem__(one, slice(None))) if is_a(one, str) else one for one in args)
    if len(args) == 1 and type(args[0]) is str:
        return args[0]
    if type(error) is loaded("pydantic_core", "ValidationError"):  # written in Rust, and without arguments
        count = error.error_count()  # type: ignore[attr-defined] # its words would be made by the user's code
        return f"{count} validation error{'s' * (count != 1)} for {shorten(error.title, 200)}"  # type: ignore[attr-defined]
    parts = [shorten(one, 1_000) if type(one) is str else read(one) for one in args]
    if len(parts) == 2 and is_a(error, OSError):
        name = getter(OSError, "filename")(error)
        place = f": {shorten(name, 1_000)!r}" if type(name) is str else ""
        return f"[Errno {parts[0]}] {parts[1]}{place}"
    return ", ".join(parts)


def arguments_of_error(error: BaseException) -> tuple[Any, ...]:
    """Return those of its arguments that tell what *error* says."""
    most = 1 if members(error) else 16  # in a group, its members come next
    found: tuple[Any, ...] = getter(BaseException, "args")(error)[:most]
    return found


def members(error: BaseException) -> list[BaseException]:
    """Return the first members if *error* is a group, which can be groups themselves."""
    group: Any = loaded("builtins", "BaseExceptionGroup")
    # The package exceptiongroup, for Python 3.10, has them in an attribute of its own.
    found = getter(group, "exceptions")(error) if is_a(error, group) else own(error, "_exceptions")
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
    inner = own(value, "_value_")
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
        return sorted(items) if _are_quick_to_sort(items) else items

    return _container(kind, entries)


def _are_quick_to_sort(items: list[Any]) -> bool:
    """Say whether *items* are all strings, or all ints, and not so long that comparing them takes its time."""
    if _are_all(items, str):
        return sum(map(len, items)) < _MOST_SORTED
    return _are_all(items, int) and not [item for item in items if not -SAFE_INT <= item <= SAFE_INT]


def _are_all(items: list[Any], kind: type) -> bool:
    return not [item for item in items if type(item) is not kind]


def _scalar(convert: Callable[[Any], Any]) -> Reader:
    """Make the reader of values that *convert* makes exact Python ones."""

    def read(value: Any) -> object:
        inner = convert(value)
        return _READERS[id(type(inner))](inner)

    return read


def _object(bases: tuple[type, ...], names: list[str]) -> Reader:
    """Make the reader of objects with fields: from slots and the instance's dict, so no property is asked."""
    slots = list(zip(names, slots_of(bases, names), strict=True))
    own_dict, extra = dict_of(bases), slot_of(bases, "__pydantic_extra__")
    rules = rules_of(bases[0])
    rule_of_more = rules.get("__pydantic_extra__")  # of the dict that they are in
    if type(rule_of_more) is Plan:
        rule_of_more = rule_of_more.others

    def read(value: Any) -> object:
        own = own_dict(value)
        fields: dict[str, object] = {}
        for name, slot in slots:
            found = own.get(name, UNSET) if slot is None else slot(value)
            if found is not UNSET:
                fields[name] = found
        more = extra(value) if extra else None
        if type(more) is dict and rule_of_more is not Omit:
            for name, item in islice(more.items(), _MOST_EXTRA):
                if type(name) is str:
                    fields[name] = item if rule_of_more is None else ruled(item, rule_of_more)
            if len(more) > _MOST_EXTRA:
                fields["$truncated"] = {"length": len(names) + len(more)}
        return _pairs(obeyed(fields, rules) if rules else fields)

    return read


def _old_model(bases: tuple[type, ...], fields: dict[Any, Any]) -> Reader:
    """Make the reader of models of pydantic 1: all of the instance's dict, which has additional values, too."""
    kept_out = [
        name for name, field in fields.items() if own(own(field, "field_info"), "exclude") is not None
    ]
    own_dict, rules = dict_of(bases), rules_of(bases[0])

    def read(value: Any) -> object:
        found = own_dict(value)
        fields = {name: found[name] for name in found if type(name) is str and name not in kept_out}
        return _pairs(obeyed(fields, rules) if rules else fields)

    return read


def _root(value: Any) -> object:
    """Read a pydantic RootModel: it stands for what is in it."""
    rule = rules_of(type(value)).get("root")
    inner = own(value, "root")
    if rule is not None:
        return ruled(inner, rule)
    for _ in range(_MOST_ROOTS):
        if not has_base(bases_of(type(inner)), loaded("pydantic.root_model", "RootModel")):
            return reader_of(type(inner))(inner)
        inner = own(inner, "root")
    return {"$cycle": type_name(type(value))}


def _named_tuple(kind: type, names: tuple[str, ...]) -> Reader:
    rules = rules_of(kind)

    def read(value: Any) -> object:
        fields = dict(zip(names, tuple.__iter__(value), strict=False))
        return _pairs(obeyed(fields, rules) if rules else fields)

    return read


_pairs = _container(dict, dict.items)
_namespace_dict = getter(types.SimpleNamespace, "__dict__")

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
        (types.SimpleNamespace, lambda value: _pairs(_namespace_dict(value))),
        (enum.Enum, _enum),
        (BaseException, _error),
        (type, lambda value: _named("type", type_name(value))),
        (types.ModuleType, lambda value: _named("module", module_dict(value).get("__name__"))),
        (types.FunctionType, _function),
        (types.MethodType, _function),
        (types.BuiltinFunctionType, _function),
    )
}
# The same for kinds whose modules are not imported for this, by package; these without their subclasses.
_LATE_READERS: dict[str, tuple[tuple[str, tuple[str, ...], Reader], ...]] = {
    "uuid": (("uuid", ("UUID",), _made_of_ints("int")),),
    "decimal": (("decimal", ("Decimal",), _decimal),),
    "pathlib": (("pathlib", ("PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath"), _path),),
    "fractions": (("fractions", ("Fraction",), _made_of_ints("_numerator", "_denominator")),),
    "ipaddress": (
        ("ipaddress", ("IPv4Address", "IPv6Address"), _scoped),
        ("ipaddress", ("IPv4Network", "IPv6Network"), _network),
        ("ipaddress", ("IPv4Interface", "IPv6Interface"), _interface),
    ),
    "re": (("re", ("Pattern",), _pattern),),
}
# And with their subclasses.
_COLLECTIONS = (("UserDict", _data), ("UserList", _data), ("UserString", _data), ("ChainMap", _chain_map))


class _Met(NamedTuple):
    """A type of `_LATE_READERS` that there was a value of."""

    kind: type
    module: str
    name: str
    read: Reader


_met: dict[int, _Met] = {}  # by the id of the type, which is its own while it is held


def reader_of(kind: type) -> Reader:
    """Choose how values of type *kind* are read."""
    if _conversions.functions:
        function = _conversions.function_for(kind)
        if function is not None:
            return lambda value: Given(value, function)
    read = _READERS.get(id(kind))
    if read is not None:
        return read
    met = _met.get(id(kind))
    if met is not None and loaded(met.module, met.name) is kind:
        return met.read
    bases = bases_of(kind)
    if has_base(bases, enum.Enum):
        return _enum
    packages = [package_of(base) for base in bases]
    read = (
        ("pydantic" in packages and _reader_of_pydantic(bases))
        or _reader_of_object(bases)
        or _reader_of_package(kind, bases, packages)
    )
    return read or next((_READERS[id(base)] for base in bases if id(base) in _READERS), _stranger(kind))


def _reader_of_pydantic(bases: tuple[type, ...]) -> Reader | None:
    """Choose how values of pydantic's own kinds are read, those that are more than objects with fields."""
    if any(has_base(bases, loaded(module, name)) for module, name in _SECRETS):
        return lambda _: "**********"
    if has_base(bases, loaded("pydantic.root_model", "RootModel")):
        return _root
    fields = class_attribute(bases, "__fields__")
    if type(fields) is dict and type(class_attribute(bases, "__config__")) is type:
        return _old_model(bases, fields)
    return None


def _reader_of_object(bases: tuple[type, ...]) -> Reader | None:
    """Choose how values with fields are read, None if there are none."""
    names = _field_names(bases)
    if names is not None:
        return _object(bases, names)
    fields = class_attribute(bases, "_fields")
    if has_base(bases, tuple) and type(fields) is tuple and _are_all(list(fields), str):
        return _named_tuple(bases[0], fields)
    return None


def _reader_of_package(kind: type, bases: tuple[type, ...], packages: list[str]) -> Reader | None:
    """Choose how values of kinds that are not built in are read, None if this is no such kind."""
    for module, names, read in _LATE_READERS.get(packages[0], ()):
        for name in names:
            if kind is loaded(module, name):
                _met[id(kind)] = _Met(kind, module, name, read)
                return read
    if "collections" in packages:
        for name, read in _COLLECTIONS:
            if has_base(bases, loaded("collections", name)):
                return read
    if "numpy" in packages:
        convert = scalar_of(bases)
        if convert is not None:
            return _scalar(convert)
    if "pandas" in packages and kind is loaded("pandas._libs.tslibs.nattype", "NaTType"):
        return _stranger(kind)  # looks like a datetime, and holds none
    return reader_of_array(bases, packages)


def _field_names(bases: tuple[type, ...]) -> list[str] | None:
    """Return the names of the fields if this is a pydantic model, a dataclass, a msgspec struct or an attrs class."""
    fields = class_attribute(bases, "__pydantic_fields__")
    if fields is None and class_attribute(bases, "__pydantic_core_schema__") is not None:
        fields = class_attribute(bases, "model_fields")  # pydantic before 2.10
    if type(fields) is dict:
        return _not_excluded(fields)
    fields = class_attribute(bases, "__dataclass_fields__")
    if type(fields) is dict:
        return _texts(fields)
    struct = loaded("msgspec", "Struct")
    if has_base(bases, struct):
        return _texts(getter(type(struct), "__struct_fields__")(bases[0]))
    fields = class_attribute(bases, "__attrs_attrs__")
    if fields is not None and is_a(fields, tuple):
        return _texts(own(one, "name") for one in tuple.__iter__(fields))
    return None


def _texts(found: Iterable[Any]) -> list[str]:
    return [each for each in found if type(each) is str]


def _not_excluded(fields: dict[Any, Any]) -> list[str]:
    """Return the names of those *fields* of a pydantic model that go into what it is written as."""
    readers: dict[int, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {}  # nearly always of one type
    names = []
    for name, field in fields.items():
        kind = type(field)
        read = readers.get(id(kind))
        if read is None:
            read = readers[id(kind)] = reader_of_own(kind, "exclude"), reader_of_own(kind, "exclude_if")
        exclude, exclude_if = read
        # A condition for leaving a field out is the user's code: it is left out without asking.
        if type(name) is str and exclude(field) is not True and exclude_if(field) is None:
            names.append(name)
    return names
