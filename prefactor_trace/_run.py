"""`prefactor-trace run`: a program as `python` itself would run it, with a run of the agent around all of it.

The program is run in this process and in its main thread, so flags of the interpreter, signals, standard streams and
exit status are the interpreter's own business. What is arranged here is what `python` arranges before a program begins:
`sys.argv`, `sys.path[0]` and a fresh `__main__`; what stands beside the program wins over what we have loaded. A program that dies of an exception is reported by the interpreter,
too; all that is done is to hide our frames from it.

The agent's run ends when the program does: after its threads, and after what it has registered with `atexit`. It ends
in the way the main thread has, however long the others take.
"""

from __future__ import annotations

import atexit
import builtins
import io
import os
import pkgutil
import runpy
import sys
from importlib.machinery import BuiltinImporter, PathFinder, SourceFileLoader, SourcelessFileLoader
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, NoReturn

from prefactor_trace import _api, _guard, integrations
from prefactor_trace._settings import from_environment
from prefactor_trace._threads import carry_threads

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from types import TracebackType

_USAGE = """\
usage: prefactor-trace run [--agent-name NAME] [--agent-version VERSION] PROGRAM [ARGUMENT ...]
       prefactor-trace run [--agent-name NAME] [--agent-version VERSION] -m MODULE [ARGUMENT ...]
"""
_HELP = f"""\
{_USAGE}
Run a Python program as `python` would, and record it: one run around all of it, and every LLM call in it.

PROGRAM is a file, a folder or a zip file, as for `python`. Options of Python's own go before all of this:
python -O -m prefactor_trace run PROGRAM

  --agent-name NAME        what people call the agent; default: PREFACTOR_AGENT_NAME, else the program's name
  --agent-version VERSION  external identifier of the agent version; default: PREFACTOR_AGENT_IDENTIFIER
  --help                   show this and exit
"""
# What `python` itself has loaded before a program begins, and so takes from elsewhere; and this library.
_LOADED_ANYWAY = {
    "abc",
    "codecs",
    "encodings",
    "genericpath",
    "io",
    "ntpath",
    "os",
    "posixpath",
    "site",
    "stat",
}
_LOADED_ANYWAY |= {"_collections_abc", "_sitebuiltins", "sitecustomize", "usercustomize", "zipimport"}
_LOADED_ANYWAY |= {"prefactor_trace"}
_OPTIONS = ("--agent-name", "--agent-version")


class Program(NamedTuple):
    """What is to be run.

    Attributes:
        kind: A module by its name, a file with code, or a container: a folder or zip file with a `__main__` in it.
        target: The name of the module, or the path as it was given.
        arguments: What stands behind it.
        options: `agent_name` and `agent_version`, as far as they were given.
    """

    kind: Literal["module", "file", "container"]
    target: str
    arguments: list[str]
    options: dict[str, str]

    @property
    def name(self) -> str:
        """What to call it: the module, or the file without its folder and suffix."""
        return self.target if self.kind == "module" else Path(os.path.realpath(self.target)).stem


def main(arguments: Sequence[str]) -> None:
    """Run the program that *arguments* name. Ends as the program ends: by returning, or by its exception."""
    program = read(arguments)
    if program.kind == "file":
        _check(program.target)
    end = _begin(program)
    _arrange(program)
    try:
        _EXECUTE[program.kind](program.target)
    except BaseException as error:
        end(error)
        if not isinstance(error, SystemExit):
            _hide_our_frames(error)
        raise


def read(arguments: Sequence[str]) -> Program:
    """Read the command line behind `run`. Exits with help, or with what is wrong with it."""
    rest = list(arguments)
    options: dict[str, str] = {}
    while rest and rest[0].startswith("-"):
        option, is_given, value = rest.pop(0).partition("=")
        if option in _OPTIONS:
            if not is_given and not rest:
                _refuse(f"{option} takes a value")
            options[option[2:].replace("-", "_")] = value if is_given else rest.pop(0)
        elif option in ("--help", "-h"):
            sys.stdout.write(_HELP)
            sys.exit(0)
        elif option == "-m":
            if not rest:
                _refuse("-m takes the name of a module")
            return Program("module", rest[0], rest[1:], options)
        elif option == "--" and not is_given:
            break
        else:
            _refuse(f"there is no option {option}; those of Python's own go before -m prefactor_trace")
    if not rest:
        _refuse("which program?")
    # What the import system can look into, it runs by itself.
    kind: Literal["file", "container"] = (
        "file" if pkgutil.get_importer(_absolute(rest[0])) is None else "container"
    )
    return Program(kind, rest[0], rest[1:], options)


def _refuse(what: str) -> NoReturn:
    sys.stderr.write(f"{_USAGE}{what}\n")
    sys.exit(2)


# -- the agent's run -----------------------------------------------------------------------------------------


