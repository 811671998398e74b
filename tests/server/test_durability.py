"""What the database promises: an acknowledged write stays, whoever dies; older files are brought up to date."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
import threading

import httpx
import pytest

from prefactor_trace import _local
from prefactor_trace.server import LocalPlatform, NewerDatabaseError, _migrations
from prefactor_trace.server._database import Database
from prefactor_trace.server._store import Store
from prefactor_trace.server._usage import Usages


@pytest.fixture
def db(tmp_path):
    return tmp_path / "folder" / "db.sqlite3"


class TestKill:
    def test_acknowledged_writes_survive(self, db, serve, speak):
        """Killed in the middle of writing, the platform has everything it acknowledged, and no half of a request."""
        acknowledged: list[str] = []
        enough = threading.Event()
        server = serve(db)

        def write_until_it_dies():
            with speak(server.destination) as api, contextlib.suppress(httpx.TransportError):
                run = api.run()
                while True:
                    details = [api.details(run, id=api.new_id(), status="complete") for _ in range(20)]
                    api.bulk(
                        *(
                            {"_type": "agent_spans/create", "idempotency_key": each["id"], "details": each}
                            for each in details
                        )
                    )
                    acknowledged.extend(each["id"] for each in details)
                    if len(acknowledged) >= 1000:
                        enough.set()

        writer = threading.Thread(target=write_until_it_dies)
        writer.start()
        assert enough.wait(30)
        server.process.kill()
        server.process.wait(10)
        writer.join(30)
        assert _local.find(server.state_dir) is None
        with contextlib.closing(Store(db)) as store:
            (agent,) = store.agents()
            ((run,), _) = store.instances(agent["id"])
            spans, total = store.spans(run["id"], limit=1_000_000)
        assert run["status"] == "active"
        assert set(acknowledged) <= {span["id"] for span in spans}
        assert total - len(acknowledged) in (0, 20)

    def test_repeated_after_a_restart(self, db, serve, speak):
        """What is sent again to the next platform on the same file, with its key, is not there twice."""
        first = serve(db)
        with speak(first.destination) as api:
            body = {**api.registration(), "idempotency_key": "register-1"}
            run = api.post("agent_instance/register", body)["details"]
            span = {"details": api.details(run["id"]), "idempotency_key": "span-1"}
            made = api.post("agent_spans", span)
        first.process.kill()
        first.process.wait(10)
        with LocalPlatform(db) as platform, speak(platform) as api:
            assert api.post("agent_instance/register", body)["details"] == run
            assert api.post("agent_spans", span) == made
            assert len(api.spans(run["id"])) == 1


class TestMigrations:
    def test_older_file(self, db, speak):
        """A file of an earlier version is brought up to date, with everything in it, counted as if it came now."""
        used = {"token_usage": {"prompt_tokens": 5, "total_tokens": 7}, "metadata": {"cost": {"usd": 0.25}}}
        with LocalPlatform(db) as platform, speak(platform) as api:
            run, other = api.run(), api.run()
            span = api.span(run)["details"]
            for payload in (used, used, {"token_usage": {"note": "none"}}, {"inputs": {"token_usage": {}}}):
                api.span(run, payload=payload)
            shown = api.span(run)["details"]["id"]
            late = {f"${name}": each for name, each in used.items()}
            api.post(f"agent_spans/{shown}/finish", {"status": "complete", "result_payload": late})
            before = [platform.store.instance(each)["usages"] for each in (run, other)]
        with contextlib.closing(sqlite3.connect(db)) as file:
            for column in Usages._fields:
                file.execute(f"ALTER TABLE agent_instances DROP COLUMN {column}")
            for (name,) in file.execute(
                "SELECT name FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL"
            ).fetchall():
                file.execute(f"DROP INDEX {name}")
            file.execute("PRAGMA user_version = 1")
        with LocalPlatform(db) as platform, speak(platform) as api:
            assert api.get(f"agent_spans/{span['id']}")["details"] == span
            assert api.span(run)["details"]["account_id"] == span["account_id"]
            assert [platform.store.instance(each)["usages"] for each in (run, other)] == before
            assert before == [Usages(3, 15, 0, 21, 3, 0.75), Usages()]
        with contextlib.closing(sqlite3.connect(db)) as file:
            assert file.execute("PRAGMA user_version").fetchone() == (_migrations.LATEST,)
            assert file.execute("SELECT 1 FROM sqlite_master WHERE name = 'agent_spans_in_time'").fetchone()

    def test_every_step(self, tmp_path):
        """From whichever version a file starts, it ends up with the same shape."""
        shapes = set()
        for version in range(_migrations.LATEST + 1):
            path = tmp_path / f"{version}.sqlite3"
            with contextlib.closing(sqlite3.connect(path)) as file:
                for step in _migrations._STEPS[:version]:
                    file.executescript(step)
                file.execute(f"PRAGMA user_version = {version}")
            Store(path).close()
            with contextlib.closing(sqlite3.connect(path)) as file:
                shapes.add(
                    tuple(file.execute("SELECT name, sql FROM sqlite_master ORDER BY name").fetchall())
                )
        assert len(shapes) == 1

    def test_newer_file(self, db):
        """A file of a later version is refused with the way out, and not touched."""
        Store(db).close()
        with contextlib.closing(sqlite3.connect(db)) as file:
            file.execute("PRAGMA user_version = 99")
        before = db.read_bytes()
        with pytest.raises(NewerDatabaseError, match=r"has version 99.*upgrade"):
            Store(db)
        assert db.read_bytes() == before

    def test_failed_step(self, db):
        """A step that cannot be done leaves the file as it was."""
        db.parent.mkdir()
        with contextlib.closing(sqlite3.connect(db)) as file:
            file.execute("CREATE TABLE agents (foreign_to_us)")
        with pytest.raises(sqlite3.OperationalError, match="already exists"):
            Store(db)
        with contextlib.closing(sqlite3.connect(db)) as file:
            assert file.execute("SELECT name FROM sqlite_master").fetchall() == [("agents",)]
            assert file.execute("PRAGMA user_version").fetchone() == (0,)

    def test_no_database(self, db):
        """A file that is something else is refused, and not touched."""
        db.parent.mkdir()
        db.write_text("my notes, which are long enough to be read as the head of a file " * 10)
        before = db.read_bytes()
        with pytest.raises(sqlite3.DatabaseError):
            Store(db)
        assert db.read_bytes() == before

    def test_foreign_database(self, db):
        """A database that only claims our version is refused, and let go of."""
        db.parent.mkdir()
        with contextlib.closing(sqlite3.connect(db)) as file:
            file.execute(f"PRAGMA user_version = {_migrations.LATEST}")
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            Store(db)
        db.unlink()


class TestFile:
    def test_full_disk(self, db, speak):
        """When nothing more can be stored a write answers 500, what was acknowledged stays, and it can go on later."""
        with LocalPlatform(db) as platform, speak(platform) as api:
            run = api.run()
            kept = api.span(run)["details"]
            writer = platform.store._database._writer
            pages = writer.execute("PRAGMA page_count").fetchone()[0]
            writer.execute(f"PRAGMA max_page_count = {pages}")
            assert api.span(run, 500, payload={"text": "x" * 100_000})["code"] == "internal_error"
            assert api.spans(run) == [{**kept, "risk_level": None, "risk_score": None}]
            writer.execute(f"PRAGMA max_page_count = {2**30}")
            api.span(run, payload={"text": "x" * 100_000})
            assert len(api.spans(run)) == 2

    @pytest.mark.skipif(os.name != "posix", reason="Windows has other permissions")
    def test_for_its_owner_alone(self, db):
        """Nobody else on the machine can read the file, nor what stands beside it while it is open."""
        with contextlib.closing(Store(db)):
            assert len(list(db.parent.iterdir())) == 3
            for path in (db.parent, *db.parent.iterdir()):
                assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0

    def test_closed_in_one_file(self, db):
        """A closed database is one file that can be copied."""
        Store(db).close()
        assert list(db.parent.iterdir()) == [db]

    def test_readers_do_not_wait(self, db):
        """While somebody writes, others read the last committed state."""
        database = Database(db)
        try:
            with database.writing() as writer:
                writer.execute("INSERT INTO accounts VALUES ('a', 'n', 't', 't')")
                with database.reading() as reader:
                    assert reader.execute("SELECT count(*) FROM accounts").fetchone() == (0,)
            with database.reading() as reader:
                assert reader.execute("SELECT count(*) FROM accounts").fetchone() == (1,)
                with pytest.raises(sqlite3.OperationalError, match="readonly"):
                    reader.execute("DELETE FROM accounts")
        finally:
            database.close()

    def test_reader_at_the_end(self, db):
        """Closing does not take the database away from somebody who reads at that moment."""
        database = Database(db)
        with database.reading() as reader:
            database.close()
            assert reader.execute("SELECT count(*) FROM accounts").fetchone() == (0,)

    def test_undone_when_it_fails(self, db):
        """A transaction that raises leaves nothing behind, and the next one works."""
        database = Database(db)

        def fail():
            with database.writing() as writer:
                writer.execute("INSERT INTO accounts VALUES ('a', 'n', 't', 't')")
                raise KeyError

        try:
            with pytest.raises(KeyError):
                fail()
            with database.writing() as writer:
                assert writer.execute("SELECT count(*) FROM accounts").fetchone() == (0,)
        finally:
            database.close()

    def test_two_platforms_on_one_file(self, db, speak):
        """Two platforms may share a file: each sees at once what the other did."""
        with LocalPlatform(db) as one, LocalPlatform(db) as two, speak(one) as first, speak(two) as second:
            run = first.run()
            span = second.span(run)["details"]["id"]
            first.post(f"agent_instance/{run}/terminate", {"reason": "stop"})
            assert second.post(f"agent_spans/{span}/finish")["control"] == {
                "terminate": True,
                "reason": "stop",
            }
            assert second.span(run)["control"]["reason"] == "stop"
