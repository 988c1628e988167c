"""The `fathom` command as a process, against an orchestrator's servicers over a real port.

Long, because each thing that a caller can meet is a short test of its own, over one fixture.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from fathom.errors.v1 import error_reason_pb2
from fathom.orchestrator.v1 import run_pb2
from fathom_client.home import Home
from grpc import StatusCode

from common.config import ServerConfig
from common.errors import ServiceError, UnauthenticatedError
from common.server import Server
from tests.support.fake_orchestrator import (
    FakeOrchestrator,
    answered,
    cancelled,
    failed,
    partial,
)

COMMAND = (sys.executable, "-P", "-m", "fathom_client.command.main")
TIMEOUT_S = 30
NOBODY = "127.0.0.1:1"


class RunCancelledError(ServiceError):
    """What a cancelled run carries."""

    code = StatusCode.ABORTED
    reason = error_reason_pb2.ERROR_REASON_RUN_CANCELLED


class ProviderCredentialError(ServiceError):
    """What a run carries whose provider refused the key."""

    code = StatusCode.FAILED_PRECONDITION
    reason = error_reason_pb2.ERROR_REASON_PROVIDER_CREDENTIAL


@dataclass(frozen=True)
class Ended:
    """A command that ended."""

    status: int
    stdout: str
    stderr: str


@asynccontextmanager
async def serving(orchestrator: FakeOrchestrator) -> AsyncIterator[str]:
    server = Server("test", ServerConfig(drain_s=1.0))
    orchestrator.register(server)
    async with server:
        yield server.address


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory with one text, apart from the user's own home."""
    (tmp_path / "notes.txt").write_text("the notes\n")
    return tmp_path


async def start(
    folder: Path,
    *arguments: str,
    stdout: int = asyncio.subprocess.PIPE,
    environ: dict[str, str] | None = None,
) -> asyncio.subprocess.Process:
    own = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("FATHOM_", "OPENAI_"))
    }
    return await asyncio.create_subprocess_exec(
        *COMMAND,
        *arguments,
        cwd=folder,
        env=own | {"FATHOM_HOME": str(folder / "home")} | (environ or {}),
        stdin=asyncio.subprocess.PIPE,
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
    )


async def told(process: asyncio.subprocess.Process, text: str) -> None:
    """Wait for a line on standard error that holds `text`."""
    assert process.stderr is not None
    async for line in process.stderr:
        if text in line.decode():
            return


async def end_of(process: asyncio.subprocess.Process, stdin: bytes | None = None) -> Ended:
    try:
        async with asyncio.timeout(TIMEOUT_S):
            stdout, stderr = await process.communicate(stdin)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    return Ended(process.returncode or 0, (stdout or b"").decode(), stderr.decode())


async def run(folder: Path, *arguments: str, stdin: bytes | None = None, **environ: str) -> Ended:
    return await end_of(await start(folder, *arguments, environ=environ), stdin)


async def test_the_answer_alone_is_on_stdout(folder: Path) -> None:
    """It is piped into other programs."""
    async with serving(FakeOrchestrator(answered("42\nand more"))) as address:
        ended = await run(folder, "ask", "how many?", "notes.txt", "--server", address)

    assert (ended.status, ended.stdout) == (0, "42\nand more\n")
    told = ended.stderr.splitlines()
    assert told[0] == "1 file, 10 B · limits $5, 20 turns, 10 min"
    assert "turn 1/20 · 3 calls · 2.5k tok · $0.31/$5 · " in ended.stderr
    assert told[-1] == f"steps: fathom runs show runs/r1 --server {address}"


async def test_a_server_of_the_environment_is_not_repeated(folder: Path) -> None:
    """The next command finds it there as well; a URL is taken as its host and port."""
    async with serving(FakeOrchestrator(answered("42"))) as address:
        ended = await run(
            folder, "ask", "how many?", "notes.txt", FATHOM_SERVER=f"http://{address}/"
        )

    assert (ended.status, ended.stdout) == (0, "42\n")
    assert ended.stderr.splitlines()[-1] == "steps: fathom runs show runs/r1"


