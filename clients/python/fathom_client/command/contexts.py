"""`fathom contexts`: put data where runs read it, look at it, take it away."""

from __future__ import annotations

import re
import sys
import time

import click
from fathom.orchestrator.v1 import context_pb2
from google.protobuf import json_format

from fathom_client.client import Client
from fathom_client.command import exit_codes, options
from fathom_client.command.ask import upload
from fathom_client.command.interrupts import Interrupts, aside
from fathom_client.command.invocation import Invocation, invoke, print_json
from fathom_client.command.quantities import CountType, DurationType
from fathom_client.command.server_choice import server_to_read
from fathom_client.command.table import aligned
from fathom_client.command.terminal import echo, plain
from fathom_client.figures import bytes_text, count_text, span_text
from fathom_client.inputs import InputError, read_inputs

_KIND_OF_JSON = context_pb2.Context.KIND_JSON
_URI = re.compile(r"(?:s3|file)://")
_TITLE_CHARACTERS = 48
_DOCUMENTS_SHOWN = 20
_KINDS = {
    context_pb2.Context.KIND_TEXT: "text",
    context_pb2.Context.KIND_DOCUMENTS: "documents",
    context_pb2.Context.KIND_JSON: "json",
}


@click.group()
def contexts() -> None:
    """Keep data where runs read it: put, list, show, delete."""


@contexts.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATH|DIR|GLOB|ARCHIVE|URI|-...")
@click.option("--json-input", is_flag=True, help="Give the one file as a JSON value, not as text.")
@click.option("--title", default="", help="Words for it; the paths by default.")
@click.option("--ttl", type=DurationType(), help="Delete it after this time; the server's default.")
@options.as_json
@options.quiet
@options.verbose
@options.server
def put(
    paths: tuple[str, ...],
    json_input: bool,
    title: str,
    ttl: float | None,
    as_json: bool,
    quiet: bool,
    verbose: bool,
    server: str | None,
) -> None:
    """Upload files as one context and print its name.

    An upload that breaks goes on by itself. One URI, s3://BUCKET/KEY or file:///PATH, is read by
    the server, where its configuration allows that place.
    """

    async def main(invocation: Invocation, _: Interrupts) -> int:
        inputs = None
        if not _is_uri(paths):
            inputs = await aside(
                lambda: read_inputs(
                    list(paths),
                    read_stdin=sys.stdin.buffer.read,
                    as_json=json_input,
                    title=title,
                    ttl_s=ttl,
                )
            )
            invocation.terminal.say(inputs.describe())
        async with (
            server_to_read(invocation) as chosen,
            Client(chosen.address, access=invocation.access) as client,
        ):
            if inputs is None:
                kind = _KIND_OF_JSON if json_input else context_pb2.Context.KIND_TEXT
                found = await client.contexts.create(paths[0], kind, title=title, ttl_s=ttl)
            else:
                name = await upload(client, invocation.terminal, inputs.upload)
                found = await client.contexts.get(name)
        if as_json:
            print_json(_object(found))
        else:
            echo(found.name)
        return exit_codes.ANSWERED

    invoke(main, quiet=quiet, verbose=verbose, as_json=as_json, server=server)


def _is_uri(paths: tuple[str, ...]) -> bool:
    """Tell whether the data is at a URI that the server reads, which stands alone."""
    uris = [path for path in paths if _URI.match(path)]
    if uris and len(paths) > 1:
        raise InputError(f"{uris[0]} is read by the server: name nothing beside it")
    return bool(uris)


@contexts.command("list")
@click.option("--count", type=CountType(least=1), default="20", help="At most so many; 20.")
@options.as_json
@options.server
def list_contexts(count: int, as_json: bool, server: str | None) -> None:
    """List the newest contexts."""

    async def main(invocation: Invocation, _: Interrupts) -> int:
        async with (
            server_to_read(invocation) as chosen,
            Client(chosen.address, access=invocation.access) as client,
        ):
            found = await client.contexts.newest(count_max=count)
        if as_json:
            print_json({"contexts": [_object(context) for context in found]})
        else:
            for line in _table(found, now_s=time.time()):
                echo(line)
        return exit_codes.ANSWERED

    invoke(main, as_json=as_json, server=server)


