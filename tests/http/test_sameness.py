"""`prefactor_trace.http` beside the official `prefactor-http`, name by name: the same, or in the table of differences."""

from __future__ import annotations

import ast
import asyncio
import collections.abc
import dataclasses
import importlib
import inspect
import json
import pkgutil
import re
import types
import typing
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import pydantic
import pytest
from hostile_server import HostileServer, always
from pydantic import Field
from pydantic.fields import FieldInfo

import prefactor_trace.http

official = pytest.importorskip("prefactor_http")

if TYPE_CHECKING:
    from collections.abc import Iterator

# What differs, and why. The only stars are those of `matches`: any text. A row that is no difference any more fails.
DIFFERENCES = {
    # -- the package
    "__version__: is *, here *": "Each package counts its own releases.",
    "PrefactorTransportError: exported here too": "Beside the other errors; see the class below.",
    # -- client, config
    "client.DEFAULT_SDK_HEADER: is 'prefactor-http@*', here 'prefactor-trace@*'": (
        "The platform is told who really speaks (section 1.2)."
    ),
    "client.PrefactorHttpClient.__aenter__: returns PrefactorHttpClient, here Self": (
        "So that type checkers know a subclass in its own `async with`."
    ),
    "client.PrefactorHttpClient.__aexit__(exc_*): type is Any, here *": "Said exactly; Python passes nothing else.",
    "client.PrefactorHttpClient.new_key: added": (
        "A call that is given no idempotency key gets one, so that its retries cannot do it twice (section 1.7). It "
        "begins with `default_idempotency_key`, which the released client reads nowhere (D25)."
    ),
    "client.PrefactorHttpClient.attribute server_time: added": "For `prefactor-trace doctor`, which compares clocks.",
    "client.PrefactorHttpClient.without_token: added": "Errors that quote a server leave our token out.",
    "endpoints.agent.AgentClient.list_agents: returns list[AgentSummary], here Page[AgentSummary]": (
        "A list that also knows where it stands; without that, nobody could ask for the next page."
    ),
    "models.agent_span.AgentSpan.payload: limits are *, here *": (
        "Null is read as {}: what a discarded payload looks like is not published (section 3.8)."
    ),
    "models.agent_instance.AgentInstance.quality_*: type is *, here *": (
        "A kind of evaluation without a template may have no summary; one null must not spoil the answer."
    ),
    "config.HttpClientConfig.api_token: repr is True, here False": (
        "A config gets into logs and error reports; the token must not."
    ),
    # -- exceptions
    "exceptions.Prefactor*: is also PrefactorTraceError": "One base for whatever this library raises.",
    "exceptions.Prefactor*Error.attribute message: added": (
        "Their documentation lists it; their class forgets to set it."
    ),
    "exceptions.Prefactor*Error.retry_after: added": (
        "Retry-After is honoured, and who gives up can read it (section 13, no. 21)."
    ),
    "exceptions.PrefactorTransportError: added": (
        "No answer, or none in time. Theirs lets the errors of aiohttp and asyncio through; we stand on httpx, and on "
        "trio too, and show the errors of neither."
    ),
    "exceptions.api_error: added": "Which error an answer is, said once, beside the errors.",
    "exceptions.is_*_http_error(Prefactor* 408): is *, here *": (
        "Request Timeout: the same request may work later (section 1.5 leaves it open, HTTP does not)."
    ),
    "exceptions.is_*_http_error(Prefactor* 425): is *, here *": "Too Early says by its name that later is fine.",
    "exceptions.is_*_http_error(Prefactor* 501): is *, here *": "Not Implemented will not be implemented by the next try.",
    "exceptions.is_*_http_error(Prefactor* 505): is *, here *": "Nor will another version of HTTP.",
    # -- endpoints
    "endpoints.*Client: is also Endpoint": "What all four have in common is written once.",
    "endpoints.agent_instance.AgentInstanceClient.register: order is self, agent_version, agent_schema_version, agent_id, "
    "environment_id, id, idempotency_key, update_current_version, purpose, external_identifier, here self, agent_id, "
    "agent_version, agent_schema_version, id, idempotency_key, update_current_version, environment_id, purpose, "
    "external_identifier": (
        "Their documentation names the agent first, their release does not, and code exists for both. Ours takes both: "
        "this is the documented order, the released one is known by its first argument, which is no text."
    ),
    "endpoints.agent_instance.AgentInstanceClient.register(agent_version): default is not there, here None": (
        "Python wants it, because `agent_id` before it may be left out; without it the call is a TypeError as theirs."
    ),
    "endpoints.agent_instance.AgentInstanceClient.register(agent_schema_version): default is not there, here None": (
        "As for `agent_version`."
    ),
    "endpoints.agent_instance.AgentInstanceClient.register(agent_version): type is dict[str, Any], here "
    "AgentVersionForRegister | Mapping[str, Any] | None": "The model that describes it may be given too.",
    "endpoints.agent_instance.AgentInstanceClient.register(agent_schema_version): type is dict[str, Any], here "
    "AgentSchemaVersionForRegister | Mapping[str, Any] | None": "The model that describes it may be given too.",
    "endpoints.agent_instance.AgentInstanceClient.register(environment_id): is positional or keyword, here keyword-only": (
        "The documented order ends before it; in the released order it has its position."
    ),
    "endpoints.agent_instance.AgentInstanceClient.register(purpose): is positional or keyword, here keyword-only": (
        "As `environment_id`."
    ),
    "endpoints.agent_instance.AgentInstanceClient.register(external_identifier): is positional or keyword, here "
    "keyword-only": "As `environment_id`.",
    "endpoints.agent_instance.AgentInstanceClient.show: added": "A call of the platform (section 2.6).",
    "endpoints.agent_instance.AgentInstanceClient.list: added": "A call of the platform (section 2.6).",
    "endpoints.agent_instance.AgentInstanceClient.terminate: added": "A call of the platform (section 2.8).",
    "endpoints.agent_instance.AgentInstanceClient.agent_context: added": "A call of the platform (section 2.9).",
    "endpoints.agent_span.AgentSpanClient.get: added": "A call of the platform (section 3.6).",
    "endpoints.agent_span.AgentSpanClient.list: added": "A call of the platform (section 3.6).",
    "endpoints.agent_span.AgentSpanClient.create.parameter sensitive_encoding: added": (
        "A field of the call (sections 3.2 and 3.8); by keyword, behind all that theirs has."
    ),
    "endpoints.agent_span.AgentSpanClient.finish.parameter sensitive_encoding: added": (
        "A field of the call (sections 3.5 and 3.8); by keyword, behind all that theirs has."
    ),
    # -- models
    "models.*: is also ApiModel": "Where the three settings below are made.",
    "models.*: extra is None, here allow": "What a newer platform adds can be read, instead of being thrown away.",
    "models.*: populate_by_name is None, here True": (
        "Theirs says it for two models; a field with an alias can be named either way in every one."
    ),
    "models.*: defer_build is None, here True": "Built with the first use, because importing is what everybody pays for.",
    "models.*: exported here too": "Every model can be had from `models`; theirs leaves some to the modules below.",
    "models.agent.Agent: is also AgentSummary": "A resource has every field of its summary, written once.",
    "models.agent_instance.AgentInstance: is also AgentInstanceSummary": (
        "A resource has every field of its summary, written once."
    ),
    "models.agent.Agent.status: new words are read": "Theirs dies of a word it does not know (D15).",
    "models.agent.AgentSummary.status: new words are read": "Theirs dies of a word it does not know (D15).",
    "models.agent_instance.AgentInstance.status: new words are read": "Theirs dies of a word it does not know (D15).",
    "models.agent_instance.AgentInstance.purpose: new words are read": "Theirs dies of a word it does not know (D15).",
    "models.agent_span.AgentSpan.status: new words are read": "Theirs dies of a word it does not know (D15).",
    "models.agent_instance.ActionProfile.*: new words are read": (
        "Answers have it too, in `QualitySchemaDetails`, and must stay readable; type checkers see the known words."
    ),
    "models.agent_instance.DataCategories.*: new words are read": (
        "Answers have it too, in `QualitySchemaDetails`, and must stay readable; type checkers see the known words."
    ),
    "models.bulk.BulkOutput.validate_status: missing": (
        "It refuses every word but success and error; a newer platform's must not make the other outputs unreadable."
    ),
    "models.agent.Agent.field risk_rollup: added": "`include_risk_rollup` asks for it; theirs drops it (section 5).",
    "models.agent.Agent.field last_activity_span_at: added": "The platform tells it (section 5).",
    "models.agent_instance.AgentInstance.field cost_breakdown: added": "The platform tells it (section 2.3).",
    "models.agent_instance.AgentInstance.field last_activity_span_at: added": "The platform tells it (section 2.3).",
    "models.agent_instance.AgentInstance.field raised_alert_count: added": "The platform tells it (section 2.3).",
    "models.agent_instance.AgentInstance.field risk_score: added": "The platform tells it (section 2.3).",
    "models.agent_instance.AgentInstance.field span_schema_counts: added": "The platform tells it (section 2.3).",
    "models.agent_instance.AgentContext: added": "What `agent_context` returns (section 2.9).",
    "models.agent_instance.AgentInstanceSummary: added": "What `list` returns (section 2.3).",
    "models.agent_instance.TerminateInstanceRequest: added": "What `terminate` sends (section 2.8).",
    "models.agent_span.AgentSpan.field data_risk: added": "The platform tells it (section 3.3).",
    "models.agent_span.AgentSpan.field payload_byte_size_estimate: added": "The platform tells it (section 3.3).",
    "models.agent_span.AgentSpan.field purpose: added": "The platform tells it (section 3.3).",
    "models.agent_span.AgentSpan.field sensitive_encoding: added": "The platform tells it (section 3.3).",
    "models.agent_span.AgentSpanSummary: added": "What `list` returns (section 3.3).",
    "models.agent_span.CreateAgentSpanRequest.field sensitive_encoding: added": "A field of the call (section 3.2).",
    "models.agent_span.FinishSpanRequest.field sensitive_encoding: added": "A field of the call (section 3.5).",
    "models.base.ApiModel: added": "The base of all models.",
    "models.base.Page: added": (
        "What lists return: the same list as theirs, which also knows where it stands (section 5.1)."
    ),
}

