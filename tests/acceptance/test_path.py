"""The built wheel as its users have it: commands, real processes, a generic gRPC tool."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import signal
import socket
import subprocess
import sysconfig
from pathlib import Path

import pytest

from tests.acceptance.conftest import Installed, Stack
from tests.support.child_processes import end_with_parent
from tests.support.eventually import eventually

BUF = str(Path(sysconfig.get_path("scripts")) / "buf")
PACKAGE = "fathom.orchestrator.v1"


def run(command: list[str], environ: dict[str, str], **options: object) -> tuple[int, str, str]:
    done = subprocess.run(
        command, env=environ, capture_output=True, text=True, timeout=100, check=False,
        stdin=subprocess.DEVNULL, **options,  # type: ignore[call-overload]
    )  # fmt: skip
    return done.returncode, done.stdout, done.stderr


def buf_curl(stack: Stack, method: str, *messages: object) -> list[dict[str, object]]:
    """Call a method with buf, which knows it by reflection alone; return the responses."""
    done = subprocess.run(
        [BUF, "curl", "--protocol", "grpc", "--http2-prior-knowledge", "--data", "@-",
         f"http://{stack.orchestrator_address}/{PACKAGE}.{method}"],
        input="\n".join(json.dumps(message) for message in messages),
        env=stack.environ, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    decoder, text, responses = json.JSONDecoder(), done.stdout.strip(), []
    while text:
        response, end = decoder.raw_decode(text)
        responses.append(response)
        text = text[end:].lstrip()
    return responses


def test_the_wheel_runs_without_the_checkout(
    installed: Installed, user_environ: dict[str, str], tmp_path: Path
) -> None:
    """A file that is missing from the wheel must not be found in the checkout instead."""
    code = "import fathom_client, orchestrator, common; print(orchestrator.__file__)"

    status, printed, error = run([installed.python, "-c", code], user_environ, cwd=tmp_path)

    assert status == 0, error
    assert Path(printed.strip()).is_relative_to(installed.bin.parent)


def test_a_generic_grpc_tool_uploads_asks_and_watches(stack: Stack) -> None:
    text = "The vault code of the Hamburg office is 4711.\n" + "Nothing to see here.\n" * 2000
    data = base64.b64encode(text.encode()).decode()
    [uploaded] = buf_curl(
        stack,
        "ContextService/UploadContext",
        {"start": {"kind": "KIND_TEXT", "title": "notes"}},
        {"chunk": {"offsetBytes": "0", "data": data}},
    )
    spec = {
        "question": "What is the vault code of the Hamburg office?",
        "context": uploaded["context"]["name"],  # type: ignore[index]
    }
    [created] = buf_curl(stack, "OrchestratorService/CreateRun", {"spec": spec})
    name = created["run"]["name"]  # type: ignore[index]

    events = buf_curl(stack, "OrchestratorService/WatchRun", {"name": name})

    sequences = [int(response["event"]["sequence"]) for response in events]  # type: ignore[index]
    assert sequences == list(range(1, len(events) + 1))
    last = events[-1]["event"]["runChanged"]  # type: ignore[index]
    assert last["state"] == "STATE_ANSWERED"
    assert "4711" in last["answer"]["text"]


def test_the_demo_answers_both_questions_rightly(
    installed: Installed, user_environ: dict[str, str], tmp_path: Path
) -> None:
    """What `make run` shows, over a smaller text: a search, and a count through sub-calls."""
    environ = user_environ | {"FATHOM_HOME": str(tmp_path)}

    status, _, told = run([installed.fathom, "demo", "--lines", "50000", "--seed", "5"], environ)

    assert status == 0, told
    assert "not a language model" in told


def test_ask_prints_the_answer_alone_on_stdout(installed: Installed, stack: Stack) -> None:
    """What comes out can be piped into another program."""
    library = Path(sysconfig.get_path("stdlib")) / "json"

    status, answer, told = run(
        [installed.fathom, "ask", "What does the JSON decoder do?", str(library)], stack.environ
    )

    assert status == 0, told
    assert answer.strip()
    assert "limits" in told
    assert "runs/" in told


def test_an_asked_run_can_be_shown_afterwards(installed: Installed, stack: Stack) -> None:
    file = stack.home / "notes.txt"
    file.write_text("The magic number of the lighthouse is 8128.\n" + "Filler line.\n" * 100)
    command = [installed.fathom, "ask", "--json", "What is the magic number of the lighthouse?"]
    status, printed, told = run([*command, str(file)], stack.environ)
    assert status == 0, told
    result = json.loads(printed)

    status, shown, told = run([installed.fathom, "runs", "show", result["run"]], stack.environ)

    assert status == 0, told
    assert "8128" in shown


def test_an_answer_says_where_it_stands_and_that_was_looked_up(
    installed: Installed, stack: Stack
) -> None:
    """From `cite` in the guest to the mark in the command, through every process."""
    file = stack.home / "notes.txt"
    line = "Since spring the magic number of the Größler lighthouse is 8128, as agreed."
    text = "Straße filler line.\n" * 2_000 + line + "\n" + "Filler line.\n" * 2_000
    file.write_text(text, encoding="utf-8")
    question = "What is the magic number of the Größler lighthouse?"

    status, printed, told = run(
        [installed.fathom, "ask", "--json", question, str(file)], stack.environ
    )

    assert status == 0, told
    [citation] = json.loads(printed)["citations"]
    assert (citation["verified"], citation["check"]) == (True, "exact")
    assert text[citation["start"] : citation["end"]] == citation["quote"]
    assert "8128" in citation["quote"]


def test_an_answer_has_the_form_and_the_confidence_that_were_asked_for(
    installed: Installed, stack: Stack
) -> None:
    """The first reading is not sure enough for it, so that the model checks before it is taken."""
    file = stack.home / "sums.txt"
    file.write_text("The total of the harbour dues is 12.\n" + "Filler line.\n" * 50)
    asked = [
        "--schema",
        "total int",
        "--confidence",
        "0.8",
        "What is the total amount of the harbour dues?",
    ]

    status, printed, told = run(
        [installed.fathom, "ask", "--json", *asked, str(file)], stack.environ
    )

    outcome = json.loads(printed)
    assert (status, outcome["status"], outcome["answer_is_json"]) == (0, "answered", True), told
    assert json.loads(outcome["answer"]) == {"total": 12}
    assert outcome["schema_errors"] == []


def test_a_profile_answers_with_evidence_that_was_looked_up(
    installed: Installed, stack: Stack
) -> None:
    file = stack.home / "pumps.txt"
    file.write_text("The Rostock pumps arrive on 3 May.\n" + "Filler line.\n" * 50)
    asked = ["--profile", "search", "When do the Rostock pumps arrive?"]

    status, printed, told = run(
        [installed.fathom, "ask", "--json", *asked, str(file)], stack.environ
    )

    outcome = json.loads(printed)
    assert (status, outcome["status"]) == (0, "answered"), told
    [evidence] = json.loads(outcome["answer"])["evidence"]
    assert evidence["quote"] == "The Rostock pumps arrive on 3 May."
    assert {citation["verified"] for citation in outcome["citations"]} == {True}


def test_a_question_about_each_file_becomes_a_tree_that_can_be_watched(
    installed: Installed, stack: Stack
) -> None:
    """From `rlm_query_batched` in the guest to the lines of the command."""
    folder = stack.home / "offices"
    folder.mkdir()
    codes = {"Bergen": "5150", "Porto": "1234"}
    for name, code in codes.items():
        text = f"The vault code of the {name} office is {code}.\n" + "Filler line.\n" * 50
        (folder / f"{name}.txt").write_text(text)

    question = "What is the vault code in each of these files?"
    status, answer, told = run([installed.fathom, "ask", question, str(folder)], stack.environ)

    assert status == 0, told
    for name, code in codes.items():
        assert f"{name}.txt: {code}" in answer
    children = [line.split()[2] for line in told.splitlines() if line.startswith("child ")]
    assert len(children) == len(codes)
    _, shown, _ = run([installed.fathom, "runs", "show", children[0]], stack.environ)
    assert "child of  runs/" in shown


def test_a_limit_gives_a_partial_answer_and_says_so(installed: Installed, stack: Stack) -> None:
    file = stack.home / "some.txt"
    file.write_text("Filler line about the harbour.\n" * 1000)
    command = [installed.fathom, "ask", "--max-turns", "1", "What is said about the harbour?"]

    status, _, told = run([*command, str(file)], stack.environ)

    assert status == 3
    assert "turns" in told


def test_without_a_key_or_services_ask_names_the_remedies(
    installed: Installed, user_environ: dict[str, str], tmp_path: Path
) -> None:
    (tmp_path / "a.txt").write_text("text")
    environ = user_environ | {"FATHOM_HOME": str(tmp_path / "home")}

    status, answer, told = run([installed.fathom, "ask", "Why?", "a.txt"], environ, cwd=tmp_path)

    assert (status, answer) == (4, "")
    assert "OPENAI_API_KEY" in told


@pytest.mark.parametrize("service", ["orchestrator", "sandbox", "gateway"])
def test_a_mistyped_setting_stops_a_service_with_one_line(
    installed: Installed, user_environ: dict[str, str], service: str
) -> None:
    environ = user_environ | {f"FATHOM_{service.upper()}_LISTEM": "127.0.0.1:0"}

    status, _, told = run([str(installed.bin / f"fathom-{service}")], environ)

    assert status != 0
    assert f"FATHOM_{service.upper()}_LISTEM: there is no such setting" in told
    assert "Traceback" not in told


@pytest.mark.parametrize("module", ["llm_gateway", "sandbox_service", "orchestrator"])
async def test_a_service_that_is_killed_comes_back_and_the_run_goes_on(
    installed: Installed, stack: Stack, tmp_path: Path, module: str
) -> None:
    """Nobody has to do anything: neither who asked, nor who runs `fathom up`."""
    data = tmp_path / "records.txt"
    data.write_text("The vault code of the Bergen office is 5150.\n" + "Nothing.\n" * 200_000)
    question = "What is the vault code of the Bergen office?"
    asked = [installed.fathom, "ask", "--detach", question, str(data)]
    status, name, error = run(asked, stack.environ)
    assert status == 0, error

    # What a service starts is called as itself for a moment.
    before = [child for child in descendants(stack.pid) if is_program(child, module)]
    os.kill(before[0], signal.SIGKILL)
    await eventually(
        lambda: any(
            is_program(child, module) for child in descendants(stack.pid) if child not in before
        )
    )
    await eventually(lambda: is_listening(stack.orchestrator_address), within_s=60)

    watch = [installed.fathom, "runs", "watch", "--events", name.strip()]
    status, lines, error = run(watch, stack.environ)
    assert status == 0, error
    events = [json.loads(line) for line in lines.splitlines()]
    assert [int(event["sequence"]) for event in events] == list(range(1, len(events) + 1))
    assert "5150" in events[-1]["run_changed"]["answer"]["text"]


def is_listening(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        return probe.connect_ex((host, int(port))) == 0


def is_program(pid: int, module: str) -> bool:
    """Whether a process is alive and runs a module as its program."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return is_alive(pid) and f"\0-m\0{module}\0" in command


