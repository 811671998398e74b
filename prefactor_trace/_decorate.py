"""Finds the functions in what is decorated, and puts the result where each was.

In comes whatever stands under `@span` or `@instance`, out goes a thing of the same kind:

    a Python function                       a function with a scope around each call
    classmethod, staticmethod, property,    the same around the function inside; a property's getter, its setter and
    cached_property, partialmethod          deleter as they are
    a class                                 the same class, each public method of its own body decorated
    any other callable: a partial, a bound  a stand-in: passes for the object in all but that its calls are recorded
    method, a C function, an `lru_cache`,
    an object with `__call__`
    what is decorated already               decorated once: see `decorate`
    anything else                           ConfigurationError
"""

from __future__ import annotations

import copy
import functools
import sys
import types
from typing import TYPE_CHECKING, Any, Protocol, cast

from prefactor_trace._wrap import opener_of, wrap
from prefactor_trace.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    from prefactor_trace._wrap import Open

    Decorated: TypeAlias = (
        Callable[..., Any]
        | classmethod[Any, Any, Any]
        | staticmethod[Any, Any]
        | property
        | functools.cached_property[Any]
        | functools.partialmethod[Any]
    )

__all__ = ["Decorator", "decorate"]


class Decorator(Protocol):
    """What says how the calls of a function are recorded: a span's or a run's block."""

    def opener(self, function: Any) -> Open:
        """Return what opens the scope of each call of *function*. Raises ConfigurationError if an option forbids it."""
        ...

    def over(self, inner: Any) -> Any:
        """Return the decorator that stands for this one over *inner*; None if both are to be kept."""
        ...

    def for_class(self, kind: type) -> None:
        """Raise ConfigurationError if this cannot decorate the methods of a class."""
        ...


def decorate(target: Any, by: Decorator) -> Any:
    """Return *target* with its calls recorded as *by* says.

    If they are recorded already by a decorator of the same kind, they go on being recorded once: what *by* gives
    holds, the rest is as the inner one says.

    Raises:
        ConfigurationError: It cannot be called, or not be recorded in this way.
    """
    if issubclass(type(target), type):
        return _class(target, by)
    if issubclass(type(target), (classmethod, staticmethod)):
        return type(target)(decorate(target.__func__, by))
    if issubclass(type(target), property):
        return target.getter(decorate(target.fget, by))
    if issubclass(type(target), functools.cached_property):
        new = copy.copy(target)
        new.func = decorate(target.func, by)
        return new
    if issubclass(type(target), functools.partialmethod):
        return type(target)(decorate(target.func, by), *target.args, **target.keywords)
    if not callable(target):
        raise ConfigurationError(
            f"an object of type {type(target).__qualname__} cannot be called, so there is nothing to record; "
            "decorate a function, a method, a class or an object with __call__"
        )
    inner = decorator_of(target)
    merged = None if inner is None else by.over(inner)
    if merged is None:
        return _decorated(target, by)
    made = _decorated(target.__wrapped__, merged)
    if type(target) is types.FunctionType:  # what stands on the inner one by now: marks, a docstring
        functools.update_wrapper(made, target, updated=())
        made.__dict__.update(target.__dict__)
        made.__defaults__, made.__kwdefaults__ = target.__defaults__, target.__kwdefaults__
    return made


def decorator_of(target: Any) -> Any:
    """Return what *target* was decorated by, None if by nothing of ours."""
    if type(target) is types.FunctionType:
        return getattr(opener_of(target), "made_by", None)
    return (
        object.__getattribute__(target, "__prefactor_trace__") if issubclass(type(target), _StandIn) else None
    )


def _decorated(function: Any, by: Decorator) -> Any:
    if type(function) is types.FunctionType:
        return wrap(function, _opener(function, by))
    called = function
    try:
        if type(type(function).__call__) is types.FunctionType:
            called = function.__call__
        return _stand_in(function, wrap(called, _opener(function, by)), by)
    except ConfigurationError:
        raise
    except Exception as error:  # it has been asked for its names and signature, and may answer with anything
        raise ConfigurationError(
            f"an object of type {type(function).__qualname__} cannot be recorded: its attributes cannot be read; "
            "decorate its class, or a function that calls it"
        ) from error


def _opener(function: Any, by: Decorator) -> Open:
    open_scope: Any = by.opener(function)
    open_scope.made_by = by
    return cast("Open", open_scope)


