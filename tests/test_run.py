"""`prefactor-trace run`: a program does exactly what it does under `python`, and its run is recorded."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import zipfile

import pytest

from prefactor_trace import _inventory, _run

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="without a spool there is nothing to look at")

RUN = ("-m", "prefactor_trace", "run")
# What the library says at its start, and all that it says.
SAID = "PREFACTOR_API_TOKEN is not set and no local platform is running"


class Place:
    """A folder with programs, which are run with and without us."""

    def __init__(self, path):
        self.path = path

    def write(self, **files):
        for name, text in files.items():
            path = self.path / name.replace("__slash__", "/").replace("__dot__", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(textwrap.dedent(text))

    def start(self, *command):
        return subprocess.Popen(
            [sys.executable, *command],
            cwd=self.path,
            env={
                "PATH": os.environ.get("PATH", ""),
                "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
                "PREFACTOR_STATE_DIR": str(self.path / "state"),
                "PREFACTOR_EXIT_TIMEOUT": "0",  # nobody is there to deliver to
                "PYTHONDONTWRITEBYTECODE": "1",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def both(self, *program, flags=(), given=""):
        """Run it with and without us, at once; return what can be seen of each."""
        bare = self.start(*flags, *program)
        ours = self.start(*flags, *RUN, *program)
        return [(*each.communicate(given, timeout=60), each.returncode) for each in (bare, ours)]

    def runs(self):
        """Return the runs on record, each with its agent's name, version and status."""
        facts = [json.loads(line) for line in _inventory.export(self.path / "state" / "spool")]
        statuses = {
            fact["agent_instance_id"]: fact["status"]
            for fact in facts
            if fact["_type"] == "agent_instances/finish"
        }
        return [
            (
                fact["agent_version"]["name"],
                fact["agent_version"]["external_identifier"],
                statuses.get(fact["id"]),
            )
            for fact in facts
            if fact["_type"] == "agent_instances/register"
        ]


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path.resolve())


def without_our_line(errors):
    lines = errors.splitlines(keepends=True)
    assert sum(SAID in line for line in lines) <= 1
    return "".join(line for line in lines if SAID not in line)


COMMAND = "from prefactor_trace.cli import main\nif __name__ == '__main__':\n    main()\n"
FACTS = """
    '''A docstring.'''
    import builtins, inspect, os, signal, sys, warnings
    class Thing: pass
    def function(argument: int) -> "str": return Thing
    print(sorted(globals()), __name__, __file__, __package__, __spec__, __doc__, type(__loader__), __cached__)
    print(__builtins__ is builtins, sys.modules["__main__"].__dict__ is globals(), __loader__.path)
    print(sys.argv, sys.path, sys.flags, sys.warnoptions, sys._xoptions, sys.excepthook is sys.__excepthook__)
    print(inspect.getsource(function), inspect.getfile(Thing), Thing.__module__, function.__annotations__)
    print(sorted(os.environ), os.getcwd(), __debug__, warnings.filters[:3])
    print([(each, signal.getsignal(each)) for each in (signal.SIGTERM, signal.SIGPIPE, signal.SIGCHLD)])
    print(signal.getsignal(signal.SIGINT) is signal.default_int_handler, sys.stdin.read())
    """
SPAWN = """
    import multiprocessing, os, pickle, sys
    class Thing:
        def __init__(self, value): self.value = value
        def __eq__(self, other): return (type(self), self.value) == (type(other), other.value)
    def double(thing): return Thing(thing.value * 2)
    if __name__ == "__main__":
        assert pickle.loads(pickle.dumps(Thing(1))) == Thing(1)
        for how in sys.argv[1:]:
            context = multiprocessing.get_context(how)
            with context.Pool(1) as pool:
                print(how, pool.map(double, [Thing(1), Thing(2)]) == [Thing(2), Thing(4)], flush=True)
        process = context.Process(target=print, args=("from a child",))
        process.start(); process.join(); print(process.exitcode, flush=True)
    else:
        print(__name__, __file__, flush=True)
    """
