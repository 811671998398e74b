"""What a decorated function says about its arguments and its result, as JSON Schema.

In: a function, when it is decorated; `note` takes from it what is needed and lets go of it. Out, when an instance
first registers, on the sender's thread: `Signature.describe`. Forward references are resolved then, when all modules
are there, with what the function could see: the names of its module, of its class, of the functions around it.
"""

from __future__ import annotations

import functools
import inspect
import re
import sys
import types
import typing
from collections import abc
from typing import TYPE_CHECKING, Any, NamedTuple

from prefactor_trace._peek import bases_of, class_attribute, has_base, module_of, own
from prefactor_trace._shapes import OWN_DEFINITIONS, as_result, as_stream, plain, with_markers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Json = dict[str, Any]

_ANY_OBJECT: Json = {"type": "object"}
_WORD = re.compile(r"[^\W\d]\w*")
_STREAMS = (
    abc.Generator,
    abc.AsyncGenerator,
    abc.Iterator,
    abc.AsyncIterator,
    abc.Iterable,
    abc.AsyncIterable,
)
_RESULT = "return"


class Parameter(NamedTuple):
    """A parameter. *kind*: "one", "rest" for `*args`, "named" for `**kwargs`."""

    name: str
    kind: str
    is_required: bool


class Signature(NamedTuple):
    """What `note` has taken from a function.

    Attributes:
        module: Its module's name.
        qualname: Its qualified name.
        parameters: Without `self`.
        annotations: As they were written: types, or text that names them.
        namespace: The names of its module.
        around: What its text annotations name of the functions around it.
        beside: What they name of the class body that it stands in.
        summary: The first line of its docstring.
    """

    module: str
    qualname: str
    parameters: tuple[Parameter, ...]
    annotations: Mapping[str, Any]
    namespace: dict[str, Any]
    around: Mapping[str, Any]
    beside: Mapping[str, Any]
    summary: str | None

    def is_like(self, other: Signature) -> bool:
        """Say whether *other* is the same but for the objects it is made of, as of a closure that is made again."""
        if self.namespace is not other.namespace or self.parameters != other.parameters:
            return False
        seen = ((self.around, other.around), (self.beside, other.beside))
        if any(mine.keys() != theirs.keys() for mine, theirs in seen):
            return False
        if any(theirs[name] is not mine[name] for mine, theirs in seen for name in mine):
            return False
        try:
            return self.summary == other.summary and bool(self.annotations == other.annotations)
        except Exception:  # annotations can be anything, and compare as they like
            return False

    def describe(self) -> tuple[Json, Json]:
        """Return the schemas of the arguments and of the result, each with its `$defs`. May load pydantic."""
        names = self._names()
        annotations = dict(self._resolved(names))
        parts = _stream_parts(annotations.get(_RESULT)) if _RESULT in annotations else None
        if parts is not None:
            annotations.update(zip(("item of", "end of"), parts, strict=True))
            del annotations[_RESULT]
        schemas, definitions = _described(annotations, names)
        arguments = self._arguments(schemas)
        result = _ANY_OBJECT
        if _RESULT in schemas:
            result = as_result(schemas[_RESULT], definitions)
        elif parts is not None:
            end = None if parts[1] in (None, type(None)) else schemas["end of"]
            result = as_result(as_stream(schemas["item of"], end, definitions), definitions)
        return _with_definitions(arguments, definitions), _with_definitions(result, definitions)

    def _arguments(self, schemas: Mapping[str, Json]) -> Json:
        found: Json = {"type": "object"}
        properties: Json = {}
        for name, kind, _ in self.parameters:
            schema = schemas.get(name, {})
            if kind == "rest":
                properties[name] = with_markers({"type": "array", "items": schema})
            elif kind == "one":
                properties[name] = with_markers(schema)
            elif schema:
                found["additionalProperties"] = with_markers(schema)
        if properties:
            found["properties"] = properties
            required = [
                name for name, _, is_required in self.parameters if is_required and not self._is_omitted(name)
            ]
            found.update({"required": required} if required else {})
        if "additionalProperties" in found:  # where capture says that arguments were left out
            found["properties"] = {**properties, "$truncated": {}}
        return found

    def _is_omitted(self, name: str) -> bool:
        """Say whether an argument is marked `Omit`, and so is never sent."""
        annotation = self.annotations.get(name)
        text = (
            annotation
            if isinstance(annotation, str)
            else ""
            if isinstance(annotation, type)
            else repr(annotation)
        )
        return "Omit" in text

    def _names(self) -> dict[str, Any]:
        """Return what annotations of this function may name, beside the names of its module."""
        return {**self._names_of_class(), **self.beside, **self.around}

    def _names_of_class(self) -> Mapping[str, Any]:
        found: Any = self.namespace
        for part in self.qualname.split(".")[:-1]:
            found = found.get(part)
            if not isinstance(found, type):
                return {}
            found = vars(found)
        return {} if found is self.namespace else found

    def _resolved(self, names: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
        """Yield each annotation as a type, but those that name what is not there."""
        for name, annotation in self.annotations.items():
            # As the function sees it; what only its class sees comes second: a method may be called `list`.
            for seen in (self.around, names):
                try:
                    hint = resolve(annotation, self.namespace, seen)
                except KeyboardInterrupt:
                    raise
                except BaseException:  # noqa: S112 - a text that is no type; evaluating it is code of the user's
                    continue
                yield name, hint
                break


def resolve(annotation: Any, namespace: dict[str, Any], names: Mapping[str, Any]) -> Any:
    """Return the type that *annotation* stands for, *names* going before *namespace*. Raises if it cannot be found."""
    bearer = types.SimpleNamespace(__annotations__={"it": annotation})
    return typing.get_type_hints(bearer, namespace, dict(names), include_extras=True)["it"]


def _described(annotations: Mapping[str, Any], names: Mapping[str, Any]) -> tuple[Mapping[str, Json], Json]:
    """Return the JSON Schema of each annotation, and the `$defs` they refer to."""
    simple = {name: plain(annotation) for name, annotation in annotations.items()}
    if None not in simple.values():
        return simple, {}  # type: ignore[return-value] # there is no None in it
    # Here, because it loads pydantic, which takes longer than all the rest.
    from prefactor_trace._value_schema import describe

    return describe(annotations, names)


def _with_definitions(schema: Json, definitions: Json) -> Json:
    """Add the definitions that *schema* needs, as they need each other."""
    known = {**definitions, **OWN_DEFINITIONS}
    needed: Json = {}
    waiting = [schema]
    while waiting:
        for name in _references(waiting.pop()):
            if name in known and name not in needed:
                needed[name] = known[name]
                waiting.append(known[name])
    return {**schema, "$defs": dict(sorted(needed.items()))} if needed else schema


def _references(value: Any) -> Iterator[str]:
    waiting = [value]
    while waiting:
        value = waiting.pop()
        if isinstance(value, dict):
            reference = value.get("$ref")
            if isinstance(reference, str) and reference.startswith("#/$defs/"):
                yield reference.removeprefix("#/$defs/").replace("~1", "/").replace("~0", "~")
            waiting += value.values()
        elif isinstance(value, list):
            waiting += value


def _stream_parts(annotation: Any) -> tuple[Any, Any] | None:
    """Return what a stream yields and what it returns at its end, if *annotation* says that it is one."""
    origin = typing.get_origin(annotation)
    if origin is typing.Annotated:
        return _stream_parts(typing.get_args(annotation)[0])
    if origin not in _STREAMS:
        return (Any, Any) if annotation in _STREAMS else None
    found = typing.get_args(annotation) or (Any, Any, Any)
    return found[0], found[2] if origin is abc.Generator and len(found) > 2 else None


# -- when a function is decorated --------------------------------------------------------------------------


def note(function: Any) -> Signature:
    """Take from *function*, of any kind, what describes it. Does not keep it, nor its defaults."""
    inner = _innermost(function)
    named = inner.func if type(inner) is functools.partial else inner
    name = getattr(named, "__qualname__", None) or type(named).__name__
    module = getattr(named, "__module__", None) or ""
    doc = getattr(named, "__doc__", None)
    summary = doc.strip().partition("\n")[0].rstrip() or None if type(doc) is str else None
    if summary is not None and summary.startswith(f"{name.rpartition('.')[2]}("):
        summary = None  # a signature, as dataclasses have: with defaults, which are never told
    try:
        return _signature(inner, str(module), str(name), summary)
    except Exception:  # a callable that only calls, or one that answers strangely
        return Signature(str(module), str(name), (), _NONE, {}, _NONE, _NONE, summary)


def _innermost(function: Any) -> Any:
    """Return the function inside a class method, a static method, a property and decorators that say so."""
    for _ in range(100):  # it could go round in a circle
        if type(function) is types.FunctionType and not function.__dict__:
            break
        if isinstance(function, property):
            function = function.fget
        elif isinstance(function, classmethod | staticmethod):
            function = function.__func__
        elif "__wrapped__" in getattr(function, "__dict__", ()) and "__signature__" not in function.__dict__:
            function = function.__wrapped__
        else:
            break
    return function


def _signature(inner: Any, module: str, qualname: str, summary: str | None) -> Signature:
    if type(inner) is types.FunctionType and "__signature__" not in inner.__dict__:
        parameters = _parameters_of_code(inner)
        annotations = inner.__annotations__
    else:
        signature = signature_of(inner)
        parameters = [
            Parameter(each.name, _KINDS.get(each.kind, "one"), each.default is each.empty)
            for each in signature.parameters.values()
        ]
        parameters = [each if each.kind == "one" else each._replace(is_required=False) for each in parameters]
        annotations = {
            each.name: each.annotation
            for each in signature.parameters.values()
            if each.annotation is not each.empty
        }
        if signature.return_annotation is not signature.empty:
            annotations[_RESULT] = signature.return_annotation
    if parameters and is_own(parameters[0].name, qualname):
        parameters = parameters[1:]
    around, beside = nearby(inner, qualname, annotations)
    namespace = _namespace(inner, module)
    return Signature(module, qualname, tuple(parameters), annotations, namespace, around, beside, summary)


def signature_of(function: Any) -> inspect.Signature:
    """Do what `inspect.signature` does; which asks an object whether it is equal to a type, and for its `repr`."""
    bases = bases_of(type(function))
    call = class_attribute(bases, "__call__")
    is_plain = type(call) is types.FunctionType and not any(has_base(bases, each) for each in _ASKED)
    if is_plain and all(class_attribute(bases, name) is own(function, name) is None for name in _SAYING):
        function = types.MethodType(call, function)
    return inspect.signature(function)


_ASKED = (type, functools.partial)  # whose instances say it otherwise
_SAYING = ("__signature__", "__wrapped__")  # by which an object says what its signature is


def _namespace(inner: Any, module: str) -> dict[str, Any]:
    found = getattr(inner, "__globals__", None)
    if type(found) is not dict:
        found = getattr(sys.modules.get(module), "__dict__", None)
    return found if type(found) is dict else {}


_KINDS: dict[Any, str] = {inspect.Parameter.VAR_POSITIONAL: "rest", inspect.Parameter.VAR_KEYWORD: "named"}


def _parameters_of_code(function: types.FunctionType) -> list[Parameter]:
    """Do the same as `inspect.signature`, in a tenth of the time."""
    code = function.__code__
    names, count = code.co_varnames, code.co_argcount
    first_optional = count - len(function.__defaults__ or ())
    found = [Parameter(name, "one", at < first_optional) for at, name in enumerate(names[:count])]
    end = count + code.co_kwonlyargcount
    if end > count:
        optional = function.__kwdefaults__ or ()
        found += [Parameter(name, "one", name not in optional) for name in names[count:end]]
    if code.co_flags & inspect.CO_VARARGS:
        found.append(Parameter(names[end], "rest", is_required=False))
        end += 1
    if code.co_flags & inspect.CO_VARKEYWORDS:
        found.append(Parameter(names[end], "named", is_required=False))
    return found


def is_own(first: str, qualname: str) -> bool:
    """Say whether the parameter *first* of the function *qualname* is the object or the class that it belongs to."""
    # A function defined in a class body has the class before its name; what is defined in a function has `<locals>`.
    owner = qualname.rpartition(".")[0]
    return first in ("self", "cls") and bool(owner) and not owner.endswith("<locals>")


def nearby(
    inner: Any, qualname: str, annotations: Mapping[str, Any]
) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """Return what text annotations name of the functions around, and of the class body around, by now.

    Only these names are kept, and only those are looked at: what a frame holds beside them is none of our business.
    """
    unclear = [each for each in annotations.values() if type(each) is not type]
    if "." not in qualname or not unclear:
        return _NONE, _NONE
    words = {word for each in unclear for word in _words(each)}
    if not words:
        return _NONE, _NONE
    around: dict[str, Any] = {}
    beside: dict[str, Any] = {}
    owners = [part for part in qualname.split(".")[:-1] if part != "<locals>"]
    for frame in _frames_around(inner, owners):
        code, target = frame.f_code, around
        if not code.co_flags & inspect.CO_OPTIMIZED:  # of a class body
            target = beside
        elif words.isdisjoint(code.co_varnames) and words.isdisjoint(code.co_cellvars):
            continue  # looked at, a function's names and their values are kept by Python until it returns
        seen = frame.f_locals
        target.update({word: seen[word] for word in words if word in seen and word not in target})
    for word, value in closure_of(inner):
        if word in words:
            around.setdefault(word, value)
    return around, beside


def closure_of(function: Any) -> Iterator[tuple[str, Any]]:
    """Yield what *function* has of the functions around it, by name, as far as it is there by now."""
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=False):
        if cell != _EMPTY_CELL:
            yield name, cell.cell_contents


