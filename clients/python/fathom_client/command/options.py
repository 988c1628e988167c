"""Options that several verbs share, so that each is spelled and explained once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

from fathom_client.command.quantities import CountType, DurationType, UsdType
from fathom_client.limits import Limits

Verb = TypeVar("Verb", bound=Callable[..., Any])

ACCESS_META = "fathom.access"
"""Where a click context has what the access options said, by option."""


def server(verb: Verb) -> Verb:
    """Add `--server`, which the verb gets, and what to show to it and whom to trust, which its
    invocation gets."""
    for option, words in reversed(_ACCESS_OPTIONS):
        verb = click.option(
            option, metavar="FILE", help=words, expose_value=False, callback=_note_access
        )(verb)
    return click.option(
        "--server",
        metavar="HOST:PORT",
        help="Orchestrator to use. Without it: FATHOM_SERVER, a running `fathom up`, else services"
        " of this command's own.",
    )(verb)


_ACCESS_OPTIONS = (
    ("--api-key-file", "File with the API key for it; else FATHOM_API_KEY."),
    ("--tls-ca-file", "Authority that its certificate must be of; else FATHOM_TLS_CA_FILE."),
    ("--tls-certificate-file", "Certificate to show it; else FATHOM_TLS_CERTIFICATE_FILE."),
    ("--tls-key-file", "Private key of that; else FATHOM_TLS_KEY_FILE."),
)


def _note_access(context: click.Context, parameter: click.Parameter, value: str | None) -> None:
    if value is not None:
        context.meta.setdefault(ACCESS_META, {})[parameter.opts[0]] = value


quiet = click.option("-q", "--quiet", is_flag=True, help="Nothing but the answer and errors.")
verbose = click.option("-v", "--verbose", is_flag=True, help="More about what is going on.")
as_json = click.option("--json", "as_json", is_flag=True, help="One JSON object on stdout.")
as_events = click.option(
    "--events", "as_events", is_flag=True, help="Each event as one line of JSON on stdout."
)

DEFAULT_LIMITS = Limits(usd=5, time_s=600.0, turns=20)
"""What a question may consume of which nothing is said; a profile's own limits go before them."""


def limits(verb: Verb) -> Verb:
    """Add the `--max-*` options; the verb gets them as keyword arguments for `limits_of`, and sees
    to DEFAULT_LIMITS itself."""
    return _with_limits(verb, usd="; default $5", time="; default 10m", turns="; default 20")


def changed_limits(verb: Verb) -> Verb:
    """Add the `--max-*` options for limits that stay as they are where nothing is said of them."""
    return _with_limits(verb)


def _with_limits(verb: Verb, *, usd: str = "", time: str = "", turns: str = "") -> Verb:
    turns_help = f"Turns of the root model{turns}."
    options = (
        click.option("--max-usd", type=UsdType(), help=f"Money{usd}."),
        click.option("--max-time", type=DurationType(), help=f"Time{time}."),
        click.option("--max-turns", type=CountType(least=1), help=turns_help),
        click.option("--max-calls", type=CountType(), help="Calls to sub-models."),
        click.option("--max-tokens", type=CountType(least=1), help="Tokens in and out."),
        click.option("--max-depth", type=CountType(), help="Nesting of child runs."),
        click.option("--max-children", type=CountType(), help="Child runs at a time."),
    )
    for option in reversed(options):
        verb = option(verb)
    return verb


def limits_of(chosen: dict[str, Any]) -> Limits:
    """Take the `--max-*` values out of a verb's arguments and return what was typed of them."""
    return Limits(
        usd=chosen.pop("max_usd"),
        time_s=chosen.pop("max_time"),
        turns=chosen.pop("max_turns"),
        sub_calls=chosen.pop("max_calls"),
        tokens=chosen.pop("max_tokens"),
        depth=chosen.pop("max_depth"),
        children=chosen.pop("max_children"),
    )
