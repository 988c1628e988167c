"""Trees of runs whose calls cost money: the real orchestrator over the real gateway, with its
ledger and accounts, a provider that plays plans, and a sandbox that executes them.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import dataclasses
import datetime as dt
import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

from aiohttp import web
from fathom_demo.scripted_model import ChatRequest

from common.config import Secret
from common.server import Server
from llm_gateway.__main__ import OpenGateway, open_gateway, register
from llm_gateway.accounts.account import Account
from llm_gateway.accounts.caps import Amounts
from llm_gateway.catalog_file import load_catalog
from llm_gateway.config import GatewayConfig
from tests.support.fake_gateway import TOKEN_KEY
from tests.support.orchestrator import Stack, orchestrator, serve_on_address
from tests.support.plan_sandbox import Plan, PlanSandbox
from tests.support.played_model import PlayedModel, answers, fails

_QUESTION = "Question:\n\n"
_CATALOG = """
[providers.plans]
base_url = "{base_url}"
api_key_env = "PROVIDER_KEY"
timeout_s = 20
[[deployments]]
name = "large"
provider = "plans"
model = "large-id"
concurrency_max = 64
[deployments.price]
input_usd_per_million = 0.15
cached_input_usd_per_million = 0.0375
output_usd_per_million = 0.6
[[deployments]]
name = "small"
provider = "plans"
model = "small-id"
concurrency_max = 64
[deployments.price]
input_usd_per_million = 0.05
output_usd_per_million = 0.4
[tiers]
root = ["large"]
sub = ["small"]
"""


class PlanProvider(PlayedModel):
    """Answers root models with a cell that has the plan in question, and sub-models with a word.

    A plan's `share` is how much of the most that a call may take, in percent, its root model's
    calls do take. Where it `fails`, its root model has no answer. A text to a sub-model may begin
    with its share as well; one of -1 is refused.
    """

    def __init__(self) -> None:
        super().__init__(self._reply)
        self.hold = asyncio.Event()
        """Cleared to have calls wait."""
        self.hold.set()
        self.asked = 0
        """Calls that have arrived."""
        self.on_call: Callable[[], None] = lambda: None
        """Done whenever one arrives."""

    async def _reply(self, http: web.Request, request: ChatRequest) -> web.StreamResponse:
        self.asked += 1
        self.on_call()
        await self.hold.wait()
        first = next((m.content for m in request.messages if _QUESTION in m.content), "")
        if first:
            question = first.split(_QUESTION, 1)[1].split("\n", 1)[0]
            plan: Plan = json.loads(question)
            reply, share = f"```repl\n{question}\n```", plan.get("share", 10)
            share = -1 if plan.get("fails") else share
        else:
            word = request.messages[-1].content.split()[0]
            share, reply = 10 if word == "read" else int(word), "word"
        if share < 0:
            return await fails(400)(http, request)
        return await answers(reply, usage=_usage(request, share))(http, request)


def _usage(request: ChatRequest, share: int) -> dict[str, Any]:
    """Return a share of the most that a call may take: its bytes, and what it may answer with."""
    assert request.completion_tokens_max is not None
    tokens_in = sum(len(m.content.encode()) for m in request.messages) * share // 100
    tokens_out = request.completion_tokens_max * share // 100
    return {
        "prompt_tokens": tokens_in,
        "completion_tokens": tokens_out,
        "total_tokens": tokens_in + tokens_out,
        "prompt_tokens_details": {"cached_tokens": tokens_in // 3},
    }


@dataclasses.dataclass(frozen=True)
class Spent:
    """What calls took."""

    cost_usd_nanos: int = 0
    """Money."""
    input_tokens: int = 0
    """Cached ones included."""
    output_tokens: int = 0
    """Reasoning included."""
    cached_input_tokens: int = 0
    """Of the input."""

    def __add__(self, other: Spent) -> Spent:
        mine, theirs = dataclasses.astuple(self), dataclasses.astuple(other)
        return Spent(*(a + b for a, b in zip(mine, theirs, strict=True)))

    @property
    def tokens(self) -> int:
        """Input and output."""
        return self.input_tokens + self.output_tokens


class LedgerFile:
    """A gateway's ledger, read from its file past all of its code."""

    def __init__(self, file: Path) -> None:
        self._connection = sqlite3.connect(f"file:{file}?mode=ro", uri=True)

    def close(self) -> None:
        """Close the file."""
        self._connection.close()

    def spent_by_run(self) -> collections.defaultdict[str, Spent]:
        """Return what the calls of each run took, those of its children not included; by id."""
        query = """SELECT substr(request_id, 1, instr(request_id, '/') - 1), cost_usd_nanos,
            input_tokens, output_tokens, cached_input_tokens FROM exchanges"""
        spent: collections.defaultdict[str, Spent] = collections.defaultdict(Spent)
        for run_id, *amounts in self._connection.execute(query):
            spent[run_id] += Spent(*amounts)
        return spent

    def spent_by_tenant(self) -> dict[str, Spent]:
        """Return what the calls of each tenant took."""
        query = """SELECT tenant, sum(cost_usd_nanos), sum(input_tokens), sum(output_tokens),
            sum(cached_input_tokens) FROM exchanges GROUP BY tenant"""
        return {tenant: Spent(*sums) for tenant, *sums in self._connection.execute(query)}

    def call_of(self, run_id: str) -> str:
        """Return the request id of one sub-call of a run."""
        query = "SELECT request_id FROM calls WHERE tier = 'sub' AND request_id LIKE ? || '/%'"
        return str(self._connection.execute(query, [run_id]).fetchone()[0])

    def claimed_by_run(self) -> dict[str, Amounts]:
        """Return what is counted against the limits of each run, by id: what all calls below it
        took, and the worst case of those under way."""
        query = "SELECT account, numbers FROM accounts"
        claimed = {}
        for account, numbers in self._connection.execute(query):
            state = Account.load(numbers, 0).state(0)
            claimed[account.rpartition("/")[2]] = state.taken.plus(state.held)
        return claimed

    @property
    def is_at_rest(self) -> bool:
        """Whether no call is under way, and nothing is reserved for one."""
        query = "SELECT (SELECT count(*) FROM calls WHERE state = 1), (SELECT count(*) FROM holds)"
        return bool(self._connection.execute(query).fetchone() == (0, 0))


