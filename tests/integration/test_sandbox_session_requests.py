"""Requests to make sessions and to run cells: each field on either side of what it may be."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.sandbox.v1 import sandbox_service_pb2 as wire
from fathom.sandbox.v1 import session_pb2
from google.protobuf.duration_pb2 import Duration

from tests.support.sandbox import Sandbox, guest, sandbox
from tests.support.sandbox_calls import refused, rest

pytestmark = pytest.mark.guest


def shape(characters: int, code_point_max: int) -> session_pb2.TextShape:
    return session_pb2.TextShape(characters=characters, code_point_max=code_point_max)


def mount(**fields: Any) -> session_pb2.ContextMount:
    """A context that is right but for the fields given."""
    right: dict[str, Any] = {
        "variable": "context",
        "kind": session_pb2.ContextMount.KIND_TEXT,
        "blob_key": "contexts/1",
        "size_bytes": 3,
    }
    return session_pb2.ContextMount(**right | fields)


def documents(*ranges: session_pb2.DocumentRange) -> session_pb2.ContextMount:
    return mount(kind=session_pb2.ContextMount.KIND_DOCUMENTS, documents=ranges)


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with sandbox(guest(), tmp_path) as running:
        yield running


MANY_DOCUMENTS = [
    session_pb2.ContextMount(
        variable=variable,
        kind=session_pb2.ContextMount.KIND_DOCUMENTS,
        blob_key="blob",
        documents=[session_pb2.DocumentRange(name=str(i)) for i in range(count)],
    )
    for variable, count in (("a", 100_000), ("b", 1))
]


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        (
            {"limits": session_pb2.SessionLimits(memory_bytes_max=1 << 20)},
            "limits.memory_bytes_max",
        ),
        ({"limits": session_pb2.SessionLimits(fuel_max=0)}, "limits.fuel_max"),
        ({"limits": session_pb2.SessionLimits(output_bytes_max=-1)}, "limits.output_bytes_max"),
        ({"limits": session_pb2.SessionLimits(sub_calls_max=-1)}, "limits.sub_calls_max"),
        (
            {"limits": session_pb2.SessionLimits(execute_time_max=Duration())},
            "limits.execute_time_max",
        ),
        ({"idle_ttl": Duration()}, "idle_ttl"),
        ({"request_id": "x" * 257}, "request_id"),
        ({"labels": {str(i): "" for i in range(17)}}, "labels"),
        ({"labels": {"k": "v" * 257}}, "labels"),
        ({"contexts": [mount(variable="no name")]}, "contexts[0].variable"),
        ({"contexts": [mount(variable="class")]}, "contexts[0].variable"),
        ({"contexts": [mount(), mount()]}, "contexts[1].variable"),
        ({"contexts": [mount(kind=0)]}, "contexts[0].kind"),
        ({"contexts": [mount(blob_key="../x")]}, "contexts[0].blob_key"),
        ({"contexts": [mount(blob_key="/etc/passwd")]}, "contexts[0].blob_key"),
        ({"contexts": [mount(blob_key="evicted/1")]}, "contexts[0].blob_key"),
        ({"contexts": [mount(blob_key="checkpoints/layers/1")]}, "contexts[0].blob_key"),
        ({"contexts": [mount(size_bytes=-1)]}, "contexts[0].size_bytes"),
        ({"contexts": [mount(text_shape=shape(4, 0))]}, "contexts[0].text_shape.characters"),
        (
            {"contexts": [mount(text_shape=shape(3, 0x110000))]},
            "contexts[0].text_shape.code_point_max",
        ),
        (
            {"contexts": [mount(documents=[session_pb2.DocumentRange(name="a")])]},
            "contexts[0].documents",
        ),
        (
            {"contexts": [documents(session_pb2.DocumentRange(name="a", size_bytes=4))]},
            "contexts[0].documents[0]",
        ),
        (
            {
                "contexts": [
                    documents(
                        session_pb2.DocumentRange(name="a"), session_pb2.DocumentRange(name="a")
                    )
                ]
            },
            "contexts[0].documents[1].name",
        ),
        ({"contexts": MANY_DOCUMENTS}, "contexts"),
        ({"run_token": "two\nlines"}, "run_token"),
        ({"run_token": "\u00e9"}, "run_token"),
        ({"run_token": "x" * 16_385}, "run_token"),
        (
            {
                "contexts": [
                    documents(
                        session_pb2.DocumentRange(name="a", offset_bytes=1, size_bytes=2),
                        session_pb2.DocumentRange(name="b", size_bytes=2),
                    )
                ]
            },
            "contexts[0].documents",
        ),
    ],
)
async def test_a_field_that_is_wrong_is_named(
    box: Sandbox, fields: dict[str, Any], field: str
) -> None:
    code, reason, metadata = await refused(box.create(**fields))

    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert metadata == {"field": field}


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"limits": session_pb2.SessionLimits(memory_bytes_max=(4 << 30) + 1)}, "memory_bytes_max"),
        ({"limits": session_pb2.SessionLimits(sub_calls_max=10**6 + 1)}, "sub_calls_max"),
        (
            {"limits": session_pb2.SessionLimits(execute_time_max=Duration(seconds=3601))},
            "execute_time_max",
        ),
    ],
)
async def test_a_limit_above_the_ceiling_is_refused(
    box: Sandbox, fields: dict[str, Any], field: str
) -> None:
    """Never silently lowered."""
    code, reason, metadata = await refused(box.create(**fields))

    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "LIMIT_ABOVE_CEILING")
    assert metadata["field"] == f"limits.{field}"


async def test_a_limit_at_the_ceiling_is_taken(box: Sandbox) -> None:
    limits = session_pb2.SessionLimits(memory_bytes_max=4 << 30, sub_calls_max=10**6)

    assert (await box.run(await box.create(limits=limits), "1")).out == "1\n"


@pytest.mark.parametrize(
    ("fields", "field"),
    [
        ({"name": "sessions/"}, "name"),
        ({"name": "runs/1"}, "name"),
        ({"code": ""}, "code"),
        ({"code": "#" * ((1 << 20) + 1)}, "code"),
        ({"turn": -1}, "turn"),
        ({"call_prefix": "x" * 241}, "call_prefix"),
    ],
)
async def test_an_execution_that_is_wrong_is_not_started(
    box: Sandbox, fields: dict[str, Any], field: str
) -> None:
    name = await box.create()
    request = wire.ExecuteRequest(**{"name": name, "code": "1"} | fields)

    code, reason, metadata = await refused(rest(box.stub.Execute(request, timeout=30)))

    assert (code, reason) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD")
    assert metadata == {"field": field}


async def test_code_of_the_largest_size_runs(box: Sandbox) -> None:
    code = "1 #" + "x" * ((1 << 20) - 3)

    assert (await box.run(await box.create(), code)).out == "1\n"
