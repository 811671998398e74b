"""The models: what a newer platform adds is kept, and what we send is checked before it is sent."""

from __future__ import annotations

import inspect
import json
import types
import typing
import warnings
from datetime import datetime, timezone
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, TypeAdapter, ValidationError

from prefactor_trace.http import models
from prefactor_trace.http.models import (
    ActionProfile,
    Agent,
    AgentContext,
    AgentInstance,
    AgentInstanceRecordQuality,
    AgentInstanceSpanCounts,
    AgentInstanceSummary,
    AgentSchemaVersionForRegister,
    AgentSpan,
    AgentSpanSummary,
    AgentSummary,
    AgentVersionForRegister,
    ApiError,
    ApiResponse,
    BulkItem,
    BulkOutput,
    BulkRequest,
    BulkResponse,
    CreateAgentSpanRequest,
    DataCategories,
    DataRisk,
    DetailedApiError,
    FinishInstanceRequest,
    FinishSpanRequest,
    ListResponse,
    Page,
    PaginationOutput,
    QualitySchemaDetails,
    QualitySchemaForCreate,
    RegisterAgentInstanceRequest,
    RuntimeEnvironment,
    Sorting,
    SpanTypeSchemaForCreate,
    TerminateInstanceRequest,
    TimestampRequest,
)
from prefactor_trace.http.models.base import ApiModel
from prefactor_trace.http.models.types import Words

# What the platform tells, and what is asked of it. Together: every model there is.
ANSWERS = [
    ActionProfile,
    Agent,
    models.AgentAvailableActions,
    AgentContext,
    AgentInstance,
    models.AgentInstanceCounts,
    AgentInstanceSpanCounts,
    AgentInstanceSummary,
    AgentSpan,
    AgentSpanSummary,
    AgentSummary,
    ApiError,
    BulkOutput,
    BulkResponse,
    DataCategories,
    DataRisk,
    DetailedApiError,
    PaginationOutput,
    QualitySchemaDetails,
    Sorting,
]
REQUESTS = [
    models.AgentForCreate,
    models.AgentForUpdate,
    AgentInstanceRecordQuality,
    AgentSchemaVersionForRegister,
    AgentVersionForRegister,
    BulkItem,
    BulkRequest,
    CreateAgentSpanRequest,
    FinishInstanceRequest,
    FinishSpanRequest,
    QualitySchemaForCreate,
    RegisterAgentInstanceRequest,
    RuntimeEnvironment,
    SpanTypeSchemaForCreate,
    TerminateInstanceRequest,
    TimestampRequest,
]

each_answer = pytest.mark.parametrize("kind", ANSWERS, ids=lambda kind: kind.__name__)


def test_lists_above_are_whole():
    """No model is without its tests: each is an answer or a request."""
    public = {
        each
        for each in vars(models).values()
        if inspect.isclass(each) and issubclass(each, BaseModel) and each not in (ApiResponse, ListResponse)
    }
    assert public == {*ANSWERS, *REQUESTS}
    assert set(ANSWERS) & set(REQUESTS) == set()


def test_exports():
    """What the folder promises is what its modules promise, and each name is there."""
    promised = {
        name
        for module in vars(models).values()
        if inspect.ismodule(module) and module.__name__.startswith("prefactor_trace.http.models.")
        for name in getattr(module, "__all__", ())
    }
    assert promised - {"ApiModel"} == set(models.__all__)
    assert [name for name in models.__all__ if not hasattr(models, name)] == []


# -- answers of any shape that is promised -----------------------------------------------------------------

words = st.text(min_size=1, max_size=12).filter(lambda word: word.strip() == word)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=8), inner, max_size=2),
    max_leaves=4,
)
moments = st.datetimes(
    min_value=datetime(2000, 1, 1), max_value=datetime(2100, 1, 1), timezones=st.just(timezone.utc)
).map(lambda moment: moment.isoformat().replace("+00:00", "Z"))


def known_words(annotation: Any) -> tuple[str, ...] | None:
    """Return the words of a field that is marked with `Words`, or None if it is not."""
    for each in (annotation, *typing.get_args(annotation)):
        if any(isinstance(mark, Words) for mark in getattr(each, "__metadata__", ())):
            return typing.get_args(typing.get_args(each)[0])
    return None


