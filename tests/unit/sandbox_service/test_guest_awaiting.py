"""Which calls of query functions are let to wait together, and which block as written."""

from __future__ import annotations

import ast

import pytest

from sandbox_service.guest import awaiting


def rewritten(source: str) -> str:
    """Return a cell after the exchange; a coroutine function's name is shown in capitals."""
    tree = ast.parse(source)
    awaiting.let_wait(tree, source)
    text = ast.unparse(tree)
    for name in awaiting.QUERIES:
        text = text.replace(f"<awaitable {name}>", name.upper())
    return text


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("await llm_query(p)", "await LLM_QUERY(p)"),
        ("await (llm_query(p) if x else f())", "await (LLM_QUERY(p) if x else f())"),
        ("await gather(llm_query(p))", "await gather(LLM_QUERY(p))"),
        ("await asyncio.gather(*[llm_query(p)])", "await asyncio.gather(*[LLM_QUERY(p)])"),
        (
            "await asyncio.gather(*list(map(llm_query, ps)))",
            "await asyncio.gather(*list(map(LLM_QUERY, ps)))",
        ),
        (
            "await asyncio.gather(*[asyncio.create_task(llm_query(p)) for p in ps])",
            "await asyncio.gather(*[asyncio.create_task(LLM_QUERY(p)) for p in ps])",
        ),
        ("t = llm_query(p)\nawait t", "t = LLM_QUERY(p)\nawait t"),
        (
            "t = []\nt.append(llm_query(p))\nlen(t)\nawait asyncio.gather(*t)",
            "t = []\nt.append(LLM_QUERY(p))\nlen(t)\nawait asyncio.gather(*t)",
        ),
        ("t = []\nt += [llm_query(p)]\nawait g(*t)", "t = []\nt += [llm_query(p)]\nawait g(*t)"),
        (
            "async def f(p):\n    return llm_query(p)",
            "async def f(p):\n    return await LLM_QUERY(p)",
        ),
        (
            "async def f(p):\n    x = g(llm_query(p))",
            "async def f(p):\n    x = g(await LLM_QUERY(p))",
        ),
        ("asyncio.run(rlm_query(p))", "asyncio.run(RLM_QUERY(p))"),
    ],
)
def test_what_is_awaited_is_exchanged(source: str, expected: str) -> None:
    assert rewritten(source) == expected


@pytest.mark.parametrize(
    "source",
    [
        # Its value is used before it is awaited, if it ever is.
        "x = llm_query(p)\nawait f(x)",
        "t = [llm_query(p)]\nprint(t[0])\nawait asyncio.gather(*t)",
        "await asyncio.gather(f(llm_query(p)))",
        "await asyncio.gather(*[f(llm_query(p)) for p in ps])",
        "x = [llm_query(p) for p in ps]\nawait asyncio.sleep(0)",
        # Other things of the same name.
        "def llm_query(p):\n    return p\nawait llm_query(p)",
        "llm_query = f\nawait llm_query(p)",
        "from m import llm_query\nawait llm_query(p)",
        "async def f(llm_query):\n    return llm_query(1)",
        "condition.wait(llm_query(p))\nawait f()",
        # Where giving way is not possible, or may hold a lock.
        "async def f(ps):\n    return [llm_query(p) for p in ps]",
        "async def f(p):\n    with lock:\n        x = llm_query(p)",
        "async def f(p):\n\n    def g():\n        return llm_query(p)\n    return g()",
        "async def f(p):\n    return (lambda: llm_query(p))()",
        # Plain code.
        "x = llm_query(p)",
        "def f(p):\n    return llm_query(p)\nawait g()",
    ],
)
def test_everything_else_stays_as_it_is_written(source: str) -> None:
    assert rewritten(source) == source
