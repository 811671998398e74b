"""Arguments become payload bytes by name, and what must not be recorded is not: by choice and by mark."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sqlite3
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, NewType, Optional

import orjson
import pytest

import prefactor_trace as pt
from prefactor_trace._arguments import arguments_of, choice_of
from prefactor_trace._capture import DEFAULT
from prefactor_trace._marks import DATA_CATEGORIES
from prefactor_trace.exporters import MemoryExporter
from prefactor_trace.server import LocalPlatform
from prefactor_trace.testing import recording

if TYPE_CHECKING:
    from nowhere import Nothing

HIDDEN = {"$redacted": "Secret"}
Own = NewType("Own", Annotated[str, pt.Secret])


def payload(function, *args, choice=None, **kwargs):
    return orjson.loads(arguments_of(function, choice).read(args, kwargs, DEFAULT))


@pytest.fixture
def spans():
    """Record what a test does in one run; the function gives the payloads and results by span."""
    exporter = MemoryExporter()
    tracer = pt.configure(exporter=exporter)

    def of(work, **settings):
        nonlocal tracer
        if settings:
            tracer = pt.configure(exporter=exporter, **settings)
        with pt.instance():
            work()
        tracer.shutdown()
        return {
            each.started.name: (
                orjson.loads(each.started.payload or b"null"),
                orjson.loads(each.ended.result or b"null"),
            )
            for each in exporter.records
            if hasattr(each, "started")
        }

    return of


class TestNames:
    def test_by_name_with_defaults(self):
        """Arguments are named, defaults and surplus ones included."""

        def step(a, b=2, *rest, c=3, **more):
            return a, b, rest, c, more

        assert payload(step, 1) == {"a": 1, "b": 2, "c": 3}
        assert payload(step, 1, 5, 6, 7, c=8, d=9) == {"a": 1, "b": 5, "rest": [6, 7], "c": 8, "d": 9}

    def test_one_name_twice(self):
        """`**kwargs` may use the names of what is given by position only; both are recorded."""

        def step(a, b=2, /, *rest, **more):
            return a, b, rest, more

        assert payload(step, 1, 5, 6, a=7, b=8, rest=9, c=0) == {
            "a": 1,
            "b": 5,
            "rest": [6],
            "**a": 7,
            "**b": 8,
            "**rest": 9,
            "c": 0,
        }
        assert payload(step, 1, b=8) == {"a": 1, "b": 2, "**b": 8}
        assert payload(step, 1, a=7, choice=choice_of(["-a"])) == {"b": 2}

    def test_without_self(self):
        """A method's `self` is no argument."""
        assert payload(Agent.run, Agent(), "q") == {"query": "q"}


class Agent:
    def run(self, query):
        return query