# What the packages mean by the names that they import for type checkers only.
_FOR_TYPE_CHECKERS = {**vars(typing), **vars(collections.abc), **vars(types), "datetime": datetime}


class Package:
    """One of the two packages. Names of its modules are said without the package's own."""

    def __init__(self, root: types.ModuleType) -> None:
        self.root = root
        walked = pkgutil.walk_packages(root.__path__, root.__name__ + ".")
        names = [root.__name__, *(each.name for each in walked)]
        public = [name for name in names if not re.search(r"\._", name)]
        self.modules = {self.short(name): importlib.import_module(name) for name in public}
        self.names: dict[str, Any] = {}
        for module in self.modules.values():
            self.names |= {name: getattr(module, name) for name in public_names(module)}

    def short(self, name: str) -> str:
        return name.removeprefix(self.root.__name__).removeprefix(".")

    def owns(self, thing: Any) -> bool:
        return (getattr(thing, "__module__", None) or "").startswith(self.root.__name__)

    def spell(self, kind: Any) -> str:
        """Write a type in one way: `dict` as `dict[str, Any]`, `Optional[X]` as `X | None`, classes by their name."""
        if isinstance(kind, typing.ForwardRef):
            kind = kind.__forward_arg__
        if isinstance(kind, str):
            kind = eval(kind, {**_FOR_TYPE_CHECKERS, **self.names})
            return self.spell(kind)
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin is typing.Annotated:
            return self.spell(arguments[0])
        if origin in (typing.Union, types.UnionType):
            return " | ".join(sorted(map(self.spell, arguments), key=lambda each: (each == "None", each)))
        if origin is typing.Literal:
            return f"Literal[{', '.join(map(repr, arguments))}]"
        if isinstance(kind, list):
            return f"[{', '.join(map(self.spell, kind))}]"
        if kind in (None, types.NoneType, ...):
            return "..." if kind is ... else "None"
        kind, arguments = {dict: (dict, (str, Any)), list: (list, (Any,))}.get(
            kind, (origin or kind, arguments)
        )
        name = getattr(kind, "__name__", None) or kind._name
        return f"{name}[{', '.join(map(self.spell, arguments))}]" if arguments else name


