"""The arguments of a call become payload bytes: by name, without `self`, and only what may be recorded.

What may be is said in three places, from the outside in: `capture_inputs` whether there is a payload at all,
`capture=` which arguments are in it, and the annotations what becomes of each: `Omit` leaves it out, `Secret` puts a
marker in its place, `Sensitive` wraps what is in it for the platform (API contract section 3.8). A mark counts for
the whole argument, wherever in the annotation it stands; on a return annotation it counts for the result. Marks on
the fields of a class that an annotation names count for these fields alone; see `_marks`.

Annotations are read when the function is first called, because with `from __future__ import annotations` they are
text that may name what is defined later. They are evaluated only where reading does not tell: if a name is not found,
or something is called that could make a mark. Text that cannot be resolved and names a mark is taken at its word.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
import types
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from prefactor_trace import _guard
from prefactor_trace._capture import DEFAULT, capture
from prefactor_trace._hidden import hidden_in
from prefactor_trace._marks import (
    MARKED_SECRET,
    Omit,
    Plan,
    Secret,
    rule_in,
    ruled,
    rules_of,
    said_by,
)
from prefactor_trace._peek import is_a, module_of, own
from prefactor_trace._types import closure_of, is_own, nearby, resolve, signature_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from prefactor_trace._capture import Limits
    from prefactor_trace._marks import Rule

    PayloadOf: TypeAlias = Callable[[tuple[Any, ...], dict[str, Any], Limits], bytes | None]


class Choice(NamedTuple):
    """Which arguments are recorded: those of *only* (None: all) but those of *without*."""

    only: frozenset[str] | None = None
    without: frozenset[str] = frozenset()

    def of(
        self, given: dict[str, Any], known: frozenset[str] = frozenset(), others: str | None = None
    ) -> dict[str, Any]:
        """Return of *given* what is recorded. *others*: what all those are called that are not *known*."""
        kept = {}
        for name, value in given.items():
            names = {name.lstrip("*"), name if others is None or name in known else others}
            if (self.only is None or names & self.only) and not names & self.without:
                kept[name] = value
        return kept


def choice_of(names: Iterable[str]) -> Choice | None:
    """Read *names* as they are given to `span(capture=...)`: "name" is recorded, "-name" is not."""
    chosen = [name for name in names if type(name) is str and name]
    only = frozenset(name for name in chosen if not name.startswith("-"))
    without = frozenset(name[1:] for name in chosen if name.startswith("-"))
    if only:
        return Choice(only, without)
    return Choice(None, without) if without else Choice(frozenset())


class Arguments(NamedTuple):
    """How calls of one function are recorded.

    *result_mark* says what its return annotation asks; None: nothing. *hidden* gives the texts in the arguments of a
    call that must not be recorded, wherever they turn up; None: no annotation says so of any.
    """

    read: PayloadOf
    result_mark: Callable[[], Rule | None] | None
    hidden: Callable[[tuple[Any, ...], dict[str, Any]], tuple[str, ...]] | None


def arguments_of(function: Any, choice: Choice | None = None, span: str = "") -> Arguments:
    """Return what names the arguments of a call to *function*, defaults included, `self` left out."""
    function = plain(function)
    try:
        parameters = list(signature_of(function).parameters.values())
    except (ValueError, TypeError):  # a builtin without a signature
        parameters = []
    skipped = 1 if parameters and is_own(parameters[0].name, getattr(function, "__qualname__", "")) else 0
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    names = [each.name for each in parameters if each.kind in by_position][skipped:]
    rest = next((each.name for each in parameters if each.kind is each.VAR_POSITIONAL), "args")
    others = next((each.name for each in parameters if each.kind is each.VAR_KEYWORD), None)
    declared = frozenset(each.name for each in parameters)
    defaults = {each.name: each.default for each in parameters if each.default is not each.empty}
    count = len(names)
    clashing = _also_in_kwargs(parameters[skipped:])
    marks = _Marks(function, parameters)
    is_bare = choice is None and not marks.may_be
    required = frozenset(names).difference(defaults)
    is_loose = not is_bare and _takes_anything(function)
    _warn_of_strangers(choice or Choice(), parameters, span)

    def read(
        args: tuple[Any, ...], kwargs: dict[str, Any], limits: Limits, hidden: list[str] | None = None
    ) -> bytes:
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
        if is_bare and hidden is None:
            return capture(given, limits, "payload", span)
        if is_loose and not (required.issubset(given) and (len(args) <= count or rest in declared)):
            given = {name: value for name, value in given.items() if name in kwargs}
            given[rest] = ruled(args, Secret)
            if hidden is not None:
                hidden_in(args, Secret, hidden)
        if hidden is not None:
            hidden += marks.hidden(given)
            return b""
        if choice is not None:
            given = choice.of(given, declared, others)
        return capture(marks.applied(given), limits, "payload", span)

    def hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, ...]:
        return _found_by(lambda found: marks.may_hide() and read(args, kwargs, DEFAULT, found))

    of_result = marks.of_result if "return" in marks.may_be else None
    return Arguments(read, of_result, hidden if marks.bearers or marks.may_be.keys() - {"return"} else None)


def _found_by(look: Callable[[list[str]], object]) -> tuple[str, ...]:
    """Return what *look* finds in arguments that another thread may be changing: that must not cost the step."""
    found: list[str] = []
    for is_last in (False, False, False, True):
        try:
            look(found)
            break
        except Exception:
            if is_last:
                _guard.failed("look for what is hidden")
    return tuple(found)


def _takes_anything(function: Any) -> bool:
    """Say whether *function* is around another, whose signature it shows, and may hand that other arguments."""
    if type(function) is not types.FunctionType or "__wrapped__" not in function.__dict__:
        return False
    return bool(function.__code__.co_flags & inspect.CO_VARARGS)


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
_TRIES = 4  # calls in which a name that cannot be resolved is looked for again
_DEEPEST = 8


class _Marks:
    """The marks of one function: by parameter, and "return". Thread-safe, as finding them twice does no harm."""

    def __init__(self, function: Any, parameters: list[inspect.Parameter]) -> None:
        self._function = _annotated(function)
        raw = getattr(self._function, "__annotations__", None)
        annotations: dict[str, Any] = raw if type(raw) is dict else {}
        self.may_be = {name: each for name, each in annotations.items() if _may_hold_mark(each)}
        # What are classes, of which fields can be marked.
        self.bearers = {
            name: each for name, each in annotations.items() if type(each) is type and _is_made(each)
        }
        self.bearers.pop("return", None)
        self._around: dict[str, Any] = {}
        # What text annotations name of the functions and the class around is there now, and perhaps never again.
        with contextlib.suppress(Exception):  # a callable, or an annotation, may answer with anything
            around, beside = nearby(self._function, self._function.__qualname__, self.may_be)
            self._around = {**beside, **around}
        self._others = next((each.name for each in parameters if each.kind is each.VAR_KEYWORD), None)
        self._rest = next((each.name for each in parameters if each.kind is each.VAR_POSITIONAL), None)
        self._own = {each.name for each in parameters}
        # Then a TypedDict says it of each by name.
        self._is_unpacked = _is_unpacked(self.may_be.get(self._others or ""))
        self._tries = _TRIES
        self._found: dict[str, Rule] | None = None
        self._hides: bool | None = None

    def of_result(self) -> Rule | None:
        """Return the mark on the return annotation."""
        return self._get().get("return")

    def may_hide(self) -> bool:
        """Say whether there is a mark on an argument, or on a field of a class that an annotation names."""
        if self._hides is None or self._tries:
            rules = self._get()
            self._hides = bool(rules.keys() - {"return"}) or any(map(rules_of, self.bearers.values()))
        return self._hides

    def hidden(self, given: dict[str, Any]) -> list[str]:
        """Return the texts in the arguments *given* that must not be recorded."""
        found: list[str] = []
        rules = self._get()
        for name, value in given.items():
            hidden_in(value, rules.get(name) if name in self._own else self._of_other(name, rules), found)
        return found

    def _of_other(self, name: str, rules: dict[str, Rule]) -> Rule | None:
        """Return the rule for an argument that is one of `**kwargs`."""
        rule = rules.get(self._others) if self._others else None
        return rule.rule(name) if self._is_unpacked and type(rule) is Plan else rule

    def applied(self, given: dict[str, Any]) -> dict[str, Any]:
        """Return *given* as the marks of its arguments will have it."""
        rules = self._get()
        for name, rule in rules.items() if rules else ():
            names = (
                [each for each in given if each not in self._own]
                if name == self._others
                else [name]
                if name in given
                else []
            )
            for each in names:
                said = self._of_other(each, rules) if name == self._others else rule
                if said is Omit:
                    del given[each]
                elif said is not None:
                    given[each] = ruled(given[each], said)
        return given

    def _get(self) -> dict[str, Rule]:
        found = self._found
        if found is None or self._tries:
            self._tries = max(0, self._tries - 1)
            found = self._found = self._resolved()
        return found

    def _resolved(self) -> dict[str, Rule]:
        rules: dict[str, Rule] = {}
        near: dict[str, Any] = {}
        with contextlib.suppress(Exception):  # a callable may answer with anything
            near = {**self._variables(), **self._around, **dict(closure_of(self._function))}
        for name, annotation in self.may_be.items():
            rule, resolved, is_sure = said_by(annotation, self._function, near)
            if not is_sure:
                try:
                    resolved = resolve(annotation, getattr(self._function, "__globals__", {}), near)
                    rule = rule_in(resolved)
                except Exception:  # noqa: S110 - what it names is not there, or is no type
                    pass
            if _is_made(resolved) and name != "return":
                self.bearers[name] = resolved
            if rule is not None:
                rules[name] = Plan((), rule) if name == self._rest and type(rule) is Plan else rule
        return rules

    def _variables(self) -> dict[str, Any]:
        """Return the type variables that the function declares by name, which it can since Python 3.12."""
        function = self._function
        declared = getattr(function, "__type_params__", ()) if type(function) is types.FunctionType else ()
        return {each.__name__: each for each in declared}


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


def _is_made(annotation: Any) -> bool:
    """Say whether *annotation* is a class that is not built in."""
    return is_a(annotation, type) and module_of(annotation) != "builtins"


def _is_unpacked(annotation: object) -> bool:
    """Say whether *annotation* is `Unpack[...]`, as text or not."""
    if type(annotation) is str:
        return _UNPACKED.match(annotation) is not None
    name = own(own(annotation, "__origin__"), "_name")
    return type(name) is str and name == "Unpack"


_UNPACKED = re.compile(r"\s*([\w.]+\.)?Unpack\s*\[")


def _may_hold_mark(annotation: object) -> bool:
    if type(annotation) is str:
        return not _PLAIN_WORDS.issuperset(_WORD.findall(annotation))
    return annotation is not None and annotation is not Any and type(annotation) is not type


def marked_result(result: object, rule: Rule) -> object:
    """Return what is to be captured in place of a *result*; as a secret it is an output, whatever it was."""
    return {"output": MARKED_SECRET} if rule is Secret or rule is Omit else ruled(result, rule)


def chosen_entries(payload: object, choice: Choice | None) -> object:
    """Return the entries of a block's *payload* that *choice* names; what is no dict is taken or left as a whole."""
    if choice is None or type(payload) is not dict:
        return payload
    entries = payload.copy().items()  # as another thread may be changing it
    return choice.of({name: value for name, value in entries if type(name) is str})
