"""The parts that profiles and host tools are made of, put together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from common.background import end_tasks
from common.database import Database
from common.run_token import RunTokenVerifier
from common.server import Server
from common.tls import channel_credentials
from orchestrator.config import OrchestratorConfig
from orchestrator.operations.audit_log import AuditLog
from orchestrator.profiles.host_tool_servicer import HostToolServicer
from orchestrator.profiles.host_tools import HostTools
from orchestrator.profiles.profiles import Profiles
from orchestrator.profiles.servicer import ProfileServicer
from orchestrator.profiles.tool_calls import ToolCalls
from orchestrator.profiles.tool_client import ToolClient
from orchestrator.runs.answers.answer_schema import AnswerSchemas
from orchestrator.tenant_places import CellPlaces


class ProfileServices:
    """What is served of profiles and host tools."""

    def __init__(
        self,
        profiles: Profiles,
        database: Database,
        schemas: AnswerSchemas,
        audit: AuditLog,
        tokens: RunTokenVerifier,
        cells: CellPlaces,
    ) -> None:
        self._profiles = profiles
        self._calls = ToolCalls(database, audit)
        self._schemas = schemas
        self._tokens = tokens
        self._cells = cells

    @contextlib.asynccontextmanager
    async def working(self, server: Server, config: OrchestratorConfig) -> AsyncIterator[None]:
        """Add the services to a server; while the block lasts, changed files are read again and
        tools can be called."""
        ProfileServicer(self._profiles).register(server)
        async with ToolClient(channel_credentials(config)) as client, asyncio.TaskGroup() as tasks:
            tools = HostTools(self._profiles, self._calls, client, self._schemas)
            HostToolServicer(tools, self._tokens, self._cells).register(server)
            watching = tasks.create_task(self._profiles.watch(config.profiles_check_s))
            yield
            await end_tasks(watching)
