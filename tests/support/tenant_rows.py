"""What each method of each service is asked for what another tenant has.

One table, so that a method that is added has one place to be put into.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

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
from fathom.orchestrator.v1.run_pb2 import RunSpec
from google.protobuf.message import Message

from tests.support.orchestrator import chunk, document, start
from tests.support.tenant_walls import PLAN, Names

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