def public_names(module: types.ModuleType) -> set[str]:
    """Return what a module declares in `__all__`; or else what it defines, without what it merely imports."""
    names = set(getattr(module, "__all__", ()))
    if not names:
        for statement in ast.parse(inspect.getsource(module)).body:
            if isinstance(statement, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                names.add(statement.name)
            elif isinstance(statement, (ast.Assign, ast.AnnAssign)):
                targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
                names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return {name for name in names if not name.startswith("_") or name == "__version__"}


THEIRS, OURS = Package(official), Package(prefactor_trace.http)


def differences() -> Iterator[str]:
    """Compare the packages. Yields `module.Class.member: what differs`."""
    yield from names_apart("", THEIRS.modules, OURS.modules, "module ")
    for name in THEIRS.modules.keys() & OURS.modules.keys():
        yield from of_modules(f"{name}." if name else "", THEIRS.modules[name], OURS.modules[name])
    yield from of_judgements()


def of_modules(at: str, theirs: types.ModuleType, ours: types.ModuleType) -> Iterator[str]:
    wanted, given = public_names(theirs), public_names(ours)
    for name in wanted | given:
        if name not in wanted:
            is_home = home(OURS, getattr(ours, name)) in (None, OURS.short(ours.__name__))
            yield f"{at}{name}: {'added' if is_home else 'exported here too'}"
        elif not hasattr(ours, name):
            yield f"{at}{name}: missing"
        elif name not in given and hasattr(theirs, "__all__"):
            yield f"{at}{name}: not in __all__"
        else:
            one, two = getattr(theirs, name), getattr(ours, name)
            homes = home(THEIRS, one), home(OURS, two)
            yield from unlike(f"{at}{name}", "is of module", *homes)
            # What is at home elsewhere is compared there.
            if homes[0] in (None, THEIRS.short(theirs.__name__)):
                yield from of_things(f"{at}{name}", one, two)


def home(package: Package, thing: Any) -> str | None:
    """Return the module that a class or function is of; None for what does not know it."""
    knows = inspect.isclass(thing) or inspect.isfunction(thing)
    return package.short(thing.__module__) if knows and package.owns(thing) else None


def of_judgements() -> Iterator[str]:
    """Compare what is worth another try: every status that an error can have, and what is no error of the API."""
    for judge in ("is_transient_http_error", "is_permanent_http_error"):
        theirs, ours = (
            {name: package.names[judge](error) for name, error in errors(package)}
            for package in (THEIRS, OURS)
        )
        for name, judgement in theirs.items():
            yield from unlike(f"exceptions.{judge}({name})", "is", judgement, ours[name])


def errors(package: Package) -> Iterator[tuple[str, Exception]]:
    for status in range(400, 600):
        yield f"PrefactorApiError {status}", package.names["PrefactorApiError"]("m", "c", status)
    for status in (*range(200, 600), None):
        error = package.names["PrefactorResponseContractError"]("m", status_code=status)
        yield f"PrefactorResponseContractError {status}", error
        yield (
            f"PrefactorRetryExhaustedError of {status}",
            package.names["PrefactorRetryExhaustedError"]("m", error),
        )
    yield "PrefactorRetryExhaustedError", package.names["PrefactorRetryExhaustedError"]("m")
    yield "PrefactorClientError", package.names["PrefactorClientError"]("m")
    yield "TimeoutError", asyncio.TimeoutError()
    yield "ValueError", ValueError()


def names_apart(where: str, theirs: Any, ours: Any, word: str = "") -> Iterator[str]:
    at = f"{where}." if where else ""
    yield from (f"{at}{word}{name}: missing" for name in set(theirs) - set(ours))
    yield from (f"{at}{word}{name}: added" for name in set(ours) - set(theirs))


def unlike(where: str, what: str, theirs: Any, ours: Any) -> Iterator[str]:
    if theirs != ours:
        yield f"{where}: {what} {theirs}, here {ours}"


def of_things(where: str, theirs: Any, ours: Any) -> Iterator[str]:
    if inspect.isclass(theirs):
        yield from of_classes(where, theirs, ours)
    elif inspect.isfunction(theirs):
        yield from of_functions(where, theirs, ours)
    elif isinstance(theirs, (str, int, float, tuple)):
        yield from unlike(where, "is", repr(theirs), repr(ours))
    else:
        yield from unlike(where, "is", THEIRS.spell(theirs), OURS.spell(ours))


def of_classes(where: str, theirs: type, ours: type) -> Iterator[str]:
    lineage = [[each.__name__ for each in kind.__mro__ if each is not object] for kind in (theirs, ours)]
    yield from (f"{where}: is no {name}" for name in lineage[0] if name not in lineage[1])
    yield from (f"{where}: is also {name}" for name in lineage[1] if name not in lineage[0])
    if issubclass(theirs, pydantic.BaseModel):
        yield from of_models(where, theirs, ours)
    elif dataclasses.is_dataclass(theirs):
        yield from of_dataclasses(where, theirs, ours)
    else:
        yield from of_instances(where, theirs, ours)
    mine, other = members(OURS, ours), members(THEIRS, theirs)
    yield from names_apart(where, other, mine)
    for name in mine.keys() & other.keys():
        yield from of_members(f"{where}.{name}", other[name], mine[name])


def members(package: Package, kind: type) -> dict[str, Any]:
    """Return what the class and its bases in the package define for users, without fields."""
    fields = {*getattr(kind, "model_fields", ()), *getattr(kind, "__dataclass_fields__", ()), "model_config"}
    found: dict[str, Any] = {}
    for each in reversed([each for each in kind.__mro__ if package.owns(each)]):
        found |= vars(each)
    spoken = ("__init__", "__aenter__", "__aexit__")
    return {name: found[name] for name in found.keys() - fields if name in spoken or not name.startswith("_")}


def of_members(where: str, theirs: Any, ours: Any) -> Iterator[str]:
    yield from unlike(where, "is a", type(theirs).__name__, type(ours).__name__)
    theirs, ours = (
        getattr(each, "fget", None) or getattr(each, "__func__", None) or getattr(each, "wrapped", each)
        for each in (theirs, ours)
    )
    if callable(theirs) and callable(ours):
        yield from of_functions(where, theirs, ours)
    else:
        yield from unlike(where, "is", theirs, ours)


def of_functions(where: str, theirs: Any, ours: Any) -> Iterator[str]:
    coroutines = [inspect.iscoroutinefunction(each) for each in (theirs, ours)]
    yield from unlike(where, "is a coroutine function:", *coroutines)
    wanted, given = (dict(inspect.signature(each).parameters) for each in (theirs, ours))
    yield from names_apart(where, wanted, given, "parameter ")
    shared = [[name for name in each if name in wanted and name in given] for each in (wanted, given)]
    yield from unlike(where, "order is", *map(", ".join, shared))
    for name in shared[0]:
        one, two, at = wanted[name], given[name], f"{where}({name})"
        yield from unlike(at, "is", one.kind.description, two.kind.description)
        yield from unlike(at, "default is", said_default(one.default), said_default(two.default))
        if name not in ("self", "cls"):
            yield from unlike(at, "type is", THEIRS.spell(one.annotation), OURS.spell(two.annotation))
    answers = (inspect.signature(each).return_annotation for each in (theirs, ours))
    # Without a word, a constructor returns None all the same.
    answers = (
        None if each is inspect.Signature.empty and where.endswith("__init__") else each for each in answers
    )
    yield from unlike(where, "returns", *map(Package.spell, (THEIRS, OURS), answers))


def said_default(default: Any) -> str:
    return "not there" if default is inspect.Parameter.empty else repr(default)


def of_models(where: str, theirs: Any, ours: Any) -> Iterator[str]:
    for name in theirs.model_config.keys() | ours.model_config.keys():
        yield from unlike(where, f"{name} is", theirs.model_config.get(name), ours.model_config.get(name))
    yield from names_apart(where, theirs.model_fields, ours.model_fields, "field ")
    for name in theirs.model_fields.keys() & ours.model_fields.keys():
        one, two, at = theirs.model_fields[name], ours.model_fields[name], f"{where}.{name}"
        for word in ("alias", "validation_alias", "serialization_alias", "default", "default_factory"):
            yield from unlike(at, f"{word} is", getattr(one, word), getattr(two, word))
        yield from unlike(at, "is required:", one.is_required(), two.is_required())
        yield from unlike(at, "type is", THEIRS.spell(one.annotation), OURS.spell(two.annotation))
        limits = [[each for each in field.metadata if not is_open(each)] for field in (one, two)]
        yield from unlike(at, "limits are", *limits)
        if is_open(two.annotation) or any(map(is_open, two.metadata)):
            yield f"{at}: new words are read"


def is_open(kind: Any) -> bool:
    """Whether there is a mark at or in the type by which it reads words that are not in it."""
    marks = (*getattr(kind, "__metadata__", ()), kind)
    return any(type(mark).__name__ == "Words" for mark in marks) or any(map(is_open, typing.get_args(kind)))


def of_dataclasses(where: str, theirs: Any, ours: Any) -> Iterator[str]:
    yield from unlike(where, "is made by", *(repr(each.__dataclass_params__) for each in (theirs, ours)))
    fields = [{field.name: field for field in dataclasses.fields(kind)} for kind in (theirs, ours)]
    yield from names_apart(where, *fields, "field ")
    yield from unlike(where, "order is", *(", ".join(name for name in each) for each in fields))
    for name in fields[0].keys() & fields[1].keys():
        one, two = fields[0][name], fields[1][name]
        for word in ("default", "default_factory", "repr", "init", "compare", "hash", "kw_only"):
            yield from unlike(f"{where}.{name}", f"{word} is", getattr(one, word), getattr(two, word))
        yield from unlike(f"{where}.{name}", "type is", THEIRS.spell(one.type), OURS.spell(two.type))


def of_instances(where: str, theirs: type, ours: type) -> Iterator[str]:
    """Make one of each, of the same arguments, and compare what can be read from them."""
    made = [example(package, kind) for package, kind in ((THEIRS, theirs), (OURS, ours))]
    seen = [{name for name in vars(each) if not name.startswith("_")} for each in made]
    yield from names_apart(where, *seen, "attribute ")
    if isinstance(made[0], Exception):
        yield from unlike(where, "says", *map(str, made))
        yield from unlike(where, "has arguments", *(each.args for each in made))
        for name in seen[0] & seen[1]:
            yield from unlike(f"{where}.{name}", "is", *(getattr(each, name) for each in made))


def example(package: Package, kind: type) -> Any:
    config = package.names["HttpClientConfig"]("http://127.0.0.1:1", "token")
    known = {
        "config": config,
        "sdk_header": "a@1",
        "message": "the message",
        "code": "the_code",
        "status_code": 400,
        "errors": {"name": ["is required"]},
        "body_snippet": "<html>",
        "cause": None,
        "last_error": None,
    }
    wanted = inspect.signature(kind.__init__).parameters
    if "args" in wanted:
        return kind("the message")
    if "http_client" in wanted:
        known["http_client"] = package.names["PrefactorHttpClient"](config)
    return kind(**{name: known[name] for name in wanted if name in known})


def matches(row: str, difference: str) -> bool:
    return re.fullmatch(".*".join(map(re.escape, row.split("*"))), difference) is not None


class TestTable:
    def test_every_difference_has_its_reason(self):
        """What differs from the official package is in the table, once."""
        rows = {each: [row for row in DIFFERENCES if matches(row, each)] for each in differences()}

        assert sorted(each for each, found in rows.items() if not found) == []
        assert {each: found for each, found in rows.items() if len(found) > 1} == {}

    def test_every_row_is_a_difference(self):
        """A row of the table that describes no difference any more is to be removed."""
        found = set(differences())

        assert [row for row in DIFFERENCES if not any(matches(row, each) for each in found)] == []


class TestComparison:
    """The comparison itself: it sees what changes."""

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("dict", "dict[str, Any]"),
            ("list", "List[Any]"),
            ("Optional[str]", "str | None"),
            ("Optional['AgentSpan']", "AgentSpan | None"),
            ("Union[int, None, str]", "str | int | None"),
            ("Callable[[Optional[str]], None]", "Callable[[str | None], None]"),
            ("FinishStatus", "Literal['complete', 'failed', 'cancelled']"),
        ],
    )
    def test_same_types(self, one, other):
        """Two spellings of one type are one."""
        assert THEIRS.spell(one) == OURS.spell(other)

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("dict[str, Any]", "dict[str, str]"),
            ("str", "str | None"),
            ("FinishStatus", "AgentStatus"),
            ("Literal['a', 'b']", "Literal['a']"),
            ("Callable[[str], None]", "Callable[[str | None], None]"),
            ("AgentSpan", "AgentInstance"),
        ],
    )
    def test_different_types(self, one, other):
        """Two types are two."""
        assert THEIRS.spell(one) != OURS.spell(other)

    async def _start(
        self, agent_instance_id: str, timestamp: str | None = None, key: str | None = None
    ) -> str: ...

    def _get(self, agent_instance_id: str) -> AgentInstance: ...  # noqa: F821 - spelled in the package

    async def _request(
        self, path: str = "/", method: str = "GET", *, params: None = None
    ) -> dict[str, Any]: ...

    @pytest.mark.parametrize(
        ("kind", "name", "value", "seen"),
        [
            (
                "AgentInstanceClient",
                "start",
                _start,
                "start(timestamp): type is datetime | None, here str | None",
            ),
            ("AgentInstanceClient", "start", _start, "start.parameter idempotency_key: missing"),
            ("AgentInstanceClient", "start", _start, "start.parameter key: added"),
            ("AgentInstanceClient", "start", _start, "start: returns AgentInstance, here str"),
            ("AgentInstanceClient", "get", _get, "get: is a coroutine function: True, here False"),
            (
                "PrefactorHttpClient",
                "request",
                _request,
                "request: order is self, method, path, params, here self, path, method, params",
            ),
            ("PrefactorHttpClient", "request", _request, "request(path): default is not there, here '/'"),
            ("PrefactorHttpClient", "bulk", _get, "bulk: is a property, here function"),
            ("PrefactorHttpClient", "close", None, "close: missing"),
        ],
    )
    def test_sees_methods(self, monkeypatch, kind, name, value, seen):
        """A method that is not theirs any more is noticed."""
        if value is None:
            monkeypatch.delattr(OURS.names[kind], name)
        else:
            monkeypatch.setattr(OURS.names[kind], name, value)

        assert f"{OURS.short(OURS.names[kind].__module__)}.{kind}.{seen}" in set(differences())

    @pytest.mark.parametrize(
        ("field", "seen"),
        [
            (
                FieldInfo.from_annotated_attribute(Literal["complete", "failed"] | None, None),
                "type is Literal['complete', 'failed', 'cancelled'] | None, here Literal['complete', 'failed'] | None",
            ),
            (FieldInfo.from_annotation(str), "is required: False, here True"),
            (FieldInfo.from_annotated_attribute(str, "complete"), "default is None, here complete"),
            (FieldInfo.from_annotated_attribute(str, Field(alias="s")), "alias is None, here s"),
            (
                FieldInfo.from_annotated_attribute(str, Field(min_length=8)),
                "limits are [], here [MinLen(min_length=8)]",
            ),
        ],
    )
    def test_sees_fields(self, monkeypatch, field, seen):
        """A field of a model that is not theirs any more is noticed."""
        model = OURS.names["FinishInstanceRequest"]
        monkeypatch.setitem(model.model_fields, "status", field)

        assert f"models.agent_instance.FinishInstanceRequest.status: {seen}" in set(differences())

    def test_sees_the_rest(self, monkeypatch):
        """A setting, an alias, a base of an error, an export or a module that is not theirs any more is noticed."""
        config = OURS.names["HttpClientConfig"]
        fields = dict(config.__dataclass_fields__)
        monkeypatch.setattr(fields["max_retries"], "default", 5)
        del fields["request_timeout"]
        monkeypatch.setattr(config, "__dataclass_fields__", fields)
        monkeypatch.setattr(OURS.modules["models.types"], "FinishStatus", Literal["complete"])
        orphan = type("PrefactorAuthError", (OURS.names["PrefactorHttpError"],), {"__module__": "elsewhere"})
        monkeypatch.setattr(OURS.modules["exceptions"], "PrefactorAuthError", orphan)
        monkeypatch.setattr(OURS.root, "__all__", [*set(OURS.root.__all__) - {"BulkItem"}, "client"])
        monkeypatch.delitem(OURS.modules, "retry")

        assert {
            "config.HttpClientConfig.max_retries: default is 3, here 5",
            "config.HttpClientConfig.field request_timeout: missing",
            "models.types.FinishStatus: is Literal['complete', 'failed', 'cancelled'], here Literal['complete']",
            "exceptions.PrefactorAuthError: is of module exceptions, here None",
            "exceptions.PrefactorAuthError: is no PrefactorApiError",
            "BulkItem: not in __all__",
            "client: added",
            "module retry: missing",
        } <= set(differences())


