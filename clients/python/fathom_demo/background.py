"""The bulk of the demo's context: logs of several services, mails, notes, tickets, code.

Text is drawn from pools rendered once per seed, and each line then gets its own time stamp or
number. Every character is below U+0100, so CPython keeps the text at one byte a character.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from random import Random

_NAMES = (
    "Ingrid Sørensen", "Tomás Herrera", "Amélie Laurent", "Deepa Raman", "Jörg Weiß",
    "Siobhán Kelly", "Marcus Reid", "Yuki Tanaka", "Françoise Petit", "Håkan Nyström",
    "Lena Krüger", "Obinna Eze", "Carlos Peña", "Ruth Abel", "Matteo Bianchi", "Anaïs Roux",
)  # fmt: skip
_TOPICS = (
    "the search index", "the nightly import", "the café on the ground floor", "the Zürich office",
    "the mobile release", "the parking garage", "our style guide", "the budget for spring",
    "the customer survey", "the new intern", "the staging cluster", "the summer party",
    "the fire drill", "the label printer", "the on-call rota", "the translation of the manual",
)  # fmt: skip
_PHRASES = (
    "{name} will look after {topic} until Thursday and report back to the whole group.",
    "We agreed to move {topic} to the second quarter, since nobody has time before that.",
    "There is still no decision on {topic}; {name} is waiting for two more estimates.",
    "The figures for {topic} look better than last month, though not by much.",
    "{name} asked whether {topic} could be shown to visitors, and we see no reason against it.",
    "Most of the discussion went into {topic}, and the rest of the agenda was put off.",
    "Could you send me the slides about {topic} before lunch, please?",
    "As far as I know {topic} was never tested with more than a hundred people.",
    "{name} suggested a smaller version of {topic}, which would save us about a week.",
    "I have read the draft on {topic} twice and still do not see what problem it solves.",
    "Let us keep {topic} as it is and write down why we did so.",
    "The vendor of {topic} has changed its terms, {name} has the letter.",
    "Please remember that {topic} depends on three people who are all on holiday in August.",
    "After a long morning with {topic} I would rather talk about something else, to be honest.",
)
_CODE_LINES = (
    "def merge_{word}(left: dict[str, int], right: dict[str, int]) -> dict[str, int]:",
    "    total_{word} = sum(item.quantity * item.weight for item in {word}_items if item.active)",
    '    logger.info("%s finished in %.1f s", {word}.name, time.monotonic() - started_{word})',
    "    for row in reader_{word}:  # the first line holds the names of the columns",
    "        if row.updated < last_seen_{word} or row.deleted:  continue",
    "SELECT {word}_id, count(*) FROM {word} WHERE created_at > :since GROUP BY 1 ORDER BY 2 DESC;",
    "    return {{key: left.get(key, 0) + right.get(key, 0) for key in left.keys() | right}}",
    "const {word} = await fetchPage(`/api/{word}?limit=${{limit}}`, {{ signal }});",
)
_WORDS = (
    "basket", "tariff", "shelf", "route", "label", "voucher", "ledger", "probe", "tenant",
    "widget", "pallet", "quota", "snippet", "thumbnail", "webhook", "canary",
)  # fmt: skip
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_MESSAGES = (
    "connection from the pool was closed by the other side, opening another one",
    "nothing to do, sleeping until the next tick",
    "cache entry expired and was read again from the store",
    "finished the batch and handed the result to the writer",
    "slow answer from the upstream, still within its deadline",
    "configuration reloaded without changes",
    "could not resolve the name, falling back to the last known address",
    "rotated the file after it reached its size",
    "user session renewed",
    "queue is empty again after a short peak",
    "skipped a row whose Größe column was not a number",
    "health check answered in time",
)

_SPEECH_POOL = 1500
_LOG_POOL = 1500

_Line = tuple[str, str]
"""A log line before and after its time stamp."""
_Stamp = Callable[[int, int], str]
"""Renders month and day up to the time of day."""
_LogFormat = tuple[_Stamp, Callable[[Random], _Line]]


class Background:
    """An endless source of blocks of lines; the same for the same generator state."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._second = 0
        self._serial = 1000
        self._clocks = [
            f"{hour:02d}:{minute:02d}:{second:02d}"
            for hour in range(24)
            for minute in range(60)
            for second in range(60)
        ]
        self._days = [(month, day) for month in range(1, 13) for day in range(1, 29)]
        self._speech = [self._render_speech() for _ in range(_SPEECH_POOL)]
        self._code = [line.format(word=word) for line in _CODE_LINES for word in _WORDS]
        self._logs = [self._render_logs(render) for render in _LOG_FORMATS]

    def block(self) -> list[str]:
        """Return the lines of one log burst, mail, note, ticket or piece of code."""
        draw = self._rng.random()
        if draw < 0.55:
            return self.log_lines(8 + int(self._rng.random() * 40))
        if draw < 0.75:
            return self._mail()
        if draw < 0.87:
            return self._note()
        if draw < 0.95:
            return self._ticket()
        return self._rng.choices(self._code, k=6 + int(self._rng.random() * 14))

    def log_lines(self, count: int) -> list[str]:
        """Return exactly `count` lines of one service's log, in order of time."""
        self._second += 1 + int(self._rng.random() * 20)
        month, day = self._day()
        stamp, pool = self._logs[int(self._rng.random() * len(self._logs))]
        date = stamp(month, day)
        start = self._second
        clocks = self._clocks
        return [
            f"{before}{date}{clocks[(start + step // 4) % 86_400]}{after}"
            for step, (before, after) in enumerate(self._rng.choices(pool, k=count))
        ]

    def _mail(self) -> list[str]:
        sender, reader, about = self._name(), self._name(), self._topic()
        month, day = self._day()
        self._serial += 1
        address = f"mail{self._serial}@post.example"
        lines = [
            f"From: {sender} <{address}>",
            f"To: {reader} <{reader.split()[0].lower()}@office.example>",
            f"Date: {day} {_MONTHS[month - 1]} 2025 {self._clock()}",
            f"Subject: Re: {about}",
            "",
            f"Hello {reader.split()[0]},",
        ]
        return [*lines, *self._paragraphs(), f"Best wishes, {sender.split()[0]}", ""]

    def _note(self) -> list[str]:
        month, day = self._day()
        head = f"Meeting notes, {day} {_MONTHS[month - 1]} 2025: {self._topic()}"
        bullets = [f"- {self._name()}: {self._speech_lines()[0]}" for _ in range(3)]
        return [head, f"Present: {self._name()}, {self._name()}", *bullets, *self._paragraphs()]

    def _ticket(self) -> list[str]:
        self._serial += 1
        head = f"[TICKET {self._serial}] {self._topic()} (reported by {self._name()})"
        return [head, *self._paragraphs(), f"Status: waiting, assigned to {self._name()}", ""]

    def _paragraphs(self) -> list[str]:
        return [
            line for _ in range(1 + int(self._rng.random() * 4)) for line in self._speech_lines()
        ]

    def _speech_lines(self) -> list[str]:
        return self._speech[int(self._rng.random() * _SPEECH_POOL)]

    def _render_speech(self) -> list[str]:
        phrases = self._rng.choices(_PHRASES, k=2 + int(self._rng.random() * 3))
        said = " ".join(text.format(name=self._name(), topic=self._topic()) for text in phrases)
        return textwrap.wrap(said[0].upper() + said[1:], 92, break_on_hyphens=False)

    def _render_logs(self, log: _LogFormat) -> tuple[_Stamp, list[_Line]]:
        return log[0], [log[1](self._rng) for _ in range(_LOG_POOL)]

    def _day(self) -> tuple[int, int]:
        return self._days[int(self._rng.random() * len(self._days))]

    def _clock(self) -> str:
        return self._clocks[int(self._rng.random() * 86_400)]

    def _name(self) -> str:
        return _NAMES[int(self._rng.random() * len(_NAMES))]

    def _topic(self) -> str:
        return _TOPICS[int(self._rng.random() * len(_TOPICS))]


