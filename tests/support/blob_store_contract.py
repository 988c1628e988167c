"""What every kind of blob store does, whichever keeps the bytes."""

from __future__ import annotations

import asyncio
import secrets

import pytest

from orchestrator.blobs import READ_BYTES, BlobMissingError, BlobStore

LARGE = secrets.token_bytes(1 << 20) * 40
"""More than two parts of a blob in parts."""


async def read(store: BlobStore, key: str, *, offset: int = 0, size: int = 1 << 30) -> bytes:
    """Return a range of a blob."""
    return b"".join([piece async for piece in store.read(key, offset=offset, size=size)])


async def written(store: BlobStore, key: str, *pieces: bytes) -> None:
    """Write a blob."""
    writer = await asyncio.to_thread(store.begin, key)
    for piece in pieces:
        await asyncio.to_thread(writer.write, piece)
    await asyncio.to_thread(writer.commit)
    writer.close()


class BlobStoreContract:
    """Subclasses give the fixture `store`."""

    async def test_a_blob_is_what_was_written(self, store: BlobStore) -> None:
        await written(store, "blobs/x/y", b"ab", b"cd")

        assert await read(store, "blobs/x/y") == b"abcd"

    async def test_an_empty_blob_is_there(self, store: BlobStore) -> None:
        await written(store, "blobs/empty")

        assert await read(store, "blobs/empty") == b""

    @pytest.mark.parametrize(
        ("offset", "size"),
        [(0, 10), (3, 5), ((16 << 20) - 2, 4), ((32 << 20) - 1, 8 << 20), (len(LARGE) - 3, 99)],
    )
    async def test_ranges_are_read_across_parts(
        self, store: BlobStore, offset: int, size: int
    ) -> None:
        await written(store, "blobs/large", LARGE)

        pieces = [piece async for piece in store.read("blobs/large", offset=offset, size=size)]

        assert b"".join(pieces) == LARGE[offset : offset + size]
        assert max(map(len, pieces)) <= READ_BYTES

    async def test_behind_the_end_there_is_nothing(self, store: BlobStore) -> None:
        await written(store, "blobs/x", b"abc")

        assert await read(store, "blobs/x", offset=3) == b""
        assert await read(store, "blobs/x", offset=20 << 20) == b""

    async def test_a_blob_that_is_not_there_is_missing(self, store: BlobStore) -> None:
        """Also in the middle of a read: it must not look like the end."""
        for offset in (0, 20 << 20):
            with pytest.raises(BlobMissingError):
                await read(store, "blobs/none", offset=offset)

    async def test_a_small_blob_is_put_and_replaced(self, store: BlobStore) -> None:
        await store.put("outputs/a", b"one")
        await store.put("outputs/a", b"three")

        assert await read(store, "outputs/a", offset=2, size=2) == b"re"

    @pytest.mark.parametrize("size", [0, 5, 16 << 20, (16 << 20) + 1, 33 << 20])
    async def test_a_suspended_blob_is_gone_on_with(self, store: BlobStore, size: int) -> None:
        """All that was written is kept, and nothing of what is behind it."""
        writer = await asyncio.to_thread(store.begin, "blobs/x")
        await asyncio.to_thread(writer.write, LARGE[:size])
        kept = await asyncio.to_thread(writer.suspend)
        writer.close()

        again = await asyncio.to_thread(store.begin, "blobs/x", kept)
        seen = await asyncio.to_thread(lambda: b"".join(store.read_partial("blobs/x", kept)))
        await asyncio.to_thread(again.write, LARGE[size:])
        await asyncio.to_thread(again.commit)
        again.close()

        assert kept == size
        assert seen == LARGE[:size]
        assert await read(store, "blobs/x") == LARGE

    async def test_what_was_synced_outlasts_its_writer(self, store: BlobStore) -> None:
        """As after a killed process: nothing was said at the end."""
        writer = await asyncio.to_thread(store.begin, "blobs/x")
        await asyncio.to_thread(writer.write, LARGE)
        kept = await asyncio.to_thread(writer.sync)
        writer.close()

        again = await asyncio.to_thread(store.begin, "blobs/x", kept)
        await asyncio.to_thread(again.write, LARGE[kept:])
        await asyncio.to_thread(again.commit)
        again.close()

        assert kept >= 32 << 20
        assert await read(store, "blobs/x") == LARGE

    async def test_less_than_was_kept_is_missing(self, store: BlobStore) -> None:
        writer = await asyncio.to_thread(store.begin, "blobs/x")
        await asyncio.to_thread(writer.write, b"abc")
        await asyncio.to_thread(writer.suspend)
        writer.close()

        for key, kept in (("blobs/x", 4), ("blobs/none", 1), ("blobs/x", 17 << 20)):
            with pytest.raises(BlobMissingError):
                await asyncio.to_thread(store.begin, key, kept)

    async def test_a_deleted_blob_is_gone_whole_or_partly_written(self, store: BlobStore) -> None:
        await written(store, "blobs/whole", LARGE)
        writer = await asyncio.to_thread(store.begin, "blobs/partial")
        await asyncio.to_thread(writer.write, LARGE)
        await asyncio.to_thread(writer.suspend)
        writer.close()

        for key in ("blobs/whole", "blobs/partial", "blobs/none"):
            await store.delete(key)

        with pytest.raises(BlobMissingError):
            await read(store, "blobs/whole")
        with pytest.raises(BlobMissingError):
            await asyncio.to_thread(store.begin, "blobs/partial", len(LARGE))

    async def test_deleting_spares_a_longer_key(self, store: BlobStore) -> None:
        await written(store, "blobs/x", b"one")
        await written(store, "blobs/xy", b"two")

        await store.delete("blobs/x")

        assert await read(store, "blobs/xy") == b"two"