class TestMarks:
    def test_secret_and_omit(self):
        """A marker takes the place of a secret; what is omitted is not even named."""

        def step(key: Annotated[str, pt.Secret], image: Annotated[bytes, pt.Omit], query: str):
            return key, image, query

        assert payload(step, "canary", b"x", "q") == {"key": HIDDEN, "query": "q"}
        assert payload(step, key="canary", image=b"x", query="q") == {"key": HIDDEN, "query": "q"}

    def test_defaults_are_marked_too(self):
        """A default is a value like any other."""

        def step(key: Annotated[str, pt.Secret] = "canary"):
            return key

        assert payload(step) == {"key": HIDDEN}

    def test_wherever_in_the_annotation(self):
        """Inside Optional, unions, containers and new types a mark counts for the whole argument."""

        def step(
            a: Optional[Annotated[str, pt.Secret]],  # noqa: UP045 - the old way must work
            b: Annotated[str, pt.Secret] | None,
            c: list[dict[str, Annotated[str, pt.Secret()]]],
            d: Own,
            e: Annotated[Annotated[str, "a note"], pt.Secret, "another"],
        ):
            return a, b, c, d, e

        assert payload(step, *["canary"] * 5) == dict.fromkeys("abcde", HIDDEN)

    def test_a_name_that_comes_later(self):
        """An annotation may name what is defined after the function, and after its first call."""

        def step(key: _Later):  # noqa: F821
            return key

        try:
            arguments = arguments_of(step)
            assert orjson.loads(arguments.read(("x",), {}, DEFAULT)) == {"key": "x"}
            globals()["_Later"] = Annotated[str, pt.Secret]
            assert orjson.loads(arguments.read(("x",), {}, DEFAULT)) == {"key": HIDDEN}
        finally:
            globals().pop("_Later", None)

    def test_nothing_of_the_users_is_run(self):
        """Neither an annotation is asked anything, nor the class that it names, nor what it is made by."""
        run = []

        class Telling(type):
            def __getattribute__(cls, name):
                run.append(name)
                return super().__getattribute__(name)

            def __or__(cls, other):
                run.append("or")
                return cls

            def __getitem__(cls, key):
                run.append("item")
                return cls

        class Own(metaclass=Telling):
            pass

        class Note:
            def __getattribute__(self, name):
                run.append(name)
                return super().__getattribute__(name)

            def __eq__(self, other):
                run.append("eq")
                return True

            def __repr__(self):
                run.append("repr")
                return "Secret"

            __hash__ = None

        note = Note()

        @pt.span
        def step(
            a: Own | None, b: Own[int], c: note, d: Own, e: list[Own], f: Annotated[str, note, pt.Secret]
        ):
            return a

        def written(a, b, c, d):
            return a

        written.__annotations__.update(a=note, b=Own, c=list[Own], d=Annotated[str, pt.Secret])
        with recording() as recorded, pt.instance():
            run.clear()
            step(1, 2, 3, 4, 5, "canary")
            pt.span(written)(1, 2, 3, "canary")
            first, second = recorded.spans
        assert run == []
        assert first.payload == {"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": HIDDEN}
        assert second.payload == {"a": 1, "b": 2, "c": 3, "d": HIDDEN}

    def test_a_mark_that_is_made(self):
        """What reading cannot tell is evaluated: a call behind the type can make a mark, an object can hold one."""

        def made():
            return pt.Secret()

        class Marks:
            secret = pt.Secret

            def __init__(self):
                self.own = pt.Secret

        marks = Marks()

        def step(
            a: Annotated[str, made()], b: Annotated[str, marks.own], c: Annotated[str, Marks.secret], d: str
        ):
            return made, marks

        assert payload(step, *["canary"] * 3, "d") == {**dict.fromkeys("abc", HIDDEN), "d": "d"}

    def test_a_name_that_never_comes(self):
        """Text that cannot be resolved is taken at its word, and never raises."""

        def step(
            a: Annotated[Nothing, pt.Secret],
            b: Annotated[Nothing, pt.Omit],
            c: Annotated[Nothing, pt.Sensitive],
            d: Nobody,  # noqa: F821
            e: 1 / 0,
        ):
            return a, b, c, d, e

        assert payload(step, *"vwxyz") == {
            "a": HIDDEN,
            "c": {"$sensitive": "string", "value": "x"},
            "d": "y",
            "e": "z",
        }

    def test_names_of_the_function_around(self):
        """An annotation may name what only the function around knows."""
        own = Annotated[str, pt.Secret]

        def step(key: own):
            return key, own

        assert payload(step, "canary") == {"key": HIDDEN}

    def test_partials_and_objects(self, spans):
        """Marks count in whatever calls the function that has them."""

        def step(a, key: Annotated[str, pt.Secret], image: Annotated[str, pt.Omit] = "i"):
            return a, key, image

        class Tool:
            limit: int = 1

            def __call__(self, key: Annotated[str, pt.Secret]) -> Annotated[str, pt.Secret]:
                return key

            def run(self, key: Annotated[str, pt.Secret]):
                return key

        class Made:
            def __init__(self, key: Annotated[str, pt.Secret]):
                self.key = key

        assert payload(partial(step, 1), "canary") == {"key": HIDDEN}
        assert payload(partial(partial(step, 1), key="canary")) == {"key": HIDDEN}
        for each in (Tool(), partial(Tool()), Tool().run, partial(Tool().run), partial(Made)):
            assert payload(each, "canary") == {"key": HIDDEN}
        assert payload(partial(max), 1) in ({"args": [1]}, {})
        ((given, result),) = spans(lambda: pt.span("tool")(Tool())("canary")).values()
        assert (given, result) == ({"key": HIDDEN}, {"output": HIDDEN})

    def test_surplus_keywords(self):
        """A mark on `**more` counts for each of them."""

        def step(a, **more: Annotated[str, pt.Secret]):
            return a, more

        assert payload(step, "x", b="canary") == {"a": "x", "b": HIDDEN}

    def test_methods(self):
        """Marks work on methods, with what the class around knows at the end."""

        class Bank:
            def pay(self, card: Annotated[str, pt.Secret], amount: int):
                return card, amount

        assert arguments_of(Bank.pay).read((Bank(), "canary", 3), {}, DEFAULT).find(b"canary") < 0

    def test_strange_annotations(self):
        """Whatever stands in the annotations, a call is recorded."""

        def step(a, b):
            return a, b

        for strange in ({"a": 5, "b": object()}, {"a": "a b c"}, {"a": "(" * 500}, "no dict"):
            try:
                step.__annotations__ = strange
            except TypeError:
                continue
            assert payload(step, 1, 2) == {"a": 1, "b": 2}

    def test_results(self, spans):
        """On a return annotation a mark counts for the result, however the function is called."""

        @pt.span
        def secret() -> Annotated[str, pt.Secret]:
            return "canary"

        @pt.span
        def omitted() -> Annotated[dict[str, Any], pt.Omit]:
            pt.current_span().set_result("canary")
            return {"a": "canary"}

        @pt.span
        def set_by_hand() -> Annotated[str, pt.Secret]:
            pt.current_span().set_result("canary")
            raise KeyError

        def work():
            secret()
            omitted()
            with pytest.raises(KeyError):
                set_by_hand()

        found = spans(work)
        prefix = "TestMarks.test_results.<locals>."
        assert found[f"{prefix}secret"][1] == {"output": HIDDEN}
        assert found[f"{prefix}omitted"][1] is None
        assert found[f"{prefix}set_by_hand"][1] == {"output": HIDDEN}

    def test_the_function_is_the_same(self):
        """Marks change nothing for the function itself."""

        @pt.span
        def step(key: Annotated[str, pt.Secret]) -> str:
            return key

        assert step("x") == "x"
        assert step.__annotations__["key"] == "Annotated[str, pt.Secret]"


