"""The run token: what a run may do, signed by the orchestrator and checked by the gateway.

The guest never sees it. The form is `{version}.{payload}.{signature}`: JSON in URL-safe base64,
signed as `token_keys.py` says, with HMAC-SHA256 in `v1` and with Ed25519 in `v2`.
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import json
import time
from collections.abc import Callable, Collection

from common.config import Secret
from common.errors import UnauthenticatedError
from common.token_keys import checking_key, signing_key

RUN_TOKEN_METADATA = "fathom-run-token"
"""The gRPC metadata key that carries it."""
AUDIENCE_DEFAULT = "fathom"
_REMEMBERED_MAX = 4096
"""Tokens whose signature need not be checked again: a run brings the same one with every call."""
ORCHESTRATOR = "fathom-orchestrator"
SANDBOX = "fathom-sandbox"
"""Names of the services that present tokens, as they stand in their certificates."""
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
    presenters: tuple[str, ...] = ()
    """Services that may bring it, where the gateway knows who calls; empty for any of them."""

    @property
    def asking_run(self) -> str:
        """`runs/{run}` of the caller: the innermost of the parts that it is in."""
        return self.subtrees[-1].name if self.subtrees else self.run

    @property
    def is_for_replay(self) -> bool:
        """Whether it permits to be told again what was told before, and nothing new."""
        return self.tokens_max == 0 and self.cost_usd_nanos_max == 0


class RunTokenSigner:
    """Makes run tokens for one audience."""

    def __init__(
        self,
        key: Secret,
        *,
        audience: str = AUDIENCE_DEFAULT,
        lifetime_s_max: float | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """No token is good for longer than `lifetime_s_max` from its making, whatever it asks:
        who needs one for longer makes another one in time. `now` gives Unix time.

        Raises ConfigError for a key that is too short or can only check.
        """
        self._key = signing_key(key)
        self._audience = audience
        self.lifetime_s_max = lifetime_s_max
        """Seconds; None where a token lives as long as it asks."""
        self._now = now

    def mint(self, token: RunToken) -> str:
        """Return the token's signed text."""
        claims = dataclasses.asdict(token) | {"audience": self._audience}
        if self.lifetime_s_max is not None:
            claims["expires_at"] = min(token.expires_at, self._now() + self.lifetime_s_max)
        payload = json.dumps(claims, separators=(",", ":")).encode()
        signed = f"{self._key.version}.{_encode(payload)}"
        return f"{signed}.{_encode(self._key.sign(signed.encode()))}"


class RunTokenVerifier:
    """Checks run tokens for one audience."""

    def __init__(
        self,
        key: Secret,
        *,
        audience: str = AUDIENCE_DEFAULT,
        previous_key: Secret = _NO_KEY,
        lifetime_s_max: float | None = None,
    ) -> None:
        """Tokens of `previous_key` are good too, so that keys, and their kind, can be changed
        without refusing a call. None may have more than `lifetime_s_max` left.

        Raises ConfigError for a key that is too short, or private.
        """
        keys = [key, previous_key] if previous_key else [key]
        self._keys = tuple(checking_key(each) for each in keys)
        self._versions = {each.version for each in self._keys}
        self._audience = audience
        self._lifetime_s_max = lifetime_s_max
        self._ours: dict[str, RunToken] = {}

    def verify(
        self, text: str, *, now: float, presenter: Collection[str] | None = None
    ) -> RunToken:
        """Return what `text` says; UnauthenticatedError tells what is wrong with it.

        `presenter` has the names of who brings it, as its certificate has them; None where
        callers are not known.
        """
        if not text:
            raise UnauthenticatedError("missing", f"the metadata {RUN_TOKEN_METADATA} is needed")
        token = self._ours.get(text)
        if token is None:
            token = self._read(text)
            if len(self._ours) >= _REMEMBERED_MAX:
                self._ours.clear()
            self._ours[text] = token
        if token.audience != self._audience:
            raise UnauthenticatedError("foreign", "the run token is for another deployment")
        if token.expires_at <= now:
            raise UnauthenticatedError("expired", "the run token has expired")
        if self._lifetime_s_max is not None and token.expires_at > now + self._lifetime_s_max:
            raise UnauthenticatedError("overlong", "the run token is good for too long")
        if presenter is not None and token.presenters and not {*presenter} & {*token.presenters}:
            raise UnauthenticatedError("replayed", "the run token was given to another service")
        return token

    def _read(self, text: str) -> RunToken:
        """Return what a token says whose signature is ours, whatever that is."""
        signed, _, signature = text.rpartition(".")
        version, _, payload = signed.partition(".")
        if version not in self._versions:
            raise UnauthenticatedError("malformed", "the run token is not of a known form")
        if not self._is_ours(version, signed.encode(), signature):
            raise UnauthenticatedError("forged", "the run token's signature is not ours")
        return _parse(payload)

    def _is_ours(self, version: str, signed: bytes, signature: str) -> bool:
        try:
            brought = _decode(signature)
        except (binascii.Error, ValueError):
            return False
        of_version = (key for key in self._keys if key.version == version)
        return any(key.has_signed(signed, brought) for key in of_version)


def _parse(payload: str) -> RunToken:
    try:
        values = json.loads(_decode(payload))
        subtrees = tuple(Subtree(**each) for each in values.get("subtrees", ()))
        lists = {name: tuple(values.get(name, ())) for name in ("tiers", "presenters")}
        return RunToken(**values | lists | {"subtrees": subtrees})
    except (binascii.Error, ValueError, TypeError, KeyError, AttributeError):
        raise UnauthenticatedError("malformed", "the run token's payload is damaged") from None


def _encode(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _decode(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
