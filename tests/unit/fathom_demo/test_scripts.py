"""Scripts of replies written down beforehand."""

from __future__ import annotations

import pytest
from fathom_demo.scripted_model.openai_wire import ChatRequest, Message, Reply
from fathom_demo.scripted_model.scripts import (
    Script,
    ScriptEndedError,
    ScriptError,
    scripts_from_json,
)


def request(replies_so_far: int = 0) -> ChatRequest:
    """Return a request of a conversation with so many replies in it."""
    turns = [Message("user", "go"), Message("assistant", "done")] * replies_so_far
    return ChatRequest("m", (*turns, Message("user", "go")))


def test_a_script_serves_its_replies_in_order_and_then_ends() -> None:
    """A test that asks too often must fail, not loop."""
    script = Script(["one", Reply("two", "length")])

    assert [script(request()) for _ in range(2)] == [Reply("one"), Reply("two", "length")]
    with pytest.raises(ScriptEndedError, match="2 replies and no more"):
        script(request())


def test_a_cycle_starts_over() -> None:
    """A benchmark runs the same conversation many times."""
    script = Script(["one", "two"], "cycle")

    assert [script(request()).content for _ in range(3)] == ["one", "two", "one"]


def test_a_script_by_turn_suits_conversations_that_mingle() -> None:
    """Each conversation gets its own next reply, whoever asked in between."""
    script = Script(["one", "two"], "turn")

    assert [script(request(turn)).content for turn in (0, 0, 1, 1)] == ["one", "one", "two", "two"]


def test_a_list_in_a_file_is_the_root_models_script() -> None:
    """The short form."""
    scripts = scripts_from_json(["one", {"content": "two", "finish_reason": "length"}], "root")

    assert [scripts["root"](request()) for _ in range(2)] == [Reply("one"), Reply("two", "length")]


def test_an_object_in_a_file_names_models_and_modes() -> None:
    """The long form adds models too."""
    scripts = scripts_from_json({"other": {"mode": "cycle", "replies": ["yes"]}}, "root")

    assert [scripts["other"](request()).content for _ in range(2)] == ["yes", "yes"]


@pytest.mark.parametrize(
    ("written", "reason"),
    [
        ("text", "a script is a list"),
        ({}, "a script is a list"),
        ({"root": "text"}, "root: must be a list"),
        ([], "replies: must not be empty"),
        ([{"text": "x"}], "root: .*unexpected keyword argument 'text'"),
        ({"root": {"mode": "shuffle", "replies": ["x"]}}, "mode: 'shuffle' is none of"),
    ],
)
def test_a_wrong_script_is_refused_with_a_reason(written: object, reason: str) -> None:
    """The command tells it before it serves."""
    with pytest.raises(ScriptError, match=reason):
        scripts_from_json(written, "root")
