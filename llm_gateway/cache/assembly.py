"""The cache put together: which store stands behind the one in memory."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

from llm_gateway.cache.rules import CacheRules
from llm_gateway.cache.sql_store import SqlCacheStore
from llm_gateway.cache.store import CacheStore
from llm_gateway.ledger.group_commit import GroupCommit


@contextlib.asynccontextmanager
async def shared_stores(
    url: str, commits: GroupCommit
) -> AsyncIterator[Callable[[CacheRules], CacheStore | None]]:
    """Give what makes the shared store for rules: the Valkey server of a URL where there is one,
    else the ledger's database where the rules want that, else none.

    Raises ConfigError for a URL that cannot be one.
    """
    if not url:
        yield lambda rules: _in_database(rules, commits)
        return
    # Here, since Valkey's library takes several megabytes, of every gateway.
    from llm_gateway.cache.valkey_store import ValkeyCacheStore

    store = ValkeyCacheStore.open(url, answers_max=CacheRules().database_answers_max)

    def in_valkey(rules: CacheRules) -> CacheStore:
        store.answers_max = rules.database_answers_max
        return store

    try:
        yield in_valkey
    finally:
        await store.close()


def _in_database(rules: CacheRules, commits: GroupCommit) -> CacheStore | None:
    if not rules.in_database:
        return None
    return SqlCacheStore(commits, answers_max=rules.database_answers_max)
