"""Images: what is saved comes back, and nothing else, with and without the kernel's page map."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sandbox_service.guest_memory import GuestMemory, GuestMemoryError
from sandbox_service.sparse_files import PAGE_BYTES, extents
from sandbox_service.worker import image as module
from sandbox_service.worker.image import ChangeFinder, SessionImage, WarmImage

WARM_PAGES = 256
PAGES_MAX = 512


class Memory(GuestMemory):
    """Memory of a guest that is not there: zero pages, as in a fresh instance."""

    def __init__(self, pages: int = WARM_PAGES) -> None:
        self._region = mmap.mmap(-1, PAGES_MAX * PAGE_BYTES, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self._region))
        self.size_bytes = pages * PAGE_BYTES

    def refresh(self) -> None:
        pass

    def grow_to(self, size_bytes: int) -> None:
        if size_bytes > PAGES_MAX * PAGE_BYTES:
            raise GuestMemoryError("too large")
        self.size_bytes = max(self.size_bytes, size_bytes)

    def fill_page(self, page: int, byte: bytes) -> None:
        self.write(page * PAGE_BYTES, byte * PAGE_BYTES)

    def pages(self) -> list[bytes]:
        """One byte of each page; a page that is not uniform gives two."""
        return [
            bytes(sorted(set(self.read(i * PAGE_BYTES, PAGE_BYTES))))
            for i in range(self.size_bytes // PAGE_BYTES)
        ]


@pytest.fixture
def warm(tmp_path: Path) -> WarmImage:
    """Pages of ones, the first ten empty."""
    memory = Memory()
    for page in range(10, WARM_PAGES):
        memory.fill_page(page, b"\1")
    path = tmp_path / "warm"
    WarmImage.write(path, memory)
    return WarmImage(path)


@pytest.fixture(params=["page map", "comparison"])
def image(
    request: pytest.FixtureRequest, warm: WarmImage, tmp_path: Path
) -> Iterator[SessionImage]:
    """An image that finds changes in one way or the other."""
    path = "/proc/self/pagemap" if request.param == "page map" else str(tmp_path / "none")
    image = SessionImage(warm, ChangeFinder(path), [], layer())
    yield image
    image.close()


def layer() -> int:
    """An empty layer, as the supervisor makes one."""
    return os.memfd_create("layer")


def fresh(image: SessionImage) -> Memory:
    memory = Memory()
    image.attach(memory)
    return memory


def test_a_warm_image_has_holes_for_empty_pages(warm: WarmImage, tmp_path: Path) -> None:
    status = (tmp_path / "warm").stat()

    assert status.st_size == WARM_PAGES * PAGE_BYTES
    assert status.st_blocks * 512 <= (WARM_PAGES - 10) * PAGE_BYTES


def test_a_session_begins_as_the_warm_image(image: SessionImage) -> None:
    assert fresh(image).pages() == [b"\0"] * 10 + [b"\1"] * (WARM_PAGES - 10)


def test_what_is_written_is_private(image: SessionImage) -> None:
    """Sessions share pages until they write to them."""
    one, other = fresh(image), fresh(image)

    one.fill_page(20, b"\7")

    assert other.pages()[20] == b"\1"


@pytest.mark.parametrize("run", [range(20, 21), range(3), range(250, 256), range(50, 200)])
def test_saved_pages_come_back(image: SessionImage, run: range) -> None:
    """Short runs and those long enough to be mapped back, at the borders too."""
    memory = fresh(image)
    expected = memory.pages()
    for page in run:
        memory.fill_page(page, b"\5")
        expected[page] = b"\5"

    image.save(memory)

    assert memory.pages() == expected
    assert fresh(image).pages() == expected


def test_what_was_not_saved_is_gone(image: SessionImage) -> None:
    """The state before the cell."""
    memory = fresh(image)
    memory.fill_page(20, b"\5")
    image.save(memory)
    for page in (20, 21, *range(60, 180)):
        memory.fill_page(page, b"\6")

    back = fresh(image).pages()

    assert (back[20], back[21], back[100]) == (b"\5", b"\1", b"\1")


def test_later_saves_add_to_earlier_ones(image: SessionImage) -> None:
    memory = fresh(image)
    for round_number in range(1, 6):
        memory.fill_page(round_number * 10, bytes([round_number]))
        memory.fill_page(200, bytes([round_number]))
        for page in range(100, 180):
            memory.fill_page(page, bytes([round_number]))
        image.save(memory)

    back = fresh(image).pages()

    assert [back[n * 10][0] for n in range(1, 6)] == [1, 2, 3, 4, 5]
    assert (back[200], back[100], back[179]) == (b"\5", b"\5", b"\5")


def test_a_page_that_becomes_empty_again_comes_back_empty(image: SessionImage) -> None:
    memory = fresh(image)
    memory.fill_page(20, b"\5")
    image.save(memory)
    memory.fill_page(20, b"\0")
    image.save(memory)

    assert fresh(image).pages()[20] == b"\0"


def test_memory_that_grew_comes_back(image: SessionImage) -> None:
    memory = fresh(image)
    memory.grow_to(400 * PAGE_BYTES)
    memory.fill_page(399, b"\5")
    image.save(memory)

    back = fresh(image)

    assert back.size_bytes == 400 * PAGE_BYTES
    assert back.pages()[WARM_PAGES:] == [b"\0"] * (399 - WARM_PAGES) + [b"\5"]


@pytest.mark.parametrize(
    ("start", "size"),
    [
        (PAGE_BYTES * 20, PAGE_BYTES * 5),
        (PAGE_BYTES * 20 + 17, PAGE_BYTES * 5),
        (PAGE_BYTES * 20 + 17, 100),
        (PAGE_BYTES * 20 + 4000, 200),
        (PAGE_BYTES * 20, 0),
        (PAGE_BYTES * 20 + 1, PAGE_BYTES - 1),
        (PAGE_BYTES * (WARM_PAGES - 2) + 9, PAGE_BYTES * 2 - 9),
    ],
)
@pytest.mark.parametrize("piece_bytes", [1000, PAGE_BYTES, 1 << 20])
@pytest.mark.parametrize("mapped_from_bytes", [1, 1 << 20])
def test_filled_data_is_there_and_comes_back(
    image: SessionImage,
    start: int,
    size: int,
    piece_bytes: int,
    mapped_from_bytes: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Mapped or copied, and whatever the borders of data, pages and pieces are."""
    monkeypatch.setattr("sandbox_service.worker.image._FILL_BYTES_MIN", mapped_from_bytes)
    memory = fresh(image)
    data = bytes(i % 251 for i in range(size))
    before, after = memory.read(start - 64, 64), memory.read(start + size, 0)

    pieces = [data[i : i + piece_bytes] for i in range(0, size, piece_bytes)]
    image.fill(memory, start, size, pieces)
    assert memory.read(start, size) == data
    assert memory.read(start - 64, 64) == before
    assert memory.read(start + size, 0) == after
    image.save(memory)

    assert fresh(image).read(start, size) == data


