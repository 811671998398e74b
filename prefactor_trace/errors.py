"""The errors a user of the library can meet.

PrefactorTraceError
├── ConfigurationError    a wrong setting; raised by `configure`, never later
├── InstanceTerminated    the platform has stopped this run
└── UsageError            a call that cannot work; raised only with `configure(on_error="raise")`

Nothing else of ours reaches the agent: what goes wrong while recording or sending is counted in the ledger
and logged once.
"""

from __future__ import annotations

__all__ = ["ConfigurationError", "InstanceTerminated", "PrefactorTraceError", "UsageError"]


class PrefactorTraceError(Exception):
    """Base of all errors raised by prefactor_trace."""


class ConfigurationError(PrefactorTraceError, ValueError):
    """A setting that cannot work. The message names the setting and the cure, never a secret value."""


class InstanceTerminated(PrefactorTraceError):
    """The platform has terminated this run, so the agent is asked to stop.

    Raised when the next span of the instance begins, and by `Instance.check`. Let it pass: it leaves the
    `instance` block unchanged, and nothing is finished over the state that the platform holds already.

    Attributes:
        instance_id: The run that was stopped.
        reason: What the person or policy that stopped it gave as reason, if anything.
    """

    def __init__(self, instance_id: str, reason: str | None = None) -> None:
        super().__init__(instance_id, reason)
        self.instance_id = instance_id
        self.reason = reason

    def __str__(self) -> str:
        why = f": {self.reason}" if self.reason else ""
        return f"instance {self.instance_id} was terminated by the platform{why}"


class UsageError(PrefactorTraceError, ValueError):
    """A call of ours that cannot work, such as a quality that is not declared. The message says what to do.

    Raised only with `configure(on_error="raise")`, where the call stands; otherwise it is counted in the ledger's
    notes and logged. It is never about delivery, or about anything the platform says.
    """
