"""Calls of host tools for the code of runs: who may make them is said by a run token, what may be
asked by the version of the profile that the run works with. Everything else is refused.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
import re
import time

import orjson
from google.rpc.status_pb2 import Status
from sqlalchemy.exc import IntegrityError

from common.errors import (
    InvalidFieldError,
    NotFoundError,
    ReceivedError,
    RequestIdReusedError,
    ServiceError,
)
from common.run_token import RunToken
from orchestrator.errors import HostToolFailedError, HostToolRefusedError
from orchestrator.fair_places import FairPlaces
from orchestrator.operations.audit_log import Deed
from orchestrator.profiles.profile import ARGUMENT_BYTES_MAX, HostTool, Profile
from orchestrator.profiles.profiles import Profiles
from orchestrator.profiles.tool_calls import KnownCall, NewCall, ToolCalls
from orchestrator.profiles.tool_client import CallFacts, ToolClient
from orchestrator.runs.answers.answer_schema import AnswerSchemas
from orchestrator.runs.children.lineage import Lineage

REQUEST_ID_CHARACTERS_MAX = 256
_TOOL_CHARACTERS_MAX = 64
_REQUEST_ID = re.compile(r"([0-9a-z-]{1,64})/(\d{1,9})/(\d{1,9})/t(\d{1,9})")
_SHOWN_ERRORS = 5


@dataclasses.dataclass(frozen=True, kw_only=True)
class ToolOrder:
    """What code asks for."""

    request_id: str
    """`{run}/{turn}/{cell}/t{position}` of the call."""
    tool: str
    """The tool's name."""
    arguments_json: str
    """Its arguments, as the code gave them."""


