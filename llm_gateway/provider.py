"""What the gateway needs of a provider. `openai_provider.py` is the real one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from llm_gateway.answers import Completion, Delta
from llm_gateway.catalog import Deployment
from llm_gateway.prompts import Prompt

OnDelta = Callable[[Delta], None]
"""Takes a piece of a streamed reply."""


class Provider(Protocol):
    """A way to the models of one endpoint."""

    async def complete(
        self,
        deployment: Deployment,
        prompt: Prompt,
        output_tokens_max: int,
        on_delta: OnDelta | None,
    ) -> Completion:
        """Make one exchange, without retries; with `on_delta` it is streamed.

        Raises ProviderError for whatever goes wrong.
        """
        ...

    async def close(self) -> None:
        """Close its connections."""
        ...
