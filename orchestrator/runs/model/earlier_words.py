"""What a root model is told of the questions that came before its own in a conversation."""

from __future__ import annotations

from orchestrator.conversations.recall import Earlier, Exchange
from orchestrator.runs.model.compaction import listed, shortened
from orchestrator.runs.model.prompt_book import PromptBook

_EXCHANGES_SHOWN = 20
_QUESTION_BYTES, _ANSWER_BYTES = 500, 1_500
_EXCHANGES_BYTES, _VARIABLES_BYTES = 8_000, 3_000
_BYTES_PER_WINDOW_TOKEN = 3 / 8
"""All of it takes at most about an eighth of the root model's window, and variables half of that
besides."""


def earlier_words(prompts: PromptBook, earlier: Earlier, *, window_tokens: int = 0) -> str:
    """Return the words; empty where nothing came before. The newest exchanges, each shortened, as
    many as there is room for in a window; 0 is an unknown one."""
    shown: list[str] = []
    room = int(window_tokens * _BYTES_PER_WINDOW_TOKEN) or _EXCHANGES_BYTES
    left = min(_EXCHANGES_BYTES, room)
    for exchange in reversed(earlier.exchanges[-_EXCHANGES_SHOWN:]):
        text = _exchange(exchange)
        left -= len(text.encode())
        if left < 0:
            break
        shown.append(text)
    if not shown:
        return ""
    shown.reverse()
    count = len(earlier.exchanges) - len(shown)
    session = "Its session is a new one: `context` is all that is in it."
    if earlier.session is not None:
        variables = [each for each in earlier.session.variables if each.name != "context"]
        lines = listed(variables, len(variables), min(_VARIABLES_BYTES, room // 2))
        session = prompts.text("earlier_session", variables=lines)
    return prompts.text(
        "earlier",
        session=session,
        left_out=f", the newest {len(shown)} of {len(shown) + count}" if count else "",
        exchanges="\n\n".join(shown),
    )


def _exchange(exchange: Exchange) -> str:
    question = shortened(exchange.question.strip(), _QUESTION_BYTES)
    return f"Q: {question}\nA: {shortened(exchange.answer.strip(), _ANSWER_BYTES)}"