class HostTools:
    """The host tools of every run."""

    def __init__(
        self,
        profiles: Profiles,
        calls: ToolCalls,
        client: ToolClient,
        schemas: AnswerSchemas,
    ) -> None:
        self._profiles = profiles
        self._calls = calls
        self._client = client
        self._schemas = schemas
        self._places: dict[tuple[str, str], FairPlaces] = {}

    async def call(self, token: RunToken, order: ToolOrder) -> str:
        """Return the result of a call as JSON text: a new one's, or what was told of it before.

        Raises InvalidFieldError, NotFoundError, RequestIdReusedError, HostToolRefusedError,
        HostToolFailedError, and as ReceivedError what a call came to before.
        """
        run_id, turn, cell = _checked(order)
        digest = _digest(order)
        known = await self._calls.find(token.tenant, order.request_id)
        if token.is_for_replay and (known is None or known.outcome is None):
            raise HostToolRefusedError(
                order.tool, "replay", "code that is run again makes no call that it did not make"
            )
        if known is None:
            run = Lineage.of_token(token).parent
            if run != f"runs/{run_id}":
                raise InvalidFieldError("request_id", "must name a call of the token's own run")
            new = NewCall(
                request_id=order.request_id,
                run=run,
                root=token.run,
                tool=order.tool,
                digest=digest,
            )
            try:
                profile, tool, arguments = await self._begun(token.tenant, new, order)
            except IntegrityError:  # the same call, from another connection
                known = await self._calls.find(token.tenant, order.request_id)
        if known is not None:
            if known.outcome is not None or known.root != token.run or known.digest != digest:
                return _told(known, token, order, digest)
            run = f"runs/{run_id}"
            profile, tool = await self._allowed(token.tenant, run, order.tool)
            arguments = await self._arguments(tool, order.arguments_json)
        facts = CallFacts(
            tenant=token.tenant,
            run=run,
            root=token.run,
            turn=turn,
            cell=cell,
            request_id=order.request_id,
            profile=profile.resource_name,
        )
        # A caller that hangs up does not leave a call behind of which nothing is known.
        return await asyncio.shield(self._made(tool, arguments, facts, profile))

    async def _begun(
        self, tenant: str, call: NewCall, order: ToolOrder
    ) -> tuple[Profile, HostTool, str]:
        """Store that a call is about to be made, or why it is not: which it then raises."""
        try:
            profile, tool = await self._allowed(tenant, call.run, call.tool)
            arguments = await self._arguments(tool, order.arguments_json)
            await self._calls.begin(tenant, call, calls_max=tool.calls_max)
        except (InvalidFieldError, HostToolRefusedError) as refused:
            await self._calls.refuse(tenant, call, refused.to_status())
            raise
        return profile, tool, arguments

    async def _allowed(self, tenant: str, run: str, name: str) -> tuple[Profile, HostTool]:
        record = await self._calls.run(tenant, run)
        profile = await self._profiles.kept(record.head.profile_version)
        tool = profile.tool(name)
        if tool is None:
            offered = ", ".join(each.name for each in profile.tools) or "none"
            raise HostToolRefusedError(
                name, "not_offered", f"there is no such tool; those that are: {offered}"
            )
        if tool.tenants and tenant not in tool.tenants:
            raise HostToolRefusedError(name, "tenant", "it is not for this tenant")
        return profile, tool

    async def _arguments(self, tool: HostTool, arguments_json: str) -> str:
        """Return the arguments where they are what the tool takes."""
        size = len(arguments_json.encode())
        if size > tool.argument_bytes_max:
            raise InvalidFieldError(
                "arguments",
                f"of {tool.name} have {size} bytes; at most {tool.argument_bytes_max} are allowed",
            )
        verdict = await self._schemas.check(tool.arguments_schema_json, arguments_json)
        if verdict.errors:
            listed = "; ".join(verdict.errors[:_SHOWN_ERRORS])
            raise InvalidFieldError("arguments", f"do not fit what {tool.name} takes: {listed}")
        return verdict.text

    async def _made(
        self, tool: HostTool, arguments: str, facts: CallFacts, profile: Profile
    ) -> str:
        """Make a call, and store what came of it before anybody hears of that."""
        outcome: str | Status
        try:
            outcome = await self._result(tool, arguments, facts, profile)
        except ServiceError as error:
            outcome = error.to_status()
        deed = Deed(
            tenant=facts.tenant,
            actor="",
            action="host_tool.called",
            subject=facts.run,
            details={
                "tool": tool.name,
                "request_id": facts.request_id,
                "outcome": "result" if isinstance(outcome, str) else "error",
            },
        )
        outcome = await self._calls.end(facts.tenant, facts.request_id, outcome, deed)
        if isinstance(outcome, Status):
            raise ReceivedError(outcome)
        return outcome

    async def _result(
        self, tool: HostTool, arguments: str, facts: CallFacts, profile: Profile
    ) -> str:
        until_s = time.monotonic() + tool.time_max_s
        key = profile.version, tool.name
        places = self._places.setdefault(key, FairPlaces(tool.concurrency_max))
        async with contextlib.AsyncExitStack() as stack:
            try:
                place = places.place(facts.tenant, wait_s=tool.time_max_s)
                await stack.enter_async_context(place)
            except TimeoutError:
                raise HostToolFailedError(
                    tool.name, "time_max", f"no place was free within {tool.time_max_s:g} s"
                ) from None
            left_s = max(until_s - time.monotonic(), 0.0)
            result = await self._client.call(tool, arguments, facts, timeout_s=left_s)
        return await self._checked_result(tool, result)

    async def _checked_result(self, tool: HostTool, result: str) -> str:
        size = len(result.encode())
        if size > tool.result_bytes_max:
            why = f"its result has {size} bytes; at most {tool.result_bytes_max} are allowed"
            raise HostToolFailedError(tool.name, "result", why)
        try:
            orjson.loads(result)
        except ValueError as error:
            raise HostToolFailedError(tool.name, "result", "its result is no JSON") from error
        if tool.result_schema_json:
            verdict = await self._schemas.check(tool.result_schema_json, result)
            if verdict.errors:
                listed = "; ".join(verdict.errors[:_SHOWN_ERRORS])
                why = f"its result does not fit its schema: {listed}"
                raise HostToolFailedError(tool.name, "result", why)
        return result


def _checked(order: ToolOrder) -> tuple[str, int, int]:
    """Return the run's id, turn and cell of a call; raises InvalidFieldError."""
    found = _REQUEST_ID.fullmatch(order.request_id)
    if found is None or len(order.request_id) > REQUEST_ID_CHARACTERS_MAX:
        raise InvalidFieldError("request_id", "must be {run}/{turn}/{cell}/t{position}")
    if not 1 <= len(order.tool) <= _TOOL_CHARACTERS_MAX:
        raise InvalidFieldError("tool", f"must have 1 to {_TOOL_CHARACTERS_MAX} characters")
    size = len(order.arguments_json.encode())
    if size > ARGUMENT_BYTES_MAX:
        raise InvalidFieldError(
            "arguments", f"have {size} bytes; at most {ARGUMENT_BYTES_MAX} are allowed"
        )
    return found[1], int(found[2]), int(found[3])


def _digest(order: ToolOrder) -> bytes:
    data = f"{order.tool}\0{order.arguments_json}".encode()
    return hashlib.blake2b(data, digest_size=32).digest()


def _told(known: KnownCall, token: RunToken, order: ToolOrder, digest: bytes) -> str:
    """Return what a call came to before; raises what it raised."""
    if known.root != token.run:
        raise NotFoundError(order.request_id)
    if known.digest != digest:
        raise RequestIdReusedError(order.request_id)
    if isinstance(known.outcome, Status):
        raise ReceivedError(known.outcome)
    assert known.outcome is not None
    return known.outcome
