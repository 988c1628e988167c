"""Which answers are kept, for how long and how many: `[cache]` of the configuration file."""

from __future__ import annotations

import dataclasses

from common.toml_table import Table


@dataclasses.dataclass(frozen=True, kw_only=True)
class CacheRules:
    """The rules for all tenants."""

    is_on: bool = True
    """Whether there is a cache at all."""
    every_temperature: bool = False
    """Whether prompts at another temperature than 0 are answered from it, too, unless they say
    otherwise."""
    ttl_s: float = 3_600.0
    """Seconds that an answer is given again."""
    answer_bytes_max: int = 1 << 20
    """Bytes of a larger answer, which is not kept."""
    memory_bytes_max: int = 64 << 20
    """Bytes that this process keeps; the answers longest unused go first."""
    in_database: bool = False
    """Whether answers are kept in the ledger's database as well, for restarts and replicas."""
    database_answers_max: int = 100_000
    """Answers kept there, or in the Valkey server that is in place of it; the oldest go first."""


def cache_rules_from(table: Table) -> CacheRules:
    """Return the rules of a table, which may be empty; raises ConfigError."""
    usual = CacheRules()
    rules = CacheRules(
        is_on=table.flag("enabled", usual.is_on),
        every_temperature=table.flag("every_temperature", usual.every_temperature),
        ttl_s=table.seconds("ttl_s", usual.ttl_s),
        answer_bytes_max=table.count("answer_bytes_max", usual.answer_bytes_max),
        memory_bytes_max=table.count("memory_bytes_max", usual.memory_bytes_max),
        in_database=table.flag("in_database", usual.in_database),
        database_answers_max=table.count("database_answers_max", usual.database_answers_max),
    )
    table.end()
    return rules
