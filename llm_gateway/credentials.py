"""Credentials that stand in files: read at start, and again while the gateway runs, so that a key
that was changed in its place is used without a restart.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from common.config import ConfigError, Secret
from llm_gateway.catalog import Catalog, Provider


def read_key(path: Path) -> Secret:
    """Return the key that a file holds; raises ConfigError."""
    try:
        key = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read") from error
    if not key:
        raise ConfigError(f"{path}: is empty; put the key into it")
    if not is_header_value(key):
        raise ConfigError(
            f"{path}: holds more than one line, or what no key has; put the key alone into it"
        )
    return Secret(key)


def is_header_value(text: str) -> bool:
    """Whether a text can be sent in a header: else each request with it would fail."""
    return text.isascii() and text.isprintable()


def refreshed(catalog: Catalog) -> Catalog:
    """Return the catalog with what the files hold now, or the same one where nothing changed.

    Raises ConfigError where a file cannot be read.
    """
    providers = {d.provider.name: d.provider for d in catalog.deployments.values()}
    changed = {
        name: fresh
        for name, provider in providers.items()
        if (fresh := _refreshed(provider)) != provider
    }
    if not changed:
        return catalog
    deployments = {
        name: dataclasses.replace(d, provider=changed.get(d.provider.name, d.provider))
        for name, d in catalog.deployments.items()
    }
    return dataclasses.replace(catalog, deployments=deployments)


def _refreshed(provider: Provider) -> Provider:
    file = provider.api_key_file
    return dataclasses.replace(
        provider,
        api_key=provider.api_key if file is None else read_key(file),
        tls=None if provider.tls is None else provider.tls.read(),
    )