# Each: a name, the program, and how its run ends.
PROGRAMS = [
    ("facts", FACTS, "complete"),
    (
        "exceptions, of annotations too",
        """
        def f(): return {}['key']
        try: f()
        except KeyError as e:
            try: raise ValueError('bad') from e
            except ValueError:
                def g(x: undefined): pass
        """,
        "failed",
    ),
    ("bad syntax", "x = 1\nif x print(x)\n", "failed"),
    ("a group", "raise BaseExceptionGroup('many', [ValueError(1), KeyboardInterrupt()])", "failed"),
    ("exit", "import sys; sys.exit()", "complete"),
    ("exit 3", "import sys; sys.exit(3)", "failed"),
    ("exit with an object", "print('out'); raise SystemExit({'a': 1}, 2)", "failed"),
    ("SIGINT", "import signal\nsignal.raise_signal(signal.SIGINT)\nprint('never')", "cancelled"),
    ("SIGTERM", "import signal; print('out', flush=True); signal.raise_signal(signal.SIGTERM)", None),
    ("SIGKILL", "import os; os.kill(os.getpid(), 9)", None),
    ("_exit", "import os; print('out', flush=True); os._exit(7)", None),
    (
        "a usage line",
        "import argparse; p = argparse.ArgumentParser(); p.add_argument('--x', type=int); p.parse_args(['--x', 'y'])",
        "failed",
    ),
    (
        "atexit",
        """
        import atexit, sys
        atexit.register(print, "first"); atexit.register(print, "second")
        atexit.register(lambda: print("report", sys.excepthook is sys.__excepthook__))
        atexit.register(lambda: print(sys.last_type, sys.last_value, sys.last_traceback.tb_frame.f_code.co_name))
        class Bye:
            def __del__(self): print("gone")
        bye = Bye()
        def f(): local = Bye(); raise LookupError("x")
        f()
        """,
        "failed",
    ),
    ("atexit that fails", "import atexit, sys; atexit.register(sys.exit, 5); sys.exit(4)", "failed"),
    (
        "threads",
        """
        import sys, threading
        go = threading.Event()
        def work(): go.wait(); print("after the main thread")
        threading.Thread(target=work).start()
        threading.Thread(target=sys.exit, args=(5,)).start()
        failing = threading.Thread(target=lambda: 1 / 0, name="a thread")
        failing.start(); failing.join()
        import atexit
        atexit.register(print, "at exit")
        threading._register_atexit(go.set)
        1 / 0
        """,
        "failed",
    ),
    (
        "a pool, a warning and runpy",
        """
        import runpy, warnings
        from concurrent.futures import ThreadPoolExecutor
        warnings.warn('old', DeprecationWarning)
        print(sorted(runpy.run_path('other.py')), __name__)
        pool = ThreadPoolExecutor(2)
        print(list(pool.map(str, range(3))))
        """,
        "complete",
    ),
    (
        "asyncio",
        """
        import asyncio
        async def f(n): await asyncio.sleep(0); return 1 / n
        async def main(): return await asyncio.gather(f(1), f(0))
        asyncio.run(main())
        """,
        "failed",
    ),
    (
        "a hook of its own",
        """
        import sys, traceback
        def hook(kind, error, tb): print(kind, error, traceback.format_tb(tb), traceback.format_exception(error))
        sys.excepthook = hook
        raise ValueError("x")
        """,
        "failed",
    ),
    ("no hook", "import sys; del sys.excepthook; sys.exit(2)", "failed"),
    (
        "forks",
        """
        import os, sys, warnings
        warnings.simplefilter('ignore')  # of threads: ours
        if os.fork() == 0: sys.exit(3)
        print(os.wait()[1] >> 8, flush=True)
        if os.fork() == 0: 1 / 0
        print(os.wait()[1] >> 8)
        """,
        "complete",
    ),
]


@pytest.mark.parametrize(
    ("text", "status"), [each[1:] for each in PROGRAMS], ids=[each[0] for each in PROGRAMS]
)
def test_a_program_does_what_it_does_under_python(place, text, status):
    """Output, errors and exit status are the same, and its run ends as it does."""
    if "ExceptionGroup" in text and sys.version_info < (3, 11):
        pytest.skip("Python 3.11 has groups")
    place.write(program__dot__py=text, other__dot__py="x = 1")
    bare, ours = place.both("program.py", "a", "--agent-name", "b", "-m", given="input")

    assert (ours[0], without_our_line(ours[1]), ours[2]) == bare
    assert place.runs() == [("program", "v1.0.0", status)]


PACKAGE = {
    "pack__slash____init____dot__py": "name = 'pack'",
    "pack__slash____main____dot__py": "from . import name; import sys; print(name, __package__, __spec__.name, sys.argv, sys.path[0], sorted(globals()))",
    "pack__slash__bad__dot__py": "import sys; print(sys.argv, __name__, __file__); raise ValueError('x')",
    "folder__slash____main____dot__py": "import sys, beside; print(sys.argv, sys.path[0], __package__, getattr(__spec__, 'origin', 0), beside.x, __file__)",
    "folder__slash__beside__dot__py": "x = 1",
}


