"""The run token: what a run may do, signed by the orchestrator and checked by the gateway.

The guest never sees it. The form is `v1.{payload}.{signature}`: JSON in URL-safe base64, signed
with HMAC-SHA256 by a key that both services are configured with.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import hashlib
import hmac
import json

from common.config import ConfigError, Secret
from common.errors import UnauthenticatedError

RUN_TOKEN_METADATA = "fathom-run-token"
"""The gRPC metadata key that carries it."""
KEY_BYTES_MIN = 32
AUDIENCE_DEFAULT = "fathom"
_VERSION = "v1"
_NO_KEY = Secret("")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Subtree:
    """A part of a run with limits of its own: a run under it, with everything under that."""

    name: str
    """`runs/{run}`, unique in the tenant."""
    tokens_max: int | None = None
    """Input and output tokens of the subtree; None for no limit."""
    cost_usd_nanos_max: int | None = None
    """Money of the subtree, in billionths of a US dollar; None for no limit."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunToken:
    """What the bearer may do."""

    tenant: str
    """Whose money it is."""
    run: str
    """`runs/{run}` at the root of the tree: everything under it shares one meter."""
    depth: int
    """Nesting of the caller, 0 for the run itself."""
    tiers: tuple[str, ...]
    """Tiers and deployments that may be asked."""
    tokens_max: int | None
    """Input and output tokens of the whole run; None for no limit."""
    cost_usd_nanos_max: int | None
    """Money of the whole run, in billionths of a US dollar; None for no limit."""
    tokens_spent: int
    """What the orchestrator knows was spent when it made the token: a floor for the meter, so
    that a gateway that was restarted does not start from zero."""
    cost_usd_nanos_spent: int
    """The same, in billionths of a US dollar."""
    expires_at: float
    """Unix time, seconds."""
    key: str = ""
    """Name of the credential that the run was asked for with; empty where there was none."""
    audience: str = ""
    """Which deployment's gateway it is for; set by the signer."""
    subtrees: tuple[Subtree, ...] = ()
    """The parts of the run that the caller is in, from the outermost; each limits it too."""


class RunTokenSigner:
    """Makes and checks run tokens for one audience."""

    def __init__(
        self, key: Secret, *, audience: str = AUDIENCE_DEFAULT, previous_key: Secret = _NO_KEY
    ) -> None:
        """Tokens are signed with `key`; those of `previous_key` are good too, so that keys can be
        changed without refusing a call.

        Raises ConfigError for a key under 32 bytes.
        """
        keys = [key.reveal().encode()]
        if previous_key:
            keys.append(previous_key.reveal().encode())
        if any(len(each) < KEY_BYTES_MIN for each in keys):
            raise ConfigError(f"run_token_key: needs at least {KEY_BYTES_MIN} bytes")
        self._keys = tuple(keys)
        self._audience = audience

    def mint(self, token: RunToken) -> str:
        """Return the token's signed text."""
        claims = dataclasses.asdict(token) | {"audience": self._audience}
        payload = json.dumps(claims, separators=(",", ":")).encode()
        signed = f"{_VERSION}.{_encode(payload)}"
        return f"{signed}.{_sign(self._keys[0], signed)}"

    def verify(self, text: str, *, now: float) -> RunToken:
        """Return what `text` says; UnauthenticatedError tells what is wrong with it."""
        if not text:
            raise UnauthenticatedError("missing", f"the metadata {RUN_TOKEN_METADATA} is needed")
        signed, _, signature = text.rpartition(".")
        if not signed.startswith(f"{_VERSION}."):
            raise UnauthenticatedError("malformed", "the run token is not of a known form")
        brought = signature.encode()
        if not any(hmac.compare_digest(_sign(key, signed).encode(), brought) for key in self._keys):
            raise UnauthenticatedError("forged", "the run token's signature is not ours")
        token = _parse(signed.removeprefix(f"{_VERSION}."))
        if token.audience != self._audience:
            raise UnauthenticatedError("foreign", "the run token is for another deployment")
        if token.expires_at <= now:
            raise UnauthenticatedError("expired", "the run token has expired")
        return token


def _sign(key: bytes, signed: str) -> str:
    return _encode(hmac.new(key, signed.encode(), hashlib.sha256).digest())


def _parse(payload: str) -> RunToken:
    try:
        values = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        subtrees = tuple(Subtree(**each) for each in values.get("subtrees", ()))
        return RunToken(**values | {"tiers": tuple(values["tiers"]), "subtrees": subtrees})
    except (binascii.Error, ValueError, TypeError, KeyError):
        raise UnauthenticatedError("malformed", "the run token's payload is damaged") from None


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()
