"""The orchestrator put together from its configuration: what is opened, in which order, and
closed again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from typing import Any

import grpc

from common.background import end_tasks
from common.channel import open_channel
from common.config import ServerConfig
from common.database import Database
from common.run_token import RunTokenSigner, RunTokenVerifier
from common.server import Server
from common.tls import channel_credentials
from common.token_keys import public_half
from orchestrator import gateway_client, sandbox_client
from orchestrator.api_keys import RUN_TOKEN_METHODS, ApiKeys
from orchestrator.blobs import BlobStore
from orchestrator.config import OrchestratorConfig
from orchestrator.contexts.assembly import open_contexts
from orchestrator.conversations.recall import Recall
from orchestrator.conversations.servicer import ConversationServicer
from orchestrator.conversations.store import ConversationStore
from orchestrator.durable.assembly import open_queue
from orchestrator.durable.executors import alone
from orchestrator.gateway_client import GatewayClient
from orchestrator.model_catalog import ModelCatalog
from orchestrator.object_store import open_object_store
from orchestrator.operations.assembly import Neighbours, Operations
from orchestrator.profiles.assembly import ProfileServices
from orchestrator.profiles.profiles import Profiles
from orchestrator.runs.admission import Admission
from orchestrator.runs.answers.answer_schema import AnswerSchemas
from orchestrator.runs.children.run_trees import RunTrees, TreeGround
from orchestrator.runs.driver import RunDriver
from orchestrator.runs.estimate import Estimator
from orchestrator.runs.log.event_log import EventLog
from orchestrator.runs.log.store import RunStore
from orchestrator.runs.meters import RunMeters
from orchestrator.runs.model.prompt_book import PromptBook
from orchestrator.runs.queue import RunQueue
from orchestrator.runs.servicer import OrchestratorServicer
from orchestrator.runs.sessions.checkpoint_owners import CheckpointOwners
from orchestrator.runs.settlement import Settlement
from orchestrator.sandbox_client import SandboxClient
from orchestrator.tables import MIGRATIONS
from orchestrator.tenant_places import CellPlaces, TenantPlaces

_REQUEST_BYTES_MAX = {"/fathom.orchestrator.v1.OrchestratorService/RunChild": 16 << 20}
"""A child run's context by value comes in one message."""
_BOOKING_S = 5.0
"""How long after a lease's end what died with it is booked."""
_DATABASE_PATIENCE_S = 10.0
"""How long work waits for a database that takes no connections: a restart takes seconds."""


@contextlib.asynccontextmanager
async def open_orchestrator(config: OrchestratorConfig) -> AsyncIterator[Server]:
    """Open the orchestrator and yield its server, serving.

    When the block ends the server drains first; runs still in progress are let go of after that,
    and go on in another process or at the next start. Raises ConfigError.
    """
    signer, keys = _signer(config), ApiKeys(config.api_keys_file)
    async with contextlib.AsyncExitStack() as stack:
        database = await _open_database(stack, config)
        blobs = _open_blobs(config)
        profiles = Profiles(blobs, config.profiles_folder)
        gateway, sandbox = await _open_neighbours(stack, config)
        kept = await stack.enter_async_context(
            open_contexts(database, blobs, config.context_settings)
        )
        contexts, runs = kept.store, RunStore(database)
        conversations = ConversationStore(database)
        catalog, log = ModelCatalog(gateway, signer), EventLog(runs, late_s=_late_s(config))
        meters, schemas = RunMeters(), AnswerSchemas()
        ground = TreeGround(
            database=database,
            blobs=blobs,
            contexts=contexts,
            uploads=kept.uploads,
            log=log,
            schemas=schemas,
        )
        trees = RunTrees.over(ground, _verifier(config), config.tree_settings)
        driver = RunDriver(
            model=gateway,
            sandbox=sandbox,
            catalog=catalog,
            contexts=contexts,
            blobs=blobs,
            log=log,
            signer=signer,
            prompts=PromptBook.packaged(),
            meters=meters,
            schemas=schemas,
            recall=Recall(conversations, runs, log),
            settlement=Settlement(books=gateway, signer=signer),
            children=trees.children,
            profiles=profiles,
            checkpoint_books=CheckpointOwners(database),
            settings=config.driver_settings,
        )
        queue = await stack.enter_async_context(
            open_queue(database, log, driver.drive, meters, config.queue_settings)
        )
        trees.children.attach(queue)
        await stack.enter_async_context(queue)
        operations = Operations.over(database, queue.cancel)
        await stack.enter_async_context(
            operations.working(_neighbours(driver, sandbox), runs_kept_days=config.runs_kept_days)
        )
        admission = _admission(config, driver, conversations, operations, queue)
        await stack.enter_async_context(_beside(keys.watch(config.api_keys_check_s)))
        server = _server(config, keys, trees.tokens, log)
        estimator = Estimator(runs, contexts, catalog, admission)
        cells = CellPlaces(keys, calls_max=config.cell_calls_max_per_tenant)
        OrchestratorServicer(runs, admission, estimator, log, queue, trees, cells).register(server)
        kept.servicer.register(server)
        offered = ProfileServices(
            profiles, database, schemas, operations.audit, trees.tokens, cells
        )
        await stack.enter_async_context(offered.working(server, config))
        ConversationServicer(conversations, contexts).register(server)
        operations.servicer().register(server)
        yield await stack.enter_async_context(server)