VERSION = {"name": "My Agent", "external_identifier": "v1.0.0"}
SCHEMA = {"external_identifier": "s1", "span_type_schemas": []}
GIVEN = {
    "agent_id": "agent",
    "agent_version": VERSION,
    "agent_schema_version": SCHEMA,
    "environment_id": "environment",
    "id": "id",
    "idempotency_key": "the-same-key",
    "update_current_version": False,
    "purpose": "eval",
    "external_identifier": "run-1",
}
DOCUMENTED = (
    "agent_id",
    "agent_version",
    "agent_schema_version",
    "id",
    "idempotency_key",
    "update_current_version",
)
RELEASED = tuple(inspect.signature(THEIRS.names["AgentInstanceClient"].register).parameters)[1:]
INSTANCE = {
    **dict.fromkeys(
        ("account_id", "agent_id", "agent_version_id", "environment_id", "agent_deployment_id", "id"), "x"
    ),
    **dict.fromkeys(("inserted_at", "updated_at"), "2026-01-01T00:00:00.000000Z"),
    "type": "agent_instance",
    "status": "pending",
}


def register(package: Package, *calls: tuple[tuple[Any, ...], dict[str, Any]]) -> list[dict[str, Any]]:
    """Call `register` of a package with each of the arguments; return the bodies that were sent."""
    answer = json.dumps({"status": "success", "details": INSTANCE}).encode()

    async def main():
        config = package.names["HttpClientConfig"](server.url, "token")
        async with package.names["PrefactorHttpClient"](config) as client:
            for positional, named in calls:
                await client.agent_instances.register(*positional, **named)

    with HostileServer(always(200, answer)) as server:
        asyncio.run(main())
        return [json.loads(request.body) for request in server.requests]


