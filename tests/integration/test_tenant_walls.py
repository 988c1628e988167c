"""No RPC shows one tenant anything of another's: every method of every service is asked for what
somebody else has, and must answer as it does for what nobody has.

Long, so that a method that is added has one place to be put into.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import fathom
import grpc
import pytest
import pytest_asyncio
from fathom.gateway.v1 import gateway_service_pb2 as gateway_pb
from fathom.gateway.v1 import generation_pb2 as generation
from fathom.gateway.v1 import quota_service_pb2 as quota_pb
from fathom.orchestrator.v1 import context_service_pb2 as context_pb
from fathom.orchestrator.v1 import conversation_service_pb2 as conversation_pb
from fathom.orchestrator.v1 import host_tool_service_pb2 as tool_pb
from fathom.orchestrator.v1 import operations_service_pb2 as operations_pb
from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1 import profile_service_pb2 as profile_pb
from fathom.orchestrator.v1.context_pb2 import Context
from fathom.orchestrator.v1.run_pb2 import Run, RunSpec
from google.protobuf import message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from common.channel import open_channel
from common.config import Secret
from common.errors import ReceivedError, received
from common.run_token import RUN_TOKEN_METADATA, RunToken, RunTokenSigner
from tests.support.eventually import eventually
from tests.support.fake_gateway import TOKEN_KEY
from tests.support.orchestrator import TIMEOUT_S, chunk, document, start
from tests.support.priced_trees import PricedTrees, priced_trees

MODULE = pytest.mark.asyncio(loop_scope="module")
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


Ask = Callable[[Names], Message | Sequence[Message]]


def _prompt(names: Names) -> dict[str, Any]:
    message = generation.Message(role=generation.Message.ROLE_USER, text="100 of it")
    call = generation.CallContext(request_id=names.model_call)
    return {"prompt": generation.Prompt(tier="sub", messages=[message]), "call": call}


def _spec(**fields: Any) -> RunSpec:
    return RunSpec(question="What is it?", **fields)


REFUSED: dict[str, Ask] = {
    "OrchestratorService.GetRun": lambda names: pb.GetRunRequest(name=names.run),
    "OrchestratorService.WatchRun": lambda names: pb.WatchRunRequest(name=names.child),
    "OrchestratorService.CancelRun": lambda names: pb.CancelRunRequest(name=names.run),
    "OrchestratorService.GetRunUsage": lambda names: pb.GetRunUsageRequest(name=names.child),
    "OrchestratorService.ForkRun": lambda names: pb.ForkRunRequest(name=names.run, after_turn=1),
    "OrchestratorService.CreateRun": lambda names: pb.CreateRunRequest(
        spec=_spec(context=names.context)
    ),
    "OrchestratorService.CreateRun, in a conversation": lambda names: pb.CreateRunRequest(
        spec=_spec(conversation=names.conversation)
    ),
    "OrchestratorService.EstimateRun": lambda names: pb.EstimateRunRequest(
        spec=_spec(context=names.context)
    ),
    "OrchestratorService.RunChild": lambda names: pb.RunChildRequest(
        request_id=names.child_call, question=PLAN
    ),
    "HostToolService.CallHostTool": lambda names: tool_pb.CallHostToolRequest(
        request_id=names.child_call.replace("/c", "/t"), tool="look_up", arguments_json="{}"
    ),
    "ContextService.GetContext": lambda names: context_pb.GetContextRequest(name=names.context),
    "ContextService.GetUpload": lambda names: context_pb.GetUploadRequest(
        upload_id=names.upload_id
    ),
    "ContextService.ListDocuments": lambda names: context_pb.ListDocumentsRequest(
        name=names.context
    ),
    "ContextService.ReadContext": lambda names: context_pb.ReadContextRequest(name=names.context),
    "ContextService.DeleteContext": lambda names: context_pb.DeleteContextRequest(
        name=names.context
    ),
    "ConversationService.GetConversation": lambda names: conversation_pb.GetConversationRequest(
        name=names.conversation
    ),
    "ConversationService.DeleteConversation": (
        lambda names: conversation_pb.DeleteConversationRequest(name=names.conversation)
    ),
    "ConversationService.CreateConversation": (
        lambda names: conversation_pb.CreateConversationRequest(
            conversation=conversation_pb.Conversation(context=names.context)
        )
    ),
}
"""What names something that must not be found."""
EMPTY: dict[str, Ask] = {
    "OrchestratorService.ListRuns": lambda _: pb.ListRunsRequest(),
    "OrchestratorService.ListRuns, of a parent": lambda names: pb.ListRunsRequest(parent=names.run),
    "ContextService.ListContexts": lambda _: context_pb.ListContextsRequest(),
    "ConversationService.ListConversations": lambda _: conversation_pb.ListConversationsRequest(),
    "OperationsService.GetStatistics": lambda _: operations_pb.GetStatisticsRequest(),
    "OperationsService.ListAuditEntries": lambda names: operations_pb.ListAuditEntriesRequest(
        subject=names.run
    ),
    "GatewayService.SettleCalls": lambda names: gateway_pb.SettleCallsRequest(
        request_id_prefix=names.model_call
    ),
}
"""What lists all that there is."""
DENIED: dict[str, Ask] = {
    "OperationsService.SetKillSwitch": lambda names: operations_pb.SetKillSwitchRequest(
        kill_switch=operations_pb.KillSwitch(target=names.run, reason="to see whether it is there")
    ),
    "OperationsService.ListKillSwitches": lambda _: operations_pb.ListKillSwitchesRequest(),
    "OperationsService.DeleteKillSwitch": lambda names: operations_pb.DeleteKillSwitchRequest(
        target=names.run
    ),
    "OperationsService.VerifyAuditLog": lambda _: operations_pb.VerifyAuditLogRequest(),
    "OperationsService.GetStatistics, of all": lambda _: operations_pb.GetStatisticsRequest(
        all_tenants=True
    ),
    "OperationsService.ListAuditEntries, of all": lambda _: operations_pb.ListAuditEntriesRequest(
        all_tenants=True
    ),
    "QuotaService.SetQuota": lambda _: quota_pb.SetQuotaRequest(
        quota=quota_pb.Quota(name="tenants/theirs/quotas/all", calls_max=1)
    ),
    "QuotaService.GetQuota": lambda _: quota_pb.GetQuotaRequest(name="tenants/theirs/quotas/all"),
    "QuotaService.ListQuotas": lambda _: quota_pb.ListQuotasRequest(parent="tenants/theirs"),
    "QuotaService.DeleteQuota": lambda _: quota_pb.DeleteQuotaRequest(
        name="tenants/theirs/quotas/all"
    ),
    "QuotaService.GetUsage": lambda _: quota_pb.GetUsageRequest(parent="tenants/theirs"),
}
"""What is for operators, whatever it names."""
SAME: dict[str, Ask] = {
    "ProfileService.ListProfiles": lambda _: profile_pb.ListProfilesRequest(),
    "ProfileService.GetProfile": lambda _: profile_pb.GetProfileRequest(name="profiles/search"),
    "GatewayService.ListModels": lambda _: gateway_pb.ListModelsRequest(),
    "GatewayService.CountTokens": lambda names: gateway_pb.CountTokensRequest(
        prompt=_prompt(names)["prompt"]
    ),
    "ContextService.CreateContext": lambda _: context_pb.CreateContextRequest(
        uri="file:///etc/hostname", kind=Context.KIND_TEXT
    ),
}
"""What is the same for all tenants: an operator's, or no tenant's."""
ANEW: dict[str, Ask] = {
    "GatewayService.Generate": lambda names: gateway_pb.GenerateRequest(**_prompt(names)),
    "GatewayService.StreamGenerate": lambda names: gateway_pb.StreamGenerateRequest(
        **_prompt(names)
    ),
    "GatewayService.BatchGenerate": lambda names: [
        gateway_pb.BatchGenerateRequest(start=gateway_pb.BatchStart()),
        gateway_pb.BatchGenerateRequest(item=gateway_pb.BatchItem(**_prompt(names))),
    ],
    "OrchestratorService.CreateRun, of one request": lambda names: pb.CreateRunRequest(
        spec=_spec(context=names.own_context), request_id=names.request_id
    ),
    "ConversationService.CreateConversation, of one request": (
        lambda names: conversation_pb.CreateConversationRequest(
            conversation=conversation_pb.Conversation(context=names.own_context),
            request_id=names.request_id,
        )
    ),
    "ContextService.UploadContext": lambda names: [
        start(Context.KIND_DOCUMENTS, upload_id=names.upload_id),
        document("a"),
        chunk(b"ours", 0),
    ],
}
"""What is done anew for each tenant, also under a name that another one gave."""
OURS_UPLOAD = [start(Context.KIND_TEXT), chunk(b"ours", 0)]
KEPT = {
    "OrchestratorService.ForkRun",
    "OrchestratorService.CancelRun",
    "ContextService.DeleteContext",
    "ConversationService.DeleteConversation",
    "HostToolService.CallHostTool",
    "OrchestratorService.RunChild",
}
"""What the owner does not ask: it takes away what is there, or needs another run to succeed."""
ROWS = REFUSED | EMPTY | DENIED | SAME | ANEW


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


def check_silent(walls: Walls, text: str) -> None:
    """Fail where a text has a word of the other tenant."""
    assert SECRET not in text
    assert without(walls.theirs, text) == text


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def walls(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Walls]:
    """A deployment in which the other tenant has some of everything."""
    folder = tmp_path_factory.mktemp("walls")
    digests = {tenant: hashlib.sha256(key.encode()).hexdigest() for tenant, key in KEYS.items()}
    file = folder / "keys.toml"
    file.write_text(
        "".join(
            f'[keys.{tenant}]\ntenant = "{tenant}"\nsha256 = "{digest}"\n'
            for tenant, digest in digests.items()
        )
    )
    async with (
        priced_trees(folder, api_keys_file=file) as priced,
        open_channel(priced.gateway_address) as gateway,
    ):
        walls = Walls(priced, gateway, NOBODYS, "")
        theirs, page = await everything(walls)
        own = await call(walls, "ContextService.UploadContext", OURS_UPLOAD, metadata_of("ours"))
        theirs = dataclasses.replace(theirs, own_context=own[0].context.name)
        yield dataclasses.replace(walls, theirs=theirs, page=page)


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


def test_every_method_has_a_row() -> None:
    """A method that is added says here what it tells of other tenants."""
    assert {row.split(",")[0] for row in ROWS} == METHODS.keys()


@MODULE
@pytest.mark.parametrize("name", METHODS)
async def test_every_method_asks_for_a_credential(walls: Walls, name: str) -> None:
    request = message_factory.GetMessageClass(METHODS[name].input_type)()
    error = await refusal(walls, name, request, ())
    assert error.code is grpc.StatusCode.UNAUTHENTICATED
    assert error.metadata["problem"] == "missing"


@MODULE
@pytest.mark.parametrize("row", REFUSED)
async def test_what_another_tenant_has_is_as_what_nobody_has(walls: Walls, row: str) -> None:
    """To the letter: that it is there is a secret too."""
    theirs = await refusal(walls, row, REFUSED[row](walls.theirs), metadata_of("ours"))
    nobodys = await refusal(walls, row, REFUSED[row](NOBODYS), metadata_of("ours"))

    told = without(walls.theirs, str(theirs.status))
    assert told == without(NOBODYS, str(nobodys.status))
    assert SECRET not in told
    by_token = row.endswith(("RunChild", "CallHostTool"))
    code = grpc.StatusCode.INVALID_ARGUMENT if by_token else grpc.StatusCode.NOT_FOUND
    assert theirs.code is code


@MODULE
@pytest.mark.parametrize("row", sorted(REFUSED.keys() - KEPT))
async def test_the_owner_is_told(walls: Walls, row: str) -> None:
    """So the refusals are for who asks, and not for what is asked."""
    run = walls.theirs.run
    asked = REFUSED[row](walls.theirs)
    assert await call(walls, row, asked, metadata_of("theirs", run))


@MODULE
@pytest.mark.parametrize("row", ["OrchestratorService.RunChild", "HostToolService.CallHostTool"])
async def test_a_run_token_reaches_no_run_of_another_tenant(walls: Walls, row: str) -> None:
    """Not even one with the name of their run: a run is looked up in the token's tenant."""
    asked, nothing = REFUSED[row](walls.theirs), REFUSED[row](NOBODYS)
    theirs = await refusal(walls, row, asked, metadata_of("ours", walls.theirs.run))
    nobodys = await refusal(walls, row, nothing, metadata_of("ours", NOBODYS.run))

    assert theirs.code is grpc.StatusCode.NOT_FOUND
    assert without(walls.theirs, str(theirs.status)) == without(NOBODYS, str(nobodys.status))


