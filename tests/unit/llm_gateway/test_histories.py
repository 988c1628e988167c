"""What is remembered of a run's earlier prompts is a shorter way to the same, and nothing else."""

from __future__ import annotations

import dataclasses
import gc
import hashlib
import random
import tracemalloc
from typing import Any

import orjson
import pytest

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
from llm_gateway.wire import prompt_from
from tests.support.gateway import deployment, generate, prompt, token

WORDS = ("plain", 'a "quoted"\nline', "é", "漢字", "😀", "\\", "\u2028", "x" * 300)
SECRET = "AKIA" + "Q" * 16
RUN = token()


def said(*texts: str) -> tuple[Message, ...]:
    roles = (Role.USER, Role.ASSISTANT)
    return tuple(Message(roles[number % 2], text) for number, text in enumerate(texts))


def asked(
    histories: Histories, messages: tuple[Message, ...], run: RunToken = RUN, **options: Any
) -> Prompt:
    """Return a prompt as a servicer makes it."""
    plain = prompt(messages=messages, **options)
    return dataclasses.replace(plain, history=histories.of(run, plain))


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
        options: dict[str, Any] = draw.choice([{}, {"seed": 7, "stop": ("a",)}])
        options["tier"] = draw.choice(['root "é"', "sub"])
        of_run, plain = asked(histories, messages, **options), prompt(messages=messages, **options)

        assert of_run == plain
        assert (of_run.history is not None) == (len(messages) >= MESSAGES_MIN)
        assert of_run.text_bytes == plain.text_bytes
        assert digest_of(of_run) == digest_of(plain)
        bodies = [request_body(deployment(), each, 5, stream=True) for each in (of_run, plain)]
        assert bodies[0] == bodies[1]
        assert orjson.loads(bodies[0])["messages"] == [
            {"role": m.role.value, "content": m.text} for m in messages
        ]
        messages = a_next(draw, messages)


def test_a_digest_is_that_of_what_is_asked_as_json() -> None:
    """Rows of a ledger have it: another form would take a repeat for another question."""
    messages = said("a", "é")

    choices: list[dict[str, Any]] = [{}, {"output_tokens_max": 5, "seed": 0}]
    for options in choices:
        asked_json = orjson.dumps({"tier": "sub", "messages": messages, **options})
        digest = hashlib.blake2b(asked_json, digest_size=32).digest()
        assert digest_of(prompt(messages=messages, **options)) == digest


def test_a_request_that_goes_on_has_the_very_messages_of_the_one_before() -> None:
    request = generate()
    first = prompt_from(request)
    request.prompt.messages.add(role=request.prompt.messages[0].role, text="and then")

    second = prompt_from(request, first.messages)

    assert second.messages[0] is first.messages[0]
    assert [message.text for message in second.messages] == ["hello", "and then"]
    request.prompt.messages[0].text = "bye"
    assert prompt_from(request, second.messages).messages[0].text == "bye"
    del request.prompt.messages[1]
    assert len(prompt_from(request, second.messages).messages) == 1


def test_who_says_it_counts() -> None:
    request = generate()
    (user,) = prompt_from(request).messages

    other = prompt_from(request, [Message(Role.ASSISTANT, user.text)]).messages[0]

    assert other.role is Role.USER


@pytest.mark.parametrize(
    "other",
    [
        {"tenant": "other"},
        {"run": "runs/2"},
        {"subtrees": (Subtree(name="runs/3"),)},
    ],
)
def test_each_run_has_a_history_of_its_own(other: dict[str, Any]) -> None:
    histories, messages = Histories(), said(*"abcd")
    asked(histories, messages)

    assert histories.messages(RUN, "sub") == messages
    assert not histories.messages(token(**other), "sub")
    assert not histories.messages(RUN, "root")


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
    for run in [*runs[:3], runs[0], runs[3]]:
        asked(histories, said(*"abcd"), run)

    assert [bool(histories.messages(run, "sub")) for run in runs] == [True, False, True, True]
    assert histories.held_bytes == 3 * one.held_bytes


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


def test_one_that_is_too_large_is_used_and_not_remembered() -> None:
    histories = Histories(bytes_max=1_000_000)
    asked(histories, said(*"abcd"))

    of_run = asked(histories, said(*"abcd", "x" * 600_000))

    assert of_run.history is not None
    assert not histories.messages(RUN, "sub")
    assert histories.held_bytes == 0


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
    guard, stricter = (
        EgressGuard(EgressPolicies(default=EgressPolicy(secrets=Reaction.REFUSE))) for _ in "ab"
    )
    for messages, by in (
        (said(*"abcd"), guard),
        (said(*"abcde"), guard),
        (said(*"abcdef"), stricter),
        (said(*"xbcdef"), stricter),
    ):
        await by.inspect(Call(prompt=asked(histories, messages), token=RUN, arrived=0.0))

    assert looked_at == [[*"abcd"], ["e"], [*"abcdef"], [*"xbcdef"]]


async def test_a_secret_is_found_in_what_is_new_and_each_time_it_is_sent() -> None:
    histories = Histories()
    guard = EgressGuard(EgressPolicies(default=EgressPolicy(secrets=Reaction.REFUSE)))
    await guard.inspect(Call(prompt=asked(histories, said(*"abcd")), token=RUN, arrived=0.0))

    for messages in (said(*"abcd", SECRET), said(*"abcd", SECRET, "and then")):
        with pytest.raises(EgressRefusedError) as caught:
            await guard.inspect(Call(prompt=asked(histories, messages), token=RUN, arrived=0.0))
        assert "prompt.messages[4]" in str(caught.value)


async def test_a_secret_that_is_redacted_is_redacted_in_every_turn_after() -> None:
    histories = Histories()
    guard = EgressGuard(EgressPolicies(default=EgressPolicy(secrets=Reaction.REDACT)))
    messages = said(*"abc", f"my key is {SECRET}")
    for text in "ef":
        messages = (*messages, Message(Role.USER, text))
        call = Call(prompt=asked(histories, messages), token=RUN, arrived=0.0)

        leaving = (await guard.inspect(call)).prompt

        body = request_body(deployment(), leaving, 5, stream=False)
        assert SECRET.encode() not in body
        assert b"my key is " in body
