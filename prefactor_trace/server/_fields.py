"""Reads what a request says: turns raw JSON values into checked ones, and wrong ones into a `Refusal`.

Pure: no database, no HTTP. `Refusal` is the only error the platform answers on purpose; its shape is the error
envelope of the API (contract section 1.5).
"""

from __future__ import annotations

import contextlib
import re
from datetime import datetime, timezone
from typing import Any, NamedTuple

from prefactor_trace import _ids

Json = dict[str, Any]

_MAX_KEY_LENGTH = 64  # contract section 1.7
MAX_PAGE_SIZE = 100  # contract section 5.1
_DEFAULT_PAGE_SIZE = 50  # unpublished
_UTC_MICROSECONDS = 27  # characters in 2026-04-13T01:14:30.522000Z, the form we store and answer
_RFC_3339 = re.compile(
    r"(\d{4}-\d\d-\d\d)[Tt ](\d\d:\d\d:\d\d)(?:\.(\d{1,9}))?([Zz]|[+-]\d\d:\d\d)", flags=re.ASCII
)


class Refusal(Exception):  # noqa: N818 - an answer, not a mistake
    """A request the platform will not do; nothing of it is stored.

    Attributes:
        status: HTTP status.
        code: The API's error word, such as `not_found` or `invalid_action`.
        message: One sentence for a person.
        errors: For validation errors, field name to a list of messages (or to a further such map).
    """

    def __init__(self, status: int, code: str, message: str, errors: Json | None = None) -> None:
        super().__init__(status, code, message, errors)
        self.status = status
        self.code = code
        self.message = message
        self.errors = errors

    def __str__(self) -> str:
        return self.message

    def body(self) -> Json:
        """Return the error envelope."""
        envelope: Json = {"status": "error", "code": self.code, "message": self.message}
        if self.errors is not None:
            envelope["errors"] = self.errors
        return envelope


class NotFound(Refusal):
    """Something that is not there."""

    def __init__(self, what: str) -> None:
        super().__init__(404, "not_found", f"{what} was not found")


class InvalidAction(Refusal):
    """An action that the present state does not allow."""

    def __init__(self, message: str) -> None:
        super().__init__(409, "invalid_action", message)


def invalid(**errors: Any) -> Refusal:
    """Make the refusal for wrong fields; each keyword is a field and its message, or a map of its own fields."""
    listed = {field: [said] if isinstance(said, str) else said for field, said in errors.items()}
    return Refusal(422, "validation_errors", "the request is not valid", listed)


def now() -> str:
    """Return the present time as the API writes it."""
    return _written(datetime.now(timezone.utc))


def time(fields: Json, field: str, default: str) -> str:
    """Read an RFC 3339 timestamp with any offset; missing or null gives *default*."""
    value = fields.get(field)
    if value is None:
        return default
    if not isinstance(value, str):
        raise invalid(**{field: "is not a string"})
    if len(value) == _UTC_MICROSECONDS and value[10] == "T" and value[19] == "." and value[26] == "Z":
        with contextlib.suppress(ValueError):
            datetime.fromisoformat(value[:26])
            return value  # as we would write it, which is the form nearly all of them have
    if said := _RFC_3339.fullmatch(value):
        return _read_time(field, *said.groups())
    raise invalid(**{field: "is not a date-time with an offset, such as 2026-04-13T01:14:30.522Z"})


def _read_time(field: str, day: str, clock: str, fraction: str | None, offset: str) -> str:
    microseconds = (fraction or "").ljust(6, "0")[:6]
    offset = "+00:00" if offset in "Zz" else offset
    try:
        moment = datetime.fromisoformat(f"{day}T{clock}.{microseconds}{offset}")
        return _written(moment.astimezone(timezone.utc))
    except (ValueError, OverflowError):
        raise invalid(**{field: "is not a date-time"}) from None


def _written(moment: datetime) -> str:
    return moment.replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def text(fields: Json, field: str) -> str:
    """Read a required, non-empty string."""
    value = fields.get(field)
    if not isinstance(value, str) or not value:
        raise invalid(**{field: "is required" if value in (None, "") else "is not a string"})
    return value


def optional_text(fields: Json, field: str) -> str | None:
    """Read a string that may be missing or null."""
    value = fields.get(field)
    if value is not None and not isinstance(value, str):
        raise invalid(**{field: "is not a string"})
    return value


def mapping(fields: Json, field: str) -> Json:
    """Read a required object."""
    value = fields.get(field)
    if not isinstance(value, dict):
        raise invalid(**{field: "is required" if value is None else "is not an object"})
    return value


def optional_mapping(fields: Json, field: str) -> Json | None:
    """Read an object that may be missing or null."""
    return None if fields.get(field) is None else mapping(fields, field)


