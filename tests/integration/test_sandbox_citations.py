"""`cite` from a real guest: places of every kind of context, and what travels with the answer."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fathom.sandbox.v1 import execution_pb2, session_pb2

from tests.support.sandbox import Ran, Sandbox, guest, sandbox, shape

pytestmark = pytest.mark.guest
PARTS = {"a.txt": "Über alles bezahlt.", "b.txt": "Nothing of the kind."}


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Sandbox]:
    async with sandbox(guest(), tmp_path, lazy_context_bytes_min=1 << 20) as running:
        yield running


def documents(box: Sandbox, parts: dict[str, str]) -> session_pb2.ContextMount:
    """Store documents and describe them."""
    offset, ranges = 0, []
    for name, text in parts.items():
        data = text.encode()
        ranges.append(
            session_pb2.DocumentRange(
                name=name, offset_bytes=offset, size_bytes=len(data), text_shape=shape(data)
            )
        )
        offset += len(data)
    blob = "".join(parts.values()).encode()
    return session_pb2.ContextMount(
        variable="context",
        kind=session_pb2.ContextMount.KIND_DOCUMENTS,
        blob_key=box.store(blob),
        size_bytes=len(blob),
        documents=ranges,
    )


def cited(ran: Ran) -> list[tuple[str, int, int, str]]:
    places = ran.result.final.citations
    return [(each.document, each.start, each.end, each.quote) for each in places]


async def test_a_place_of_a_document_travels_with_the_answer(box: Sandbox) -> None:
    session = await box.create(contexts=[documents(box, PARTS)])
    ran = await box.run(session, "FINAL('Paid ' + cite('a.txt', 0, 10))")

    assert ran.result.final.text == "Paid [cite:a.txt:0-10]"
    assert cited(ran) == [("a.txt", 0, 10, "Über alles")]


async def test_what_was_cited_in_earlier_cells_counts(box: Sandbox) -> None:
    session = await box.create(contexts=[documents(box, PARTS)])
    await box.run(session, "cite('a.txt', 0, 4); mark = cite('b.txt', 0, 7)")

    ran = await box.run(session, "FINAL('Nothing ' + mark)")
    assert cited(ran) == [("b.txt", 0, 7, "Nothing")]
    ran = await box.run(session, "FINAL({'paid': True})")
    assert cited(ran) == [("a.txt", 0, 4, "Über"), ("b.txt", 0, 7, "Nothing")]


async def test_a_run_begins_with_nothing_cited(box: Sandbox) -> None:
    """Else an answer without markers would rest on what another question was about, and a long
    conversation could cite no more; what is named of the run before counts all the same."""
    session = await box.create(contexts=[documents(box, PARTS)])
    await box.run(session, "mark = cite('b.txt', 0, 7)", call_prefix="first/1/1")
    ran = await box.run(session, "FINAL('unmarked')", call_prefix="first/2/1")
    assert cited(ran) == [("b.txt", 0, 7, "Nothing")]

    ran = await box.run(session, "FINAL('unmarked')", call_prefix="second/1/1")
    assert cited(ran) == []
    ran = await box.run(session, "FINAL('Nothing ' + mark)", call_prefix="second/2/1")
    assert cited(ran) == [("b.txt", 0, 7, "Nothing")]
    code = "marks = [cite(f'quote {n}') for n in range(500)]; FINAL('unmarked')"
    ran = await box.run(session, code, call_prefix="third/1/1")
    assert len(cited(ran)) == 500, ran.err


@pytest.mark.parametrize("size", [100, 2 << 20])
@pytest.mark.parametrize(
    "call",
    ["cite(3, 9)", "cite('context', 3, 9)", "cite(context, 3, 9)", "cite(grep('needle')[0])"],
)
async def test_one_text_needs_no_name_whether_it_is_loaded_or_read(
    box: Sandbox, size: int, call: str
) -> None:
    mount = box.text("äh needle in".encode() + b" hay" * (size // 4))
    session = await box.create(
        contexts=[mount], limits=session_pb2.SessionLimits(memory_bytes_max=256 << 20)
    )
    ran = await box.run(session, f"FINAL({call})")

    assert ran.result.final.text == "[cite:3-9]", ran.err
    assert cited(ran) == [("", 3, 9, "needle")]


async def test_matches_in_documents_are_cited_with_their_name(box: Sandbox) -> None:
    session = await box.create(contexts=[documents(box, PARTS)])
    ran = await box.run(session, "FINAL(' '.join(cite(m) for m in grep('[a-z]+ahlt|of')))")

    assert cited(ran) == [("a.txt", 11, 18, "bezahlt"), ("b.txt", 8, 10, "of")]


async def test_a_quote_without_a_place_is_cited_as_it_is(box: Sandbox) -> None:
    session = await box.create(contexts=[box.text(b"some text")])
    ran = await box.run(session, "FINAL(cite('words of somebody'))")

    assert ran.result.final.text == "“words of somebody”"
    [place] = ran.result.final.citations
    assert (place.quote, place.HasField("start"), place.HasField("end")) == (
        "words of somebody",
        False,
        False,
    )


@pytest.mark.parametrize(
    ("call", "problem"),
    [
        ("cite('c.txt', 0, 4)", "there is no document 'c.txt'"),
        ("cite('a.txt', 0, 20)", "is no place of a text of 19"),
        ("cite('a.txt', 4, 4)", "is no place"),
        ("cite('a.txt', -3, -1)", "is no place"),
        ("cite('a.txt', 'x', 3)", "cannot be interpreted as an integer"),
        ("cite(3)", r"cite(document, start, end)"),
        ("cite(' ')", r"cite(document, start, end)"),
        ("cite('x' * 2001)", "at most 2,000"),
        ("[cite(f'quote {n}') for n in range(501)]", "at most 500 places"),
        ("[cite(f'{n:2000}') for n in range(132)]", "262,144 characters"),
    ],
)
async def test_what_cannot_be_cited_is_told_at_once(box: Sandbox, call: str, problem: str) -> None:
    session = await box.create(contexts=[documents(box, PARTS)])
    ran = await box.run(session, call)

    assert ran.ending == "raised"
    assert problem in ran.result.error.message


@pytest.mark.parametrize(("size", "is_taken"), [(2_000, True), (2_001, False)])
async def test_a_place_has_a_largest_size(box: Sandbox, size: int, is_taken: bool) -> None:
    session = await box.create(contexts=[box.text(b"x" * 3_000)])
    ran = await box.run(session, f"FINAL(cite(0, {size}))")

    assert (ran.ending == "completed") is is_taken


FORGED = """
import _host, json
def end(citations):
    final = {"text": "t", "is_json": False, "variable": "", "citations": citations}
    request = {"call": "ended", "ending": "completed", "error": None, "variables": []}
    request["final"] = final
    try:
        _host.call(json.dumps(request).encode())
        print("taken")
    except OSError:
        print("refused")