@MODULE
@pytest.mark.parametrize("row", EMPTY)
async def test_lists_hold_nothing_of_another_tenants(walls: Walls, row: str) -> None:
    run = walls.theirs.run
    (answer,) = await call(walls, row, EMPTY[row](walls.theirs), metadata_of("newcomers", run))
    assert not answer.ListFields()

    async def is_the_owner_told() -> bool:  # runs come into the books a moment after their end
        told = await call(walls, row, EMPTY[row](walls.theirs), metadata_of("theirs", run))
        return bool(told[0].ListFields())

    await eventually(is_the_owner_told)


@MODULE
async def test_the_page_token_of_another_tenant_shows_nothing_of_it(walls: Walls) -> None:
    assert walls.page
    asked = pb.ListRunsRequest(page_size=1, page_token=walls.page)
    (answer,) = await call(walls, "OrchestratorService.ListRuns", asked, metadata_of("newcomers"))
    assert not answer.ListFields()


@MODULE
@pytest.mark.parametrize("row", DENIED)
async def test_what_is_for_operators_says_nothing_to_others(walls: Walls, row: str) -> None:
    theirs = await refusal(walls, row, DENIED[row](walls.theirs), metadata_of("ours"))
    nobodys = await refusal(walls, row, DENIED[row](NOBODYS), metadata_of("ours"))

    is_gateway = row.startswith("QuotaService")
    denied = grpc.StatusCode.UNAUTHENTICATED if is_gateway else grpc.StatusCode.PERMISSION_DENIED
    assert theirs.code is denied
    assert theirs.status == nobodys.status
    check_silent(walls, str(theirs.status))