def split(
    order: tuple[str, ...], given: dict[str, Any], count: int
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Give the first *count* by position, the others by name."""
    by_position = order[:count]
    rest = {name: value for name, value in given.items() if name not in by_position}
    return tuple(given[name] for name in by_position), rest


class TestRegister:
    """`register` takes its arguments in the documented order, and in the released one."""

    def test_released_order(self):
        """However much is given by position, it is the request that the official client makes of the same call."""
        assert set(RELEASED) == set(GIVEN)
        calls = [split(RELEASED, GIVEN, count) for count in range(len(RELEASED) + 1)]

        assert register(THEIRS, *calls) == register(OURS, *calls) == [GIVEN] * len(calls)

    def test_documented_order(self):
        """However much is given by position, it is the same request."""
        calls = [split(DOCUMENTED, GIVEN, count) for count in range(len(DOCUMENTED) + 1)]

        assert register(OURS, *calls) == [GIVEN] * len(calls)

    def test_models(self):
        """In both orders a version may be a model, and only what was set is sent."""
        version = OURS.names["AgentVersionForRegister"](**VERSION)
        schema = OURS.names["AgentSchemaVersionForRegister"](**SCHEMA)
        given = {**GIVEN, "agent_version": version, "agent_schema_version": schema}
        calls = [
            split(order, given, count) for order in (DOCUMENTED, RELEASED) for count in range(len(order) + 1)
        ]

        assert register(OURS, *calls) == [GIVEN] * len(calls)

    def test_without_agent(self):
        """With a deployment token the agent is left out: by None in the documented order, by nothing in the other."""
        calls = [((None, VERSION, SCHEMA), {}), ((VERSION, SCHEMA), {}), ((VERSION, SCHEMA, None, None), {})]
        bodies = register(OURS, *calls)
        keys = {body.pop("idempotency_key") for body in bodies}

        assert len(keys) == len(calls)
        assert bodies == [
            {"agent_version": VERSION, "agent_schema_version": SCHEMA, "update_current_version": True}
        ] * len(calls)

    @pytest.mark.parametrize(
        ("positional", "named"),
        [
            ((VERSION, SCHEMA), {"agent_version": VERSION}),
            ((VERSION, SCHEMA, "agent"), {"agent_id": "agent"}),
            ((VERSION, SCHEMA, "agent", "environment"), {"environment_id": None}),
            (tuple(GIVEN[name] for name in RELEASED), {"purpose": "live"}),
            ((*(GIVEN[name] for name in RELEASED), "one more"), {}),
            ((VERSION,), {}),
            ((VERSION, SCHEMA), {"agent": "agent"}),
            ((), {}),
        ],
    )
    def test_released_misuse(self, positional, named):
        """What is given twice, too much or too little is a TypeError, as with the official client."""
        for package in (THEIRS, OURS):
            with pytest.raises(TypeError):
                register(package, (positional, named))

    @pytest.mark.parametrize(
        ("positional", "named"),
        [
            (("agent", VERSION, SCHEMA), {"agent_id": "agent"}),
            (("agent", VERSION), {"agent_version": VERSION}),
            (("agent", VERSION), {}),
            (("agent",), {"agent_schema_version": SCHEMA}),
            (("agent", VERSION, SCHEMA, "id", "the-same-key", True, "environment"), {}),
        ],
    )
    def test_documented_misuse(self, positional, named):
        """The same in the documented order; what is documented by name only has no position in it."""
        with pytest.raises(TypeError):
            register(OURS, (positional, named))
