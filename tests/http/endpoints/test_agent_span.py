"""Spans, over real HTTP: what every client can do, and what only ours can."""

from __future__ import annotations

import time
from datetime import datetime, timedelta, timezone

import pytest

pytestmark = pytest.mark.anyio

AT = datetime(2026, 1, 1, 12, 30, 15, 123456, tzinfo=timezone.utc)
LATER = AT + timedelta(seconds=90)
PAYLOAD = {
    "nothing": None,
    "text": 'schön 👩\u200d💻 "\\ \u2028 \x00 </script>',
    "numbers": [0, -1, 1.5, 1e-9, 2**53, 2**63],
    "": {"deep": [[[{"a": [True, False, None, {}]}]]]},
}


class TestCreate:
    async def test_positions(self, client, ground):
        """Everything that can be said of a step comes back, said in the documented order."""
        run, span_id = await ground.run(client), ground.new_id()
        parent = await client.agent_spans.create(run, "test:llm", "active")
        heard = []
        said = (run, "test:llm", "failed", PAYLOAD, {"out": PAYLOAD}, span_id, parent.id, AT, LATER)
        span = await client.agent_spans.create(*said, ground.new_key(), heard.append)
        assert (span.type, span.id, span.agent_instance_id) == ("agent_span", span_id, run)
        assert (span.schema_name, span.schema_title, span.status) == ("test:llm", "LLM call", "failed")
        assert (span.payload, span.result_payload) == (PAYLOAD, {"out": PAYLOAD})
        assert (span.parent_span_id, span.started_at, span.finished_at) == (parent.id, AT, LATER)
        instance = await client.agent_instances.get(run)
        assert (span.account_id, span.agent_id) == (instance.account_id, instance.agent_id)
        assert heard == []

    async def test_keywords(self, client, ground):
        """And by name."""
        run, span_id = await ground.run(client), ground.new_id()
        parent = await client.agent_spans.create(
            agent_instance_id=run, schema_name="test:llm", status="active", started_at=AT
        )
        assert (parent.parent_span_id, parent.started_at, parent.finished_at) == (None, AT, None)
        span = await client.agent_spans.create(
            agent_instance_id=run,
            schema_name="undeclared",
            status="complete",
            payload={"a": 1},
            result_payload={},
            id=span_id,
            parent_span_id=parent.id,
            started_at=AT,
            finished_at=LATER,
            idempotency_key=ground.new_key(),
            control_signal_callback=None,
        )
        assert (span.id, span.parent_span_id, span.schema_title) == (span_id, parent.id, "undeclared")
        assert (span.status, span.payload, span.result_payload) == ("complete", {"a": 1}, {})
        assert (span.started_at, span.finished_at) == (AT, LATER)

    @pytest.mark.parametrize("status", ["pending", "active", "complete", "failed", "cancelled"])
    async def test_least(self, client, ground, status):
        """Three things are enough: the payload is empty, the id is made, and it is now."""
        before = datetime.now(timezone.utc)
        span = await client.agent_spans.create(await ground.run(client), "test:llm", status)
        assert (span.status, span.payload, span.result_payload) == (status, {}, None)
        assert span.id[10:16] == ground.store.account.partition
        assert before <= span.started_at <= datetime.now(timezone.utc)
        assert span.finished_at == (None if status in ("pending", "active") else span.started_at)

    async def test_before_the_start(self, client, ground):
        """A run that is still pending takes steps."""
        instance = await ground.register(client)
        assert (await client.agent_spans.create(instance.id, "test:llm", "active")).status == "active"

    async def test_other_zones(self, client, ground):
        """A time of another zone is the same moment."""
        east, west = timezone(timedelta(hours=5, minutes=45)), timezone(-timedelta(hours=3, minutes=30))
        span = await client.agent_spans.create(
            await ground.run(client),
            "test:llm",
            "complete",
            started_at=AT.astimezone(east),
            finished_at=LATER.astimezone(west),
        )
        assert (span.started_at, span.finished_at) == (AT, LATER)

    @pytest.mark.skipif(not hasattr(time, "tzset"), reason="needs a zone of the process")
    async def test_local_times(self, ours, ground, monkeypatch):
        """A time without a zone is local, and not in UTC."""
        run = await ground.run(ours)
        started, ended = datetime(2026, 1, 1, 13, 30, 15, 123456), datetime(2026, 1, 1, 14, 30, 15, 123456)
        with monkeypatch.context() as elsewhere:
            elsewhere.setenv("TZ", "XXX-01:00")
            time.tzset()
            try:
                span = await ours.agent_spans.create(
                    run, "test:llm", "complete", started_at=started, finished_at=ended
                )
                listed = await ours.agent_spans.list(run, start_time=started, end_time=started)
            finally:
                elsewhere.undo()
                time.tzset()
        assert (span.started_at, span.finished_at) == (AT, AT + timedelta(hours=1))
        assert [each.id for each in listed] == [span.id]

    @pytest.mark.parametrize(
        ("change", "field"),
        [
            ({"id": "my-span"}, "id"),
            ({"parent_span_id": "01m80par2d2cn1gc6k8rp98rtbmh8dqd"}, "parent_span_id"),
            ({"schema_name": ""}, "schema_name"),
            ({"result_payload": {"too": "early"}}, "result_payload"),
            ({"finished_at": AT}, "finished_at"),
        ],
    )
    async def test_refusals(self, client, errors, ground, change, field):
        """What is wrong is said of the field it is wrong with, and no step is recorded."""
        run = await ground.run(client)
        said = {"agent_instance_id": run, "schema_name": "test:llm", "status": "active", **change}
        with pytest.raises(errors.PrefactorValidationError) as refused:
            await client.agent_spans.create(**said)
        assert (refused.value.status_code, list(refused.value.errors)) == (422, [field])
        assert ground.store.spans(run) == ([], 0)

    async def test_of_no_run(self, client, errors, ground):
        """A step needs a run that exists, and that has not ended."""
        with pytest.raises(errors.PrefactorNotFoundError):
            await client.agent_spans.create(ground.new_id(), "test:llm", "active")
        run = await ground.run(client)
        await client.agent_instances.finish(run)
        with pytest.raises(errors.PrefactorApiError) as refused:
            await client.agent_spans.create(run, "test:llm", "active")
        assert (refused.value.status_code, refused.value.code) == (409, "invalid_action")

    async def test_sensitive(self, ours, ground):
        """Wrapped values are announced, and come back as they were sent."""
        payload = {"name": {"$sensitive": "string", "labels": ["personal_identifiers"], "value": "Ada"}}
        run = await ground.run(ours)
        span = await ours.agent_spans.create(run, "test:llm", "active", payload, sensitive_encoding=True)
        assert (span.sensitive_encoding, span.payload) == (True, payload)
        plain = await ours.agent_spans.create(run, "test:llm", "active", payload)
        assert plain.sensitive_encoding is False
        done = await ours.agent_spans.finish(plain.id, result_payload=payload, sensitive_encoding=True)
        assert done.sensitive_encoding is True


