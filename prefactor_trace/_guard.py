"""The guard: an error of ours ends here. It is counted, logged once a kind, and the agent goes on.

Used as `except Exception: _guard.failed("open a span")`, at the few places where the agent's thread enters us.
"""

from __future__ import annotations

import logging
from collections import Counter

logger = logging.getLogger("prefactor_trace")

errors: Counter[str] = Counter()
"""How often each thing failed, for the ledger's notes."""

strict = False
"""True lets the error out: our own tests would otherwise pass over it."""


def refused(doing: str, kind: str, message: str) -> None:
    """Count a wrong call of ours; log it if it is the first of its *kind*."""
    remark = f"could not {doing}: {kind}"
    errors[remark] += 1
    if errors[remark] == 1:
        logger.error("could not %s: %s", doing, message)


def failed(doing: str) -> None:
    """Count the exception being handled; log it if it is the first of *doing*."""
    errors[f"internal error: {doing}"] += 1
    if strict:
        raise  # noqa: PLE0704 - called from an except block only
    if errors[f"internal error: {doing}"] == 1:
        logger.error("could not %s; the program goes on without it", doing, exc_info=True)  # noqa: LOG014 - as above
