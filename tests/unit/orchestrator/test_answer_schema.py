"""Schemas and answers of strangers: what is said of them, and that they harm nobody."""

from __future__ import annotations

import asyncio
import json
import time
from typing import Any

import pytest
from fathom.orchestrator.v1.run_pb2 import Answer

from common.errors import InvalidFieldError
from orchestrator.runs.answers.answer_schema import (
    ANSWER_BYTES_MAX,
    SCHEMA_BYTES_MAX,
    AnswerSchema,
    AnswerSchemas,
    SchemaVerdict,
)

TREE = {"type": "array", "items": {"$ref": "#"}}
LEVELS = {
    f"a{n}": {"anyOf": [{"$ref": f"#/$defs/a{n + 1}"}, {"$ref": f"#/$defs/a{n + 1}"}]}
    for n in range(40)
}
ENDLESS = {
    "properties": {"x": {"$ref": "#/$defs/a0"}},
    "$defs": LEVELS | {"a40": {"type": "string"}},
}


async def check(schema: Any, answer: str) -> SchemaVerdict:
    return await AnswerSchemas().check(json.dumps(schema), answer)


@pytest.mark.parametrize(
    ("schema", "answer", "text"),
    [
        ({"type": "object"}, ' {"a": 1}\n', '{"a": 1}'),
        ({"type": "object"}, 'So:\n```json\n{"a": 1}\n```\nDone.', '{"a": 1}\n'),
        ({"type": "object"}, 'It is {"a": 1}, I think.', '{"a": 1}'),
        ({"type": "string"}, "plain words", '"plain words"'),
        ({"type": "string"}, "see [1]", '"see [1]"'),
        ({"type": "string"}, "42", '"42"'),
        ({"type": ["integer", "string"]}, "42", "42"),
        ({"enum": ["yes", "no"]}, "yes", '"yes"'),
        (True, "null", "null"),
        ({"format": "date"}, '"2024-02-29"', '"2024-02-29"'),
        (TREE, "[" * 128 + "]" * 128, "[" * 128 + "]" * 128),
    ],
)
async def test_json_that_fits_is_found_in_an_answer(schema: Any, answer: str, text: str) -> None:
    assert await check(schema, answer) == SchemaVerdict(text=text.strip())


@pytest.mark.parametrize(
    ("schema", "answer", "errors"),
    [
        ({"type": "object"}, "no JSON", ["$: is no JSON: Expecting value at line 1, column 1"]),
        ({"type": "object"}, "[]", ["$: must be an object, is []"]),
        ({"minItems": 1}, "[]", ["$: [] has less than 1 item"]),
        ({"format": "date"}, '"2023-02-29"', ['$: must be a date, is "2023-02-29"']),
        (
            {"properties": {"a": {"anyOf": [{"type": "null"}, {"required": ["b"]}]}}},
            '{"a": {}}',
            ['$.a: must have "b"'],
        ),
        (
            {"properties": {"c": {}}, "additionalProperties": False},
            '{"a b": 1}',
            ['$: must not have "a b"'],
        ),
        (
            {"additionalProperties": False},
            '{"a b": 1}',
            ["$: must have no other members, has one that is 1"],
        ),
        ({"properties": {"a": False}}, '{"a": 1}', ["$.a: must not be there, is 1"]),
        ({"items": {"const": 1}}, "[1, 2]", ["$[1]: must be 1, is 2"]),
        (TREE, "[" * 129 + "]" * 129, ["$: is nested deeper than 128 levels"]),
        (TREE, "[" * 500_000, ["$: is nested deeper than 128 levels"]),
        ({"type": "number"}, "9" * 401, None),
        ({"type": "number"}, "1e999", None),
        ({"type": "number"}, "NaN", None),
        (
            {"type": "object"},
            '{"a": "\\ud800"}',
            ["$: is no JSON: it has half of a surrogate pair"],
        ),
    ],
)
async def test_what_does_not_fit_is_told_path_by_path(
    schema: Any, answer: str, errors: list[str] | None
) -> None:
    verdict = await check(schema, answer)

    assert verdict.text == ""
    assert list(verdict.errors) == errors if errors is not None else verdict.errors


