"""Answers in the form of a schema."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import orjson
import pytest
from fathom_demo.scripted_model.openai_wire import BadRequestError, parse_request
from fathom_demo.scripted_model.schema_answers import answer_in_form, value_in_form

from orchestrator.profiles.profiles import SHIPPED

SCHEMAS: list[dict[str, Any]] = [
    {"type": "string"},
    {"type": ["integer", "null"]},
    {"type": "boolean"},
    {"type": "null"},
    {"const": {"a": 1}},
    {"enum": ["red", "green"]},
    {"anyOf": [{"type": "number"}, {"type": "string"}]},
    {"type": "array", "items": {"type": "integer"}, "minItems": 3},
    {
        "type": "object",
        "properties": {"name": {"type": "string"}, "parts": {"$ref": "#/$defs/parts"}},
        "required": ["name", "parts"],
        "additionalProperties": False,
        "$defs": {"parts": {"type": "array", "items": {"type": "number"}}},
    },
]


@pytest.mark.parametrize("schema", SCHEMAS, ids=json.dumps)
def test_an_answer_satisfies_its_schema(schema: dict[str, Any]) -> None:
    """Judged by somebody else's validator."""
    answer = json.loads(answer_in_form("The green box has 42 parts.", schema))

    assert jsonschema_rs.is_valid(schema, answer)


def test_an_answer_still_says_what_was_said() -> None:
    properties = {
        "text": {"type": "string"},
        "count": {"type": "integer"},
        "hue": {"enum": ["red", "green"]},
    }

    answer = answer_in_form("The green box has 42 parts.", {"properties": properties})

    assert json.loads(answer) == {
        "text": "The green box has 42 parts.",
        "count": 42,
        "hue": "green",
    }


def test_a_number_is_the_one_after_its_name() -> None:
    """As where records were counted by category."""
    properties = {"late_mail": {"type": "integer"}, "praise": {"type": "number"}}

    answer = answer_in_form("3 kinds: praise: 12, late mail: 7", {"properties": properties})

    assert json.loads(answer) == {"late_mail": 7, "praise": 12.0}


PLACES = [{"quote": q, "document": "a", "start": 1, "end": 2} for q in ("one", "two", "three")]


@pytest.mark.parametrize("profile", ["search", "code-review", "contract-review", "research"])
@pytest.mark.parametrize("places", [0, 1, 3])
def test_answers_fit_the_schemas_of_the_shipped_profiles(profile: str, places: int) -> None:
    """Whoever tries a profile without a key gets an answer of its form, with each place once."""
    schema = json.loads((SHIPPED / profile / "answer.json").read_text())

    value = value_in_form("It is so.", schema, PLACES[:places])

    assert jsonschema_rs.is_valid(schema, value)
    told = json.dumps(value)
    assert [told.count(f'"{place["quote"]}"') for place in PLACES] == [
        int(number < places) for number in range(len(PLACES))
    ]


def test_a_schema_that_holds_itself_has_an_end() -> None:
    endless = {"type": "object", "properties": {"next": {"$ref": "#"}}}

    assert json.loads(answer_in_form("x", endless))


@pytest.mark.parametrize(
    "wanted",
    ["json", {"type": "json_schema"}, {"type": "json_schema", "json_schema": {"name": "a"}}],
)
def test_a_response_format_that_cannot_be_is_refused(wanted: Any) -> None:
    body = {"model": "m", "messages": [{"role": "user"}], "response_format": wanted}

    with pytest.raises(BadRequestError, match="response_format"):
        parse_request(orjson.dumps(body))