@contexts.command()
@click.argument("context")
@options.as_json
@options.server
def show(context: str, as_json: bool, server: str | None) -> None:
    """Show what a context is, and its first documents."""

    async def main(invocation: Invocation, _: Interrupts) -> int:
        async with (
            server_to_read(invocation) as chosen,
            Client(chosen.address, access=invocation.access) as client,
        ):
            found = await client.contexts.get(_name(context))
            documents = await client.contexts.documents(
                found.name, count_max=min(found.document_count, _DOCUMENTS_SHOWN)
            )
        if as_json:
            shown = [
                json_format.MessageToDict(d, preserving_proto_field_name=True) for d in documents
            ]
            print_json(_object(found) | {"first_documents": shown})
            return exit_codes.ANSWERED
        for line in _description(found, documents):
            echo(line)
        return exit_codes.ANSWERED

    invoke(main, as_json=as_json, server=server)


@contexts.command()
@click.argument("names", nargs=-1, required=True, metavar="CONTEXT...")
@options.server
def delete(names: tuple[str, ...], server: str | None) -> None:
    """Delete contexts that no unfinished run uses, with their bytes."""

    async def main(invocation: Invocation, _: Interrupts) -> int:
        async with (
            server_to_read(invocation) as chosen,
            Client(chosen.address, access=invocation.access) as client,
        ):
            for name in map(_name, names):
                await client.contexts.delete(name)
                invocation.terminal.say(f"{name} is deleted")
        return exit_codes.ANSWERED

    invoke(main, server=server)


def _name(context: str) -> str:
    prefix, separator, _ = context.partition("/")
    if separator and prefix != "contexts":
        raise InputError(f"{context} is no context; `fathom contexts list` has their names")
    return context if separator else f"contexts/{context}"


def _object(context: context_pb2.Context) -> dict[str, object]:
    found: dict[str, object] = json_format.MessageToDict(
        context, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return found


def _table(found: list[context_pb2.Context], *, now_s: float) -> list[str]:
    rows = [("CONTEXT", "KIND", "SIZE", "DOCS", "TOKENS", "AGE", "TITLE")]
    for context in found:
        title = " ".join(plain(context.title).split())
        if len(title) > _TITLE_CHARACTERS:
            title = title[: _TITLE_CHARACTERS - 1] + "…"
        rows.append(
            (
                context.name,
                _KINDS.get(context.kind, "?"),
                bytes_text(context.size_bytes),
                count_text(context.document_count),
                count_text(context.tokens_estimated),
                span_text(max(1, round(now_s - context.create_time.ToNanoseconds() / 1e9))),
                title,
            )
        )
    return aligned(rows)


def _description(context: context_pb2.Context, documents: list[context_pb2.Document]) -> list[str]:
    lines = [
        f"{context.name}  {plain(context.title)}".rstrip(),
        f"kind       {_KINDS.get(context.kind, '?')}",
        f"size       {bytes_text(context.size_bytes)} ({context.size_bytes:,} bytes)",
        f"text       {context.characters:,} characters, {context.lines:,} lines",
        f"tokens     about {context.tokens_estimated:,}",
        f"blake3     {context.blake3}",
        f"stored     {context.create_time.ToJsonString()}",
    ]
    if context.malformed_sequences:
        lines.append(f"malformed  {context.malformed_sequences:,} sequences, read as U+FFFD")
    if context.HasField("expire_time"):
        lines.append(f"expires    {context.expire_time.ToJsonString()}")
    if context.kind == context_pb2.Context.KIND_DOCUMENTS:
        lines.append(f"documents  {context.document_count:,}")
        lines += [f"  {bytes_text(d.size_bytes):>9}  {plain(d.name)}" for d in documents]
        left = context.document_count - len(documents)
        if left > 0:
            lines.append(f"  and {left:,} more")
    return lines
