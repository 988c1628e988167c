"""A conversation over the real sandbox: what a checkpoint of a real session brings back."""

from __future__ import annotations

from pathlib import Path

import pytest
from fathom.orchestrator.v1 import conversation_service_pb2 as conversation_pb
from fathom.orchestrator.v1 import conversation_service_pb2_grpc
from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1.conversation_service_pb2 import Conversation
from fathom.orchestrator.v1.run_pb2 import Run, RunSpec

from tests.support.eventually import eventually
from tests.support.fake_gateway import Script
from tests.support.orchestrator import TIMEOUT_S, Stack, orchestrator
from tests.support.sandbox import guest, sandbox

pytestmark = pytest.mark.guest


def cell(code: str) -> str:
    return f"```repl\n{code}\n```"


async def ask(stack: Stack, conversation: Conversation, *replies: Script) -> Run:
    stack.gateway.replies = list(replies)
    spec = RunSpec(question="why?", conversation=conversation.name)
    request = pb.CreateRunRequest(spec=spec)
    run = (await stack.runs.CreateRun(request, timeout=TIMEOUT_S)).run
    return (await stack.watch(run))[-1].run_changed


async def test_functions_imports_and_the_context_come_back(tmp_path: Path) -> None:
    """More than values: a session is all of its memory."""
    objects = tmp_path / "objects"
    objects.mkdir()
    async with (
        sandbox(guest(), objects) as box,
        orchestrator(tmp_path, sandbox_address=box.address) as stack,
    ):
        stub = conversation_service_pb2_grpc.ConversationServiceStub(stack.channel)
        context = await stack.upload(b"one two three\n")
        request = conversation_pb.CreateConversationRequest(
            conversation=Conversation(context=context.name)
        )
        made = (await stub.CreateConversation(request, timeout=TIMEOUT_S)).conversation
        first = await ask(
            stack,
            made,
            cell("import re\ndef words():\n    return re.findall(r'\\w+', context)\nn = 41"),
            cell("FINAL(n)"),
        )
        second = await ask(stack, made, cell("n += len(words()) - 2\nFINAL(n)"))
        third = await ask(stack, made, cell("FINAL([n, words()[-1]])"))
        await eventually(lambda: not len(box.table))

    assert (first.answer.text, second.answer.text) == ("41", "42")
    assert third.answer.text == '[42, "three"]'
