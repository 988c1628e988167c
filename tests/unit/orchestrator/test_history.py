"""The conversation: it only grows, and the last request fits what is left."""

from __future__ import annotations

import itertools

from fathom.gateway.v1.generation_pb2 import Message

from orchestrator.runs.model.history import History

USER, ASSISTANT = Message.ROLE_USER, Message.ROLE_ASSISTANT


def history(*, turns: int, size: int = 100) -> History:
    made = History(system="be good", question="why?")
    for turn in range(turns):
        made.add_reply(f"reply {turn} " + "r" * size)
        made.add_feedback(f"feedback {turn} " + "f" * size)
    return made


def total(messages: list[Message]) -> int:
    return sum(len(message.text.encode()) for message in messages)


def test_earlier_messages_never_change() -> None:
    """A provider's prefix cache hits only as long as the beginning is the same."""
    made = history(turns=1)
    before = [Message.FromString(m.SerializeToString()) for m in made.messages]

    made.add_reply("more")
    made.add_feedback("go on")
    made.with_last_request("now", bytes_max=50)

    assert list(made.messages[: len(before)]) == before


def test_an_empty_reply_is_kept_as_a_mark() -> None:
    """Providers refuse empty messages and two questions in a row."""
    made = history(turns=0)

    made.add_reply(" ")

    assert made.messages[-1] == Message(role=ASSISTANT, text="(empty reply)")


def test_a_last_request_that_fits_keeps_everything() -> None:
    made = history(turns=2)

    messages = made.with_last_request("now", bytes_max=10_000)

    assert [m.text for m in messages[:-1]] == [m.text for m in made.messages[:-1]]
    assert messages[-1].text.endswith("now")
    assert messages[-1].text.startswith("feedback 1")


def test_a_last_request_leaves_out_the_middle() -> None:
    """What was reserved for the last answer must pay for it."""
    made = history(turns=50)

    messages = made.with_last_request("now", bytes_max=1_000)

    assert total(messages) <= 1_000 + 100
    assert [m.text for m in messages[:2]] == ["be good", "why?"]
    assert messages[-1].text.endswith("now")
    assert "left out" in messages[2].text


def test_a_last_request_of_many_short_messages_fits_too() -> None:
    """Each message costs some tokens besides its text, and the gateway reserves those as well."""
    made = History(system="s", question="q")
    for _ in range(500):
        made.add_reply("r")
        made.add_feedback("f")

    messages = made.with_last_request("now", bytes_max=10_000)

    assert 500 < len(messages) * 16 + total(messages) <= 10_000 + 100


def test_roles_alternate_in_every_last_request() -> None:
    made = history(turns=10)

    for bytes_max in range(50, 3_000, 37):
        messages = made.with_last_request("now", bytes_max=bytes_max)
        roles = [m.role for m in messages if m.role != Message.ROLE_SYSTEM]
        assert roles[0] == roles[-1] == USER
        assert all(one != other for one, other in itertools.pairwise(roles))


def test_a_huge_newest_message_is_cut_to_its_end() -> None:
    made = history(turns=1, size=100_000)

    messages = made.with_last_request("give it now", bytes_max=2_000)

    assert total(messages) <= 2_100
    assert messages[-1].text.endswith("give it now")


def test_a_last_request_before_any_reply_joins_the_question() -> None:
    messages = history(turns=0).with_last_request("now", bytes_max=1_000)

    assert [m.role for m in messages] == [Message.ROLE_SYSTEM, USER]
    assert messages[1].text == "why?\n\nnow"


def test_a_system_message_that_takes_half_of_the_room_is_left_out() -> None:
    """What was found matters more then than how to write cells."""
    made = History(system="s" * 584, question="why?")
    made.add_reply("because")

    tight = made.with_last_request("now", bytes_max=1_000)
    roomy = made.with_last_request("now", bytes_max=1_200)

    assert [m.text for m in tight] == ["why?", "because", "now"]
    assert roomy[0].text == "s" * 584