async def test_ask_is_the_verb_where_none_is_named(folder: Path) -> None:
    async with serving(FakeOrchestrator(answered("42"))) as address:
        ended = await run(folder, "how many?", "notes.txt", FATHOM_SERVER=address)

    assert (ended.status, ended.stdout) == (0, "42\n")


async def test_the_limits_that_are_shown_are_the_ones_that_are_sent(folder: Path) -> None:
    orchestrator = FakeOrchestrator(answered("42"))
    limits = ("--max-usd", "$0.5", "--max-time", "90s", "--max-turns", "3")
    more = ("--max-calls", "1k", "--max-tokens", "2M", "--max-depth", "0")
    async with serving(orchestrator) as address:
        ended = await run(folder, "ask", "why?", "notes.txt", *limits, *more, "--server", address)

    assert ended.stderr.splitlines()[0].endswith(
        "limits $0.50, 3 turns, 1 min 30 s, 1k calls, 2M tokens, depth 0"
    )
    sent = orchestrator.create_requests[0].spec.limits
    assert sent.cost_usd_nanos_max == 500_000_000
    assert sent.time_max.ToSeconds() == 90
    assert (sent.turns_max, sent.sub_calls_max, sent.tokens_max) == (3, 1_000, 2_000_000)
    assert sent.HasField("depth_max")


async def test_a_partial_answer_is_printed_and_has_a_status_of_its_own(folder: Path) -> None:
    async with serving(FakeOrchestrator(partial("so far", "turns_max"))) as address:
        ended = await run(folder, "ask", "why?", "notes.txt", "--server", address)

    assert (ended.status, ended.stdout) == (3, "so far\n")
    assert "partial answer: turns_max was reached; for more, raise --max-turns" in ended.stderr


async def test_a_failed_run_tells_cause_cost_and_what_to_try(folder: Path) -> None:
    error = ProviderCredentialError("the provider refused the key", provider="p", model="m")
    async with serving(FakeOrchestrator(failed(error))) as address:
        ended = await run(folder, "ask", "why?", "notes.txt", "--server", address)

    assert (ended.status, ended.stdout) == (1, "")
    assert "failed: the provider refused the key" in ended.stderr
    assert "cost so far: $0.31" in ended.stderr
    assert "try: check the provider's key and its funds" in ended.stderr


async def test_a_cost_that_is_not_all_known_is_told_as_the_least(folder: Path) -> None:
    """What a call took that was cut off is only known after the run's end."""

    def end(run: run_pb2.Run) -> None:
        answered("42")(run)
        run.usage_incomplete = True

    async with serving(FakeOrchestrator(end)) as address:
        ended = await run(folder, "ask", "why?", "notes.txt", "--server", address)
        printed = await run(folder, "ask", "why?", "notes.txt", "--json", "--server", address)

    assert "at least $0.31 · 42 s" in ended.stderr
    assert json.loads(printed.stdout)["usage_incomplete"] is True


async def test_json_is_one_object_with_everything(folder: Path) -> None:
    async with serving(FakeOrchestrator(answered("42"))) as address:
        ended = await run(folder, "ask", "why?", "notes.txt", "--json", "--server", address)

    printed = json.loads(ended.stdout)
    assert printed == {
        "run": "runs/r1",
        "status": "answered",
        "question": "why?",
        "context": "contexts/c1",
        "answer": "42",
        "answer_is_json": False,
        "schema_errors": [],
        "citations": [],
        "limit_reached": None,
        "found_so_far": None,
        "error": None,
        "turns": 2,
        "sub_calls": 3,
        "input_tokens": 2_500,
        "output_tokens": 0,
        "cost_usd": 0.31,
        "cost_usd_nanos": 310_000_000,
        "usage_incomplete": False,
        "elapsed_s": 42.0,
    }


def with_citations(run: run_pb2.Run) -> None:
    """End a run with an answer, of whose quotations one stands in the data."""
    answered("It was paid.")(run)
    run.answer.schema_errors.append("$.a: must be a number")
    run.answer.citations.extend(
        [
            run_pb2.Citation(
                document="a.txt",
                start=7,
                end=19,
                quote="paid\nin full",
                verified=True,
                check=run_pb2.Citation.CHECK_EXACT,
            ),
            run_pb2.Citation(quote="never said", check=run_pb2.Citation.CHECK_NOT_FOUND),
        ]
    )