@pytest.mark.parametrize(
    ("program", "name", "status"),
    [
        (["-m", "pack", "-m", "x"], "pack", "complete"),
        (["-m", "pack.bad", "--help"], "pack.bad", "failed"),
        (["-m", "pack.none"], "pack.none", "failed"),
        (["folder", "x"], "folder", "complete"),
        (["./folder/__main__.py"], "__main__", "complete"),
        (["pack/bad.py"], "bad", "failed"),
        (["pack"], "pack", "failed"),
        (["pack/../linked"], "bad", "failed"),
        (["app.pyz", "x"], "app", "complete"),
        (["broken"], "broken", "failed"),
    ],
    ids=" ".join,
)
def test_modules_folders_archives_and_links(place, program, name, status):
    """Whatever `python` runs, in whatever way it is named."""
    place.write(**PACKAGE, broken="if x print")
    (place.path / "linked").symlink_to("pack/bad.py")
    with zipfile.ZipFile(place.path / "app.pyz", "w") as archive:
        for file in (place.path / "folder").glob("*.py"):
            archive.write(file, file.name)
    bare, ours = place.both(*program)

    assert (ours[0], without_our_line(ours[1]), ours[2]) == bare
    assert place.runs() == [(name, "v1.0.0", status)]


@pytest.mark.parametrize(
    "flags",
    [
        ["-W", "error", *(["-P"] if sys.version_info >= (3, 11) else [])],
        ["-W", "always", "-X", "dev", "-X", "utf8", "-OO"],
    ],
    ids=" ".join,
)
def test_flags_are_the_interpreters(place, flags):
    """They stand before everything, and hold; nothing of ours warns."""
    place.write(program__dot__py=FACTS + "warnings.warn('old', DeprecationWarning)\n")
    bare, ours = place.both("program.py", flags=flags)

    assert (ours[0], without_our_line(ours[1]), ours[2]) == bare
    assert "DeprecationWarning: old" in bare[1]


def test_multiprocessing_finds_the_program(place):
    """Its classes are pickled by name, children import it as theirs, and none of them begins another run."""
    place.write(program__dot__py=SPAWN)
    bare, ours = place.both("-m", "program", "fork", "spawn")
    script, our_script = place.both("program.py", "forkserver", "spawn")

    assert {"fork True", "spawn True", "from a child"} < set(bare[0].splitlines())
    assert bare[2] == 0
    for one, other in ((bare, ours), (script, our_script)):  # parent and children write when they like
        assert sorted(one[0].splitlines()) == sorted(other[0].splitlines())
    assert [ours[2], our_script[2], without_our_line(our_script[1])] == [0, 0, ""]
    assert place.runs() == [("program", "v1.0.0", "complete")] * 2


def test_what_stands_beside_the_program_wins(place):
    """Over modules of the same name that we have loaded before it; not over those that `python` has."""
    own = {
        f"{name}__dot__py": "mine = True" for name in ("logging", "queue", "os", "encodings", "dataclasses")
    }
    place.write(
        **own,
        json__slash____init____dot__py="from . import decoder",
        json__slash__decoder__dot__py="mine = True",
        email__slash__note__dot__txt="no module",
        program__dot__py="""
            import dataclasses, email, encodings, json.decoder, logging, os, queue
            for each in (dataclasses, email, encodings, json.decoder, logging, os, queue):
                print(each.__name__, getattr(each, "mine", False))
            """,
    )
    place.write(bin__slash__command=COMMAND)  # with -m, they would stand beside ourselves
    started = place.start("program.py"), place.start("bin/command", "run", "program.py")
    bare, ours = [(*each.communicate(timeout=60), each.returncode) for each in started]

    assert (ours[0], without_our_line(ours[1]), ours[2]) == bare
    assert bare[0].count("True") == 4
    assert place.runs() == [("program", "v1.0.0", "complete")]


def test_a_program_that_is_not_there(place):
    """The same words, the same status, and no run."""
    bare, ours = place.both("pack/../none.py")

    assert ours == bare
    assert ours[2] == 2
    assert place.runs() == []


def test_a_signal_from_outside(place):
    """Ends the program as it would without us: shells and supervisors look at that."""
    place.write(program__dot__py="import time; print('ready', flush=True)\nwhile True: time.sleep(60)")
    for number in (signal.SIGINT, signal.SIGTERM):
        ended = []
        started = [place.start(*command) for command in (("program.py",), (*RUN, "program.py"))]
        try:
            for process in started:
                assert process.stdout.readline() == "ready\n"
                process.send_signal(number)
                ended.append((process.wait(30), without_our_line(process.communicate()[1])))
        finally:
            for process in started:
                process.kill()

        assert [status for status, _ in ended] == [-number, -number]
        # Where it was just then is anybody's guess.
        assert [errors.splitlines()[-1:] for _, errors in ended] == [
            ["KeyboardInterrupt"] * (number == signal.SIGINT)
        ] * 2
        assert "prefactor_trace" not in ended[1][1]


