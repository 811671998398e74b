"""What annotations say must not be recorded, of arguments and of the fields of classes.

In comes an annotation, or a class; out comes a *rule*: a mark (`Omit`, `Secret`, `Sensitive`) that is for a whole
value, or a `Plan` of what becomes of its entries, as of a `TypedDict` and of lists of such. None: nothing is said.

Nothing of the user's is run. Annotations that are text are not evaluated but read, and the names in them looked up:
first in the class, then in the functions around it, then in its module. What was found is kept for each class; if a
name was missing, a few more tries are made, as it may be defined later. Of a name that is not there:

    that of a mark                          is taken at its word
    a variable of a function around, which  can stand for a mark: what it is for is hidden, unless it is a class, whose
    is not running any more                 values say themselves what is hidden in them, or what an import makes it
    any other, as what is imported for      is what a module that is loaded calls so, if that has a mark; else it says
    type checkers alone                     nothing
"""

from __future__ import annotations

import builtins
import functools
import re
import sys
import threading
import time
import types
import typing
import weakref
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple, TypeAlias

from prefactor_trace._enclosing import Enclosing
from prefactor_trace._peek import (
    UNSET,
    bases_of,
    class_attribute,
    has_base,
    is_a,
    module_dict,
    module_of,
    name_of,
    namespace_of,
    own,
    qualname_of,
)
from prefactor_trace.errors import ConfigurationError

if TYPE_CHECKING:
    import ast
    from collections.abc import Iterable, Iterator, Mapping

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
    """Mark an argument, a result or a field that must not be recorded: `Annotated[str, Secret]`.

    A marker takes its place.
    """

    __slots__ = ()


class Omit:
    """Mark an argument, a result or a field that is left out of the record: `Annotated[str, Omit]`."""

    __slots__ = ()


