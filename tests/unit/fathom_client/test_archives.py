"""Archives as inputs: members become documents, and what an archive claims is not believed."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from fathom.orchestrator.v1.context_pb2 import Context
from fathom.orchestrator.v1.context_service_pb2 import GetUploadResponse
from fathom_client import archives
from fathom_client.archives import Archive, ArchiveError
from fathom_client.inputs import Inputs, read_inputs
from fathom_client.uploads import _Messages

FILES = {"a/one.txt": b"one\n", "b.txt": b"two", "empty.txt": b""}


def make_zip(path: Path, files: dict[str, bytes] = FILES) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.mkdir("a folder")
        for name, data in files.items():
            archive.writestr(name, data)
    return path


def make_tar(path: Path, files: dict[str, bytes] = FILES) -> Path:
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return path


def sent(inputs: Inputs, bytes_kept: int = 0, documents_kept: int = 0) -> list[str | bytes]:
    """Names and bytes as they go out."""
    kept = GetUploadResponse(bytes_kept=bytes_kept, documents_kept=documents_kept)
    messages = _Messages(inputs.upload, "", kept, lambda _: None)
    found = [m.document.name or m.chunk.data for m in messages if not m.HasField("start")]
    assert messages.failure is None
    return found


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz", "x.tgz"])
def test_members_are_documents(tmp_path: Path, name: str) -> None:
    path = (make_zip if name.endswith("zip") else make_tar)(tmp_path / name)

    inputs = read_inputs([path])

    assert inputs.upload.kind == Context.KIND_DOCUMENTS
    assert sent(inputs) == [
        *(f"{name}/a/one.txt", b"one\n", f"{name}/b.txt", b"two", f"{name}/empty.txt"),
    ]
    assert inputs.describe() == "3 files, 7 B"


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
def test_an_upload_goes_on_within_a_member(tmp_path: Path, name: str) -> None:
    path = (make_zip if name.endswith("zip") else make_tar)(tmp_path / name)
    inputs = read_inputs([path])

    assert sent(inputs, 5, 2) == [b"wo", f"{name}/empty.txt"]


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("../up.txt", "unsafe"),
        ("a/../../up.txt", "unsafe"),
        ("/etc/x.txt", "unsafe"),
        ("..\\up.txt", "unsafe"),
        ("C:\\x.txt", "unsafe"),
        (".git/config", "hidden"),
        ("a/.env", "hidden"),
        ("__MACOSX/a.txt", "hidden"),
    ],
)
def test_names_that_lead_elsewhere_or_are_hidden_are_left_out(
    tmp_path: Path, name: str, why: str
) -> None:
    path = make_tar(tmp_path / "x.tar", {name: b"x", "good.txt": b"y"})

    inputs = read_inputs([path])

    assert [file.name for file in inputs.upload.files] == ["x.tar/good.txt"]
    assert [entry.why for entry in inputs.skipped] == [why]


def test_links_devices_and_binaries_are_left_out(tmp_path: Path) -> None:
    """A link could name a file of this machine, and then its text would be sent."""
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w") as archive:
        for name, kind in (("sym", tarfile.SYMTYPE), ("hard", tarfile.LNKTYPE)):
            link = tarfile.TarInfo(name)
            link.type, link.linkname = kind, "/etc/passwd"
            archive.addfile(link)
        pipe = tarfile.TarInfo("pipe")
        pipe.type = tarfile.FIFOTYPE
        archive.addfile(pipe)
        for name, data in (("bin", b"a\0b"), ("good", b"text")):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))

    inputs = read_inputs([path])

    assert [file.name for file in inputs.upload.files] == ["x.tar/good"]
    assert [entry.why for entry in inputs.skipped] == ["link", "link", "special", "binary"]


def test_a_link_in_a_zip_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = 0o120777 << 16
        archive.writestr(link, "/etc/passwd")
        archive.writestr("good.txt", b"text")

    inputs = read_inputs([path])

    assert [entry.why for entry in inputs.skipped] == ["link"]


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
def test_a_bomb_is_refused_before_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(archives, "EXPANDED_BYTES_MIN", 100_000)
    make = make_zip if name.endswith("zip") else make_tar
    path = make(tmp_path / name, {"bomb.txt": b"0" * 10_000_000})
    fair = make(tmp_path / f"fair-{name}", {"fair.txt": b"0" * 100_000})

    with pytest.raises(ArchiveError, match="unpack to far more"):
        read_inputs([path])

    assert len(read_inputs([fair]).upload.files) == 1


def test_an_archive_of_too_many_members_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders count: listing them takes memory too."""
    monkeypatch.setattr(archives, "MEMBERS_MAX", 4)
    good = make_zip(tmp_path / "good.zip")
    bad = make_zip(tmp_path / "bad.zip", {**FILES, "more.txt": b"x"})

    assert len(read_inputs([good]).upload.files) == 3
    with pytest.raises(ArchiveError, match="more than 4 members"):
        read_inputs([bad])


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tar.gz"])
def test_a_damaged_archive_is_an_error_of_its_own(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    make = make_zip if name.endswith("zip") else make_tar
    whole = make(path, {"a.txt": b"some text " * 1000}).read_bytes()
    path.write_bytes(whole[: len(whole) // 2])

    with pytest.raises(ArchiveError, match="cannot be read"):
        read_inputs([path])


def test_an_encrypted_member_is_left_out(tmp_path: Path) -> None:
    path = make_zip(tmp_path / "x.zip", {"secret.txt": b"x", "good.txt": b"y"})
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1) + 8] |= 1
    path.write_bytes(data)

    with Archive(path) as archive:
        assert [m.skipped for m in archive.members()] == ["encrypted", ""]


def test_an_archive_in_a_directory_is_not_opened(tmp_path: Path) -> None:
    """Only what a person names is."""
    make_zip(tmp_path / "x.zip")
    (tmp_path / "a.txt").write_text("text")

    inputs = read_inputs([tmp_path])

    assert [Path(file.name).name for file in inputs.upload.files] == ["a.txt"]
    assert [entry.why for entry in inputs.skipped] == ["binary"]


@pytest.mark.parametrize("name", ["x.zip", "x.tar", "x.tgz"])
def test_members_of_one_name_are_each_their_own(tmp_path: Path, name: str) -> None:
    """By its name alone, the last one would stand for all."""
    path = tmp_path / name
    if name.endswith("zip"):
        with zipfile.ZipFile(path, "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
            for data in (b"one", b"other"):
                archive.writestr("a.txt", data)
    else:
        with tarfile.open(path, "w:gz" if name.endswith("gz") else "w") as tar:
            for data in (b"one", b"other"):
                info = tarfile.TarInfo("a.txt")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))

    assert sent(read_inputs([path])) == [
        *(f"{name}/a.txt", b"one", f"{name}/a.txt#2", b"other"),
    ]


