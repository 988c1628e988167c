"""Keys of LiteLLM's proxy with limits, in the form that its documentation of custom authentication
gives. It runs in the proxy's process and environment; nothing here imports it.
"""

from __future__ import annotations

import hmac
import os

from litellm.proxy._types import (  # type: ignore[import-not-found]
    ProxyException,
    UserAPIKeyAuth,
)

_PLENTY = 1_000_000_000


async def user_api_key_auth(request: object, api_key: str) -> object:
    """Return who a key is, with limits in two scopes as a run and its tenant have; raises
    ProxyException for a stranger.
    """
    del request  # the key alone tells who it is
    for name, requests_a_minute in (("BENCH_KEY", _PLENTY), ("BENCH_LIMITED_KEY", 1)):
        if hmac.compare_digest(api_key.encode(), os.environ[name].encode()):
            return UserAPIKeyAuth(
                api_key=api_key,
                rpm_limit=requests_a_minute,
                tpm_limit=_PLENTY,
                max_parallel_requests=10_000,
                team_id="bench",
                team_rpm_limit=_PLENTY,
                team_tpm_limit=_PLENTY,
            )
    if hmac.compare_digest(api_key.encode(), os.environ["BENCH_OPERATOR_KEY"].encode()):
        return UserAPIKeyAuth(api_key=api_key, user_role="proxy_admin")
    raise ProxyException(
        message="unknown key", type="invalid_request_error", param="api_key", code=401
    )