async def test_killing_the_command_leaves_no_service_behind(
    installed: Installed, user_environ: dict[str, str], tmp_path: Path
) -> None:
    """Even SIGKILL, which the command cannot handle, must not leave processes running."""
    environ = user_environ | {"FATHOM_HOME": str(tmp_path)}
    command = [installed.fathom, "up", "--scripted-model", "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(
        command, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL, text=True, preexec_fn=end_with_parent,
    )  # fmt: skip
    assert process.stdout is not None
    assert process.stdout.readline()
    children = descendants(process.pid)
    assert len(children) >= 5

    process.kill()
    process.wait()
    process.stdout.close()

    await eventually(lambda: not any(is_alive(pid) for pid in children))


def descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it may end meanwhile
            for child in map(int, task.read_text().split()):
                found += [child, *descendants(child)]
    return found


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (ProcessLookupError, FileNotFoundError):
        return False
    return state != "Z"


@pytest.mark.parametrize("service", ["orchestrator", "gateway"])
def test_a_port_in_use_stops_a_service_with_one_line(
    installed: Installed, stack: Stack, tmp_path: Path, service: str
) -> None:
    prefix = f"FATHOM_{service.upper()}_"
    environ = stack.environ | {
        f"{prefix}LISTEN": stack.orchestrator_address,
        f"{prefix}RUN_TOKEN_KEY": "k" * 32,
        "FATHOM_ORCHESTRATOR_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path / 'db'}",
        "FATHOM_ORCHESTRATOR_OBJECT_STORE": str(tmp_path),
        "FATHOM_GATEWAY_CONFIG": str(stack.home / "gateway.toml"),
        "FATHOM_GATEWAY_DATABASE_URL": f"sqlite+aiosqlite:///{tmp_path / 'ledger'}",
        "FATHOM_GATEWAY_LEDGER_ANSWERS": str(tmp_path / "answers"),
        "FATHOM_SCRIPTED_MODEL_KEY": "none-needed",
    }

    status, _, told = run([str(installed.bin / f"fathom-{service}")], environ)

    assert status == 2
    assert "is it in use?" in told.splitlines()[-1]
    assert "Traceback" not in told
