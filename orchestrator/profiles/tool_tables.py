"""Host tools as a profile's file has them, with the bounds of what may be asked of each."""

from __future__ import annotations

import keyword
import re
from pathlib import Path

from common.config import ConfigError, split_address
from common.toml_table import Table
from orchestrator.profiles.named_files import named_text, read_tenants
from orchestrator.profiles.profile import ARGUMENT_BYTES_MAX, RESULT_BYTES_MAX, HostTool
from orchestrator.runs.answers.schema_process import SchemaError, check_schema_text

TIME_MAX_S = 600.0
_NAME = re.compile(r"[a-z][a-z0-9_]{0,63}")
_CALLS_MAX = 100_000
_TAKEN = frozenset(
    {
        *("context", "llm_query", "llm_query_batched", "rlm_query", "rlm_query_batched"),
        *("grep", "lines", "chunks", "cite", "part", "call_tool", "help", "print", "len"),
    }
)


def read_tool(name: str, table: Table, folder: Path) -> HostTool:
    """Return the tool of a table; raises ConfigError."""
    if not _NAME.fullmatch(name) or keyword.iskeyword(name) or name in _TAKEN:
        table.fail("", "a tool's name is a Python name of a-z, 0-9 and `_`, not one in use")
    tool = HostTool(
        name=name,
        endpoint=_endpoint(table),
        description=table.text("description"),
        arguments_schema_json=_arguments(table, folder),
        result_schema_json=check_schema(table, "result", named_text(table, folder, "result")),
        calls_max=_bounded(table, "calls_max", 100, _CALLS_MAX),
        time_max_s=_time_max_s(table),
        argument_bytes_max=_bounded(table, "argument_bytes_max", 64 << 10, ARGUMENT_BYTES_MAX),
        result_bytes_max=_bounded(table, "result_bytes_max", 1 << 20, RESULT_BYTES_MAX),
        concurrency_max=_bounded(table, "concurrency_max", 4, 1_000),
        tenants=read_tenants(table),
    )
    table.end()
    return tool


def check_schema(table: Table, key: str, schema_json: str) -> str:
    """Return a JSON Schema as it is, empty for none; raises ConfigError for what is none."""
    if schema_json:
        try:
            check_schema_text(schema_json)
        except SchemaError as error:
            table.fail(key, f"is no JSON Schema that is taken: {error}")
    return schema_json


def _endpoint(table: Table) -> str:
    endpoint = table.text("endpoint")
    try:
        split_address(endpoint)
    except ConfigError as error:
        table.fail("endpoint", str(error))
    return endpoint


def _arguments(table: Table, folder: Path) -> str:
    """Everything is refused that a schema does not allow, so that there has to be one."""
    schema = check_schema(table, "arguments", named_text(table, folder, "arguments"))
    if not schema:
        table.fail("arguments", "is missing; it names the file of the arguments' JSON Schema")
    return schema


def _time_max_s(table: Table) -> float:
    value = table.seconds("time_max_s", 10.0)
    if value > TIME_MAX_S:
        table.fail("time_max_s", f"must be at most {TIME_MAX_S:g}")
    return value


def _bounded(table: Table, key: str, default: int, most: int) -> int:
    value = table.count(key, default)
    if value > most:
        table.fail(key, f"must be at most {most}")
    return value
