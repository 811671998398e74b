"""The arguments of a call become payload bytes: by name, without `self`, and only what may be recorded.

What may be is said in three places, from the outside in: `capture_inputs` whether there is a payload at all,
`capture=` which arguments are in it, and the annotations what becomes of each: `Omit` leaves it out, `Secret` puts a
marker in its place, `Sensitive` wraps what is in it for the platform (API contract section 3.8). A mark counts for
the whole argument, wherever in the annotation it stands; on a return annotation it counts for the result.

Annotations are resolved when the function is first called, because with `from __future__ import annotations` they
are text that may name what is defined later. Text that cannot be resolved and names a mark is taken at its word.
"""

from __future__ import annotations

import functools
import inspect
import re
import types
import typing
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias

import orjson

from prefactor_trace import _guard
from prefactor_trace._capture import capture
from prefactor_trace.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from prefactor_trace._capture import Limits

    PayloadOf: TypeAlias = Callable[[tuple[Any, ...], dict[str, Any], Limits], bytes | None]

__all__ = ["Omit", "Secret", "Sensitive"]

DATA_CATEGORIES = frozenset(
    """
personal_identifiers contact_information financial_information health_and_medical criminal_justice
authentication_and_secrets organisational_confidential minors_data location_and_tracking behavioural_and_inferred
gdpr_racial_or_ethnic_origin gdpr_political_opinions gdpr_religious_or_philosophical_beliefs
gdpr_trade_union_membership gdpr_genetic_data gdpr_biometric_for_identification gdpr_sex_life_or_sexual_orientation
""".split()  # noqa: SIM905 - a list of words reads better so
)
"""What `Sensitive` takes as labels (API contract section 7.3)."""


class Secret:
    """Mark an argument or a result that must not be recorded: `Annotated[str, Secret]`. A marker takes its place."""

    __slots__ = ()


class Omit:
    """Mark an argument or a result that is left out of the record: `Annotated[str, Omit]`."""

    __slots__ = ()


class Sensitive:
    """Mark an argument or a result as personal data: `Annotated[str, Sensitive("contact_information")]`.

    It is recorded, each text, number and truth value in it wrapped as `{"$sensitive": ..., "labels": ..., "value":
    ...}`, which the platform can redact later.

    Args:
        labels: Data categories of the platform, such as "personal_identifiers"; see `DATA_CATEGORIES`.

    Raises:
        ConfigurationError: There is no such category.
    """

    __slots__ = ("labels",)

    def __init__(self, *labels: str) -> None:
        unknown = [label for label in labels if label not in DATA_CATEGORIES]
        if unknown:
            raise ConfigurationError(
                f"Sensitive({unknown[0]!r}): there is no such data category; take one of "
                f"{', '.join(sorted(DATA_CATEGORIES))}"
            )
        self.labels = labels


Mark: TypeAlias = "type[Omit | Secret] | Sensitive"

MARKED_SECRET = {"$redacted": "Secret"}


