"""One use of the command: its surroundings, what it has spent so far, and how it ends.

Every verb runs through `invoke`, so that errors, Ctrl-C and exit statuses are alike everywhere.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import shlex
import shutil
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import click

from fathom_client.access import Access
from fathom_client.command import exit_codes
from fathom_client.command.failures import explain
from fathom_client.command.interrupts import Interrupts
from fathom_client.command.options import ACCESS_META
from fathom_client.command.terminal import Terminal, escaped, plain
from fathom_client.errors import CallError, FathomError
from fathom_client.figures import usd_text
from fathom_client.home import Home, home_of

_HOST_AND_PORT = re.compile(r"^unix:|:\d{1,5}$")


@dataclass(kw_only=True)
class Invocation:
    """What a verb works with."""

    terminal: Terminal
    """Standard error."""
    environ: Mapping[str, str]
    """The user's environment."""
    as_json: bool = False
    """True where standard output gets JSON, errors included."""
    server: str | None = None
    """The orchestrator that was named, `host:port`."""
    is_server_typed: bool = False
    """True where the server was named on the command line, and would have to be again."""
    run: str = ""
    """The run being worked on, `runs/{run}`, for messages."""
    is_watching: bool = False
    """True where that run goes on without this command."""
    cost_usd_nanos: int = 0
    """What that run has cost so far."""
    access: Access = field(default_factory=Access)
    """What to show the orchestrator, and whom to trust."""
    access_options: str = ""
    """The options that said so, as they would have to be typed again."""
    fathom: str = "fathom"
    """How the user names this command, for messages that tell what to type next."""
    verb: str = "ask"
    """What it is to do, such as `contexts put`."""
    home: Home = field(init=False)
    """The user's home folder of fathom."""

    def __post_init__(self) -> None:
        self.home = home_of(self.environ)

    def to_type(self, words: str) -> str:
        """Return what to type for a verb that is to use the same server."""
        return f"{self.fathom} {words}{self.server_option}"

    @property
    def server_option(self) -> str:
        """The options that name the same server again, with a space before each; may be empty."""
        return (f" --server {self.server}" if self.is_server_typed else "") + self.access_options


def invoke(
    main: Callable[[Invocation, Interrupts], Awaitable[int]],
    *,
    quiet: bool = False,
    verbose: bool = False,
    as_json: bool = False,
    server: str | None = None,
) -> None:
    """Run a verb and exit with its status."""
    context = click.get_current_context()
    typed = context.meta.get(ACCESS_META, {})
    try:
        access = access_of(typed, os.environ)
    except OSError as error:
        raise click.UsageError(f"--api-key-file: {error.filename}: {error.strerror}") from error
    invocation = Invocation(
        terminal=Terminal(os.environ, quiet=quiet, verbose=verbose),
        environ=os.environ,
        as_json=as_json,
        server=address_of(server or os.environ.get("FATHOM_SERVER") or "", access) or None,
        is_server_typed=bool(server),
        access=access,
        access_options="".join(f" {option} {shlex.quote(typed[option])}" for option in typed),
        fathom=name_of_command(Path(sys.argv[0])),
        verb=context.command_path.partition(" ")[2],
    )
    try:
        code = asyncio.run(_run(main, invocation))
    except BrokenPipeError:
        # Whoever read standard output, such as `head`, has seen enough. Python would complain when
        # it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = exit_codes.FAILED
    except (FathomError, OSError) as error:
        code = _report(error, invocation)
    except (asyncio.CancelledError, KeyboardInterrupt):
        code = _report_interrupted(invocation)
    sys.exit(code)


def print_json(value: object) -> None:
    """Write one JSON object and a line feed to standard output."""
    click.echo(escaped(json.dumps(value, ensure_ascii=False)))


async def _run(
    main: Callable[[Invocation, Interrupts], Awaitable[int]], invocation: Invocation
) -> int:
    main_task = asyncio.current_task()
    assert main_task is not None
    interrupts = Interrupts(main_task)
    with interrupts.caught():
        return await main(invocation, interrupts)


def _report(error: Exception, invocation: Invocation) -> int:
    failure = explain(
        error,
        run=invocation.run,
        fathom=invocation.fathom,
        verb=invocation.verb,
        server=invocation.server_option,
    )
    terminal = invocation.terminal
    terminal.end_live()
    terminal.error(f"{terminal.style('error:', 'red')} {plain(failure.cause)}")
    terminal.error(f"cost so far: {_cost(invocation)}")
    terminal.error(f"try: {failure.attempt}")
    if invocation.as_json:
        print_json(
            {
                "run": invocation.run or None,
                "status": "failed",
                "answer": None,
                "error": error_object(error),
                "cost_usd_nanos": invocation.cost_usd_nanos,
            }
        )
    return failure.exit_code


def error_object(error: Exception) -> dict[str, object]:
    """Return an error as `--json` shows it: code, reason, message and metadata."""
    call = error if isinstance(error, CallError) else None
    return {
        "code": call.code.name if call else None,
        "reason": (call.reason or None) if call else None,
        "message": str(error),
        "metadata": call.metadata if call else {},
    }


def _report_interrupted(invocation: Invocation) -> int:
    terminal = invocation.terminal
    terminal.end_live()
    terminal.error(f"interrupted; cost so far: {_cost(invocation)}")
    if invocation.run:
        verb = "watch" if invocation.is_watching else "show"
        terminal.error(f"try: {invocation.to_type(f'runs {verb} {invocation.run}')}")
    return exit_codes.INTERRUPTED


def name_of_command(program: Path) -> str:
    """Return `fathom` where the shell found it under that name, else the path that was typed.

    A shell that looked it up passes on the absolute path. One that was typed may be on a PATH
    that only this command has, such as make's, and would not be found again.
    """
    if program.name != "fathom":
        return "fathom"
    if not program.is_absolute():
        return str(program)
    found = shutil.which("fathom")
    if found is not None and Path(found).samefile(program):
        return "fathom"
    is_below = program.is_relative_to(Path.cwd())
    return str(program.relative_to(Path.cwd()) if is_below else program)


def access_of(typed: Mapping[str, str], environ: Mapping[str, str]) -> Access:
    """Return what options and, without them, the environment say of access. Raises OSError."""
    if key_file := typed.get("--api-key-file"):
        api_key = Path(key_file).read_text(encoding="utf-8", errors="replace")
    else:
        api_key = environ.get("FATHOM_API_KEY", "")

    def file(name: str) -> Path | None:
        option, variable = f"--tls-{name}-file", f"FATHOM_TLS_{name.upper()}_FILE"
        path = typed.get(option) or environ.get(variable)
        return Path(path) if path else None

    return Access(
        # A key that was read from a file brings that file's last line feed.
        api_key=api_key.strip(),
        tls_ca_file=file("ca"),
        tls_certificate_file=file("certificate"),
        tls_key_file=file("key"),
    )


def address_of(server: str, access: Access) -> str:
    """Return an address as the client takes it; other tools want it as a URL, and it is pasted.

    Whoever names files for TLS means it: without a scheme the key would cross in the clear. Raises
    UsageError where there is no port to call.
    """
    address = server.strip().rstrip("/")
    if address and "://" not in address and access.has_tls_files:
        return f"https://{address}"
    address = address.removeprefix("http://")
    if address and "://" not in address and not _HOST_AND_PORT.search(address):
        raise click.UsageError(
            f"--server or FATHOM_SERVER: {address!r} is no address of the form HOST:PORT"
        )
    return address


def _cost(invocation: Invocation) -> str:
    return usd_text(invocation.cost_usd_nanos) if invocation.run else "nothing"
