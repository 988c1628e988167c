"""The JSON Schema that a run's answer is to fit: checked when the run is created, and each answer
against it.

The checking itself is done by a process of its own a time (`schema_process`): neither a schema nor
an answer can stall or end this one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import subprocess
import sys

import orjson
from fathom.orchestrator.v1.run_pb2 import Answer

from common.errors import InvalidFieldError

SCHEMA_BYTES_MAX = 64 << 10
ANSWER_BYTES_MAX = 1 << 20
_SHARE_OF_REQUEST = 4
_WALL_MAX_S = 10.0
"""On a machine that is overloaded; the process has a limit of processor time of its own."""
_SAID_BYTES_MAX = 8 << 20
_FIELD = "spec.answer_schema_json"
_TOO_MUCH = "the answer could not be checked against the schema: it takes too long, or too much"
_UNLISTED = "the answer does not fit the schema; what is wrong takes too long to tell"


@dataclasses.dataclass(frozen=True, kw_only=True)
class SchemaVerdict:
    """Whether an answer fits a schema."""

    text: str = ""
    """The answer's JSON where it fits."""
    errors: tuple[str, ...] = ()
    """What is wrong, a line a path; empty where it fits."""


class AnswerSchema:
    """The schema of one run's answer. Where the run has none, every answer fits."""

    def __init__(self, schemas: AnswerSchemas, schema_json: str) -> None:
        """Take what checks answers, and the schema; empty for none."""
        self._schemas = schemas
        self.json = schema_json
        """The schema as JSON text; empty for none."""

    def enforced(self, *, bytes_max: int) -> str:
        """Return the schema for models that can be held to one, where a request of so many bytes
        has room for it; else nothing."""
        is_small = _SHARE_OF_REQUEST * len(self.json.encode()) <= bytes_max
        return self.json if is_small and self.json.lstrip().startswith("{") else ""

    async def fit(self, answer: Answer) -> None:
        """Make an answer the JSON that fits, or set its `schema_errors`."""
        if not self.json:
            return
        verdict = await self._schemas.check(self.json, answer.text)
        answer.schema_errors[:] = verdict.errors
        if not verdict.errors:
            answer.text, answer.is_json = verdict.text, True


class AnswerSchemas:
    """Checks schemas, and answers against them, a few at a time."""

    def __init__(self, *, at_a_time: int | None = None) -> None:
        """Take how many processes may run at once; as many as there are processors where None."""
        self._free = asyncio.Semaphore(at_a_time or os.cpu_count() or 1)

    async def check_schema(self, schema_json: str) -> None:
        """Raise InvalidFieldError, which names the place, unless it is a schema that is taken."""
        size = len(schema_json.encode())
        if size > SCHEMA_BYTES_MAX:
            raise InvalidFieldError(
                _FIELD, f"has {size} bytes; at most {SCHEMA_BYTES_MAX} are allowed"
            )
        lines = await self._said(schema_json, None)
        if not lines:
            raise InvalidFieldError(_FIELD, "takes too long to check; a schema must be simple")
        if problem := str(lines[0].get("problem", "")):
            raise InvalidFieldError(_FIELD, problem)

    async def check(self, schema_json: str, answer: str) -> SchemaVerdict:
        """Return whether an answer fits: as JSON, in a fence or between other words too, or as
        the text that it is where the schema asks for a string."""
        size = len(answer.encode())
        if size > ANSWER_BYTES_MAX:
            error = f"$: has {size} bytes; at most {ANSWER_BYTES_MAX} are allowed"
            return SchemaVerdict(errors=(error,))
        lines = await self._said(schema_json, answer)
        if not lines or "fits" not in lines[0]:
            return SchemaVerdict(errors=(_TOO_MUCH,))
        if lines[0]["fits"]:
            return SchemaVerdict(text=str(lines[0]["text"]))
        errors = lines[1].get("errors") if len(lines) > 1 else None
        told = tuple(map(str, errors)) if isinstance(errors, list) else ()
        return SchemaVerdict(errors=told or (_UNLISTED,))

    async def _said(self, schema_json: str, answer: str | None) -> list[dict[str, object]]:
        """Return the lines that a process came to before it ended, or was ended."""
        order = orjson.dumps({"schema": schema_json, "answer": answer})
        async with self._free:
            said = await asyncio.to_thread(_run, order)
        whole = said[: said.rfind(b"\n") + 1].splitlines()
        return [line for line in map(orjson.loads, whole) if isinstance(line, dict)]


def _run(order: bytes) -> bytes:
    # By subprocess, in a thread: the loop's own way forks, which runs gRPC's handlers of a fork.
    process = subprocess.Popen(
        [sys.executable, "-I", "-X", "utf8", "-m", "orchestrator.runs.answers.schema_process"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,  # a traceback would quote the answer
        env={},
        cwd="/",
    )
    with process:
        try:
            said, _ = process.communicate(order, timeout=_WALL_MAX_S)
        except subprocess.TimeoutExpired as late:
            said = late.stdout or b""
        finally:
            process.kill()
    return said[:_SAID_BYTES_MAX]
