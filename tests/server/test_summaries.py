"""A span's template becomes its readable line, whatever the template is and whatever the span holds."""

from __future__ import annotations

import json

import pytest

from prefactor_trace.server._summaries import summary


def line(template, payload=None, result=None):
    return summary(template, json.dumps(payload or {}), None if result is None else json.dumps(result))


def test_fields_of_both():
    """Payload and result are addressed by name; where both have it, the result's holds."""
    template = "{{ inputs.model }}:\n  {{ text | truncate: 10 }} {{ both }}"
    found = line(template, {"inputs": {"model": "m"}, "both": 1}, {"text": "all work and no play", "both": 2})
    assert found == "m: all wor... 2"


def test_what_is_not_there_is_left_out():
    """An empty line is none."""
    assert line("{{ inputs.none }}  {{ gone.too }}") is None
    assert line(None, {"a": 1}) is None


@pytest.mark.parametrize(
    "template",
    [
        "{{ unclosed",
        "{% nonsense %}",
        "{{ a | nofilter }}",
        "{% for i in (1..100000000) %}x{% endfor %}",
        "{% include 'file' %}",
        "{{ a | divided_by: 0 }}",
    ],
)
def test_a_template_that_cannot_work(template):
    """The span is shown without."""
    assert line(template, {"a": 1}) is None


def test_a_long_line_is_cut():
    """Nobody reads more."""
    assert len(line("{{ a }}", {"a": "x" * 50_000})) == 1_000


def test_what_is_sensitive_is_not_in_it():
    """Wrapped values are shown by nobody who only looks at the tree."""
    payload = {
        "inputs": {"name": {"$sensitive": "string", "value": "ann"}, "all": [{"$sensitive": "number"}]}
    }
    assert line("{{ inputs.name }} {{ inputs.all | first }}", payload) == "[sensitive] [sensitive]"
