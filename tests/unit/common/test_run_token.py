"""Run tokens: what they say can be trusted, or they are refused."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import hmac
from typing import Any

import pytest

from common.config import ConfigError, Secret
from common.errors import UnauthenticatedError
from common.run_token import RunToken, RunTokenSigner, RunTokenVerifier, Subtree
from common.token_keys import new_key_pair, public_half

TOKEN = RunToken(
    tenant="default",
    run="runs/1",
    depth=0,
    tiers=("root", "sub"),
    tokens_max=1000,
    cost_usd_nanos_max=None,
    tokens_spent=10,
    cost_usd_nanos_spent=0,
    expires_at=100.0,
    key="alice",
    audience="fathom",
    subtrees=(Subtree(name="runs/2", tokens_max=500),),
)
SIGNER = RunTokenSigner(Secret("k" * 32))
VERIFIER = RunTokenVerifier(Secret("k" * 32))


def problem_of(text: str, now: float = 99.0) -> str:
    with pytest.raises(UnauthenticatedError) as caught:
        VERIFIER.verify(text, now=now)
    return caught.value.metadata["problem"]


def test_a_token_says_after_the_check_what_it_said_before() -> None:
    assert VERIFIER.verify(SIGNER.mint(TOKEN), now=99.0) == TOKEN


def test_a_token_ends_at_its_time() -> None:
    assert problem_of(SIGNER.mint(TOKEN), now=100.0) == "expired"


def test_a_token_that_was_good_ends_at_its_time_all_the_same() -> None:
    """That its signature is ours is remembered, and nothing else."""
    text = SIGNER.mint(dataclasses.replace(TOKEN, presenters=("cells",)))

    assert VERIFIER.verify(text, now=99.0, presenter={"cells"}).run == TOKEN.run
    assert problem_of(text, now=100.0) == "expired"
    with pytest.raises(UnauthenticatedError) as caught:
        VERIFIER.verify(text, now=99.0, presenter={"thief"})
    assert caught.value.metadata["problem"] == "replayed"


def test_a_token_signed_with_another_key_is_refused() -> None:
    assert problem_of(RunTokenSigner(Secret("x" * 32)).mint(TOKEN)) == "forged"


def test_a_changed_payload_is_refused() -> None:
    """A bearer cannot raise its own limits."""
    richer = SIGNER.mint(dataclasses.replace(TOKEN, tokens_max=10**9))
    mixed = richer.rpartition(".")[0] + "." + SIGNER.mint(TOKEN).rpartition(".")[2]

    assert problem_of(mixed) == "forged"


@pytest.mark.parametrize(
    ("text", "problem"), [("", "missing"), ("x", "malformed"), ("v1.ü.ü", "forged")]
)
def test_what_is_no_token_is_refused(text: str, problem: str) -> None:
    assert problem_of(text) == problem


@pytest.mark.parametrize("cls", [RunTokenSigner, RunTokenVerifier])
@pytest.mark.parametrize(
    "key", ["k" * 31, "ed25519-public:", "ed25519-public:AAAA", "ed25519-public:" + "A" * 44]
)
def test_a_key_that_cannot_be_one_is_refused(cls: Any, key: str) -> None:
    with pytest.raises(ConfigError, match="32 bytes"):
        cls(Secret(key))


def test_while_keys_are_changed_tokens_of_both_are_good() -> None:
    """The gateway learns the new key first; the orchestrator then signs with it."""
    old, new = Secret("k" * 32), Secret("n" * 32)
    gateway = RunTokenVerifier(new, previous_key=old)

    assert gateway.verify(RunTokenSigner(old).mint(TOKEN), now=99.0) == TOKEN
    assert gateway.verify(RunTokenSigner(new).mint(TOKEN), now=99.0) == TOKEN


def test_a_previous_key_must_be_long_enough_too() -> None:
    with pytest.raises(ConfigError, match="32 bytes"):
        RunTokenVerifier(Secret("k" * 32), previous_key=Secret("k"))


def test_the_public_half_checks_what_the_private_half_signed() -> None:
    """The gateway has nothing that a token could be made with."""
    private, public = map(Secret, new_key_pair())

    text = RunTokenSigner(private).mint(TOKEN)

    assert RunTokenVerifier(public).verify(text, now=99.0) == TOKEN
    with pytest.raises(ConfigError, match="signs nothing"):
        RunTokenSigner(public)
    with pytest.raises(ConfigError, match="public half"):
        RunTokenVerifier(private)


@pytest.mark.parametrize("key", ["k" * 32, new_key_pair()[0]])
def test_a_signer_finds_what_its_own_tokens_are_checked_with(key: str) -> None:
    """The orchestrator gets its tokens back, with what sub-calls ask of it."""
    verifier = RunTokenVerifier(public_half(Secret(key)))

    assert verifier.verify(RunTokenSigner(Secret(key)).mint(TOKEN), now=99.0) == TOKEN


def test_a_token_of_another_pair_is_forged() -> None:
    private, public = Secret(new_key_pair()[0]), Secret(new_key_pair()[1])

    with pytest.raises(UnauthenticatedError) as caught:
        RunTokenVerifier(public).verify(RunTokenSigner(private).mint(TOKEN), now=99.0)

    assert caught.value.metadata["problem"] == "forged"


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_a_public_key_is_nobodys_shared_secret(version: str) -> None:
    """Whoever knows the public half could else sign with it as with a secret of both sides."""
    public = new_key_pair()[1]
    payload = RunTokenSigner(Secret(public.removeprefix("ed25519-public:"))).mint(TOKEN)
    signed = f"{version}." + payload.split(".")[1]
    mac = hmac.new(public.encode(), signed.encode(), hashlib.sha256).digest()
    text = f"{signed}.{base64.urlsafe_b64encode(mac).decode()}"

    with pytest.raises(UnauthenticatedError) as caught:
        RunTokenVerifier(Secret(public)).verify(text, now=99.0)

    assert caught.value.metadata["problem"] == {"v1": "malformed", "v2": "forged"}[version]


def test_the_kind_of_key_can_be_changed_without_refusing_a_call() -> None:
    """From a shared secret to a pair: the gateway takes both for a while."""
    private, public = map(Secret, new_key_pair())
    gateway = RunTokenVerifier(public, previous_key=Secret("k" * 32))

    assert gateway.verify(SIGNER.mint(TOKEN), now=99.0) == TOKEN
    assert gateway.verify(RunTokenSigner(private).mint(TOKEN), now=99.0) == TOKEN


def test_no_token_is_made_for_longer_than_its_signer_may() -> None:
    """A run of a day gets its tokens step by step, each for minutes."""
    signer = RunTokenSigner(Secret("k" * 32), lifetime_s_max=60.0, now=lambda: 10.0)

    assert VERIFIER.verify(signer.mint(TOKEN), now=11.0).expires_at == 70.0
    sooner = dataclasses.replace(TOKEN, expires_at=50.0)
    assert VERIFIER.verify(signer.mint(sooner), now=11.0).expires_at == 50.0


@pytest.mark.parametrize(("now", "problem"), [(39.0, "overlong"), (40.0, None)])
def test_a_token_that_is_good_for_too_long_is_refused(now: float, problem: str | None) -> None:
    """Whatever its signer was configured with."""
    gateway = RunTokenVerifier(Secret("k" * 32), lifetime_s_max=60.0)

    if problem is None:
        assert gateway.verify(SIGNER.mint(TOKEN), now=now) == TOKEN
    else:
        with pytest.raises(UnauthenticatedError) as caught:
            gateway.verify(SIGNER.mint(TOKEN), now=now)
        assert caught.value.metadata["problem"] == problem


@pytest.mark.parametrize(
    ("presenters", "presenter", "is_good"),
    [
        (("fathom-sandbox",), {"fathom-sandbox", "10.0.0.7"}, True),
        (("fathom-orchestrator", "fathom-sandbox"), {"fathom-sandbox"}, True),
        (("fathom-sandbox",), None, True),
        ((), {"anybody"}, True),
        (("fathom-orchestrator",), {"fathom-sandbox"}, False),
        (("fathom-sandbox",), {"fathom-sandbox.evil"}, False),
        (("fathom-sandbox",), set(), False),
    ],
)
def test_a_token_is_good_for_those_it_was_given_to(
    presenters: tuple[str, ...], presenter: set[str] | None, is_good: bool
) -> None:
    """What the sandbox was given is of no use to whoever steals it, where callers are known."""
    text = SIGNER.mint(dataclasses.replace(TOKEN, presenters=presenters))

    if is_good:
        assert VERIFIER.verify(text, now=99.0, presenter=presenter).run == TOKEN.run
    else:
        with pytest.raises(UnauthenticatedError) as caught:
            VERIFIER.verify(text, now=99.0, presenter=presenter)
        assert caught.value.metadata["problem"] == "replayed"


def test_a_token_of_another_deployment_is_refused() -> None:
    """Also where both have the same key, as a copy of a deployment may."""
    elsewhere = RunTokenSigner(Secret("k" * 32), audience="staging")

    assert problem_of(elsewhere.mint(TOKEN)) == "foreign"


def test_the_bearer_does_not_choose_the_audience() -> None:
    minted = SIGNER.mint(dataclasses.replace(TOKEN, audience="staging"))

    assert VERIFIER.verify(minted, now=99.0).audience == "fathom"