def test_a_header_that_unpacks_to_much_is_not_read(tmp_path: Path) -> None:
    """It would be held in memory as a whole, before any size of a member is known."""
    path = tmp_path / "x.tgz"
    header = tarfile.TarInfo("long")
    header.type, header.size = tarfile.GNUTYPE_LONGNAME, 64 << 20
    with gzip.open(path, "wb") as file:
        file.write(header.tobuf() + b"a" * header.size)

    tracemalloc.start()
    with pytest.raises(ArchiveError, match="header is too long"):
        read_inputs([path])
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak_bytes < 8 << 20


def test_a_sparse_file_is_left_out_with_its_map_unread(tmp_path: Path) -> None:
    """The map comes in blocks, as many as it claims: 100 KB of gzip held the reader up for minutes,
    and filled the memory."""
    path = tmp_path / "x.tgz"
    entry = tarfile.TarInfo("a.txt")
    entry.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
    entries = 4 << 20
    entry.size = 2 * entries
    header = entry.tobuf(format=tarfile.PAX_FORMAT)
    sparse_map = (b"%d\n" % entries + b"1\n" * entries)[: entry.size]
    path.write_bytes(gzip.compress(header + sparse_map + make_tar(tmp_path / "x.tar").read_bytes()))

    inputs = read_inputs([path])

    assert [(entry.path, entry.why) for entry in inputs.skipped] == [("x.tgz/a.txt", "sparse")]
    assert len(inputs.upload.files) == len(FILES)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_what_cannot_be_unpacked_in_pieces_is_left_out(tmp_path: Path, method: int) -> None:
    """600 bytes of bzip2 that say they are 1 KB took a gigabyte of memory to find out."""
    path = make_zip(tmp_path / "x.zip", {"good.txt": b"y"})
    with zipfile.ZipFile(path, "a", method) as archive:
        archive.writestr("bomb.txt", bytes(1_000))

    inputs = read_inputs([path])

    assert [file.name for file in inputs.upload.files] == ["x.zip/good.txt"]
    assert [entry.why for entry in inputs.skipped] == ["compression"]


def test_a_negative_size_makes_no_room_for_a_bomb(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    info = tarfile.TarInfo("a.txt")
    header = bytearray(info.tobuf(format=tarfile.GNU_FORMAT))
    header[124:136] = b"\xff" * 12  # the size in base 256: -1
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header[:512])
    path.write_bytes(header + bytes(1024))

    with pytest.raises(ArchiveError, match="negative size"):
        read_inputs([path])


@pytest.mark.parametrize("member", [".", "./", "a/" + "b" * 1000])
def test_names_that_are_none_are_left_out(tmp_path: Path, member: str) -> None:
    path = make_tar(tmp_path / "x.tar", {member: b"text", "good.txt": b"text"})

    inputs = read_inputs([path])

    assert [entry.why for entry in inputs.skipped] == ["unsafe"]
    assert len(inputs.upload.files) == 1


@pytest.mark.parametrize("name", ["x.zip", "x.tar"])
def test_whatever_is_in_an_archive_it_is_an_error_of_ours(tmp_path: Path, name: str) -> None:
    """The readers' own errors are of many kinds; none may reach a person as a traceback."""
    path = tmp_path / name
    whole = (make_zip if name.endswith("zip") else make_tar)(path).read_bytes()[:4096]
    source = random.Random(7)
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(source.randrange(1, 6)):
            data[source.randrange(len(data))] = source.randrange(256)
        path.write_bytes(data)
        try:
            with Archive(path) as archive:
                for member in archive.members():
                    if not member.skipped:
                        list(archive.pieces(member.number, 1 << 20))
        except (ArchiveError, OSError):
            refused += 1

    assert 50 < refused < 400
