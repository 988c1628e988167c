"""The query functions together: what a call of each of them asks."""

from collections.abc import Callable
from typing import Any

from . import child_runs, host_tools, sub_calls
from .questions import Question

QUESTIONS: dict[Callable[..., Any], Callable[..., Question]] = {
    **sub_calls.QUESTIONS,
    host_tools.call_tool: host_tools.question,
    child_runs.rlm_query: child_runs.question,
    child_runs.rlm_query_batched: child_runs.batch_question,
}
"""What each query function asks, called with the same arguments."""
