"""How an endpoint is recognised and how the gateway proves itself to it: certificates from files.

A value with the digest of what the files hold, so that a certificate that was renewed in its place
is noticed.
"""

from __future__ import annotations

import dataclasses
import hashlib
import ssl
from pathlib import Path

from common.config import ConfigError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tls:
    """The files of one endpoint."""

    ca_file: Path | None = None
    """Certificates that the endpoint's must be signed by; None for those of the system."""
    client_cert_file: Path | None = None
    """What the gateway shows; may hold its private key too."""
    client_key_file: Path | None = None
    """Its private key, unencrypted."""
    is_verified: bool = True
    """False takes any certificate."""
    digest: str = ""
    """Of the files, as they were read."""

    def read(self) -> Tls:
        """Return it with the digest of the present files; raises ConfigError where one is bad."""
        paths = (self.ca_file, self.client_cert_file, self.client_key_file)
        digest = hashlib.sha256()
        for path in paths:
            if path is not None:
                try:
                    digest.update(hashlib.sha256(path.read_bytes()).digest())
                except OSError as error:
                    raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
        if digest.hexdigest() == self.digest:
            return self
        self.context()
        return dataclasses.replace(self, digest=digest.hexdigest())

    def context(self) -> ssl.SSLContext:
        """Return what connections are made with; raises ConfigError where a file is bad."""
        try:
            context = ssl.create_default_context(cafile=self.ca_file)
        except (OSError, ssl.SSLError) as error:
            raise ConfigError(f"{self.ca_file}: holds no certificate in PEM form") from error
        if self.client_cert_file is not None:
            try:
                # An encrypted key would have the process ask its terminal for the password.
                context.load_cert_chain(
                    self.client_cert_file, self.client_key_file, password=lambda: ""
                )
            except (OSError, ssl.SSLError) as error:
                raise ConfigError(
                    f"{self.client_cert_file}: holds no certificate in PEM form, or its "
                    "unencrypted private key is missing"
                ) from error
        if not self.is_verified:
            context.check_hostname = False
            context.verify_mode = ssl.CERT_NONE
        return context
