"""The states of instances and spans, as the API documents them, and how a run is terminated."""

from __future__ import annotations

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

FINISHED = ("complete", "failed", "cancelled")
SPAN_STATES = ("pending", "active", *FINISHED)
# Everything the finish call may do; whatever is not here is refused with 409.
MAY_FINISH = {("active", "complete"), ("active", "failed"), ("pending", "cancelled")}


def machine_for(api) -> type[RuleBasedStateMachine]:
    class OneRun(RuleBasedStateMachine):
        """One instance and its spans, driven at random, beside a model of a few dicts."""

        spans = Bundle("spans")

        @initialize()
        def register(self):
            self.id = api.register()["id"]
            self.state = "pending"
            self.reason = None
            self.span_states: dict[str, str] = {}

        def expect_control(self, answer):
            control = {"terminate": True, "reason": self.reason} if self.state == "terminated" else None
            assert answer.get("control") == control

        @rule()
        def start(self):
            status = 200 if self.state == "pending" else 409
            answer = api.post(f"agent_instance/{self.id}/start", status=status)
            if status == 200:
                self.state = "active"
                assert answer["details"]["started_at"] is not None
            else:
                assert answer["code"] == "invalid_action"

        @rule(wanted=st.sampled_from(FINISHED))
        def finish(self, wanted):
            may = (self.state, wanted) in MAY_FINISH
            answer = api.post(f"agent_instance/{self.id}/finish", {"status": wanted}, 200 if may else 409)
            if may:
                self.state = wanted
                assert answer["details"]["started_at"] is not None
                assert answer["details"]["finished_at"] is not None
            else:
                assert answer["code"] == "invalid_action"

        @rule(reason=st.sampled_from(["policy", "ünfit"]))
        def terminate(self, reason):
            may = self.state == "active"
            body = {"reason": reason}
            answer = api.post(f"agent_instance/{self.id}/terminate", body, 200 if may else 409)
            if may:
                self.state, self.reason = "terminated", reason
                assert answer["details"]["termination_reason"] == reason
            else:
                assert answer["code"] == "invalid_action"

        @rule(target=spans, state=st.sampled_from(SPAN_STATES))
        def create_span(self, state):
            details = api.details(self.id, id=api.new_id(), status=state)
            takes_spans = self.state not in FINISHED
            answer = api.post("agent_spans", {"details": details}, 200 if takes_spans else 409)
            if takes_spans:
                self.span_states[details["id"]] = state
                assert (answer["details"]["finished_at"] is not None) == (state in FINISHED)
                self.expect_control(answer)
            else:
                assert answer["code"] == "invalid_action"
            return details["id"]

        @rule(span=spans, wanted=st.sampled_from(FINISHED))
        def finish_span(self, span, wanted):
            body = {"status": wanted, "result_payload": {"said": wanted}}
            if span not in self.span_states:
                api.post(f"agent_spans/{span}/finish", body, 404)
                return
            may = (self.span_states[span], wanted) in MAY_FINISH
            answer = api.post(f"agent_spans/{span}/finish", body, 200 if may else 409)
            if may:
                self.span_states[span] = wanted
                assert answer["details"]["result_payload"] == {"said": wanted}
                self.expect_control(answer)
            else:
                assert answer["code"] == "invalid_action"

        @invariant()
        def agrees(self):
            if not hasattr(self, "id"):
                return
            details = api.get(f"agent_instance/{self.id}")["details"]
            counts = {state: list(self.span_states.values()).count(state) for state in SPAN_STATES}
            assert (details["status"], details["termination_reason"]) == (self.state, self.reason)
            assert counts.items() <= details["span_counts"].items()
            assert {span["id"]: span["status"] for span in api.spans(self.id)} == self.span_states

    return OneRun


def test_states(api):
    """Whatever is asked in whatever order, instances and spans only take the documented steps."""
    run_state_machine_as_test(
        machine_for(api),
        settings=settings(max_examples=25, stateful_step_count=12, deadline=None, database=None),
    )


def test_times_of_an_instance(api):
    """Start and finish take the time they are given; cancelling sets both to the same."""
    run = api.register()["id"]
    started = api.post(f"agent_instance/{run}/start", {"timestamp": "2026-01-01T00:00:00Z"})["details"]
    assert started["started_at"] == "2026-01-01T00:00:00.000000Z"
    ended = api.post(f"agent_instance/{run}/finish", {"timestamp": "2026-01-01T00:00:09Z", "status": None})[
        "details"
    ]
    assert (ended["status"], ended["finished_at"]) == ("complete", "2026-01-01T00:00:09.000000Z")
    assert ended["started_at"] == started["started_at"]
    never = api.register()["id"]
    body = {"status": "cancelled", "timestamp": "2026-01-01T00:00:00Z"}
    cancelled = api.post(f"agent_instance/{never}/finish", body)["details"]
    assert cancelled["started_at"] == cancelled["finished_at"] == "2026-01-01T00:00:00.000000Z"


def test_finishing_a_span(api):
    """Finishing sets result, time and the sensitive flag, and leaves the payload alone."""
    run = api.run()
    span = api.span(run)["details"]
    body = {"timestamp": "2030-01-01T00:00:00Z", "result_payload": {"a": 1}, "sensitive_encoding": True}
    done = api.post(f"agent_spans/{span['id']}/finish", body)["details"]
    assert (done["status"], done["payload"], done["result_payload"]) == ("complete", {"model": "m"}, {"a": 1})
    assert (done["finished_at"], done["sensitive_encoding"]) == ("2030-01-01T00:00:00.000000Z", True)


def test_spans_of_a_finished_run_can_be_finished(api):
    """A span that was open when its run ended can still be finished: clients send both at the same moment."""
    run = api.run()
    span = api.span(run)["details"]["id"]
    api.post(f"agent_instance/{run}/finish")
    assert api.post(f"agent_spans/{span}/finish")["details"]["status"] == "complete"


@pytest.mark.parametrize("body", [{}, {"reason": ""}, {"reason": 5}, {"reason": None}])
def test_terminating_needs_a_reason(api, body):
    """A run is stopped for a reason, which its agent is told."""
    run = api.run()
    assert "reason" in api.post(f"agent_instance/{run}/terminate", body, 422)["errors"]
    assert api.get(f"agent_instance/{run}")["details"]["status"] == "active"


@pytest.mark.parametrize("wrong", [{"status": "terminated"}, {"status": 1}, {"timestamp": "soon"}])
def test_refused_finishes(api, wrong):
    """A finish that makes no sense is refused, for spans and instances alike."""
    run = api.run()
    span = api.span(run)["details"]["id"]
    assert api.post(f"agent_instance/{run}/finish", wrong, 422)["errors"].keys() == wrong.keys()
    assert api.post(f"agent_spans/{span}/finish", wrong, 422)["errors"].keys() == wrong.keys()


def test_terminating_from_the_store(api):
    """The viewer terminates through the store, and meets the same rules."""
    store = api.platform.store
    run = api.run()
    assert store.terminate(run, "enough")["status"] == "terminated"
    with pytest.raises(Exception, match="only an active one can be terminated") as refused:
        store.terminate(run, "enough")
    assert refused.value.code == "invalid_action"
    with pytest.raises(Exception, match="was not found") as refused:
        store.terminate(api.new_id(), "enough")
    assert refused.value.code == "not_found"
