"""The `fathom` command: its verbs, with `ask` where none is named."""

from __future__ import annotations

import difflib
import importlib.metadata

import click

from fathom_client.command.ask import ask
from fathom_client.command.contexts import contexts
from fathom_client.command.conversations import conversations
from fathom_client.command.demo import demo
from fathom_client.command.doctor import doctor
from fathom_client.command.estimate import estimate
from fathom_client.command.profiles import profiles
from fathom_client.command.runs import runs
from fathom_client.command.up import up


class DefaultVerbGroup(click.Group):
    """A group whose first argument may be left out: it is `ask` then."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Put `ask` before arguments that begin with no verb."""
        own_options = {"--help", "-h", "--version"}
        if args and args[0] not in self.commands and args[0] not in own_options:
            close = difflib.get_close_matches(args[0], self.commands, n=1, cutoff=0.75)
            if close:
                raise click.UsageError(f"no verb {args[0]!r}; did you mean {close[0]!r}?", ctx)
            args = ["ask", *args]
        return super().parse_args(ctx, args)


@click.group(cls=DefaultVerbGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(importlib.metadata.version("fathom"), prog_name="fathom")
def main() -> None:
    """Ask questions over data far larger than a model's window.

    fathom "QUESTION" PATH...  is short for  fathom ask "QUESTION" PATH...
    """


for verb in (ask, contexts, conversations, demo, doctor, estimate, profiles, runs, up):
    main.add_command(verb)

if __name__ == "__main__":
    main()
