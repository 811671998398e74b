"""What redaction finds, what it takes for a secret by mistake, and what it costs, beside detect-secrets.

Run it as `python benchmarks/redaction.py`, with `--quick` to see only that it works. The corpus is generated, the same
in every run: payloads as agents have them (chat messages, tool calls, logs, configuration, headers, source code), each
with one planted secret, and as many with look-alikes instead. Found is what is in no byte that is recorded; of
detect-secrets, which searches files line by line and names what it finds, that one of its findings overlaps the
secret. It is made for source code in a repository: each payload is given to it as a file of indented JSON, with its
default settings, and its time is for information.
"""

from __future__ import annotations

import json
import math
import random
import string
import sys
import tempfile
import time
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from prefactor_trace._capture import Limits, capture
from prefactor_trace._redact import Redactor

if TYPE_CHECKING:
    from collections.abc import Callable

QUICK = "--quick" in sys.argv
ROUNDS = 1 if QUICK else 12  # of each kind of secret in each kind of payload
SECONDS = 0.01 if QUICK else 0.4

_ALPHABET = string.ascii_letters + string.digits
_WORDS = [
    "please",
    "check",
    "the",
    "order",
    "and",
    "tell",
    "me",
    "what",
    "we",
    "can",
    "do",
    "about",
    "the",
    "refund",
    "because",
    "it",
    "was",
    "late",
    "again",
    "this",
    "week",
    "customer",
    "asked",
    "for",
    "an",
    "update",
    "on",
    "session",
    "three",
    "of",
    "our",
    "plan",
    "while",
    "token",
    "counts",
    "and",
    "keys",
    "of",
    "the",
    "map",
    "stay",
    "low",
]


def secrets(dice: random.Random) -> dict[str, tuple[str, str]]:
    """Return by kind: how the secret stands in text, and what of it must not be recorded."""

    def some(length: int, alphabet: str = _ALPHABET) -> str:
        return "".join(dice.choices(alphabet, k=length))

    base = string.ascii_uppercase + string.digits
    hexa = "0123456789abcdef"
    bare = {
        "OpenAI": f"sk-proj-{some(40)}",
        "Anthropic": f"sk-ant-api03-{some(60)}",
        "AWS key id": f"AKIA{some(16, base)}",
        "GitHub": f"ghp_{some(36)}",
        "GitLab": f"glpat-{some(20)}",
        "Slack": f"xoxb-{some(12, string.digits)}-{some(24)}",
        "Stripe": f"sk_live_{some(24)}",
        "Google": f"AIza{some(35)}",
        "HuggingFace": f"hf_{some(34)}",
        "Twilio": f"SK{some(32, hexa)}",
        "SendGrid": f"SG.{some(22)}.{some(43)}",
        "npm": f"npm_{some(36)}",
        "PyPI": f"pypi-AgEIcHlwaS5vcmc{some(60)}",
        "Telegram": f"{some(9, '123456789')}:AA{some(33)}",
        "JWT": f"eyJhbGciOiJIUzI1NiJ9.eyJ{some(30)}.{some(43)}",
        "private key": f"-----BEGIN PRIVATE KEY-----\n{some(64)}\n{some(64)}\n-----END PRIVATE KEY-----",
    }
    password = f"{some(9)}!7"
    around = {
        "bearer": ("Authorization: Bearer {}", some(40)),
        "URL password": ("postgresql://app:{}@db.internal:5432/main", password),
        "env variable": ("DATABASE_PASSWORD={}", password),
        "JSON in text": ('{{"user": "ann", "api_key": "{}"}}', some(24)),
        "query": ("https://api.example.com/v1?limit=5&access_token={}", some(24)),
        "SAS": ("https://x.blob.core.windows.net/f?sv=2023&sig={}%3D", some(43)),
        "AWS secret": ("aws_secret_access_key = {}", some(40)),
        "source code": ('client = Client(password="{}")', password),
    }
    found = {kind: (text, text) for kind, text in bare.items()}
    return found | {kind: (text.format(secret), secret) for kind, (text, secret) in around.items()}


def look_alikes(dice: random.Random) -> list[str]:
    """Return texts that hold no secret, though something in them looks like it."""
    number = dice.randrange(10**6)
    return [
        f"max_tokens={number} prompt_tokens: {number}",
        f"sha256:{dice.getrandbits(256):064x}",
        f"id {dice.getrandbits(32):08x}-{dice.getrandbits(16):04x}-4abc-8def-{dice.getrandbits(48):012x}",
        "risk-adjusted-portfolio-management-for-everyone",
        "the password is required, the token: expired",
        f"http://localhost:{number % 9000 + 1000}/users/ann@example.com",
        'password = os.environ["DB_PASSWORD"]',
        "basic understanding of bearer instruments",
        "def login(user: str, password: str | None = None): ...",
        f"https://example.com/watch?v={dice.getrandbits(40):010x}&session_id={number}",
    ]


