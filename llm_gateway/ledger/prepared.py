"""Statements that are compiled once and given to the driver as they are: for the few that every
call needs, SQLAlchemy's own machinery takes ten times as long as SQLite does.

What the driver raises is put into SQLAlchemy's words by `DatabaseThread`.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.sql.expression import ClauseElement

Row = tuple[Any, ...]
Values = Mapping[str, Any]
_POSTGRESQL = "postgresql"


class Prepared:
    """One statement, for every database; its parameters are given by name.

    They go to the driver as they are, so they are of types that both drivers know: no enums.
    """

    def __init__(
        self, statement: ClauseElement | Mapping[str, ClauseElement], columns: Sequence[str] = ()
    ) -> None:
        """Where databases differ it is given by the name of the dialect. `columns` are those that
        an insert has values for."""
        self._statement = statement
        self._columns = list(columns) or None
        self._compiled: dict[str, tuple[str, Callable[[Values], Any]]] = {}

    def run(self, connection: Connection, rows: Sequence[Values]) -> None:
        """Run it once for each row of parameters."""
        if rows:
            text, bind = self._for(connection)
            cursor = connection.connection.cursor()
            cursor.executemany(text, [bind(row) for row in rows])
            cursor.close()

    def counts(self, connection: Connection, rows: Sequence[Values]) -> list[int]:
        """Run it for each row and return how many rows of the table each has changed."""
        return self._each(connection, rows, lambda cursor: int(cursor.rowcount))

    def found(self, connection: Connection, rows: Sequence[Values]) -> list[Row | None]:
        """Run it for each row and return the first row that each gives."""
        return self._each(connection, rows, lambda cursor: cursor.fetchone())

    def _each(
        self, connection: Connection, rows: Sequence[Values], outcome: Callable[[Any], Any]
    ) -> list[Any]:
        if not rows:
            return []
        text, bind = self._for(connection)
        cursor: Any = connection.connection.cursor()
        outcomes = []
        if connection.dialect.name == _POSTGRESQL:
            # All in one exchange with the server.
            cursor.executemany(text, [bind(row) for row in rows], returning=True)
            for _ in rows:
                outcomes.append(outcome(cursor))
                cursor.nextset()
        else:
            for row in rows:
                cursor.execute(text, bind(row))
                outcomes.append(outcome(cursor))
        cursor.close()
        return outcomes

    def _for(self, connection: Connection) -> tuple[str, Callable[[Values], Any]]:
        dialect = connection.dialect
        if dialect.name not in self._compiled:
            statement = self._statement
            if isinstance(statement, Mapping):
                statement = statement[dialect.name]
            compiled: Any = statement.compile(dialect=dialect, column_keys=self._columns)
            self._compiled[dialect.name] = compiled.string, _binder(compiled)
        return self._compiled[dialect.name]


def _binder(compiled: Any) -> Callable[[Values], Any]:
    """Return what puts parameters into the form that the driver wants them in."""
    constants = {
        name: value.value if isinstance(value, enum.Enum) else value
        for name, value in compiled.params.items()
        if value is not None
    }
    if not compiled.positional:
        return lambda values: {**constants, **values}
    names = tuple(compiled.positiontup)
    if not constants:
        return lambda values: tuple([values[name] for name in names])
    return lambda values: tuple(
        [values[name] if name in values else constants[name] for name in names]
    )
