"""Which parts of a reply are cells, and which are prose."""

from __future__ import annotations

import pytest

from orchestrator.runs.answers.directives import Directive, Problem
from orchestrator.runs.answers.replies import parse_reply


@pytest.mark.parametrize("language", ["repl", "python", "py", "Python", "repl title=x"])
def test_a_fence_of_a_python_kind_is_a_cell(language: str) -> None:
    assert parse_reply(f"Look.\n```{language}\nx = 1\n```\n").cells == ("x = 1\n",)


@pytest.mark.parametrize("language", ["", "json", "text", "bash", "pycon"])
def test_other_fences_are_not_run(language: str) -> None:
    """Models show data and commands in fences too."""
    assert parse_reply(f"```{language}\nx = 1\n```").cells == ()


def test_cells_come_in_order_with_their_lines_intact() -> None:
    text = "a\n```repl\nif x:\n    y\n```\nb\n~~~python\nz\n~~~"

    assert parse_reply(text).cells == ("if x:\n    y\n", "z\n")


def test_a_longer_fence_may_hold_a_shorter_one() -> None:
    """A prompt in a cell often has a fence of its own."""
    code = 'p = """\n```json\n{}\n```\n"""\n'

    assert parse_reply(f"````repl\n{code}````").cells == (code,)


def test_a_fence_in_a_list_item_is_a_cell_without_the_indent() -> None:
    text = "1. First:\n\n   ```repl\n   x = 1\n   ```\n"

    assert parse_reply(text).cells == ("x = 1\n",)


def test_a_quoted_fence_is_not_run() -> None:
    assert parse_reply("> ```repl\n> x = 1\n> ```").cells == ()


def test_a_fence_right_under_a_tag_is_a_cell() -> None:
    assert parse_reply("<plan>\n```repl\nx = 1\n```\n</plan>").cells == ("x = 1\n",)


def test_an_empty_cell_is_no_cell() -> None:
    reply = parse_reply("```repl\n\n```")

    assert (reply.cells, reply.has_cut_fence) == ((), False)


@pytest.mark.parametrize(
    "text", ["```repl\nx = 1", "```repl", "```repl\nx = 1\n``", "~~~py\nx\n```"]
)
def test_a_cut_fence_is_reported_and_not_run(text: str) -> None:
    """Half a cell may do harm; the model is asked for a whole one."""
    reply = parse_reply(text)

    assert (reply.cells, reply.has_cut_fence) == ((), True)


def test_cells_before_a_cut_fence_are_kept() -> None:
    reply = parse_reply("```repl\na\n```\n```repl\nb")

    assert (reply.cells, reply.has_cut_fence) == (("a\n",), True)


def test_a_cut_fence_of_another_language_is_no_matter() -> None:
    assert not parse_reply("```json\n{").has_cut_fence


def test_final_in_a_fence_is_code_and_no_directive() -> None:
    assert parse_reply("```repl\nFINAL(3)\n```").directive is None
    assert parse_reply("```text\nFINAL(3)\n```").directive is None


def test_a_directive_beside_cells_is_found() -> None:
    assert parse_reply("```repl\nx\n```\nFINAL(4)").directive == Directive(text="4")


def test_an_answer_may_hold_a_fence_that_is_no_cell() -> None:
    directive = parse_reply("FINAL(see\n```json\n{}\n```\n)").directive

    assert directive == Directive(text="see\n```json\n{}\n```")


def test_a_directive_does_not_reach_across_a_cell() -> None:
    directive = parse_reply("FINAL(open\n```repl\nx\n```\n)").directive

    assert directive == Directive(problem=Problem.UNFINISHED)


def test_what_a_model_thinks_aloud_is_passed_over() -> None:
    """Reasoning models draft answers and cells before the reply proper."""
    reply = parse_reply("<think>\n```repl\ndraft\n```\nFINAL(no)\n</think>\n```repl\nx\n```")

    assert (reply.cells, reply.directive) == (("x\n",), None)


@pytest.mark.parametrize("text", ["", " \n\t"])
def test_an_empty_reply_is_told_from_one_without_code(text: str) -> None:
    assert parse_reply(text).is_empty
    assert not parse_reply("I will look.").is_empty


def test_windows_line_ends_and_nul_characters_do_no_harm() -> None:
    reply = parse_reply("```repl\r\nx = 1\r\n```\r\nFINAL(a\0b)")

    assert reply.cells == ("x = 1\n",)
    assert reply.directive == Directive(text="a\ufffdb")


@pytest.mark.parametrize(
    ("text", "prose"),
    [
        ("Plain.\n", "Plain."),
        ("Before\n```repl\nx\n```\nafter", "Before\nafter"),
        ("```repl\nx\n```", ""),
        ("See\n```json\n{}\n```", "See\n```json\n{}\n```"),
    ],
)
def test_prose_is_the_text_without_its_cells(text: str, prose: str) -> None:
    assert parse_reply(text).prose == prose
