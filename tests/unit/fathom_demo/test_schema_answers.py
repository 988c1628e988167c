"""Answers in the form of a schema."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import orjson
import pytest
from fathom_demo.scripted_model.openai_wire import BadRequestError, parse_request
from fathom_demo.scripted_model.schema_answers import answer_in_form

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
