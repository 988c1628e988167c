"""The shipped profiles over real data, in the real guest, by the real gateway and the scripted
model: their helpers find what is there, what they cite stands there, and the answers fit the
schemas. The model's part is written down; where the data is from is in tests/data/README.md.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest
from fathom.orchestrator.v1 import orchestrator_service_pb2 as pb
from fathom.orchestrator.v1.context_pb2 import Context
from fathom.orchestrator.v1.run_pb2 import Citation, Run, RunSpec
from fathom.sandbox.v1 import sandbox_service_pb2 as sandbox_pb
from fathom.sandbox.v1.sandbox_service_pb2_grpc import SandboxServiceStub
from fathom_demo.scripted_model.scripts import Script

from common.channel import open_channel
from orchestrator.profiles.profiles import SHIPPED
from tests.support.eventually import eventually
from tests.support.orchestrator import (
    TIMEOUT_S,
    Stack,
    chunk,
    document,
    orchestrator,
    serve_on_address,
    start,
)
from tests.support.sandbox import guest, sandbox
from tests.support.scripted_gateway import scripted_gateway

pytestmark = pytest.mark.guest
ROOT = Path(__file__).parents[2]
DATA = ROOT / "tests" / "data"
MAILS = DATA / "mails" / "spambayes-2002-09.mbox"


@contextlib.asynccontextmanager
async def stack_with_guest(folder: Path, *cells: str) -> AsyncIterator[Stack]:
    """Yield an orchestrator and the real guest; where cells are given, the scripted model writes
    them, one a turn, behind the real gateway."""
    objects = folder / "objects"
    objects.mkdir()
    async with contextlib.AsyncExitStack() as closing:
        settings: dict[str, Any] = {}
        if cells:
            script = Script([f"I go on.\n```repl\n{cell}\n```" for cell in cells])
            gateway = await closing.enter_async_context(scripted_gateway(folder, script))
            address = await closing.enter_async_context(serve_on_address(gateway))
            settings["gateway_address"] = address
        box = await closing.enter_async_context(sandbox(guest(), objects))
        stack = await closing.enter_async_context(
            orchestrator(folder, sandbox_address=box.address, **settings)
        )
        stack.sandbox = await closing.enter_async_context(open_channel(box.address))
        yield stack


async def documents(stack: Stack, texts: Mapping[str, bytes]) -> Context:
    messages = [start(Context.KIND_DOCUMENTS)]
    offset = 0
    for name, data in texts.items():
        messages += [document(name), chunk(data, offset)]
        offset += len(data)
    return await stack.upload_messages(*messages)


async def run(stack: Stack, profile: str, context: Context, question: str) -> Run:
    spec = RunSpec(question=question, context=context.name, profile=f"profiles/{profile}")
    request = pb.CreateRunRequest(spec=spec)
    made = (await stack.runs.CreateRun(request, timeout=TIMEOUT_S)).run
    events = await stack.watch(made)
    failed = [e.cell_finished.error for e in events if e.cell_finished.error]
    assert not failed, failed
    return events[-1].run_changed


async def test_search_finds_the_mail_that_takes_another_one_back(tmp_path: Path) -> None:
    """Somebody wrote the opposite of what he meant, and said so two minutes later; between the two,
    by the senders' clocks, lies most of a day."""
    text = MAILS.read_text()
    async with stack_with_guest(
        tmp_path,
        "all_mails = mails()\nprint(len(all_mails), all_mails[1].date[:10])\n"
        "hits = passages('picked up on .received:2001')\nprint(len(hits))",
        "talk = threads(all_mails)['understanding high false negative rate']\n"
        "assert [m.moment_s for m in talk] == sorted(m.moment_s for m in talk)\n"
        "places = [next(m for m in talk if m.start <= h['start'] + 300 < m.end) for h in hits]\n"
        "assert len({m.sender for m in places}) == 1, places\n"
        "assert talk.index(places[1]) == talk.index(places[0]) + 1\n"
        "taken_back = passages(r'^ +-spam\\.$')\n"
        "evidence = [sentence_at(hits[0], 'as a non-ham') | {'why': 'said first'},\n"
        "    sentence_at(taken_back[0], '-spam.') | {'why': places[1].date}]\n"
        "FINAL({'answer': 'as not spam', 'evidence': evidence, 'gaps': []})",
    ) as stack:
        context = await stack.upload(text.encode())
        found = await run(stack, "search", context, "What did mail from 2001 count as?")

    first, second = json.loads(found.answer.text)["evidence"]
    assert "received:2001' as a non-ham" in first["quote"]
    assert (second["quote"], second["why"]) == ("-spam.", "2002-09-07T13:52:54+10:00")
    assert [c.check for c in found.answer.citations] == [Citation.CHECK_EXACT] * 2
    assert all(text[c.start : c.end] == c.quote for c in found.answer.citations)
    assert found.profile_version.startswith("1+")
    assert found.usage.cost_usd_nanos > 0


