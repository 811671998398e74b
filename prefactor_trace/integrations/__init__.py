"""Calls of other libraries record themselves: `instrument()`, and every call of an LLM is a span.

Each integration is one module in this folder, or in a package of others that names it as an entry point of the group
`prefactor_trace.integrations`. It holds data and pure functions, and imports nothing of its SDK:

    REQUIRES   "openai>=1.99,<4": the distribution, and the versions it is tested with
    TAPS       where the SDK is tapped, and how its calls are read: see `_tap.Tap`
    TYPES      the span types it records, so that runs declare them

One whose SDK has callbacks of its own has, instead of TAPS or beside them, `start(switch)`, which registers them and
returns a function that takes them away, and `MODULE`, the module that must have been imported by then. `NEEDS`, if it has
that, are the places in the SDK that `start` makes use of, written as those of taps.
"""

from __future__ import annotations

import functools
import importlib
import logging
import pkgutil
import re
import sys
import threading
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from prefactor_trace import _guard, _schema
from prefactor_trace.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from prefactor_trace.integrations._source import Sources
    from prefactor_trace.integrations._tap import Asked, Reply, Tap

__all__ = [
    "Asked",
    "Instrumented",
    "Integration",
    "Reply",
    "Tap",
    "available",
    "instrument",
    "report",
    "uninstrument",
]

logger = logging.getLogger("prefactor_trace")

_GROUP = "prefactor_trace.integrations"

State: TypeAlias = Literal["on", "waiting", "missing", "failed", "gave up", "off"]


class Integration(NamedTuple):
    """Where one integration stands.

    Attributes:
        name: What `instrument` calls it.
        state: "on": its calls are recorded. "waiting": they will be, when the SDK is imported. "missing": the SDK is
            not installed. "failed": the SDK is not as expected. "gave up": too many calls could not be read, so it
            has switched itself off. "off": it was not asked for.
        detail: Version of the SDK, and what there is to say.
    """

    name: str
    state: State
    detail: str

    @property
    def is_taken(self) -> bool:
        """Whether its calls are, or will be, recorded."""
        return self.state in ("on", "waiting")


class Instrumented(tuple[Integration, ...]):
    """What `instrument` did: an `Integration` for each name; by name, too: `done["openai"].state`."""

    __slots__ = ()

    def __getitem__(self, key: Any) -> Any:
        """Return the integration of that name, or at that place."""
        if isinstance(key, str):
            return next(each for each in self if _as_one(each.name) == _as_one(key))
        return super().__getitem__(key)

    @property
    def taken(self) -> tuple[str, ...]:
        """The names whose calls are, or will be, recorded."""
        return tuple(each.name for each in self if each.is_taken)

    @property
    def not_taken(self) -> dict[str, str]:
        """The other names, and why."""
        return {each.name: f"{each.state}: {each.detail}" for each in self if not each.is_taken}

    def __repr__(self) -> str:
        if not self:
            return "nothing to instrument: no SDK is installed that is known here"
        width = max(len(each.name) for each in self)
        return "\n".join(f"{each.name:<{width}}  {each.state:<8}{each.detail}".rstrip() for each in self)


