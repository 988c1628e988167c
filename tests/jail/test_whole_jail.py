"""With every wall around it, native code reaches nothing, whoever the service was started as."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandbox_service.jail.walls import REMEDIES, WALLS
from tests.jail.probing import KILLED, STARTS, Answer, probe, surroundings

REFUSED = (
    "read_a_file",
    "create_a_file",
    "make_a_folder",
    "remove_a_file",
    "rename_a_file",
    "link_a_file",
    "make_a_symbolic_link",
    "cut_a_file",
    "change_a_mode",
    "list_the_root",
    "change_the_folder",
    "read_own_memory_as_a_file",
    "read_the_parents_environment",
    "read_a_core_filter",
    "open_an_internet_socket",
    "open_a_unix_socket",
    "open_a_netlink_socket",
    "make_a_pair_of_sockets",
    "send_on_another_descriptor",
    "fork",
    "end_the_parent",
    "end_a_neighbour",
    "end_a_neighbours_thread",
    "map_executable_memory",
    "make_memory_executable",
    "make_a_file_in_memory",
    "control_a_device",
    "share_memory",
    "set_the_clock",
    "allow_core_dumps",
    "allow_larger_files",
    "become_traceable",
    "outlive_the_parent",
    "go_first",
    "lock_memory",
)
DEADLY = (
    "execute_a_program",
    "execute_a_program_from_memory",
    "trace_the_parent",
    "read_the_parents_memory",
    "take_hold_of_a_neighbour",
    "make_reading_mean_executing",
    "start_an_io_ring",
    "load_a_kernel_program",
    "use_the_key_ring",
    "add_a_key",
    "handle_page_faults",
    "count_events",
    "open_by_handle",
    "load_a_module",
    "load_a_kernel",
    "make_namespaces",
    "enter_a_namespace",
    "mount",
    "change_the_root",
    "become_root",
    "join_groups",
    "regain_capabilities",
)
SEEN = {
    "see_core_limit": "(0, 0)",
    "see_the_environment": "None",
    "read_standard_input": "b''",
    "start_a_thread": "done",
    "write_to_code": "killed by SIGSEGV",
}


@pytest.fixture(scope="module", params=STARTS)
def answers(request: pytest.FixtureRequest) -> dict[str, Answer]:
    """Every attempt, in a process that was started as one of several kinds of user."""
    with surroundings() as around:
        attempts = (*REFUSED, *DEADLY, *SEEN, "tell_a_file_by_its_path")
        found = probe(attempts, around, start=request.param)
        names = sorted(path.name for path in Path(around.folder).iterdir())
        assert Path(around.secret_file).read_text() == "secret"
        assert names == ["private", "secret"]
    return found


def test_every_wall_that_must_stand_does(answers: dict[str, Answer]) -> None:
    answer = answers["read_a_file"]

    assert list(answer.walls) == list(WALLS)
    assert not [name for name in REMEDIES if not answer.stands(name)]


@pytest.mark.parametrize("attempt", REFUSED)
def test_an_attempt_is_refused(answers: dict[str, Answer], attempt: str) -> None:
    assert answers[attempt].outcome == "EPERM"


@pytest.mark.parametrize("attempt", DEADLY)
def test_an_attempt_that_nothing_of_ours_makes_ends_the_process(
    answers: dict[str, Answer], attempt: str
) -> None:
    """Who makes it has taken the process over: there must be no second one."""
    assert answers[attempt].outcome == KILLED


@pytest.mark.parametrize("attempt", DEADLY)
def test_an_ended_process_leaves_no_core_dump(answers: dict[str, Answer], attempt: str) -> None:
    """It would hold what its sessions were given."""
    assert not answers[attempt].dumped_core


@pytest.mark.parametrize(("attempt", "seen"), SEEN.items())
def test_what_is_left_inside(answers: dict[str, Answer], attempt: str, seen: str) -> None:
    assert answers[attempt].outcome == seen


def test_no_path_leads_anywhere_where_the_root_is_empty(answers: dict[str, Answer]) -> None:
    """Telling whether a file exists is what neither Landlock nor the filter can refuse."""
    answer = answers["tell_a_file_by_its_path"]

    assert answer.outcome == ("ENOENT" if answer.stands("root") else "done")