def hints(kind: type[BaseModel]) -> dict[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


def values(annotation: Any) -> st.SearchStrategy[Any]:
    """Return what may stand in a JSON answer for a field of this type; where words are known, others too."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if known_words(annotation) is not None and origin not in (typing.Union, types.UnionType):
        return st.sampled_from(known_words(annotation)) | words
    if origin is typing.Annotated:
        return values(arguments[0])
    if origin in (typing.Union, types.UnionType):
        return st.one_of([values(each) for each in arguments])
    if origin is Literal:
        return st.sampled_from(arguments)
    if origin is list:
        return st.lists(values(arguments[0]), max_size=2)
    if origin is dict:
        return st.dictionaries(st.text(max_size=8), values(arguments[1]), max_size=2)
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return answers(annotation)
    simple = {
        Any: json_values,
        bool: st.booleans(),
        datetime: moments,
        float: st.floats(-1e9, 1e9),
        int: st.integers(-(2**53), 2**53),
        str: st.text(max_size=12),
        type(None): st.none(),
    }
    return simple[annotation]


@st.composite
def answers(draw: st.DrawFn, kind: type[BaseModel]) -> dict[str, Any]:
    """Draw an answer: all that must be there, some of what may be, and some that we do not know."""
    answer = {}
    for name, annotation in hints(kind).items():
        field = kind.model_fields.get(name)
        if field is not None and (field.is_required() or draw(st.booleans())):
            answer[field.alias or name] = draw(values(annotation))
    taken = {*kind.model_fields, *(field.alias for field in kind.model_fields.values())}
    extra = st.dictionaries(
        (
            st.text(max_size=12)
            | st.sampled_from(["copy", "model_config", "model_dump", "self", "__class__"])
        ).filter(lambda name: name not in taken),
        json_values,
        max_size=3,
    )
    return {**draw(extra), **answer}


def contains(told: Any, answer: Any) -> bool:
    """Whether all of *answer* is in *told*, value for value; times may be written in another way."""
    if isinstance(answer, dict):
        return isinstance(told, dict) and all(
            name in told and contains(told[name], value) for name, value in answer.items()
        )
    if isinstance(answer, list):
        return len(told) == len(answer) and all(map(contains, told, answer))
    if isinstance(answer, str) and isinstance(told, (str, datetime)) and told != answer:
        return moment_of(told) == moment_of(answer)
    return type(told) in (type(answer), float) and told == answer


def moment_of(value: str | datetime) -> datetime:
    if isinstance(value, datetime):
        return value
    return TypeAdapter(datetime).validate_python(value)


class TestAnswers:
    @each_answer
    @given(data=st.data())
    @settings(max_examples=40)
    def test_of_a_newer_platform(self, kind, data):
        """New words, new fields: read, kept, and written again, in Python and in JSON, without a warning."""
        answer = data.draw(answers(kind))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            read = kind.model_validate(answer)
            from_text = kind.model_validate_json(json.dumps(answer))
            assert from_text == read
            assert contains(read.model_dump(by_alias=True), answer)
            assert contains(read.model_dump(mode="json", by_alias=True), answer)
            assert contains(json.loads(read.model_dump_json(by_alias=True)), answer)
        for name, annotation in hints(kind).items():
            if known_words(annotation) is not None and name in answer:
                assert getattr(read, name) == answer[name]
        for name in answer.keys() - kind.model_fields.keys() - {"schema"}:
            assert read.model_extra[name] == answer[name]

    @each_answer
    @given(data=st.data())
    @settings(max_examples=20)
    def test_in_envelopes(self, kind, data):
        """The same inside of an answer about one thing, and of a page of them."""
        answer, other = data.draw(answers(kind)), data.draw(json_values)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            one = ApiResponse[kind].model_validate({"status": "success", "details": answer, "beside": other})
            assert type(one.details) is kind
            assert contains(one.model_dump(by_alias=True), {"details": answer, "beside": other})
            frame = {"status": "success", "summaries": [answer, answer], "pagination": None, "sorting": None}
            many = ListResponse[kind].model_validate(frame)
            page = Page(many)
        assert (list(page), page.pagination, page.sorting) == (many.summaries, None, None)
        assert contains(json.loads(many.model_dump_json(by_alias=True)), frame)

    def test_every_field_of_words_is_marked(self):
        """No field of an answer has a closed list of words, but for `type`, which says what the answer is about."""
        closed = {
            (kind.__name__, name)
            for kind in ANSWERS
            for name, annotation in hints(kind).items()
            if name in kind.model_fields and "Literal" in repr(annotation) and known_words(annotation) is None
        }
        assert {name for _, name in closed} == {"type"}

    def test_new_words_stay_in_their_type(self):
        """A word is a text: a number in its place is another shape, and is refused."""
        for value in (1, True, ["active"], {"active": 1}):
            with pytest.raises(ValidationError, match="status"):
                AgentSpan.model_validate({**SPAN, "status": value})

    def test_of_another_thing(self):
        """An answer about something else is not read as one about this."""
        with pytest.raises(ValidationError, match="agent_span"):
            AgentSpan.model_validate({**SPAN, "type": "agent_instance"})

    def test_extra_fields_are_attributes(self):
        """They can be read like any other."""
        assert AgentSpan.model_validate({**SPAN, "mood": "good"}).mood == "good"

    def test_names_of_words(self):
        """The known words are those of the contract."""
        assert known_words(hints(AgentSpan)["status"]) == (
            "pending",
            "active",
            "complete",
            "failed",
            "cancelled",
            "terminated",
        )
        assert known_words(hints(AgentInstance)["purpose"]) == ("live", "smoke_test", "eval")
        assert known_words(hints(AgentSummary)["status"]) == ("pending", "active", "dormant", "retired")
        assert typing.get_args(models.FinishStatus) == ("complete", "failed", "cancelled")


SPAN = {
    "type": "agent_span",
    "id": "s",
    "agent_instance_id": "i",
    "schema_name": "test:llm",
    "status": "active",
}


# -- requests ----------------------------------------------------------------------------------------------


class TestRequests:
    @pytest.mark.parametrize("status", ["complete", "failed", "cancelled", None])
    def test_ways_to_finish(self, status):
        """The three that the contract has; left out means complete."""
        for kind in (FinishInstanceRequest, FinishSpanRequest):
            assert kind(status=status).status == status

    @given(
        words.filter(lambda word: word not in ("complete", "failed", "cancelled"))
        | st.sampled_from(["terminated", "active", "pending", "Complete"])
    )
    def test_other_ways_to_finish(self, status):
        """What nobody can finish as is refused before it is sent; `terminated` is the platform's alone."""
        for kind in (FinishInstanceRequest, FinishSpanRequest):
            with pytest.raises(ValidationError, match="status"):
                kind(status=status)

    @given(words.filter(lambda word: word not in typing.get_args(models.AgentStatus)))
    def test_other_states_of_a_new_span(self, status):
        """A new span has a status that is known."""
        with pytest.raises(ValidationError, match="status"):
            CreateAgentSpanRequest(agent_instance_id="i", schema_name="s", status=status)

    @given(words.filter(lambda word: word not in ("live", "smoke_test", "eval")))
    def test_other_purposes(self, purpose):
        """A run is registered for a purpose that is known."""
        with pytest.raises(ValidationError, match="purpose"):
            RegisterAgentInstanceRequest(agent_version={}, agent_schema_version={}, purpose=purpose)

    def test_what_must_be_said(self):
        """The message names each field that is missing."""
        for kind, fields in {
            RegisterAgentInstanceRequest: ["agent_version", "agent_schema_version"],
            CreateAgentSpanRequest: ["agent_instance_id", "schema_name", "status"],
            TerminateInstanceRequest: ["reason"],
            AgentInstanceRecordQuality: ["name"],
            models.AgentForCreate: ["name"],
            SpanTypeSchemaForCreate: ["name", "params_schema"],
        }.items():
            with pytest.raises(ValidationError) as raised:
                kind()
            assert [each["loc"][0] for each in raised.value.errors()] == fields

    @pytest.mark.parametrize("length", [7, 65])
    def test_keys_of_bulk_items(self, length):
        """8 to 64 characters."""
        with pytest.raises(ValidationError, match="idempotency_key"):
            BulkItem(_type="agents/list", idempotency_key="k" * length)
        for good in (8, 64):
            assert BulkItem(_type="agents/list", idempotency_key="k" * good).type == "agents/list"

    def test_bulk_requests(self):
        """At least one call, and no key twice; what a call takes stands beside its name and key."""
        item = BulkItem(_type="agents/show", idempotency_key="12345678", agent_id="a")
        request = BulkRequest(items=[item])
        assert request.model_dump(by_alias=True) == {
            "items": [{"_type": "agents/show", "idempotency_key": "12345678", "agent_id": "a"}]
        }
        assert BulkRequest.model_validate_json(request.model_dump_json(by_alias=True)) == request
        with pytest.raises(ValidationError, match="items"):
            BulkRequest(items=[])
        with pytest.raises(ValidationError, match="twice"):
            BulkRequest(items=[item, item])

    def test_bulk_answers(self):
        """What a call answered is read field by field; a call that was not attempted is not there."""
        read = BulkResponse.model_validate(
            {"outputs": {"12345678": {"status": "error", "code": "not_found", "message": "m"}}}
        )
        output = read.outputs["12345678"]
        assert (read.status, output.status, output.code, output.message) == (
            "success",
            "error",
            "not_found",
            "m",
        )


# -- one by one --------------------------------------------------------------------------------------------


class TestQualitySchemas:
    DETAILS = {
        "name": "verdict",
        "title": "Verdict",
        "data_risk": {"action_profile": {}, "params_data_categories": {}, "result_data_categories": {}},
        "schema": {"type": "object"},
        "schema_validation": {"status": "success", "message": None},
    }

    @pytest.mark.parametrize("name", ["schema", "schema_"])
    def test_both_names_of_the_schema(self, name):
        """`schema` on the wire, `schema_` in Python, where a model has a method of that name already; both are read."""
        made = QualitySchemaForCreate(name="verdict", **{name: {"type": "object"}})
        assert made.schema_ == {"type": "object"}
        assert made.model_dump(by_alias=True)["schema"] == {"type": "object"}
        assert "schema_" not in made.model_dump(by_alias=True)
        assert json.loads(made.model_dump_json(by_alias=True, exclude_none=True)) == {
            "name": "verdict",
            "schema": {"type": "object"},
        }
        assert QualitySchemaForCreate.model_validate(made.model_dump()) == made
        assert QualitySchemaForCreate.model_validate(made.model_dump(by_alias=True)) == made

    def test_as_the_platform_tells_them(self):
        """Title, risk and validation come with it, and it dumps back as it came."""
        read = QualitySchemaDetails.model_validate(self.DETAILS)
        assert (read.title, read.schema_, read.schema_validation["status"]) == (
            "Verdict",
            {"type": "object"},
            "success",
        )
        assert read.data_risk.action_profile.read_data == "unknown"
        assert contains(read.model_dump(by_alias=True), self.DETAILS)

    @pytest.mark.parametrize("name", sorted(DETAILS))
    def test_what_the_platform_always_tells(self, name):
        """None of it may be missing."""
        with pytest.raises(ValidationError, match=name):
            QualitySchemaDetails.model_validate(
                {key: self.DETAILS[key] for key in self.DETAILS if key != name}
            )

    def test_in_a_registration(self):
        """A mapping and a model are the same there."""
        plain = AgentSchemaVersionForRegister(quality_schemas=[{"name": "verdict", "schema": {}}])
        made = AgentSchemaVersionForRegister(
            quality_schemas=[QualitySchemaForCreate(name="verdict", schema={})]
        )
        assert plain == made


class TestRisk:
    def test_actions(self):
        """Six, unknown unless said."""
        assert ActionProfile().model_dump() == dict.fromkeys(
            [
                "create_data",
                "read_data",
                "update_data",
                "destroy_data",
                "financial_transactions",
                "external_communication",
            ],
            "unknown",
        )

    def test_categories(self):
        """Seventeen and how confidential they are, unknown unless said."""
        told = DataCategories().model_dump()
        assert told.pop("classification") == "unknown"
        assert told == dict.fromkeys(
            [
                "personal_identifiers",
                "contact_information",
                "financial_information",
                "health_and_medical",
                "criminal_justice",
                "authentication_and_secrets",
                "organisational_confidential",
                "minors_data",
                "location_and_tracking",
                "behavioural_and_inferred",
                "gdpr_racial_or_ethnic_origin",
                "gdpr_political_opinions",
                "gdpr_religious_or_philosophical_beliefs",
                "gdpr_trade_union_membership",
                "gdpr_genetic_data",
                "gdpr_biometric_for_identification",
                "gdpr_sex_life_or_sexual_orientation",
            ],
            "unknown",
        )
        assert len(told) == 17

    def test_as_the_documented_package(self):
        """The same names and defaults."""
        theirs = pytest.importorskip("prefactor_http.models.agent_instance")
        for name in ("ActionProfile", "DataCategories"):
            assert getattr(models, name)().model_dump() == getattr(theirs, name)().model_dump()

    def test_words(self):
        """The known ones are the contract's."""
        for annotation in hints(ActionProfile).values():
            assert known_words(annotation) in (None, ("unknown", "allowed", "disallowed"))
        assert known_words(hints(DataCategories)["minors_data"]) == ("unknown", "included", "excluded")
        assert known_words(hints(DataCategories)["classification"]) == (
            "unknown",
            "public",
            "internal",
            "confidential",
            "restricted",
            "secret",
        )

    def test_more_than_we_know(self):
        """Fields and words that are added later are kept, at every depth."""
        risk = {
            "action_profile": {"time_travel": "allowed", "read_data": "perhaps"},
            "params_data_categories": {"dreams": "included", "classification": "cosmic"},
            "result_data_categories": {},
            "reviewed_by": {"name": "somebody"},
        }
        read = DataRisk.model_validate(risk)
        assert read.reviewed_by == {"name": "somebody"}
        assert read.action_profile.read_data == "perhaps"
        assert contains(read.model_dump(), risk)
        assert contains(json.loads(read.model_dump_json()), risk)

    def test_whole(self):
        """All three parts are needed."""
        with pytest.raises(ValidationError) as raised:
            DataRisk()
        assert len(raised.value.errors()) == 3


class TestOthers:
    def test_counts_default_to_zero(self):
        """Also those of newer versions of the documented package."""
        assert set(AgentInstanceSpanCounts().model_dump().values()) == {0}
        assert set(models.AgentInstanceCounts().model_dump().values()) == {0}

    @pytest.mark.parametrize(
        ("told", "moment"),
        [
            ("2026-01-02T03:04:05Z", datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)),
            ("2026-01-02T03:04:05.678901Z", datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=timezone.utc)),
            ("2026-01-02T04:04:05+01:00", datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone.utc)),
            (None, None),
        ],
    )
    def test_times(self, told, moment):
        """They are read with their zone."""
        assert AgentSpan.model_validate({**SPAN, "started_at": told}).started_at == moment

    def test_pages(self):
        """A page is a list that knows where it stands."""
        where = {
            "item_count": 3,
            "item_end": 2,
            "item_start": 1,
            "next_page_offset": 2,
            "page_count": 2,
            "page_index": 1,
            "page_offset": 0,
            "page_size": 2,
            "previous_page_offset": None,
        }
        frame = {
            "status": "success",
            "summaries": [SPAN, SPAN],
            "pagination": where,
            "sorting": {"field": "id", "direction": "sideways"},
        }
        page = Page(ListResponse[AgentSpan].model_validate(frame))
        assert isinstance(page, list)
        assert [each.id for each in page] == ["s", "s"]
        assert page.pagination.model_dump() == where
        assert page.sorting.direction == "sideways"

    def test_errors(self):
        """Both forms of a refusal."""
        assert ApiError(code="c", message="m").model_dump() == {
            "status": "error",
            "code": "c",
            "message": "m",
        }
        told = {
            "status": "error",
            "code": "validation_errors",
            "message": "m",
            "errors": {
                "name": ["is missing"],
                "deep": {"status": "error", "code": "required", "message": "m"},
            },
        }
        assert DetailedApiError.model_validate(told).model_dump() == told

    def test_base(self):
        """All models are built alike."""
        assert all(issubclass(each, ApiModel) for each in [*ANSWERS, *REQUESTS])
        assert {each.model_config["extra"] for each in [*ANSWERS, *REQUESTS]} == {"allow"}