async def test_each_citation_is_shown_with_whether_it_stands_there(folder: Path) -> None:
    async with serving(FakeOrchestrator(with_citations)) as address:
        ended = await run(folder, "ask", "why?", "notes.txt", "--server", address)

    assert (ended.status, ended.stdout) == (0, "It was paid.\n")
    assert "verified: a.txt · 7-19 “paid in full”\n" in ended.stderr
    assert "not in the data: “never said”\n" in ended.stderr
    assert "does not fit the schema: $.a: must be a number\n" in ended.stderr


async def test_json_has_the_citations_whole(folder: Path) -> None:
    async with serving(FakeOrchestrator(with_citations)) as address:
        ended = await run(folder, "ask", "why?", "notes.txt", "--json", "--server", address)

    printed = json.loads(ended.stdout)
    assert printed["schema_errors"] == ["$.a: must be a number"]
    assert printed["citations"][0] == {
        "document": "a.txt",
        "start": 7,
        "end": 19,
        "quote": "paid\nin full",
        "verified": True,
        "check": "exact",
    }
    assert printed["citations"][1]["check"] == "not_found"


async def test_a_schema_goes_along_with_the_question(folder: Path) -> None:
    orchestrator = FakeOrchestrator(answered("{}"))
    async with serving(orchestrator) as address:
        await run(folder, "ask", "why?", "notes.txt", "--schema", "total int", "--server", address)

    [created] = orchestrator.create_requests
    assert json.loads(created.spec.answer_schema_json)["properties"]["total"] == {"type": "integer"}


async def test_a_schema_that_is_none_is_a_usage_error(folder: Path) -> None:
    ended = await run(folder, "ask", "why?", "notes.txt", "--schema", "a b c d", "--server", NOBODY)

    assert ended.status == 2
    assert "--schema: 'a b c d' is no field" in ended.stderr


async def test_json_tells_of_a_failure_too(folder: Path) -> None:
    async with serving(FakeOrchestrator(failed(ProviderCredentialError("no")))) as address:
        ended = await run(folder, "ask", "why?", "notes.txt", "--json", "--server", address)

    printed = json.loads(ended.stdout)
    assert (ended.status, printed["status"], printed["answer"]) == (1, "failed", None)
    assert printed["error"] == {
        "code": "FAILED_PRECONDITION",
        "reason": "ERROR_REASON_PROVIDER_CREDENTIAL",
        "message": "no",
        "metadata": {},
    }


async def test_events_are_one_json_object_a_line(folder: Path) -> None:
    async with serving(FakeOrchestrator(answered("42"))) as address:
        ended = await run(folder, "ask", "why?", "notes.txt", "--events", "--server", address)

    events = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [int(event["sequence"]) for event in events] == list(range(1, len(events) + 1))
    assert events[-1]["run_changed"]["answer"]["text"] == "42"


async def test_quiet_leaves_the_answer_alone(folder: Path) -> None:
    async with serving(FakeOrchestrator(answered("42"))) as address:
        ended = await run(folder, "ask", "why?", "notes.txt", "-q", "--server", address)

    assert (ended.stdout, ended.stderr) == ("42\n", "")


FORECAST = (
    "1 to 10 calls · 100 to 2k tokens · $0.01 to $2 · 2 s to 1 min 30 s · from 3 finished runs"
)


async def test_a_dry_run_sends_nothing(folder: Path) -> None:
    orchestrator = FakeOrchestrator(answered("42"))
    async with serving(orchestrator) as address:
        ended = await run(folder, "ask", "why?", "notes.txt", "--dry-run", "--server", address)

    assert (ended.status, ended.stdout) == (0, "")
    assert ended.stderr == f"1 file, 10 B · limits $5, 20 turns, 10 min\n{FORECAST}\n"
    assert orchestrator.documents == []


