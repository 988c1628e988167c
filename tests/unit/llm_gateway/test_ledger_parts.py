"""The ledger's parts by themselves: group commits, recorded answers, their files, the sweep."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from llm_gateway.answers import FinishReason
from llm_gateway.errors import LedgerUnavailableError
from llm_gateway.ledger import group_commit
from llm_gateway.ledger.answer_store import FolderAnswerStore
from llm_gateway.ledger.entries import CallState, RecordedAnswer, digest_of
from llm_gateway.ledger.group_commit import GroupCommit
from llm_gateway.ledger.ledger import Ledger
from llm_gateway.ledger.operations import KeepLease, LookUp, Operation, StoreUnavailableError
from llm_gateway.ledger.sweep import Sweep
from llm_gateway.prompts import Message, Role
from tests.support.call_store_contract import KEY, OTHERS, answering, opening
from tests.support.gateway import completion, memory_books, prompt
from tests.support.memory_ledger import MemoryAnswerStore, MemoryCallStore

DAY_US = 86_400_000_000


async def no_pause(_seconds: float) -> None:
    """Wait for nothing."""


async def test_what_comes_together_is_committed_together() -> None:
    store = MemoryCallStore()
    commits = GroupCommit(store, sleep=no_pause)

    outcomes = await asyncio.gather(*(commits.post(opening(key)) for key in [KEY, *OTHERS]))

    assert outcomes == [True] * 4
    assert store.transactions == 1


async def test_while_calls_come_together_a_few_wait_for_more_and_enough_wait_for_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Calls that begin together would else all wait out the time in which more might come."""
    monkeypatch.setattr(group_commit, "_GATHER_S", 60.0)
    store = MemoryCallStore()
    commits = GroupCommit(store, sleep=no_pause)
    await asyncio.gather(*(commits.post(LookUp(KEY)) for _ in range(3)))

    few = [commits.post(LookUp(KEY)) for _ in range(11)]
    for _ in range(50):
        await asyncio.sleep(0)
    done_of_few = sum(each.done() for each in few)
    await asyncio.wait_for(commits.post(LookUp(KEY)), 30)

    assert done_of_few == 0
    assert all(each.done() for each in few)
    assert store.transactions == 2


async def test_a_store_that_is_busy_is_asked_again() -> None:
    store = MemoryCallStore()
    store.failures = [StoreUnavailableError("busy")] * 4

    assert await GroupCommit(store, sleep=no_pause).post(opening()) is True


async def test_a_store_that_stays_away_fails_all_and_later_ones_try_again() -> None:
    store = MemoryCallStore()
    store.failures = [StoreUnavailableError("down")] * 5
    commits = GroupCommit(store, sleep=no_pause)

    with pytest.raises(LedgerUnavailableError) as caught:
        await commits.post(opening())

    assert caught.value.retry_after_s == 1.0
    assert await commits.post(opening()) is True


class Picky(MemoryCallStore):
    """Refuses a transaction with a certain key in it."""

    async def apply(self, operations: Sequence[Operation[Any]]) -> list[Any]:
        if any(getattr(each, "key", None) == KEY for each in operations):
            raise ValueError("not that one")
        return await super().apply(operations)


async def test_an_operation_that_the_store_refuses_fails_alone() -> None:
    commits = GroupCommit(Picky(), sleep=no_pause)
    keys = [OTHERS[0], KEY, OTHERS[1]]

    outcomes = await asyncio.gather(
        *(commits.post(opening(key)) for key in keys), return_exceptions=True
    )

    assert outcomes[0] is True
    assert isinstance(outcomes[1], ValueError)
    assert outcomes[2] is True


async def test_what_nobody_waits_for_is_done_all_the_same() -> None:
    store = MemoryCallStore()
    commits = GroupCommit(store, sleep=no_pause)
    posted = commits.post(opening())
    posted.cancel()

    await commits.flush()

    assert KEY in store.calls


