"""TLS between services: what a server shows and asks for, and what a channel shows and trusts.

A server takes over a certificate that is renewed in its place at the next handshake. Connections
to providers have their own settings; see the gateway's.
"""

from __future__ import annotations

import hashlib
import logging
import ssl
from collections.abc import Sequence
from pathlib import Path

import grpc

from common.config import ConfigError, ServerConfig

_log = logging.getLogger(__name__)


def server_credentials(config: ServerConfig) -> grpc.ServerCredentials | None:
    """Return what a server shows and asks for; None where it speaks plaintext.

    Raises ConfigError for files that are none.
    """
    if config.tls_certificate_file is None or config.tls_key_file is None:
        return None
    files = _ServerFiles(
        config.tls_certificate_file, config.tls_key_file, config.tls_client_ca_file
    )
    return grpc.dynamic_ssl_server_credentials(
        files.read(),
        files.changed,  # type: ignore[arg-type]  # None is for no change, which the stubs leave out
        require_client_authentication=config.tls_client_ca_file is not None,
    )


def channel_credentials(config: ServerConfig) -> grpc.ChannelCredentials | None:
    """Return what channels to other services show and trust; None where they speak plaintext.

    Raises ConfigError for files that are none.
    """
    if config.tls_ca_file is None:
        return None
    shown = (config.tls_certificate_file, config.tls_key_file)
    return credentials_from_files(config.tls_ca_file, *shown)


def credentials_from_files(
    ca: Path, certificate: Path | None = None, key: Path | None = None
) -> grpc.ChannelCredentials:
    """Return what a channel trusts and, with the other two, shows; raises ConfigError."""
    if certificate is None or key is None:
        return grpc.ssl_channel_credentials(_authority(ca))
    _check_pair(certificate, key)
    return grpc.ssl_channel_credentials(_authority(ca), _read(key), _read(certificate))


class _ServerFiles:
    """A server's files, and whether they have changed since they were read."""

    def __init__(self, certificate: Path, key: Path, client_ca: Path | None) -> None:
        self._certificate = certificate
        self._key = key
        self._client_ca = client_ca
        self._digest = b""

    def read(self) -> grpc.ServerCertificateConfiguration:
        """Return what they hold; raises ConfigError."""
        _check_pair(self._certificate, self._key)
        pair = _read(self._key), _read(self._certificate)
        authority = None if self._client_ca is None else _authority(self._client_ca)
        self._digest = _digest_of((*pair, authority or b""))
        return grpc.ssl_server_certificate_configuration([pair], authority)

    def changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return what they hold where that is something else than before, for one handshake after
        the other; files that are not good leave those before in use."""
        before = self._digest
        try:
            now = self.read()
        except ConfigError as error:
            _log.error("changed TLS files are not taken over: %s", error)
            return None
        return now if self._digest != before else None


def _authority(path: Path) -> bytes:
    pem = _read(path)
    try:
        ssl.create_default_context(cadata=pem.decode("ascii"))
    except (ssl.SSLError, ValueError) as error:
        raise ConfigError(f"{path}: holds no certificate in PEM form") from error
    return pem


def _check_pair(certificate: Path, key: Path) -> None:
    """Raise ConfigError where the two are no pair: gRPC itself would serve nobody and not say."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        # An encrypted key would have the process ask its terminal for the password.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(
            f"{certificate} and {key}: are no certificate and its unencrypted private key in PEM "
            "form"
        ) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def _digest_of(parts: Sequence[bytes]) -> bytes:
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).digest()