class Sensitive:
    """Mark an argument, a result or a field as personal data: `Annotated[str, Sensitive("contact_information")]`.

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


class Plan(NamedTuple):
    """What becomes of the entries of a container: of those with a name in *fields*, and of all *others*."""

    fields: tuple[dict[str, Rule], ...]
    others: Plan | None

    def rule(self, key: object) -> Rule | None:
        """Return what becomes of the entry *key*."""
        if not is_a(key, str):
            return self.others
        name = str.__getitem__(key, slice(None))  # type: ignore[index] # the line above says so
        return joined([rules[name] for rules in self.fields if name in rules]) or self.others


Rule: TypeAlias = "Mark | Plan"


class Ruled(NamedTuple):
    """A value on its way to be recorded as *rule*, a `Sensitive` or a `Plan`, says."""

    value: Any
    rule: Sensitive | Plan


MARKED_SECRET = {"$redacted": "Secret"}


# ---- what rules do -----------------------------------------------------------------------------------------


def ruled(value: object, rule: Rule) -> object:
    """Return what is to be captured in place of *value*."""
    return MARKED_SECRET if rule is Secret or rule is Omit else Ruled(value, rule)  # type: ignore[arg-type] # one of the others


def obeyed(fields: dict[str, Any], rules: dict[str, Rule]) -> dict[str, Any]:
    """Return *fields* as *rules* will have them."""
    return {
        name: ruled(value, rules[name]) if name in rules else value
        for name, value in fields.items()
        if rules.get(name) is not Omit
    }


def wrapped(value: Any, labels: tuple[str, ...]) -> Any:
    """Return *value*, JSON, with each leaf of it wrapped for the platform."""
    if type(value) is dict:
        if "$sensitive" in value or value == MARKED_SECRET:
            return value
        return {name: wrapped(each, labels) for name, each in value.items()}
    if value is None or type(value) not in _KINDS:
        return value
    wrapper: dict[str, Any] = {"$sensitive": _KINDS[type(value)]}
    if labels:
        wrapper["labels"] = list(labels)
    return {**wrapper, "value": value}


_KINDS: dict[type, str] = {str: "string", bool: "boolean", int: "number", float: "number"}


# ---- of classes --------------------------------------------------------------------------------------------


class _Known(NamedTuple):
    """What was found of a class. *tries*: how often it is still looked for again, as a name was missing."""

    of: weakref.ref[type]
    rules: dict[str, Rule]
    tries: int


_known: dict[int, _Known] = {}  # by id, as to hash a class can run its metaclass
_MOST_KNOWN = 4_096
_TRIES = 4
_here = threading.local()


def _being_read() -> dict[int, dict[str, Rule]]:
    """Return by id the rules so far of the classes that this thread is reading; other threads read for themselves."""
    found: dict[int, dict[str, Rule]] = _here.__dict__.setdefault("rules", {})
    return found


def rules_of(kind: type) -> dict[str, Rule]:
    """Return by name the rules for the fields of *kind*, as it and its bases declare them.

    Raises RecursionError or MemoryError if there is no room to read them: then nothing is known, and nothing kept.
    """
    known = _known.get(id(kind))
    tries = _TRIES
    if known is not None and known.of() is kind:
        if known.tries <= 0:
            return known.rules
        tries = known.tries
    reading = _being_read()
    if id(kind) in reading:
        return reading[id(kind)]
    if reading:  # of a class that is being learned
        return _learn(kind, tries, reading)
    began = time.thread_time()
    try:
        return _learn(kind, tries, reading)
    finally:
        _here.learning = _learning_seconds() + time.thread_time() - began


def time_but_learning() -> float:
    """Return the CPU seconds of this thread, without those in which `rules_of` has learned classes.

    It learns each once, or a few times if there are names that nothing has yet; that can take longer than to read all
    the values, and is not their fault.
    """
    return time.thread_time() - _learning_seconds()


def _learning_seconds() -> float:
    found: float = _here.__dict__.get("learning", 0.0)
    return found


def _learn(kind: type, tries: int, reading: dict[int, dict[str, Rule]]) -> dict[str, Rule]:
    rules: dict[str, Rule] = {}
    reading[id(kind)], is_whole = rules, True
    try:
        for name, rule, has_all in _declared(kind):
            is_whole = is_whole and has_all
            rules.pop(name, None)
            if rule is not None:
                rules[name] = rule
    finally:
        del reading[id(kind)]
    if len(_known) >= _MOST_KNOWN:
        _known.clear()
    _known[id(kind)] = _Known(weakref.ref(kind), rules, 0 if is_whole else tries - 1)
    return rules


def _declared(kind: type) -> Iterator[tuple[str, Rule | None, bool]]:
    """Yield fields, each with its rule and whether all names in its annotation were there; the last one counts."""
    said: dict[str, Rule | None] = {}
    lost: set[str] = set()
    for base in reversed(bases_of(kind)):
        annotations = namespace_of(base).get("__annotations__")
        reading = _Reading(base)
        for name, hint in annotations.items() if type(annotations) is dict else ():
            if type(name) is str:
                reading.is_whole, reading.is_lost = True, False
                said[name] = reading.rule(hint)
                lost.discard(name)
                lost.update([name] if reading.is_lost else [])
                yield name, said[name], reading.is_whole
    # These know what their text annotations mean, even where only a function around the class does.
    reading = _Reading(kind)
    for name, hints in _resolved_fields(kind):
        found = joined([None if name in lost else said.get(name), *map(reading.rule, hints)])
        if found is not None or name in lost:
            yield name, found, True


def _resolved_fields(kind: type) -> Iterator[tuple[str, list[Any]]]:
    """Yield for each field of a pydantic model or an attrs class what it was declared with."""
    bases = bases_of(kind)
    fields = class_attribute(bases, "__pydantic_fields__")
    if fields is None and class_attribute(bases, "__pydantic_core_schema__") is not None:
        fields = class_attribute(bases, "model_fields")  # pydantic before 2.10
    for name, field in fields.items() if type(fields) is dict else ():
        metadata = own(field, "metadata")
        marks = [_Metadata(tuple(metadata))] if type(metadata) is list else []
        yield name, [own(field, "annotation"), *marks]
    attributes = class_attribute(bases, "__attrs_attrs__")
    for attribute in tuple.__iter__(attributes) if is_a(attributes, tuple) else ():
        name = own(attribute, "name")
        if type(name) is str:
            yield name, [own(attribute, "type")]


class _Metadata(tuple[Any, ...]):
    """What stood behind the type in `Annotated`, alone."""

    __slots__ = ()


# ---- of annotations ----------------------------------------------------------------------------------------

_DEEPEST = 8
_ANNOTATED: Any = type(Annotated[int, 1])
# The kinds of `list[int]`, `int | str` and what `typing` makes of its forms.
_ALIASES = {
    id(each) for each in vars(typing).values() if type(each) is type and each.__name__.endswith("Alias")
} | {id(types.GenericAlias), id(types.UnionType)}
_WORDS: dict[str, Mark] = {
    "Omit": Omit,
    "Secret": Secret,
    "Sensitive": Secret,
}  # unsure, rather too much is hidden
_NAMED_MARK = re.compile(r"\b(Omit|Secret|Sensitive)\b")
_MISSING = object()
_LOST = object()  # what a name stands for that was a variable of a function, and is gone


def rule_in(hint: Any) -> Rule | None:
    """Return the rule in *hint*, an annotation without text in it, however deep it is."""
    return _Reading().rule(hint)


class Said(NamedTuple):
    """What the annotation of an argument says: the rule in it, and the class it names, which may have rules.

    *is_sure*: whether evaluating it would tell no more.
    """

    rule: Rule | None
    bearer: Any
    is_sure: bool


def said_by(hint: Any, function: Any, near: Mapping[str, Any]) -> Said:
    """Read *hint*, an annotation of *function*; the names in it may be *near*."""
    namespace = getattr(function, "__globals__", None)
    qualname = getattr(function, "__qualname__", None)
    reading = _Reading()
    if type(namespace) is dict and type(qualname) is str:
        reading.look_in([near], namespace, qualname)
    rule = reading.rule(hint)
    bearer = reading.named(hint) if type(hint) is str else hint
    is_sure = reading.is_lost or (reading.is_whole and not reading.has_calls)
    return Said(rule or mark_by_name(hint), bearer, is_sure)


def mark_by_name(annotation: object) -> Mark | None:
    """Return the mark that an annotation which cannot be read names; it had better hide too much."""
    names = _NAMED_MARK.findall(annotation) if type(annotation) is str else []
    if not names:
        return None
    return Omit if "Omit" in names else Secret


def joined(rules: Iterable[Rule | None]) -> Rule | None:
    """Return the strictest mark of *rules*; if there is none, all plans as one."""
    said = [rule for rule in rules if rule is not None]
    marks = [rule for rule in said if type(rule) is not Plan]
    if marks or len(said) < 2:
        return min(marks, key=_strictness) if marks else said[0] if said else None  # type: ignore[arg-type] # no plans
    plans: list[Any] = said
    others: Any = joined([plan.others for plan in plans])
    return Plan(tuple(rules for plan in plans for rules in plan.fields), others)


def _strictness(mark: Mark) -> int:
    return 0 if mark is Omit else 1 if mark is Secret else 2


def _mark(item: Any) -> Mark | None:
    """Return the mark that *item*, of what stands behind the type in `Annotated`, is, or is a kind of."""
    is_class = is_a(item, type)
    bases = bases_of(item if is_class else type(item))
    for mark in (Omit, Secret):
        if has_base(bases, mark):
            return mark
    if not has_base(bases, Sensitive):
        return None
    labels = None if is_class else own(item, "labels")
    known = [each for each in labels if type(each) is str] if type(labels) is tuple else []
    return Sensitive(*[each for each in known if each in DATA_CATEGORIES])


def _inside(plan: Rule | None, origin: object) -> Rule | None:
    """Return the rule for a container of what *plan* is for; `Required`, `Union` and the like contain nothing."""
    if type(plan) is not Plan:
        return plan
    return Plan((), plan) if is_a(origin, type) else plan


class _Reading:
    """A look at annotations, those of *bearer*, a class.

    Attributes:
        is_whole: Whether all names that stood in them were there.
        is_lost: Whether something is hidden because of a name that can be anything.
        has_calls: Whether something is called behind a type, other than a mark: it could make one.
    """

    def __init__(self, bearer: type | None = None) -> None:
        self.is_whole = True
        self.is_lost = False
        self.has_calls = False
        self._near: list[Mapping[str, Any]] = []
        self._far: list[Mapping[str, Any]] = [vars(builtins)]
        self._enclosing: Enclosing | None = None
        if bearer is not None:
            module = sys.modules.get(name) if type(name := module_of(bearer)) is str else None
            namespace = module_dict(module) if is_a(module, types.ModuleType) else {}
            near = [namespace_of(bearer), {name_of(bearer): bearer}, *_closures(bearer)]
            self.look_in(near, namespace, qualname_of(bearer))

    def look_in(self, near: list[Mapping[str, Any]], namespace: dict[str, Any], qualname: str) -> None:
        """Look names up *near*, then in the functions around what is called *qualname*, then in its module."""
        self._near, self._far = near, [namespace, vars(builtins)]
        self._enclosing = Enclosing(namespace, qualname)

    def rule(self, hint: Any, depth: int = _DEEPEST) -> Rule | None:
        """Return the rule in *hint*."""
        kind = type(hint)
        if kind is type:
            return None
        if not depth:
            return mark_by_name(hint)
        if kind is str:
            return self._text(hint, depth - 1)
        if kind is typing.ForwardRef:
            return self._text(hint.__forward_arg__, depth - 1)
        if kind is _Metadata:
            return joined(map(_mark, hint))
        if kind is _ANNOTATED:
            return joined([*map(_mark, hint.__metadata__), self.rule(hint.__origin__, depth - 1)])
        if kind is typing.NewType:
            return self.rule(hint.__supertype__, depth - 1)
        if _is_lazy(kind):
            return self._lazy(hint, depth - 1)
        if not any(id(base) in _ALIASES for base in bases_of(kind)):
            return self._of_dict(hint)
        origin = getattr(hint, "__origin__", None)
        if origin is typing.Literal:
            return None
        # `typing.List` without brackets has none.
        inner = joined([self.rule(each, depth - 1) for each in getattr(hint, "__args__", ())])
        return joined([_inside(inner, origin), self.rule(origin, depth - 1)])

    def _lazy(self, hint: Any, depth: int) -> Rule | None:
        """Return the rule in what a type alias stands for, or what a type variable is bound to."""
        try:
            if type(hint) is typing.TypeVar:
                return joined([self.rule(each, depth) for each in (hint.__bound__, *hint.__constraints__)])
            return self.rule(hint.__value__, depth)
        except (RecursionError, MemoryError):
            raise
        except Exception:  # since Python 3.12 it is evaluated only now, and may name what is not there
            self.is_whole, self.is_lost = False, True
            return Secret

    def _of_dict(self, kind: Any) -> Rule | None:
        """Return the plan for *kind*, if it is a `TypedDict` with rules."""
        if not is_a(kind, type) or type(namespace_of(kind).get("__required_keys__")) is not frozenset:
            return None
        rules = rules_of(kind)
        known, is_being_read = _known.get(id(kind)), id(kind) in _being_read()
        self.is_whole = self.is_whole and (is_being_read or known is None or known.tries <= 0)
        return Plan((rules,), None) if rules or is_being_read else None

    def _text(self, text: str, depth: int) -> Rule | None:
        import ast  # not for the many whose annotations are no text

        try:
            return self._node(ast.parse(text.strip().lstrip("*"), mode="eval").body, depth)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return mark_by_name(text)

    def _node(self, node: ast.expr, depth: int) -> Rule | None:
        """Return the rule in *node* of the syntax tree of an annotation."""
        import ast

        if not depth:
            return mark_by_name(ast.unparse(node))
        if isinstance(node, ast.Subscript):
            return self._subscript(node, depth - 1)
        if isinstance(node, ast.BinOp):
            return joined([self._node(each, depth - 1) for each in _alternatives(node)])
        if isinstance(node, ast.Starred):
            return self._node(node.value, depth - 1)
        if isinstance(node, (ast.Tuple, ast.List)):
            return joined([self._node(each, depth - 1) for each in node.elts])
        if isinstance(node, ast.Constant):
            return self._text(node.value, depth - 1) if type(node.value) is str else None
        found = self._found(node)
        return Secret if found is _LOST else None if found is _MISSING else self.rule(found, depth - 1)

    def _subscript(self, node: ast.Subscript, depth: int) -> Rule | None:
        import ast

        base = self._found(node.value)
        inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
        if base is typing.Literal:
            return None
        if base is Annotated or (base is _MISSING and _last_word(node.value) == "Annotated"):
            return joined([self._node(inner[0], depth), *map(self._marked, inner[1:])])
        rule = joined([self._node(each, depth) for each in inner])
        if base is _LOST:
            return joined([rule, Secret])
        return joined([_inside(rule, base), None if base is _MISSING else self.rule(base, depth)])

    def _marked(self, node: ast.expr) -> Mark | None:
        """Return the mark that *node*, behind the type in `Annotated`, stands for."""
        import ast

        called = node.func if isinstance(node, ast.Call) else node
        found = self._found(called)
        if found is _LOST:
            return Secret
        if isinstance(called, ast.IfExp):  # which of them it is, only running it would tell
            marks = [self._marked(each) for each in (called.body, called.orelse)]
            return min((each for each in marks if each is not None), key=_strictness, default=None)
        if found is _MISSING:
            return _WORDS.get(_last_word(called))
        if found is Sensitive and isinstance(node, ast.Call):
            labels = [each.value for each in node.args if isinstance(each, ast.Constant)]
            known = [label for label in labels if type(label) is str and label in DATA_CATEGORIES]
            return Sensitive(*known)
        self.has_calls = self.has_calls or called is not node
        return _mark(found)

    def named(self, text: str) -> Any:
        """Return what *text* stands for if it is the name of something that is there; else None."""
        found = self._named(text) if text.isidentifier() else None
        return None if found is _MISSING or found is _LOST else found

    def _found(self, node: ast.expr) -> Any:
        """Return what a name, or a name in a module or class, stands for; `_MISSING` or `_LOST` if not there."""
        import ast

        found: Any = _MISSING
        if isinstance(node, ast.Name):
            found = self._named(node.id)
        elif isinstance(node, ast.Attribute):
            owner = self._found(node.value)
            if owner is _LOST:
                found = _LOST
            elif is_a(owner, types.ModuleType):
                found = module_dict(owner).get(node.attr, _MISSING)
            elif is_a(owner, type):
                inner = class_attribute(bases_of(owner), node.attr)
                found = _MISSING if inner is None else inner
        self.is_whole = self.is_whole and found is not _MISSING and found is not _LOST
        self.is_lost = self.is_lost or found is _LOST
        return found

    def _named(self, name: str) -> Any:
        for names in self._near:
            if name in names:
                return names[name]
        around = self._enclosing
        if around is not None and around.has(name):
            found = around.value(name)
            if found is UNSET:
                found = object if around.makes_class(name) else around.imported(name)
            return found if found is not UNSET else _LOST
        for names in self._far:
            if name in names:
                return names[name]
        if around is not None and not around.is_known:
            found = around.value(name)
            return found if found is not UNSET else vars(typing).get(name, _LOST)
        return _alias_elsewhere(name, len(sys.modules))


def _closures(kind: type) -> Iterator[dict[str, Any]]:
    """Yield what functions in the body of *kind* have of the functions around, and its type parameters, by name."""
    members = list(namespace_of(kind).values())
    for code, cells in [
        (each.__code__, each.__closure__ or ()) for each in members if type(each) is types.FunctionType
    ]:
        yield {
            name: cell.cell_contents
            for name, cell in zip(code.co_freevars, cells, strict=False)
            if cell != _EMPTY_CELL
        }
    parameters = namespace_of(kind).get("__type_params__")
    if type(parameters) is tuple:
        yield {each.__name__: each for each in parameters if type(each) is typing.TypeVar}


_EMPTY_CELL = types.CellType()


@functools.lru_cache(maxsize=1_024)
def _alias_elsewhere(name: str, _modules: int) -> Any:
    """Return what a module that is loaded calls *name*, if there is a mark in it; else `_MISSING`.

    What is imported for type checkers alone is not where it is named, but it is somewhere. *_modules*: how many are
    loaded; with more of them it is looked for again.
    """
    for module in list(sys.modules.values()):
        found = module_dict(module).get(name) if is_a(module, types.ModuleType) else None
        kind = type(found)
        is_alias = kind is _ANNOTATED or kind is typing.NewType or _is_lazy(kind)
        if (is_alias or id(kind) in _ALIASES) and rule_in(found) is not None:
            return found
    return _MISSING


def _is_lazy(kind: type) -> bool:
    """Say whether *kind* is that of type variables or of what a `type` statement makes."""
    is_alias = name_of(kind) == "TypeAliasType" and module_of(kind) in ("typing", "typing_extensions")
    return kind is typing.TypeVar or is_alias


def _alternatives(union: ast.expr) -> Iterator[ast.expr]:
    """Yield the parts of `a | b | c`, which as a syntax tree is as deep as it is long."""
    import ast

    while isinstance(union, ast.BinOp):
        yield union.right
        union = union.left
    yield union


def _last_word(node: Any) -> str:
    return str(getattr(node, "attr", getattr(node, "id", "")))
