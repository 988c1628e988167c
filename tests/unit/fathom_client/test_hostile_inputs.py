"""Directories and archives of somebody who wants to stop the command, or to have it send what
lies elsewhere.
"""

from __future__ import annotations

import gzip
import io
import os
import struct
import tarfile
import tracemalloc
import zipfile
from pathlib import Path

import pytest
from fathom_client import archives, tar_entries
from fathom_client.archives import Archive, ArchiveError
from fathom_client.directory_walk import DEPTH_MAX, IGNORE_FILE_BYTES_MAX, IgnoreFileError
from fathom_client.inputs import read_inputs
from fathom_client.uploads import InputChangedError, InputFile, _rest


def folder_with_text(tmp_path: Path) -> Path:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "a.txt").write_text("text")
    return folder


def sent(file: InputFile) -> bytes:
    try:
        return b"".join(_rest(file, 0))
    finally:
        if file.archive is not None:
            file.archive.close()


def pax(records: bytes, size_bytes: int = 4) -> bytes:
    """A tar of one entry, `a.txt`, behind an extended header."""
    head = tarfile.TarInfo("header")
    head.type, head.size = tarfile.XHDTYPE, len(records)
    entry = tarfile.TarInfo("a.txt")
    entry.size = size_bytes
    padding = bytes(-len(records) % 512)
    return (
        head.tobuf() + records + padding + entry.tobuf() + b"text".ljust(512, b"\0") + bytes(1024)
    )


def test_a_pipe_in_a_directory_is_not_waited_for(tmp_path: Path) -> None:
    """Nobody may ever write to it: the command stood still, and ^C did not reach it."""
    folder = folder_with_text(tmp_path)
    os.mkfifo(folder / "pipe")

    inputs = read_inputs([folder])

    assert [(entry.path, entry.why) for entry in inputs.skipped] == [
        (str(folder / "pipe"), "special")
    ]


def test_an_ignore_file_that_is_no_file_has_no_rules(tmp_path: Path) -> None:
    """A pipe was waited for, and a device read until the memory was full."""
    folder = folder_with_text(tmp_path)
    for make in (os.mkfifo, lambda path: path.symlink_to("/dev/zero"), Path.mkdir):
        ignore_file = folder / ".gitignore"
        make(ignore_file)
        assert len(read_inputs([folder]).upload.files) == 1
        ignore_file.rmdir() if ignore_file.is_dir() else ignore_file.unlink()


def test_rules_that_take_for_ever_to_match_are_refused(tmp_path: Path) -> None:
    """Left out in silence, they would have sent what somebody meant to keep."""
    folder = folder_with_text(tmp_path)
    (folder / ("a" * 250)).write_text("text")
    for rule in ("*a" * 30 + "b", "/".join(["**/a"] * 5)):
        (folder / ".gitignore").write_text(rule)
        with pytest.raises(IgnoreFileError, match="too many wildcards"):
            read_inputs([folder])
    (folder / ".gitignore").write_text("*a*a*\n***a**b**\n**/x/**/y/**\n")
    assert len(read_inputs([folder]).upload.files) == 1


@pytest.mark.parametrize("more", [0, 1])
def test_an_ignore_file_has_a_largest_size(tmp_path: Path, more: int) -> None:
    folder = folder_with_text(tmp_path)
    (folder / ".gitignore").write_bytes(b"#" * (IGNORE_FILE_BYTES_MAX + more))

    if more:
        with pytest.raises(IgnoreFileError, match="256 KiB"):
            read_inputs([folder])
    else:
        assert len(read_inputs([folder]).upload.files) == 1


def test_a_rule_that_is_none_matches_nothing(tmp_path: Path) -> None:
    """As for git; it was a traceback."""
    folder = folder_with_text(tmp_path)
    (folder / "b.txt").write_text("text")
    (folder / ".gitignore").write_text("\\\n[z-a]\nb.txt\n")

    assert [file.name for file in read_inputs([folder]).upload.files] == ["folder/a.txt"]


