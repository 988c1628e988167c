"""The shipped profiles over real data in the real guest: their helpers find what is there, what
they cite stands there, and the answers fit the schemas. The model's part is written down.
"""

from __future__ import annotations

import contextlib
import json
import mailbox
from collections.abc import AsyncIterator, Mapping
from email.message import EmailMessage
from pathlib import Path

import pytest
from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1.context_pb2 import Context
from fathom.orchestrator.v1.run_pb2 import Run, RunSpec
from fathom.sandbox.v1 import sandbox_service_pb2 as sandbox_pb
from fathom.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceStub

from common.channel import open_channel
from orchestrator.profiles.profiles import SHIPPED
from tests.support.eventually import eventually
from tests.support.orchestrator import TIMEOUT_S, Stack, chunk, document, orchestrator, start
from tests.support.sandbox import guest, sandbox

pytestmark = pytest.mark.guest
ROOT = Path(__file__).parents[2]
MAILS = 320


@contextlib.asynccontextmanager
async def stack_with_guest(folder: Path) -> AsyncIterator[Stack]:
    objects = folder / "objects"
    objects.mkdir()
    async with (
        sandbox(guest(), objects) as box,
        orchestrator(folder, sandbox_address=box.address) as stack,
        open_channel(box.address) as channel,
    ):
        stack.sandbox = channel
        yield stack


async def documents(stack: Stack, texts: Mapping[str, bytes]) -> Context:
    messages = [start(Context.KIND_DOCUMENTS)]
    for name, data in texts.items():
        messages += [document(name), chunk(data, 0)]
    offset = 0
    for message in messages:
        if message.HasField("chunk"):
            message.chunk.offset_bytes = offset
            offset += len(message.chunk.data)
    return await stack.upload_messages(*messages)


async def run(stack: Stack, profile: str, context: Context, *cells: str) -> Run:
    stack.gateway.replies = [f"```repl\n{cell}\n```" for cell in cells]
    spec = RunSpec(question="What is there?", context=context.name, profile=f"profiles/{profile}")
    request = pb.CreateRunRequest(spec=spec)
    made = (await stack.runs.CreateRun(request, timeout=TIMEOUT_S)).run
    events = await stack.watch(made)
    failed = [e.cell_finished.error for e in events if e.cell_finished.error]
    assert not failed, failed
    return events[-1].run_changed


def mbox(folder: Path) -> bytes:
    """Return a mailbox in which two mails of three hundred matter, the later taking the earlier
    back."""
    box = mailbox.mbox(folder / "all.mbox")
    for number in range(MAILS):
        mail = EmailMessage()
        mail["From"] = f"Person {number % 23} <p{number % 23}@example.com>"
        mail["To"] = "team@example.com"
        mail["Date"] = f"Mon, {1 + number % 28:02} Jun 2026 09:{number % 60:02}:00 +0000"
        mail["Subject"] = f"Re: Status of week {number % 52}"
        mail["Message-ID"] = f"<{number}@example.com>"
        text = f"Nothing to report from area {number}.\nFrom here on all goes as planned.\n"
        if number == 113:
            mail.replace_header("Subject", "Delivery of the Rostock pumps")
            text = "Hello all,\nthe Rostock pumps arrive on 14 July. Please make room.\n"
        if number == 298:
            mail.replace_header("Subject", "AW: Re: Delivery of the Rostock pumps")
            mail.replace_header("Date", "Tue, 30 Jun 2026 16:05:00 +0000")
            text = "Correction: the Rostock pumps arrive on 21 July, not before. Sorry.\n"
        mail.set_content(text)
        message = mailbox.mboxMessage(mail)
        message.set_from(f"p@example.com Mon Jun {1 + number % 28:2} 09:00:00 2026")
        box.add(message)
    box.close()
    return (folder / "all.mbox").read_bytes()


