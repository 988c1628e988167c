"""What is done to cached answers, on SQLite and PostgreSQL."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import Connection, delete, select

from llm_gateway.cache.operations import FindCached, KeepCached, TrimCached
from llm_gateway.cache.tables import cached_answers
from llm_gateway.ledger.sql_rows import insert_into


def find_cached(connection: Connection, asked: FindCached) -> bytes | None:
    """See FindCached."""
    found = connection.execute(
        select(cached_answers.c.answer).where(
            cached_answers.c.key == asked.key, cached_answers.c.expires_us > asked.now_us
        )
    ).scalar_one_or_none()
    return None if found is None else bytes(found)


def keep_cached(connection: Connection, kept: Sequence[KeepCached]) -> list[None]:
    """See KeepCached."""
    # The last of a key wins; rows go in the order of their keys, as everywhere.
    rows = {
        each.key: {"key": each.key, "answer": each.answer, "expires_us": each.expires_us}
        for each in kept
    }
    insert = insert_into(connection, cached_answers)
    statement = insert.on_conflict_do_update(
        index_elements=[cached_answers.c.key],
        set_={name: insert.excluded[name] for name in ("answer", "expires_us")},
    )
    connection.execute(statement, [rows[key] for key in sorted(rows)])
    return [None] * len(kept)


def trim_cached(connection: Connection, asked: TrimCached) -> int:
    """See TrimCached."""
    expired = (
        select(cached_answers.c.key)
        .where(cached_answers.c.expires_us <= asked.now_us)
        .limit(asked.rows_max)
    )
    beyond = (
        select(cached_answers.c.key)
        .order_by(cached_answers.c.expires_us.desc())
        .offset(asked.answers_max)
        .limit(asked.rows_max)
    )
    return sum(
        connection.execute(delete(cached_answers).where(cached_answers.c.key.in_(old))).rowcount
        for old in (expired, beyond)
    )
