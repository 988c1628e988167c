"""What tests of the gateway are made of: values with defaults, a provider in memory, a clock, and
the whole service over a real port.
"""

from __future__ import annotations

import asyncio
import dataclasses
import datetime as dt
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
from fathom.gateway.v1 import (
    gateway_service_pb2,
    gateway_service_pb2_grpc,
    generation_pb2,
)
from google.rpc import error_details_pb2, status_pb2

from common.config import Secret
from common.run_token import RUN_TOKEN_METADATA, RunToken, RunTokenSigner
from llm_gateway.__main__ import OpenGateway, open_gateway, register
from llm_gateway.accounts.caps import Cap
from llm_gateway.accounts.memory_store import MemoryAccountStore
from llm_gateway.answers import Completion, Delta, FinishReason, Tokens
from llm_gateway.catalog import Catalog, Deployment, Provider
from llm_gateway.catalog_file import load_catalog
from llm_gateway.config import GatewayConfig
from llm_gateway.ledger.books import Books
from llm_gateway.ledger.group_commit import GroupCommit
from llm_gateway.ledger.ledger import Ledger
from llm_gateway.ledger.operations import CallStore
from llm_gateway.meter import Meter
from llm_gateway.prices import FREE, Price, Rates
from llm_gateway.prompts import Message, Prompt, Role
from llm_gateway.provider import OnDelta
from llm_gateway.upstreams import RateFloor, Upstream
from tests.support.memory_ledger import MemoryAnswerStore, MemoryCallStore
from tests.support.serving import serve

