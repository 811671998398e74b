"""What marks hide of values is in nothing that is said of an error, and to see to that costs little, whatever they are."""

from __future__ import annotations

import collections
import dataclasses
import enum
import json
import pathlib
import sys
import threading
import time
import uuid
from typing import Annotated, Any, NamedTuple, TypedDict

import attrs
import pydantic
import pytest

import prefactor_trace as pt
from prefactor_trace import _hidden
from prefactor_trace._capture import capture_exception
from prefactor_trace.testing import recording

CANARY = "canary-1234"


@dataclasses.dataclass
class Data:
    pin: str


@attrs.define
class Attrs:
    pin: str


class Row(NamedTuple):
    pin: str


class Model(pydantic.BaseModel):
    pin: pydantic.SecretStr


class Slotted:
    __slots__ = ("pin",)

    def __init__(self, pin: str) -> None:
        self.pin = pin


class Level(enum.Enum):
    HIGH = CANARY


class Text(str):
    __slots__ = ()


HOLDERS: dict[str, Any] = {
    "a text": CANARY,
    "a kind of text": Text(CANARY),
    "bytes": CANARY.encode(),
    "bytearray": bytearray(CANARY.encode()),
    "a dataclass": Data(CANARY),
    "attrs": Attrs(CANARY),
    "a named tuple": Row(CANARY),
    "a model": Model(pin=CANARY),
    "a secret of pydantic": pydantic.SecretStr(CANARY),
    "slots": Slotted(CANARY),
    "an enum": Level.HIGH,
    "a path": pathlib.PurePosixPath(CANARY),
    "UserDict": collections.UserDict(a=CANARY),
    "OrderedDict": collections.OrderedDict(a=CANARY),
    "deque": collections.deque([CANARY]),
    "a key": {CANARY: 1},
    "a list of objects": [Data("other"), Data(CANARY)],
    "a dict of objects": {"one": Model(pin=CANARY)},
    "deep": [[[[[[[[CANARY]]]]]]]],
    "a set": {CANARY},
}


@pytest.mark.parametrize("holder", HOLDERS.values(), ids=HOLDERS)
def test_whatever_holds_it(recorded, holder):
    """The texts of an argument that is hidden are not in the message of an error, whatever the argument is."""

    @pt.span
    def login(_who: Annotated[object, pt.Secret]) -> None:
        raise ValueError("refused: " + CANARY)

    with pytest.raises(ValueError, match=CANARY):
        login(holder)
    assert CANARY not in json.dumps(recorded.spans[0].error)
    assert recorded.spans[0].error["message"] == "refused: [redacted:Secret]"


def test_the_words_of_a_step_that_fails(recorded):
    """Words given to `fail` are looked through as well, of a kind of text too."""

    @pt.span
    def login(pin: Annotated[str, pt.Secret]) -> None:
        pt.current_span().fail(Text("refused: " + pin))

    login(CANARY)
    assert recorded.spans[0].error["message"] == "refused: [redacted:Secret]"


@dataclasses.dataclass
class Refused(Exception):
    token: Annotated[str, pt.Secret]


class Declared(Exception):
    token: Annotated[str, pt.Secret]

    def __init__(self, token: str) -> None:
        super().__init__("refused: " + token)
        self.token = token


@pytest.mark.parametrize("kind", [Refused, Declared])
def test_fields_of_the_error(recorded, kind):
    """What a class of exceptions marks on its own fields is hidden in what it says, and as a cause."""

    @pt.span
    def login() -> None:
        try:
            raise kind(CANARY)
        except kind as error:
            raise ValueError("no") from error

    with pytest.raises(ValueError, match="no"):
        login()
    assert CANARY not in json.dumps(recorded.spans[0].error)


