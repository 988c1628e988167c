"""The guest's runtime, as far as it can be run by this Python: answers, failures, tracebacks."""

from __future__ import annotations

import asyncio
import sys
import types
from typing import Any

import pytest

from sandbox_service.guest import answers, host, sub_calls, tracebacks
from sandbox_service.guest.answers import Answers
from sandbox_service.guest.event_loop import CellLoop
from sandbox_service.guest.sub_calls import FailedQuery

FAILED = FailedQuery(3, "TIMEOUT", "it took too long")


@pytest.mark.parametrize(
    ("value", "text", "is_json"),
    [
        ("text", "text", False),
        ('{"a": 1}', '{"a": 1}', False),
        ({"a": [1, None]}, '{"a": [1, null]}', True),
        ("é", "é", False),
        (["é"], '["é"]', True),
        (3, "3", True),
        (None, "null", True),
        ((1, 2), "(1, 2)", False),
        ({1: 2}, "{1: 2}", False),
        ({1}, "{1}", False),
        (float("nan"), "nan", False),
        (b"x", "b'x'", False),
    ],
)
def test_an_answer_is_json_only_where_that_reads_back_equal(
    value: Any, text: str, is_json: bool
) -> None:
    assert answers.rendered(value) == (text, is_json)


def test_a_failed_query_is_no_answer() -> None:
    with pytest.raises(TypeError, match="no answer"):
        answers.rendered(FAILED)


@pytest.mark.parametrize(("extra", "is_taken"), [(0, True), (1, False)])
def test_an_answer_has_a_largest_size(extra: int, is_taken: bool) -> None:
    given = Answers({})
    text = "é" * (answers.VALUE_BYTES_MAX // 2) + "x" * extra

    if is_taken:
        given.final(text)
        assert given.given is not None
    else:
        with pytest.raises(ValueError, match="at most"):
            given.final(text)
        assert given.given is None


NAMESPACE = {"answer": "42", "_hidden": 1, "answers": answers, "n": 7}


@pytest.mark.parametrize(
    ("argument", "text", "variable"),
    [
        ("answer", "42", "answer"),
        (" 'answer' ", "42", "answer"),
        ("n", "7", "n"),
        (7, "7", ""),
        ("a text, no name", "a text, no name", ""),
        ("42", "42", ""),
    ],
)
def test_final_var_takes_a_name_or_a_value(argument: Any, text: str, variable: str) -> None:
    """Models do both."""
    given = Answers(dict(NAMESPACE))
    given.final_var(argument)

    assert given.given is not None
    assert (given.given["text"], given.given["variable"]) == (text, variable)


@pytest.mark.parametrize("name", ["missing", "_hidden", "answers"])
def test_final_var_of_no_variable_names_those_there_are(name: str) -> None:
    with pytest.raises(NameError, match="variables: answer, n"):
        Answers(dict(NAMESPACE)).final_var(name)


def test_a_value_passed_by_its_own_variable_is_no_name() -> None:
    """FINAL_VAR(x) where x holds a word."""
    value = "".join(["Pa", "ris"])
    given = Answers({"x": value})
    given.final_var(value)

    assert given.given is not None
    assert given.given["text"] == "Paris"


def test_provided_names_are_no_variables_unless_replaced() -> None:
    namespace: dict[str, Any] = {"FINAL": print, "llm_query": "mine", "x": 1}
    given = Answers(namespace)
    given.provided = {"FINAL": print, "llm_query": len}

    assert list(given.variables()) == ["llm_query", "x"]


class Odd:
    """Breaks when it is looked at."""

    def __repr__(self) -> str:
        raise RuntimeError("no")

    def __len__(self) -> int:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (Odd(), "<Odd, whose repr raises RuntimeError>"),
        (list(range(1000)), "<list of 1000>"),
        ("x" * 1000, "'" + "x" * 199),
        ([1, 2], "[1, 2]"),
    ],
)
def test_a_preview_never_fails_and_is_never_long(value: Any, text: str) -> None:
    assert answers.preview(value) == text