@MODULE
@pytest.mark.parametrize("row", SAME)
async def test_what_is_no_tenants_is_the_same_for_all(walls: Walls, row: str) -> None:
    told = []
    for tenant in ("ours", "theirs"):
        try:
            told.append(str(await call(walls, row, SAME[row](walls.theirs), metadata_of(tenant))))
        except grpc.aio.AioRpcError as error:
            told.append(str(received(error).status))
    assert told[0] == told[1]
    check_silent(walls, told[0])


@MODULE
@pytest.mark.parametrize("row", ANEW)
async def test_names_that_tenants_give_are_their_own(walls: Walls, row: str) -> None:
    """A call that another tenant has paid for, an upload, a request: the same name is another."""
    provider, ledger = walls.priced.provider, walls.priced.ledger
    spent, asked = ledger.spent_by_tenant()["theirs"], provider.asked
    # A run of the same name, too; calls of models are anew for each row where each has a tenant.
    tenant = row if row.startswith("GatewayService") else "ours"
    metadata = metadata_of(tenant, walls.theirs.run)
    answers = await call(walls, row, ANEW[row](walls.theirs), metadata)

    told = "".join(map(str, answers))
    assert SECRET not in told
    assert "already_stored" not in told
    for name in (walls.theirs.run, walls.theirs.conversation, walls.theirs.context):
        assert name not in told
    if row.startswith("GatewayService"):
        assert provider.asked == asked + 1
    assert ledger.spent_by_tenant()["theirs"] == spent


