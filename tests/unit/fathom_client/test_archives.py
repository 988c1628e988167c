"""Archives as inputs: members become documents, and what an archive claims is not believed."""

from __future__ import annotations

import io
import tarfile
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
    monkeypatch.setattr(archives, "MEMBERS_MAX", 3)
    good = make_zip(tmp_path / "good.zip")
    bad = make_zip(tmp_path / "bad.zip", {**FILES, "more.txt": b"x"})

    assert len(read_inputs([good]).upload.files) == 3
    with pytest.raises(ArchiveError, match="more than 3 members"):
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
