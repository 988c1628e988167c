"""What leaves for providers: sizes, permitted models, secrets, canaries; and what is told of it."""

from __future__ import annotations

import dataclasses
import gc
import logging
import time
from typing import Any

import pytest

from common.config import Secret
from common.errors import LimitAboveCeilingError, PermissionDeniedError
from llm_gateway.calls import Call
from llm_gateway.egress.guard import EgressGuard
from llm_gateway.egress.policy import EgressPolicies, EgressPolicy, Reaction
from llm_gateway.egress.secret_patterns import KINDS, SecretPatterns
from llm_gateway.errors import EgressRefusedError
from llm_gateway.prompts import Message, Role
from tests.support.gateway import deployment, prompt, token

# Put together here, so that no scanner takes this file for a leak.
AWS = "AKIA" + "Q" * 16
SAMPLES = {
    "aws_access_key": AWS,
    "azure_storage_key": "AccountKey=" + "a1+/" * 21 + "==",
    "digitalocean_token": "dop_v1_" + "0a" * 32,
    "github_token": "ghp_" + "aB3" * 12,
    "gitlab_token": "glpat-" + "aB3-_" * 4,
    "google_api_key": "AIza" + "aB3-_" * 7,
    "google_oauth_token": "ya29." + "aB3-_" * 6,
    "huggingface_token": "hf_" + "aB3" * 11,
    "json_web_token": "eyJ" + "hbGciOiJI" + ".eyJ" + "zdWIiOiIx" + "." + "c2lnbmF0dXJl",
    "model_provider_key": "sk-proj-" + "aB3" * 10,
    "npm_token": "npm_" + "aB3" * 12,
    "private_key": "-----BEGIN RSA PRIVATE KEY-----\nMII\n-----END RSA PRIVATE KEY-----",
    "python_index_token": "pypi-AgE" + "aB3-_" * 12,
    "sendgrid_key": "SG." + "aB3" * 6 + "." + "aB3" * 8,
    "slack_token": "xoxb-" + "123-abc-" * 4,
    "stripe_key": "sk_live_" + "aB3" * 8,
    "twilio_key": "SK" + "0a" * 16,
    "url_credential": "postgres://app:hunter22@db.internal/app",
}


def call(*texts: str, tenant: str = "acme", tier: str = "sub") -> Call:
    messages = tuple(Message(Role.USER, text) for text in texts)
    return Call(
        prompt=prompt(messages=messages, tier=tier), token=token(tenant=tenant), arrived=0.0
    )


def guard(**policy: Any) -> EgressGuard:
    return EgressGuard(EgressPolicies(default=EgressPolicy(**policy)))


def texts(of: Call) -> list[str]:
    return [message.text for message in of.prompt.messages]


@pytest.mark.parametrize("kind", KINDS)
def test_each_published_form_of_a_secret_is_found_whole(kind: str) -> None:
    """Redaction that leaves half a key behind has leaked it."""
    text = f"é before {SAMPLES[kind]} after".encode()

    found = list(SecretPatterns().find(text))

    assert [place.kind for place in found] == [kind]
    whole = SAMPLES[kind].encode()
    assert text[found[0].start : found[0].end] in (whole, whole.removesuffix(b"db.internal/app"))


@pytest.mark.parametrize(
    "text",
    [
        "the risk-free rate, a task-based disk-intensive desk-side plan",
        "AKIA is a prefix, and eyJ is how tokens begin",
        "see https://example.com:8080/a@b and mail me@example.com",
        "-----BEGIN CERTIFICATE-----\nMII\n-----END CERTIFICATE-----",
        "sha256 " + "0a" * 32,
    ],
)
def test_ordinary_text_has_no_findings(text: str) -> None:
    """An alarm that always rings is turned off."""
    assert list(SecretPatterns().find(text.encode())) == []


async def test_a_recorded_secret_leaves_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    """Recording is the default: whoever asks about leaked keys must be able to."""
    asked = call("look", f"key {AWS}")

    with caplog.at_level(logging.WARNING, logger="fathom.security"):
        assert texts(await guard().inspect(asked)) == texts(asked)

    record = caplog.records[0]
    assert (record.tenant, record.kind, record.field, record.offset_bytes) == (  # type: ignore[attr-defined]
        *("acme", "aws_access_key", "prompt.messages[1]"),
        4,
    )
    assert AWS not in str(vars(record))


