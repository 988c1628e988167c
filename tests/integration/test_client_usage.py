"""`fathom runs usage` as a process, against the real orchestrator between fakes."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.client_command import run
from tests.support.orchestrator import orchestrator


async def test_what_a_run_took_is_summed_up_as_asked(tmp_path: Path) -> None:
    """The groups are all that was paid: their sum is what the run itself says that it cost."""
    (tmp_path / "notes.txt").write_text("the notes\n")
    async with orchestrator(tmp_path) as stack:
        server = ("--server", stack.server.address)
        stack.gateway.replies = ["```repl\nprint(1)\n```", "FINAL(42)"]
        asked = await run(tmp_path, "ask", "Why?", "notes.txt", "--json", *server)
        told = json.loads(asked.stdout)
        usage = ("runs", "usage", told["run"])
        by_turn = await run(tmp_path, *usage, "--by", "turn", *server)
        as_json = await run(tmp_path, *usage, "--json", *server)

    heading, *turns, total = (line.split() for line in by_turn.stdout.splitlines())
    assert heading == ["TURN", "CALLS", "TOKENS", "IN", "OUT", "COST"]
    assert [turn[:2] for turn in turns] == [["1", "1"], ["2", "1"]]
    assert total[:2] == ["total", "2"]
    assert sum(int(turn[2]) for turn in turns) == int(total[2]) == told["input_tokens"]
    sums = json.loads(as_json.stdout)
    assert int(sums["total"]["cost_usd_nanos"]) == told["cost_usd_nanos"] > 0
    assert [group["key"] for group in sums["groups"]] == ["models/large"]