def test_a_recorded_answer_is_read_back_as_it_was() -> None:
    said = completion(
        "text\0 \N{SNOWMAN}",
        reasoning="because",
        finish_reason=FinishReason.LENGTH,
        response_id="r-1",
        response_model="served",
        tokens=None,
    )

    assert RecordedAnswer.decode(RecordedAnswer(said, "small").encode()) == RecordedAnswer(
        said, "small"
    )


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"form":2}', b'{"form":1,"model":"m"}', b"null"]
)
def test_damage_is_told(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        RecordedAnswer.decode(data)


def test_everything_that_is_asked_makes_the_digest() -> None:
    changes: list[dict[str, Any]] = [
        {},
        {"tier": "root"},
        {"output_tokens_max": 5},
        {"temperature": 0.0},
        {"temperature": 1.0},
        {"stop": ("a",)},
        {"stop": ("a", "b")},
        {"seed": 0},
        {"response_schema": "{}"},
        {"messages": (Message(Role.SYSTEM, "hello"),)},
        {"messages": (Message(Role.USER, "hel"), Message(Role.USER, "lo"))},
    ]
    digests = {digest_of(prompt(**changed)) for changed in changes}

    assert len(digests) == len(changes)
    assert digest_of(prompt()) == digest_of(prompt())


async def test_files_have_the_names_of_their_content_and_are_private(tmp_path: Path) -> None:
    store = FolderAnswerStore(tmp_path / "answers")

    keys = [await store.put(b"one"), await store.put(b"two"), await store.put(b"one")]

    assert keys[0] == keys[2] != keys[1]
    assert await store.get(keys[1]) == b"two"
    modes = [path.stat().st_mode & 0o777 for path in (tmp_path / "answers").iterdir()]
    assert modes == [0o600, 0o600]
    assert (tmp_path / "answers").stat().st_mode & 0o777 == 0o700


async def test_a_damaged_file_is_not_believed(tmp_path: Path) -> None:
    store = FolderAnswerStore(tmp_path)
    key = await store.put(b"one")
    (tmp_path / key).write_bytes(b"two")

    with pytest.raises(ValueError, match="content"):
        await store.get(key)
    with pytest.raises(ValueError, match="no key"):
        await store.get("../secret")


async def test_files_are_forgotten_by_their_age(tmp_path: Path) -> None:
    """One that was put again is as young as the newest call that names it."""
    store = FolderAnswerStore(tmp_path)
    old, renewed = await store.put(b"old"), await store.put(b"renewed")
    (tmp_path / "not-ours").write_text("kept")
    for path in tmp_path.iterdir():
        os.utime(path, (1_000, 1_000))
    await store.put(b"renewed")

    await store.forget(1_000 + 3_599)
    assert (tmp_path / old).exists()
    await store.forget(1_000 + 3_601)

    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([renewed, "not-ours"])


async def test_a_sweep_ends_the_calls_of_the_dead_and_forgets_what_is_old() -> None:
    store, now = MemoryCallStore(), 40 * 86_400.0
    books = memory_books(store)
    ledger = Ledger(books, lease_s=15.0)
    sweep = Sweep(
        ledger,
        books.commits,
        MemoryAnswerStore(),
        owner="here",
        retention_days=30,
        interval_s=1.0,
        now=lambda: now,
    )
    await store.apply([KeepLease("here", 41 * DAY_US), opening(KEY, owner="dead")])
    await store.apply([opening(key) for key in OTHERS[:2]])
    await store.apply(
        [
            answering(OTHERS[0], exchange_id="old", ended_us=10 * DAY_US - 1),
            answering(OTHERS[1], exchange_id="young", ended_us=10 * DAY_US),
        ]
    )

    await sweep.bury_dead()
    await sweep.forget_old()

    assert set(store.calls) == {KEY, OTHERS[1]}
    assert store.calls[KEY].state is CallState.SPENT
    assert set(store.exchanges) == {"young", "here-1"}