@pytest.mark.parametrize("reaction", [Reaction.REDACT, Reaction.REFUSE])
async def test_a_schema_with_a_secret_is_refused_where_a_message_would_be_changed(
    reaction: Reaction,
) -> None:
    """Its descriptions are text as any other; with a part replaced it would be another schema."""
    asked = call("hello")
    schema = f'{{"description":"{AWS}"}}'
    asked = dataclasses.replace(
        asked, prompt=dataclasses.replace(asked.prompt, response_schema=schema)
    )

    with pytest.raises(EgressRefusedError) as refused:
        await guard(secrets=reaction).inspect(asked)

    assert refused.value.metadata == {
        "kind": "aws_access_key",
        "field": "prompt.response_schema_json",
    }
    assert await guard(secrets=Reaction.RECORD).inspect(asked) == asked


async def test_halves_of_a_secret_in_two_messages_are_no_finding(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Messages are looked through together first, and each for itself before anything is said."""
    asked = call(AWS[:10], AWS[10:], "-----BEGIN PRIVATE KEY", "-----")

    with caplog.at_level(logging.WARNING, logger="fathom.security"):
        assert texts(await guard().inspect(asked)) == texts(asked)

    assert caplog.records == []


async def test_a_redacted_secret_is_replaced_by_what_it_was() -> None:
    """The model still sees that there was one."""
    asked = call(f"é {AWS} and {SAMPLES['github_token']}.", "nothing here")

    leaving = await guard(secrets=Reaction.REDACT).inspect(asked)

    assert texts(leaving) == [
        "é [redacted: aws_access_key] and [redacted: github_token].",
        "nothing here",
    ]


async def test_a_refused_secret_sends_nothing_and_names_the_message() -> None:
    """Who gets the error must know which message to clean."""
    with pytest.raises(EgressRefusedError) as refused:
        await guard(secrets=Reaction.REFUSE).inspect(call("fine", SAMPLES["private_key"]))

    assert refused.value.metadata == {"kind": "private_key", "field": "prompt.messages[1]"}


async def test_secrets_are_not_looked_for_where_that_is_off() -> None:
    """A tenant who scans for keys by profession pays for no findings."""
    asked = call(AWS)

    assert await guard(secrets=Reaction.OFF).inspect(asked) is asked


async def test_a_canary_is_refused_even_where_secrets_are_only_recorded() -> None:
    """A planted text that moves is a leak, not a suspicion."""
    canaries = (Secret("blue heron 7741"),)

    with pytest.raises(EgressRefusedError) as refused:
        await guard(canaries=canaries).inspect(call("so the blue heron 7741 said"))

    assert refused.value.metadata["kind"] == "canary"


async def test_overlapping_findings_leave_no_rest_behind() -> None:
    """A canary inside a key must not cut the redaction of the key short."""
    policy = {"canaries": (Secret("QQQQQQQQ"),), "on_canary": Reaction.REDACT}

    leaving = await guard(secrets=Reaction.REDACT, **policy).inspect(call(f"a {AWS} b"))

    assert "Q" not in texts(leaving)[0]
    assert texts(leaving)[0].startswith("a [redacted: ")


@pytest.mark.parametrize(("limit", "refused"), [(11, False), (10, True)])
async def test_a_prompt_has_at_most_its_bytes(limit: int, refused: bool) -> None:
    """Bytes, not characters: that is what leaves."""
    asked = call("é" * 4, "abc")
    if not refused:
        assert await guard(prompt_bytes_max=limit).inspect(asked) is asked
        return
    with pytest.raises(LimitAboveCeilingError) as error:
        await guard(prompt_bytes_max=limit).inspect(asked)
    assert error.value.metadata["field"] == "prompt.messages"


@pytest.mark.parametrize(("limit", "refused"), [(2, False), (1, True)])
async def test_a_prompt_has_at_most_its_messages(limit: int, refused: bool) -> None:
    """A history without end is refused before it costs anything."""
    asked = call("a", "b")
    if not refused:
        assert await guard(messages_max=limit).inspect(asked) is asked
        return
    with pytest.raises(LimitAboveCeilingError):
        await guard(messages_max=limit).inspect(asked)


async def test_thousands_of_findings_keep_nobody_waiting() -> None:
    """Whoever makes a prompt of nothing but keys must not stop the gateway for everyone:
    sixteen times as many take about sixteen times as long, and not 256 times."""
    times: list[float] = []
    gc.disable()  # what other tests have left in memory is not what is measured
    try:
        for messages in (250, 4_000):
            asked = call(*[(AWS + " ") * 40] * messages)
            started = time.process_time()
            left = await guard(secrets=Reaction.REDACT).inspect(asked)
            times.append(time.process_time() - started)
    finally:
        gc.enable()

    assert texts(left)[-1] == "[redacted: aws_access_key] " * 40
    assert times[1] < 64 * times[0], times  # with one walk over all for each message, 260


async def test_a_canary_is_redacted_wherever_it_stands() -> None:
    """The second one would leave otherwise."""
    planted = Secret("canary-canary")
    kept = guard(canaries=(planted,), on_canary=Reaction.REDACT, secrets=Reaction.OFF)

    left = await kept.inspect(call(f"a {planted.reveal()} b {planted.reveal()}"))

    assert texts(left) == ["a [redacted: canary] b [redacted: canary]"]


@pytest.mark.parametrize("reaction", [Reaction.REDACT, Reaction.REFUSE])
async def test_a_stop_text_carries_no_secret_out(reaction: Reaction) -> None:
    """It is sent like the rest of the prompt, and cannot be replaced in part."""
    asked = dataclasses.replace(call("hello"), prompt=prompt(stop=("END", AWS)))

    with pytest.raises(EgressRefusedError) as refused:
        await guard(secrets=reaction).inspect(asked)

    assert refused.value.metadata["field"] == "prompt.stop[1]"


async def test_what_is_refused_for_its_size_or_its_model_is_a_security_event(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Somebody who tries the walls is somebody to look at."""
    narrow = guard(messages_max=1, prompt_bytes_max=3, tiers=frozenset({"root"}))
    with caplog.at_level(logging.WARNING, logger="fathom.security"):
        for asked in (call("a", "b"), call("long")):
            with pytest.raises(LimitAboveCeilingError):
                await narrow.inspect(asked)
        with pytest.raises(PermissionDeniedError):
            narrow.permitted(call("x"), [deployment()])

    events = [(record.__dict__["kind"], record.__dict__["tenant"]) for record in caplog.records]
    assert events == [("too_large", "acme"), ("too_large", "acme"), ("not_permitted", "acme")]


def test_a_tenant_asks_only_what_its_policy_names() -> None:
    """The allow-list narrows what a run token permits."""
    small, big = deployment("small"), deployment("big")
    narrow = guard(tiers=frozenset({"sub", "models/small"}))

    assert narrow.permitted(call("x", tier="sub"), [small, big]) == (small, big)
    assert narrow.permitted(call("x", tier="root"), [small, big]) == (small,)
    with pytest.raises(PermissionDeniedError) as denied:
        narrow.permitted(call("x", tier="models/big"), [big])
    assert denied.value.metadata["permission"] == "model:models/big"


async def test_each_tenant_has_its_own_policy() -> None:
    """One tenant's exception is nobody else's."""
    policies = EgressPolicies(
        default=EgressPolicy(secrets=Reaction.REFUSE),
        tenants={"auditors": EgressPolicy(secrets=Reaction.RECORD)},
    )
    egress = EgressGuard(policies)

    assert texts(await egress.inspect(call(AWS, tenant="auditors"))) == [AWS]
    with pytest.raises(EgressRefusedError):
        await egress.inspect(call(AWS, tenant="acme"))


async def test_a_megabyte_is_looked_through_in_far_less_than_a_call_takes() -> None:
    """The patterns are linear: no text, however chosen, makes them slow."""
    hostile = ("sk-" * 10 + "eyJ" * 10 + "-----BEGIN PRIVATE KEY-----") * 20_000
    asked = call(hostile)
    started = time.process_time()

    await guard(secrets=Reaction.REDACT).inspect(asked)

    assert time.process_time() - started < 20
