"""What models have used, as the payloads of spans tell it: tokens, and what they cost.

In: payloads, which may be anything. Out: a `Usage` for one span, a `Usages` for a run. Only the innermost call of a model
carries counts, so those of a run are a plain sum. It is kept with the run as its spans come, since what was told never changes:
to show a run of 10,000 spans reads none of them for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import sqlite3

    from prefactor_trace.server._fields import Json

# No call uses more, and so many of them still fit into the numbers of a database.
_MOST = 10**12
# Most spans have neither, and need not be read.
USAGE, LATE_USAGE = '"token_usage":', '"$token_usage":'
"""What is in a payload, or in a result, as JSON text, that tells of tokens."""


class Usage(NamedTuple):
    """What one call of a model has used. *usd*: US dollars, None if its payload does not tell."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    usd: float | None


class Usages(NamedTuple):
    """What the calls of a run have used in all. *priced_calls*: how many of *calls* tell what they cost."""

    calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    total_tokens: int = 0
    priced_calls: int = 0
    usd: float = 0.0

    def plus(self, usage: Usage) -> Usages:
        """Count one more call."""
        return Usages(
            self.calls + 1,
            self.prompt_tokens + usage.prompt_tokens,
            self.completion_tokens + usage.completion_tokens,
            self.total_tokens + usage.total_tokens,
            self.priced_calls + (usage.usd is not None),
            self.usd + (usage.usd or 0.0),
        )


def usage_of(payload: Json, result: object = None) -> Usage | None:
    """Read what a call has used, None if nothing tells of tokens. What is no count is as if it were not there.

    *result*: where it stands of a span that was shown while it was running, as its payload was final by then.
    """
    used = _used(payload, "")
    return _used(result, "$") if used is None and isinstance(result, dict) else used


def _used(fields: Json, prefix: str) -> Usage | None:
    told = fields.get(f"{prefix}token_usage")
    if not isinstance(told, dict):
        return None
    prompt, completion, total = map(
        _count, map(told.get, ("prompt_tokens", "completion_tokens", "total_tokens"))
    )
    if prompt is completion is total is None:
        return None
    prompt, completion = prompt or 0, completion or 0
    usd = _usd(fields.get(f"{prefix}metadata"))
    return Usage(prompt, completion, prompt + completion if total is None else total, usd)


def add_to_run(writer: sqlite3.Connection, number: int, usages: Usages) -> None:
    """Add *usages* to what the instance with this *number* has used."""
    changes = ", ".join(f"{name} = {name} + ?" for name in Usages._fields)
    writer.execute(f"UPDATE agent_instances SET {changes} WHERE number = ?", (*usages, number))  # noqa: S608


def _usd(metadata: object) -> float | None:
    cost = metadata.get("cost") if isinstance(metadata, dict) else None
    usd = cost.get("usd") if isinstance(cost, dict) else None
    return float(usd) if isinstance(usd, float) and 0 <= usd < _MOST else _count(usd)


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value < _MOST else None
