"""Blobs in an S3-compatible store, as numbered parts of equal size under their key: the form that
orchestrator and sandbox service share. Calls block.

Parts and not one object: a part that is stored stays so when its writer dies, whatever the store
thinks of unfinished uploads, and several can be read at once.
"""

from __future__ import annotations

import configparser
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Self
from urllib.parse import urlsplit

import obstore
from obstore.exceptions import BaseError
from obstore.store import S3Store

from common.config import ConfigError

if TYPE_CHECKING:
    from obstore.store import S3Config

PART_BYTES = 16 << 20
"""Size of each part but the last."""
_SCHEME = "s3"
_TIMEOUT = timedelta(seconds=30)
"""Of one request, its body included: what is never answered is given up."""
_CONNECT_TIMEOUT = timedelta(seconds=3)
_RETRY_TIMEOUT = timedelta(seconds=10)
_RETRIES = 3


class RemoteStoreError(Exception):
    """The store cannot be reached, or refuses; the message may name places."""


class PartMissingError(Exception):
    """There is no such part, or less of it."""


class PartedObjects:
    """Blobs under one prefix of a bucket."""

    def __init__(self, store: S3Store) -> None:
        self._store = store

    @classmethod
    def open(cls, location: str, *, endpoint: str, region: str, credentials: Path | None) -> Self:
        """Open `s3://bucket/prefix`; nothing is sent yet.

        Keys are the first section of a file as other S3 tools have it, or those that the
        environment gives (AWS_ACCESS_KEY_ID and others). Raises ConfigError.
        """
        parts = urlsplit(location)
        if parts.scheme != _SCHEME or not parts.netloc or parts.query or parts.fragment:
            raise ConfigError("object_store: must be a folder, or s3://bucket/prefix")
        prefix = parts.path.strip("/")
        return cls(
            open_bucket(
                parts.netloc, prefix, endpoint=endpoint, region=region, credentials=credentials
            )
        )

    def put(self, key: str, number: int, data: bytes | memoryview) -> None:
        """Store a part, in the place of one that is there; raises RemoteStoreError."""
        try:
            obstore.put(self._store, _path(key, number), bytes(data), use_multipart=False)
        except (BaseError, OSError) as error:
            raise RemoteStoreError(str(error)) from error

    def part(self, key: str, number: int) -> bytes:
        """Return a whole part; raises PartMissingError or RemoteStoreError."""
        try:
            return bytes(obstore.get(self._store, _path(key, number)).bytes())
        except FileNotFoundError:
            raise PartMissingError(key) from None
        except (BaseError, OSError) as error:
            raise RemoteStoreError(str(error)) from error

    def range(self, key: str, offset: int, size_bytes: int) -> bytes:
        """Return bytes from one part of a blob, at most `size_bytes`: fewer at the part's end.

        Raises PartMissingError where it has no byte there, or RemoteStoreError.
        """
        number, start = divmod(offset, PART_BYTES)
        end = min(start + size_bytes, PART_BYTES)
        try:
            return bytes(obstore.get_range(self._store, _path(key, number), start=start, end=end))
        except FileNotFoundError:
            raise PartMissingError(key) from None
        except (BaseError, OSError) as error:
            if self._part_size(key, number) <= start:
                raise PartMissingError(key) from error
            raise RemoteStoreError(str(error)) from error

    def size(self, key: str) -> int | None:
        """Return the size of a blob in bytes, None where it has no first part; raises
        RemoteStoreError."""
        sizes = dict(self._parts(key))
        return sum(sizes.values()) if 0 in sizes else None

    def keys(self, folder: str) -> Iterator[tuple[str, float]]:
        """Yield the keys of blobs under a folder of keys, each with the Unix time in seconds at
        which its last part was stored; raises RemoteStoreError."""
        newest: dict[str, float] = {}
        try:
            for page in obstore.list(self._store, folder):
                for found in page:
                    key, _, part = found["path"].rpartition("/")
                    if part.isdigit():
                        stored_at = found["last_modified"].timestamp()
                        newest[key] = max(newest.get(key, 0.0), stored_at)
        except (BaseError, OSError) as error:
            raise RemoteStoreError(str(error)) from error
        yield from newest.items()

    def delete(self, key: str) -> None:
        """Remove all parts of a blob, the first one first; raises RemoteStoreError."""
        paths = [_path(key, number) for number, _ in self._parts(key)]
        try:
            if paths:
                obstore.delete(self._store, paths)
        except FileNotFoundError:
            return
        except (BaseError, OSError) as error:
            raise RemoteStoreError(str(error)) from error

    def _parts(self, key: str) -> Iterator[tuple[int, int]]:
        """Yield number and size of a blob's parts."""
        try:
            for page in obstore.list(self._store, key):
                for found in page:
                    name = found["path"].rpartition("/")[2]
                    if name.isdigit():
                        yield int(name), found["size"]
        except (BaseError, OSError) as error:
            raise RemoteStoreError(str(error)) from error

    def _part_size(self, key: str, number: int) -> int:
        return dict(self._parts(key)).get(number, 0)


def open_bucket(
    bucket: str, prefix: str = "", *, endpoint: str, region: str, credentials: Path | None
) -> S3Store:
    """Open what is under a prefix of a bucket; nothing is sent yet. Raises ConfigError."""
    config: S3Config = {"region": region, "virtual_hosted_style_request": False}
    if endpoint:
        config["endpoint"] = endpoint
    if credentials is not None:
        config |= _credentials(credentials)
    try:
        return S3Store(
            bucket,
            prefix=prefix or None,
            config=config,
            client_options={
                "allow_http": endpoint.startswith("http://"),
                "timeout": _TIMEOUT,
                "connect_timeout": _CONNECT_TIMEOUT,
            },
            retry_config={"max_retries": _RETRIES, "retry_timeout": _RETRY_TIMEOUT},
        )
    except BaseError as error:
        raise ConfigError(f"object_store: {error}") from error


def is_remote(location: str) -> bool:
    """Tell whether a setting names a bucket, and no folder."""
    return location.startswith(f"{_SCHEME}://")


def _path(key: str, number: int) -> str:
    return f"{key}/{number:06}"


def _credentials(file: Path) -> S3Config:
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(file.read_text())
        section = parser[parser.sections()[0]]
    except (OSError, configparser.Error, UnicodeDecodeError, IndexError):
        # The library's own words would quote the file.
        raise ConfigError(f"object_store_credentials: {file} is no file of credentials") from None
    found: S3Config = {}
    try:
        found["access_key_id"] = section["aws_access_key_id"]
        found["secret_access_key"] = section["aws_secret_access_key"]
    except KeyError as error:
        raise ConfigError(f"object_store_credentials: {file} lacks {error}") from None
    if "aws_session_token" in section:
        found["session_token"] = section["aws_session_token"]
    return found
