"""HTML as values, and the plain text forms of times, durations and JSON.

In: tag and attribute names written in our own source, and anything at all as content. Out: `Html`, the only thing
sent without escaping, which only `element` and `document` make. So a page cannot forget to escape, and what an
agent recorded stays text: no markup, no link, no control character that reorders or hides what stands beside it.
Pure; no request, no store, no clock.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from datetime import datetime, timedelta, timezone
from functools import lru_cache
from html import escape
from typing import TypeAlias
from urllib.parse import quote, urlencode

NOTHING = "\N{EN DASH}"  # stands where there is no value

# What a reader would not see, or would be deceived by: C0 and C1 controls (but tab and line ends), zero-width
# spaces, bidirectional overrides, invisible tag characters, noncharacters, and halves of surrogate pairs, which
# UTF-8 cannot carry. Zero-width joiners stay: emoji and Persian need them.
_INVISIBLE_CHARACTERS = (
    "\0-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200b\u202a-\u202e\u2060-\u2069\ud800-\udfff\ufeff\ufffe\uffff"
    "\U000e0000-\U000e007f"
)
_INVISIBLE = re.compile(f"[{_INVISIBLE_CHARACTERS}]")
_NOT_PLAIN = re.compile(f"[{_INVISIBLE_CHARACTERS}&<>\"'\r]")
_ATTRIBUTE = re.compile(r"[a-zA-Z][a-zA-Z0-9-]*")
# No second slash, no backslash, no white space: browsers read another host out of these.
_ADDRESS = re.compile(r"/(?!/)[!-\[\]-~]*|[?#][!-~]*")
_ADDRESSES = frozenset({"action", "formaction", "href", "src"})
_VOID = frozenset({"img", "input", "link", "meta"})
_UNESCAPABLE = frozenset({"script", "style"})  # inside these, HTML does not decode what `escape` writes

_JSON_TOKEN = re.compile(
    r'(?P<key>"(?:[^"\\]|\\.)*")(?=:)|(?P<string>"(?:[^"\\]|\\.)*")(?P<end>,?\n?)'
    r"|(?P<number>-?\d[\d.eE+-]*)|(?P<word>\b(?:true|false|null)\b)"
)
_JSON_ESCAPE = re.compile(r"(\\.)")
# Beyond this many characters the elements cost the browser more than they help the reader.
_LONGEST_COLOURED_JSON = 200_000

_EPOCH = datetime(1970, 1, 1, tzinfo=timezone.utc)
_MICROSECOND = timedelta(microseconds=1)


class Html:
    """Finished markup. Made by `element` and `document` only."""

    __slots__ = ("_markup",)

    def __init__(self, markup: str) -> None:
        self._markup = markup

    def __str__(self) -> str:
        return self._markup


Content: TypeAlias = "Html | str | int | Iterable[Content] | None"
Attribute: TypeAlias = "str | int | bool | None"


def element(tag: str, /, *content: Content, **attributes: Attribute) -> Html:
    """Make an element. `class_` means class, `aria_label` means aria-label; None and False leave an attribute out.

    Raises ValueError for what the viewer must never send: inline script or style, and addresses outside this server.
    """
    start = f"<{tag}{''.join([_attribute(name, value) for name, value in attributes.items()])}>"
    if tag in _VOID:
        return Html(start)
    inside = _markup(content)
    if inside and tag in _UNESCAPABLE:
        raise ValueError(f"<{tag}> with content would be inline; put it into the static folder")
    return Html(f"{start}{inside}</{tag}>")


def document(head: Content, body: Content) -> str:
    """Make the whole page."""
    page = element("html", element("head", head), element("body", body), lang="en")
    return f"<!doctype html>\n{page}\n"


def path(*segments: str, **query: str | int | None) -> str:
    """Make an address on this server. Query values of None or an empty text are left out."""
    told = {name: value for name, value in query.items() if value not in (None, "")}
    return (
        "/"
        + "/".join(quote(segment, safe="") for segment in segments)
        + (f"?{urlencode(told)}" if told else "")
    )


def visible(text: str) -> str:
    r"""Write characters that cannot be seen as their JSON escapes, such as `\u202e`."""
    return _INVISIBLE.sub(lambda found: json.dumps(found[0])[1:-1], text)


def cut(text: str, length: int) -> str:
    """Shorten *text* to *length* characters, and say so by an ellipsis."""
    return text if len(text) <= length else text[: length - 1] + "…"


def pretty_json(value: object) -> Html:
    """Show *value* as indented JSON. The text in the page is valid JSON, so it can be copied; colours are spans."""
    # `visible` keeps it valid: its escapes are JSON's, and such characters only stand inside strings.
    text = visible(json.dumps(value, indent=2, ensure_ascii=False))
    return element(
        "pre", element("code", text if len(text) > _LONGEST_COLOURED_JSON else _coloured(text)), class_="json"
    )


def moment(timestamp: object) -> int | None:
    """Read an ISO 8601 timestamp as microseconds since 1970. None if it is none."""
    try:
        # Python 3.10 does not read the Z.
        read = datetime.fromisoformat(str(timestamp).replace("Z", "+00:00"))
        in_utc = read.replace(tzinfo=read.tzinfo or timezone.utc).astimezone(timezone.utc)
        return (in_utc - _EPOCH) // _MICROSECOND
    except (ValueError, OverflowError):
        return None


def time_of(timestamp: object) -> Content:
    """Show a timestamp in UTC with milliseconds. What is not a timestamp is shown as it came."""
    at = moment(timestamp)
    if at is None:
        return NOTHING if timestamp is None else str(timestamp)
    read = _EPOCH + at * _MICROSECOND
    return element("time", read.isoformat(" ", "milliseconds")[:23], datetime=read.isoformat())


def duration(microseconds: int) -> str:
    """Write a length of time for people: `420 µs`, `12.3 ms`, `1.24 s`, `3 m 12 s`, `2 h 5 m`, `3 d 4 h`."""
    if microseconds < 1_000:
        return f"{microseconds} µs"
    if microseconds < 999_500:
        return f"{_three_digits(microseconds / 1e3)} ms"
    if microseconds < 59_950_000:
        return f"{_three_digits(microseconds / 1e6)} s"
    seconds = round(microseconds / 1e6)
    if seconds < 3_600:
        return f"{seconds // 60} m {seconds % 60} s"
    if seconds < 86_400:
        return f"{seconds // 3_600} h {seconds % 3_600 // 60} m"
    return f"{seconds // 86_400} d {seconds % 86_400 // 3_600} h"


def money(usd: float) -> str:
    """Write an amount of US dollars as small as those of calls: `$12.30`, `$0.0012`, `$0.000034`."""
    if usd == 0 or usd >= 0.00005:
        return f"${usd:,.{2 if usd >= 0.99995 else 4}f}" if usd else "$0"
    return f"${usd:.{1 - math.floor(math.log10(usd))}f}" if usd >= 1e-7 else "<$0.0000001"


def _three_digits(number: float) -> str:
    return f"{number:.{2 if number < 9.995 else 1 if number < 99.95 else 0}f}"


def _markup(content: Content) -> str:
    if isinstance(content, str):
        if not _NOT_PLAIN.search(content):
            return content
        # A bare carriage return would be read back as a line feed.
        return escape(visible(content)).replace("\r", "&#13;")
    if isinstance(content, Html):
        return str(content)
    if content is None or content is False:  # so that `wanted and element(...)` can stand in a list of parts
        return ""
    if isinstance(content, Iterable):
        return "".join([_markup(part) for part in content])
    return str(content)


def _attribute(name: str, value: Attribute) -> str:
    if value is None or value is False:
        return ""
    spelled = _spelled(name)
    text = "" if value is True else str(value)
    if spelled in _ADDRESSES and not _ADDRESS.fullmatch(text):
        raise ValueError(f"{spelled}={text!r} does not stay on this server")
    return f' {spelled}="{_markup(text)}"'


@lru_cache(maxsize=256)
def _spelled(name: str) -> str:
    spelled = name.rstrip("_").replace("_", "-")
    if not _ATTRIBUTE.fullmatch(spelled) or spelled.startswith("on") or spelled in {"style", "srcdoc"}:
        raise ValueError(f"the viewer has no attribute {spelled!r}")
    return spelled


def _coloured(text: str) -> Iterable[Content]:
    end = 0
    for found in _JSON_TOKEN.finditer(text):
        yield text[end : found.start()]
        yield _string(found) if found["string"] else element("span", found[0], class_=found.lastgroup)
        end = found.end()
    yield text[end:]


def _string(found: re.Match[str]) -> Content:
    r"""Show a string value; one with line breaks as a block, where the style sheet breaks the line after each `\n`."""
    value, end = found["string"], found["end"]
    if "\\n" not in value:
        return element("span", value, class_="string"), end
    parts = [
        element("span", part, class_="break") if part == "\\n" else part for part in _JSON_ESCAPE.split(value)
    ]
    level = min(_level(found), 8)
    return element("span", element("span", parts, class_="string"), end, class_=f"lines level-{level}")


def _level(found: re.Match[str]) -> int:
    """Count by how many levels the line of *found* is indented."""
    line = found.string[found.string.rfind("\n", 0, found.start()) + 1 : found.start()]
    return (len(line) - len(line.lstrip(" "))) // 2