def _service_line(rng: Random) -> _Line:
    level = rng.choices(("INFO ", "DEBUG", "WARN ", "ERROR"), (70, 20, 8, 2))[0]
    request, took_ms = int(rng.random() * 16**8), int(rng.random() * 900)
    head = f"Z {level} [{rng.choices(_WORDS)[0]}] request={request:08x}"
    return "", f"{head} {rng.choices(_MESSAGES)[0]} took_ms={took_ms}"


def _web_line(rng: Random) -> _Line:
    host = ".".join(str(int(rng.random() * 250)) for _ in range(4))
    path = f"/{rng.choices(_WORDS)[0]}/{rng.choices(_WORDS)[0]}/{int(rng.random() * 9000)}"
    status = rng.choices((200, 204, 304, 404, 500), (80, 5, 8, 6, 1))[0]
    return f"{host} - - [", f' +0000] "GET {path} HTTP/1.1" {status} {int(rng.random() * 60_000)}'


def _system_line(rng: Random) -> _Line:
    unit = f"edge-{int(rng.random() * 40):02d} {rng.choices(_WORDS)[0]}d"
    attempt = 1 + int(rng.random() * 4)
    return "", f" {unit}: {rng.choices(_MESSAGES)[0]} (attempt {attempt} of 4)"


def _json_line(rng: Random) -> _Line:
    event = f'"service":"{rng.choices(_WORDS)[0]}","message":"{rng.choices(_MESSAGES)[0]}"'
    return '{"time":"', f'",{event},"bytes":{int(rng.random() * 10**6)}}}'


_LOG_FORMATS: tuple[_LogFormat, ...] = (
    (lambda month, day: f"2025-{month:02d}-{day:02d}T", _service_line),
    (lambda month, day: f"{day:02d}/{_MONTHS[month - 1]}/2025:", _web_line),
    (lambda month, day: f"{_MONTHS[month - 1]} {day:2d} ", _system_line),
    (lambda month, day: f"2025-{month:02d}-{day:02d}T", _json_line),
)
