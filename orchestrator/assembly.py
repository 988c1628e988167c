"""The orchestrator put together from its configuration: what is opened, in which order, and
closed again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import grpc

from common.channel import open_channel
from common.database import Database
from common.run_token import RunTokenSigner
from common.server import Server
from orchestrator import gateway_client, sandbox_client
from orchestrator.api_keys import ApiKeys
from orchestrator.blobs import FolderBlobStore
from orchestrator.config import OrchestratorConfig
from orchestrator.contexts.servicer import ContextServicer
from orchestrator.contexts.store import ContextStore
from orchestrator.conversations.servicer import ConversationServicer
from orchestrator.gateway_client import GatewayClient
from orchestrator.model_catalog import ModelCatalog
from orchestrator.runs.admission import Admission
from orchestrator.runs.driver import RunDriver
from orchestrator.runs.event_log import EventLog
from orchestrator.runs.meters import RunMeters
from orchestrator.runs.prompt_book import PromptBook
from orchestrator.runs.run_queue import RunQueue
from orchestrator.runs.servicer import OrchestratorServicer
from orchestrator.runs.store import RunStore
from orchestrator.sandbox_client import SandboxClient
from orchestrator.tables import MIGRATIONS


@contextlib.asynccontextmanager
async def open_orchestrator(config: OrchestratorConfig) -> AsyncIterator[Server]:
    """Open the orchestrator and yield its server, serving.

    When the block ends the server drains first; runs still in progress end after that, and are
    stored as interrupted. Raises ConfigError.
    """
    signer = RunTokenSigner(config.run_token_key, audience=config.run_token_audience)
    keys = ApiKeys(config.api_keys_file)
    async with contextlib.AsyncExitStack() as stack:
        database = await Database.open(config.database_url.reveal(), MIGRATIONS)
        stack.push_async_callback(database.close)
        blobs = FolderBlobStore(config.object_store)
        blobs.drop_partial()
        gateway = GatewayClient(
            await _channel(stack, config.gateway_address, gateway_client.MESSAGE_BYTES_MAX)
        )
        sandbox = SandboxClient(
            await _channel(stack, config.sandbox_address, sandbox_client.MESSAGE_BYTES_MAX)
        )
        contexts, runs = ContextStore(database), RunStore(database)
        catalog, log = ModelCatalog(gateway, signer), EventLog(runs)
        await stack.enter_async_context(_writing(log))
        driver = RunDriver(
            model=gateway,
            sandbox=sandbox,
            catalog=catalog,
            contexts=contexts,
            blobs=blobs,
            log=log,
            signer=signer,
            prompts=PromptBook.packaged(),
            meters=RunMeters(),
            settings=config.driver_settings,
        )
        queue = await stack.enter_async_context(
            RunQueue(
                driver.drive,
                running_max=config.runs_running_max,
                waiting_max=config.runs_waiting_max,
            )
        )
        admission = Admission(
            runs,
            contexts,
            catalog,
            log,
            queue,
            defaults=config.default_limits,
            ceilings=config.ceiling_limits,
        )
        await admission.end_unfinished()
        await stack.enter_async_context(_beside(keys.watch(config.api_keys_check_s)))
        server = Server("fathom-orchestrator", config, admit=keys.admit)
        server.on_drain(log.drain)
        OrchestratorServicer(runs, admission, log, queue).register(server)
        ContextServicer(contexts, blobs, config.upload_limits).register(server)
        ConversationServicer().register(server)
        yield await stack.enter_async_context(server)


async def _channel(
    stack: contextlib.AsyncExitStack, address: str, message_bytes_max: int
) -> grpc.aio.Channel:
    return await stack.enter_async_context(
        open_channel(address, message_bytes_max=message_bytes_max)
    )


@contextlib.asynccontextmanager
async def _writing(log: EventLog) -> AsyncIterator[None]:
    """Store events while the block lasts. A database that fails ends the block with its error."""
    async with asyncio.TaskGroup() as tasks:
        writer = tasks.create_task(log.write())
        try:
            yield
        finally:
            log.close()
            await writer


@contextlib.asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Do work that never ends by itself while the block lasts."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait({task})
