"""When a failed call is tried again. The only place of the client that retries."""

from __future__ import annotations

import itertools
import random
from typing import TYPE_CHECKING, Any

from prefactor_trace.http.exceptions import PrefactorRetryExhaustedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from prefactor_trace.http.config import HttpClientConfig

__all__ = ["RetryHandler"]

_chance = random.Random()  # noqa: S311 - of our own, so that a program's seeded sequence stays as it is


class RetryHandler:
    """Calls an operation until it works, with growing delays."""

    def __init__(self, config: HttpClientConfig) -> None:
        self.config = config

    async def execute(
        self,
        operation: Callable[..., Any],
        is_retryable: Callable[[Exception], bool],
        *args: Any,
        **kwargs: Any,
    ) -> Any:
        """Return what `await operation(*args, **kwargs)` returns.

        Args:
            operation: What to call.
            is_retryable: Says of an error whether another attempt makes sense.
            *args: Arguments of the operation.
            **kwargs: Arguments of the operation.

        Raises:
            PrefactorRetryExhaustedError: The last attempt failed too, or the platform asked to wait longer than
                `max_retry_delay`. With `max_retries=0` the error itself is raised.
        """
        import anyio

        for attempt in itertools.count():
            try:
                return await operation(*args, **kwargs)
            except Exception as error:
                if not is_retryable(error) or self.config.max_retries == 0:
                    raise
                asked = getattr(error, "retry_after", None) or 0.0
                if attempt == self.config.max_retries or asked > self.config.max_retry_delay:
                    raise _exhausted(attempt + 1, error, asked) from error
                delay = max(self._delay(attempt), asked)
            await anyio.sleep(delay)
        raise AssertionError  # the loop has no end of its own

    def _delay(self, attempt: int) -> float:
        longest = self.config.max_retry_delay
        try:
            delay = self.config.initial_retry_delay * float(self.config.retry_multiplier) ** attempt
        except OverflowError:
            delay = longest
        return min(delay * _chance.uniform(0.75, 1.25), longest)


def _exhausted(attempts: int, error: Exception, asked: float) -> PrefactorRetryExhaustedError:
    wait = f"; it asked to wait {asked:g} s" if asked else ""
    return PrefactorRetryExhaustedError(f"failed after {attempts} attempts: {error}{wait}", error)