def one_of(fields: Json, field: str, words: tuple[str, ...], default: str | None = None) -> str:
    """Read one of *words*; missing or null gives *default*, or is refused if there is none."""
    value = fields.get(field)
    if value is None:
        value = default
    if value not in words:
        raise invalid(**{field: "is required" if value is None else f"is not one of {', '.join(words)}"})
    return str(value)


def flag(fields: Json, field: str, *, default: bool) -> bool:
    """Read a boolean; missing or null gives *default*."""
    value = fields.get(field)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise invalid(**{field: "is not a boolean"})
    return value


def own_id(fields: Json, field: str, partition: str) -> str:
    """Read a client-made id, which must be a PFID of *partition*; make one if there is none."""
    value = fields.get(field)
    if value is None:
        return _ids.generate(partition)
    if not isinstance(value, str) or not _ids.is_pfid(value):
        raise invalid(**{field: "is not a PFID"})
    if _ids.partition_of(value) != partition:
        raise invalid(**{field: f"is not in the account's partition {partition}"})
    return value


def external_identifier(fields: Json, *, instead_of: str) -> str:
    """Read the external identifier that is given where *instead_of* could be."""
    if fields.get("external_identifier") is None:
        raise invalid(**{instead_of: "is required, or external_identifier instead"})
    return text(fields, "external_identifier")


def idempotency_key(fields: Json) -> str | None:
    """Read the key that makes a change safe to repeat: beside `details`, or inside, where prefactor-http puts it."""
    key = fields.get("idempotency_key")
    if key is None:
        details = fields.get("details")
        key = details.get("idempotency_key") if isinstance(details, dict) else None
    if key is not None and not (isinstance(key, str) and 0 < len(key) <= _MAX_KEY_LENGTH):
        raise invalid(idempotency_key=f"is not a string of 1 to {_MAX_KEY_LENGTH} characters")
    return key


def key_reused() -> Refusal:
    """Make the refusal for a key that came before with another request.

    Its code is not `invalid_action`, because clients take that for "done already".
    """
    return Refusal(
        409, "idempotency_conflict", "this idempotency_key was used for another request; make a new one"
    )


class Page(NamedTuple):
    """Which part of a list is asked for."""

    offset: int
    size: int

    def describe(self, item_count: int, items_here: int) -> Json:
        """Return the `pagination` object of a list answer (contract section 5.1)."""
        following = self.offset + items_here
        return {
            "item_count": item_count,
            "item_start": self.offset + 1 if items_here else 0,
            "item_end": following if items_here else 0,
            "page_count": -(-item_count // self.size),
            "page_index": self.offset // self.size + 1,
            "page_offset": self.offset,
            "page_size": self.size,
            "next_page_offset": following if items_here and following < item_count else None,
            "previous_page_offset": max(0, self.offset - self.size) if self.offset else None,
        }


def page(fields: Json) -> Page:
    """Read `pagination[offset]` and `pagination[page_size]`; a size above the maximum is cut to it."""
    nested = fields.get("pagination")
    inside = nested if isinstance(nested, dict) else {}
    offset = _count(fields.get("pagination[offset]", inside.get("offset")), "pagination[offset]", 0)
    size = _count(
        fields.get("pagination[page_size]", inside.get("page_size")),
        "pagination[page_size]",
        _DEFAULT_PAGE_SIZE,
    )
    if size == 0:
        raise invalid(**{"pagination[page_size]": "is less than 1"})
    return Page(offset, min(size, MAX_PAGE_SIZE))


def _count(value: Any, field: str, default: int) -> int:
    if value is None:
        return default
    digits = str(value)
    if isinstance(value, bool) or not (digits.isascii() and digits.isdigit() and len(digits) < 16):
        raise invalid(**{field: "is not a whole number of 0 or more"})
    return int(digits)


class Order(NamedTuple):
    """How a list is sorted; *field* is always one of a fixed set of columns, never the client's own text."""

    field: str
    direction: str

    def describe(self) -> Json:
        """Return the `sorting` object of a list answer."""
        return {"field": self.field, "direction": self.direction, "nulls": "auto"}


def order(fields: Json, columns: tuple[str, ...], default: Order) -> Order:
    """Read `sorting=-name` or `sorting[field]=name&sorting[direction]=desc`; unknown fields are ignored."""
    said = fields.get("sorting")
    inside = said if isinstance(said, dict) else {}
    field = fields.get("sorting[field]", inside.get("field"))
    direction = fields.get("sorting[direction]", inside.get("direction"))
    if isinstance(said, str):
        field, direction = said.lstrip("+-"), "desc" if said.startswith("-") else "asc"
    if field not in columns:
        return default
    return Order(str(field), "desc" if direction == "desc" else "asc")
