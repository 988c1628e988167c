"""Run tokens: what they say can be trusted, or they are refused."""

from __future__ import annotations

import dataclasses

import pytest

from common.config import ConfigError, Secret
from common.errors import UnauthenticatedError
from common.run_token import RunToken, RunTokenSigner, Subtree

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


def problem_of(text: str, now: float = 99.0) -> str:
    with pytest.raises(UnauthenticatedError) as caught:
        SIGNER.verify(text, now=now)
    return caught.value.metadata["problem"]


def test_a_token_says_after_the_check_what_it_said_before() -> None:
    assert SIGNER.verify(SIGNER.mint(TOKEN), now=99.0) == TOKEN


def test_a_token_ends_at_its_time() -> None:
    assert problem_of(SIGNER.mint(TOKEN), now=100.0) == "expired"


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


def test_a_short_key_is_refused() -> None:
    with pytest.raises(ConfigError, match="32 bytes"):
        RunTokenSigner(Secret("k" * 31))


def test_while_keys_are_changed_tokens_of_both_are_good() -> None:
    """The gateway learns the new key first; the orchestrator then signs with it."""
    old, new = Secret("k" * 32), Secret("n" * 32)
    gateway = RunTokenSigner(new, previous_key=old)

    assert gateway.verify(RunTokenSigner(old).mint(TOKEN), now=99.0) == TOKEN
    assert gateway.verify(RunTokenSigner(new).mint(TOKEN), now=99.0) == TOKEN
    assert problem_of(gateway.mint(TOKEN)) == "forged", "it signs with the new one alone"


def test_a_previous_key_must_be_long_enough_too() -> None:
    with pytest.raises(ConfigError, match="32 bytes"):
        RunTokenSigner(Secret("k" * 32), previous_key=Secret("k"))


def test_a_token_of_another_deployment_is_refused() -> None:
    """Also where both have the same key, as a copy of a deployment may."""
    elsewhere = RunTokenSigner(Secret("k" * 32), audience="staging")

    assert problem_of(elsewhere.mint(TOKEN)) == "foreign"


def test_the_bearer_does_not_choose_the_audience() -> None:
    minted = SIGNER.mint(dataclasses.replace(TOKEN, audience="staging"))

    assert SIGNER.verify(minted, now=99.0).audience == "fathom"