@pytest.mark.parametrize("depth", [DEPTH_MAX, DEPTH_MAX + 1, 600])
def test_folders_in_folders_have_a_largest_depth(tmp_path: Path, depth: int) -> None:
    """Python's own recursion ended at some five hundred, with a traceback."""
    folder = folder_with_text(tmp_path)
    inner = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=inner)
        outer, inner = inner, os.open("d", os.O_RDONLY, dir_fd=inner)
        os.close(outer)
    file = os.open("b.txt", os.O_CREAT | os.O_WRONLY, dir_fd=inner)
    os.write(file, b"text")
    os.close(file)
    os.close(inner)

    inputs = read_inputs([folder])

    is_deep = depth > DEPTH_MAX
    assert len(inputs.upload.files) == 2 - is_deep
    assert [entry.why for entry in inputs.skipped] == ["deep"] * is_deep


def test_a_file_that_becomes_a_link_is_not_sent(tmp_path: Path) -> None:
    """Between listing and sending, whoever can write to the folder has all the time there is."""
    folder = folder_with_text(tmp_path)
    secret = tmp_path / "secret"
    secret.write_text("word")
    (file,) = read_inputs([folder]).upload.files
    assert sent(file) == b"text"

    (folder / "a.txt").unlink()
    (folder / "a.txt").symlink_to(secret)

    with pytest.raises(InputChangedError, match="another file"):
        sent(file)


def test_a_folder_that_becomes_a_link_is_not_entered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, elsewhere = folder_with_text(tmp_path), tmp_path / "elsewhere"
    (folder / "inner").mkdir()
    elsewhere.mkdir()
    (elsewhere / "secret.txt").write_text("secret")
    open_really = os.open

    def open_late(path: str | Path, *args: int, **options: int) -> int:
        if path == folder / "inner":
            (folder / "inner").rmdir()
            (folder / "inner").symlink_to(elsewhere)
        return open_really(path, *args, **options)

    monkeypatch.setattr(os, "open", open_late)
    inputs = read_inputs([folder])

    assert [file.name for file in inputs.upload.files] == ["folder/a.txt"]
    assert [(entry.path, entry.why) for entry in inputs.skipped] == [
        (str(folder / "inner"), "unreadable")
    ]


def test_what_goes_while_it_is_listed_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_with_text(tmp_path)
    (folder / "inner").mkdir()
    open_really = os.open

    def open_late(path: str | Path, *args: int, **options: int) -> int:
        if path == folder / "inner":
            (folder / "inner").rmdir()
        return open_really(path, *args, **options)

    monkeypatch.setattr(os, "open", open_late)

    assert [entry.why for entry in read_inputs([folder]).skipped] == ["unreadable"]


@pytest.mark.parametrize("count", [2_000, 2_001])
def test_a_zip_is_refused_before_its_list_of_members_is_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    """Three million empty entries in 140 MB held the command for minutes, and 2 GB."""
    monkeypatch.setattr(archives, "MEMBERS_MAX", 2_000)
    listed = 0

    class Counted(zipfile.ZipInfo):
        def __init__(self, *args: object) -> None:
            nonlocal listed
            listed += 1
            super().__init__(*args)  # type: ignore[arg-type]

    path = tmp_path / "x.zip"
    head = b"PK\3\4" + struct.pack("<5H3L2H", 20, 0, 0, 0, 0, 0, 0, 0, 1, 0) + b"a"
    entry = b"PK\1\2" + struct.pack("<4B4H3L5H2L", 20, 3, 20, 0, *[0] * 7, 1, *[0] * 6)
    directory = (entry + b"a") * count
    end = struct.pack("<4H2LH", 0, 0, count, count, len(directory), len(head), 0)
    path.write_bytes(head + directory + b"PK\5\6" + end)
    monkeypatch.setattr(zipfile, "ZipInfo", Counted)

    if count > 2_000:
        with pytest.raises(ArchiveError, match="more than 2,000 members"), Archive(path) as archive:
            list(archive.members())
        assert listed == 0
    else:
        with Archive(path) as archive:
            assert len(list(archive.members())) == listed == count


