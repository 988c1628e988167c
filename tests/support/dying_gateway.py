"""Gateways that kill themselves at a given step of a call: `python -m tests.support.dying_gateway`.

Each line of the input is the number of a step, from 1, and the file for the address; each makes a
gateway, in a fork that need not import everything again. What it passes is printed, a line a step,
and `dead` at its end.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from llm_gateway.__main__ import main
from llm_gateway.accounts.valkey_store import ValkeyAccountStore
from llm_gateway.ledger.operations import KeepAnswer, OpenCall
from llm_gateway.ledger.sql_store import SqlCallStore
from llm_gateway.openai_provider import OpenAIProvider
from tests.support.child_processes import end_with_parent

_Work = Callable[..., Awaitable[Any]]
_STEPS = {OpenCall: "open", KeepAnswer: "record"}


def _names(operations: Any) -> str:
    return "+".join(name for kind, name in _STEPS.items() if kind in {*map(type, operations)})


def _die_at(step: int) -> None:
    """Have this process killed at one of the moments before and after what a call does outside."""
    passed = 0

    def note(moment: str) -> None:
        nonlocal passed
        passed += 1
        print(moment, flush=True)
        if passed == step:
            os.kill(os.getpid(), signal.SIGKILL)

    def around(work: _Work, name: Callable[[Any], str]) -> _Work:
        async def noted(self: Any, first: Any, *rest: Any) -> Any:
            what = name(first)
            if not what:  # the upkeep of all calls
                return await work(self, first, *rest)
            note(f"before {what}")
            result = await work(self, first, *rest)
            note(f"after {what}")
            return result

        return noted

    changed: Any = SqlCallStore
    changed.apply = around(SqlCallStore.apply, _names)
    changed = OpenAIProvider
    changed.complete = around(OpenAIProvider.complete, lambda _: "ask")
    changed = ValkeyAccountStore
    changed.reserve = around(ValkeyAccountStore.reserve, lambda _: "reserve")
    changed._end = around(ValkeyAccountStore._end, lambda _: "settle")


def serve_forks() -> None:
    """Make a gateway for each line, one after the other."""
    for line in sys.stdin:
        step, address_file = line.split(maxsplit=1)
        pid = os.fork()
        if not pid:
            end_with_parent()
            os.environ["FATHOM_GATEWAY_ADDRESS_FILE"] = address_file.strip()
            _die_at(int(step))
            main()
            return
        os.waitpid(pid, 0)
        print("dead", flush=True)


if __name__ == "__main__":
    serve_forks()