async def test_search_finds_the_mail_that_takes_another_one_back(tmp_path: Path) -> None:
    """Evidence with places, out of a mailbox that nobody reads through."""
    async with stack_with_guest(tmp_path) as stack:
        context = await stack.upload(mbox(tmp_path))
        found = await run(
            stack,
            "search",
            context,
            "all_mails = mails()\nprint(len(all_mails), all_mails[0].date[:4])\n"
            "hits = passages('rostock pumps')\nprint(len(hits))",
            "talk = threads(all_mails)['delivery of the rostock pumps']\n"
            "assert len(talk) == 2, talk\n"
            "evidence = []\n"
            "for mail in talk:\n"
            "    hit = next(h for h in hits if h['start'] < mail.end <= h['end'] + 400)\n"
            "    evidence.append(sentence_at(hit, 'pumps arrive on') | {'why': mail.subject})\n"
            "assert len(all_mails) == 320\n"
            "FINAL({'answer': '21 July', 'evidence': evidence, 'gaps': []})",
        )

    answer = json.loads(found.answer.text)
    assert "21 July" in answer["evidence"][1]["quote"]
    assert [c.verified for c in found.answer.citations] == [True, True]
    assert found.profile_version == found.profile_version.strip() != ""


async def test_code_review_shows_the_lines_of_a_finding(tmp_path: Path) -> None:
    """Over this project's own source: real files, real imports."""
    files = sorted((ROOT / "orchestrator" / "runs").rglob("*.py"))
    texts = {str(file.relative_to(ROOT)): file.read_bytes() for file in files}
    async with stack_with_guest(tmp_path) as stack:
        found = await run(
            stack,
            "code-review",
            await documents(stack, {n: t for n, t in texts.items() if t.strip()}),
            "tree()\ngraph = import_graph()\nprint(len(graph))\nprint(long_functions(40)[:3])",
            "name = 'orchestrator/runs/log/steps.py'\n"
            "number = next(n for n, line in outline(name) if 'class Steps' in line)\n"
            "assert 'orchestrator/runs/log/steps.py' in graph['orchestrator/runs/log/journal.py']\n"
            "assert 'dataclasses' in imports('orchestrator/runs/limits.py')\n"
            "print(numbered(name, number, number + 3))\n"
            "finding = place(name, number, number + 1) | {'title': 'A seam with one user',\n"
            "    'severity': 'minor', 'line': number, 'why': 'w', 'remedy': 'r'}\n"
            "FINAL({'summary': f'{len(graph)} files', 'findings': [finding]})",
        )

    [finding] = json.loads(found.answer.text)["findings"]
    lines = texts[finding["document"]].decode().split("\n")
    assert lines[finding["line"] - 1].startswith("class Steps")
    assert [c.check for c in found.answer.citations] == [found.answer.citations[0].CHECK_EXACT]


async def test_contract_review_cuts_a_licence_into_its_clauses(tmp_path: Path) -> None:
    """A text as lawyers write it: the licence that this project is under."""
    text = (ROOT / "LICENSE").read_bytes()
    async with stack_with_guest(tmp_path) as stack:
        found = await run(
            stack,
            "contract-review",
            await stack.upload(text),
            "parts = clauses()\nprint([(p.number, p.title[:40]) for p in parts])\n"
            "print(list(defined_terms())[:10])",
            "[patents] = [p for p in parts if 'Patent License' in p.title]\n"
            "assert patents.number == '3', patents\n"
            "assert {'License', 'Licensor', 'Contribution'} <= set(defined_terms())\n"
            "liability = find_clauses('limitation of liability')\n"
            "point = patents.quote('shall terminate') | {'clause': patents.number,\n"
            "    'says': 'who sues loses the licence', 'risk': 'medium'}\n"
            "FINAL({'summary': f'{len(parts)} clauses', 'points': [point],\n"
            "       'missing': ['governing law']})",
        )

    [point] = json.loads(found.answer.text)["points"]
    assert "patent litigation" in " ".join(point["quote"].split()).lower()
    assert point["quote"] in text.decode()
    assert [c.verified for c in found.answer.citations] == [True]


PAPERS = {
    "meyer-2019.txt": b"""Caching of prompts in language model services

A. Meyer, 2019

Abstract. We measure what caching saves over a year of traffic at one provider.

1 Introduction

Services repeat themselves. Prior work has guessed at the share of repeated prompts.

2 Results

Of all requests, 31% could be answered from a cache of one hour. With a day, the share was 38%.
The saving in cost was smaller, since repeated prompts are short.

3 Limits

The traffic is that of one provider and one year.
""",
    "okafor-2024.txt": b"""What caches save: a second look

N. Okafor and L. Brandt, 2024

Abstract. We repeat an earlier measurement with conversational traffic.

1 Results

In conversational traffic only 9% of requests could be answered from a cache of one hour. We take
the difference to earlier work to come from the kind of traffic.

2 Limits

Prompts were anonymised, which can make equal prompts differ.
""",
    "garden.txt": b"Notes on roses\n\nRoses want sun, water and patience.\n",
}


