"""Each wall alone does what it is for, so that none only seems to work behind another."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sandbox_service.jail import landlock
from tests.jail.attempts import ATTEMPTS, Surroundings
from tests.jail.probing import KILLED, STARTS, probe, surroundings

NICENESS = 7
ENVIRONMENT = {"SECRET": "inherited"}
BEHIND: dict[str, dict[str, str]] = {
    "descriptors": {
        "count_open_descriptors": "4",
        "see_the_environment": "None",
        "see_the_folder": "/",
        "see_the_file_mask": "0o77",
        "read_standard_input": "b''",
    },
    "native_code": {
        "see_code_that_can_be_written": "0",
        "write_to_code": "killed by SIGSEGV",
    },
    "resources": {
        "see_core_limit": "(0, 0)",
        "write_a_huge_file": "EFBIG",
        "see_priority": str(NICENESS),
    },
    "resources privileges": {
        "allow_core_dumps": "EPERM",
        "allow_larger_files": "EPERM",
        "lock_memory": "EPERM",
        "go_first": "EACCES",
    },
    "user": {"see_user": "other"},
    "user privileges": {
        "read_a_private_file": "EACCES",
        "end_a_neighbour": "EPERM",
        "become_root": "EPERM",
    },
    "privileges": {
        "join_groups": "EPERM",
        "regain_capabilities": "EPERM",
        "change_the_root": "EPERM",
        "mount": "EPERM",
        "see_whether_traceable": "0",
    },
    "namespaces": {
        "connect_to_a_port": "ENETUNREACH",
        "connect_to_an_abstract_socket": "ECONNREFUSED",
    },
    "namespaces root": {
        "read_a_file": "ENOENT",
        "create_a_file": "ENOENT",
        "tell_a_file_by_its_path": "ENOENT",
        "list_the_root_folder": "",
    },
    "landlock": {
        "read_a_file": "EACCES",
        "create_a_file": "EACCES",
        "make_a_folder": "EACCES",
        "remove_a_file": "EACCES",
        "rename_a_file": "EACCES",
        "link_a_file": "EACCES",
        "make_a_symbolic_link": "EACCES",
        "cut_a_file": "EACCES",
        "list_the_root": "EACCES",
        "read_own_memory_as_a_file": "EACCES",
        "connect_to_a_port": "EACCES",
        "listen_on_a_port": "EACCES",
        "connect_to_an_abstract_socket": "EPERM",
        "end_a_neighbour": "EPERM",
        "end_the_parent": "EPERM",
        "execute_a_program": "EACCES",
    },
    "seccomp": {
        "read_a_file": "EPERM",
        "create_a_file": "EPERM",
        "change_a_mode": "EPERM",
        "open_an_internet_socket": "EPERM",
        "make_a_pair_of_sockets": "EPERM",
        "fork": "EPERM",
        "end_a_neighbour": "EPERM",
        "map_executable_memory": "EPERM",
        "make_memory_executable": "EPERM",
        "trace_the_parent": KILLED,
        "make_namespaces": KILLED,
        "become_root": KILLED,
    },
}
"""Walls to what is tried behind them, and how that ends."""
LANDLOCK_SINCE = {
    "cut_a_file": 3,
    "connect_to_a_port": 4,
    "listen_on_a_port": 4,
    "connect_to_an_abstract_socket": 6,
    "end_a_neighbour": 6,
    "end_the_parent": 6,
}
"""Version of Landlock's interface that refuses it, where not the first one."""
OF_ROOT = ("user", "user privileges")
"""Only a process that may leave root has these to give up."""
OPTIONAL = ("namespaces", "root")
PRIVILEGED = ("privileges", "resources privileges", "user privileges")
"""What an ordinary user is refused in any case."""


@pytest.fixture(scope="module")
def around() -> Iterator[Surroundings]:
    with surroundings() as found:
        yield found


@pytest.mark.parametrize(
    ("walls", "start"),
    [
        (walls, start)
        for walls in BEHIND
        for start in STARTS
        if start == "root" or walls not in OF_ROOT
    ],
)
def test_a_wall_does_what_it_is_for(around: Surroundings, walls: str, start: str) -> None:
    """A machine that does not allow an optional wall has to say so, and why."""
    expected = BEHIND[walls]
    if walls == "landlock":
        version = landlock.abi_version()
        expected = {a: end for a, end in expected.items() if LANDLOCK_SINCE.get(a, 1) <= version}

    answers = probe(list(expected), around, walls.split(), start, NICENESS, env=ENVIRONMENT)

    for attempt, answer in answers.items():
        missing = [name for name, reason in answer.walls.items() if reason]
        assert set(missing) <= set(OPTIONAL), answer
        assert missing or (attempt, answer.outcome) == (attempt, expected[attempt])


def test_nothing_is_refused_without_its_wall() -> None:
    """Otherwise the walls would be credited with what the machine refuses by itself."""
    is_root = STARTS[0] == "root"
    refused = {
        attempt: outcome
        for walls, expected in BEHIND.items()
        if is_root or walls not in (*PRIVILEGED, *OF_ROOT)
        for attempt, outcome in expected.items()
    }
    # What takes the file away comes last, or what is tried after it would find none.
    tried = sorted(refused, key=lambda name: name.startswith("re") and "file" in name)

    with surroundings() as around:
        answers = probe(tried, around, [], env=ENVIRONMENT)

    assert not set(tried) - set(ATTEMPTS)
    assert not [name for name, answer in answers.items() if answer.outcome == refused[name]]
