"""What a call has cost, by the prices of the package `genai-prices`, if that is installed."""

from __future__ import annotations

import functools
import importlib.util
from datetime import datetime, timezone
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Mapping

# Our count → the one of genai-prices.
_COUNTS = {
    "prompt_tokens": "input_tokens",
    "completion_tokens": "output_tokens",
    "cache_read_tokens": "cache_read_tokens",
    "cache_audio_read_tokens": "cache_audio_read_tokens",
    "cache_write_tokens": "cache_write_tokens",
    "input_audio_tokens": "input_audio_tokens",
    "output_audio_tokens": "output_audio_tokens",
}


@functools.cache
def load() -> Any:
    """Return the package, None if it is not installed. Takes 0.1 s, once: done before the first call is waiting."""
    _source()
    if importlib.util.find_spec("genai_prices") is None:
        return None
    import genai_prices

    genai_prices.calc_price(
        genai_prices.Usage(input_tokens=1), "gpt-4o", provider_id="openai"
    )  # loads its data
    return genai_prices


@functools.cache
def _source() -> str:
    from importlib import metadata

    return " ".join(f"genai-prices {each.version}" for each in metadata.distributions(name="genai-prices"))


def cost(priced_as: tuple[str, str] | None, usage: Mapping[str, int]) -> dict[str, Any] | None:
    """Return the price in US dollars of *usage*, with its parts, its date and its source; None if it is not known.

    *priced_as*: provider and model. Never raises: a price that cannot be had is none.
    """
    if priced_as is None:
        return None
    provider, model = priced_as
    try:
        prices = load()
        if prices is None:
            return None
        counts = {theirs: usage[ours] for ours, theirs in _COUNTS.items() if ours in usage}
        now = datetime.now(timezone.utc)
        price = prices.calc_price(
            prices.Usage(**counts), model, provider_id=provider, genai_request_timestamp=now
        )
        updated = price.auto_update_timestamp
        return {
            "usd": float(price.total_price),
            "input_usd": float(price.input_price),
            "output_usd": float(price.output_price),
            "date": (updated or now).date().isoformat(),
            "source": _source(),
        }
    except Exception:
        return None
