"""This process's end of the ledger: what it is called there, its ids, and where answers go."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from llm_gateway.ledger.answer_store import AnswerStore
from llm_gateway.ledger.entries import RecordedAnswer, StoredAnswer
from llm_gateway.ledger.group_commit import GroupCommit

_MICROS = 1_000_000
_log = logging.getLogger(__name__)


class Books:
    """What a ledger and its claims write with."""

    def __init__(
        self,
        commits: GroupCommit,
        answers: AnswerStore,
        *,
        owner: str,
        answer_bytes_inline_max: int,
        now: Callable[[], float] = time.time,
    ) -> None:
        """`owner` is a name that no other process has had; `now` gives Unix time."""
        self.commits = commits
        """The way to the store."""
        self.owner = owner
        """This process."""
        self._answers = answers
        self._inline_max = answer_bytes_inline_max
        self._now = now
        self._exchanges = 0

    def now_us(self) -> int:
        """Return the time in microseconds of Unix time."""
        return int(self._now() * _MICROS)

    def new_id(self) -> str:
        """Return an id that no other exchange has; later ones sort behind."""
        self._exchanges += 1
        return f"{self.owner}-{self._exchanges:012d}"

    async def store(self, recorded: RecordedAnswer) -> StoredAnswer:
        """Put an answer where it belongs by its size; into its row, too, where nothing else takes
        it, as with a full disk: it is paid, and a repeat must find it."""
        data = recorded.encode()
        if len(data) > self._inline_max:
            try:
                return StoredAnswer(key=await self._answers.put(data))
            except OSError as error:
                _log.error("a large answer is kept in its row: %s", error.strerror)
        return StoredAnswer(data=data)

    async def fetch(self, stored: StoredAnswer) -> RecordedAnswer:
        """Return a stored answer; raises OSError or ValueError where it is gone or damaged."""
        data = stored.data
        if data is None:
            data = await self._answers.get(stored.key or "")
        return RecordedAnswer.decode(data)
