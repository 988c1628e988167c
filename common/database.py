"""The database: an engine, its migrations, and transactions to read and to write in.

It holds no queries; each store has its own.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, event
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from common.config import ConfigError

_BUSY_TIMEOUT_MS = 10_000


class Database:
    """An open database. Close it with its owner."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        # SQLite has one writer: waiting here costs nothing, waiting in its busy handler sleeps.
        self._writer = asyncio.Lock() if engine.dialect.name == "sqlite" else None

    @classmethod
    async def open(cls, url: str) -> Self:
        """Open the database at an SQLAlchemy URL and bring its tables up to date.

        Raises ConfigError for a URL that is none.
        """
        try:
            parsed = make_url(url)
            engine = create_async_engine(parsed)
        except (ArgumentError, ImportError) as error:
            raise ConfigError(f"database_url: {error}") from error
        if engine.dialect.name == "sqlite":
            if parsed.database:
                Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
            event.listen(engine.sync_engine, "connect", _set_pragmas)
        async with engine.begin() as connection:
            await connection.run_sync(_migrate)
        return cls(engine)

    @contextlib.asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """Open a connection to read with."""
        async with self._engine.connect() as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """Open a transaction: committed where the block ends well, else rolled back."""
        async with self._writer or contextlib.nullcontext():
            async with self._engine.begin() as connection:
                yield connection

    async def close(self) -> None:
        """Close every connection."""
        await self._engine.dispose()


def _set_pragmas(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    # NORMAL loses no consistency in WAL mode; a power cut may lose the newest transactions.
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
    cursor.close()


def _migrate(connection: Connection) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
