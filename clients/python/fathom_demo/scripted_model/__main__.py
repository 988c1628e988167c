"""The `fathom-scripted-model` command: reads its options, serves until SIGTERM, drains, ends."""

from __future__ import annotations

import argparse
import asyncio
import json
import signal
import sys
from pathlib import Path
from typing import Any

from fathom_demo.scripted_model.faults import (
    EFFECTS,
    FaultRule,
    FaultRuleError,
    rule_from_fields,
    rule_from_text,
)
from fathom_demo.scripted_model.scripts import Policy, ScriptError, scripts_from_json
from fathom_demo.scripted_model.server import ROOT_MODEL, ScriptedModel

_ABOUT = (
    "An OpenAI-compatible server whose models are written policies. It is not a language model:"
    " it answers by fixed rules from the text it is sent."
)


def main() -> None:
    """Run the command; an option that cannot be ends it with status 2 and a reason."""
    parser = _parser()
    options = parser.parse_args()
    try:
        server = _server(options)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    try:
        import uvloop  # absent where only the demo extra is installed
    except ImportError:
        asyncio.run(_serve(server, options.address_file))
    else:
        uvloop.run(_serve(server, options.address_file))


async def _serve(server: ScriptedModel, address_file: Path | None) -> None:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    async with server:
        if address_file is not None:
            unfinished = address_file.with_name(address_file.name + ".part")
            unfinished.write_text(server.address + "\n")
            unfinished.replace(address_file)
        _say(f"scripted model (written policies, not a language model) at {server.base_url}")
        await ended.wait()
        _say("scripted model: draining")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _server(options: argparse.Namespace) -> ScriptedModel:
    return ScriptedModel(
        policies=_scripts(options.script),
        faults=_faults(options.fault, options.faults_file),
        latency_ms=options.latency_ms,
        latency_ms_by_model=dict(map(_model_latency, options.model_latency_ms)),
        listen=options.listen,
    )


def _scripts(path: Path | None) -> dict[str, Policy]:
    return {} if path is None else scripts_from_json(_json_of(path), ROOT_MODEL)


def _faults(texts: list[str], path: Path | None) -> list[FaultRule]:
    rules = [rule_from_text(text) for text in texts]
    if path is None:
        return rules
    written = _json_of(path)
    if not isinstance(written, list) or not all(isinstance(each, dict) for each in written):
        raise FaultRuleError(f"{path}: must hold a list of rules")
    return rules + [rule_from_fields(fields) for fields in written]


def _json_of(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise ScriptError(f"{path}: {error}") from error


def _model_latency(text: str) -> tuple[str, float]:
    model, _, latency_ms = text.partition("=")
    try:
        return model, float(latency_ms)
    except ValueError as error:
        raise ValueError(f"--model-latency-ms {text}: is not MODEL=MS") from error


def _parser() -> argparse.ArgumentParser:
    effects = "; ".join(f"{name}: {what}" for name, what in EFFECTS.items())
    parser = argparse.ArgumentParser(prog="fathom-scripted-model", description=_ABOUT)
    parser.add_argument(
        "--listen", default="127.0.0.1:0", metavar="HOST:PORT", help="port 0: any free port"
    )
    parser.add_argument("--address-file", type=Path, help="file to write host:port to when ready")
    parser.add_argument("--latency-ms", type=float, default=0, help="time to the first byte")
    parser.add_argument(
        "--model-latency-ms", action="append", default=[], metavar="MODEL=MS", help="repeatable"
    )
    parser.add_argument("--script", type=Path, help="JSON file of replies to serve in order")
    parser.add_argument("--faults-file", type=Path, help="JSON file with a list of fault rules")
    parser.add_argument(
        "--fault",
        action="append",
        default=[],
        metavar="NAME=VALUE,...",
        help=f"fault rule, repeatable, such as effect=status,status=429,nth=2; effects: {effects}",
    )
    return parser


if __name__ == "__main__":
    main()
