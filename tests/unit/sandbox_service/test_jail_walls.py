"""What is made of walls: which must stand, and what each version of Landlock is asked for."""

from __future__ import annotations

import struct

import pytest

from sandbox_service.jail import landlock
from sandbox_service.jail.wall import Wall
from sandbox_service.jail.walls import REMEDIES, WALLS, refusal

ALL = [Wall(name, True) for name in WALLS]


def without(name: str, detail: str = "") -> list[Wall]:
    return [Wall(name, False, detail) if wall.name == name else wall for wall in ALL]


def test_nothing_is_refused_where_every_wall_stands() -> None:
    assert refusal(ALL) == ""


@pytest.mark.parametrize("name", REMEDIES)
def test_a_refusal_names_the_wall_the_reason_and_what_helps(name: str) -> None:
    message = refusal(without(name, "the moon is full"))

    assert f"`{name}`" in message
    assert "the moon is full" in message
    assert REMEDIES[name] in message


@pytest.mark.parametrize("name", REMEDIES)
def test_a_wall_that_nothing_is_said_of_does_not_stand(name: str) -> None:
    """A worker that keeps silent about one must not pass."""
    message = refusal([wall for wall in ALL if wall.name != name])

    assert f"`{name}`" in message


@pytest.mark.parametrize("name", sorted(set(WALLS) - set(REMEDIES)))
def test_a_wall_that_needs_rights_may_be_missing(name: str) -> None:
    """Containers are run without these rights, which is a good thing."""
    assert refusal(without(name, "not allowed")) == ""


@pytest.mark.parametrize(
    ("version", "file_rights", "tcp", "scopes"),
    [(1, 13, 0, 0), (2, 14, 0, 0), (3, 15, 0, 0), (4, 15, 3, 0), (5, 16, 3, 0), (6, 16, 3, 3)],
)
def test_landlock_is_asked_for_all_that_its_version_has(
    version: int, file_rights: int, tcp: int, scopes: int
) -> None:
    """More would be refused, and nothing would be taken away at all."""
    attributes = landlock.attributes(version)

    assert struct.unpack("=QQQ", attributes) == ((1 << file_rights) - 1, tcp, scopes)


def test_a_later_landlock_is_asked_for_what_is_known_of_it() -> None:
    assert landlock.attributes(99) == landlock.attributes(6)