def test_a_description_survives_odd_values() -> None:
    described = Answers({"odd": Odd(), "failed": FAILED, "s": "abc"}).described(2)

    assert [(d["name"], d["length"]) for d in described] == [("odd", None), ("failed", None)]


def test_a_failed_query_is_falsy_and_shows_itself() -> None:
    assert not FAILED
    assert repr(FAILED) == "<FailedQuery #3: TIMEOUT: it took too long>"
    assert not isinstance(FAILED, str)


def test_a_failed_query_has_no_attributes_of_a_text() -> None:
    with pytest.raises(TypeError, match="check each item"):
        FAILED.splitlines()
    with pytest.raises(AttributeError):
        FAILED.nothing_of_the_kind  # noqa: B018


def test_a_batch_with_a_limit_raises_after_all_with_the_results(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    outcomes = [{"text": "a"}, {"reason": "R", "message": "spent", "is_limit": True}]
    monkeypatch.setattr(host, "ask", lambda _: {"outcomes": outcomes})

    with pytest.raises(sub_calls.LimitExceededError) as caught:
        sub_calls.llm_query_batched(["x", "y"])

    assert caught.value.results[0] == "a"
    assert isinstance(caught.value.results[1], FailedQuery)


def test_an_empty_answer_is_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "ask", lambda _: {"outcomes": [{"text": ""}]})

    assert sub_calls.llm_query("x") == ""
    assert sub_calls.llm_query_batched(["x"]) == [""]


@pytest.mark.parametrize(("size", "is_sent"), [(100, True), (101, False)])
def test_a_request_too_large_for_the_host_is_not_made(
    monkeypatch: pytest.MonkeyPatch, size: int, is_sent: bool
) -> None:
    sent: list[bytes] = []

    def call(frame: bytes) -> bytes:
        sent.append(frame)
        return b"{}"

    door = types.SimpleNamespace(call=call)
    monkeypatch.setitem(sys.modules, "_host", door)
    monkeypatch.setattr(host, "_limits", {"value_bytes": 100})
    request = {"call": "x" * (size - len('{"call": ""}'))}

    if is_sent:
        assert host.ask(request) == {}
    else:
        with pytest.raises(ValueError, match="101 bytes"):
            host.ask(request)
    assert len(sent) == is_sent


def raised_by(source: str) -> dict[str, str]:
    """Run source as a cell does and describe what it raises."""
    try:
        exec(compile(source, "<cell 1>", "exec"), {})
    except BaseException as error:
        return tracebacks.described(error)
    raise AssertionError("it raised nothing")


def test_a_traceback_begins_with_the_cell() -> None:
    trace = raised_by("def f():\n    return {}['k']\nf()")["traceback"]

    assert trace.startswith('Traceback (most recent call last):\n  File "<cell 1>", line 3')
    assert trace.endswith("KeyError: 'k'\n")
    assert "test_guest_runtime" not in trace


def test_a_chain_of_errors_is_shown() -> None:
    trace = raised_by("try:\n    1 / 0\nexcept Exception as e:\n    raise ValueError from e")

    assert "ZeroDivisionError" in trace["traceback"]
    assert "direct cause" in trace["traceback"]


def test_a_message_is_one_line_of_bounded_length() -> None:
    described = raised_by("raise ValueError('a' * 5000 + '\\nb')")

    assert described["message"] == "a" * 2000
    assert len(described["traceback"]) < 20_000


async def test_tasks_and_timers_run_without_sockets() -> None:
    def run() -> list[int]:
        loop = CellLoop()
        try:
            return loop.run_until_complete(work())
        finally:
            loop.close()

    async def work() -> list[int]:
        return list(await asyncio.gather(later(2), later(1)))

    async def later(n: int) -> int:
        await asyncio.sleep(0.001 * n)
        return n

    assert await asyncio.to_thread(run) == [2, 1]