def _signer(config: OrchestratorConfig) -> RunTokenSigner:
    return RunTokenSigner(
        config.run_token_key,
        audience=config.run_token_audience,
        lifetime_s_max=config.run_token_lifetime_s or None,
    )


def _verifier(config: OrchestratorConfig) -> RunTokenVerifier:
    """Return what checks the tokens that cells' calls bring, which are our own."""
    return RunTokenVerifier(public_half(config.run_token_key), audience=config.run_token_audience)


def _admission(
    config: OrchestratorConfig,
    driver: RunDriver,
    conversations: ConversationStore,
    operations: Operations,
    queue: RunQueue,
) -> Admission:
    return Admission(
        defaults=config.spec_defaults,
        profiles=driver.profiles,
        conversations=conversations,
        contexts=driver.contexts,
        catalog=driver.catalog,
        schemas=driver.schemas,
        switches=operations.switches,
        runs=RunStore(operations.database),
        log=driver.log,
        queue=queue,
    )


def _late_s(config: OrchestratorConfig) -> float:
    """Return how long after its end what a run took is looked at once more. The gateway's leases
    are as long as ours, unless somebody has changed one; what is still open then is looked at
    again."""
    return config.executor_lease_s + _BOOKING_S


def _neighbours(driver: RunDriver, sandbox: SandboxClient) -> Neighbours:
    return Neighbours(
        blobs=driver.blobs,
        logs=driver.log,
        sandbox=sandbox,
        settlement=driver.settlement,
        lineages=driver.children,
    )


def _server(
    config: OrchestratorConfig, keys: ApiKeys, tokens: RunTokenVerifier, log: EventLog
) -> Server:
    places = TenantPlaces(
        keys,
        tokens,
        calls_max=config.concurrent_rpcs_max_per_tenant,
        watchers_max=config.watchers_max_per_tenant,
    )
    server = Server(
        "fathom-orchestrator",
        config,
        admit=places.admit,
        request_bytes_max=_REQUEST_BYTES_MAX,
        waiting=RUN_TOKEN_METHODS,
    )
    server.on_drain(log.drain)
    return server


async def _open_database(stack: contextlib.AsyncExitStack, config: OrchestratorConfig) -> Database:
    url = config.database_url.reveal()
    await stack.enter_async_context(alone(url))
    database = await Database.open(url, MIGRATIONS, patience_s=_DATABASE_PATIENCE_S)
    stack.push_async_callback(database.close)
    return database


def _open_blobs(config: OrchestratorConfig) -> BlobStore:
    return open_object_store(
        config.object_store,
        endpoint=config.object_store_endpoint,
        region=config.object_store_region,
        credentials=config.object_store_credentials,
        reserve_bytes=config.object_store_reserve_bytes,
    )


async def _open_neighbours(
    stack: contextlib.AsyncExitStack, config: OrchestratorConfig
) -> tuple[GatewayClient, SandboxClient]:
    gateway = await _channel(
        stack, config, config.gateway_address, gateway_client.MESSAGE_BYTES_MAX
    )
    sandbox = await _channel(
        stack, config, config.sandbox_address, sandbox_client.MESSAGE_BYTES_MAX
    )
    return GatewayClient(gateway), SandboxClient(sandbox)


async def _channel(
    stack: contextlib.AsyncExitStack, config: ServerConfig, address: str, message_bytes_max: int
) -> grpc.aio.Channel:
    credentials = channel_credentials(config)
    return await stack.enter_async_context(
        open_channel(address, message_bytes_max=message_bytes_max, credentials=credentials)
    )


@contextlib.asynccontextmanager
async def _beside(work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Do work that never ends by itself while the block lasts."""
    task = asyncio.create_task(work)
    try:
        yield
    finally:
        await end_tasks(task)
