"""A prompt that wants its answer to satisfy a schema, from the wire to the provider and back."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from fathom.gateway.v1.gateway_service_pb2 import ListModelsRequest
from fathom_demo.scripted_model import SUB_MODEL, FaultRule, ScriptedModel

from tests.support.gateway import config_file, gateway_service, generate, metadata

SCHEMA = '{"type": "object", "properties": {"length": {"type": "integer"}}, "required": ["length"]}'


async def answers(path: Path, model: ScriptedModel, keys: str, *requests: Any) -> list[str]:
    """Return what a gateway over a model answers, whose deployment has further keys."""
    async with model:
        file = config_file(path / "c.toml", [model.base_url], deployment_keys=keys)
        file.write_text(file.read_text().replace("id-0", SUB_MODEL))
        async with gateway_service(file) as stub:
            return [
                (await stub.Generate(request, metadata=metadata(), timeout=20)).generation.text
                for request in requests
            ]


async def test_a_deployment_that_takes_schemas_answers_in_their_form(tmp_path: Path) -> None:
    model, asked = ScriptedModel(), generate(response_schema_json=SCHEMA)

    (text,) = await answers(tmp_path, model, "structured_output = true", asked)

    assert isinstance(json.loads(text)["length"], int)


@pytest.mark.parametrize("keys", ["", "structured_output = true"])
async def test_an_answer_that_is_not_in_the_form_is_passed_on_as_it_is(
    keys: str, tmp_path: Path
) -> None:
    """By a deployment that is not sent the schema, or a model that ignores it: whether the answer
    will do is the caller's to say."""
    model = ScriptedModel(faults=[FaultRule("ignore_schema")])

    (text,) = await answers(tmp_path, model, keys, generate(response_schema_json=SCHEMA))

    assert text
    assert not text.startswith("{")
    assert ("response_format" in model.requests[0].body) is bool(keys)


async def test_models_say_whether_they_take_schemas(tmp_path: Path) -> None:
    file = config_file(tmp_path / "c.toml", ["http://127.0.0.1:1/v1"] * 2)
    file.write_text(file.read_text().replace('"id-1"', '"id-1"\nstructured_output = true'))
    async with gateway_service(file) as stub:
        listed = await stub.ListModels(ListModelsRequest(), metadata=metadata(), timeout=30)

    assert [model.structured_output for model in listed.models] == [False, True]


async def test_another_schema_is_another_question(tmp_path: Path) -> None:
    """In the cache, at temperature 0."""
    model = ScriptedModel()
    plain, shaped = generate(temperature=0.0), generate(temperature=0.0)
    shaped.prompt.response_schema_json = SCHEMA

    texts = await answers(tmp_path, model, "structured_output = true", plain, shaped, shaped)

    assert model.counters["requests"] == 2
    assert texts[0] != texts[1] == texts[2]
