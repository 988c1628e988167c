"""What is written to a terminal, and what is not."""

from __future__ import annotations

import io
import json

import pytest
from fathom_client.command.terminal import Terminal, echo, escaped, plain


class Tty(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    "hostile", ["\x1b[2J", "\x1b]0;title\x07", "\r", "\x9b31m", "\u202e", "\x08\x08"]
)
def test_text_of_others_cannot_command_the_terminal(hostile: str) -> None:
    """A model's answer may hold whatever the files that it read hold."""
    shown = plain(f"a{hostile}b")

    assert not any(char in shown for char in "\x1b\x07\r\x9b\u202e\x08")


def test_names_of_others_cannot_command_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Code names the tier that it asks, and `fathom runs show` tells of it."""
    stream = Tty()
    terminal = Terminal({"TERM": "xterm"}, stream=stream)
    line = f"{terminal.style('tier', 'green')} \x1b]0;title\x07\x9b2J\u202e\x1b[2J"

    echo(line)
    terminal.say(line)
    terminal.live(line)

    assert not any(char in capsys.readouterr().out for char in "\x1b\x07\x9b\u202e")
    assert not any(char in stream.getvalue() for char in "\x07\x9b\u202e")
    assert stream.getvalue().count("\x1b") == 2 + 1 + 2  # colour twice, and the live line's


def test_json_says_the_same_without_what_a_terminal_would_obey() -> None:
    hostile = "\x1b[2J\x9b\x7f\u202eä"

    text = escaped(json.dumps({hostile: hostile}, ensure_ascii=False))

    assert json.loads(text) == {hostile: hostile}
    assert not any(char in text for char in "\x1b\x9b\x7f\u202e")
    assert "ä" in text


def test_lines_and_tabs_stay() -> None:
    assert plain("a\tb\r\nc\n") == "a\tb\nc\n"


def test_off_a_terminal_nothing_is_redrawn_or_coloured() -> None:
    stream = io.StringIO()
    terminal = Terminal({}, stream=stream)

    terminal.live("turn 1")
    terminal.say(terminal.style("done", "green"))

    assert stream.getvalue() == "done\n"


def test_a_line_goes_above_the_live_line() -> None:
    stream = Tty()
    terminal = Terminal({"TERM": "xterm"}, stream=stream)

    terminal.live("turn 1")
    terminal.say("notice")

    assert stream.getvalue() == "\r\x1b[2Kturn 1\r\x1b[2Knotice\n\r\x1b[2Kturn 1"


@pytest.mark.parametrize("environ", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_colour_is_left_out_where_it_is_not_wanted(environ: dict[str, str]) -> None:
    assert Terminal(environ, stream=Tty()).style("x", "red") == "x"


def test_quiet_leaves_errors_alone() -> None:
    stream = Tty()
    terminal = Terminal({}, stream=stream, quiet=True, verbose=True)

    terminal.say("progress")
    terminal.note("detail")
    terminal.live("turn 1")
    terminal.error("error: no")

    assert stream.getvalue() == "error: no\n"


def test_a_live_line_does_not_wrap() -> None:
    """A wrapped line could not be erased by one carriage return."""
    stream = Tty()

    Terminal({}, stream=stream).live("x" * 500)

    assert len(stream.getvalue()) < 100
