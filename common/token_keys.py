"""Keys that run tokens are signed and checked with: a secret that both sides share, or a pair of
which the checking side has the public half alone. Which one it is stands in the key's text.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from typing import Protocol

from common.config import ConfigError, Secret

SHARED_KEY_BYTES_MIN = 32
PRIVATE_PREFIX = "ed25519-private:"
PUBLIC_PREFIX = "ed25519-public:"
_ED25519_BYTES = 32


class TokenKey(Protocol):
    """One key."""

    @property
    def version(self) -> str:
        """The form of token that it is for: a token of one is never checked as the other."""

    @property
    def is_secret(self) -> bool:
        """Whether tokens can be signed with it."""

    def sign(self, data: bytes) -> bytes:
        """Return a signature; only where the key is secret."""

    def has_signed(self, data: bytes, signature: bytes) -> bool:
        """Whether a signature is of this key, or of its private half."""


def signing_key(secret: Secret) -> TokenKey:
    """Return the key to sign with; raises ConfigError as `token_key` and for a public one."""
    key = token_key(secret)
    if not key.is_secret:
        raise ConfigError("run_token_key: is a public key, which signs nothing")
    return key


def checking_key(secret: Secret) -> TokenKey:
    """Return the key to check with; raises ConfigError as `token_key` and for a private one, which
    has no place where tokens are only checked."""
    if secret.reveal().startswith(PRIVATE_PREFIX):
        raise ConfigError("run_token_key: is a private key; give the public half of it")
    return token_key(secret)


def token_key(secret: Secret) -> TokenKey:
    """Return the key in a text: `ed25519-private:` or `ed25519-public:` and 32 bytes in base64, or
    any other text of at least 32 bytes for HMAC-SHA256. Raises ConfigError."""
    text = secret.reveal()
    if text.startswith(PRIVATE_PREFIX):
        return _Ed25519Key(_raw(text.removeprefix(PRIVATE_PREFIX)), is_secret=True)
    if text.startswith(PUBLIC_PREFIX):
        return _Ed25519Key(_raw(text.removeprefix(PUBLIC_PREFIX)), is_secret=False)
    if len(text.encode()) < SHARED_KEY_BYTES_MIN:
        raise ConfigError(f"run_token_key: needs at least {SHARED_KEY_BYTES_MIN} bytes")
    return _SharedKey(text.encode())


def public_half(secret: Secret) -> Secret:
    """Return what tokens of a signing key are checked with: itself where it is shared. Raises
    ConfigError."""
    text = secret.reveal()
    if not text.startswith(PRIVATE_PREFIX):
        return secret
    whole = _Ed25519Key(_raw(text.removeprefix(PRIVATE_PREFIX)), is_secret=True)
    return Secret(PUBLIC_PREFIX + _text(whole.public_bytes))


def new_key_pair() -> tuple[str, str]:
    """Return the texts of a new private key and of its public half."""
    seed = secrets.token_bytes(_ED25519_BYTES)
    public = _Ed25519Key(seed, is_secret=True).public_bytes
    return PRIVATE_PREFIX + _text(seed), PUBLIC_PREFIX + _text(public)


class _SharedKey:
    """HMAC-SHA256."""

    version = "v1"
    is_secret = True

    def __init__(self, key: bytes) -> None:
        self._key = key

    def sign(self, data: bytes) -> bytes:
        return hmac.new(self._key, data, hashlib.sha256).digest()

    def has_signed(self, data: bytes, signature: bytes) -> bool:
        return hmac.compare_digest(self.sign(data), signature)


class _Ed25519Key:
    """Ed25519, whole or the public half of it."""

    version = "v2"

    def __init__(self, raw: bytes, *, is_secret: bool) -> None:
        # Here, because services that only carry tokens do without the library.
        from cryptography.exceptions import InvalidSignature
        from cryptography.hazmat.primitives.asymmetric import ed25519

        self._invalid = InvalidSignature
        self._private = ed25519.Ed25519PrivateKey.from_private_bytes(raw) if is_secret else None
        self._public = (
            self._private.public_key()
            if self._private
            else ed25519.Ed25519PublicKey.from_public_bytes(raw)
        )

    @property
    def is_secret(self) -> bool:
        return self._private is not None

    @property
    def public_bytes(self) -> bytes:
        return self._public.public_bytes_raw()

    def sign(self, data: bytes) -> bytes:
        assert self._private is not None
        return self._private.sign(data)

    def has_signed(self, data: bytes, signature: bytes) -> bool:
        try:
            self._public.verify(signature, data)
        except self._invalid:
            return False
        return True


def _raw(text: str) -> bytes:
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raw = b""
    if len(raw) != _ED25519_BYTES:
        raise ConfigError(f"run_token_key: needs {_ED25519_BYTES} bytes in base64 after its prefix")
    return raw


def _text(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def main() -> None:
    """Print a new pair: the first line is for the orchestrator, the second for the gateway."""
    print("\n".join(new_key_pair()))


if __name__ == "__main__":
    main()