async def test_a_confidence_is_asked_for(folder: Path) -> None:
    orchestrator = FakeOrchestrator(answered("42"))
    async with serving(orchestrator) as address:
        await run(folder, "ask", "why?", "notes.txt", "--confidence", "0.9", "--server", address)
        await run(folder, "ask", "why?", "notes.txt", "--server", address)

    sure, plain = (request.spec for request in orchestrator.create_requests)
    assert (sure.confidence_min, plain.HasField("confidence_min")) == (0.9, False)


async def test_an_estimate_is_one_line(folder: Path) -> None:
    """Known before anything is sent: a size is all that the server is told of the data."""
    orchestrator = FakeOrchestrator(answered("42"))
    async with serving(orchestrator) as address:
        ended = await run(folder, "estimate", "why?", "notes.txt", "--server", address)

    assert (ended.status, ended.stdout) == (0, f"{FORECAST}\n")
    (request,) = orchestrator.estimate_requests
    assert (request.spec.question, request.context_bytes, request.context_documents) == (
        "why?",
        10,
        1,
    )
    assert request.spec.limits.turns_max == 20
    assert orchestrator.documents == []


async def test_an_estimate_has_a_json_form(folder: Path) -> None:
    async with serving(FakeOrchestrator(answered("42"))) as address:
        ended = await run(folder, "estimate", "why?", "notes.txt", "--json", "--server", address)

    found = json.loads(ended.stdout)
    assert found["calls"] == {"low": "1", "high": "10"}
    assert (found["time_low"], found["time_high"]) == ("2s", "90s")


async def test_text_can_be_piped_in(folder: Path) -> None:
    orchestrator = FakeOrchestrator(answered("42"))
    async with serving(orchestrator) as address:
        ended = await run(folder, "ask", "why?", "--server", address, stdin=b"piped text")

    assert ended.status == 0
    assert orchestrator.documents == [{"": b"piped text"}]


async def test_a_stored_context_is_asked_about_without_an_upload(folder: Path) -> None:
    orchestrator = FakeOrchestrator(answered("42"))
    async with serving(orchestrator) as address:
        asked = ("ask", "how many?", "--server", address, "--context")
        ended = await run(folder, *asked, "c1")
        both = await run(folder, *asked, "contexts/c1", "notes.txt")

    assert (ended.status, ended.stdout) == (0, "42\n")
    assert ended.stderr.startswith("contexts/c1 · limits $5")
    assert orchestrator.create_requests[0].spec.context == "contexts/c1"
    assert orchestrator.started == []
    assert both.status == 2
    assert "--context names the data; leave notes.txt out" in both.stderr


async def test_paths_come_from_options_and_lists_too(folder: Path) -> None:
    (folder / "more.txt").write_text("more\n")
    (folder / "list").write_text("dir\n")
    (folder / "dir").mkdir()
    (folder / "dir" / "a.md").write_text("# a\n")
    orchestrator = FakeOrchestrator(answered("42"))
    arguments = ("why?", "notes.txt", "-f", "more.txt", "--paths-from", "list")
    async with serving(orchestrator) as address:
        await run(folder, "ask", *arguments, "--server", address)

    assert list(orchestrator.documents[0]) == ["notes.txt", "more.txt", "dir/a.md"]


async def test_names_in_a_list_need_not_be_utf8(folder: Path) -> None:
    name = b"caf\xe9.txt"
    (folder / os.fsdecode(name)).write_text("a\n")
    (folder / "list").write_bytes(name + b"\nnotes.txt\n")
    orchestrator = FakeOrchestrator(answered("42"))
    async with serving(orchestrator) as address:
        ended = await run(folder, "ask", "why?", "--paths-from", "list", "--server", address)

    assert ended.status == 0, ended.stderr
    assert list(orchestrator.documents[0]) == ["caf\ufffd.txt", "notes.txt"]


async def test_detaching_needs_services_that_stay(folder: Path) -> None:
    """Found out before any is started: with a key, they would be for nothing."""
    ended = await run(folder, "ask", "why?", "notes.txt", "--detach", OPENAI_API_KEY="k")

    assert (ended.status, ended.stdout) == (2, "")
    assert "try: fathom up" in ended.stderr
    assert not (folder / "home").exists()


