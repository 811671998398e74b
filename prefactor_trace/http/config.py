"""How the client reaches the API: `HttpClientConfig`."""

from __future__ import annotations

from dataclasses import dataclass, field

from prefactor_trace.http._protocol import RETRIED_BY_DEFAULT, is_sendable_token, root_of

__all__ = ["HttpClientConfig"]

_KEY_PREFIX_CHARACTERS = 31  # what 64 characters leave beside a hyphen and a UUID without hyphens


@dataclass
class HttpClientConfig:
    """The client's settings. Fields and defaults are those of `prefactor_http.HttpClientConfig`.

    Attributes:
        api_url: Root address of the API, such as `https://app.prefactorai.com`.
        api_token: Account or deployment token. Never shown by `repr`.
        request_timeout: Seconds for one attempt, from connecting to the last byte of the answer.
        connect_timeout: Seconds for connecting.
        max_retries: Attempts after the first one.
        initial_retry_delay: Seconds before the first of them; a quarter more or less, by chance.
        max_retry_delay: Seconds before an attempt at most. If the platform asks for more by Retry-After, the
            client gives up instead of waiting.
        retry_multiplier: By what the delay grows from one attempt to the next.
        retry_on_status_codes: The answers that are worth another attempt. No answer at all always is.
        default_idempotency_key: Beginning of the idempotency keys that the client makes, 31 characters at most:
            a run's name in it makes them easy to find in the platform's log.

    Raises:
        ValueError: A value that cannot work. The message never shows the token.
    """

    api_url: str
    api_token: str = field(repr=False)
    request_timeout: float = 30.0
    connect_timeout: float = 10.0
    max_retries: int = 3
    initial_retry_delay: float = 1.0
    max_retry_delay: float = 60.0
    retry_multiplier: float = 2.0
    retry_on_status_codes: tuple[int, ...] = RETRIED_BY_DEFAULT
    default_idempotency_key: str | None = None

    def __post_init__(self) -> None:
        """Refuse what cannot work."""
        try:
            root_of(self.api_url or "")
        except ValueError as error:
            raise ValueError(f"api_url {error}") from None
        _require(
            is_sendable_token(self.api_token), "api_token must be a token: no space, no line end, not empty"
        )
        _require(self.request_timeout > 0, "request_timeout must be positive")
        _require(self.connect_timeout > 0, "connect_timeout must be positive")
        is_count = isinstance(self.max_retries, int) and self.max_retries >= 0
        _require(is_count, "max_retries must be a whole number, and not negative")
        _require(self.initial_retry_delay > 0, "initial_retry_delay must be positive")
        _require(
            self.initial_retry_delay <= self.max_retry_delay,
            "max_retry_delay must be at least initial_retry_delay",
        )
        _require(self.retry_multiplier >= 1, "retry_multiplier must be at least 1")
        _require(
            len(self.default_idempotency_key or "") <= _KEY_PREFIX_CHARACTERS,
            f"default_idempotency_key must have at most {_KEY_PREFIX_CHARACTERS} characters",
        )


def _require(met: bool, otherwise: str) -> None:
    if not met:
        raise ValueError(otherwise)