class TestFinish:
    @pytest.mark.parametrize("status", ["complete", "failed"])
    async def test_positions(self, client, ground, status):
        """Result and time are taken, and the payload stays."""
        run = await ground.run(client)
        span = await client.agent_spans.create(run, "test:llm", "active", {"in": 1}, started_at=AT)
        heard = []
        done = await client.agent_spans.finish(
            span.id, status, PAYLOAD, LATER, ground.new_key(), heard.append
        )
        assert (done.id, done.status, done.payload, done.result_payload) == (
            span.id,
            status,
            {"in": 1},
            PAYLOAD,
        )
        assert (done.started_at, done.finished_at, heard) == (AT, LATER, [])

    async def test_keywords(self, client, ground):
        """And by name; also a step that never began."""
        run = await ground.run(client)
        span = await client.agent_spans.create(run, "test:llm", "pending")
        done = await client.agent_spans.finish(
            agent_span_id=span.id,
            status="cancelled",
            result_payload={"why": None},
            timestamp=AT.astimezone(timezone(timedelta(hours=-8))),
            idempotency_key=ground.new_key(),
            control_signal_callback=None,
        )
        assert (done.status, done.result_payload, done.finished_at) == ("cancelled", {"why": None}, AT)

    async def test_defaults(self, client, ground):
        """Nothing but the id is needed: it is now, and the step is complete."""
        span = await client.agent_spans.create(await ground.run(client), "test:llm", "active")
        done = await client.agent_spans.finish(span.id)
        assert (done.status, done.result_payload) == ("complete", None)
        assert span.started_at <= done.finished_at <= datetime.now(timezone.utc)

    async def test_what_the_state_forbids(self, client, errors, ground):
        """A step ends once, and cancelling is for what never began."""
        run = await ground.run(client)
        ended = await client.agent_spans.create(run, "test:llm", "complete")
        begun = await client.agent_spans.create(run, "test:llm", "active")
        for span, status in ((ended, "failed"), (begun, "cancelled")):
            with pytest.raises(errors.PrefactorApiError) as refused:
                await client.agent_spans.finish(span.id, status)
            assert (refused.value.status_code, refused.value.code) == (409, "invalid_action")

    async def test_unknown_id(self, client, errors, ground):
        """An id that nobody has is not found."""
        with pytest.raises(errors.PrefactorNotFoundError) as refused:
            await client.agent_spans.finish(ground.new_id())
        assert (refused.value.status_code, refused.value.code) == (404, "not_found")