async def test_detaching_prints_the_name_of_the_run(folder: Path) -> None:
    async with serving(FakeOrchestrator(answered("42"))) as address:
        ended = await run(folder, "ask", "why?", "notes.txt", "--detach", "--server", address)

    assert (ended.status, ended.stdout) == (0, "runs/r1\n")
    assert "fathom runs watch runs/r1" in ended.stderr


USAGE = [
    ("ask", "why?", "nope.txt"),
    ("ask", "notes.txt"),
    ("ask", "what", "is", "notes.txt"),
    ("ask", "why?", "notes.txt", "--max-usd", "lots"),
    ("ask", "why?", "notes.txt", "--max-turns", "0"),
    ("ask", "why?", "notes.txt", "--json", "--events"),
    ("ask", "why?", "-f", "nope.txt"),
    ("ask", "why?", "--paths-from", "nope.txt"),
    ("ask", " ", "notes.txt"),
    ("ask", "--question", "", "notes.txt"),
    ("up", "--scripted-model", "--listen", "nowhere"),
    ("rnus", "list"),
]


@pytest.mark.parametrize("arguments", USAGE, ids=lambda arguments: " ".join(arguments))
async def test_wrong_usage_has_a_status_of_its_own(folder: Path, arguments: tuple[str]) -> None:
    ended = await run(folder, *arguments, FATHOM_SERVER=NOBODY)

    assert (ended.status, ended.stdout) == (2, "")
    assert ended.stderr


async def test_a_service_that_is_not_there_is_unreachable(folder: Path) -> None:
    ended = await run(folder, "ask", "why?", "notes.txt", "--server", NOBODY)

    assert (ended.status, ended.stdout) == (5, "")
    assert "error: the service cannot be reached" in ended.stderr
    assert "cost so far: nothing" in ended.stderr
    assert "try: fathom doctor" in ended.stderr


async def test_an_unreachable_service_is_told_in_json_too(folder: Path) -> None:
    ended = await run(folder, "ask", "why?", "notes.txt", "--json", "--server", NOBODY)

    printed = json.loads(ended.stdout)
    assert (ended.status, printed["status"], printed["run"]) == (5, "failed", None)
    assert printed["error"]["code"] == "UNAVAILABLE"


async def test_a_refused_credential_has_a_status_of_its_own(folder: Path) -> None:
    orchestrator = FakeOrchestrator(answered("42"))
    orchestrator.create_error = UnauthenticatedError("missing", "no credential was given")
    async with serving(orchestrator) as address:
        ended = await run(folder, "ask", "why?", "notes.txt", "--server", address)

    assert ended.status == 4
    assert "no credential was given" in ended.stderr


async def test_without_a_service_and_a_key_both_remedies_are_named(folder: Path) -> None:
    ended = await run(folder, "ask", "why?", "notes.txt")

    assert (ended.status, ended.stdout) == (4, "")
    assert "OPENAI_API_KEY" in ended.stderr
    assert "--server" in ended.stderr


async def test_ctrl_c_cancels_the_run_and_keeps_what_it_found(folder: Path) -> None:
    orchestrator = FakeOrchestrator(
        answered("42"), ending_when_cancelled=cancelled(RunCancelledError("was cancelled"))
    )
    async with serving(orchestrator) as address:
        process = await start(folder, "ask", "why?", "notes.txt", "--server", address)
        await asyncio.wait_for(orchestrator.watching.wait(), TIMEOUT_S)
        process.send_signal(signal.SIGINT)
        ended = await end_of(process)

    assert (ended.status, ended.stdout) == (130, "the first half\n")
    assert "cancelling" in ended.stderr
    assert "not an answer" in ended.stderr
    assert "cost so far: $0.31" in ended.stderr
    assert orchestrator.runs["runs/r1"].HasField("end_time")


async def test_ctrl_c_prints_a_partial_answer_where_there_is_one(folder: Path) -> None:
    orchestrator = FakeOrchestrator(
        answered("42"), ending_when_cancelled=partial("half of it", "time_max")
    )
    async with serving(orchestrator) as address:
        process = await start(folder, "ask", "why?", "notes.txt", "--server", address)
        await asyncio.wait_for(orchestrator.watching.wait(), TIMEOUT_S)
        process.send_signal(signal.SIGINT)
        ended = await end_of(process)

    assert (ended.status, ended.stdout) == (130, "half of it\n")


