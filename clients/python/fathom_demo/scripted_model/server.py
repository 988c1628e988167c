"""The HTTP server: any OpenAI client talks to it as to a provider.

It routes, waits, spoils answers by rule and records; what is said comes from policies.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import itertools
import ssl
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import orjson
from aiohttp import web

from fathom_demo.scripted_model.delivery import Delivery
from fathom_demo.scripted_model.faults import FaultBook, FaultRule
from fathom_demo.scripted_model.openai_wire import (
    BadRequestError,
    ChatRequest,
    Reply,
    completion_body,
    cut_to_limit,
    error_body,
    models_body,
    parse_request,
    stream_chunks,
    usage_of,
)
from fathom_demo.scripted_model.policy_root import RootPolicy
from fathom_demo.scripted_model.policy_sub import SubPolicy
from fathom_demo.scripted_model.schema_answers import answer_in_form
from fathom_demo.scripted_model.scripts import Policy, Script, ScriptEndedError

ROOT_MODEL = "scripted-root"
SUB_MODEL = "scripted-sub"

Player = Callable[[web.Request, ChatRequest], Awaitable[web.StreamResponse]]
"""Answers one request by hand, whose body was read."""

_BODY_BYTES_MAX = 64 << 20
_REQUESTS_KEPT = 1000
_KEEPALIVE_S = 600
_SECRET_HEADERS = {"authorization", "api-key", "x-api-key", "cookie"}


@dataclass(frozen=True)
class RecordedRequest:
    """A request as it came in."""

    model: str
    """The model it asked."""
    headers: dict[str, str]
    """Its headers by lower-case name, values of secret ones replaced by `***`."""
    raw: bytes
    """Its body."""

    @property
    def body(self) -> dict[str, Any]:
        """Its body, parsed."""
        parsed: dict[str, Any] = orjson.loads(self.raw)
        return parsed


class ScriptedModel:
    """A model server on one address; an async context manager that serves while it is open."""

    def __init__(
        self,
        replies: Sequence[str | Reply] | None = None,
        *,
        policies: Mapping[str, Policy] | None = None,
        faults: Iterable[FaultRule] = (),
        latency_ms: float = 0,
        latency_ms_by_model: Mapping[str, float] | None = None,
        listen: str = "127.0.0.1:0",
        tls: ssl.SSLContext | None = None,
        drain_s: float = 5,
        player: Player | None = None,
    ) -> None:
        """Answer by the written policies, except for what is given.

        `replies` is a script for the root model, served once in order. `policies` adds models
        or takes the place of the written policies. `listen` is `host:port`; port 0 lets the
        system choose. Raises ValueError when `listen` is none. `tls` makes it speak HTTPS.
        `player` answers whatever model is asked, in place of policies and rules.
        """
        host, separator, port = listen.rpartition(":")
        if not separator or not port.isdigit():
            raise ValueError(f"listen: {listen!r} is not host:port")
        self.requests: deque[RecordedRequest] = deque(maxlen=_REQUESTS_KEPT)
        self.counters: Counter[str] = Counter()
        self._policies: dict[str, Policy] = {ROOT_MODEL: RootPolicy(), SUB_MODEL: SubPolicy()}
        if replies is not None:
            self._policies[ROOT_MODEL] = Script(replies)
        self._policies.update(policies or {})
        self._faults = FaultBook(faults)
        self._latency_ms = latency_ms
        self._latency_ms_by_model = dict(latency_ms_by_model or {})
        self._listen_at = (host, int(port))
        self._tls = tls
        self._player = player
        self._ids = itertools.count(1)
        self._closing = asyncio.Event()
        self._runner = web.AppRunner(
            self._application(),
            access_log=None,
            shutdown_timeout=drain_s,
            keepalive_timeout=_KEEPALIVE_S,
            handler_cancellation=True,
        )
        self._address: tuple[str, int] | None = None

    @property
    def address(self) -> str:
        """Where it listens, as `host:port`; only while it is open."""
        if self._address is None:
            raise RuntimeError("the scripted model is not listening")
        host, port = self._address
        return f"{host}:{port}"

    @property
    def base_url(self) -> str:
        """What an OpenAI client takes as its base URL; only while it is open."""
        return f"{'https' if self._tls else 'http'}://{self.address}/v1"

    async def __aenter__(self) -> Self:
        await self._runner.setup()
        site = web.TCPSite(self._runner, *self._listen_at, backlog=1024, ssl_context=self._tls)
        await site.start()
        host, port = self._runner.addresses[0][:2]
        self._address = (host, port)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening, let open requests end within the drain time, and close."""
        self._closing.set()
        await self._runner.cleanup()
        self._address = None

    def _application(self) -> web.Application:
        application = web.Application(client_max_size=_BODY_BYTES_MAX)
        application.router.add_post("/v1/chat/completions", self._chat)
        application.router.add_get("/v1/models", self._models)
        application.router.add_get("/_requests", self._show_requests)
        application.router.add_get("/_counters", self._show_counters)
        return application

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        raw = await http.read()
        try:
            request = parse_request(raw)
        except BadRequestError as error:
            return _error(400, str(error), "invalid_request_error", None)
        answer = self._player
        if answer is None:
            policy = self._policies.get(request.model)
            if policy is None:
                return _error(
                    404, f"no model {request.model}", "not_found_error", "model_not_found"
                )
            answer = functools.partial(self._answer, policy)
        self.requests.append(RecordedRequest(request.model, _shown_headers(http), raw))
        self.counters["requests"] += 1
        self.counters[f"requests.{request.model}"] += 1
        self.counters["in_flight"] += 1
        self.counters["in_flight_max"] = max(
            self.counters["in_flight_max"], self.counters["in_flight"]
        )
        try:
            return await answer(http, request)
        finally:
            self.counters["in_flight"] -= 1

    async def _answer(
        self, policy: Policy, http: web.Request, request: ChatRequest
    ) -> web.StreamResponse:
        fault = self._faults.next_fault(request)
        effect = fault.effect if fault else ""
        if fault:
            self.counters[f"faults.{effect}"] += 1
        if fault and effect == "status":
            await self._wait(request, None)
            return web.Response(status=fault.status, headers=fault.headers, body=fault.body)
        delivery = Delivery(http, fault, self._closing)
        if effect == "hang":
            return await delivery.hang()
        if effect == "reset":
            return delivery.broken_off()
        try:
            reply = _reply(policy, request, fault)
        except ScriptEndedError as error:
            return _error(500, str(error), "server_error", "script_ended")
        await self._wait(request, reply.latency_ms)
        for name, tokens in usage_of(request, reply).items():
            if isinstance(tokens, int):
                self.counters[name] += tokens
        if request.is_stream:
            return await delivery.stream(stream_chunks(request, reply, self._next_id()))
        return await delivery.whole(completion_body(request, reply, self._next_id()))

    async def _wait(self, request: ChatRequest, latency_ms: float | None) -> None:
        if latency_ms is None:
            latency_ms = self._latency_ms_by_model.get(request.model, self._latency_ms)
        if latency_ms > 0:
            await asyncio.sleep(latency_ms / 1000)

    def _next_id(self) -> str:
        return f"chatcmpl-scripted-{next(self._ids)}"

    async def _models(self, _: web.Request) -> web.Response:
        descriptions = {
            name: policy.description if isinstance(policy, RootPolicy | SubPolicy) else _SCRIPT
            for name, policy in self._policies.items()
        }
        return web.Response(body=models_body(descriptions), content_type="application/json")

    async def _show_requests(self, _: web.Request) -> web.Response:
        shown = [
            {"model": each.model, "headers": each.headers, "body": each.body}
            for each in self.requests
        ]
        return web.Response(body=orjson.dumps(shown), content_type="application/json")

    async def _show_counters(self, _: web.Request) -> web.Response:
        return web.Response(body=orjson.dumps(self.counters), content_type="application/json")


_SCRIPT = "Replies written down beforehand, served in order. Not a language model."


def _reply(policy: Policy, request: ChatRequest, fault: FaultRule | None) -> Reply:
    """Return what is said, as the request's form and limit and a fault let it be said."""
    reply, schema = policy(request), request.response_schema
    is_ignored = fault is not None and fault.effect == "ignore_schema"
    # A script is served as it is written.
    if schema is not None and not is_ignored and isinstance(policy, RootPolicy | SubPolicy):
        reply = dataclasses.replace(reply, content=answer_in_form(reply.content, schema))
    reply = cut_to_limit(request, reply)
    return fault.changed(reply) if fault else reply


def _shown_headers(http: web.Request) -> dict[str, str]:
    return {
        name.lower(): "***" if name.lower() in _SECRET_HEADERS else value
        for name, value in http.headers.items()
    }


def _error(status: int, message: str, kind: str, code: str | None) -> web.Response:
    return web.Response(
        status=status, body=error_body(message, kind, code), content_type="application/json"
    )