class _Integrated:
    """One integration in this process: its taps, and whether they are in place."""

    def __init__(self, name: str, module: Any) -> None:
        from prefactor_trace.integrations._tap import Switch

        self.name = name
        self._module = module
        self.requires = module.REQUIRES
        self._requires = re.split(r"(?=[<>=!~ ;\[])", module.REQUIRES, maxsplit=1)
        self._switch = Switch(name)
        self._undo: list[Callable[[], object]] = []
        self._waiting: list[Callable[[], None]] = []
        self._trouble: list[str] = []
        self.is_wanted = False

    @property
    def version(self) -> str | None:
        """The installed version of the SDK."""
        from importlib import metadata  # which loads the package `email`

        try:
            return metadata.version(self._requires[0])
        except metadata.PackageNotFoundError:
            return None

    def report(self) -> Integration:
        """Say where it stands."""
        version = self.version
        if version is None:
            return Integration(self.name, "missing", f"{self._requires[0]} is not installed")
        known = (
            "" if _is_in(version, "".join(self._requires[1:])) else f" (tested with {self._module.REQUIRES})"
        )
        detail = f"{self._requires[0]} {version}{known}"
        if not self.is_wanted:
            return Integration(self.name, "off", detail)
        if self._switch.has_given_up:
            return Integration(self.name, "gave up", f"{detail}: too many calls could not be read")
        if self._trouble:
            return Integration(self.name, "failed", f"{detail}: {'; '.join(self._trouble)}")
        # Of several modules of an SDK, some may never be wanted.
        return Integration(self.name, "waiting" if self._waiting and not self._undo else "on", detail)

    def fits(self, sources: Sources) -> bool:
        """Say whether the source of the SDK has all that is tapped. Imports nothing; False if that cannot be told."""
        places = [tap.where for tap in getattr(self._module, "TAPS", ()) if not tap.is_optional]
        if hasattr(self._module, "start"):
            places += getattr(self._module, "NEEDS", [""])  # who does not say what is asked in another way
        return all(map(sources.has, places))

    def wait_for_imports(self) -> None:
        """Let another thread that is importing the SDK just now come to its end."""
        for module, _ in self._acts():
            if module in sys.modules:
                importlib.import_module(module)

    def import_now(self) -> None:
        """Import what the taps belong to; what cannot be imported and is not optional is trouble."""
        taps = getattr(self._module, "TAPS", ())
        needed = {tap.where.partition(":")[0] for tap in taps if not tap.is_optional}
        for module, _ in self._acts():
            try:
                importlib.import_module(module)
            except Exception as error:
                if not taps or module in needed:
                    self._trouble.append(f"{module} cannot be imported: {type(error).__name__}: {error}")

    def start(self) -> None:
        """Place the taps, or wait for the modules they belong to."""
        from prefactor_trace.integrations._tap import Switch

        if self.is_wanted or self.version is None:
            return
        self.is_wanted = True
        # That of an earlier time stays off: its taps may still stand below somebody's.
        self._switch = Switch(self.name)
        for span_type in self._module.TYPES:
            _schema.declare(span_type)
        for module, act in self._acts():
            if module in sys.modules:
                act()
            else:
                self._wait(module, act)

    def _wait(self, module: str, act: Callable[[], None]) -> None:
        from prefactor_trace.integrations import _price
        from prefactor_trace.integrations._patch import finder

        def came() -> None:
            _price.load()
            with _lock:
                if came in self._waiting:
                    self._waiting.remove(came)
                    act()

        self._waiting.append(came)
        finder.when_imported(module, came)

    def _acts(self) -> Iterator[tuple[str, Callable[[], None]]]:
        """Yield what is to be done, with the module that must be there."""
        if hasattr(self._module, "start"):
            yield self._module.MODULE, self._start_own
        modules: dict[str, list[Any]] = {}
        for tap in getattr(self._module, "TAPS", ()):
            modules.setdefault(tap.where.partition(":")[0], []).append(tap)
        for module, taps in modules.items():
            yield module, functools.partial(self._place, taps)

    def _start_own(self) -> None:
        try:
            self._undo.append(self._module.start(self._switch))
        except Exception as error:
            self._trouble.append(f"{type(error).__name__}: {error}")
            _guard.failed(f"instrument {self.name}")

    def _place(self, taps: list[Any]) -> None:
        from prefactor_trace.integrations import _patch
        from prefactor_trace.integrations._tap import tapped

        for tap in taps:
            try:
                patch = _patch.place(tap.where, functools.partial(tapped, tap=tap, switch=self._switch))
                self._undo.append(patch.undo)
            except AttributeError as error:
                if not tap.is_optional:
                    self._trouble.append(f"{tap.where}: {error}")
        if self._trouble:
            logger.warning("%s: not all of its calls are recorded: %s", self.name, "; ".join(self._trouble))

    def stop(self) -> None:
        """Take the taps away. One that somebody has put another over stays, and does nothing, until that is gone."""
        from prefactor_trace.integrations._patch import finder

        self._switch.is_on = self.is_wanted = False
        for came in self._waiting:
            finder.forget(came)
        _to_undo.extend(reversed(self._undo))
        self._waiting, self._undo, self._trouble = [], [], []
        # And again: what was below those is at the top now.
        while undone := list(filter(_is_undone, _to_undo)):
            for undo in undone:
                _to_undo.remove(undo)


# Held while taps are placed and taken away, also by whoever imports a module that was waited for.
_lock = threading.RLock()
_integrated: dict[str, _Integrated] = {}
# What is to be taken away: more than nothing if somebody has put a tap over ours, another integration, say.
_to_undo: list[Callable[[], object]] = []


