"""Two tenants of one deployment, of which one has some of everything, and a way to call any method
of any service as either of them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
import uuid
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import fathom
import grpc
import pytest
from fathom.orchestrator.v1 import conversation_service_pb2 as conversation_pb
from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1.context_pb2 import Context
from fathom.orchestrator.v1.run_pb2 import Run, RunSpec
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from common.config import Secret
from common.errors import ReceivedError, received
from common.run_token import RUN_TOKEN_METADATA, RunToken, RunTokenSigner
from tests.support.fake_gateway import TOKEN_KEY
from tests.support.orchestrator import TIMEOUT_S, chunk, document, start
from tests.support.priced_trees import PricedTrees

KEYS = {name: f"key-of-{name}" for name in ("ours", "theirs", "newcomers")}
SECRET = "zebra"
"""In every text that the other tenant gave."""
PLAN = json.dumps({"calls": 1, "children": [{"calls": 1}], SECRET: 1})
INTERNAL = {
    "fathom.sandbox.v1.SandboxService": "called by the orchestrator; told by its certificate",
    "fathom.tools.v1.ToolService": "an operator's, and called by the orchestrator",
}
"""Services that tenants do not reach."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Names:
    """What one tenant has, or what nobody has."""

    run: str
    child: str
    context: str
    conversation: str
    upload_id: str
    request_id: str
    model_call: str
    child_call: str
    own_context: str = ""
    """A context of who asks."""


def _unknown(name: str, digits: int) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:digits]


NOBODYS = Names(
    run=f"runs/{_unknown('run', 28)}",
    child=f"runs/{_unknown('child', 28)}",
    context=f"contexts/{_unknown('context', 32)}",
    conversation=f"conversations/{_unknown('conversation', 28)}",
    upload_id=str(uuid.uuid5(uuid.NAMESPACE_URL, "nobody")),
    request_id="a request of nobody",
    model_call=f"{_unknown('run', 28)}/1/1/1",
    child_call=f"{_unknown('run', 28)}/1/1/c1",
)


@dataclasses.dataclass(frozen=True)
class Walls:
    """Two tenants of one deployment; the other one has some of everything."""

    priced: PricedTrees
    gateway: grpc.aio.Channel
    theirs: Names
    page: str
    """The token of the second page of their runs."""

    def channel(self, method: MethodDescriptor) -> grpc.aio.Channel:
        """Return the way to a method."""
        is_gateway = method.full_name.startswith("fathom.gateway.")
        return self.gateway if is_gateway else self.priced.stack.channel


OURS_UPLOAD = [start(Context.KIND_TEXT), chunk(b"ours", 0)]


def _services() -> dict[str, MethodDescriptor]:
    """Return every method of every service in the contract that tenants reach, by
    `Service.Method`."""
    methods: dict[str, MethodDescriptor] = {}
    for folder in map(Path, fathom.__path__):
        for file in sorted(folder.rglob("*_service_pb2.py")):
            name = ".".join(("fathom", *file.relative_to(folder).with_suffix("").parts))
            for service in import_module(name).DESCRIPTOR.services_by_name.values():
                if service.full_name not in INTERNAL:
                    methods |= {f"{service.name}.{each.name}": each for each in service.methods}
    return methods


METHODS = _services()


def method_of(row: str) -> MethodDescriptor:
    """Return the method that a row asks."""
    return METHODS[row.split(",")[0]]


def metadata_of(tenant: str, run: str = "runs/ours") -> tuple[tuple[str, str], ...]:
    """Return what a call of a tenant brings: its API key, and the token of one of its runs."""
    token = RunToken(
        tenant=tenant,
        run=run,
        depth=0,
        tiers=("root", "sub"),
        tokens_max=None,
        cost_usd_nanos_max=None,
        tokens_spent=0,
        cost_usd_nanos_spent=0,
        expires_at=time.time() + 43_200,
    )
    signed = RunTokenSigner(Secret(TOKEN_KEY)).mint(token)
    return (("authorization", f"Bearer {KEYS.get(tenant, '')}"), (RUN_TOKEN_METADATA, signed))


async def call(
    walls: Walls, row: str, asked: Message | Sequence[Message], metadata: Any
) -> list[Any]:
    """Make a call; return its answers."""
    method = method_of(row)
    answer = message_factory.GetMessageClass(method.output_type)
    shape = f"{'stream' if method.client_streaming else 'unary'}_" + (
        "stream" if method.server_streaming else "unary"
    )
    make = getattr(walls.channel(method), shape)(
        f"/{method.containing_service.full_name}/{method.name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=answer.FromString,
    )
    sent: Any = asked
    if method.client_streaming:
        sent = iter([asked] if isinstance(asked, Message) else asked)
    going = make(sent, metadata=metadata, timeout=TIMEOUT_S)
    if not method.server_streaming:
        return [await going]
    return [each async for each in going]


async def refusal(
    walls: Walls, row: str, asked: Message | Sequence[Message], metadata: Any
) -> ReceivedError:
    """Make a call that must fail; return its error."""
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(walls, row, asked, metadata)
    return received(caught.value)


def without(names: Names, text: str) -> str:
    """Return a text with every one of the names, and its id, blanked out."""
    for value in sorted(dataclasses.astuple(names), key=len, reverse=True):
        for part in (value, value.partition("/")[2] or value):
            text = text.replace(part, "…") if part else text
    return text


async def everything(walls: Walls) -> tuple[Names, str]:
    """Have the other tenant make some of everything; return the names of it, and the token of the
    second page of its runs."""
    metadata = metadata_of("theirs")

    async def one(row: str, asked: Message | Sequence[Message]) -> Any:
        return (await call(walls, row, asked, metadata))[-1]

    upload_id = str(uuid.uuid4())
    upload = [
        start(Context.KIND_DOCUMENTS, title=SECRET, upload_id=upload_id),
        document(SECRET, metadata={SECRET: SECRET}),
        chunk(SECRET.encode(), 0),
    ]
    context = (await one("ContextService.UploadContext", upload)).context.name
    conversation = conversation_pb.CreateConversationRequest(
        conversation=conversation_pb.Conversation(context=context), request_id=SECRET
    )
    made = (await one("ConversationService.CreateConversation", conversation)).conversation
    spec = RunSpec(question=PLAN, context=context, labels={SECRET: SECRET})
    talk = RunSpec(question=PLAN, conversation=made.name)
    runs: list[str] = []
    for asked in (spec, talk):
        request = pb.CreateRunRequest(spec=asked, request_id=f"{SECRET} {len(runs)}")
        run = (await one("OrchestratorService.CreateRun", request)).run
        end = await one("OrchestratorService.WatchRun", pb.WatchRunRequest(name=run.name))
        assert end.event.run_changed.state == Run.STATE_ANSWERED
        runs.append(run.name)
    children = await one("OrchestratorService.ListRuns", pb.ListRunsRequest(parent=runs[0]))
    page = await one("OrchestratorService.ListRuns", pb.ListRunsRequest(page_size=1))
    run_id = runs[0].removeprefix("runs/")
    return Names(
        run=runs[0],
        child=children.runs[0].name,
        context=context,
        conversation=made.name,
        upload_id=upload_id,
        request_id=f"{SECRET} 0",
        model_call=walls.priced.ledger.call_of(run_id),
        child_call=f"{run_id}/1/1/c1",
    ), page.next_page_token
