"""What a run token limits: its run, and the subtrees of it that the caller is in."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Protocol

from common.run_token import RunToken
from llm_gateway.accounts.caps import NOTHING, Amounts, Cap

_MICROS = 1_000_000


class RunTotal(Protocol):
    """What a run has taken, by some books."""

    @property
    def tokens(self) -> int:
        """Input and output."""
        ...

    @property
    def cost_usd_nanos(self) -> int:
        """Billionths of a US dollar."""
        ...


class RunBooks(Protocol):
    """What outlives every store of accounts."""

    async def run_sum(self, tenant: str, run: str) -> RunTotal:
        """Return what a run has settled, and what other processes hold for it."""
        ...


class RunCaps:
    """Knows of which runs the books were read."""

    def __init__(self, books: RunBooks | None, now: Callable[[], float]) -> None:
        """Without `books` a run begins with what its token says; `now` is Unix time."""
        self._books = books
        self._now = now
        self._runs: dict[tuple[str, str], _Run] = {}

    async def of(self, token: RunToken) -> tuple[Cap, ...]:
        """Return the caps of a token; raises what the books raise where they cannot be read."""
        run = self._runs.setdefault((token.tenant, token.run), _Run())
        run.expires_at = max(run.expires_at, token.expires_at)
        is_limited = token.tokens_max is not None or token.cost_usd_nanos_max is not None
        if self._books is not None and is_limited and not run.is_read:
            async with run.reading:
                if not run.is_read:
                    await self._read(run, token)
        spent = Amounts(0, token.tokens_spent, token.cost_usd_nanos_spent)
        forget_us = int(token.expires_at * _MICROS)
        whole = Cap(
            account=_account(token.tenant, token.run),
            tokens_max=token.tokens_max,
            cost_usd_nanos_max=token.cost_usd_nanos_max,
            floor=spent.at_least(run.floor),
            opening=run.opening,
            forget_us=forget_us,
        )
        return whole, *_subtrees(token, forget_us)

    def read_again(self, tenant: str, run: str) -> None:
        """Read the books again, which have more of a run than the store that is used with them."""
        known = self._runs.get((tenant, run))
        if known is not None:
            known.is_read, known.is_more = False, True

    def forget_old(self) -> None:
        """Forget runs whose tokens have all expired."""
        now = self._now()
        self._runs = {key: run for key, run in self._runs.items() if run.expires_at > now}

    async def _read(self, run: _Run, token: RunToken) -> None:
        assert self._books is not None
        total = await self._books.run_sum(token.tenant, token.run)
        amounts = Amounts(0, total.tokens, total.cost_usd_nanos)
        if run.is_more:
            run.floor = amounts
        else:
            run.opening = amounts
        run.is_read, run.is_more = True, False


class _Run:
    """What is known of one run."""

    def __init__(self) -> None:
        self.opening = NOTHING
        """What the books had of it when this process first saw it."""
        self.floor = NOTHING
        """What they had later, when they had more."""
        self.is_read = False
        """The books were read."""
        self.is_more = False
        """They have more than what was read."""
        self.expires_at = 0.0
        """When its last token expires; Unix time."""
        self.reading = asyncio.Lock()
        """Held by the one call that reads them."""


def _account(tenant: str, run: str) -> str:
    return f"{tenant}/{run}"


def _subtrees(token: RunToken, forget_us: int) -> tuple[Cap, ...]:
    return tuple(
        Cap(
            account=_account(token.tenant, subtree.name),
            tokens_max=subtree.tokens_max,
            cost_usd_nanos_max=subtree.cost_usd_nanos_max,
            forget_us=forget_us,
        )
        for subtree in token.subtrees
        if subtree.name != token.run
    )
