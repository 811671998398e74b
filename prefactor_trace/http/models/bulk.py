"""Many calls in one request (contract section 4)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field, field_validator

from prefactor_trace.http.models.base import ApiModel

__all__ = ["BulkItem", "BulkOutput", "BulkRequest", "BulkResponse"]


class BulkItem(ApiModel):
    """One call. What else it takes, path and query parameters included, stands beside these two.

    Attributes:
        type: The call, `_type` on the wire and when it is made: `agent_instances/register`, `agent_spans/create`, …
        idempotency_key: 8 to 64 characters, unique in the request; the answer is found under it.
    """

    type: str = Field(alias="_type")
    idempotency_key: str = Field(..., min_length=8, max_length=64)

    if TYPE_CHECKING:  # type checkers would take the fields for all there is

        def __init__(self, *, _type: str, idempotency_key: str, **parameters: Any) -> None: ...


class BulkRequest(ApiModel):
    """The calls, at least one. Each is done in a transaction of its own, in order, until one fails."""

    items: list[BulkItem] = Field(..., min_length=1)

    @field_validator("items")
    @classmethod
    def validate_unique_idempotency_keys(cls, items: list[BulkItem]) -> list[BulkItem]:
        """Refuse a key that stands twice: the answers could not be told apart."""
        if len({item.idempotency_key for item in items}) < len(items):
            raise ValueError("an idempotency key stands twice; each item needs its own")
        return items


class BulkOutput(ApiModel):
    """What became of one call: its answer, field by field, or `code`, `message` and perhaps `errors`.

    Attributes:
        status: `success` or `error`.
    """

    status: str


class BulkResponse(ApiModel):
    """The answers to a bulk request.

    Attributes:
        status: `success`, if the request as a whole was understood.
        outputs: Idempotency key → what became of the call. Calls after the first that failed are missing: they
            were not attempted.
    """

    status: str = "success"
    outputs: dict[str, BulkOutput]
