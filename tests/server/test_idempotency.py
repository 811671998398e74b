"""Doing something twice: a repeated request answers as the first time and does nothing; another one is refused."""

from __future__ import annotations

import uuid

import pytest


def new_key() -> str:
    return str(uuid.uuid4())


class TestInstances:
    @pytest.mark.parametrize("place", ["single", "bulk"])
    def test_repeated_life(self, api, place):
        """Every step of a run, sent again with its key, answers as it did then, even when the run has gone on."""
        run = api.new_id()
        steps = [
            ("register", api.registration(id=run)),
            ("start", {"timestamp": "2026-01-01T00:00:00Z"}),
            ("finish", {"status": "failed"}),
        ]
        sent = [(step, {**body, "idempotency_key": new_key()}) for step, body in steps]

        def send(step, body):
            if place == "single":
                return api.post(f"agent_instance/{step if step == 'register' else f'{run}/{step}'}", body)
            item = {"_type": f"agent_instances/{step}", "agent_instance_id": run, **body}
            return api.bulk(item)["outputs"][body["idempotency_key"]]

        first = [send(*each) for each in sent]
        assert [answer["details"]["status"] for answer in first] == ["pending", "active", "failed"]
        again = [send(*each) for each in sent]
        assert [answer["details"] for answer in again] == [answer["details"] for answer in first]
        assert [set(answer) for answer in again] == [set(answer) for answer in first]
        assert (
            api.get("agent_instance", agent_id=first[0]["details"]["agent_id"])["pagination"]["item_count"]
            == 1
        )

    def test_single_and_bulk_are_one(self, api):
        """A key means the same whether the request came alone or in bulk."""
        body = {**api.registration(id=api.new_id()), "idempotency_key": new_key()}
        alone = api.post("agent_instance/register", body)
        together = api.bulk({"_type": "agent_instances/register", **body})
        assert together["outputs"][body["idempotency_key"]]["details"] == alone["details"]

    def test_another_body(self, api):
        """A key that comes again with another body is refused, and nothing happens."""
        run, key = api.run(), new_key()
        path = f"agent_instance/{run}/finish"
        api.post(path, {"status": "failed", "idempotency_key": key})
        assert (
            api.post(path, {"status": "complete", "idempotency_key": key}, 409)["code"]
            == "idempotency_conflict"
        )
        other = api.run()
        answer = api.post(f"agent_instance/{other}/finish", {"status": "failed", "idempotency_key": key}, 409)
        assert answer["code"] == "idempotency_conflict"
        assert api.get(f"agent_instance/{other}")["details"]["status"] == "active"

    def test_a_refused_request_may_be_mended(self, api):
        """A refusal uses no key up: the same key is good for the mended request."""
        key = new_key()
        api.post("agent_instance/register", api.registration(purpose="fun", idempotency_key=key), 422)
        api.post("agent_instance/register", api.registration(idempotency_key=key))

    def test_keys_belong_to_operations(self, api):
        """The same key may be used for different operations."""
        run, key = api.register()["id"], new_key()
        api.post(f"agent_instance/{run}/start", {"idempotency_key": key})
        api.span(run, idempotency_key=key)
        api.post(f"agent_instance/{run}/finish", {"idempotency_key": key})

    @pytest.mark.parametrize("key", ["", "x" * 65, 5, ["a"]])
    def test_odd_keys(self, api, key):
        """A key is a string of at most 64 characters."""
        run = api.register()["id"]
        answer = api.post(f"agent_instance/{run}/start", {"idempotency_key": key}, 422)
        assert "idempotency_key" in answer["errors"]
        assert api.get(f"agent_instance/{run}")["details"]["status"] == "pending"

    def test_other_changes(self, api):
        """Agents, quality and termination are safe to repeat as well."""
        run = api.run()
        key = new_key()
        once = api.post("agent", {"details": {"name": "once"}, "idempotency_key": key})
        assert api.post("agent", {"details": {"name": "once"}, "idempotency_key": key}) == once
        quality = {"name": "verdict", "payload": {"good": True}, "idempotency_key": new_key()}
        path = f"agent_instance/{run}"
        assert api.post(f"{path}/record_quality", quality) == api.post(f"{path}/record_quality", quality)
        stop = {"reason": "r", "idempotency_key": new_key()}
        assert api.post(f"{path}/terminate", stop) == api.post(f"{path}/terminate", stop)


