"""`llm_query` from a real guest to a fake gateway: answers, failures, limits, identity."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from fathom.errors.v1.error_reason_pb2 import ErrorReason
from fathom.sandbox.v1 import sandbox_service_pb2 as wire
from fathom.sandbox.v1 import session_pb2
from google.rpc import error_details_pb2

from common.errors import ServiceError, received
from tests.support.sandbox import Ran, Sandbox, details, guest, sandbox

pytestmark = pytest.mark.guest


class OverloadedError(ServiceError):
    code = grpc.StatusCode.UNAVAILABLE
    reason = ErrorReason.ERROR_REASON_PROVIDER_UNAVAILABLE


class SpentError(ServiceError):
    code = grpc.StatusCode.RESOURCE_EXHAUSTED
    reason = ErrorReason.ERROR_REASON_RUN_LIMIT_EXCEEDED


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with sandbox(guest(), tmp_path) as running:
        yield running


@pytest.fixture
async def session(box: Sandbox) -> str:
    return await box.create()


async def test_an_answer_is_a_text(box: Sandbox, session: str) -> None:
    ran = await box.run(session, "llm_query('what?')")

    assert ran.out == "'re: what?'\n"
    assert ran.kinds() == ["start", "sub_call_started", "sub_call_finished", "output", "result"]


async def test_a_batch_answers_in_the_order_of_its_prompts(box: Sandbox, session: str) -> None:
    """The gateway answers in any order; this one in reverse."""
    ran = await box.run(session, "llm_query_batched([f'p{i}' for i in range(5)])")

    assert ran.out == "['re: p0', 're: p1', 're: p2', 're: p3', 're: p4']\n"


async def test_the_gateway_gets_the_token_and_the_calls_identity(
    box: Sandbox, session: str
) -> None:
    """The same call of a run that is executed again has the same request id."""
    await box.run(
        session,
        "llm_query('a', tier='root', max_output_tokens=7, temperature=0)\n"
        "llm_query_batched(['b', 'c'])",
        call_prefix="runs/1/2/3",
        turn=2,
    )

    single, *batch = box.gateway.requests
    assert set(box.gateway.tokens) == {"token"}
    assert single.prompt.tier == "root"
    assert single.prompt.output_tokens_max == 7
    assert single.prompt.HasField("temperature")
    assert single.call.turn == 2
    assert single.call.request_id == "runs/1/2/3/1"
    assert not single.call.HasField("batch_index")
    ids = {item.prompt.messages[0].text: item.call.request_id for item in batch}
    assert ids == {"b": "runs/1/2/3/2", "c": "runs/1/2/3/3"}
    assert {item.prompt.tier for item in batch} == {"sub"}
    assert not batch[0].prompt.HasField("temperature")


async def test_a_prompt_may_be_a_list_of_messages(box: Sandbox, session: str) -> None:
    cell = (
        "llm_query([{'role': 'system', 'content': 'be short'},"
        " {'role': 'user', 'content': 'why?'}])"
    )

    assert (await box.run(session, cell)).out == "'re: why?'\n"
    assert [m.text for m in box.gateway.requests[0].prompt.messages] == ["be short", "why?"]


@pytest.mark.parametrize(
    ("call", "error"),
    [
        ("llm_query(3)", "TypeError"),
        ("llm_query('')", "ValueError"),
        ("llm_query([])", "TypeError"),
        ("llm_query([{'role': 'tool', 'content': 'x'}])", "ValueError"),
        ("llm_query([{'role': 'user', 'content': 3}])", "TypeError"),
        ("llm_query('x', temperature=3)", "ValueError"),
        ("llm_query('x', max_output_tokens=0)", "ValueError"),
        ("llm_query_batched('one prompt')", "TypeError"),
        ("llm_query('x' * (50 << 20))", "ValueError"),
    ],
)
async def test_a_call_that_makes_no_sense_is_an_error_before_it_is_made(
    box: Sandbox, session: str, call: str, error: str
) -> None:
    ran = await box.run(session, call)

    assert (ran.ending, ran.result.error.type) == ("raised", error)
    assert not box.gateway.requests


async def test_an_empty_batch_is_no_call(box: Sandbox, session: str) -> None:
    assert (await box.run(session, "llm_query_batched([])")).out == "[]\n"


async def test_a_failed_call_raises(box: Sandbox, session: str) -> None:
    """An error returned as a text would be taken for an answer."""
    box.gateway.errors["x"] = OverloadedError("the provider is down")

    ran = await box.run(session, "llm_query('x')")

    assert (ran.ending, ran.result.error.type) == ("raised", "LLMQueryError")
    assert ran.result.error.message == "the provider is down"
    assert "__main__" not in ran.result.error.traceback
    assert (
        await box.run(
            session, "try:\n    llm_query('x')\nexcept LLMQueryError as e:\n    print(e.reason)"
        )
    ).out == "PROVIDER_UNAVAILABLE\n"
    finished = next(e.sub_call_finished for e in ran.events if e.HasField("sub_call_finished"))
    assert finished.error.code == grpc.StatusCode.UNAVAILABLE.value[0]


@pytest.mark.parametrize(
    "use",
    [
        "r + 'x'",
        "'x' + r",
        "''.join(['a', r])",
        "f'{r}'",
        "str(r)",
        "'%s' % r",
        "'{}'.format(r)",
        "len(r)",
        "r[0]",
        "'a' in r",
        "list(r)",
        "r.strip()",
        "r.lower()",
        "r * 2",
        "int(r)",
        "FINAL(r)",
        "print(r)",
    ],
)
async def test_a_failed_item_cannot_pass_for_an_answer(
    box: Sandbox, session: str, use: str
) -> None:
    box.gateway.errors["bad"] = OverloadedError("down")

    ran = await box.run(session, f"_, r = llm_query_batched(['good', 'bad'])\n{use}")

    assert (ran.ending, ran.result.error.type) == ("raised", "TypeError")
    assert not ran.result.HasField("final")


async def test_a_failed_item_says_what_it_is(box: Sandbox, session: str) -> None:
    box.gateway.errors["bad"] = OverloadedError("down")

    ran = await box.run(
        session,
        "r = llm_query_batched(['good', 'bad'])\n"
        "print(bool(r[1]), isinstance(r[1], str), isinstance(r[1], FailedQuery), r[1].reason)\n"
        "r",
    )

    assert ran.out == (
        "False False True PROVIDER_UNAVAILABLE\n"
        "['re: good', <FailedQuery #1: PROVIDER_UNAVAILABLE: down>]\n"
    )


async def test_a_limit_of_the_run_raises_from_a_batch_with_what_was_answered(
    box: Sandbox, session: str
) -> None:
    box.gateway.errors["bad"] = SpentError("no money left", limit="usd")
    cell = (
        "try:\n    llm_query_batched(['good', 'bad'])\n"
        "except LimitExceededError as e:\n    print(e, e.results[0], bool(e.results[1]))"
    )

    ran = await box.run(session, cell)

    assert ran.out == "no money left re: good False\n"
    assert limit_of(ran) == "usd"


def limit_of(ran: Ran) -> str:
    info = error_details_pb2.ErrorInfo()
    assert ran.result.limit_reached.details[0].Unpack(info)
    assert info.reason == "ERROR_REASON_RUN_LIMIT_EXCEEDED"
    return str(info.metadata["limit"])


async def test_a_limit_is_reported_whatever_the_code_did_about_it(
    box: Sandbox, session: str
) -> None:
    """Code that catches everything must not hide it from the run."""
    box.gateway.errors["x"] = SpentError("no money left", limit="usd")

    ran = await box.run(session, "try:\n    llm_query('x')\nexcept Exception:\n    pass")

    assert ran.ending == "completed"
    assert limit_of(ran) == "usd"
    assert not (await box.run(session, "1")).result.HasField("limit_reached")


async def test_sub_calls_have_a_limit_of_their_own(box: Sandbox) -> None:
    """On either side: the third of three is made, the fourth is not."""
    limits = session_pb2.SessionLimits(sub_calls_max=3)
    session = await box.create(limits=limits)
    assert (await box.run(session, "llm_query('1')")).ending == "completed"
    assert (await box.run(session, "llm_query_batched(['2', '3'])")).ending == "completed"

    ran = await box.run(session, "llm_query('4')")

    assert ran.result.error.type == "LimitExceededError"
    assert limit_of(ran) == "sub_calls_max"
    assert len(box.gateway.requests) == 3


async def test_a_batch_over_the_limit_makes_the_calls_that_it_may(box: Sandbox) -> None:
    session = await box.create(limits=session_pb2.SessionLimits(sub_calls_max=2))
    cell = (
        "try:\n    llm_query_batched(['1', '2', '3'])\n"
        "except LimitExceededError as e:\n    print(e.results[:2])"
    )

    assert (await box.run(session, cell)).out == "['re: 1', 're: 2']\n"
    assert len(box.gateway.requests) == 2


async def test_without_a_run_token_no_call_is_made(box: Sandbox) -> None:
    session = await box.create(run_token="")

    ran = await box.run(session, "llm_query('x')")

    assert ran.result.error.type == "LLMQueryError"
    assert not box.gateway.requests


async def test_an_execution_may_bring_another_token(box: Sandbox, session: str) -> None:
    """Tokens are short-lived; a session outlives them."""
    await box.run(session, "llm_query('x')", run_token="fresh")
    await box.run(session, "llm_query('x')")

    assert box.gateway.tokens == ["fresh", "fresh"]


async def test_a_token_is_replaced_while_code_runs(box: Sandbox, session: str) -> None:
    """Code may run for longer than a token lives."""
    code = "llm_query('hold')\nllm_query('x')\nllm_query_batched(['y', 'z'])"
    running = asyncio.create_task(box.run(session, code))
    await box.gateway.held.wait()

    await refresh(box, session, "fresh")
    box.gateway.hold.set()
    await running

    assert box.gateway.tokens == ["token", "fresh", "fresh", "fresh"]


async def test_a_token_is_replaced_by_another_one_of_a_known_session(
    box: Sandbox, session: str
) -> None:
    refusals = []
    for name, token in ((session, ""), (session, "two\nlines"), ("sessions/none", "fresh")):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await refresh(box, name, token)
        refusals.append(details(caught.value))

    bad = [(code, reason, metadata["field"]) for code, reason, metadata in refusals[:2]]
    assert bad == [(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_FIELD", "run_token")] * 2
    assert refusals[2][:2] == (grpc.StatusCode.NOT_FOUND, "RESOURCE_NOT_FOUND")


async def refresh(box: Sandbox, session: str, token: str) -> None:
    request = wire.RefreshRunTokenRequest(name=session, run_token=token)
    await box.stub.RefreshRunToken(request, timeout=30)


async def test_events_name_the_call_and_show_its_beginning(box: Sandbox, session: str) -> None:
    prompt = "p" * 600

    ran = await box.run(session, f"llm_query('first')\nllm_query_batched(['{prompt}', 'b'])")

    started = [e.sub_call_started for e in ran.events if e.HasField("sub_call_started")]
    assert [(s.sub_call, s.batch) for s in started] == [(1, 0), (2, 1), (3, 1)]
    assert (started[1].prompt_characters, started[1].prompt_head) == (600, "p" * 500)
    finished = [e.sub_call_finished for e in ran.events if e.HasField("sub_call_finished")]
    assert {f.sub_call: len(f.generation.text) for f in finished} == {1: 9, 2: 500, 3: 5}


async def test_a_thousand_calls_of_one_batch_come_back(box: Sandbox, session: str) -> None:
    cell = "r = llm_query_batched([f'{i} ' + 'x' * 2000 for i in range(1000)])\nlen(r), r[999][:8]"

    assert (await box.run(session, cell)).out == "(1000, 're: 999 ')\n"


async def test_events_may_come_several_in_a_response(box: Sandbox, session: str) -> None:
    """Joined they are the same, and in the same order, and what is large comes with nothing after
    it: a message stays small."""
    calls = "llm_query_batched([f'p{i}' for i in range(300)])"
    code = f"print('a')\n{calls}\nprint('b' * 20_000)\nprint('c' * 20_000)"
    request = wire.ExecuteRequest(name=session, code=code, joined=True)
    told = [[r.event, *r.further] async for r in box.stub.Execute(request, timeout=30)]
    alone = await box.run(await box.create(), code)

    assert max(len(events) for events in told) in range(2, 51)
    joined = [event for events in told for event in events]
    assert Ran(joined).out == alone.out
    assert Counter(Ran(joined).kinds()) == Counter(alone.kinds())
    for number in range(1, 301):
        named = [kind for kind in KINDS for e in joined if getattr(e, kind).sub_call == number]
        assert named == list(KINDS)
    assert all(len(event.output.text) <= 4096 for events in told for event in events[:-1])


KINDS = ("sub_call_started", "sub_call_finished")


async def test_characters_that_utf8_does_not_have_are_replaced(box: Sandbox, session: str) -> None:
    """A lone surrogate, as from a badly cut text, must not break the protocol."""
    assert (await box.run(session, "llm_query('a\\ud800b')")).out == "'re: a?b'\n"


async def test_a_call_that_names_no_tier_asks_the_sessions(box: Sandbox) -> None:
    session = await box.create(sub_tier="models/tiny")

    await box.run(session, "llm_query('a')\nllm_query('b', tier='root')")

    assert [request.prompt.tier for request in box.gateway.requests] == ["models/tiny", "root"]


async def test_an_execution_can_ask_another_tier_than_its_session(box: Sandbox) -> None:
    """That one and no other: the next asks the session's again."""
    session = await box.create(sub_tier="models/tiny")

    await box.run(session, "llm_query('a')", sub_tier="t" * 256)
    await box.run(session, "llm_query('b')")
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await box.run(session, "llm_query('c')", sub_tier="t" * 257)

    assert [r.prompt.tier for r in box.gateway.requests] == ["t" * 256, "models/tiny"]
    assert received(refused.value).metadata["field"] == "sub_tier"


async def test_a_call_beyond_the_limit_never_starts(box: Sandbox) -> None:
    """Watchers count the calls that start; one that is refused is none of them."""
    session = await box.create(limits=session_pb2.SessionLimits(sub_calls_max=2))

    ran = await box.run(session, "llm_query_batched(['a', 'b', 'c'])")

    assert ran.kinds().count("sub_call_started") == 2
    assert ran.kinds().count("sub_call_finished") == 2
    assert ran.result.limit_reached.code == grpc.StatusCode.RESOURCE_EXHAUSTED.value[0]