async def test_research_sets_two_measurements_against_one_another(tmp_path: Path) -> None:
    """The sources that bear on the question are found by their words, and the others are not."""
    async with stack_with_guest(tmp_path) as stack:
        found = await run(
            stack,
            "research",
            await documents(stack, PAPERS),
            "known = {s.document: s for s in sources()}\nprint(*known.values(), sep='\\n')\n"
            "best = relevant('what share of requests could be answered from a cache')\n"
            "print([b['document'] for b in best], len(figures()))",
            "assert known['okafor-2024.txt'].year == 2024\n"
            "assert 'garden.txt' not in {b['document'] for b in best[:2]}\n"
            "assert 'Results' in [name.split()[-1] for name, _, _ in sections('meyer-2019.txt')]\n"
            "def of(document, words):\n"
            "    row = next(f for f in figures() if f['document'] == document and"
            " words in f['text'])\n"
            "    return {'quote': row['text'], 'document': document, 'start': row['start'],\n"
            "            'end': row['end']}\n"
            "old, new = of('meyer-2019.txt', '31%'), of('okafor-2024.txt', '9%')\n"
            "FINAL({'synthesis': source_table([{'year': 2019}]), 'findings': [\n"
            "    {'claim': 'c', 'support': 'contested', 'evidence': [old]}],\n"
            "    'disagreements': [{'about': 'the share', 'evidence': [old, new]}],\n"
            "    'open_questions': []})",
        )

    answer = json.loads(found.answer.text)
    assert answer["disagreements"][0]["evidence"][1]["document"] == "okafor-2024.txt"
    assert {c.document for c in found.answer.citations} == {"meyer-2019.txt", "okafor-2024.txt"}
    assert all(c.verified for c in found.answer.citations)


async def test_an_answer_without_a_citation_does_not_count_where_one_is_required(
    tmp_path: Path,
) -> None:
    """The contract profile's readers act on the words, not on the summary."""
    bare = "FINAL({'summary': 's', 'points': [], 'missing': []})"
    point = (
        "{'clause': '1', 'quote': 'This is the only clause of it.', 'says': 's', 'risk': 'none'}"
    )
    async with stack_with_guest(tmp_path) as stack:
        context = await stack.upload(b"1. Scope. This is the only clause of it.\n")
        found = await run(
            stack,
            "contract-review",
            context,
            bare,
            f"FINAL({{'summary': 's', 'points': [{point}], 'missing': []}})",
        )

    assert found.turns == 2
    assert [c.verified for c in found.answer.citations] == [True]


async def test_a_session_that_is_rebuilt_has_the_helpers_again(tmp_path: Path) -> None:
    """The cells that are run again call them."""
    async with stack_with_guest(tmp_path) as stack:

        def first(_request: object) -> str:
            stack.gateway.hold.clear()
            return "```repl\nparts = clauses()\n```"

        context = await stack.upload(b"1. Scope. This is the only clause of it.\n")
        point = "{'clause': '1', 'quote': quote, 'says': 's', 'risk': 'none'}"
        second = (
            "```repl\nquote = parts[0].quote('only clause')['quote']\n"
            "FINAL({'summary': f'{len(clauses())} {len(parts)}', "
            f"'points': [{point}], 'missing': []}})\n```"
        )
        stack.gateway.replies = [first, second]
        spec = RunSpec(question="?", context=context.name, profile="profiles/contract-review")
        request = pb.CreateRunRequest(spec=spec)
        made = (await stack.runs.CreateRun(request, timeout=TIMEOUT_S)).run
        await eventually(lambda: len(stack.gateway.requests) == 2)
        box = SandboxServiceStub(stack.sandbox)
        listed = await box.ListSessions(sandbox_pb.ListSessionsRequest(), timeout=TIMEOUT_S)
        for session in listed.sessions:
            gone = sandbox_pb.DeleteSessionRequest(name=session.name)
            await box.DeleteSession(gone, timeout=TIMEOUT_S)
        stack.gateway.hold.set()
        found = (await stack.watch(made))[-1].run_changed

    assert len(listed.sessions) == 1
    assert json.loads(found.answer.text)["summary"] == "1 1"


def test_every_shipped_profile_has_a_test_here() -> None:
    tested = Path(__file__).read_text()

    assert all(f'"{file.stem}"' in tested for file in SHIPPED.glob("[!.]*.toml"))
