"""Callers with API keys: each sees its own tenant, and nothing tells it that there are others."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.orchestrator.v1 import (
    context_service_pb2,
    conversation_service_pb2,
    orchestrator_service_pb2,
)
from fathom.orchestrator.v1.context_pb2 import Context
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor

from common.errors import received
from tests.support.orchestrator import TIMEOUT_S, Stack, chunk, orchestrator, start

KEYS = {"ours": "key-of-ours", "theirs": "key-of-theirs"}
FILES = (orchestrator_service_pb2, context_service_pb2, conversation_service_pb2)
METHODS = [
    method
    for file in FILES
    for service in file.DESCRIPTOR.services_by_name.values()
    for method in service.methods
]
BY_RUN_TOKEN = {"RunChild"}
"""Called by the sandbox service, which brings no API key."""


def key_of(tenant: str) -> tuple[tuple[str, str], ...]:
    """Return the metadata of a tenant's calls."""
    return (("authorization", f"Bearer {KEYS[tenant]}"),)


@pytest.fixture
async def stack(tmp_path: Path) -> AsyncIterator[Stack]:
    file = tmp_path / "keys.toml"
    digests = {tenant: hashlib.sha256(key.encode()).hexdigest() for tenant, key in KEYS.items()}
    file.write_text(
        "".join(
            f'[keys.{tenant}]\ntenant = "{tenant}"\nsha256 = "{digest}"\n'
            for tenant, digest in digests.items()
        )
    )
    async with orchestrator(tmp_path, api_keys_file=file) as running:
        yield running


async def call(stack: Stack, method: MethodDescriptor, request: Any, metadata: Any) -> Any:
    """Make a call; return its answer, a list of them for a stream."""
    path = f"/{method.containing_service.full_name}/{method.name}"
    answer = message_factory.GetMessageClass(method.output_type)
    shape = f"{'stream' if method.client_streaming else 'unary'}_" + (
        "stream" if method.server_streaming else "unary"
    )
    make = getattr(stack.channel, shape)(
        path,
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=answer.FromString,
    )
    sent = iter([request]) if method.client_streaming else request
    going = make(sent, metadata=metadata, timeout=TIMEOUT_S)
    if not method.server_streaming:
        return await going
    return [each async for each in going]


async def question(stack: Stack, tenant: str, text: bytes = b"some text\n") -> tuple[str, str]:
    """Have a tenant upload a text and ask about it; return the names of context and run."""
    metadata = key_of(tenant)
    upload = stack.contexts.UploadContext(
        iter([start(Context.KIND_TEXT), chunk(text, 0)]), metadata=metadata, timeout=TIMEOUT_S
    )
    context = (await upload).context.name
    pb = orchestrator_service_pb2
    request = pb.CreateRunRequest()
    request.spec.question, request.spec.context = "What is it?", context
    stack.gateway.replies = ["FINAL(it)"]
    run = (await stack.runs.CreateRun(request, metadata=metadata, timeout=TIMEOUT_S)).run
    watch = pb.WatchRunRequest(name=run.name)
    async for _ in stack.runs.WatchRun(watch, metadata=metadata, timeout=TIMEOUT_S):
        pass
    return context, run.name


@pytest.mark.parametrize(
    "method", [m for m in METHODS if m.name not in BY_RUN_TOKEN], ids=lambda m: m.name
)
async def test_every_method_asks_for_a_key(stack: Stack, method: MethodDescriptor) -> None:
    request = message_factory.GetMessageClass(method.input_type)()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(stack, method, request, ())
    error = received(caught.value)
    assert error.code is grpc.StatusCode.UNAUTHENTICATED
    assert error.metadata["problem"] == "missing"


@pytest.mark.parametrize(
    "method", [m for m in METHODS if "name" in m.input_type.fields_by_name], ids=lambda m: m.name
)
async def test_what_another_tenant_has_is_not_found(stack: Stack, method: MethodDescriptor) -> None:
    """The same answer as for what nobody has: existence is a secret too."""
    context, run = await question(stack, "theirs")
    names = {"ContextService": context, "OrchestratorService": run}
    name = names.get(method.containing_service.name, "conversations/" + "0" * 28)
    request = message_factory.GetMessageClass(method.input_type)(name=name)
    if "after_turn" in method.input_type.fields_by_name:
        request = message_factory.GetMessageClass(method.input_type)(name=name, after_turn=1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(stack, method, request, key_of("ours"))
    error = received(caught.value)
    assert error.code in {grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED}
    if error.code is grpc.StatusCode.NOT_FOUND:
        assert error.metadata["resource"] == name


@pytest.mark.parametrize(
    "method",
    [m for m in METHODS if m.name in {"ListRuns", "ListContexts"}],
    ids=lambda m: m.name,
)
async def test_lists_hold_the_own_tenants_alone(stack: Stack, method: MethodDescriptor) -> None:
    names = await question(stack, "theirs")
    request = message_factory.GetMessageClass(method.input_type)()
    answer = await call(stack, method, request, key_of("ours"))
    assert not answer.ListFields()
    assert names[0] in str(await call(stack, method, request, key_of("theirs")))


async def test_a_run_cannot_read_another_tenants_context(stack: Stack) -> None:
    context, _ = await question(stack, "theirs")
    request = orchestrator_service_pb2.CreateRunRequest()
    request.spec.question, request.spec.context = "What is it?", context
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stack.runs.CreateRun(request, metadata=key_of("ours"), timeout=TIMEOUT_S)
    error = received(caught.value)
    assert error.reason == ErrorReason.ERROR_REASON_RESOURCE_NOT_FOUND
    assert error.metadata["resource"] == context


async def test_equal_request_ids_of_two_tenants_are_two_runs(stack: Stack) -> None:
    runs = []
    for tenant in KEYS:
        context, _ = await question(stack, tenant)
        request = orchestrator_service_pb2.CreateRunRequest(request_id="the same")
        request.spec.question, request.spec.context = "What is it?", context
        answer = await stack.runs.CreateRun(request, metadata=key_of(tenant), timeout=TIMEOUT_S)
        runs.append(answer.run.name)
    assert len(set(runs)) == len(KEYS)


async def test_model_calls_are_made_in_the_callers_tenant(stack: Stack) -> None:
    """Quotas and spend follow the key."""
    await question(stack, "theirs")
    assert {token.tenant for token in stack.gateway.tokens} == {"theirs"}
