"""The texts that the root model is told: templates in files, filled in here.

Nothing decides here what is said when; that is the loop's work.
"""

from __future__ import annotations

import string
from collections.abc import Mapping
from importlib import resources

_FOLDER = "prompts"
_CHUNK_CHARACTERS_UNKNOWN = 30_000
_CHUNK_CHARACTERS_MIN = 2_000
_CHUNK_CHARACTERS_MAX = 200_000
_CHARACTERS_PER_TOKEN = 2.5
"""On the safe side: prose in English has about 4, code and other languages fewer."""
_ANSWER_TOKENS = 4_096
"""Left free in a sub-model's window for its answer and the instructions."""


class PromptBook:
    """All templates, read once."""

    def __init__(self, templates: Mapping[str, str]) -> None:
        self._templates = {name: string.Template(text) for name, text in templates.items()}

    @classmethod
    def packaged(cls) -> PromptBook:
        """Read the templates that come with the orchestrator."""
        folder = resources.files("orchestrator").joinpath(_FOLDER)
        return cls(
            {
                file.name.removesuffix(".md"): file.read_text(encoding="utf-8").strip()
                for file in folder.iterdir()
                if file.name.endswith(".md")
            }
        )

    def replaced(self, name: str, template: str) -> PromptBook:
        """Return the same templates but for one."""
        book = PromptBook({})
        book._templates = {**self._templates, name: string.Template(template)}
        return book

    def text(self, name: str, **values: object) -> str:
        """Return a template filled in; whole numbers get thousands separators.

        Raises KeyError for an unknown template and for a value that is missing.
        """
        shown = {
            key: f"{value:,}" if isinstance(value, int) else value for key, value in values.items()
        }
        return self._templates[name].substitute(shown)

    def system(self, *, window_tokens: int, children_live_max: int = 0) -> str:
        """Return the system message for a sub-model whose window is `window_tokens`, 0 where it
        is unknown, and a run that may have so many child runs at a time."""
        window = (
            f"A sub-model's window is {window_tokens:,} tokens, prompt and answer together."
            if window_tokens
            else "A sub-model's window is limited."
        )
        # Without separators: the number stands in code.
        children = ""
        if children_live_max:
            children = "\n" + self.text("children", live=children_live_max)
        return self.text(
            "system",
            window=window,
            chunk_characters=str(chunk_characters(window_tokens)),
            children=children,
        )


def chunk_characters(window_tokens: int) -> int:
    """Return a size of piece that fits a sub-model's window; 0 tokens is an unknown window."""
    if not window_tokens:
        return _CHUNK_CHARACTERS_UNKNOWN
    free_tokens = max(window_tokens - _ANSWER_TOKENS, window_tokens // 2)
    characters = int(free_tokens * _CHARACTERS_PER_TOKEN)
    rounded = characters // 1000 * 1000
    return min(max(rounded, _CHUNK_CHARACTERS_MIN), _CHUNK_CHARACTERS_MAX)