class TestSpanCreate:
    @pytest.mark.parametrize("place", ["beside", "inside", "bulk", "flat"])
    @pytest.mark.parametrize("status", ["active", "complete"])
    def test_same_key(self, api, place, status):
        """A create sent again with its key answers as the first time; there is one span, with one id."""
        run, key = api.run(), new_key()
        details = api.details(run, status=status)

        def send():
            if place == "beside":
                return api.post("agent_spans", {"details": details, "idempotency_key": key})
            if place == "inside":
                return api.post("agent_spans", {"details": {**details, "idempotency_key": key}})
            item = {"_type": "agent_spans/create", "idempotency_key": key}
            return api.bulk(item | (details if place == "flat" else {"details": details}))["outputs"][key]

        assert send() == send()
        assert len(api.spans(run)) == 1

    def test_same_id(self, api):
        """A client-made id does the same without a key."""
        run = api.run()
        details = api.details(run, id=api.new_id(), status="complete", result_payload={"a": 1})
        first = api.post("agent_spans", {"details": details})
        assert api.post("agent_spans", {"details": details}) == first
        assert api.post("agent_spans", {"details": details, "idempotency_key": new_key()}) == first

    def test_first_answer_after_the_end(self, api):
        """The repeated create answers as the first time even when span and run have ended since."""
        run, key = api.run(), new_key()
        body = {"details": api.details(run), "idempotency_key": key}
        first = api.post("agent_spans", body)
        span = first["details"]["id"]
        api.post(f"agent_spans/{span}/finish", {"status": "failed", "result_payload": {"a": 1}})
        api.post(f"agent_instance/{run}/finish")
        assert api.post("agent_spans", body) == first
        assert api.get(f"agent_spans/{span}")["details"]["status"] == "failed"

    def test_control_is_always_of_today(self, api):
        """A repeated create tells of a termination that came in between: the agent has to learn of it."""
        run = api.run()
        body = {"details": api.details(run), "idempotency_key": new_key()}
        assert "control" not in api.post("agent_spans", body)
        api.post(f"agent_instance/{run}/terminate", {"reason": "stop"})
        assert api.post("agent_spans", body)["control"] == {"terminate": True, "reason": "stop"}

    @pytest.mark.parametrize(
        "change",
        [
            {"payload": {"model": "another"}},
            {"schema_name": "another"},
            {"status": "complete"},
            {"parent_span_id": "another"},
            {"started_at": "2026-01-01T00:00:01Z"},
        ],
    )
    def test_another_span(self, api, change):
        """A known id or key with another content is refused, and the first span stays as it is."""
        run, key, span = api.run(), new_key(), api.new_id()
        details = api.details(run, id=span, started_at="2026-01-01T00:00:00Z")
        first = api.post("agent_spans", {"details": details, "idempotency_key": key})["details"]
        refused = api.post("agent_spans", {"details": details | change}, 422)
        assert "id" in refused["errors"]
        refused = api.post("agent_spans", {"details": details | change, "idempotency_key": key}, 409)
        assert refused["code"] == "idempotency_conflict"
        assert api.get(f"agent_spans/{span}")["details"] == first

    def test_key_with_another_id(self, api):
        """A key stands for one span: with another id it is refused, with another run as well."""
        run, key = api.run(), new_key()
        api.post("agent_spans", {"details": api.details(run, id=api.new_id()), "idempotency_key": key})
        for details in (api.details(run, id=api.new_id()), api.details(api.run())):
            answer = api.post("agent_spans", {"details": details, "idempotency_key": key}, 409)
            assert answer["code"] == "idempotency_conflict"

    def test_a_refused_create_may_be_mended(self, api):
        """A refusal uses no key up."""
        run, key = api.run(), new_key()
        api.post("agent_spans", {"details": api.details(run, payload=None), "idempotency_key": key}, 422)
        api.post("agent_spans", {"details": api.details(run), "idempotency_key": key})


class TestSpanFinish:
    def test_same_key(self, api):
        """A finish sent again with its key answers as the first time."""
        span = api.span(api.run())["details"]["id"]
        body = {"status": "failed", "result_payload": {"a": 1}, "idempotency_key": new_key()}
        first = api.post(f"agent_spans/{span}/finish", body)
        assert api.post(f"agent_spans/{span}/finish", body) == first

    def test_another_body(self, api):
        """The same key with another result is refused."""
        span = api.span(api.run())["details"]["id"]
        body = {"result_payload": {"a": 1}, "idempotency_key": new_key()}
        api.post(f"agent_spans/{span}/finish", body)
        for change in (
            {"result_payload": {"a": 2}},
            {"status": "failed"},
            {"timestamp": "2026-01-01T00:00:00Z"},
        ):
            answer = api.post(f"agent_spans/{span}/finish", body | change, 409)
            assert answer["code"] == "idempotency_conflict"

    def test_another_key(self, api):
        """Another finish of a finished span is not allowed."""
        span = api.span(api.run())["details"]["id"]
        api.post(f"agent_spans/{span}/finish", {"idempotency_key": new_key()})
        for body in ({}, {"idempotency_key": new_key()}):
            assert api.post(f"agent_spans/{span}/finish", body, 409)["code"] == "invalid_action"
