"""What many tests stand on: servers that are started once, when the first test wants one, and a
gateway's neighbours and a working directory for each test.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.gateway import config_file, gateway_service
from tests.support.played_model import PlayedModel, answers
from tests.support.postgres import PostgresServer
from tests.support.valkey import ValkeyServer


@pytest.fixture(autouse=True)
def unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bounds of some seconds that services in a test's own process have for others that stand
    still: a busy machine has the whole process stand still for as long, and that is no fault."""
    monkeypatch.setattr("common.database.connections._IDLE_MS_MAX", 60_000)
    monkeypatch.setattr("orchestrator.gateway_client._LIST_TIMEOUT_S", 30.0)


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    """A PostgreSQL server; each test makes a database of its own."""
    with PostgresServer() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The URL of an empty database, of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path_factory.mktemp('database')}/gateway.sqlite"
    server: PostgresServer = request.getfixturevalue("postgres")
    return server.new_database()


@pytest.fixture(scope="session")
def valkey() -> Iterator[ValkeyServer]:
    """A Valkey server; each test has a database of its own."""
    with ValkeyServer() as server:
        yield server


@pytest.fixture
async def provider() -> AsyncIterator[PlayedModel]:
    async with PlayedModel() as serving:
        yield serving


@pytest.fixture
async def second() -> AsyncIterator[PlayedModel]:
    async with PlayedModel(answers("from the second")) as serving:
        yield serving


@pytest.fixture
async def stub(provider: PlayedModel, tmp_path: Path) -> AsyncIterator[Any]:
    """A gateway with one deployment, `m0`."""
    async with gateway_service(config_file(tmp_path / "c.toml", [provider.base_url])) as serving:
        yield serving


@pytest.fixture
async def pooled(provider: PlayedModel, second: PlayedModel, tmp_path: Path) -> AsyncIterator[Any]:
    """A gateway whose tiers have `m0` and then `m1`, at two providers."""
    urls = [provider.base_url, second.base_url]
    async with gateway_service(config_file(tmp_path / "c.toml", urls)) as serving:
        yield serving


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with one text, apart from the user's own home."""
    (tmp_path / "notes.txt").write_text("the notes\n")
    return tmp_path
