"""Schemas as people write them on a command line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fathom_client.schemas import SchemaTextError, read_schema


def test_fields_become_an_object_of_them() -> None:
    assert json.loads(read_schema("name, age int, tags str[], paid bool, fee float?")) == {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer"},
            "tags": {"type": "array", "items": {"type": "string"}},
            "paid": {"type": "boolean"},
            "fee": {"type": "number"},
        },
        "required": ["name", "age", "tags", "paid"],
        "additionalProperties": False,
    }


def test_one_field_is_enough() -> None:
    assert json.loads(read_schema("total int"))["required"] == ["total"]


def test_json_is_taken_as_it_is() -> None:
    assert read_schema(' {"type": "object"}') == ' {"type": "object"}'


def test_a_file_is_read(tmp_path: Path) -> None:
    path = tmp_path / "answer.json"
    path.write_text('{"type": "array"}')

    assert read_schema(str(path)) == '{"type": "array"}'


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("age integer number", "is no field"),
        ("name, age year", "'age year' is no field"),
        ("name,", "'' is no field"),
        ("a, a", "'a' is there twice"),
        ("{", "the schema is no JSON"),
        ("missing.json", "missing.json: cannot be read: No such file or directory$"),
    ],
)
def test_what_is_no_schema_is_an_error_that_says_what_would_be(text: str, problem: str) -> None:
    with pytest.raises(SchemaTextError, match=problem):
        read_schema(text)


@pytest.mark.parametrize("content", ["[]", "no", "3"])
def test_a_file_of_something_else_is_an_error(tmp_path: Path, content: str) -> None:
    path = tmp_path / "answer.json"
    path.write_text(content)

    with pytest.raises(SchemaTextError, match=r"answer\.json is no JSON"):
        read_schema(str(path))
