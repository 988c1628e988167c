"""Assembles the small program that the kernel runs before each system call.

Rules by number of the call become a binary search with the checks of arguments at its leaves.
What is allowed is `seccomp`'s to say.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass

ALLOW = 0x7FFF0000
KILL_PROCESS = 0x80000000
_ERRNO = 0x00050000
_INSTRUCTION = struct.Struct("=HBBI")
_LOAD, _AND, _JUMP, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _RETURN = 0x20, 0x54, 0x05, 0x15, 0x35, 0x06
_NUMBER_OFFSET, _ARCHITECTURE_OFFSET, _ARGUMENTS_OFFSET = 0, 4, 16
"""Within the kernel's `struct seccomp_data`."""

_Instruction = tuple[int, int, int, int]


def refuse(error_number: int) -> int:
    """Return the action that fails a call with an error number."""
    return _ERRNO | error_number


@dataclass(frozen=True)
class Argument:
    """A condition on one argument: all of `mask`'s bits are as in `value`."""

    index: int
    """From 0 to 5."""
    value: int
    """Unsigned, 64 bits."""
    mask: int = (1 << 64) - 1
    """Which bits count."""


@dataclass(frozen=True)
class Rule:
    """What happens at one system call."""

    action: int
    """Taken where one of the alternatives holds, or where there are none."""
    alternatives: tuple[tuple[Argument, ...], ...] = ()
    """Each holds where all of its conditions do."""
    otherwise: int = KILL_PROCESS
    """Taken where no alternative holds."""


def assemble(architecture: int, rules: Mapping[int, Rule], default: int, number_end: int) -> bytes:
    """Return the program for calls numbered below `number_end`, 8 bytes an instruction.

    A call of another architecture, or with a number from `number_end` on, ends the process.
    """
    intervals = _intervals(rules, default, number_end)
    program = [
        (_LOAD, 0, 0, _ARCHITECTURE_OFFSET),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, KILL_PROCESS),
        (_LOAD, 0, 0, _NUMBER_OFFSET),
        *_search(intervals),
    ]
    return b"".join(_INSTRUCTION.pack(*instruction) for instruction in program)


def _intervals(
    rules: Mapping[int, Rule], default: int, number_end: int
) -> list[tuple[int, list[_Instruction]]]:
    """Return the first number of each run of calls that are treated alike, and how they are."""
    wanted: list[tuple[int, Rule]] = [(0, Rule(default))]
    for number in sorted(rules):
        if wanted[-1][0] == number:
            wanted.pop()
        wanted += [(number, rules[number]), (number + 1, Rule(default))]
    wanted.append((number_end, Rule(KILL_PROCESS)))
    merged = [wanted[0]]
    for number, rule in wanted[1:]:
        if number == merged[-1][0]:
            merged.pop()
        if not merged or merged[-1][1] != rule:
            merged.append((number, rule))
    return [(number, _body(rule)) for number, rule in merged]


def _search(intervals: list[tuple[int, list[_Instruction]]]) -> list[_Instruction]:
    if len(intervals) == 1:
        return intervals[0][1]
    middle = len(intervals) // 2
    below, above = _search(intervals[:middle]), _search(intervals[middle:])
    # A conditional jump reaches 255 instructions; the plain one any number.
    branch = (_JUMP_GREATER_EQUAL, 0, 1, intervals[middle][0])
    return [branch, (_JUMP, 0, 0, len(below)), *below, *above]


def _body(rule: Rule) -> list[_Instruction]:
    if not rule.alternatives:
        return [(_RETURN, 0, 0, rule.action)]
    body: list[_Instruction] = []
    for alternative in rule.alternatives:
        body += _conditional(alternative, rule.action)
    return [*body, (_RETURN, 0, 0, rule.otherwise)]


def _conditional(conditions: tuple[Argument, ...], action: int) -> list[_Instruction]:
    """Return the action where all conditions hold; fall out at the end where one does not."""
    code: list[_Instruction] = [(_RETURN, 0, 0, action)]
    for condition in reversed(conditions):
        for is_high in (1, 0):
            mask = condition.mask >> 32 * is_high & 0xFFFFFFFF
            value = condition.value >> 32 * is_high & mask
            if not mask:
                continue
            offset = _ARGUMENTS_OFFSET + 8 * condition.index + 4 * is_high
            test = [
                (_LOAD, 0, 0, offset),
                (_AND, 0, 0, mask),
                (_JUMP_EQUAL, 0, len(code), value),
            ]
            code = test + code
    return code