@pytest.mark.parametrize("length", [900, 3_000, 20_000, 200_000])
@pytest.mark.parametrize("before", [0, 700, 5_000])
def test_long_texts(recorded, length, before):
    """Of a long text that is hidden neither the beginning nor the end is told, wherever the message is cut."""
    secret = "".join(f"{uuid.uuid4().hex} " for _ in range(length // 33))

    @pt.span
    def sign(_key: Annotated[str, pt.Secret], kind: str) -> None:
        if kind == "text":
            raise ValueError("x " * (before // 2) + secret)
        raise ValueError(1, "x " * (before // 2) + secret)

    for kind in ("text", "two"):
        with pytest.raises(ValueError):
            sign(secret, kind)
    said = json.dumps([each.error for each in recorded.spans])
    assert not [word for word in secret.split() if word in said]


def test_it_costs_little():
    """What is hidden is looked for in a few values, and in the beginning of long texts: before the function runs."""
    found: list[str] = []
    big = [
        b"\xff" * 50_000_000,
        "x" * 20_000_000,
        [[0] * 1_000] * 1_000,
        {n: [n] * 300 for n in range(1_000)},
    ]
    began = time.thread_time()
    for value in big:
        _hidden.hidden_in(value, pt.Secret, found)
    assert time.thread_time() - began < 0.05
    assert max(map(len, found)) <= _hidden.LONGEST


class Plain(TypedDict):
    pin: Annotated[str, pt.Secret]


def test_another_thread_changes_it():
    """A container that another thread is changing costs neither the step nor its neighbours."""
    shared: dict[str, str] = {}
    is_over = threading.Event()

    def change() -> None:
        while not is_over.is_set():
            shared[f"key-{len(shared)}"] = "x" * 10
            if len(shared) > 50:
                shared.clear()

    @pt.span
    def hidden(_it: Annotated[dict[str, str], pt.Secret]) -> None:
        pass

    @pt.span
    def planned(_it: Plain) -> None:
        pass

    thread, before = threading.Thread(target=change), sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        thread.start()
        with recording() as recorded, pt.instance():
            for _ in range(300):
                hidden(shared)
                planned(shared)  # type: ignore[arg-type] # as programs do
                with pt.span("block", payload=shared, capture="-key-1"):
                    pass
    finally:
        is_over.set()
        thread.join()
        sys.setswitchinterval(before)
    assert len(recorded.spans) == 900


class Lost(Exception):
    pass


class TestErrorsOnTheirWay:
    """What was hidden of an error is hidden in it again, and in no other that stands where it stood."""

    def test_another_of_the_same_id(self, monkeypatch):
        """What is remembered of an error that is gone is not used for another in its place."""
        gone = Lost("canary")
        capture_exception(gone, hidden=("canary",))
        (left,) = [each for each in _hidden._left.values() if each.is_of(gone)]
        of_builtin = ValueError("canary")
        capture_exception(of_builtin, hidden=("canary",))
        for other in (Lost("canary"), KeyError("canary")):
            for known in (left, _hidden._left[id(of_builtin)]):
                monkeypatch.setitem(_hidden._left, id(other), known)
                assert b'"message":"canary"' in capture_exception(other)
        before = _hidden._left[id(of_builtin)]
        monkeypatch.setitem(_hidden._left, id(of_builtin), before._replace(until=0.0))
        assert b"canary" in capture_exception(of_builtin)

    @pytest.mark.parametrize("kind", [Lost, ValueError])
    def test_the_same(self, kind):
        """It is hidden in the texts of the error itself, as often as it comes, beside what others hide of it."""
        error = kind("canary-1 canary-2")
        for hidden in (("canary-1",), ("canary-2",), ()):
            text = capture_exception(error, hidden=hidden)
            assert b"canary-1" not in text
        assert b"canary-2" not in text

    def test_bounded(self):
        """Of the errors of a long run the last are remembered."""
        errors = [ValueError(f"canary-{n}") for n in range(_hidden._MOST_LEFT + 10)]
        for error in errors:
            capture_exception(error, hidden=(error.args[0],))
        assert len(_hidden._left) == _hidden._MOST_LEFT
        assert b"canary" not in capture_exception(errors[-1])
        assert b"canary" not in capture_exception(errors[10])

    def test_one_after_the_other(self):
        """Errors of one type come and go where the one before was: what is remembered, and asked, stays little."""

        @pt.span
        def login(_token: Annotated[str, pt.Secret]) -> None:
            raise ValueError("no such user")

        with recording(), pt.instance():
            for _ in range(500):
                with pytest.raises(ValueError, match="no such user"):
                    login(uuid.uuid4().hex)
        assert max(len(left.hidden) for left in _hidden._left.values()) <= _hidden._MOST_TEXTS

    def test_forgotten(self, monkeypatch):
        """What is remembered too long ago, or of an error that is gone, is forgotten with the next one."""
        monkeypatch.setattr(_hidden, "_left", {})
        monkeypatch.setattr(_hidden, "_SECONDS_LEFT", 0.0)
        capture_exception(Lost("canary"), hidden=("canary",))
        capture_exception(of_builtin := ValueError("canary"), hidden=("canary",))
        capture_exception(error := KeyError("canary"), hidden=("canary",))
        assert list(_hidden._left) == [id(error)]
        assert of_builtin is not error