async def test_ctrl_c_ends_a_command_that_waits_for_standard_input(folder: Path) -> None:
    """Reading it holds up the event loop, which would tell of the signal after the end."""
    process = await start(folder, "ask", "why?", "-", "--server", NOBODY)
    assert process.stdin is not None
    process.stdin.write(b"more than a pipe holds\n" * 100_000)
    await asyncio.wait_for(process.stdin.drain(), TIMEOUT_S)
    process.send_signal(signal.SIGINT)
    status = await asyncio.wait_for(process.wait(), TIMEOUT_S)

    assert status == 130
    assert process.stderr is not None
    assert b"interrupted; cost so far: nothing" in await process.stderr.read()


async def test_ctrl_c_while_watching_leaves_the_run_alone(folder: Path) -> None:
    orchestrator = FakeOrchestrator(
        answered("42"), ending_when_cancelled=cancelled(RunCancelledError("was cancelled"))
    )
    async with serving(orchestrator) as address:
        await run(folder, "ask", "why?", "notes.txt", "--detach", "--server", address)
        process = await start(folder, "runs", "watch", "runs/r1", "--server", address)
        await asyncio.wait_for(orchestrator.watching.wait(), TIMEOUT_S)
        process.send_signal(signal.SIGINT)
        ended = await end_of(process)

    assert ended.status == 130
    assert "the run goes on" in ended.stderr
    assert f"try: fathom runs watch runs/r1 --server {address}" in ended.stderr
    assert not orchestrator.runs["runs/r1"].HasField("end_time")


async def test_a_second_ctrl_c_quits_without_waiting(folder: Path) -> None:
    """A service that does not end the run must not hold the user's terminal."""
    orchestrator = FakeOrchestrator(answered("42"), ending_when_cancelled=lambda _: None)
    orchestrator.is_deaf = True
    async with serving(orchestrator) as address:
        process = await start(folder, "ask", "why?", "notes.txt", "--server", address)
        await asyncio.wait_for(told(process, "turn 1/20"), TIMEOUT_S)
        process.send_signal(signal.SIGINT)
        await asyncio.wait_for(orchestrator.cancel_asked.wait(), TIMEOUT_S)
        process.send_signal(signal.SIGINT)
        ended = await end_of(process)

    assert ended.status == 130
    assert "interrupted; cost so far: $0.31" in ended.stderr
    assert "try: fathom runs show runs/r1" in ended.stderr


async def test_a_broken_connection_is_told_and_costs_no_event(folder: Path) -> None:
    """Half a minute of silence would look like a model that thinks."""
    orchestrator = FakeOrchestrator(answered("42"))
    orchestrator.cut_watches_after = [4]
    async with serving(orchestrator) as address:
        ended = await run(folder, "ask", "why?", "notes.txt", "--events", "--server", address)

    sequences = [int(json.loads(line)["sequence"]) for line in ended.stdout.splitlines()]
    assert sequences == list(range(1, len(sequences) + 1))
    assert ended.status == 0
    assert ended.stderr.count("the connection broke") == 1


async def test_showing_a_run_tells_what_the_model_saw(folder: Path) -> None:
    async with serving(FakeOrchestrator(answered("42"))) as address:
        await run(folder, "ask", "why?", "notes.txt", "--detach", "--server", address)
        ended = await run(folder, "runs", "show", "r1", "--server", address)

    assert ended.status == 0
    assert "── turn 1 " in ended.stdout
    assert "print(len(context))" in ended.stdout
    assert "the model saw 29 of 48,112 characters" in ended.stdout
    assert "3 × llm_query (sub) · 1 failed (ERROR_REASON_RESOURCE_NOT_FOUND)" in ended.stdout
    assert "median 2 s, slowest 3 s · $0.21" in ended.stdout
    assert ended.stdout.rstrip().endswith("42")
    assert "\x1b" not in ended.stdout


async def test_showing_a_run_in_json_gives_run_and_events(folder: Path) -> None:
    async with serving(FakeOrchestrator(answered("42"))) as address:
        await run(folder, "ask", "why?", "notes.txt", "--detach", "--server", address)
        ended = await run(folder, "runs", "show", "runs/r1", "--json", "--server", address)

    printed = json.loads(ended.stdout)
    assert printed["run"]["answer"]["text"] == "42"
    assert len(printed["events"]) == int(printed["run"]["last_sequence"])