def payloads(dice: random.Random, text: str) -> list[tuple[str, Any]]:
    """Return payloads of several kinds with *text* in them."""

    def prose(words: int) -> str:
        return " ".join(dice.choices(_WORDS, k=words))

    chat = [{"role": "user" if n % 2 else "assistant", "content": prose(40)} for n in range(8)]
    chat[dice.randrange(8)]["content"] += f" {text} {prose(10)}"
    usage = {"prompt_tokens": 812, "completion_tokens": 96, "total_tokens": 908}
    return [
        ("chat", {"model": "gpt", "max_tokens": 512, "messages": chat, "usage": usage}),
        ("tool call", {"tool": "http", "arguments": json.dumps({"note": prose(5), "body": text})}),
        ("log", "\n".join([f"12:00:0{n} INFO {prose(8)}" for n in range(9)] + [text, prose(8)])),
        ("nested", {"a": [{"b": {"c": [prose(3), {"d": text}]}}]}),
    ]


def detector() -> Callable[[str], list[str]] | None:
    """Return what gives the findings of detect-secrets in a text, if that is installed."""
    try:
        from detect_secrets.core.scan import scan_file
        from detect_secrets.settings import default_settings
    except ImportError:
        return None

    def found(text: str) -> list[str]:
        with tempfile.TemporaryDirectory() as folder, default_settings():
            path = Path(folder) / "payload.txt"
            path.write_text(text)
            return [each.secret_value or "" for each in scan_file(str(path))]

    return found


def least(call: Callable[[], object]) -> float:
    """Return the least microseconds of one call."""
    best, until = math.inf, time.perf_counter() + SECONDS
    while time.perf_counter() < until:
        start = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - start)
    return best * 1e6


def survives(secret: str, recorded: bytes) -> bool:
    return secret.encode() in recorded or orjson.dumps(secret)[1:-1] in recorded


def recall(theirs: Callable[[str], list[str]] | None) -> None:
    """Print the share of planted secrets that each side finds."""
    dice = random.Random(7)
    ours_by: dict[str, list[bool]] = {}
    theirs_by: dict[str, list[bool]] = {}
    for _ in range(ROUNDS):
        for kind, (text, secret) in secrets(dice).items():
            for _, value in payloads(dice, text):
                ours_by.setdefault(kind, []).append(not survives(secret, capture(value)))
                if theirs is not None:
                    plain = value if isinstance(value, str) else json.dumps(value, indent=1)
                    hits = [one for one in theirs(plain) if one and (one in secret or secret in one)]
                    theirs_by.setdefault(kind, []).append(bool(hits))
    print(f"{'planted':24} {'found':>8} {'detect-secrets':>15}")
    for kind, found in [*ours_by.items(), ("all", [*chain.from_iterable(ours_by.values())])]:
        other = theirs_by.get(kind) if kind != "all" else [*chain.from_iterable(theirs_by.values())]
        shown = f"{sum(other) / len(other):15.0%}" if other else f"{'':15}"
        print(f"{kind:24} {sum(found) / len(found):8.0%} {shown}")


def mistakes(theirs: Callable[[str], list[str]] | None) -> None:
    """Print the share of clean payloads in which each side sees a secret."""
    dice = random.Random(8)
    ours, others, count = 0, 0, 0
    for _ in range(ROUNDS):
        for text in look_alikes(dice):
            for _, value in payloads(dice, text):
                count += 1
                ours += b"redacted" in capture(value)
                if theirs is not None:
                    others += bool(theirs(value if isinstance(value, str) else json.dumps(value, indent=1)))
    shown = f"{others / count:15.0%}" if theirs is not None else ""
    print(f"{'look-alikes taken':24} {ours / count:8.0%} {shown}")


def cost(theirs: Callable[[str], list[str]] | None) -> None:
    """Print what redaction adds to capture, in µs and in ns for each byte."""
    dice = random.Random(9)
    off = Limits(redact=Redactor(is_on=False))
    chat = [
        {"role": "user" if n % 2 else "assistant", "content": " ".join(dice.choices(_WORDS, k=48))}
        for n in range(200)
    ]
    planted = [*chat[:100], {"role": "user", "content": f"use sk-proj-{'Ab1' * 14} now"}, *chat[100:]]
    hostile = ["password=" * 1_000] * 25
    values: list[tuple[str, Any]] = [
        ("three small arguments", {"query": "hello", "k": "abc", "opts": {"a": 1}}),
        ("200 messages, 50 KB", chat),
        ("... with one secret", planted),
        ("250 KB, all suspect", hostile),
    ]
    print(f"{'cost, µs':24} {'without':>8} {'first':>8} {'again':>8} {'ns/byte':>8} {'detect-secrets':>15}")
    for name, value in values:
        without = least(lambda value=value: capture(value, off))  # type: ignore[misc]
        again = least(lambda value=value: capture(value))  # type: ignore[misc]
        forgetful = Redactor()
        limits = Limits(redact=forgetful)

        def first(value: Any = value, limits: Limits = limits, forgetful: Redactor = forgetful) -> None:
            forgetful._known.clear()  # noqa: SLF001 - to see what a value costs that was never seen
            capture(value, limits)

        once = least(first)
        size = len(capture(value, off))
        text = json.dumps(value, indent=1)
        other = f"{least(lambda text=text: theirs(text)):15,.0f}" if theirs is not None else ""  # type: ignore[misc]
        print(
            f"{name:24} {without:8.1f} {once:8.1f} {again:8.1f} {(once - without) * 1e3 / size:8.1f} {other}"
        )


def main() -> None:
    theirs = detector()
    recall(theirs)
    mistakes(theirs)
    cost(theirs)


if __name__ == "__main__":
    main()