def _class(kind: Any, by: Decorator) -> Any:
    by.for_class(kind)
    for name, member in list(vars(kind).items()):
        if not name.startswith("_") and _is_method(member):
            try:
                setattr(kind, name, decorate(member, by))
            except (TypeError, AttributeError) as error:
                raise ConfigurationError(f"{kind.__qualname__}.{name} cannot be replaced: {error}") from error
    if not kind.__flags__ & _HEAP_TYPE:
        raise ConfigurationError(
            f"{kind.__qualname__} is a built-in class, whose methods cannot be recorded; decorate a class of your own"
        )
    return kind


_HEAP_TYPE = 1 << 9  # Py_TPFLAGS_HEAPTYPE: made by a class statement


def _is_method(member: Any) -> bool:
    """Say whether a member of a class body is a method that nothing of ours decorates yet."""
    if type(member) is functools.partialmethod:
        return _is_method(member.func)
    function = member.__func__ if isinstance(member, (classmethod, staticmethod)) else member
    return type(function) in _METHODS and decorator_of(function) is None


_METHODS = (types.FunctionType, type(functools.lru_cache(len)))


# ---- objects that can be called ----------------------------------------------------------------------------


class _StandIn:
    """Passes for the object it stands for: attributes, `isinstance`, operators, `repr`; `type()` tells it.

    The object itself is `__wrapped__`. Each has a class of its own, as special methods are looked up there.
    """

    __slots__ = ("__prefactor_trace__", "__weakref__", "__wrapped__")

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "__wrapped__"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(object.__getattribute__(self, "__wrapped__"), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(object.__getattribute__(self, "__wrapped__"), name)

    def __copy__(self) -> Any:
        return self.__like__(copy.copy(self.__wrapped__))

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return self.__like__(copy.deepcopy(self.__wrapped__, memo))

    def __like__(self, thing: Any) -> Any:
        return self if thing is self.__wrapped__ else decorate(thing, decorator_of(self))

    def __reduce_ex__(self, protocol: Any) -> Any:
        name = self.__wrapped__.__reduce_ex__(protocol)
        if isinstance(name, str) and _named(self.__wrapped__, name) is self:
            return name  # what is found under its name travels as that name
        return decorate, (self.__wrapped__, decorator_of(self))


# What a stand-in must do itself, for it would else be done to it or lose it.
_OWN = frozenset(
    [
        "__call__",
        "__class__",
        "__class_getitem__",
        "__copy__",
        "__deepcopy__",
        "__del__",
        "__delattr__",
        "__dict__",
        "__doc__",
        "__get__",
        "__getattr__",
        "__getattribute__",
        "__getnewargs__",
        "__getnewargs_ex__",
        "__getstate__",
        "__init__",
        "__init_subclass__",
        "__module__",
        "__new__",
        "__reduce__",
        "__reduce_ex__",
        "__setattr__",
        "__setstate__",
        "__slots__",
        "__subclasshook__",
        "__weakref__",
    ]
)


def _stand_in(thing: Any, wrapper: Any, by: Decorator) -> Any:
    """Return what stands for *thing* and is called through *wrapper*."""
    kind = type(thing)
    special = {name for each in kind.__mro__ for name in vars(each) if name[:2] == name[-2:] == "__"} - _OWN
    methods = {name: getattr(kind, name, None) for name in special}
    members: dict[str, Any] = {name: _forwarded(each) for name, each in methods.items() if callable(each)}
    # Switched off, as `__hash__` can be.
    members |= {name: None for name, each in methods.items() if each is None}
    members |= {name: property(_attribute(name)) for name in ("__doc__", "__module__")}
    members |= {
        "__slots__": (),
        "__call__": staticmethod(wrapper),
        "__class__": property(_attribute("__class__")),
    }
    if hasattr(kind, "__get__"):
        members["__get__"] = _bound
    made = type(kind.__name__, (_StandIn,), members)()
    object.__setattr__(made, "__wrapped__", thing)
    object.__setattr__(made, "__prefactor_trace__", by)
    return made


def _forwarded(method: Any) -> Any:
    return lambda self, *args, **kwargs: method(self.__wrapped__, *args, **kwargs)


def _attribute(name: str) -> Any:
    return lambda self: getattr(self.__wrapped__, name)


def _bound(self: Any, owner: Any, kind: Any = None) -> Any:
    """Bind as the object binds; what comes of it is recorded as well."""
    thing = self.__wrapped__
    bound = type(thing).__get__(thing, owner, kind)
    if type(bound) is types.MethodType and bound.__func__ is thing:
        return types.MethodType(self, bound.__self__)
    return self.__like__(bound) if callable(bound) else bound


def _named(thing: Any, name: str) -> Any:
    """Return what is found under *name* in the module of *thing*; None if nothing is."""
    found: Any = sys.modules.get(getattr(thing, "__module__", None) or "")
    for part in name.split("."):
        found = getattr(found, part, None)
    return found