async def test_showing_a_run_that_goes_on_does_not_wait_for_its_end(folder: Path) -> None:
    orchestrator = FakeOrchestrator(answered("42"), ending_when_cancelled=answered("43"))
    async with serving(orchestrator) as address:
        await run(folder, "ask", "why?", "notes.txt", "--detach", "--server", address)
        ended = await run(folder, "runs", "show", "runs/r1", "--server", address)

    assert ended.status == 0
    assert "not ended; follow it: fathom runs watch runs/r1" in ended.stdout


async def test_a_reader_that_has_seen_enough_gets_no_traceback(folder: Path) -> None:
    """As with `fathom runs show RUN | head`."""
    reader, writer = os.pipe()
    os.close(reader)
    async with serving(FakeOrchestrator(answered("42"))) as address:
        process = await start(folder, "runs", "list", "--server", address, stdout=writer)
        os.close(writer)
        ended = await end_of(process)

    assert (ended.status, ended.stderr) == (1, "")


async def test_runs_are_listed_newest_first(folder: Path) -> None:
    async with serving(FakeOrchestrator(answered("42"))) as address:
        for question in ("first?", "second?"):
            await run(folder, "ask", question, "notes.txt", "--detach", "--server", address)
        table = await run(folder, "runs", "list", "--server", address)
        listed = await run(folder, "runs", "list", "--json", "--server", address)

    rows = table.stdout.splitlines()
    assert rows[0].split()[:2] == ["RUN", "STATE"]
    assert [row.split()[0] for row in rows[1:]] == ["runs/r2", "runs/r1"]
    assert [each["question"] for each in json.loads(listed.stdout)["runs"]] == ["second?", "first?"]


async def test_a_home_that_another_command_is_about_to_use_is_told_so(folder: Path) -> None:
    """Its services have no address yet; a key, or a server elsewhere, would not help."""
    with Home(folder / "home").owned():
        ended = await run(folder, "runs", "list")

    assert (ended.status, ended.stdout) == (5, "")
    assert "another fathom command runs its services" in ended.stderr
    assert "try: wait for it" in ended.stderr


async def test_cancelling_a_run_ends_it(folder: Path) -> None:
    orchestrator = FakeOrchestrator(
        answered("42"), ending_when_cancelled=cancelled(RunCancelledError("was cancelled"))
    )
    async with serving(orchestrator) as address:
        await run(folder, "ask", "why?", "notes.txt", "--detach", "--server", address)
        ended = await run(folder, "runs", "cancel", "runs/r1", "--server", address)
        again = await run(folder, "runs", "cancel", "runs/r1", "--server", address)

    assert (ended.status, again.status) == (0, 0)
    assert "has ended before: cancelled" in again.stderr


async def test_an_unknown_run_is_an_error_with_its_name(folder: Path) -> None:
    async with serving(FakeOrchestrator(answered("42"))) as address:
        ended = await run(folder, "runs", "show", "nope", "--server", address)

    assert (ended.status, ended.stdout) == (1, "")
    assert "runs/nope" in ended.stderr


async def test_doctor_reports_a_service_that_answers_and_shows_no_key(folder: Path) -> None:
    async with serving(FakeOrchestrator(answered("42"))) as address:
        ended = await run(
            folder, "doctor", "--json", "--server", address, OPENAI_API_KEY="sk-secret"
        )

    report = json.loads(ended.stdout)
    levels = {check["name"]: check["level"] for check in report["checks"]}
    assert (ended.status, report["ok"]) == (0, True)
    assert (levels["server"], levels["models"], levels["python"]) == ("ok", "ok", "ok")
    assert "sk-secret" not in ended.stdout + ended.stderr


async def test_doctor_fails_where_the_service_does_not_answer(folder: Path) -> None:
    ended = await run(folder, "doctor", "--server", NOBODY)

    assert ended.status == 1
    assert "fail  server" in ended.stdout
    assert "fathom up" in ended.stdout