def test_filled_data_may_be_overwritten_later(
    image: SessionImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Memory of a deleted text is used for something else."""
    monkeypatch.setattr("sandbox_service.worker.image._FILL_BYTES_MIN", PAGE_BYTES)
    memory = fresh(image)
    size = 100 * PAGE_BYTES
    image.fill(memory, 20 * PAGE_BYTES, size, [b"\3" * size])
    image.save(memory)
    for page in range(50, 60):
        memory.fill_page(page, b"\4")
    image.save(memory)

    back = fresh(image).pages()

    assert (back[49], back[50], back[59], back[60]) == (b"\3", b"\4", b"\4", b"\3")


@pytest.mark.parametrize("size", [99, 101])
def test_data_of_another_size_than_announced_is_an_error(image: SessionImage, size: int) -> None:
    with pytest.raises(ValueError, match="announced"):
        image.fill(fresh(image), 20 * PAGE_BYTES, size, [b"x" * 50, b"x" * 50])


def test_data_outside_of_memory_is_an_error(image: SessionImage) -> None:
    """The address comes from the guest."""
    with pytest.raises(GuestMemoryError):
        image.fill(fresh(image), (WARM_PAGES - 1) * PAGE_BYTES, PAGE_BYTES + 1, [b""])


def test_a_page_map_that_tells_nothing_is_not_used(tmp_path: Path) -> None:
    """Some sandboxes have the file and leave it empty, or all zero."""
    for content in (b"", bytes(1 << 16)):
        path = tmp_path / "pagemap"
        path.write_bytes(content)
        memory = Memory()
        memory.fill_page(3, b"x")

        changes = ChangeFinder(str(path)).find(memory, lambda _, size: bytes(size))

        assert list(changes) == [(3 * PAGE_BYTES, 4 * PAGE_BYTES)]


def test_changes_after_a_layer_is_finished_go_to_the_next(
    warm: WarmImage, image: SessionImage
) -> None:
    """What a fork shares is never written again."""
    finished, top = layer(), layer()
    image.relayer(memory := fresh(image), [finished], top)
    for page in (20, *range(60, 180)):
        memory.fill_page(page, b"\5")
    image.save(memory)

    assert not list(extents(finished))
    assert [(low // PAGE_BYTES, high // PAGE_BYTES) for low, high in extents(top)] == [
        (20, 21),
        (60, 180),
    ]


def test_layers_are_laid_over_one_another(warm: WarmImage, tmp_path: Path) -> None:
    """The topmost version of a page counts, however long the runs are that it is in."""
    below, middle, top = layer(), layer(), layer()
    for fd, pages, byte in (
        (below, range(20, 220), b"\2"),
        (middle, range(100, 130), b"\3"),
        (middle, range(200, 230), b"\3"),
        (top, range(110, 111), b"\4"),
    ):
        os.ftruncate(fd, WARM_PAGES * PAGE_BYTES)
        os.pwrite(fd, byte * (len(pages) * PAGE_BYTES), pages.start * PAGE_BYTES)
    expected = [b"\0"] * 10 + [b"\1"] * 10 + [b"\2"] * 200 + [b"\1"] * (WARM_PAGES - 220)
    expected[100:130] = [b"\3"] * 30
    expected[200:230] = [b"\3"] * 30
    expected[110] = b"\4"
    for path in ("/proc/self/pagemap", str(tmp_path / "none")):
        fds = [os.dup(fd) for fd in (below, middle, top)]
        image = SessionImage(warm, ChangeFinder(path), fds[:2], fds[2])

        memory = fresh(image)
        assert memory.pages() == expected
        image.save(memory)
        assert fresh(image).pages() == expected
        image.close()


def test_merged_layers_take_the_place_of_many(image: SessionImage) -> None:
    """Nothing changes in memory, at once or after the next stop."""
    memory = fresh(image)
    for page in (20, *range(60, 180)):
        memory.fill_page(page, b"\5")
    image.save(memory)
    expected = memory.pages()
    merged = layer()
    os.ftruncate(merged, WARM_PAGES * PAGE_BYTES)
    for first, last in ((20, 21), (60, 180)):
        os.pwrite(merged, b"\5" * ((last - first) * PAGE_BYTES), first * PAGE_BYTES)
    image.relayer(memory, [layer()], layer())

    image.relayer(memory, [merged], layer())

    assert memory.pages() == expected
    memory.fill_page(61, b"\6")
    image.save(memory)
    assert fresh(image).pages()[60:62] == [b"\5", b"\6"]


def test_a_layer_larger_than_the_memory_may_be_is_refused(warm: WarmImage) -> None:
    """Its size comes from whoever wrote it last."""
    top = layer()
    os.ftruncate(top, (PAGES_MAX + 1) * PAGE_BYTES)
    image = SessionImage(warm, ChangeFinder(), [], top)

    with pytest.raises(GuestMemoryError):
        fresh(image)
    image.close()


def test_a_process_without_room_for_mappings_keeps_copies(
    image: SessionImage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One session whose memory needs many mappings must not end its neighbours."""
    memory = fresh(image)
    map_file = module._map
    monkeypatch.setattr("sandbox_service.worker.image._FILL_BYTES_MIN", PAGE_BYTES)
    monkeypatch.setattr(
        "sandbox_service.worker.image._map",
        lambda memory, start, size, fd: start == 0 and map_file(memory, start, size, fd),
    )
    for page in range(60, 180):
        memory.fill_page(page, b"\5")
    image.save(memory)
    image.fill(memory, 200 * PAGE_BYTES, 20 * PAGE_BYTES, [b"\6" * (20 * PAGE_BYTES)])
    image.save(memory)

    for each in (memory, fresh(image)):
        pages = each.pages()
        assert (pages[60], pages[179], pages[200], pages[219]) == (b"\5", b"\5", b"\6", b"\6")