def test_the_headers_of_a_tar_are_bounded_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """3 MB of gzip held 2.7 GB of attributes that nobody had asked for."""
    monkeypatch.setattr(tar_entries, "HEADERS_BYTES_MAX", 1 << 20)
    path = tmp_path / "x.tar.gz"
    for count in (3, 30):
        with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT) as tar:
            for number in range(count):
                info = tarfile.TarInfo(f"{number}.txt")
                info.pax_headers, info.size = {"comment": "c" * 100_000}, 1
                tar.addfile(info, io.BytesIO(b"x"))
        if count == 3:
            assert len(read_inputs([path]).upload.files) == 3

    with pytest.raises(ArchiveError, match="headers are too long"):
        read_inputs([path])


def test_names_of_a_tar_are_not_held_whole(tmp_path: Path) -> None:
    """800 names of 2 MB each made 3 GB, and an error of 2 MB on the terminal."""
    path = tmp_path / "x.tar.gz"
    with tarfile.open(path, "w:gz", format=tarfile.GNU_FORMAT) as tar:
        for number in range(60):
            tar.addfile(tarfile.TarInfo(f"{number}" + "n" * 200_000))
        tar.addfile(tarfile.TarInfo("good.txt"))

    tracemalloc.start()
    with Archive(path) as archive:
        members = list(archive.members())
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert [member.skipped for member in members] == ["unsafe"] * 60 + [""]
    assert max(len(member.name) for member in members) < 1_100
    assert peak_bytes < 6 << 20


@pytest.mark.parametrize(
    "records",
    [
        b"1" * 200_000,
        b"5 aaa" * 40_000 + b"=",
        b"0 path=x\n",
        b"-5 path=x\n",
        b"9999999 path=x\n",
        b" " * 200_000,
    ],
)
def test_a_header_of_nonsense_is_damage_and_costs_nothing(tmp_path: Path, records: bytes) -> None:
    """The first took Python's own reader the square of its length, the second that much memory."""
    path = tmp_path / "x.tar"
    path.write_bytes(pax(records))

    tracemalloc.start()
    with pytest.raises(ArchiveError, match=r"x\.tar cannot be read as an archive"):
        read_inputs([path])
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert peak_bytes < 4 << 20


def test_names_and_sizes_of_extended_headers_hold(tmp_path: Path) -> None:
    path = tmp_path / "x.tar"
    path.write_bytes(pax(b"15 path=\xc3\xa9.txt\n9 size=2\n"))

    (file,) = read_inputs([path]).upload.files

    assert (file.name, sent(file)) == ("x.tar/é.txt", b"te")


@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
@pytest.mark.parametrize("name", ["x.tar", "x.tar.gz"])
def test_a_tar_that_is_cut_off_is_damage(tmp_path: Path, name: str, kept: float) -> None:
    path = tmp_path / name
    with tarfile.open(path, "w:gz" if name.endswith("gz") else "w") as tar:
        info = tarfile.TarInfo("a.txt")
        info.size = 20_000
        tar.addfile(info, io.BytesIO(os.urandom(10_000).hex().encode()))
        info.name = "b.txt"
        tar.addfile(info, io.BytesIO(os.urandom(10_000).hex().encode()))
    data = path.read_bytes().rstrip(b"\0")
    path.write_bytes(data[: int(len(data) * kept)])

    with pytest.raises(ArchiveError, match="cannot be read as an archive"):
        for file in read_inputs([path]).upload.files:
            sent(file)


def test_gzip_of_another_method_is_damage(tmp_path: Path) -> None:
    """Its error is an OSError, and was told as a file that may not be read."""
    path = tmp_path / "x.tgz"
    path.write_bytes(b"\x1f\x8b\x09" + gzip.compress(b"")[3:])

    with pytest.raises(ArchiveError, match=r"x\.tgz cannot be read as an archive"):
        read_inputs([path])
