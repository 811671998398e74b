"""Looking at values and classes without running any code of theirs.

In come objects of any kind, out come what they store, and bounded texts of their names. Attributes are read the
way the built-in base of a class defines them, from its slots and from the instance's dict: no property,
descriptor, metaclass or `__getattr__` of the user is asked. Classes are told apart by `is` alone, as hashing or
comparing one can run its metaclass, and `isinstance` can run a property.
"""

from __future__ import annotations

import sys
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

UNSET = object()
"""What stands for an attribute that has no value."""


# ---- texts -------------------------------------------------------------------------------------------------


def shorten(text: str, longest: int) -> str:
    """Return *text* as JSON can have it; beyond *longest* characters, its beginning and its length."""
    if type(text) is str and len(text) <= longest and text.isascii() and "\0" not in text:
        return text
    length = str.__len__(text)
    kept = clean(str.__getitem__(text, slice(longest)))
    return kept if length <= longest else f"{kept}... ({length} characters)"


def clean(text: str) -> str:
    r"""Return *text* (exactly a str) with lone surrogates and NUL written as backslash escapes, like \u0000.

    JSON has no other way for surrogates; and it has one for NUL, but PostgreSQL's JSON columns refuse it, and a
    record that is refused is lost whole.
    """
    if "\0" in text:
        text = text.replace("\0", "\\u0000")
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-8", "backslashreplace").decode()
    return text


# ---- classes -----------------------------------------------------------------------------------------------


def getter(kind: type, name: str) -> Callable[[Any], Any]:
    """Return what reads attribute *name* as *kind* itself defines it, whatever a subclass has made of it."""
    return kind.__dict__[name].__get__  # type: ignore[no-any-return]


bases_of: Callable[[type], tuple[type, ...]] = getter(type, "__mro__")
namespace_of: Callable[[type], Any] = getter(type, "__dict__")
name_of: Callable[[type], str] = getter(type, "__name__")
qualname_of: Callable[[type], str] = getter(type, "__qualname__")
_module = getter(type, "__module__")
module_dict: Callable[[Any], Any] = getter(types.ModuleType, "__dict__")


def type_name(kind: type) -> str:
    """Return "module.QualName", or the name alone of what is built in."""
    module, name = module_of(kind), short_name(kind)
    return name if type(module) is not str or module == "builtins" else f"{shorten(module, 200)}.{name}"


def module_of(kind: type) -> Any:
    """Return the name of the module that *kind* says it is from, which can be anything."""
    try:
        return _module(kind)
    except AttributeError:  # deleted, or made by `type()` in a namespace without a name
        return None


def short_name(kind: type) -> str:
    """Return the qualified name of *kind* without its module."""
    return shorten(qualname_of(kind), 200)


def package_of(kind: type) -> str:
    """Return the name of the package that *kind* says it is from; anybody can say so."""
    module = module_of(kind)
    return module.partition(".")[0] if type(module) is str else ""


def has_base(bases: tuple[type, ...], base: object) -> bool:
    """Say whether *base* is one of *bases*."""
    for one in bases:  # noqa: SIM110 - a third of what `any` takes
        if one is base:
            return True
    return False


def is_a(value: object, base: object) -> bool:
    """Do what `isinstance` does, without asking *value* or a metaclass."""
    return has_base(bases_of(type(value)), base)


def class_attribute(bases: tuple[type, ...], name: str) -> Any:
    """Return the raw attribute *name* of a class with *bases*: a property or descriptor is not called."""
    for base in bases:
        found = namespace_of(base).get(name)
        if found is not None:
            return found
    return None


def loaded(module: str, name: str) -> Any:
    """Return attribute *name* of a module if that has been imported: if there is a value of it, it has."""
    found = sys.modules.get(module)
    is_module = type(found) is types.ModuleType or is_a(found, types.ModuleType)
    return module_dict(found).get(name, UNSET) if is_module else UNSET


# ---- instances ---------------------------------------------------------------------------------------------


def dict_of(bases: tuple[type, ...]) -> Callable[[Any], dict[str, Any]]:
    """Return what reads the dict of an instance, which is empty if the class has none or hides it."""
    descriptor = class_attribute(bases, "__dict__")
    if type(descriptor) is not types.GetSetDescriptorType:
        return lambda _: {}
    read = descriptor.__get__
    return lambda value: _by_text(found) if type(found := read(value)) is dict else {}


def _by_text(found: dict[Any, Any]) -> dict[str, Any]:
    """Leave out keys of other types: looking anything up beside them can run their `__eq__`."""
    if not [key for key in found if type(key) is not str]:
        return found
    return {key: value for key, value in found.items() if type(key) is str}


def slot_of(bases: tuple[type, ...], name: str) -> Callable[[Any], Any] | None:
    """Return what reads the slot *name*, or `UNSET` if it has no value; None if there is no such slot."""
    return _reader_of_slot(class_attribute(bases, name), UNSET)


def slots_of(bases: tuple[type, ...], names: list[str]) -> list[Callable[[Any], Any] | None]:
    """Return for each of *names* what `slot_of` does."""
    namespaces = [namespace_of(base) for base in bases]
    found = []
    for name in names:
        slot = None
        for namespace in namespaces:
            slot = namespace.get(name)
            if slot is not None:
                break
        found.append(None if slot is None else _reader_of_slot(slot, UNSET))
    return found


def _reader_of_slot(slot: Any, missing: Any) -> Callable[[Any], Any] | None:
    if type(slot) is not types.MemberDescriptorType:
        return None
    get = slot.__get__

    def read(value: Any) -> Any:
        try:
            return get(value)
        except AttributeError:
            return missing

    return read


def own(value: object, name: str) -> Any:
    """Return what *value* itself stores under *name*, in a slot or in its dict, or None."""
    return reader_of_own(type(value), name)(value)


def reader_of_own(kind: type, name: str) -> Callable[[Any], Any]:
    """Return what reads from a value whose type is *kind* what `own` returns."""
    bases = bases_of(kind)
    read = _reader_of_slot(class_attribute(bases, name), None)
    if read is not None:
        return read
    own_dict = dict_of(bases)
    return lambda value: own_dict(value).get(name)