"""


@pytest.mark.parametrize(
    ("citations", "is_taken"),
    [
        ("[{'document': '', 'start': 0, 'end': 4, 'quote': 'é' * 524}] * 500", True),
        ("[{'document': '', 'start': 0, 'end': 4, 'quote': 'é' * 525}] * 500", False),
        ("[{'document': '', 'start': 0, 'end': 4, 'quote': 'x' * 2000}]", True),
        ("[{'document': '', 'start': 0, 'end': 4, 'quote': 'x' * 2001}]", False),
        ("[{'document': '', 'start': 0, 'end': 4, 'quote': 'x'}] * 10000", False),
        ("[{'document': 'x' * 1025, 'start': 0, 'end': 4, 'quote': 'x'}]", False),
        ("[{'document': '', 'start': -1, 'end': 4, 'quote': 'x'}]", False),
        ("[{'document': '', 'start': 1 << 63, 'end': 4, 'quote': 'x'}]", False),
        ("[{'document': '', 'start': 0.5, 'end': 4, 'quote': 'x'}]", False),
        ("[{'document': '', 'start': 0, 'end': 4}]", False),
        ("'all of it'", False),
    ],
)
async def test_citations_that_go_around_the_runtime_are_bounded(
    box: Sandbox, citations: str, is_taken: bool
) -> None:
    """The guest is hostile: what it says is checked for its form at the first wall."""
    session = await box.create(contexts=[box.text(b"some text")])
    ran = await box.run(session, FORGED + f"end({citations})")

    assert ran.out == ("taken\n" if is_taken else "refused\n")
    assert ran.ending == "completed"


async def test_a_guest_that_lies_about_a_quote_is_passed_on_as_it_is(box: Sandbox) -> None:
    """Nobody believes it: who has the context looks it up."""
    session = await box.create(contexts=[box.text(b"some text")])
    lie = "[{'document': 'no.txt', 'start': 900, 'end': 7, 'quote': 'never said'}]"
    code = FORGED + f"end({lie})\nimport sys; sys.stdout.flush()"
    ran = await box.run(session, code)

    assert isinstance(ran.result, execution_pb2.ExecutionResult)
    assert ran.out == "taken\n"
