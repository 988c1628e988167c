"""What a person names is told apart, listed and described rightly."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from fathom.orchestrator.v1 import context_pb2
from fathom_client.inputs import InputError, Inputs, read_inputs, split_question


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write(path: str, data: bytes = b"text\n") -> Path:
    file = Path(path)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return file


def names(inputs: Inputs) -> list[str]:
    return [file.name for file in inputs.upload.files]


def skipped(inputs: Inputs) -> dict[str, str]:
    return {Path(entry.path).name: entry.why for entry in inputs.skipped}


def test_existing_paths_are_data_and_the_rest_is_the_question() -> None:
    write("a.txt")
    write("dir/b.txt")

    question, paths = split_question(["a.txt", "What is this?", "dir", "-"])

    assert question == "What is this?"
    assert paths == ["a.txt", "dir", "-"]


def test_a_glob_that_matches_is_data() -> None:
    write("a.txt")

    assert split_question(["why", "*.txt"]) == ("why", ["*.txt"])


@pytest.mark.parametrize("missing", ["nope.txt", "./nope", "dir/nope", "~/no-such-file-here"])
def test_a_missing_path_is_an_error_and_not_the_question(missing: str) -> None:
    """A mistyped file name must not be sent to a model as a question."""
    write("a.txt")

    with pytest.raises(InputError, match="no such file"):
        split_question([missing, "a.txt"])


@pytest.mark.parametrize("question", ["Why is a/b larger?", "revenue?", "What does x.y do, in C?"])
def test_a_sentence_is_a_question_whatever_is_in_it(question: str) -> None:
    write("a.txt")

    assert split_question([question, "a.txt"])[0] == question


def test_a_web_address_is_no_question() -> None:
    with pytest.raises(InputError, match="web addresses are not read"):
        split_question(["why?", "https://example.org/a.txt"])


def test_two_arguments_that_are_no_paths_are_an_error() -> None:
    """Most often quotes were forgotten."""
    with pytest.raises(InputError, match="quotes"):
        split_question(["what", "is"])


def test_no_question_is_an_error() -> None:
    write("a.txt")

    with pytest.raises(InputError, match="no question"):
        split_question(["a.txt"])


def test_a_very_long_question_is_no_path() -> None:
    assert split_question(["why " * 5_000])[1] == []


def test_one_file_is_one_text() -> None:
    write("a.txt", b"hello")

    upload = read_inputs(["a.txt"]).upload

    assert upload.kind == context_pb2.Context.KIND_TEXT
    assert upload.size_bytes == 5


def test_several_files_are_documents_with_relative_names() -> None:
    write("a.txt")
    write("dir/b.txt")

    inputs = read_inputs(["a.txt", Path("dir/b.txt").resolve()])

    assert inputs.upload.kind == context_pb2.Context.KIND_DOCUMENTS
    assert names(inputs) == ["a.txt", "dir/b.txt"]


def test_a_directory_is_documents_even_with_one_file() -> None:
    """What the model gets must not depend on how many files there happen to be."""
    write("dir/b.txt")

    inputs = read_inputs(["dir"])

    assert inputs.upload.kind == context_pb2.Context.KIND_DOCUMENTS
    assert names(inputs) == ["dir/b.txt"]


def test_files_outside_of_the_working_directory_keep_a_short_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("lib/sub/b.txt")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")

    assert names(read_inputs([tmp_path / "lib"])) == ["lib/sub/b.txt"]
    assert names(read_inputs(["../lib"])) == ["lib/sub/b.txt"]


def test_equal_names_are_kept_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write("x/a.txt")
    write("y/a.txt")
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")

    assert names(read_inputs(["../x/a.txt", "../y/a.txt"])) == ["a.txt", "a.txt#2"]


def test_a_file_named_twice_is_sent_once() -> None:
    write("dir/a.txt")

    assert names(read_inputs(["dir", "dir/a.txt", "dir/*.txt"])) == ["dir/a.txt"]


def test_binary_files_are_skipped_and_said_so() -> None:
    write("dir/a.txt")
    write("dir/b.bin", b"\x7fELF\0\0")

    inputs = read_inputs(["dir"])

    assert names(inputs) == ["dir/a.txt"]
    assert inputs.describe() == "1 file, 5 B, 1 skipped (binary)"


def test_text_that_is_not_utf8_is_sent() -> None:
    """The server stores it as it is and tells of it."""
    write("a.txt", "Grüße".encode("latin-1"))

    assert read_inputs(["a.txt"]).upload.size_bytes == 5


def test_nothing_but_binary_files_is_an_error() -> None:
    write("b.bin", b"\0")

    with pytest.raises(InputError, match=r"b\.bin \(binary\)"):
        read_inputs(["b.bin"])


def test_empty_input_is_an_error_and_one_empty_file_among_others_is_not() -> None:
    """A command before the pipe may have failed; a question over nothing costs money."""
    write("a.txt")
    write("empty.txt", b"")

    assert names(read_inputs(["a.txt", "empty.txt"])) == ["a.txt", "empty.txt"]
    with pytest.raises(InputError, match="not one byte"):
        read_inputs(["-"], read_stdin=lambda: b"")


def test_ignored_files_are_left_out_at_every_level() -> None:
    write("dir/.gitignore", b"*.log\n/build/\n")
    write("dir/a.log")
    write("dir/build/x.txt")
    write("dir/sub/build/kept.txt")
    write("dir/sub/.gitignore", b"secret*\n!important.log\n")
    write("dir/sub/b.log")
    write("dir/sub/important.log")
    write("dir/sub/secret.txt")
    write("dir/secret.txt")

    inputs = read_inputs(["dir"])

    assert names(inputs) == ["dir/secret.txt", "dir/sub/build/kept.txt", "dir/sub/important.log"]


def test_rules_above_the_directory_hold_within_a_repository() -> None:
    write("repo/.git/HEAD")
    write("repo/.gitignore", b"*.log\n/src/made/\n")
    write("repo/src/a.py")
    write("repo/src/a.log")
    write("repo/src/made/b.py")

    assert names(read_inputs(["repo/src"])) == ["repo/src/a.py"]


def test_rules_above_the_directory_do_not_hold_outside_of_a_repository() -> None:
    write("outer/.gitignore", b"*.log\n")
    write("outer/dir/a.log")

    assert names(read_inputs(["outer/dir"])) == ["outer/dir/a.log"]


def test_an_ignored_directory_that_is_named_is_read() -> None:
    """Naming it says that it is meant."""
    write("repo/.git/HEAD")
    write("repo/.gitignore", b"build/\n")
    write("repo/build/a.txt")

    assert names(read_inputs(["repo/build"])) == ["repo/build/a.txt"]


def test_hidden_files_and_links_are_left_out() -> None:
    """A directory may hold credentials in dot files, and links lead out of it."""
    write("dir/a.txt")
    write("dir/.env", b"KEY=1")
    write("outside.txt")
    Path("dir/link.txt").symlink_to(Path("outside.txt").resolve())

    inputs = read_inputs(["dir"])

    assert names(inputs) == ["dir/a.txt"]
    assert skipped(inputs) == {".env": "hidden", "link.txt": "link"}


def test_a_loop_of_links_ends() -> None:
    write("dir/a.txt")
    Path("dir/loop").symlink_to(Path("dir").resolve(), target_is_directory=True)

    assert names(read_inputs(["dir"])) == ["dir/a.txt"]


def test_a_link_that_is_named_is_followed() -> None:
    write("dir/a.txt")
    Path("link").symlink_to("dir", target_is_directory=True)

    assert names(read_inputs(["link"])) == ["link/a.txt"]


def test_the_same_directory_lists_in_the_same_order() -> None:
    """Equal content must give an equal context, which is stored once."""
    for name in ("b", "a", "C", "a.d/z", "a.d/y"):
        write(f"dir/{name}")

    assert names(read_inputs(["dir"])) == ["dir/C", "dir/a", "dir/a.d/y", "dir/a.d/z", "dir/b"]


def test_a_name_that_is_not_utf8_is_sent_with_replacement() -> None:
    """Names on disk are bytes; a message takes only text."""
    write("dir/plain.txt")
    write(os.fsdecode(b"dir/caf\xe9.txt"))

    upload = read_inputs(["dir"]).upload

    assert [file.name for file in upload.files] == ["dir/caf\ufffd.txt", "dir/plain.txt"]
    assert read_inputs([os.fsdecode(b"dir/caf\xe9.txt")]).upload.title == "dir/caf\ufffd.txt"


def test_standard_input_is_one_text() -> None:
    inputs = read_inputs(["-"], read_stdin=lambda: b"piped")

    assert inputs.upload.kind == context_pb2.Context.KIND_TEXT
    assert inputs.upload.files[0].data == b"piped"


def test_a_pipe_is_read_once() -> None:
    """As the shell makes them for `<(command)`."""
    reader, writer = os.pipe()
    os.write(writer, b"from a pipe")
    os.close(writer)

    inputs = read_inputs([f"/dev/fd/{reader}"])
    os.close(reader)

    assert inputs.upload.files[0].data == b"from a pipe"


def test_json_input_must_be_json() -> None:
    write("good.json", b'{"a": [1]}')
    write("bad.json", b"{")

    assert read_inputs(["good.json"], as_json=True).upload.kind == context_pb2.Context.KIND_JSON
    with pytest.raises(InputError, match=r"bad\.json is not JSON"):
        read_inputs(["bad.json"], as_json=True)


def test_json_input_is_one_file() -> None:
    write("a.json", b"1")
    write("b.json", b"1")

    with pytest.raises(InputError, match="one file"):
        read_inputs(["a.json", "b.json"], as_json=True)


def test_a_path_that_is_not_there_is_an_error() -> None:
    """As with `--file`, where nothing is taken for a question."""
    with pytest.raises(InputError, match=r"nope\.txt"):
        read_inputs(["nope.txt"])
