"""The words of the API, and how answers with words of a newer platform are read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from pydantic_core import core_schema

if TYPE_CHECKING:
    from pydantic import GetCoreSchemaHandler

__all__ = ["AgentStatus", "FinishStatus", "InstancePurpose"]

AgentStatus: TypeAlias = Literal["pending", "active", "complete", "failed", "cancelled", "terminated"]
"""How an instance or a span stands. `terminated` is the platform's alone (contract section 2.1)."""

FinishStatus: TypeAlias = Literal["complete", "failed", "cancelled"]
"""How an instance or a span can be finished."""

InstancePurpose: TypeAlias = Literal["live", "smoke_test", "eval"]
"""Why an instance ran; the platform's default is `live`."""


class Words:
    """Marks a field of an answer: the words in its type are the known ones, and a new one is kept as it came.

    Type checkers see the known words, so a `match` over them is checked; at run time the value may be any string.
    """

    def __get_pydantic_core_schema__(
        self, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        """Read the known words, or else any string."""
        return core_schema.union_schema([handler(source), core_schema.str_schema()], mode="left_to_right")