class TestTwice:
    @pytest.mark.parametrize("status", ["active", "complete"])
    async def test_create(self, client, errors, ground, status):
        """The same key makes one step and gives the same answer; with another content it is refused."""
        run, key = await ground.run(client), ground.new_key()
        said = {"agent_instance_id": run, "schema_name": "test:llm", "status": status, "idempotency_key": key}
        first = await client.agent_spans.create(**said, payload={"a": 1})
        assert await client.agent_spans.create(**said, payload={"a": 1}) == first
        with pytest.raises(errors.PrefactorApiError) as refused:
            await client.agent_spans.create(**said, payload={"a": 2})
        assert (refused.value.status_code, refused.value.code) == (409, "idempotency_conflict")
        assert ground.store.spans(run)[1] == 1

    async def test_finish(self, client, errors, ground):
        """The same key ends it once; with another content, or another key, it is refused."""
        span = await client.agent_spans.create(await ground.run(client), "test:llm", "active")
        key = ground.new_key()
        first = await client.agent_spans.finish(span.id, "failed", {"a": 1}, None, key)
        assert await client.agent_spans.finish(span.id, "failed", {"a": 1}, None, key) == first
        for result, with_key, code in (
            ({"a": 2}, key, "idempotency_conflict"),
            ({"a": 1}, ground.new_key(), "invalid_action"),
        ):
            with pytest.raises(errors.PrefactorApiError) as refused:
                await client.agent_spans.finish(span.id, "failed", result, None, with_key)
            assert (refused.value.status_code, refused.value.code) == (409, code)


class TestControl:
    async def test_after_a_termination(self, client, ground):
        """Who writes a step of a run that was stopped is told why, with the step recorded all the same."""
        run = await ground.run(client)
        heard = []
        span = await client.agent_spans.create(
            run, "test:llm", "active", control_signal_callback=heard.append
        )
        ground.store.terminate(run, "über budget")
        assert heard == []
        done = await client.agent_spans.finish(span.id, control_signal_callback=heard.append)
        assert (done.status, heard) == ("complete", ["über budget"])
        late = await client.agent_spans.create(
            run, "test:llm", "complete", control_signal_callback=heard.append
        )
        assert (late.status, heard) == ("complete", ["über budget"] * 2)

    async def test_without_callback(self, client, ground):
        """Who does not ask is not told, and nothing is wrong."""
        run = await ground.run(client)
        ground.store.terminate(run, "r")
        span = await client.agent_spans.create(run, "test:llm", "active")
        assert (await client.agent_spans.finish(span.id)).status == "complete"

    async def test_other_runs(self, client, ground):
        """Only the run that was stopped is told."""
        stopped, other = await ground.run(client), await ground.run(client)
        ground.store.terminate(stopped, "r")
        heard = []
        await client.agent_spans.create(other, "test:llm", "complete", control_signal_callback=heard.append)
        assert heard == []


class TestReads:
    async def test_get(self, ours, errors, ground):
        """A step is read as it was recorded."""
        run = await ground.run(ours)
        span = await ours.agent_spans.create(run, "test:llm", "failed", PAYLOAD, {"a": None}, started_at=AT)
        assert await ours.agent_spans.get(span.id) == span
        assert await ours.agent_spans.get(agent_span_id=span.id, redacted=True) == span
        assert (span.purpose, span.summary, span.sensitive_encoding) == ("activity", None, False)
        assert span.payload_byte_size_estimate > 100
        with pytest.raises(errors.PrefactorNotFoundError):
            await ours.agent_spans.get(ground.new_id())

    async def test_list(self, ours, ground):
        """The steps of a run, or of an agent, come page by page, each once."""
        run = await ground.run(ours)
        made = [
            await ours.agent_spans.create(
                run, "test:llm", "complete", {"n": n}, started_at=AT + timedelta(seconds=n)
            )
            for n in range(5)
        ]
        seen, offset = [], 0
        while offset is not None:
            page = await ours.agent_spans.list(run, None, None, None, False, False, "-started_at", offset, 2)
            assert (page.pagination.item_count, page.pagination.page_offset) == (5, len(seen))
            seen += page
            offset = page.pagination.next_page_offset
        assert [each.id for each in seen] == [each.id for each in reversed(made)]
        assert (page.sorting.field, page.sorting.direction) == ("started_at", "desc")
        assert (seen[0].payload, seen[0].risk_level, seen[0].risk_score) == ({"n": 4}, None, None)
        of_agent = await ours.agent_spans.list(
            agent_id=made[0].agent_id, include_summaries=True, include_risk_level=True, page_size=100
        )
        assert [each.id for each in of_agent] == [each.id for each in made]

    async def test_list_of_a_time(self, ours, ground):
        """Both ends of the time belong to it, in whatever zone they are said."""
        run = await ground.run(ours)
        for n in range(5):
            at = AT + timedelta(microseconds=n)
            await ours.agent_spans.create(run, "test:llm", "complete", {"n": n}, started_at=at)
        zone = timezone(timedelta(hours=5, minutes=30))
        start, end = AT + timedelta(microseconds=1), (AT + timedelta(microseconds=3)).astimezone(zone)
        within = await ours.agent_spans.list(agent_instance_id=run, start_time=start, end_time=end)
        assert [each.payload["n"] for each in within] == [1, 2, 3]

    async def test_list_of_nothing(self, ours, errors):
        """A list must be of something."""
        with pytest.raises(errors.PrefactorValidationError) as refused:
            await ours.agent_spans.list()
        assert list(refused.value.errors) == ["agent_instance_id"]