def _begin(program: Program) -> Callable[[BaseException], None]:
    """Open the run and have LLM calls recorded; return what is to be told if the main thread ends by an exception."""
    try:
        integrations.instrument()
        carry_threads()
        settings = _api._get_default().settings  # noqa: SLF001 - one of our own
        if all(name != "agent_name" for name, _, _ in from_environment(settings)):
            program.options.setdefault("agent_name", program.name)
        block = _api.instance(**program.options)  # type: ignore[call-overload]
        block.__enter__()
    except Exception:
        _guard.failed("open a run around the program")
        return lambda _: None
    outcome: list[BaseException] = []

    # Registered after the tracers' own, and so called before it; before the program's, and so called after those.
    @atexit.register
    def finish() -> None:
        error = outcome[0] if outcome else None
        block.__exit__(type(error) if error else None, error, None)

    def end(error: BaseException) -> None:
        if isinstance(error, SystemExit):
            # One without frames: what their variables hold is let go now, as it would be without us.
            error = SystemExit(vars(SystemExit)["code"].__get__(error))
        outcome.append(error)

    return end


# -- what `python` does --------------------------------------------------------------------------------------


def _check(path: str) -> None:
    """Exit as `python` does if the file cannot be read."""
    try:
        open(path, "rb").close()  # noqa: PTH123 - the path exactly as it was given
    except OSError as error:
        reason = f"[Errno {error.errno}] {error.strerror}"
        sys.stderr.write(f"{sys.executable}: can't open file {_absolute(path)!r}: {reason}\n")
        sys.exit(2)


def _absolute(path: str) -> str:
    """Return *path* from the root, and otherwise as it is, which `os.path.abspath` would not leave it."""
    return os.path.join(os.getcwd(), path)  # noqa: PTH109, PTH118


def _arrange(program: Program) -> None:
    """Put into `sys` what `python` has there when a program begins."""
    sys.argv = ["-m" if program.kind == "module" else program.target, *program.arguments]
    fresh = ModuleType("__main__")
    vars(fresh).update(__loader__=BuiltinImporter, __annotations__={}, __builtins__=builtins)
    sys.modules["__main__"] = fresh
    is_safe = getattr(sys.flags, "safe_path", sys.flags.isolated)
    if not is_safe:
        del sys.path[0]  # the folder of the command, or the current one
    if program.kind == "container" or not is_safe:
        first = _first_path(program)
        sys.path.insert(0, first)
        _forget_what_it_shadows(first)


def _first_path(program: Program) -> str:
    """Return what stands first in `sys.path`."""
    if program.kind == "module":
        return os.getcwd()  # noqa: PTH109 - text, as all of `sys.path`
    if program.kind == "container":
        return _absolute(program.target)
    return os.path.dirname(os.path.realpath(program.target))  # noqa: PTH120 - as above


def _forget_what_it_shadows(path: str) -> None:
    """Let the program have its own `logging.py`, although we have loaded another of that name. Ours goes on with that."""
    shadowed = set()
    for name, module in list(sys.modules.items()):
        loaded = getattr(module, "__spec__", None)
        if "." in name or name in _LOADED_ANYWAY or loaded is None or not loaded.has_location:
            continue
        found = PathFinder.find_spec(name, [path])
        if found is not None and found.has_location and found.origin != loaded.origin:
            shadowed.add(name)
    for name in list(sys.modules):
        if name.partition(".")[0] in shadowed:
            del sys.modules[name]


def _execute_module(name: str) -> None:
    # What the interpreter itself calls for `-m`; the functions that are public do a little less.
    runpy._run_module_as_main(name)  # type: ignore[attr-defined] # noqa: SLF001


def _execute_container(_path: str) -> None:
    runpy._run_module_as_main("__main__", alter_argv=False)  # type: ignore[attr-defined] # noqa: SLF001


def _execute_file(given: str) -> None:
    path = _absolute(given)
    namespace = vars(sys.modules["__main__"])
    kind = SourcelessFileLoader if path.endswith(".pyc") else SourceFileLoader
    loader = namespace["__loader__"] = kind("__main__", path)
    namespace.update(__file__=path, __cached__=None)
    if kind is SourceFileLoader:
        with io.open_code(path) as file:
            code: Any = compile(file.read(), path, "exec", dont_inherit=True)
    else:
        code = loader.get_code("__main__")
    exec(code, namespace)  # noqa: S102 - this is what was asked for


_EXECUTE = {"module": _execute_module, "container": _execute_container, "file": _execute_file}


def _hide_our_frames(error: BaseException) -> None:
    """Have the interpreter report *error* as if we were not there. It goes on as it is, so that all else is as ever."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_frame.f_globals is globals():
        traceback = traceback.tb_next
    report = getattr(sys, "excepthook", sys.__excepthook__)

    def excepthook(kind: type[BaseException], error: BaseException, _: TracebackType | None) -> None:
        sys.excepthook = report
        sys.last_traceback = traceback
        report(kind, error.with_traceback(traceback), traceback)

    sys.excepthook = excepthook