class Choice(NamedTuple):
    """Which arguments are recorded: those of *only* (None: all) but those of *without*."""

    only: frozenset[str] | None = None
    without: frozenset[str] = frozenset()

    def of(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return of *given* what is recorded."""
        return {
            name: value
            for name, value in given.items()
            if (self.only is None or name.lstrip("*") in self.only) and name.lstrip("*") not in self.without
        }


def choice_of(names: Iterable[str]) -> Choice | None:
    """Read *names* as they are given to `span(capture=...)`: "name" is recorded, "-name" is not."""
    chosen = [name for name in names if type(name) is str and name]
    only = frozenset(name for name in chosen if not name.startswith("-"))
    without = frozenset(name[1:] for name in chosen if name.startswith("-"))
    if only:
        return Choice(only, without)
    return Choice(None, without) if without else Choice(frozenset())


class Arguments(NamedTuple):
    """How calls of one function are recorded. *result_mark* says what its return annotation asks; None: nothing."""

    read: PayloadOf
    result_mark: Callable[[], Mark | None] | None


def arguments_of(function: Any, choice: Choice | None = None, span: str = "") -> Arguments:
    """Return what names the arguments of a call to *function*, defaults included, `self` left out."""
    function = plain(function)
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except (ValueError, TypeError):  # a builtin without a signature
        parameters = []
    skipped = 1 if parameters and _is_method(function, parameters[0].name) else 0
    names = [
        each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
    ]
    names = names[skipped:]
    rest = next((each.name for each in parameters if each.kind is each.VAR_POSITIONAL), "args")
    defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
    count = len(names)
    clashing = _also_in_kwargs(parameters[skipped:])
    marks = _Marks(function, parameters)
    is_bare = choice is None and not marks.may_be
    if choice is not None:
        _warn_of_strangers(choice, parameters, span)

    def read(args: tuple[Any, ...], kwargs: dict[str, Any], limits: Limits) -> bytes:
        if skipped:
            args = args[1:]
        given = dict(zip(names, args))  # noqa: B905 - the rest is looked at below, and `strict` costs as much as zip
        if len(args) > count:
            given[rest] = args[count:]
        if kwargs:
            if clashing and not clashing.isdisjoint(kwargs):
                kwargs = {f"**{name}" if name in clashing else name: each for name, each in kwargs.items()}
            given.update(kwargs)
        if defaults:
            for name, value in defaults.items():
                given.setdefault(name, value)
        if is_bare:
            return capture(given, limits, "payload", span)
        if choice is not None:
            given = choice.of(given)
        return capture(marks.applied(given, limits), limits, "payload", span)

    return Arguments(read, marks.of_result if "return" in marks.may_be else None)


def _also_in_kwargs(parameters: list[inspect.Parameter]) -> frozenset[str]:
    """Return the names of parameters that `**kwargs` may use as well; such an argument is called `**name`."""
    if not any(each.kind is each.VAR_KEYWORD for each in parameters):
        return frozenset()
    return frozenset(
        each.name for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.VAR_POSITIONAL)
    )


def plain(function: Any) -> Any:
    """Return the function inside a class method, a static method or a property."""
    if isinstance(function, property):
        return function.fget
    return function.__func__ if isinstance(function, (classmethod, staticmethod)) else function


def _is_method(function: Any, first: str) -> bool:
    # A function defined in a class body has the class before its name; what is defined in a function has `<locals>`.
    owner = getattr(function, "__qualname__", "").rpartition(".")[0]
    return first in ("self", "cls") and bool(owner) and not owner.endswith("<locals>")


def _warn_of_strangers(choice: Choice, parameters: list[inspect.Parameter], span: str) -> None:
    """Say in the log that a name in `capture=` is none of the function's: a slip could leave too much or too little."""
    if any(each.kind is each.VAR_KEYWORD for each in parameters):
        return
    unknown = ((choice.only or frozenset()) | choice.without) - {each.name for each in parameters}
    if unknown:
        _guard.logger.warning(
            "span %s: capture= names %s, which is no argument of it", span, ", ".join(sorted(unknown))
        )


# ---- marks in annotations ----------------------------------------------------------------------------------

# Annotations of these words alone hold no mark.
_PLAIN_WORDS = frozenset(
    "str int float bool bytes list dict tuple set frozenset object None Any Optional Union Iterator Iterable Sequence "  # noqa: SIM905 - a list of words reads better so
    "Mapping Generator AsyncIterator AsyncGenerator Callable List Dict Tuple typing collections abc".split()
)
_WORD = re.compile(r"\w+")
_NAMED_MARK = re.compile(r"\b(Omit|Secret|Sensitive)\b")
_TRIES = 4  # calls in which a name that cannot be resolved is looked for again
_DEEPEST = 8


class _Marks:
    """The marks of one function: by parameter, and "return". Thread-safe, as finding them twice does no harm."""

    def __init__(self, function: Any, parameters: list[inspect.Parameter]) -> None:
        self._function = _annotated(function)
        raw = getattr(self._function, "__annotations__", None)
        annotations: dict[str, Any] = raw if type(raw) is dict else {}
        self.may_be = {name: each for name, each in annotations.items() if _may_hold_mark(each)}
        self._others = next((each.name for each in parameters if each.kind is each.VAR_KEYWORD), None)
        self._own = {each.name for each in parameters}
        self._tries = _TRIES
        self._found: dict[str, Mark] | None = None

    def of_result(self) -> Mark | None:
        """Return the mark on the return annotation."""
        return self._get().get("return")

    def applied(self, given: dict[str, Any], limits: Limits) -> dict[str, Any]:
        """Return *given* as the marks of its arguments will have it."""
        marks = self._get()
        for name, mark in marks.items() if marks else ():
            names = (
                [each for each in given if each not in self._own]
                if name == self._others
                else [name]
                if name in given
                else []
            )
            for each in names:
                if mark is Omit:
                    del given[each]
                else:
                    given[each] = marked(given[each], mark, limits)
        return given

    def _get(self) -> dict[str, Mark]:
        found = self._found
        if found is None or self._tries:
            self._tries = max(0, self._tries - 1)
            found = self._found = self._resolved()
        return found

    def _resolved(self) -> dict[str, Mark]:
        marks: dict[str, Mark] = {}
        for name, annotation in self.may_be.items():
            try:
                mark = _mark_in(_resolve(annotation, self._function), _DEEPEST)
            except Exception:  # what it names is not there, or is no type
                mark = _mark_by_name(annotation)
            if mark is not None:
                marks[name] = mark
        return marks


def _annotated(function: Any) -> Any:
    """Return the function that has the annotations of *function*, which can be a partial or an object."""
    for _ in range(_DEEPEST):
        function = inspect.unwrap(function) if callable(function) else function
        if isinstance(function, functools.partial):
            function = function.func
        elif isinstance(function, types.MethodType):
            function = function.__func__
        elif isinstance(function, type):
            made_by = function.__init__  # type: ignore[misc] # of that very class
            return made_by if isinstance(made_by, types.FunctionType) else function
        elif isinstance(function, types.FunctionType) or not callable(function):
            break
        else:
            called = type(function).__call__
            if not isinstance(called, (types.FunctionType, types.MethodType, functools.partial)):
                break  # in C
            function = called
    return function


def _may_hold_mark(annotation: object) -> bool:
    if isinstance(annotation, str):
        return not _PLAIN_WORDS.issuperset(_WORD.findall(annotation))
    return annotation is not None and annotation is not Any and type(annotation) is not type


def _resolve(annotation: object, function: Any) -> Any:
    """Return the type that *annotation* of *function* stands for. Raises if it cannot be found."""
    code, cells = getattr(function, "__code__", None), getattr(function, "__closure__", None) or ()
    local = {
        name: cell.cell_contents
        for name, cell in zip(code.co_freevars if code else (), cells, strict=False)
        if cell != _EMPTY_CELL
    }
    bearer = types.SimpleNamespace(__annotations__={"it": annotation})
    hints = typing.get_type_hints(bearer, getattr(function, "__globals__", {}), local, include_extras=True)
    return hints["it"]


_EMPTY_CELL = types.CellType()


def _mark_in(hint: Any, deepest: int) -> Mark | None:
    """Return the strictest mark in *hint*, however deep."""
    found: list[Mark] = []
    if typing.get_origin(hint) is Annotated:
        for each in hint.__metadata__:
            if each is Omit or each is Secret:
                found.append(each)
            elif type(each) in (Omit, Secret):
                found.append(type(each))
            elif each is Sensitive:
                found.append(Sensitive())
            elif isinstance(each, Sensitive):
                found.append(each)
    inner = [*typing.get_args(hint)[: 1 if found else None]]
    if type(hint).__name__ == "TypeAliasType":
        inner.append(hint.__value__)
    if type(hint) is typing.NewType:
        inner.append(hint.__supertype__)
    for each in inner if deepest else ():
        mark = _mark_in(each, deepest - 1)
        if mark is not None:
            found.append(mark)
    return min(found, key=_strictness, default=None)


def _strictness(mark: Mark) -> int:
    return 0 if mark is Omit else 1 if mark is Secret else 2


def _mark_by_name(annotation: object) -> Mark | None:
    """Return the mark that an annotation which cannot be resolved names; it had better hide too much."""
    names = _NAMED_MARK.findall(annotation if isinstance(annotation, str) else str(annotation))
    if not names:
        return None
    return Omit if "Omit" in names else Secret


# ---- what marks do -----------------------------------------------------------------------------------------


def marked(value: object, mark: Mark, limits: Limits) -> object:
    """Return what is recorded of *value* under *mark*, which is not `Omit`."""
    if mark is Secret or mark is Omit:
        return MARKED_SECRET
    assert isinstance(mark, Sensitive)
    limits = limits._replace(redact=limits.redact.built_in)  # a callable is given the whole payload, later
    return _wrapped(orjson.loads(capture(value, limits)), mark.labels)


def marked_result(result: object, mark: Mark, limits: Limits) -> dict[str, Any]:
    """Return a result under *mark* as the object that results are."""
    found: Any = marked(result, mark, limits)
    is_object = type(found) is dict and type(result) is not str and "$sensitive" not in found
    return found if is_object and mark is not Secret else {"output": found}


def _wrapped(value: Any, labels: tuple[str, ...]) -> Any:
    if type(value) is dict:
        return {name: _wrapped(each, labels) for name, each in value.items()}
    if type(value) is list:
        return [_wrapped(each, labels) for each in value]
    if value is None:
        return None
    kind = "string" if type(value) is str else "boolean" if type(value) is bool else "number"
    wrapper: dict[str, Any] = {"$sensitive": kind}
    if labels:
        wrapper["labels"] = list(labels)
    return {**wrapper, "value": value}


def chosen_entries(payload: object, choice: Choice | None) -> object:
    """Return the entries of a block's *payload* that *choice* names; what is no dict is taken or left as a whole."""
    if choice is None or type(payload) is not dict:
        return payload
    mapping: Mapping[Any, Any] = payload
    return choice.of({name: value for name, value in mapping.items() if type(name) is str})