async def test_code_review_shows_the_lines_of_a_finding(tmp_path: Path) -> None:
    """Over this project's own source: real files, real imports."""
    files = sorted((ROOT / "orchestrator" / "runs").rglob("*.py"))
    texts = {str(file.relative_to(ROOT)): file.read_bytes() for file in files}
    async with stack_with_guest(
        tmp_path,
        "tree()\ngraph = import_graph()\nprint(len(graph))\nprint(long_functions(40)[:3])",
        "name = 'orchestrator/runs/log/steps.py'\n"
        "number = next(n for n, line in outline(name) if 'class Steps' in line)\n"
        "assert 'orchestrator/runs/log/steps.py' in graph['orchestrator/runs/log/journal.py']\n"
        "assert 'dataclasses' in imports('orchestrator/runs/limits.py')\n"
        "print(numbered(name, number, number + 3))\n"
        "finding = place(name, number, number + 1) | {'title': 'A seam with one user',\n"
        "    'severity': 'minor', 'line': number, 'why': 'w', 'remedy': 'r'}\n"
        "FINAL({'summary': f'{len(graph)} files', 'findings': [finding]})",
    ) as stack:
        context = await documents(stack, {n: t for n, t in texts.items() if t.strip()})
        found = await run(stack, "code-review", context, "Which seams have one user?")

    [finding] = json.loads(found.answer.text)["findings"]
    lines = texts[finding["document"]].decode().split("\n")
    assert lines[finding["line"] - 1].startswith("class Steps")
    assert [c.check for c in found.answer.citations] == [Citation.CHECK_EXACT]


async def test_contract_review_cuts_a_licence_into_its_clauses(tmp_path: Path) -> None:
    """A text as lawyers write it: the licence that this project is under."""
    text = (ROOT / "LICENSE").read_bytes()
    async with stack_with_guest(
        tmp_path,
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
    ) as stack:
        context = await stack.upload(text)
        found = await run(stack, "contract-review", context, "What can end the licence?")

    [point] = json.loads(found.answer.text)["points"]
    assert "patent litigation" in " ".join(point["quote"].split()).lower()
    assert point["quote"] in text.decode()
    assert [c.verified for c in found.answer.citations] == [True]


async def test_research_sets_two_measurements_against_one_another(tmp_path: Path) -> None:
    """Three published proposals on the speed of one interpreter; one of them gives two figures for
    the same slowdown, 4% and 2%."""
    texts = {file.name: file.read_bytes() for file in sorted((DATA / "reports").iterdir())}
    async with stack_with_guest(
        tmp_path,
        "known = {s.document: s for s in sources()}\nprint(*known.values(), sep='\\n')\n"
        "best = relevant('how much slower is a naive implementation of immortal objects')\n"
        "print([b['document'] for b in best], len(figures()))",
        "assert [s.year for s in known.values()] == [2021, 2022, 2024], known\n"
        "assert known['pep-0744.rst'].title == 'JIT Compilation'\n"
        "assert known['pep-0659.rst'].abstract.startswith('In order to perform well')\n"
        "assert best[0]['document'] == 'pep-0683.rst'\n"
        "named = [name for name, _, _ in sections('pep-0683.rst')]\n"
        "assert {'Abstract', 'Motivation', 'Rationale', 'Specification'} <= set(named)\n"
        "def of(document, words):\n"
        "    row = next(f for f in figures() if f['document'] == document and words in f['text'])\n"
        "    return {'quote': row['text'], 'document': document, 'start': row['start'],\n"
        "            'end': row['end']}\n"
        "four, two = of('pep-0683.rst', 'roughly 4%'), of('pep-0683.rst', '2% slowdown')\n"
        "gain = of('pep-0659.rst', '10% - 60%')\n"
        "table = source_table([{'source': s.title, 'year': s.year} for s in known.values()])\n"
        "FINAL({'synthesis': table, 'findings': [\n"
        "    {'claim': 'specialising pays', 'support': 'moderate', 'evidence': [gain]}],\n"
        "    'disagreements': [{'about': 'the slowdown', 'evidence': [four, two]}],\n"
        "    'open_questions': []})",
    ) as stack:
        context = await documents(stack, texts)
        found = await run(stack, "research", context, "What does it cost, what does it gain?")

    answer = json.loads(found.answer.text)
    four, two = answer["disagreements"][0]["evidence"]
    assert "makes CPython roughly 4% slower" in " ".join(four["quote"].split())
    assert two["quote"].startswith("A naive implementation shows `a 2% slowdown`_")
    assert "| JIT Compilation | 2024 |" in answer["synthesis"]
    assert [c.check for c in found.answer.citations] == [Citation.CHECK_EXACT] * 3


async def test_an_answer_without_a_citation_does_not_count_where_one_is_required(
    tmp_path: Path,
) -> None:
    """The contract profile's readers act on the words, not on the summary."""
    bare = "FINAL({'summary': 's', 'points': [], 'missing': []})"
    point = (
        "{'clause': '1', 'quote': 'This is the only clause of it.', 'says': 's', 'risk': 'none'}"
    )
    cited = f"FINAL({{'summary': 's', 'points': [{point}], 'missing': []}})"
    async with stack_with_guest(tmp_path, bare, cited) as stack:
        context = await stack.upload(b"1. Scope. This is the only clause of it.\n")
        found = await run(stack, "contract-review", context, "What is there?")

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
