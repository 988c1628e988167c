"""`rlm_query` and `rlm_query_batched`: questions to child runs, each with a session, a context
and limits of its own.

What a child may have is decided outside; here is only how to ask for it.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from .child_contexts import ContextPart, characters_given, given_context
from .questions import Question, ask
from .sub_calls import Answer, AnswerList, FailedQuery, LimitExceededError, LLMQueryError

_QUESTION_BYTES_MAX = 64 << 10
_USD_NANOS = 1_000_000_000


class ChildRunError(LLMQueryError):
    """A child run ended without an answer; `run` names it."""

    __module__ = "__main__"

    def __init__(self, message: str, reason: str = "", run: str = "") -> None:
        super().__init__(message, reason)
        self.run = run


class ChildAnswer(Answer):
    """A child run's answer: a str that knows its `run`, and the `limit` that cut it short, if one
    did."""

    __slots__ = ("limit", "run")
    __module__ = "__main__"

    run: str
    limit: str


def rlm_query(
    prompt: str,
    context: Any = None,
    *,
    tier: str | None = None,
    sub_tier: str | None = None,
    max_usd: float | None = None,
    max_tokens: int | None = None,
    max_sub_calls: int | None = None,
    max_turns: int | None = None,
    max_time: float | None = None,
    max_depth: int | None = None,
    max_children: int | None = None,
    schema: Any = None,
) -> Any:
    """Have a child run work on a question, and return its answer.

    A child is a model with a Python session of its own, as you are: for parts that need work of
    their own rather than one reading. Its `context` is yours, or a str, list or dict that you
    give, or part(start, stop) of yours. It sees nothing else: put what it needs into the prompt.
    What it spends is yours; `max_usd`, `max_time` (seconds) and their like bound it further. The
    answer is a str with a `.run`, or what fits `schema` where you give a JSON Schema. Raises
    ChildRunError when there is none, LimitExceededError when a limit of the run is used up.

        rlm_query("Which of these contracts can be ended early?", {name: context[name]})

    For several use rlm_query_batched: they then run at the same time.
    """
    options = _options(
        tier=tier,
        sub_tier=sub_tier,
        max_usd=max_usd,
        max_tokens=max_tokens,
        max_sub_calls=max_sub_calls,
        max_turns=max_turns,
        max_time=max_time,
        max_depth=max_depth,
        max_children=max_children,
        schema=schema,
    )
    return ask(_question([_child(prompt, context, options)], is_batch=False))


def rlm_query_batched(
    prompts: str | Iterable[str], contexts: Iterable[Any] | None = None, **options: Any
) -> list[Any]:
    """Have many child runs work at once and return their answers in order.

    `prompts` is a list, with `contexts` a list of as many, or none for your own context; or one
    prompt for all of the contexts. Options are those of rlm_query, for each child. A child that
    failed has a FailedQuery in its place, which is falsy and no str.

        answers = rlm_query_batched("List every complaint.", [part(0, n), part(n, 2 * n)])
    """
    return ask(batch_question(prompts, contexts, **options))  # type: ignore[no-any-return]


def question(prompt: str, context: Any = None, **options: Any) -> Question:
    """Return what rlm_query asks when it is called like this; raises what it raises for that."""
    return _question([_child(prompt, context, _options(**options))], is_batch=False)


def batch_question(
    prompts: str | Iterable[str], contexts: Iterable[Any] | None = None, **options: Any
) -> Question:
    """Return what rlm_query_batched asks when it is called like this."""
    if isinstance(contexts, (str, bytes, Mapping, ContextPart)):
        raise TypeError("contexts is a list with a context for each child")
    given = None if contexts is None else list(contexts)
    if isinstance(prompts, str):
        if given is None:
            raise TypeError("rlm_query_batched takes a list of prompts, or one and contexts")
        prompts = [prompts] * len(given)
    prompts = list(prompts)
    if given is None:
        given = [None] * len(prompts)
    if len(given) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts and {len(given)} contexts: as many of each")
    values = _options(**options)
    pairs = zip(prompts, given, strict=True)
    return _question([_child(prompt, context, values) for prompt, context in pairs], is_batch=True)


def _question(runs: list[dict[str, Any]], *, is_batch: bool) -> Question:
    request = {"call": "child_runs", "runs": runs, "is_batch": is_batch}
    has_schema = bool(runs and runs[0]["schema"])

    def single(outcomes: list[dict[str, Any]]) -> Any:
        outcome = outcomes[0]
        if outcome.get("is_limit"):
            raise LimitExceededError(outcome["message"], outcome["reason"])
        if "text" not in outcome:
            raise ChildRunError(outcome["message"], outcome["reason"], outcome.get("run", ""))
        return _value(outcome, has_schema)

    def several(outcomes: list[dict[str, Any]]) -> AnswerList:
        results = AnswerList(_result(i, o, has_schema) for i, o in enumerate(outcomes))
        for outcome in outcomes:
            if outcome.get("is_limit"):
                raise LimitExceededError(outcome["message"], outcome["reason"], results)
        return results

    characters = sum(len(run["question"]) + characters_given(run["context"]) for run in runs)
    return Question(request, several if is_batch else single, items="runs", characters=characters)


def _value(outcome: dict[str, Any], has_schema: bool) -> Any:
    if has_schema and outcome.get("is_json"):
        return json.loads(outcome["text"])
    answer = ChildAnswer(outcome["text"])
    answer.run, answer.limit = outcome.get("run", ""), outcome.get("limit", "")
    return answer


def _result(index: int, outcome: dict[str, Any], has_schema: bool) -> Any:
    if "text" in outcome:
        return _value(outcome, has_schema)
    return FailedQuery(index, outcome["reason"], outcome["message"], outcome.get("run", ""))


def _child(prompt: Any, context: Any, options: dict[str, Any]) -> dict[str, Any]:
    if not issubclass(type(prompt), str):  # isinstance would take a lazy text for one
        raise TypeError(f"a child run's prompt is a str, not {type(prompt).__name__}")
    if not prompt.strip():
        raise ValueError("a prompt must not be empty")
    if len(prompt.encode("utf-8", "replace")) > _QUESTION_BYTES_MAX:
        raise ValueError(
            "a child run's prompt has at most 64 KiB: give the text to read as its context, "
            "rlm_query(prompt, text)"
        )
    return {"question": str(prompt), "context": given_context(context), **options}


def _options(
    *,
    tier: str | None = None,
    sub_tier: str | None = None,
    max_usd: float | None = None,
    max_tokens: int | None = None,
    max_sub_calls: int | None = None,
    max_turns: int | None = None,
    max_time: float | None = None,
    max_depth: int | None = None,
    max_children: int | None = None,
    schema: Any = None,
) -> dict[str, Any]:
    for name, value in (("tier", tier), ("sub_tier", sub_tier)):
        if value is not None and not isinstance(value, str):
            raise TypeError(f"{name} is a str, not {type(value).__name__}")
    if schema is not None and not isinstance(schema, str):
        schema = json.dumps(schema)
    return {
        "tier": tier or "",
        "sub_tier": sub_tier or "",
        "turns_max": _least("max_turns", max_turns, 1),
        "time_max_s": None if max_time is None else _positive("max_time", max_time),
        "sub_calls_max": _least("max_sub_calls", max_sub_calls, 0),
        "tokens_max": _least("max_tokens", max_tokens, 1),
        "cost_usd_nanos_max": (
            None if max_usd is None else round(_positive("max_usd", max_usd) * _USD_NANOS)
        ),
        "depth_max": _least("max_depth", max_depth, 0),
        "children_live_max": _least("max_children", max_children, 0),
        "schema": schema or "",
    }


def _least(name: str, value: Any, least: int) -> int | None:
    if value is None:
        return None
    number = int(value)
    if not least <= number < 1 << 31:
        raise ValueError(f"{name} must be {least} or more")
    return number


def _positive(name: str, value: Any) -> float:
    number = float(value)
    if not 0 < number < 1e9:
        raise ValueError(f"{name} must be above 0")
    return number
