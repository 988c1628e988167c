"""What is raised where a database does not answer, told from the errors of its driver. It waits for
nothing and tries nothing again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import grpc
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from sqlalchemy.exc import DBAPIError, InterfaceError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from common.errors import ServiceError

_SQLITE_AWAY = ("locked", "full", "disk I/O", "unable to open")
"""Words of SQLite's errors that are the machine's and not the statement's."""
_SQLITE_FULL = "disk is full"
_POSTGRESQL_FULL = "53100"
"""Its code of disk_full."""


class DatabaseAwayError(ServiceError):
    """The database does not answer, or has broken off: whether a transaction that was under way
    is stored is not known."""

    code = grpc.StatusCode.UNAVAILABLE
    reason = ErrorReason.ERROR_REASON_DATABASE_AWAY

    def __init__(self) -> None:
        super().__init__("the database does not answer; try again", retry_after_s=1.0)


class DatabaseFullError(DatabaseAwayError):
    """The disk of the database is full: what was to be stored is not. It comes back as one that
    was away does, once there is room."""

    reason = ErrorReason.ERROR_REASON_DATABASE_FULL

    def __init__(self) -> None:
        ServiceError.__init__(
            self,
            "the disk of the database is full; work goes on once its operator has made room",
            retry_after_s=10.0,
        )


@contextlib.contextmanager
def telling_absence(dialect: str) -> Iterator[None]:
    """Turn errors in the block that are the database's, and not the statement's, into
    DatabaseAwayError."""
    try:
        yield
    except (OperationalError, InterfaceError) as error:
        if _is_full(error, dialect):
            raise DatabaseFullError from error
        if dialect == "sqlite" and not any(word in str(error.orig) for word in _SQLITE_AWAY):
            raise
        raise DatabaseAwayError from error
    except DBAPIError as error:
        if not error.connection_invalidated:
            raise
        raise DatabaseAwayError from error
    except PoolTimeoutError as error:
        raise DatabaseAwayError from error


def _is_full(error: DBAPIError, dialect: str) -> bool:
    if dialect == "sqlite":
        return _SQLITE_FULL in str(error.orig)
    return getattr(error.orig, "sqlstate", None) == _POSTGRESQL_FULL
