"""Reads one `[providers.NAME]` table of the configuration file: where an endpoint is, how it is
reached, and where its credential is to be found.
"""

from __future__ import annotations

import logging
import re
import urllib.parse
from collections.abc import Mapping
from pathlib import Path

from common.config import ConfigError, Secret
from common.toml_table import Table
from llm_gateway.catalog import Provider
from llm_gateway.credentials import is_header_value, read_key
from llm_gateway.tls import Tls

_log = logging.getLogger(__name__)
_OUTPUT_LIMIT_FIELDS = ("max_tokens", "max_completion_tokens")
_SECRET_HEADERS = {"authorization", "api-key", "x-api-key", "x-goog-api-key"}
_HEADER = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]+")
_TIMEOUT_S = 120.0


class ProviderTables:
    """What reading a provider's table needs besides the table."""

    def __init__(self, environ: Mapping[str, str], secrets_dir: Path) -> None:
        """Relative names of files are under `secrets_dir`."""
        self._environ = environ
        self._secrets_dir = secrets_dir

    def read(self, name: str, table: Table) -> Provider:
        """Return what a table says; raises ConfigError."""
        base_url = table.text("base_url")
        url = _url(base_url)
        if url is None or url.scheme not in {"http", "https"}:
            table.fail("base_url", "must be an http or https URL such as https://host/v1")
        if url.username or url.password or url.query or url.fragment:
            table.fail("base_url", "must hold no credential, query or fragment; use api_key_env")
        headers = table.texts_by_name("headers")
        for header, value in headers.items():
            if header.lower() in _SECRET_HEADERS:
                table.fail("headers", f"{header} would put a key in this file; use api_key_env")
            if not _HEADER.fullmatch(header) or not is_header_value(value):
                table.fail("headers", f"{header!r} or its value cannot stand in a header")
        hosted_by_openai = (url.hostname or "").endswith((".openai.com", ".openai.azure.com"))
        api_key, api_key_file = self._api_key(table)
        provider = Provider(
            name=name,
            base_url=base_url.rstrip("/"),
            api_key=api_key,
            api_key_file=api_key_file,
            headers=headers,
            proxy=self._proxy(table),
            tls=self._tls(table, is_used=url.scheme == "https"),
            timeout_s=table.seconds("timeout_s", _TIMEOUT_S),
            output_limit_field=table.choice(
                "output_limit_field", _OUTPUT_LIMIT_FIELDS, _OUTPUT_LIMIT_FIELDS[hosted_by_openai]
            ),
        )
        table.end()
        return provider

    def _api_key(self, table: Table) -> tuple[Secret | None, Path | None]:
        variable, file = table.text("api_key_env", ""), self._file(table, "api_key_file")
        if variable and file:
            table.fail("api_key_file", "cannot stand beside api_key_env; keep one of them")
        if variable:
            return self._from_environment(table, "api_key_env", variable), None
        if file is None:
            return None, None
        try:
            return read_key(file), file
        except ConfigError as error:
            table.fail("api_key_file", str(error))

    def _proxy(self, table: Table) -> Secret | None:
        proxy, variable = table.text("proxy", ""), table.text("proxy_env", "")
        if proxy and variable:
            table.fail("proxy_env", "cannot stand beside proxy; keep one of them")
        if variable:
            secret = self._from_environment(table, "proxy_env", variable)
            key, url = "proxy_env", _url(secret.reveal())
        elif proxy:
            key, secret, url = "proxy", Secret(proxy), _url(proxy)
            if url is not None and (url.username or url.password):
                table.fail("proxy", "must hold no credential; use proxy_env")
        else:
            return None
        if url is None or url.scheme != "http":
            table.fail(key, "must be an http URL such as http://proxy:3128")
        return secret

    def _tls(self, table: Table, *, is_used: bool) -> Tls | None:
        tls = Tls(
            ca_file=self._file(table, "tls_ca_file"),
            client_cert_file=self._file(table, "tls_client_cert_file"),
            client_key_file=self._file(table, "tls_client_key_file"),
            is_verified=table.flag("tls_verify", True),
        )
        if tls == Tls():
            return None
        if not is_used:
            table.fail("base_url", "must begin with https:// where tls_ keys are given")
        if tls.client_key_file and not tls.client_cert_file:
            table.fail("tls_client_key_file", "needs tls_client_cert_file beside it")
        if not tls.is_verified:
            _log.warning("tls_verify is off: anybody on the way can read prompts and the key")
        try:
            return tls.read()
        except ConfigError as error:
            table.fail("", f"tls: {error}")

    def _file(self, table: Table, key: str) -> Path | None:
        name = table.text(key, "")
        return self._secrets_dir / name if name else None

    def _from_environment(self, table: Table, key: str, variable: str) -> Secret:
        value = self._environ.get(variable)
        if not value:
            table.fail(key, f"the environment variable {variable} is not set")
        if not is_header_value(value):
            table.fail(key, f"the environment variable {variable} cannot stand in a header")
        return Secret(value)


def _url(text: str) -> urllib.parse.SplitResult | None:
    """Return the parts of a URL with a host; None for what nothing can be connected to."""
    try:
        url = urllib.parse.urlsplit(text)
        (url.hostname or "").encode("idna")  # as it is when it is looked up
        is_whole = bool(url.hostname) and (url.port is None or url.port > 0)
    except ValueError:
        return None
    return url if is_whole and text.isprintable() and " " not in text else None
