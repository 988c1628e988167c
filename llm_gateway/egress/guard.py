"""The last look at a prompt before it leaves: sizes, permitted models, secrets and canaries.

What it finds becomes a security event: a log record and a count that say what was found and
where, and never the secret itself.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Sequence

from common import telemetry_names as names
from common.errors import LimitAboveCeilingError, PermissionDeniedError
from common.telemetry import meter
from llm_gateway.calls import Call
from llm_gateway.catalog import MODEL_PREFIX, Deployment
from llm_gateway.egress.policy import EgressPolicies, EgressPolicy, Reaction
from llm_gateway.egress.secret_patterns import Found, SecretPatterns
from llm_gateway.errors import EgressRefusedError
from llm_gateway.prompts import Message, Prompt

_log = logging.getLogger("fathom.security")
_INLINE_BYTES = 256 << 10
"""A larger prompt is looked through in a thread; this much takes a third of a millisecond."""
_RECORDED_MAX = 20
"""Findings of one call that are recorded one by one; the rest is only counted."""
_CANARY = "canary"


@dataclasses.dataclass(frozen=True)
class _Finding:
    """Something in one message."""

    message: int
    """Position of the message."""
    found: Found
    """What and where."""
    reaction: Reaction
    """What is done about it."""


class EgressGuard:
    """Applies the policies to calls."""

    def __init__(self, policies: EgressPolicies) -> None:
        self._policies = policies
        self._patterns = SecretPatterns()
        self._findings = meter(__name__).create_counter(names.METRIC_GATEWAY_FINDINGS)

    def policy_of(self, call: Call) -> EgressPolicy:
        """Return the rules that a call is under."""
        return self._policies.of(call.token.tenant)

    def allowed(
        self, call: Call, wanted: str, pool: Sequence[Deployment]
    ) -> tuple[Deployment, ...]:
        """Return those of the pool of a tier or `models/{model}` that the tenant may ask."""
        tiers = self.policy_of(call).tiers
        if tiers is None or wanted in tiers:
            return tuple(pool)
        return tuple(d for d in pool if MODEL_PREFIX + d.name in tiers)

    def permitted(self, call: Call, pool: Sequence[Deployment]) -> tuple[Deployment, ...]:
        """Return those of a pool that the tenant may ask; PermissionDeniedError where none."""
        wanted = call.prompt.tier
        allowed = self.allowed(call, wanted, pool)
        if not allowed:
            kind = "model" if wanted.startswith(MODEL_PREFIX) else "tier"
            raise PermissionDeniedError(
                f"{kind}:{wanted}",
                f"prompt.tier: tenant {call.token.tenant} may not ask {wanted}; "
                "the gateway's [egress] table says what it may",
            )
        return allowed

    async def inspect(self, call: Call) -> Call:
        """Return the call as it may leave, secrets redacted where the policy says so.

        Raises LimitAboveCeilingError for its size, EgressRefusedError for what is in it.
        """
        policy, prompt = self.policy_of(call), call.prompt
        if len(prompt.messages) > policy.messages_max:
            raise LimitAboveCeilingError(
                "prompt.messages", len(prompt.messages), policy.messages_max
            )
        if prompt.text_bytes > policy.prompt_bytes_max:
            raise LimitAboveCeilingError(
                "prompt.messages", f"{prompt.text_bytes} bytes", f"{policy.prompt_bytes_max} bytes"
            )
        if policy.secrets is Reaction.OFF and not policy.canaries:
            return call
        if prompt.text_bytes <= _INLINE_BYTES:
            findings = self._look_through(prompt, policy)
        else:
            findings = await asyncio.to_thread(self._look_through, prompt, policy)
        return self._reacted(call, findings) if findings else call

    def _look_through(self, prompt: Prompt, policy: EgressPolicy) -> list[_Finding]:
        findings = []
        for index, message in enumerate(prompt.messages):
            text = message.text.encode()
            for canary in policy.canaries:
                planted = canary.reveal().encode()
                start = text.find(planted)
                if start >= 0:
                    found = Found(_CANARY, start, start + len(planted))
                    findings.append(_Finding(index, found, policy.on_canary))
            if policy.secrets is not Reaction.OFF:
                findings += [
                    _Finding(index, found, policy.secrets) for found in self._patterns.find(text)
                ]
        return findings

    def _reacted(self, call: Call, findings: Sequence[_Finding]) -> Call:
        self._record(call, findings)
        for finding in findings:
            if finding.reaction is Reaction.REFUSE:
                raise EgressRefusedError(finding.found.kind, finding.message)
        messages = list(call.prompt.messages)
        for index in {finding.message for finding in findings}:
            found = [
                finding.found
                for finding in findings
                if finding.message == index and finding.reaction is Reaction.REDACT
            ]
            messages[index] = Message(
                messages[index].role, _redacted(messages[index].text.encode(), found)
            )
        prompt = dataclasses.replace(call.prompt, messages=tuple(messages))
        return dataclasses.replace(call, prompt=prompt)

    def _record(self, call: Call, findings: Sequence[_Finding]) -> None:
        for position, finding in enumerate(findings):
            kind, reaction = finding.found.kind, finding.reaction.value
            self._findings.add(1, {names.KIND: kind, names.REACTION: reaction})
            if position < _RECORDED_MAX:
                facts = {
                    "tenant": call.token.tenant,
                    "run": call.token.run,
                    "kind": kind,
                    "reaction": reaction,
                    "message_index": finding.message,
                    "offset_bytes": finding.found.start,
                    "findings": len(findings),
                }
                _log.warning("a prompt holds what must not leave", extra=facts)


def _redacted(text: bytes, found: Sequence[Found]) -> str:
    """Return a text with each place replaced by what it was; places may overlap."""
    parts, position = [], 0
    for place in sorted(found, key=lambda place: place.start):
        if place.end <= position:
            continue
        parts.append(text[position : max(place.start, position)])
        parts.append(f"[redacted: {place.kind}]".encode())
        position = place.end
    parts.append(text[position:])
    return b"".join(parts).decode()
