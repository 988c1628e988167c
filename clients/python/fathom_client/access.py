"""What a caller shows to an orchestrator, and whom it trusts: an API key, and certificates.

Where they come from, such as the environment, is the caller's part.
"""

from __future__ import annotations

import re
import ssl
from dataclasses import dataclass
from pathlib import Path

import grpc

from fathom_client.errors import FathomError

_KEY = re.compile(r"[!-~]*")
"""What an API key may be made of: gRPC sends nothing else as text."""


class AccessError(FathomError):
    """What is to be shown to a server, or trusted, cannot be used."""


class ApiKeyError(AccessError):
    """The API key has characters that cannot be sent."""


class TlsFilesError(AccessError):
    """A file with certificates or a key cannot be used; the message names it."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """How an orchestrator is called."""

    api_key: str = ""
    """Brought with each call; empty for a server that does not tell its callers apart."""
    tls_ca_file: Path | None = None
    """Certificates that the server's must be signed by; None for the authorities that gRPC
    trusts by itself."""
    tls_certificate_file: Path | None = None
    """The caller's own certificate, for a server that asks for one; None for none."""
    tls_key_file: Path | None = None
    """That certificate's private key, unencrypted."""

    @property
    def has_tls_files(self) -> bool:
        """True where any of the files is named."""
        return any((self.tls_ca_file, self.tls_certificate_file, self.tls_key_file))

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """Return the metadata that carries the API key; none without one. Raises ApiKeyError."""
        if not _KEY.fullmatch(self.api_key):
            raise ApiKeyError("the API key has spaces, line feeds or characters beyond ASCII")
        return (("authorization", f"Bearer {self.api_key}"),) if self.api_key else ()

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """Return what a TLS channel trusts and shows; raises TlsFilesError."""
        certificate, key = self.tls_certificate_file, self.tls_key_file
        if (certificate is None) != (key is None):
            named = f"{certificate or key}"
            missing = "private key" if key is None else "certificate"
            raise TlsFilesError(f"{named}: is of no use without the {missing} that belongs to it")
        authority = None if self.tls_ca_file is None else _authority(self.tls_ca_file)
        if certificate is None or key is None:
            return grpc.ssl_channel_credentials(authority)
        _check_pair(certificate, key)
        return grpc.ssl_channel_credentials(authority, _read(key), _read(certificate))


def _authority(path: Path) -> bytes:
    pem = _read(path)
    try:
        ssl.create_default_context(cadata=pem.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise TlsFilesError(f"{path}: holds no certificate in PEM form") from error
    return pem


def _check_pair(certificate: Path, key: Path) -> None:
    """Raise TlsFilesError where the two are no pair: gRPC would fail without saying why."""
    _read(certificate), _read(key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    try:
        # An encrypted key would have Python ask the terminal for the password.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ssl.SSLError) as error:
        raise TlsFilesError(
            f"{certificate} and {key}: are no certificate and its unencrypted private key in PEM"
            " form"
        ) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise TlsFilesError(f"{path}: cannot be read: {error.strerror}") from error