def __getattr__(name: str) -> Any:
    """Load what integrations are written with when it is asked for: who writes none does not need it."""
    if name in ("Asked", "Reply", "Tap"):
        from prefactor_trace.integrations import _tap

        return getattr(_tap, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def instrument(*names: str) -> Instrumented:
    """Record the calls of other libraries from now on, whether they are imported already or only later.

    Nothing is imported, and what the libraries return does not change. To say it twice does no harm.

    Args:
        names: Which: "openai", "anthropic", …; see `integrations.available`. "openai-agents" is "openai_agents".
            Default: all whose SDK is installed.

    Returns:
        What took and what did not, and why; printed, it is a line for each.

    Raises:
        ConfigurationError: There is no integration of that name.
    """
    with _lock:
        wanted = [_known(name) for name in names or available()]
    for each in wanted:
        each.wait_for_imports()  # not under the lock, which somebody may want who is importing
    with _lock:
        for each in wanted:
            each.start()
        done = Instrumented(each.report() for each in wanted)
    if any(each.state == "on" for each in done):
        from prefactor_trace.integrations import _price

        _price.load()  # not under the lock, either
    return done


def uninstrument(*names: str) -> Instrumented:
    """Undo `instrument`: every function of the SDKs is the very same again. Calls that are open are recorded to the end.

    Args:
        names: Which. Default: all.

    Raises:
        ConfigurationError: There is no integration of that name.
    """
    with _lock:
        wanted = [_known(name) for name in names] if names else list(_integrated.values())
        for each in wanted:
            each.stop()
        return Instrumented(each.report() for each in wanted)


def available() -> tuple[str, ...]:
    """Return the names of the integrations whose SDK is installed."""
    with _lock:
        return tuple(name for name in _sources() if _loads(name) and _known(name).version is not None)


def report() -> Instrumented:
    """Return where every integration stands, those without their SDK too."""
    with _lock:
        return Instrumented(_known(name).report() for name in _sources() if _loads(name))


def examine() -> Instrumented:
    """See whether the taps of every SDK that is installed would take, and leave all as it was.

    The source of most SDKs tells. Only one that is not as expected is imported, to see what is wrong; that may take
    seconds, and runs what the SDK does then. For `prefactor-trace doctor`.
    """
    from prefactor_trace.integrations._source import Sources

    sources = Sources()
    wanted = {each.name for each in report() if each.is_taken}
    doubtful = [name for name in available() if not _known(name).fits(sources)]
    for name in doubtful:
        instrument(name)
        _known(name).import_now()
    found = Instrumented(
        each._replace(state="on") if each.state == "off" and each.name not in doubtful else each
        for each in report()
    )
    if placed := [name for name in doubtful if name not in wanted]:
        uninstrument(*placed)
    return found


def claimed(name: str) -> str:
    """Return the distribution, and those of its versions, that the integration of that name is tested with."""
    return str(_known(name).requires)


def _is_undone(undo: Callable[[], object]) -> bool:
    try:
        return undo() is not False
    except Exception:
        _guard.failed("take a tap away")
        return True


def _sources() -> dict[str, str]:
    """Return the known names, each with its module. Those in this folder stand first."""
    from importlib import metadata

    ours = _ours()
    # Reads what all have installed.
    others = {each.name: each.value for each in metadata.entry_points(group=_GROUP)}
    return ours | {name: others[name] for name in sorted(others) if name not in ours}


@functools.cache
def _ours() -> dict[str, str]:
    """Return those in this folder."""
    names = sorted(each.name for each in pkgutil.iter_modules(__path__) if not each.name.startswith("_"))
    return {name: f"{__name__}.{name}" for name in names}


def _loads(name: str) -> bool:
    """Say whether the integration can be loaded: one of others may be broken."""
    try:
        _known(name)
    except Exception:
        _guard.failed(f"load the integration {name}")
        return False
    return True


def _known(name: str) -> _Integrated:
    known = _integrated.get(name)
    if known is None:
        sources = _ours() if name in _ours() else _sources()
        same = [each for each in sources if _as_one(each) == _as_one(name)]
        if same and name not in sources:  # as its distribution is written: "openai-agents"
            return _known(same[0])
        if name not in sources:
            import difflib

            near = difflib.get_close_matches(str(name), sources, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"there are: {', '.join(sources)}"
            raise ConfigurationError(f"instrument: there is no integration {name!r}; {hint}")
        known = _integrated[name] = _Integrated(name, importlib.import_module(sources[name]))
    return known


def _as_one(name: object) -> str:
    """Return *name* as package indexes compare names: hyphens are underscores, and case does not matter."""
    return re.sub(r"[-_.]+", "_", str(name)).lower()


def _is_in(version: str, wanted: str) -> bool:
    """Say whether *version* is in a range like ">=1.40,<4", by its first two numbers."""
    own = _numbers(version)
    for bound in filter(None, re.split(r"[,\s]+", wanted)):
        if bound.startswith(">=") and own < _numbers(bound):
            return False
        if bound.startswith("<") and not bound.startswith("<=") and own >= _numbers(bound):
            return False
    return True


def _numbers(version: str) -> tuple[int, int]:
    found = [int(each) for each in re.findall(r"\d+", version)]
    return (*found, 0, 0)[0], (*found, 0, 0)[1]
