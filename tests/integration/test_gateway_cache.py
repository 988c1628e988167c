"""Cached answers in real databases, and over the wire."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fathom.gateway.v1 import generation_pb2, quota_service_pb2
from fathom.gateway.v1.gateway_service_pb2_grpc import GatewayServiceStub
from fathom.gateway.v1.quota_service_pb2_grpc import QuotaServiceStub
from fathom_demo.scripted_model import Script, ScriptedModel
from redis.asyncio import Redis

from common.config import Secret
from common.database import Database, DatabaseThread
from llm_gateway.cache.operations import TrimCached
from llm_gateway.cache.sql_store import SqlCacheStore
from llm_gateway.cache.valkey_store import ValkeyCacheStore
from llm_gateway.ledger.group_commit import GroupCommit
from llm_gateway.ledger.sql_store import SqlCallStore
from llm_gateway.ledger.tables import MIGRATIONS
from tests.support.cache_store_contract import TTL_S, CacheStoreContract, key
from tests.support.gateway import (
    KEY,
    ManualClock,
    config_file,
    gateway_channel,
    gateway_service,
    generate,
    metadata,
)
from tests.support.valkey import ValkeyServer


def _model(latency_ms: float = 0) -> ScriptedModel:
    """Answer each call with another text."""
    answers = Script([f"answer {number}" for number in range(30)])
    return ScriptedModel(policies={"id-0": answers}, latency_ms=latency_ms)


@pytest.fixture
async def commits(database_url: str) -> AsyncIterator[GroupCommit]:
    database = await Database.open(database_url, MIGRATIONS)
    await database.close()
    thread = DatabaseThread.open(database_url)
    yield GroupCommit(SqlCallStore(thread))
    await thread.close()


class TestSqlCacheStore(CacheStoreContract):
    """In SQLite and in PostgreSQL."""

    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    @pytest.fixture
    def store(self, commits: GroupCommit, clock: ManualClock) -> SqlCacheStore:
        return SqlCacheStore(commits, answers_max=1000, now=clock.now)


class TestValkeyCacheStore(CacheStoreContract):
    """In Valkey."""

    @pytest.fixture
    def clock(self) -> ManualClock:
        return ManualClock()

    @pytest.fixture
    async def store(
        self, valkey: ValkeyServer, clock: ManualClock
    ) -> AsyncIterator[ValkeyCacheStore]:
        client = Redis.from_url(valkey.new_database())
        store = ValkeyCacheStore(client, answers_max=1000, now=clock.now)
        yield store
        await store.close()


async def test_the_valkey_store_makes_room_by_itself(valkey: ValkeyServer) -> None:
    """And keeps no trace of what it let go."""
    clock, client = ManualClock(), Redis.from_url(valkey.new_database())
    store = ValkeyCacheStore(client, answers_max=10, now=clock.now)
    for number in range(128):
        clock.advance(0.001)
        await store.put(key(str(number)), b"x", TTL_S)

    left = [number for number in range(128) if await store.get(key(str(number)))]

    assert left == list(range(118, 128))
    assert await client.dbsize() == 10 + 1
    await store.close()


async def test_valkey_itself_lets_go_of_what_has_expired(valkey: ValkeyServer) -> None:
    """Also where no gateway looks after it any more."""
    client = Redis.from_url(valkey.new_database())
    store = ValkeyCacheStore(client, answers_max=10)
    await store.put(key("a"), b"x", TTL_S)

    (name,) = [name async for name in client.scan_iter() if b"expiry" not in name]

    assert TTL_S * 1000 - 10_000 < await client.pttl(name) <= TTL_S * 1000
    await store.close()


async def test_two_gateways_share_answers_in_valkey_and_do_without_it(
    tmp_path: Path, valkey: ValkeyServer
) -> None:
    """A cache that is away costs a call its hit and nothing else."""
    request, settings = generate(temperature=0.0), {"cache_url": Secret(valkey.new_database())}
    async with _model() as model:
        files = [tmp_path / name / "gateway.toml" for name in ("one", "other")]
        for file in files:
            file.parent.mkdir()
            config_file(file, [model.base_url])
        async with (
            gateway_service(files[0], **settings) as one,
            gateway_service(files[1], **settings) as other,
        ):
            first = await one.Generate(request, metadata=metadata(), timeout=30)
            again = await other.Generate(request, metadata=metadata(), timeout=30)
        gone = {"cache_url": Secret(f"unix://{tmp_path}/nobody")}
        async with gateway_service(files[0], **gone) as alone:
            asked = await alone.Generate(request, metadata=metadata(), timeout=30)

    assert (first.generation.attempts, again.generation.attempts) == (1, 0)
    assert again.generation.text == first.generation.text
    assert asked.generation.attempts == 1


async def test_the_oldest_above_the_number_and_what_has_expired_go(commits: GroupCommit) -> None:
    clock = ManualClock()
    store = SqlCacheStore(commits, answers_max=2, now=clock.now)
    await store.put(key("short"), b"x", 1.5)
    for name in ("oldest", "older", "newest"):
        clock.advance(1)
        await store.put(key(name), b"x", TTL_S)

    gone = await commits.post(TrimCached(int(clock.now() * 1_000_000), 2, 100))

    left = [name for name in ("oldest", "older", "newest") if await store.get(key(name))]
    assert (gone, left) == (2, ["older", "newest"])


async def test_the_database_store_makes_room_by_itself(commits: GroupCommit) -> None:
    clock = ManualClock()
    store = SqlCacheStore(commits, answers_max=10, now=clock.now)
    for number in range(128):
        clock.advance(0.001)
        await store.put(key(str(number)), b"x", TTL_S)

    left = [number for number in range(128) if await store.get(key(str(number)))]

    assert 10 <= len(left) <= 11
    assert left[-1] == 127


async def test_a_restarted_gateway_gives_the_answers_it_has_in_its_database(
    tmp_path: Path,
) -> None:
    async with _model() as model:
        path = config_file(tmp_path / "gateway.toml", [model.base_url])
        path.write_text(path.read_text() + "\n[cache]\nin_database = true\n")
        request = generate(temperature=0.0)
        async with gateway_service(path) as stub:
            first = await stub.Generate(request, metadata=metadata(), timeout=30)
        async with gateway_service(path) as stub:
            again = await stub.Generate(request, metadata=metadata(), timeout=30)

    assert (first.generation.attempts, again.generation.attempts) == (1, 0)
    assert again.generation.text == first.generation.text
    assert again.generation.usage == generation_pb2.Usage()


async def test_identical_calls_at_the_same_time_are_asked_once(
    tmp_path: Path,
) -> None:
    """Over the wire, with the ledger on: one call pays, the others are its hits."""
    async with _model(latency_ms=100) as model:
        path = config_file(tmp_path / "gateway.toml", [model.base_url])
        request = generate(temperature=0.0)
        async with gateway_service(path) as stub:
            responses = await asyncio.gather(
                *(stub.Generate(request, metadata=metadata(), timeout=30) for _ in range(20))
            )

    assert sum(response.generation.attempts for response in responses) == 1
    assert sum(response.generation.usage.cost_usd_nanos > 0 for response in responses) == 1


async def test_an_unknown_wish_for_the_cache_is_refused(tmp_path: Path) -> None:
    path = config_file(tmp_path / "gateway.toml", ["http://127.0.0.1:1/v1"])
    async with gateway_service(path) as stub:
        with pytest.raises(Exception, match=r"prompt\.cache_use"):
            await stub.Generate(generate(cache_use=7), metadata=metadata(), timeout=30)


async def test_hits_are_in_the_usage_beside_what_was_paid(tmp_path: Path) -> None:
    async with _model() as model:
        path = config_file(tmp_path / "gateway.toml", [model.base_url])
        async with gateway_channel(path, operator_key=KEY) as channel:
            gateway, quotas = GatewayServiceStub(channel), QuotaServiceStub(channel)
            for number in range(3):
                request = generate(temperature=0.0)
                request.call.request_id = str(number)
                await gateway.Generate(request, metadata=metadata(), timeout=30)
            asked = quota_service_pb2.GetUsageRequest(parent="tenants/acme")
            asked.start_time.FromSeconds(1)
            key = (("fathom-operator-key", KEY.reveal()),)
            (row,) = (await quotas.GetUsage(asked, metadata=key, timeout=30)).rows

    assert (row.usage.calls, row.cache_hits) == (1, 2)
