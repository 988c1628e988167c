"""Bringing the tables of a database up to date, by one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from alembic import command
from alembic.config import Config
from sqlalchemy import Connection, text
from sqlalchemy.engine import URL

_MIGRATION_LOCK = 0x66617468_6F6D
"""Key of PostgreSQL's advisory lock: processes that start together migrate one after the other."""


def alone(url: URL) -> contextlib.AbstractContextManager[None]:
    """Make an SQLite file's folder and file, and keep other processes from migrating it."""
    if url.get_backend_name() != "sqlite" or not url.database or url.database == ":memory:":
        return contextlib.nullcontext()
    path = Path(url.database)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Not the file itself is locked: closing it would drop the locks that SQLite has on it.
    lock = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(lock, fcntl.LOCK_EX)
    path.touch(mode=0o600)
    return _closing(lock)


def migrate(connection: Connection, migrations: Path) -> None:
    """Run the Alembic scripts of a folder that the database has not had yet."""
    if connection.dialect.name == "postgresql":
        connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
    config = Config()
    config.set_main_option("script_location", str(migrations))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


@contextlib.contextmanager
def _closing(descriptor: int) -> Iterator[None]:
    try:
        yield
    finally:
        os.close(descriptor)
