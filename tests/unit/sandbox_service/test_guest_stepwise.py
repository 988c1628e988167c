"""Functions that give way where they ask: the same results, and questions in rounds."""

from __future__ import annotations

import builtins
import linecache
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from sandbox_service.guest import host, stepwise, sub_calls

FILENAME = "<cell 1>"


@pytest.fixture(autouse=True)
def runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let compiled generators find what they find in the guest, and answer each prompt."""
    monkeypatch.setitem(builtins.__dict__, stepwise.IN_STEPS, stepwise.in_steps)
    monkeypatch.setattr(host, "ask", answered)
    stepwise._stepwise.cache_clear()  # one cell 1 a test


def answered(request: dict[str, Any]) -> dict[str, Any]:
    texts = [prompt[0]["text"] for prompt in request["prompts"]]
    return {"outcomes": [{"text": f"re: {text}"} for text in texts]}


def cell(source: str) -> dict[str, Any]:
    """Run source as a cell and return its namespace."""
    linecache.cache[FILENAME] = (len(source), None, source.splitlines(keepends=True), FILENAME)
    namespace: dict[str, Any] = {"llm_query": sub_calls.llm_query}
    exec(compile(source, FILENAME, "exec"), namespace)
    return namespace


def stepped(function: Callable[..., Any], *args: Any) -> tuple[Any, list[str]]:
    """Run a function by its questions; returns its result and the prompts in their order."""
    steps = stepwise.steps_of(function, args, {})
    assert steps is not None
    prompts: list[str] = []
    try:
        question = next(steps)
        while True:
            prompts.append(question.request["prompts"][0][0]["text"])
            question.settle(answered(question.request)["outcomes"])
            question = steps.send(question.value())
    except StopIteration as stop:
        return stop.value, prompts


FUNCTIONS = [
    "def f(x):\n    return llm_query(x)",
    "def f(x):\n    p = x + '!'\n    return llm_query(p).upper(), len(p)",
    "f = lambda x: llm_query(x)",
    "f = lambda x: [llm_query(x + '1'), llm_query(x + '2')]",
    "f, g = (lambda x: llm_query('f' + x)), (lambda x: llm_query('g' + x))",
    "def f(x, n=2, *rest, sep='-', **more):\n    return sep.join([llm_query(x)] * n)",
    "def f(x):\n    for i in range(3):\n        x = llm_query(x)\n    else:\n        return x",
    "def f(x):\n    while len(x) < 9:\n        x = llm_query(x)\n    return x",
    "def f(x):\n    if x and (y := llm_query(x)):\n        return f'{y} and {llm_query(y)}'",
    (
        "def f(x):\n    try:\n        return int(llm_query(x))\n    except ValueError:\n"
        "        return llm_query('again')\n    finally:\n        print(end='')"
    ),
    "def f(x):\n    return {'a': llm_query(x), **{'b': llm_query('b')}}",
    "def f(x):\n    def inner(y):\n        return llm_query(y)\n    return inner(x) + x",
    (
        "def maker(n):\n    def f(x):\n        nonlocal n\n        n += 1\n"
        "        return llm_query(x * n)\n    return f\nf = maker(1)"
    ),
    (
        "def ask(p):\n    return llm_query(p)\ndef again(p):\n    return ask(ask(p))\n"
        "def f(x):\n    return again(x)"
    ),
    "def f(x):\n    return f(x[1:]) + llm_query(x) if x else ''",
    (
        "class A:\n    def ask(self, x):\n        return llm_query(x + self.end)\n"
        "    end = '.'\nf = A().ask"
    ),
    "import functools\nf = functools.partial(lambda a, x: llm_query(a + x), 'a')",
    "def deco(g):\n    return g\n@deco\n@deco\ndef f(x):\n    return llm_query(x)",
    "def f(x):\n    match llm_query(x):\n        case str(y):\n            return y",
    "def f(x):\n    return list(map(str, [1])) + [llm_query(x)]",
    "def f(x):\n    a, *b = llm_query(x), llm_query('y')\n    return a, b",
    "def f(x):\n    assert llm_query(x), 'none'\n    del x\n    return None",
    "async def other(): pass\ndef f(x):\n    return llm_query(x)",
]


@pytest.mark.parametrize("source", FUNCTIONS)
def test_a_function_gives_the_same_by_its_questions(source: str) -> None:
    """Whatever it does between them, and however deep the question is."""
    as_written = cell(source)["f"]("a")

    result, prompts = stepped(cell(source)["f"], "a")

    assert result == as_written
    assert prompts


@pytest.mark.parametrize(
    "source",
    [
        "def f(x):\n    return x",
        "f = len",
        "def f(x):\n    yield llm_query(x)",
        "async def f(x):\n    return llm_query(x)",
        "import functools\n@functools.lru_cache\ndef f(x):\n    return llm_query(x)",
        "def f(x):\n    lock.acquire()\n    return llm_query(x)",
        "class A:\n    def __call__(self, x):\n        return llm_query(x)\nf = A()",
        "def llm_query(x):\n    return x\nf = lambda x: llm_query(x)",
    ],
)
def test_other_functions_run_as_they_are_written(source: str) -> None:
    """Those that ask nothing, and those of which it is not sure to mean the same."""
    assert stepwise.steps_of(cell(source)["f"], ("a",), {}) is None


@pytest.mark.parametrize(
    "body",
    [
        "    with lock:\n        return llm_query(x)",
        "    return [llm_query(y) for y in x]",
        "    return sorted(x, key=lambda y: llm_query(y))",
    ],
)
def test_where_it_must_not_give_way_it_asks_at_once(body: str) -> None:
    """In a `with`, which may hold a lock, and where Python has no way to."""
    source = f"import contextlib\nlock = contextlib.nullcontext()\ndef f(x):\n{body}"
    as_written = cell(source)["f"]("ab")
    steps = stepwise.steps_of(cell(source)["f"], ("ab",), {})

    assert steps is not None
    with pytest.raises(StopIteration) as stop:
        next(steps)
    assert stop.value.value == as_written


def test_two_functions_go_on_in_alternation() -> None:
    f = cell("order = []\ndef f(x):\n    order.append(x)\n    llm_query(x)\n    order.append(x)")[
        "f"
    ]
    first, second = (stepwise.steps_of(f, (name,), {}) for name in "ab")
    assert first is not None
    assert second is not None

    questions = [next(first), next(second)]
    for steps, question in zip((first, second), questions, strict=True):
        question.settle(answered(question.request)["outcomes"])
        finish(steps, question.value())

    assert f.__globals__["order"] == ["a", "b", "a", "b"]


def finish(steps: Iterator[Any], value: Any) -> None:
    with pytest.raises(StopIteration):
        steps.send(value)  # type: ignore[attr-defined]


def test_wrong_arguments_are_an_error_at_once() -> None:
    f = cell("def f(x):\n    return llm_query(x)")["f"]

    with pytest.raises(TypeError, match="missing 1 required"):
        stepwise.steps_of(f, (), {})


@pytest.mark.parametrize("text", ["", "x = 1\n", "def f(y):\n    return 1\n", "def f(:\n"])
def test_a_source_that_is_not_the_functions_is_not_believed(text: str) -> None:
    """A cell can change linecache: then functions run as they are written."""
    f = cell("def f(x):\n    global g\n    g = 1\n    return llm_query(x)")["f"]
    linecache.cache[FILENAME] = (len(text), None, text.splitlines(keepends=True), FILENAME)

    steps = stepwise.steps_of(f, ("a",), {})

    assert steps is None or next(steps, None) is None
