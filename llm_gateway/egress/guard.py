"""The last look at a prompt before it leaves: sizes, permitted models, secrets and canaries.

What it finds becomes a security event: a log record and a count that say what was found and
where, and never the secret itself.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import Counter
from collections.abc import Iterator, Sequence

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
"""Of what was not looked through before: more is done in a thread; this takes a third of a
millisecond."""
_RECORDED_MAX = 20
"""Findings of one call that are recorded one by one; the rest is only counted."""
_CANARY = "canary"
_TOO_LARGE = "too_large"
_NOT_PERMITTED = "not_permitted"


@dataclasses.dataclass(frozen=True)
class _Finding:
    """Something in one text of a prompt."""

    text: int
    """Position among `_texts`, in which messages come first."""
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
            self._note_refused(call, _NOT_PERMITTED)
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
        self.check_size(call)
        policy, prompt = self.policy_of(call), call.prompt
        if policy.secrets is Reaction.OFF and not policy.canaries:
            return call
        cleared_bytes = prompt.history.cleared(policy).text_bytes if prompt.history else 0
        if prompt.text_bytes - cleared_bytes <= _INLINE_BYTES:
            return self._looked_through(call, policy)
        return await asyncio.to_thread(self._looked_through, call, policy)

    def check_size(self, call: Call) -> None:
        """Raise LimitAboveCeilingError where a call is larger than its tenant's may be."""
        policy, prompt = self.policy_of(call), call.prompt
        if len(prompt.messages) > policy.messages_max:
            self._note_refused(call, _TOO_LARGE)
            raise LimitAboveCeilingError(
                "prompt.messages", len(prompt.messages), policy.messages_max
            )
        if prompt.text_bytes > policy.prompt_bytes_max:
            self._note_refused(call, _TOO_LARGE)
            raise LimitAboveCeilingError(
                "prompt.messages", f"{prompt.text_bytes} bytes", f"{policy.prompt_bytes_max} bytes"
            )

    def _looked_through(self, call: Call, policy: EgressPolicy) -> Call:
        findings = self._found(call.prompt, policy)
        if not findings:
            if call.prompt.history is not None:
                call.prompt.history.clear(policy)
            return call
        self._record(call, findings)
        messages, redacted = list(call.prompt.messages), dict[int, list[Found]]()
        for finding in findings:
            # A schema or a stop text with a part replaced would be another one.
            is_replaceable = finding.text < len(messages)
            if finding.reaction is Reaction.REFUSE or (
                finding.reaction is Reaction.REDACT and not is_replaceable
            ):
                raise EgressRefusedError(finding.found.kind, _field(call.prompt, finding))
            if finding.reaction is Reaction.REDACT:
                redacted.setdefault(finding.text, []).append(finding.found)
        if not redacted:
            return call
        for index, found in redacted.items():
            message = messages[index]
            messages[index] = Message(message.role, _redacted(message.text.encode(), found))
        prompt = dataclasses.replace(call.prompt, messages=tuple(messages))
        return dataclasses.replace(call, prompt=prompt)

    def _found(self, prompt: Prompt, policy: EgressPolicy) -> list[_Finding]:
        findings: list[_Finding] = []
        first = prompt.history.cleared(policy).messages if prompt.history else 0
        texts = _texts(prompt)[first:]
        if not policy.canaries and not self._patterns.has_any(texts):
            return findings
        for index, each in enumerate(texts, start=first):
            text = each.encode()
            for canary in policy.canaries:
                findings += [
                    _Finding(index, found, policy.on_canary)
                    for found in _planted(text, canary.reveal().encode())
                ]
            if policy.secrets is not Reaction.OFF:
                findings += [
                    _Finding(index, found, policy.secrets) for found in self._patterns.find(text)
                ]
        return findings

    def _record(self, call: Call, findings: Sequence[_Finding]) -> None:
        counts = Counter((finding.found.kind, finding.reaction.value) for finding in findings)
        for (kind, reaction), count in counts.items():
            self._findings.add(count, {names.KIND: kind, names.REACTION: reaction})
        for finding in findings[:_RECORDED_MAX]:
            facts = {
                "tenant": call.token.tenant,
                "run": call.token.run,
                "kind": finding.found.kind,
                "reaction": finding.reaction.value,
                "field": _field(call.prompt, finding),
                "offset_bytes": finding.found.start,
                "findings": len(findings),
            }
            _log.warning("a prompt holds what must not leave", extra=facts)

    def _note_refused(self, call: Call, kind: str) -> None:
        """Record what is refused for another reason than what it says."""
        self._findings.add(1, {names.KIND: kind, names.REACTION: Reaction.REFUSE.value})
        facts = {"tenant": call.token.tenant, "run": call.token.run, "kind": kind}
        _log.warning("a prompt is not let out", extra=facts)


def _texts(prompt: Prompt) -> list[str]:
    """Return everything in a prompt that is the caller's own words."""
    return [*(message.text for message in prompt.messages), *prompt.stop, prompt.response_schema]


def _field(prompt: Prompt, finding: _Finding) -> str:
    stop = finding.text - len(prompt.messages)
    if stop < 0:
        return f"prompt.messages[{finding.text}]"
    return f"prompt.stop[{stop}]" if stop < len(prompt.stop) else "prompt.response_schema_json"


def _planted(text: bytes, canary: bytes) -> Iterator[Found]:
    start = text.find(canary)
    while start >= 0:
        yield Found(_CANARY, start, start + len(canary))
        start = text.find(canary, start + len(canary))


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