@dataclasses.dataclass
class PricedTrees:
    """What serves trees."""

    stack: Stack
    """The orchestrator."""
    sandbox: PlanSandbox
    """Executes plans."""
    provider: PlanProvider
    """Answers calls."""
    gateway_address: str
    """Where the gateway listens, which is between the two."""
    ledger: LedgerFile
    """What the gateway has written down."""


class _ServedGateway:
    """The gateway; register it with a server."""

    def __init__(self, opened: OpenGateway, config: GatewayConfig) -> None:
        self._opened = opened
        self._config = config

    def register(self, server: Server) -> None:
        """Add it to a server."""
        register(server, self._opened, self._config)


@contextlib.asynccontextmanager
async def priced_trees(folder: Path, **settings: Any) -> AsyncIterator[PricedTrees]:
    """Serve all of it, with its state in a folder."""
    address_file, ledger_file = folder / "orchestrator.address", folder / "gateway.sqlite"
    async with contextlib.AsyncExitStack() as stack:
        provider = await stack.enter_async_context(PlanProvider())
        file = folder / "gateway.toml"
        file.write_text(_CATALOG.format(base_url=provider.base_url))
        config = GatewayConfig(
            config=file,
            database_url=Secret(f"sqlite+aiosqlite:///{ledger_file}"),
            ledger_answers=folder / "answers",
            run_token_key=Secret(TOKEN_KEY),
            operator_key=Secret(TOKEN_KEY),
            retry_backoff_s=0.01,
            abandoned_drain_s=60.0,  # what runs leave behind is ended with them
        )
        catalog = load_catalog(file, {"PROVIDER_KEY": "sk-a-provider"}, dt.datetime.now(dt.UTC))
        opened = await stack.enter_async_context(open_gateway(catalog, config))
        served: Any = _ServedGateway(opened, config)
        address = await stack.enter_async_context(serve_on_address(served))
        sandbox = PlanSandbox(address, address_file)
        stack.push_async_callback(sandbox.close)
        running = await stack.enter_async_context(
            orchestrator(
                folder, gateway=served, sandbox=sandbox, address_file=address_file, **settings
            )
        )
        ledger = LedgerFile(ledger_file)
        stack.callback(ledger.close)
        yield PricedTrees(running, sandbox, provider, address, ledger)
