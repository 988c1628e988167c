"""The programs of docs/library.md, as they stand there, against an orchestrator's servicers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from common.config import ServerConfig
from common.server import Server
from tests.support.fake_orchestrator import FakeOrchestrator, answered

PAGE = Path(__file__).parents[2] / "docs" / "library.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize("program", PROGRAMS, ids=range(len(PROGRAMS)))
async def test_a_program_of_the_page_gets_its_answer(
    program: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A first program is copied from here: it has to run."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "tuesday.log").write_text("down at 5\n")
    monkeypatch.chdir(tmp_path)
    orchestrator = FakeOrchestrator(answered("at 5"))
    server = Server("test", ServerConfig(drain_s=1.0))
    orchestrator.register(server)
    names: dict[str, Any] = {}
    async with server:
        exec(here(program, server.address), names)
        await names["main"]()

    assert "at 5" in capsys.readouterr().out.splitlines()[-1]
    assert orchestrator.documents


def here(program: str, address: str) -> str:
    """Return a program that asks this server, in the loop that is running."""
    asked, run = "127.0.0.1:7311", "asyncio.run(main())\n"
    assert asked in program
    assert program.endswith(run)
    return program.replace(asked, address).removesuffix(run)
