"""Who may ask what."""

from __future__ import annotations

import time

import pytest

from common.config import ConfigError, Secret
from common.errors import PermissionDeniedError, UnauthenticatedError
from common.run_token import RUN_TOKEN_METADATA, RunTokenSigner
from llm_gateway.catalog import Catalog
from llm_gateway.permissions import Gate, check_permitted
from tests.support.gateway import KEY, deployment, metadata, token

OFFERED = Catalog(
    deployments={name: deployment(name) for name in ("a", "b")},
    tiers={"root": (("a",),), "sub": (("b",),)},
)
# Made when tests are collected, and used at the end of a long run of them.
GOOD = dict(metadata(run="runs/9", expires_at=time.time() + 86_400))[RUN_TOKEN_METADATA]


def test_a_good_token_says_who_calls() -> None:
    assert Gate(KEY, OFFERED).admit(GOOD).run == "runs/9"


def test_a_call_without_a_token_is_refused() -> None:
    with pytest.raises(UnauthenticatedError) as caught:
        Gate(KEY, OFFERED).admit("")

    assert caught.value.metadata == {"problem": "missing"}


@pytest.mark.parametrize("key", [KEY, Secret("")])
def test_only_where_no_token_is_required_anyone_may_ask(key: Secret) -> None:
    anyone = Gate(key, OFFERED, token_required=False).admit("")

    assert anyone.tiers == ("root", "sub")
    assert anyone.tokens_max is None


def test_a_gate_without_a_key_is_not_built_where_tokens_are_required() -> None:
    """An empty key must never mean an open door."""
    with pytest.raises(ConfigError):
        Gate(Secret(""), OFFERED)


def test_a_bad_token_is_refused_even_where_none_is_required() -> None:
    with pytest.raises(UnauthenticatedError):
        Gate(KEY, OFFERED, token_required=False).admit("v1.x.y")


def test_tokens_of_the_key_before_are_good(caplog: pytest.LogCaptureFixture) -> None:
    gate = Gate(Secret("n" * 32), OFFERED, previous_key=KEY)

    assert gate.admit(GOOD).run == "runs/9"
    assert not caplog.records


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("v1.secret.secret", "forged"),
        (RunTokenSigner(KEY, audience="staging").mint(token()), "foreign"),
        (RunTokenSigner(KEY).mint(token(expires_at=1.0)), "expired"),
    ],
)
def test_a_refused_token_is_written_down_without_its_text(
    text: str, problem: str, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(UnauthenticatedError) as caught:
        Gate(KEY, OFFERED).admit(text, "ipv4:10.0.0.7:1")

    (record,) = caplog.records
    assert caught.value.metadata == {"problem": problem}
    assert record.name == "fathom.audit"
    assert (record.__dict__["problem"], record.__dict__["peer"]) == (problem, "ipv4:10.0.0.7:1")
    assert text not in str(record.__dict__)


@pytest.mark.parametrize(
    ("tiers", "wanted"),
    [
        (("sub",), "sub"),
        (("sub",), "models/b"),
        (("models/a",), "models/a"),
        (("root", "sub"), "models/a"),
    ],
)
def test_a_token_permits(tiers: tuple[str, ...], wanted: str) -> None:
    check_permitted(token(tiers=tiers), OFFERED, wanted)


@pytest.mark.parametrize(
    ("tiers", "wanted", "permission"),
    [
        ((), "sub", "tier:sub"),
        (("sub",), "root", "tier:root"),
        (("sub",), "models/a", "model:models/a"),
        (("models/a",), "root", "tier:root"),
        (("a",), "models/a", "model:models/a"),
    ],
)
def test_a_token_does_not_permit(tiers: tuple[str, ...], wanted: str, permission: str) -> None:
    """A cell's token has `sub` alone, so that code cannot reach for the dear model."""
    with pytest.raises(PermissionDeniedError) as caught:
        check_permitted(token(tiers=tiers), OFFERED, wanted)

    assert caught.value.metadata == {"permission": permission}