_NONE: Mapping[str, Any] = types.MappingProxyType({})
_EMPTY_CELL = types.CellType()


def _frames_around(inner: Any, owners: list[str]) -> Iterator[types.FrameType]:
    """Yield the frames in which *inner* is being defined, the innermost first: those that its name tells of."""
    frame: types.FrameType | None = sys._getframe(1)  # noqa: SLF001 - as `logging` and pydantic do
    namespace = getattr(inner, "__globals__", None)
    patience = _FRAMES_BETWEEN
    for owner in reversed(owners):
        while frame is not None and (frame.f_code.co_name != owner or frame.f_globals is not namespace):
            frame, patience = frame.f_back, patience - 1
            if patience < 0:
                return
        if frame is None:
            return
        yield frame
        frame, patience = frame.f_back, 0


_FRAMES_BETWEEN = 16  # from here to where the decorator stands: our own, and those of decorators around ours


_MODULES_OF_FORMS = ("types", "typing", "typing_extensions")


def _words(annotation: Any, depth: int = 4) -> Iterator[str]:
    """Yield the words in what of an annotation is text."""
    if type(annotation) is str:
        yield from _WORD.findall(annotation)
    elif type(annotation) is typing.ForwardRef:
        yield from _WORD.findall(annotation.__forward_arg__)
    elif depth and module_of(type(annotation)) in _MODULES_OF_FORMS:
        arguments = getattr(annotation, "__args__", ())
        for each in arguments if type(arguments) is tuple else ():
            yield from _words(each, depth - 1)