@MODULE
async def test_an_upload_of_another_tenant_stays_as_it_was(walls: Walls) -> None:
    """After somebody else has used its id for one of their own."""
    asked = context_pb.GetUploadRequest(upload_id=walls.theirs.upload_id)
    (answer,) = await call(walls, "ContextService.GetUpload", asked, metadata_of("theirs"))
    assert answer.context.name == walls.theirs.context


@MODULE
@pytest.mark.parametrize(
    "row",
    ["OrchestratorService.GetRun", "ContextService.GetContext"],
)
async def test_refusals_take_no_longer_for_what_is_there(walls: Walls, row: str) -> None:
    """Looking for a row that is another's is as fast as looking for none."""
    fastest = {walls.theirs.run: math.inf, NOBODYS.run: math.inf}
    for number in range(1_000):
        for names in (walls.theirs, NOBODYS):
            begun = time.perf_counter()
            await refusal(walls, row, REFUSED[row](names), metadata_of("ours"))
            fastest[names.run] = min(fastest[names.run], time.perf_counter() - begun)
        # The fastest of many is what it takes by itself; on a busy machine it needs more of them.
        if number >= 40 and max(fastest.values()) < 3 * min(fastest.values()):
            return
    pytest.fail(f"{fastest}")


@MODULE
async def test_model_calls_are_made_in_the_callers_tenant(walls: Walls) -> None:
    """Quotas and spend follow the key."""
    by_tenant = walls.priced.ledger.spent_by_tenant()
    assert by_tenant["theirs"].cost_usd_nanos > 0
    assert "newcomers" not in by_tenant