def test_the_installed_command_is_the_same(place):
    """`prefactor-trace run`, from a folder of commands that the program must not find on its path."""
    place.write(
        bin__slash__command=COMMAND,
        program__dot__py=FACTS + "sys.exit(5)",
    )
    bare = place.start("program.py", "x")
    ours = place.start(
        "bin/command", "run", "--agent-name", "A bot", "--agent-version=7", "--", "program.py", "x"
    )
    shown = [(*each.communicate("in", timeout=60), each.returncode) for each in (bare, ours)]

    assert (shown[1][0], without_our_line(shown[1][1]), shown[1][2]) == shown[0]
    assert shown[0][2] == 5
    assert place.runs() == [("A bot", "7", "failed")]


def test_steps_of_all_threads_are_in_the_run(place):
    """Of the main thread, of others, of a pool, of those that outlive it, and at exit; one run inside is another."""
    place.write(
        program__dot__py="""
        import atexit, threading
        from concurrent.futures import ThreadPoolExecutor
        import prefactor_trace as pt
        @pt.span
        def step(n): pass
        step(0)
        atexit.register(step, 1)
        go = threading.Event()
        threading.Thread(target=lambda: (go.wait(), step(2))).start()
        with ThreadPoolExecutor() as pool: list(pool.map(step, [3, 4]))
        with pt.instance(agent_name="inside"): step(5)
        print(threading.current_thread() is threading.main_thread())
        go.set()
        """
    )
    with place.start(*RUN, "program.py") as process:
        output, errors = process.communicate(timeout=60)

    assert (output, without_our_line(errors), process.returncode) == ("True\n", "", 0)
    facts = [json.loads(line) for line in _inventory.export(place.path / "state" / "spool")]
    of_run = {}
    for fact in facts:
        if fact["_type"] == "agent_spans/create":
            span = fact["details"]
            of_run.setdefault(span["agent_instance_id"], []).append(span["payload"]["inputs"]["n"])
    assert sorted(map(sorted, of_run.values())) == [[0, 1, 2, 3, 4], [5]]
    assert sorted(place.runs()) == [("inside", "v1.0.0", "complete"), ("program", "v1.0.0", "complete")]


def test_our_own_trouble_is_not_the_programs(place):
    """Settings that cannot work are said, once; the program runs."""
    place.write(program__dot__py="import os; print(os.environ['PREFACTOR_SAMPLE_RATE'])")
    process = subprocess.run(
        [sys.executable, *RUN, "program.py"],
        cwd=place.path,
        capture_output=True,
        text=True,
        env={"PYTHONPATH": os.pathsep.join(sys.path), "PREFACTOR_SAMPLE_RATE": "many"},
        check=False,
    )

    assert (process.stdout, process.returncode) == ("many\n", 0)
    assert "PREFACTOR_SAMPLE_RATE" in process.stderr
    assert "Traceback" not in process.stderr


def test_an_sdk_that_the_program_does_not_use_is_not_loaded(place):
    """Starting a program stays cheap: no SDK, no HTTP client, no validation, no command line library."""
    place.write(program__dot__py="import sys; print(*sys.modules)")
    with place.start(*RUN, "program.py") as process:
        loaded = set(process.communicate(timeout=60)[0].split())

    assert "prefactor_trace.integrations" in loaded
    assert not loaded & {"openai", "anthropic", "httpx", "pydantic", "asyncio", "typer", "argparse"}


# -- the command line ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("x.py", ("file", "x.py", [], {})),
        ("x.py -m y --agent-name z", ("file", "x.py", ["-m", "y", "--agent-name", "z"], {})),
        ("-m x.y -m", ("module", "x.y", ["-m"], {})),
        (
            "--agent-name a --agent-version=1=2 -m x",
            ("module", "x", [], {"agent_name": "a", "agent_version": "1=2"}),
        ),
        ("-- -x.py --", ("file", "-x.py", ["--"], {})),
        (". a", ("container", ".", ["a"], {})),
    ],
)
def test_what_belongs_to_whom(line, expected):
    """Options of ours stand before the program; whatever stands behind it is the program's."""
    assert tuple(_run.read(line.split())) == expected


@pytest.mark.parametrize(
    "line", ["", "--agent-name", "-m", "-O x.py", "--agent-nam x", "--agent-name=x", "-c pass", "-"]
)
def test_what_cannot_be_run_is_said(line, capsys):
    """On standard error, with the usage, and status 2."""
    with pytest.raises(SystemExit) as exit_:
        _run.read(line.split())

    output, errors = capsys.readouterr()
    assert (exit_.value.code, output) == (2, "")
    assert errors.startswith("usage: prefactor-trace run")


def test_help(capsys):
    """Wherever it stands before the program."""
    with pytest.raises(SystemExit) as exit_:
        _run.read(["--agent-name", "x", "--help", "x.py"])

    assert exit_.value.code == 0
    assert "--agent-version" in capsys.readouterr().out