KEY = Secret("a key for run tokens, of 32 bytes")
DOLLAR = 1_000_000_000
PRICE = Price((Rates(input=1 * DOLLAR, output=2 * DOLLAR, cached_input=DOLLAR // 10),))
"""A thousand nano-dollars an input token, twice that an output token."""


def endpoint(name: str = "fake", **changes: Any) -> Provider:
    values: dict[str, Any] = {
        "name": name,
        "base_url": "http://127.0.0.1:1/v1",
        "api_key": None,
        "headers": {},
        "timeout_s": 5.0,
        "output_limit_field": "max_tokens",
    }
    return Provider(**values | changes)


def deployment(name: str = "small", **changes: Any) -> Deployment:
    values: dict[str, Any] = {
        "name": name,
        "provider": endpoint(),
        "model": f"{name}-id",
        "context_tokens_max": 0,
        "output_tokens_max": 0,
        "concurrency_max": 64,
        "price": FREE,
        "omit_parameters": frozenset(),
    }
    return Deployment(**values | changes)


def catalog(*deployments: Deployment) -> Catalog:
    """Return a catalog whose tiers `root` and `sub` both have all deployments, in order."""
    steps = tuple((d.name,) for d in deployments)
    return Catalog(
        deployments={d.name: d for d in deployments}, tiers={"root": steps, "sub": steps}
    )


def prompt(text: str = "hello", **changes: Any) -> Prompt:
    return Prompt(**{"tier": "sub", "messages": (Message(Role.USER, text),)} | changes)


def token(**changes: Any) -> RunToken:
    values: dict[str, Any] = {
        "tenant": "acme",
        "run": "runs/1",
        "depth": 0,
        "tiers": ("root", "sub"),
        "tokens_max": None,
        "cost_usd_nanos_max": None,
        "tokens_spent": 0,
        "cost_usd_nanos_spent": 0,
        # Longer than all tests take: some tokens are made when the tests are collected.
        "expires_at": time.time() + 43_200,
    }
    return RunToken(**values | changes)


def metadata(**changes: Any) -> tuple[tuple[str, str]]:
    """Return what a call carries: a signed run token."""
    return ((RUN_TOKEN_METADATA, RunTokenSigner(KEY).mint(token(**changes))),)


def completion(text: str = "hello there", **changes: Any) -> Completion:
    values: dict[str, Any] = {
        "text": text,
        "reasoning": "",
        "finish_reason": FinishReason.STOP,
        "tokens": Tokens(input=10, output=3),
    }
    return Completion(**values | changes)


Behaviour = Callable[[Prompt, int, OnDelta | None], Awaitable[Completion]]


class MemoryProvider:
    """A provider that plays what it is told; keeps what it was asked."""

    def __init__(self) -> None:
        self.planned: deque[Completion | Exception | Behaviour] = deque()
        self.asked: list[tuple[str, int]] = []
        """Name of the deployment and the limit of output tokens of each exchange."""

    def plan(self, *outcomes: Completion | Exception | Behaviour) -> None:
        self.planned.extend(outcomes)

    async def complete(
        self,
        deployment: Deployment,
        prompt: Prompt,
        output_tokens_max: int,
        on_delta: OnDelta | None,
    ) -> Completion:
        self.asked.append((deployment.name, output_tokens_max))
        planned = self.planned.popleft() if self.planned else completion()
        if isinstance(planned, Exception):
            raise planned
        if not isinstance(planned, Completion):
            return await planned(prompt, output_tokens_max, on_delta)
        if on_delta is not None and planned.text:
            on_delta(Delta(text=planned.text))
        return planned

    async def close(self) -> None:
        pass


def upstream(of: Deployment, provider: MemoryProvider | None = None) -> Upstream:
    return Upstream(of, provider or MemoryProvider(), RateFloor())


class ManualClock:
    """A clock that stands still until somebody sleeps."""

    def __init__(self, now: float = 1000.0) -> None:
        self._now = now
        self.slept: list[float] = []

    def now(self) -> float:
        return self._now

    def advance(self, seconds: float) -> None:
        self._now += seconds

    async def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self._now += seconds
        await asyncio.sleep(0)


def config_file(path: Path, base_urls: Sequence[str], *, deployment_keys: str = "") -> Path:
    """Write a configuration with a provider `p0`, `p1`… and a deployment `m0`, `m1`… for each.

    A token costs 1000 nano-dollars sent and 2000 received. Both tiers have all, in order.
    """
    lines = []
    for index, base_url in enumerate(base_urls):
        lines.append(
            f"""
            [providers.p{index}]
            base_url = "{base_url}"
            api_key_env = "PROVIDER_KEY"
            timeout_s = 5
            [[deployments]]
            name = "m{index}"
            provider = "p{index}"
            model = "id-{index}"
            price = {{ input_usd_per_million = 1, output_usd_per_million = 2 }}
            {deployment_keys}
            """
        )
    names = ", ".join(f'"m{index}"' for index in range(len(base_urls)))
    lines.append(f"[tiers]\nroot = [{names}]\nsub = [{names}]\n")
    path.write_text("\n".join(lines))
    return path


@dataclasses.dataclass(frozen=True)
class RunSpend:
    """What a run has taken and what exchanges under way hold of it."""

    tokens: int
    cost_usd_nanos: int
    tokens_held: int
    cost_usd_nanos_held: int


class MeterInView(Meter):
    """A meter over accounts in memory that a test can look at."""

    def __init__(self, now: Callable[[], float] = time.time, **settings: Any) -> None:
        self.accounts = MemoryAccountStore()
        super().__init__(now, store=self.accounts, **settings)

    def spend_of(self, of: RunToken) -> RunSpend:
        """Return the state of a token's run."""
        run = Cap(account=f"{of.tenant}/{of.run}")
        state = self.accounts.state(run, int(time.time() * 1e6))
        return RunSpend(*state.taken[1:], *state.held[1:])


def memory_ledger() -> Ledger:
    """Return a ledger that forgets everything with the process."""
    return Ledger(memory_books(MemoryCallStore()), lease_s=15.0)


def memory_books(store: CallStore, **changes: Any) -> Books:
    values: dict[str, Any] = {"owner": "here", "answer_bytes_inline_max": 65_536}
    return Books(GroupCommit(store), MemoryAnswerStore(), **values | changes)


@asynccontextmanager
async def gateway_channel(
    path: Path, *, credentials: grpc.ChannelCredentials | None = None, **settings: Any
) -> AsyncIterator[grpc.aio.Channel]:
    """Serve the gateway of a configuration file on a real port and yield a channel to it."""
    async with _serving(path, credentials=credentials, **settings) as (channel, _):
        yield channel


@asynccontextmanager
async def opened_gateway(
    path: Path, **settings: Any
) -> AsyncIterator[tuple[gateway_service_pb2_grpc.GatewayServiceAsyncStub, OpenGateway]]:
    """Do the same and yield a stub, and what it leads to."""
    async with _serving(path, **settings) as (channel, opened):
        yield gateway_service_pb2_grpc.GatewayServiceStub(channel), opened


@asynccontextmanager
async def _serving(
    path: Path, *, credentials: grpc.ChannelCredentials | None = None, **settings: Any
) -> AsyncIterator[tuple[grpc.aio.Channel, OpenGateway]]:
    usual: dict[str, Any] = {
        "database_url": Secret(f"sqlite+aiosqlite:///{path.parent}/gateway.sqlite"),
        "ledger_answers": path.parent / "answers",
        "listen": "127.0.0.1:0",
        "run_token_key": KEY,
        "drain_s": 1.0,
        "retry_backoff_s": 0.01,
    }
    config = GatewayConfig(config=path, **usual | settings)
    offered = load_catalog(path, {"PROVIDER_KEY": "sk-provider-secret"}, dt.datetime.now(dt.UTC))
    async with (
        open_gateway(offered, config) as gateway,
        serve(
            lambda server: register(server, gateway, config),
            config=config,
            message_bytes_max=32 << 20,
            credentials=credentials,
        ) as channel,
    ):
        yield channel, gateway


@asynccontextmanager
async def gateway_service(
    path: Path, **settings: Any
) -> AsyncIterator[gateway_service_pb2_grpc.GatewayServiceAsyncStub]:
    """Do the same and yield a stub of GatewayService."""
    async with gateway_channel(path, **settings) as channel:
        yield gateway_service_pb2_grpc.GatewayServiceStub(channel)


def wire_prompt(text: str = "hello", tier: str = "sub", **fields: Any) -> generation_pb2.Prompt:
    message = generation_pb2.Message(role=generation_pb2.Message.ROLE_USER, text=text)
    return generation_pb2.Prompt(tier=tier, messages=[message], **fields)


def generate(text: str = "hello", **fields: Any) -> gateway_service_pb2.GenerateRequest:
    return gateway_service_pb2.GenerateRequest(prompt=wire_prompt(text, **fields))


def stream_generate(
    text: str = "hello", **fields: Any
) -> gateway_service_pb2.StreamGenerateRequest:
    return gateway_service_pb2.StreamGenerateRequest(prompt=wire_prompt(text, **fields))


def violated_fields(status: status_pb2.Status) -> set[str]:
    """Return the fields that a status's BadRequest names."""
    bad_request = error_details_pb2.BadRequest()
    return {
        violation.field
        for detail in status.details
        if detail.Unpack(bad_request)
        for violation in bad_request.field_violations
    }
