"""Where an answer stands in the cache: what must be equal for two calls to get the same one.

The tenant is a part of it: an answer tells of the prompt, so that no tenant may find another's.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Sequence

import orjson

from llm_gateway.cache.rules import CacheRules
from llm_gateway.calls import Call
from llm_gateway.catalog import Deployment
from llm_gateway.prompts import CacheUse, Prompt

_FORM = 2
"""Version of the key and of what stands there; another one finds nothing."""


@dataclasses.dataclass(frozen=True)
class CachePlace:
    """One place."""

    key: bytes
    """32 bytes; equal for equal calls of one tenant."""
    models: frozenset[str]
    """Deployments whose answer may stand there: what a fallback says would outlast the failure
    that it stood in for."""


def place_of(call: Call, equals: Sequence[Deployment], rules: CacheRules) -> CachePlace | None:
    """Return the place of a call that deployments answer as equals; None where it is always asked.

    A call at temperature 0 has a place, unless a deployment is not even told the temperature.
    """
    prompt = call.prompt
    if not rules.is_on or prompt.cache_use is CacheUse.NEVER or not equals:
        return None
    is_repeatable = prompt.temperature == 0 and not any(
        "temperature" in deployment.omit_parameters for deployment in equals
    )
    if not (is_repeatable or rules.every_temperature or prompt.cache_use is CacheUse.ALLOWED):
        return None
    asked = {
        "form": _FORM,
        "tenant": call.token.tenant,
        "models": sorted(_resolved(deployment) for deployment in equals),
        "prompt": _canonical(prompt),
    }
    key = hashlib.blake2b(orjson.dumps(asked), digest_size=32).digest()
    return CachePlace(key, frozenset(deployment.name for deployment in equals))


def _resolved(deployment: Deployment) -> tuple[object, ...]:
    """Return what a deployment stands for: its name may be given to another model tomorrow."""
    left_out = ",".join(sorted(deployment.omit_parameters))
    return (
        deployment.name,
        deployment.provider.base_url,
        deployment.model,
        left_out,
        deployment.structured_output,
    )


def _canonical(prompt: Prompt) -> dict[str, object]:
    """Return what decides the answer; the tier does not, what it resolves to does."""
    return {
        "messages": prompt.messages,
        "output_tokens_max": prompt.output_tokens_max,
        "temperature": prompt.temperature,
        "stop": prompt.stop,
        "seed": prompt.seed,
        "response_schema": prompt.response_schema,
    }
