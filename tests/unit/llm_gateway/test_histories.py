"""What is remembered of a run's earlier prompts is a shorter way to the same, and nothing else."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import hashlib
import random
import tracemalloc
from typing import Any

import orjson
import pytest

from common.config import Secret
from common.run_token import RunToken, Subtree
from llm_gateway.calls import Call
from llm_gateway.chat_format import request_body
from llm_gateway.egress.guard import EgressGuard
from llm_gateway.egress.policy import EgressPolicies, EgressPolicy, Reaction
from llm_gateway.egress.secret_patterns import SecretPatterns
from llm_gateway.errors import EgressRefusedError
from llm_gateway.histories import MESSAGES_MIN, Histories
from llm_gateway.ledger.entries import digest_of
from llm_gateway.prompts import Message, Prompt, Role
from tests.support.gateway import deployment, prompt, token

WORDS = ("plain", 'a "quoted"\nline', "é", "漢字", "😀", "\\", "\u2028", "x" * 300)
SECRET = "AKIA" + "Q" * 16
RUN = token()


def said(*texts: str) -> tuple[Message, ...]:
    roles = (Role.USER, Role.ASSISTANT)
    return tuple(Message(roles[number % 2], text) for number, text in enumerate(texts))


def recalled(
    histories: Histories, messages: tuple[Message, ...], run: RunToken = RUN, **options: Any
) -> Call:
    """Return a call whose messages are equal to those of others, and not the same objects."""
    own = tuple(Message(message.role, message.text) for message in messages)
    call = Call(prompt=prompt(messages=own, **options), token=run, arrived=0.0)
    return histories.recalled(call)


def asked(histories: Histories, messages: tuple[Message, ...], **options: Any) -> Prompt:
    return recalled(histories, messages, **options).prompt


def guard(**policy: Any) -> EgressGuard:
    return EgressGuard(EgressPolicies(default=EgressPolicy(**policy)))


def old_digest(asked: Prompt, **options: Any) -> bytes:
    """Return the digest as rows of ledgers have it: of one JSON object."""
    document = {"tier": asked.tier, "messages": asked.messages, **options}
    return hashlib.blake2b(orjson.dumps(document), digest_size=32).digest()


def a_next(draw: random.Random, messages: tuple[Message, ...]) -> tuple[Message, ...]:
    """Return what a run may ask next: it goes on, repeats itself, has its last words replaced or
    its oldest turns noted, or is another one."""
    words = said(*(draw.choice(WORDS) for _ in range(draw.randint(1, 3))))
    kept = draw.choice([len(messages), len(messages), len(messages), len(messages) - 1, 1])
    if draw.random() < 0.1:
        return (*messages[:1], *messages[3:], *words)
    return messages if draw.random() < 0.1 else (*messages[:kept], *words)


@pytest.mark.parametrize("seed", range(30))
def test_a_prompt_with_a_history_is_the_same_prompt(seed: int) -> None:
    draw, histories = random.Random(seed), Histories()
    messages = said(*(draw.choice(WORDS) for _ in range(MESSAGES_MIN)))
    for _ in range(30):
        options: dict[str, Any] = draw.choice([{}, {"stop": ("a",), "seed": 7}])
        tier = draw.choice(['root "é"', "sub"])
        of_run = asked(histories, messages, tier=tier, **options)
        plain = prompt(messages=messages, tier=tier, **options)

        assert (of_run.history is not None) == (len(messages) >= MESSAGES_MIN)
        assert of_run.text_bytes == plain.text_bytes
        assert digest_of(of_run) == digest_of(plain) == old_digest(plain, **options)
        bodies = [request_body(deployment(), each, 5, stream=True) for each in (of_run, plain)]
        assert bodies[0] == bodies[1]
        assert orjson.loads(bodies[0])["messages"] == [
            {"role": m.role.value, "content": m.text} for m in messages
        ]
        messages = a_next(draw, messages)


@pytest.mark.parametrize(
    "other", [{"tenant": "other"}, {"run": "runs/2"}, {"subtrees": (Subtree(name="runs/3"),)}]
)
def test_each_run_has_a_history_of_its_own(other: dict[str, Any]) -> None:
    histories = Histories()
    first = asked(histories, said(*"abcd")).history
    others = recalled(histories, said(*"abcd"), token(**other)).prompt.history
    again = asked(histories, said(*"abcd")).history

    assert first is not None
    assert others is not None
    assert again is not None
    assert others.json is not first.json
    assert again.json is first.json


def test_another_tier_takes_the_history_away() -> None:
    of_run = asked(Histories(), said(*"abcd"))

    changed = dataclasses.replace(of_run, tier="root")

    assert changed.history is None
    assert digest_of(changed) == old_digest(changed)


def test_other_messages_take_the_history_away() -> None:
    of_run = asked(Histories(), said(*"abcd"))

    changed = dataclasses.replace(of_run, messages=said("a", "b", "c", "[redacted]"))

    assert changed.history is None
    assert b"[redacted]" in request_body(deployment(), changed, 5, stream=False)


def test_those_that_were_not_asked_for_longest_are_forgotten() -> None:
    one = asked(Histories(), said(*"abcd")).history
    assert one is not None
    histories = Histories(bytes_max=3 * one.held_bytes)
    runs = [token(run=f"runs/{number}") for number in range(4)]
    kept = {}
    for number in (0, 1, 2, 0, 3):
        kept[number] = recalled(histories, said(*"abcd"), runs[number]).prompt.history
        assert histories.held_bytes <= 3 * one.held_bytes

    for number, is_kept in ((0, True), (2, True), (3, True), (1, False)):
        again = recalled(histories, said(*"abcd"), runs[number]).prompt.history
        before = kept[number]
        assert again is not None
        assert before is not None
        assert (again.json is before.json) is is_kept


def test_what_nobody_goes_on_with_is_forgotten() -> None:
    now = [0.0]
    histories = Histories(now=lambda: now[0])
    asked(histories, said(*"abcd"))
    held_bytes = histories.held_bytes
    now[0] = 601.0

    recalled(histories, said(*"abcd"), token(run="runs/2"))

    assert histories.held_bytes == held_bytes


def test_one_that_is_too_large_has_none() -> None:
    histories = Histories()

    assert asked(histories, said(*"abc", "x" * (2 << 20))).history is None
    assert histories.held_bytes == 0


@pytest.mark.parametrize(
    ("tier", "text"),
    [("sub", "x" * 100_000), ("sub", "x" * 99_999 + "\U0001f600"), ("x" * 100_000, "a")],
)
def test_all_that_is_remembered_is_counted(tier: str, text: str) -> None:
    """Whatever a caller writes much of: names of tiers are looked up after this."""
    histories = Histories()
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(5):
        asked(histories, said(text + str(number), *"bcd"), tier=f"{tier}{number}")
    gc.collect()
    taken = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()

    assert taken / 1.1 < histories.held_bytes < 1.5 * taken


async def test_what_a_policy_let_pass_is_not_looked_through_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    looked_at: list[list[str]] = []
    has_any = SecretPatterns.has_any

    def seen(self: SecretPatterns, texts: list[str]) -> bool:
        looked_at.append([text for text in texts if text])
        return has_any(self, texts)

    monkeypatch.setattr(SecretPatterns, "has_any", seen)
    histories = Histories()
    for messages in (said(*"abcd"), said(*"abcde"), said(*"xbcde")):
        await guard().inspect(recalled(histories, messages))
    one = guard()
    for messages in (said(*"abcd"), said(*"abcde"), said(*"xbcde")):
        await one.inspect(recalled(histories, messages))

    every_time = [[*"abcd"], [*"abcde"], [*"xbcde"]]
    assert looked_at == [*every_time, [*"abcd"], ["e"], [*"xbcde"]]


async def test_a_policy_that_looks_for_more_looks_at_all_again() -> None:
    histories, messages = Histories(), said(*"abc", "the canary sings")
    await guard().inspect(recalled(histories, messages))

    stricter = guard(canaries=(Secret("canary"),), on_canary=Reaction.REFUSE)

    with pytest.raises(EgressRefusedError):
        await stricter.inspect(recalled(histories, (*messages, *said("and then"))))


async def test_a_large_prompt_that_was_looked_through_is_not_taken_to_a_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    histories, one, messages = Histories(), guard(), said(*"abc", "x" * 300_000)
    in_threads: list[object] = []
    to_thread = asyncio.to_thread

    async def counted(*work: Any) -> Any:
        in_threads.append(work)
        return await to_thread(*work)

    monkeypatch.setattr(asyncio, "to_thread", counted)
    await one.inspect(recalled(histories, messages))
    await one.inspect(recalled(histories, (*messages, *said("and then"))))

    assert len(in_threads) == 1


async def test_what_is_recorded_alone_is_recorded_each_time_and_goes_on(
    caplog: pytest.LogCaptureFixture,
) -> None:
    histories, one, messages = Histories(), guard(secrets=Reaction.RECORD), said(*"abc", SECRET)
    for text in ("x", "y"):
        messages = (*messages, *said(text))
        leaving = await one.inspect(recalled(histories, messages))

        assert leaving.prompt.history is not None

    assert caplog.text.count("a prompt holds what must not leave") == 2


async def test_a_secret_is_found_in_what_is_new_and_each_time_it_is_sent() -> None:
    histories = Histories()
    one = guard(secrets=Reaction.REFUSE)
    await one.inspect(recalled(histories, said(*"abcd")))

    for messages in (said(*"abcd", SECRET), said(*"abcd", SECRET, "and then")):
        with pytest.raises(EgressRefusedError) as caught:
            await one.inspect(recalled(histories, messages))
        assert "prompt.messages[4]" in str(caught.value)


async def test_a_secret_that_is_redacted_is_redacted_in_every_turn_after() -> None:
    histories = Histories()
    one = guard(secrets=Reaction.REDACT)
    messages = said(*"abc", f"my key is {SECRET}")
    for text in "ef":
        messages = (*messages, Message(Role.USER, text))
        leaving = (await one.inspect(recalled(histories, messages))).prompt

        body = request_body(deployment(), leaving, 5, stream=False)
        assert SECRET.encode() not in body
        assert b"my key is " in body