async def test_errors_are_bounded_in_number_and_size() -> None:
    answer = json.dumps(["y" * 1_000] * 1_000)
    verdict = await check({"items": {"const": "x" * 1_000}}, answer)

    assert len(verdict.errors) == 20
    assert max(map(len, verdict.errors)) <= 300


@pytest.mark.parametrize(
    ("schema", "answer"),
    [
        (ENDLESS, '{"x": 1}'),
        ({"items": {"anyOf": [{"const": n} for n in range(2_500)]}}, json.dumps([0.5] * 50_000)),
    ],
)
async def test_a_check_without_end_is_ended_and_the_loop_goes_on(schema: Any, answer: str) -> None:
    """A stranger's schema must not keep the other runs waiting."""
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.01)
            ticks += 1

    for _ in range(3):  # a machine that stands still meanwhile lets the loop go on as little
        ticking = asyncio.create_task(tick())
        verdict = await check(schema, answer)
        ticking.cancel()
        if ticks > 5:
            break

    assert verdict.text == ""
    assert len(verdict.errors) == 1
    assert "too long" in verdict.errors[0]
    assert ticks > 5  # some 100, and at most one each time where the loop waits


@pytest.mark.parametrize(
    ("schema", "answer"),
    [
        ({"$ref": "#"}, "1"),
        ({"allOf": [{"$ref": "#"}]}, "{}"),
        ({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}, "1"),
        ({"pattern": "^(a+)+$"}, json.dumps("a" * 900_000 + "!")),
        ({"patternProperties": {"^(a|a)*$": {}}}, json.dumps({"a" * 900_000 + "!": 1})),
        ({"uniqueItems": True}, json.dumps([[n] for n in range(100_000)])),
        ({"multipleOf": 1e-300}, "1e300"),
        ({"multipleOf": 0.01}, "19.99"),
        ({"maxLength": 10**18}, '"x"'),
        ({"minItems": 10**18}, "[]"),
    ],
)
async def test_hostile_schemas_end_within_their_bounds(schema: Any, answer: str) -> None:
    """Whatever comes of them, there is a verdict."""
    schemas = AnswerSchemas()
    started = time.monotonic()
    await schemas.check_schema(json.dumps(schema))
    verdict = await schemas.check(json.dumps(schema), answer)

    assert bool(verdict.text) is not bool(verdict.errors)
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(("extra", "is_taken"), [(0, True), (1, False)])
async def test_a_schema_and_an_answer_have_a_largest_size(extra: int, is_taken: bool) -> None:
    schemas = AnswerSchemas()
    schema = '{"title": "' + "x" * (SCHEMA_BYTES_MAX - 13 + extra) + '"}'
    answer = '"' + "x" * (ANSWER_BYTES_MAX - 2 + extra) + '"'

    if is_taken:
        await schemas.check_schema(schema)
    else:
        with pytest.raises(InvalidFieldError, match="at most 65536"):
            await schemas.check_schema(schema)
    assert bool((await schemas.check("true", answer)).text) is is_taken


async def test_an_answer_of_a_run_without_a_schema_is_left_alone() -> None:
    answer = Answer(text="words")
    await AnswerSchema(AnswerSchemas(), "").fit(answer)

    assert answer == Answer(text="words")


@pytest.mark.parametrize(
    ("schema", "bytes_max", "is_enforced"),
    [
        ('{"type": "object"}', 72, True),
        ('{"type": "object"}', 71, False),
        ("true", 1_000, False),
        ("", 1_000, False),
    ],
)
def test_a_model_is_held_to_a_schema_that_leaves_room_for_the_conversation(
    schema: str, bytes_max: int, is_enforced: bool
) -> None:
    """What is sent as the schema is paid as input, from what was kept back for the answer."""
    enforced = AnswerSchema(AnswerSchemas(), schema).enforced(bytes_max=bytes_max)

    assert enforced == (schema if is_enforced else "")
