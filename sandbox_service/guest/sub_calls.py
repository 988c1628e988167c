"""`llm_query` and `llm_query_batched`: what a cell uses to ask sub-models.

A failure never looks like an answer: single calls raise, failed items of a batch are
`FailedQuery` objects that refuse every use as text.
"""

from collections.abc import Callable, Generator, Iterable
from typing import Any, NoReturn, Self

from .questions import Question, ask
from .typed_queries import TypedQuestion

_ROLES = ("system", "user", "assistant")
_MISMATCH = "SCHEMA_MISMATCH"


class LLMQueryError(RuntimeError):
    """A sub-model gave no answer; `reason` says why in one word."""

    __module__ = "__main__"  # tracebacks show the plain name, the one that cells catch

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason


class LimitExceededError(LLMQueryError):
    """A limit of the run is used up: no further call will be answered.

    `results` has what a batch got before the limit: answers and `FailedQuery` objects.
    """

    __module__ = "__main__"

    def __init__(self, message: str, reason: str = "", results: list[Any] | None = None) -> None:
        super().__init__(message, reason)
        self.results = results or []


class SchemaMismatchError(LLMQueryError):
    """No answer fitted the schema; `errors` says what was wrong with the last one, `text`."""

    __module__ = "__main__"

    def __init__(self, message: str, errors: list[str], text: str) -> None:
        super().__init__(message, _MISMATCH)
        self.errors = errors
        self.text = text


class FailedQuery:
    """A failed item of a batch: falsy, and an error wherever a text is expected."""

    def __init__(self, index: int, reason: str, message: str, run: str = "") -> None:
        self.index = index
        self.reason = reason
        self.message = message
        self.run = run

    def __repr__(self) -> str:
        return f"<FailedQuery #{self.index}: {self.reason}: {self.message}>"

    def __bool__(self) -> bool:
        return False

    def _refuse(self, *_: object, **__: object) -> NoReturn:
        raise TypeError(
            f"item {self.index} of the batch failed ({self.reason}: {self.message}) and has no "
            "text; check each item with `if item:` or isinstance(item, FailedQuery)"
        )

    # Declared one by one: Python looks operators up on the class, not through __getattr__.
    __str__ = __format__ = _refuse
    __len__ = __iter__ = __contains__ = __getitem__ = __int__ = __float__ = _refuse
    __add__ = __radd__ = __mul__ = __rmul__ = __mod__ = __rmod__ = _refuse
    __lt__ = __le__ = __gt__ = __ge__ = _refuse

    def __getattr__(self, name: str) -> NoReturn:
        if hasattr(str, name) and not name.startswith("__"):
            self._refuse()
        raise AttributeError(f"FailedQuery has no attribute {name!r}")


class Answer(str):
    """The answer to a sub-call: a str, which `await` takes as well."""

    __slots__ = ()
    __module__ = "__main__"

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:
        return str, (str(self),)

    def __await__(self) -> Generator[Any, None, Self]:
        return self
        yield


class AnswerList(list[Any]):
    """The answers to a batch: a list, which `await` takes as well."""

    __slots__ = ()
    __module__ = "__main__"

    def __reduce_ex__(self, _protocol: Any) -> tuple[Any, ...]:
        return list, (list(self),)

    def __await__(self) -> Generator[Any, None, Self]:
        return self
        yield


def llm_query(
    prompt: Any,
    *,
    tier: str | None = None,
    max_output_tokens: int | None = None,
    temperature: float | None = None,
    schema: Any = None,
) -> Any:
    """Ask a sub-model and return its answer, a str.

    The sub-model sees the prompt and nothing else: put the text to be read into it. `prompt` is
    a text, or a list of {"role": "system" | "user" | "assistant", "content": ...}. Raises
    LLMQueryError when there is no answer, LimitExceededError when a limit of the run is used up.
    With a JSON Schema as `schema`, a dict, the answer is the value that fits it; one that does not
    is asked for again, at most twice, then SchemaMismatchError is raised.

        answer = llm_query("Who signed this letter? Name only.\\n\\n" + context[:4000])

    For many prompts use llm_query_batched(prompts), `await asyncio.gather(...)` of calls, or a
    ThreadPoolExecutor: they are then asked at the same time.
    """
    return ask(
        question(
            prompt,
            tier=tier,
            max_output_tokens=max_output_tokens,
            temperature=temperature,
            schema=schema,
        )
    )


def llm_query_batched(
    prompts: Iterable[Any],
    *,
    tier: str | None = None,
    max_output_tokens: int | None = None,
    temperature: float | None = None,
    schema: Any = None,
) -> list[Any]:
    """Ask many prompts at once and return the answers in the order of the prompts.

    A prompt that failed has a FailedQuery in its place, which is falsy and no str; with `schema`,
    see llm_query, the others have values: tell them by isinstance(answer, FailedQuery). Raises
    LimitExceededError, with what was answered in its `results`, as soon as one failed because a
    limit of the run is used up.

        answers = llm_query_batched(["Summarize:\\n" + piece for piece in pieces])
        failed = [i for i, answer in enumerate(answers) if not isinstance(answer, str)]
    """
    answers: list[Any] = ask(
        batch_question(
            prompts,
            tier=tier,
            max_output_tokens=max_output_tokens,
            temperature=temperature,
            schema=schema,
        )
    )
    return answers


