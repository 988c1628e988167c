"""What each new connection to a database is told, whoever opens it."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, event

_BUSY_TIMEOUT_MS = 10_000
_IDLE_MS_MAX = 5_000


def prepare_connections(engine: Engine) -> None:
    """Have each connection that the engine makes told what is right for its database."""
    is_sqlite = engine.dialect.name == "sqlite"
    event.listen(engine, "connect", _set_pragmas if is_sqlite else bound_idleness)


def bound_idleness(connection: Any, _record: object) -> None:
    """Have PostgreSQL end a transaction whose process stands still: it would keep its locks, and
    others from what it was doing."""
    cursor = connection.cursor()
    cursor.execute(f"SET idle_in_transaction_session_timeout = {_IDLE_MS_MAX}")
    cursor.close()
    connection.commit()  # else the pool takes it back with the first transaction


def _set_pragmas(connection: Any, _record: object) -> None:
    cursor = connection.cursor()
    # NORMAL loses no consistency in WAL mode; a power cut may lose the newest transactions.
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.execute(f"PRAGMA busy_timeout={_BUSY_TIMEOUT_MS}")
    cursor.close()
