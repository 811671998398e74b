"""The local platform: Prefactor's HTTP API over a SQLite file, with a web viewer, for one machine.

`LocalPlatform` runs it for a `with` block; `serve` runs it for a terminal. Needs the extra `local`.
"""

from prefactor_trace.server._migrations import NewerDatabaseError
from prefactor_trace.server._serve import LocalPlatform, serve

__all__ = ["LocalPlatform", "NewerDatabaseError", "serve"]