def question(
    prompt: Any,
    *,
    tier: str | None = None,
    max_output_tokens: int | None = None,
    temperature: float | None = None,
    schema: Any = None,
) -> Question:
    """Return what llm_query asks when it is called like this; raises what it raises for that."""
    request = _request([_messages(prompt)], False, tier, max_output_tokens, temperature)
    return _question(request, _single, schema)


def batch_question(
    prompts: Iterable[Any],
    *,
    tier: str | None = None,
    max_output_tokens: int | None = None,
    temperature: float | None = None,
    schema: Any = None,
) -> Question:
    """Return what llm_query_batched asks when it is called like this."""
    if isinstance(prompts, (str, bytes, dict)):
        raise TypeError("llm_query_batched takes a list of prompts; use llm_query for one")
    batch = [_messages(prompt) for prompt in prompts]
    request = _request(batch, True, tier, max_output_tokens, temperature)
    return _question(request, _several, schema)


def _question(
    request: dict[str, Any], give: Callable[[list[dict[str, Any]]], Any], schema: Any
) -> Question:
    return Question(request, give) if schema is None else TypedQuestion(request, give, schema)


def _single(outcomes: list[dict[str, Any]]) -> Any:
    outcome = outcomes[0]
    if "value" in outcome:
        return outcome["value"]
    if outcome.get("is_limit"):
        raise LimitExceededError(outcome["message"], outcome["reason"])
    if "errors" in outcome:
        raise SchemaMismatchError(_mismatch(outcome), outcome["errors"], outcome["text"])
    if "text" not in outcome:
        raise LLMQueryError(outcome["message"], outcome["reason"])
    return Answer(outcome["text"])


def _several(outcomes: list[dict[str, Any]]) -> AnswerList:
    results = AnswerList(_result(index, outcome) for index, outcome in enumerate(outcomes))
    for outcome in outcomes:
        if outcome.get("is_limit"):
            raise LimitExceededError(outcome["message"], outcome["reason"], results)
    return results


def _result(index: int, outcome: dict[str, Any]) -> Any:
    if "value" in outcome:
        return outcome["value"]
    if "errors" in outcome:
        return FailedQuery(index, _MISMATCH, _mismatch(outcome))
    if "text" in outcome:
        return outcome["text"]
    return FailedQuery(index, outcome["reason"], outcome["message"])


def _mismatch(outcome: dict[str, Any]) -> str:
    return f"the answer does not fit the schema: {'; '.join(outcome['errors'][:3])}"


QUESTIONS: dict[Callable[..., Any], Callable[..., Question]] = {
    llm_query: question,
    llm_query_batched: batch_question,
}
"""What each of these asks, called with the same arguments."""


def _request(
    batch: list[list[dict[str, str]]],
    is_batch: bool,
    tier: str | None,
    max_output_tokens: int | None,
    temperature: float | None,
) -> dict[str, Any]:
    if tier is not None and not isinstance(tier, str):
        raise TypeError(f"tier is a str, not {type(tier).__name__}")
    if max_output_tokens is not None:
        max_output_tokens = int(max_output_tokens)
        if not 0 < max_output_tokens < 1 << 31:
            raise ValueError("max_output_tokens must be 1 or more")
    if temperature is not None:
        temperature = float(temperature)
        if not 0 <= temperature <= 2:
            raise ValueError("temperature must be from 0 to 2")
    return {
        "call": "sub_calls",
        "prompts": batch,
        "is_batch": is_batch,
        "tier": tier or "",
        "output_tokens_max": max_output_tokens,
        "temperature": temperature,
    }


def _messages(prompt: Any) -> list[dict[str, str]]:
    if issubclass(type(prompt), str):  # isinstance would take a lazy text for one
        prompt = [{"role": "user", "content": prompt}]
    if not isinstance(prompt, (list, tuple)) or not prompt:
        raise TypeError(
            "a prompt is a str or a list of {'role': ..., 'content': ...}, "
            f"not {type(prompt).__name__}"
        )
    return [_message(message) for message in prompt]


def _message(message: Any) -> dict[str, str]:
    if not isinstance(message, dict):
        raise TypeError(f"a message is a dict with role and content, not {type(message).__name__}")
    role, text = message.get("role"), message.get("content")
    if role not in _ROLES:
        raise ValueError(f"a message's role is one of {', '.join(_ROLES)}, not {role!r}")
    if not issubclass(type(text), str):
        raise TypeError(f"a message's content is a str, not {type(text).__name__}")
    if not text:
        raise ValueError("a prompt must not be empty")
    return {"role": role, "text": text}