def with_connection(function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        return function("connection", *args, **kwargs)

    return call


def without_request(function):
    @functools.wraps(function)
    def call(_request, *args, **kwargs):
        return function(*args, **kwargs)

    return call


def passing_on(function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        return function(*args, **kwargs)

    return call


class TestAroundAnother:
    """A decorator below ours can give the function other arguments than it is called with."""

    def login(self, spans, decorator, *args, **options):
        @pt.span("login", **options)
        @decorator
        def login(connection, pin: Annotated[str, pt.Secret] if not options else str, remember=False):
            return None

        return spans(lambda: login(*args))["login"][0]

    @pytest.mark.parametrize("options", [{}, {"capture": "-pin"}], ids=["marked", "left out"])
    @pytest.mark.parametrize(
        ("decorator", "args"),
        [(with_connection, ("canary",)), (without_request, ("request", "connection", "canary", True))],
    )
    def test_where_they_do_not_fit(self, spans, decorator, args, options):
        """If there are too few or too many, which is which is not known, and none is recorded."""
        assert self.login(spans, decorator, *args, **options)["args"] == HIDDEN

    def test_where_they_fit(self, spans):
        """A decorator that passes on what it gets changes nothing."""
        assert self.login(spans, passing_on, "here", "canary") == {
            "connection": "here",
            "pin": HIDDEN,
            "remember": False,
        }

    def test_in_what_an_error_says(self, recorded):
        """Nor are they in the message of an error."""

        @pt.span
        @with_connection
        def login(connection, pin: Annotated[str, pt.Secret]):
            raise ValueError(f"wrong: {pin}")

        with pytest.raises(ValueError, match="canary"):
            login("canary")
        assert recorded.spans[0].error["message"] == "wrong: [redacted:Secret]"


class TestChoice:
    def test_arguments_by_name(self, spans):
        """`capture=` names the arguments to record, or, with a minus, those not to."""

        @pt.span("only", capture=("a", "c"))
        def only(a, b, c=3):
            return "r"

        @pt.span("without", capture="-b")
        def without(a, b, c=3):
            return "r"

        @pt.span("block", payload={"a": 1, "b": 2}, capture="a")
        def block():
            return "r"

        def work():
            only(1, 2)
            without(1, 2)
            block()

        assert spans(work) == {
            "only": ({"a": 1, "c": 3}, {"output": "r"}),
            "without": ({"a": 1, "c": 3}, {"output": "r"}),
            "block": ({"a": 1}, {"output": "r"}),
        }

    @pytest.mark.parametrize("setting", [True, False])
    def test_all_and_none(self, spans, setting):
        """The words "all" and "none" are said of payload and result, over the settings; the single options count more."""

        def named(name, **options):
            @pt.span(name, **options)
            def step(a):
                return "r"

            return step

        steps = [
            named("all", capture="all"),
            named("none", capture="none"),
            named("no result", capture="all", capture_outputs=False),
            named("result only", capture="none", capture_outputs=True),
            named("by name", capture="a", capture_outputs=True),
            named("settings"),
        ]
        found = spans(lambda: [step(1) for step in steps], capture_inputs=setting, capture_outputs=setting)
        whole, nothing = ({"a": 1}, {"output": "r"}), (None, None)
        assert found == {
            "all": whole,
            "none": nothing,
            "no result": ({"a": 1}, None),
            "result only": (None, {"output": "r"}),
            "by name": whole,
            "settings": whole if setting else nothing,
        }

    def test_the_names_of_all_others(self):
        """`**more`, by its name, is all that is in it; and so are `*rest`."""

        def step(a, *rest, b=2, **more): ...

        def of(*choice):
            return payload(step, 1, 5, c=3, d=4, choice=choice_of(choice))

        assert of("-more") == {"a": 1, "rest": [5], "b": 2}
        assert of("-rest") == {"a": 1, "b": 2, "c": 3, "d": 4}
        assert of("more") == {"c": 3, "d": 4}
        assert of("more", "a", "-d") == {"a": 1, "c": 3}

    def test_a_slip_is_said_in_the_log(self, caplog):
        """A name that is no argument is told when the function is decorated."""

        @pt.span("step", capture=("query", "limt"))
        def step(query, limit):
            return query, limit

        assert "names limt, which is no argument" in caplog.text


class TestSensitive:
    def test_leaves_are_wrapped(self):
        """Each text, number and truth value is wrapped with its labels, as the platform reads it."""

        @dataclasses.dataclass
        class Person:
            name: str
            age: int
            is_member: bool
            note: None = None

        def step(who: Annotated[Any, pt.Sensitive("personal_identifiers", "contact_information")]):
            return who

        labels = ["personal_identifiers", "contact_information"]
        assert payload(step, Person("Bob", 7, True)) == {
            "who": {
                "name": {"$sensitive": "string", "labels": labels, "value": "Bob"},
                "age": {"$sensitive": "number", "labels": labels, "value": 7},
                "is_member": {"$sensitive": "boolean", "labels": labels, "value": True},
                "note": None,
            }
        }

    def test_secrets_inside_are_taken_out(self):
        """What is wrapped is searched for secrets first."""

        def step(who: Annotated[Any, pt.Sensitive]):
            return who

        assert "canary" not in str(payload(step, {"password": "canary"}))

    def test_labels_are_checked(self):
        """A category that the platform does not have is refused where it is written."""
        assert len(DATA_CATEGORIES) == 17
        with pytest.raises(pt.ConfigurationError, match="no such data category"):
            pt.Sensitive("personal")

    def test_the_platform_is_told(self, tmp_path):
        """The span says `sensitive_encoding` if a value in it is wrapped, by way of the spool, and only then."""

        @pt.span("wrapped")
        def wrapped(who: Annotated[str, pt.Sensitive("personal_identifiers")]):
            return "r"

        @pt.span("result")
        def result() -> Annotated[str, pt.Sensitive]:
            return "r"

        @pt.span("plain")
        def plain(who):
            return "r"

        with LocalPlatform(tmp_path / "platform.db", state_dir=tmp_path / "p") as platform:
            tracer = pt.configure(api_url=platform.url, api_token=platform.token, live_after=0)
            with pt.instance():
                wrapped("Bob")
                result()
                plain('{"$sensitive":"string","value":"Bob"}')
                with pt.span("announced") as span:
                    tracer.flush()
                    span.set_result({"who": {"$sensitive": "string", "value": "Bob"}})
            tracer.shutdown(10)
        with contextlib.closing(sqlite3.connect(tmp_path / "platform.db")) as connection:
            found = dict(connection.execute("SELECT schema_name, sensitive_encoding FROM agent_spans"))
        assert found == {"wrapped": 1, "result": 1, "plain": 0, "announced": 1}
