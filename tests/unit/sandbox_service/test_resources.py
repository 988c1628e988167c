"""Blobs, page tokens, configuration, and the files of the guest."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from common.config import ConfigError, load
from sandbox_service import guest_build
from sandbox_service.config import PREFIX, SandboxConfig
from sandbox_service.guest_build import GuestBuild, GuestNotPreparedError
from sandbox_service.objects import FolderObjects, ObjectError, is_key
from sandbox_service.profiles import PROFILES


@pytest.mark.parametrize("key", ["a", "contexts/ab12", "a/b/c.txt", "A_-.x", "x" * 512])
def test_a_key_of_a_blob_is_one(key: str) -> None:
    assert is_key(key)


@pytest.mark.parametrize(
    "key", ["", "/a", "../a", "a/../b", "a//b", "a/", ".hidden", "a/.b", "a b", "a\0", "x" * 513]
)
def test_a_key_that_leads_elsewhere_is_none(key: str) -> None:
    assert not is_key(key)


def test_a_blob_is_opened_for_reading(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"abc")

    fd = FolderObjects(tmp_path).open("blob", 3)

    try:
        assert os.read(fd, 10) == b"abc"
        with pytest.raises(OSError, match="Bad file"):
            os.write(fd, b"x")
    finally:
        os.close(fd)


@pytest.mark.parametrize(("key", "size"), [("none", 3), ("blob", 4), ("folder", 0), ("link", 3)])
def test_what_is_no_blob_of_that_size_is_refused(tmp_path: Path, key: str, size: int) -> None:
    (tmp_path / "blob").write_bytes(b"abc")
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to("blob")

    with pytest.raises(ObjectError):
        FolderObjects(tmp_path).open(key, size)


def test_what_is_written_goes_into_a_folder_of_its_own_and_is_found_there(tmp_path: Path) -> None:
    """The contexts of everybody can then be read-only to the sandbox."""
    contexts, own = tmp_path / "objects", tmp_path / "sessions"
    contexts.mkdir()
    (contexts / "context").write_bytes(b"abc")
    objects = FolderObjects(contexts, own)

    with objects.writer() as writer:
        writer.write(b"layer")
        writer.commit("checkpoints/1")

    assert (own / "checkpoints/1").read_bytes() == b"layer"
    for key, size in (("context", 3), ("checkpoints/1", 5)):
        os.close(objects.open(key, size))
    objects.delete("context")
    assert [path.name for path in contexts.iterdir()] == ["context"]


def test_what_a_killed_service_was_writing_goes_after_a_while(tmp_path: Path) -> None:
    """What is young may be another service's, which is still writing."""
    objects = FolderObjects(tmp_path)
    with objects.writer(), objects.writer():
        old, young = (tmp_path / ".partial").iterdir()
        os.utime(old, (0, 0))

        objects.drop_partial()

        assert list((tmp_path / ".partial").iterdir()) == [young]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("WORKERS", "65"),
        ("MEMORY_BYTES_DEFAULT", "1000"),
        ("MEMORY_BYTES_MAX", str((4 << 30) + 1)),
        ("FUEL_DEFAULT", "0"),
        ("OUTPUT_BYTES_DEFAULT", str(1 << 40)),
        ("EXECUTE_TIME_DEFAULT_S", "0"),
        ("EXECUTE_TIME_DEFAULT_S", "4000"),
        ("SUB_CALL_CONCURRENCY_MAX", "257"),
    ],
)
def test_a_setting_that_makes_no_sense_stops_the_service(setting: str, value: str) -> None:
    with pytest.raises(ConfigError, match=PREFIX + setting):
        load(SandboxConfig, {PREFIX + setting: value}, prefix=PREFIX)


def test_workers_follow_the_processors_up_to_four() -> None:
    assert 1 <= SandboxConfig().worker_count <= 4
    assert SandboxConfig(workers=7).worker_count == 7


@pytest.fixture
def build(tmp_path: Path) -> GuestBuild:
    """A build whose files are there and ours."""
    tmp_path.chmod(0o700)
    build = GuestBuild.in_folder(tmp_path)
    for path in (build.compiled, build.library, *build.warm_images.values()):
        path.touch(mode=0o600)
    return build


def test_files_of_our_own_are_trusted(build: GuestBuild) -> None:
    build.check()


@pytest.mark.parametrize("mode", [0o620, 0o602, 0o666])
def test_native_code_that_others_may_write_is_refused(build: GuestBuild, mode: int) -> None:
    """A compiled guest is native code: whoever writes it runs it."""
    build.compiled.chmod(mode)

    with pytest.raises(GuestNotPreparedError, match="written by others"):
        build.check()


def test_a_folder_that_others_may_write_is_refused(build: GuestBuild) -> None:
    build.compiled.parent.chmod(0o777)

    with pytest.raises(GuestNotPreparedError, match="written by others"):
        build.check()


def test_a_link_is_refused(build: GuestBuild, tmp_path: Path) -> None:
    build.compiled.rename(tmp_path / "elsewhere")
    build.compiled.symlink_to(tmp_path / "elsewhere")

    with pytest.raises(GuestNotPreparedError, match="not a file"):
        build.check()


@pytest.mark.parametrize("profile", PROFILES)
def test_a_missing_file_says_what_to_do(build: GuestBuild, profile: str) -> None:
    build.warm_images[profile].unlink()

    with pytest.raises(GuestNotPreparedError, match="fathom-prepare-guest"):
        build.check()


def test_another_runtime_is_another_build(
    build: GuestBuild, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed runtime needs another warm image, and the same native code."""
    monkeypatch.setattr(guest_build, "runtime_sources", lambda: {"host": "pass"})

    other = GuestBuild.in_folder(tmp_path)

    assert other.digest != build.digest
    assert other.warm_images != build.warm_images
    assert other.compiled == build.compiled
