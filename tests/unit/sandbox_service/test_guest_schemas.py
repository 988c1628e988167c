"""The guest's own check of answers against a JSON Schema, compared with a whole implementation."""

from __future__ import annotations

import json
from typing import Any

import jsonschema_rs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sandbox_service.guest.schemas import ERRORS_MAX, Schema, parsed

PRICES = {
    "type": "object",
    "properties": {
        "items": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"price": {"type": "number"}, "kind": {"enum": ["a", "b"]}},
                "required": ["price"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["items"],
}


@pytest.mark.parametrize(
    ("value", "errors"),
    [
        ({"items": [{"price": 3}]}, []),
        (
            {"items": [{"price": 1}, {"price": "12 EUR", "kind": "c", "x": 1}, {}]},
            [
                '$.items[1].price: must be a number, is "12 EUR"',
                '$.items[1].kind: must be one of "a", "b", is "c"',
                '$.items[1]: must not have "x"',
                '$.items[2]: must have "price"',
            ],
        ),
        ([], ["$: must be an object, is []"]),
    ],
)
def test_every_error_is_told_with_its_path(value: Any, errors: list[str]) -> None:
    """A model that is told where it went wrong mends that and nothing else."""
    assert Schema(PRICES).errors(value) == errors


def test_of_alternatives_the_nearest_one_is_told() -> None:
    schema = Schema({"anyOf": [{"type": "null"}, {"type": "object", "required": ["name"]}]})

    assert schema.errors({}) == ['$: must have "name"']


def test_errors_are_bounded_in_number_and_size() -> None:
    schema = Schema({"items": {"const": "x" * 1_000}})

    errors = schema.errors(["y" * 1_000] * 1_000)

    assert len(errors) == ERRORS_MAX
    assert max(map(len, errors)) <= 300


@pytest.mark.parametrize(
    ("schema", "problem"),
    [
        ({"type": "text"}, r"\$\.type must be one of string"),
        ({"properties": {"a": {"minimum": "3"}}}, r"\$\.properties\.a\.minimum must be a number"),
        ({"items": [{}]}, r"\$\.items must be a schema"),
        ({"pattern": "("}, r"\$\.pattern must be a regular expression"),
        ({"required": "a"}, r"\$\.required must be a list of names"),
        ({"anyOf": {}}, r"\$\.anyOf must be a list"),
        ({"properties": []}, r"\$\.properties must be a dict"),
        ({"enum": "abc"}, r"\$\.enum must be a list"),
        ({"multipleOf": 0}, r"\$\.multipleOf must be a number"),
        ({"$ref": "https://example.org/s"}, "must be within the schema"),
        ({"$ref": "#/$defs/none"}, "leads nowhere"),
        ({"unevaluatedProperties": False}, r"\$\.unevaluatedProperties is not offered"),
        ("{", "is no JSON"),
        (3, "must be a schema"),
        ({"title": "x" * (64 << 10)}, "at most"),
    ],
)
def test_a_schema_that_is_wrong_is_refused_before_anything_is_asked(
    schema: Any, problem: str
) -> None:
    """A keyword that is passed over would be a check that the model believes was made."""
    with pytest.raises(ValueError, match=problem):
        Schema(schema)


def test_a_schema_without_end_is_an_error() -> None:
    with pytest.raises(ValueError, match="without end"):
        Schema({"$ref": "#"}).errors(1)


def test_a_recursive_schema_follows_the_value() -> None:
    tree = {"type": "object", "properties": {"next": {"$ref": "#"}}, "additionalProperties": False}

    assert Schema(tree).errors({"next": {"next": {"x": 1}}}) == ['$.next.next: must not have "x"']


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1}', {"a": 1}),
        ('Here it is:\n```json\n{"a": 1}\n```\n', {"a": 1}),
        ('Sure! {"a": [1, 2]} is the answer.', {"a": [1, 2]}),
        ("[1]", [1]),
        ("3", 3),
        ("null", None),
    ],
)
def test_json_is_found_in_an_answer(text: str, value: Any) -> None:
    """Models like to wrap it."""
    assert parsed(text) == value


@pytest.mark.parametrize("text", ["", "no", "{", "NaN", "[" * 100_000])
def test_what_is_no_json_is_an_error(text: str) -> None:
    with pytest.raises(ValueError, match="is n"):
        parsed(text)


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 12)
    | st.sampled_from([0.5, 1.0, 2.5])
    | st.sampled_from(["", "a", "ab", "abc", "b1"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from("abc"), inner, max_size=3)
    ),
    max_leaves=8,
)
_simple = st.fixed_dictionaries(
    {},
    optional={
        "type": st.sampled_from(
            ["string", "number", "integer", "boolean", "object", "array", "null"]
        )
        | st.lists(st.sampled_from(["string", "integer", "null"]), min_size=1, unique=True),
        "enum": st.lists(values, min_size=1, max_size=3),
        "const": values,
        "minimum": st.integers(0, 5),
        "exclusiveMaximum": st.integers(0, 5),
        "multipleOf": st.sampled_from([1, 2, 0.5]),
        "minLength": st.integers(0, 3),
        "maxLength": st.integers(0, 3),
        "pattern": st.sampled_from(["^a", "b", "[0-9]$"]),
        "minItems": st.integers(0, 2),
        "maxItems": st.integers(0, 2),
        "uniqueItems": st.booleans(),
        "required": st.lists(st.sampled_from("abc"), unique=True, max_size=2),
        "maxProperties": st.integers(0, 2),
        "dependentRequired": st.dictionaries(st.sampled_from("ab"), st.just(["c"]), max_size=1),
    },
)


def _nested(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    parts = st.lists(inner, min_size=1, max_size=3)
    return st.fixed_dictionaries(
        {},
        optional={
            "properties": st.dictionaries(st.sampled_from("abc"), inner, max_size=2),
            "patternProperties": st.dictionaries(st.sampled_from(["^a", "b"]), inner, max_size=1),
            "additionalProperties": inner,
            "propertyNames": st.sampled_from([True, {"maxLength": 0}, {"pattern": "a"}]),
            "dependentSchemas": st.dictionaries(st.sampled_from("ab"), inner, max_size=1),
            "items": inner,
            "prefixItems": parts,
            "contains": inner,
            "minContains": st.integers(0, 2),
            "maxContains": st.integers(0, 2),
            "allOf": parts,
            "anyOf": parts,
            "oneOf": parts,
            "not": inner,
            "if": inner,
            "then": inner,
            "else": inner,
        },
    )


schemas = st.recursive(st.booleans() | _simple, _nested, max_leaves=6)


@settings(max_examples=400, deadline=None)
@given(schemas, values)
def test_it_agrees_with_a_whole_implementation(schema: Any, value: Any) -> None:
    """The guest's check is small; it is not to be a second opinion."""
    expected = jsonschema_rs.Draft202012Validator(schema).is_valid(value)

    assert (Schema(schema).errors(value) == []) is expected, json.dumps([schema, value])
