"""Standard error as the command uses it: plain lines, one live line that is redrawn, colour.

Answers go to standard output and not through here, so that it can be piped.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from typing import TextIO

import click

_CONTROL = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]"
_CONTROLS = re.compile(_CONTROL)
_NOT_STYLES = re.compile(rf"(\x1b\[\d{{1,2}}m)|{_CONTROL}")
_COLUMNS = 80
_STYLES = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "cyan": "36"}


def plain(text: str) -> str:
    """Return text of others without what a terminal would obey, such as escape sequences."""
    return _CONTROLS.sub("\N{REPLACEMENT CHARACTER}", text.replace("\r\n", "\n"))


def echo(line: str) -> None:
    """Print a line with names of others in it to standard output."""
    click.echo(_styled(line))


def escaped(json_text: str) -> str:
    """Return the same JSON without a character in it that a terminal would obey."""
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", json_text)


def _styled(line: str) -> str:
    """Return a line of ours: of what a terminal would obey, colours and weights alone are left.
    Names come from a server, and some of them, as those of tiers, from code that a model wrote."""
    return _NOT_STYLES.sub(lambda found: found[1] or "\N{REPLACEMENT CHARACTER}", line)


class Terminal:
    """Where people read: a stream, usually standard error."""

    def __init__(
        self,
        environ: Mapping[str, str],
        *,
        stream: TextIO | None = None,
        quiet: bool = False,
        verbose: bool = False,
    ) -> None:
        """Describe the stream; `quiet` leaves errors only, `verbose` adds notes."""
        self._stream = stream or sys.stderr
        self._quiet = quiet
        self.is_verbose = verbose and not quiet
        is_tty = self._stream.isatty() and environ.get("TERM") != "dumb"
        self.is_live = is_tty and not quiet
        """True where one line can be redrawn."""
        self._has_colour = is_tty and not environ.get("NO_COLOR")
        self._live_line = ""

    def style(self, text: str, style: str) -> str:
        """Return text in a colour or weight, where the terminal has it and the user wants it."""
        return f"\x1b[{_STYLES[style]}m{text}\x1b[0m" if self._has_colour else text

    @property
    def columns(self) -> int:
        """Width of the terminal; 80 off one and where it does not tell."""
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or _COLUMNS
        except (OSError, ValueError):
            return _COLUMNS

    def say(self, text: str) -> None:
        """Write a line, unless quiet; the live line stays below it."""
        if not self._quiet:
            self._write_line(text)

    def note(self, text: str) -> None:
        """Write a line where the user asked for more."""
        if self.is_verbose:
            self._write_line(self.style(text, "dim"))

    def error(self, text: str) -> None:
        """Write a line, also when quiet."""
        self._write_line(text)

    def live(self, text: str) -> None:
        """Draw or redraw the one live line; nothing where there can be none."""
        if self.is_live:
            self._live_line = text
            self._stream.write("\r\x1b[2K" + self._fitting(_styled(text)))
            self._stream.flush()

    def end_live(self) -> None:
        """Take the live line away."""
        if self._live_line:
            self._live_line = ""
            self._stream.write("\r\x1b[2K")
            self._stream.flush()

    def _write_line(self, text: str) -> None:
        live_line, self._live_line = self._live_line, ""
        erase = "\r\x1b[2K" if live_line else ""
        self._stream.write(f"{erase}{_styled(text)}\n")
        self._stream.flush()
        if live_line:
            self.live(live_line)

    def _fitting(self, text: str) -> str:
        columns = self.columns
        return text if len(text) < columns else text[: max(columns - 2, 0)] + "…"
