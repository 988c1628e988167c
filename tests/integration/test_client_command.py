"""What `fathom ask` prints of an answer, as a process, against an orchestrator over a real port."""

from __future__ import annotations

import json
from pathlib import Path

from fathom.orchestrator.v1 import run_pb2

from tests.support.client_command import NOBODY, ProviderCredentialError, run, serving
from tests.support.fake_orchestrator import FakeOrchestrator, answered, failed, partial


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
