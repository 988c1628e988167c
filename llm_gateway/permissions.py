"""Who calls, by the run token, and what that lets them ask. Default deny."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection

from common.config import Secret
from common.errors import PermissionDeniedError, UnauthenticatedError
from common.run_token import AUDIENCE_DEFAULT, RunToken, RunTokenVerifier
from llm_gateway.catalog import MODEL_PREFIX, Catalog

_NO_KEY = Secret("")
_audit = logging.getLogger("fathom.audit")


class Gate:
    """Turns the text of a run token into what its bearer may do."""

    def __init__(
        self,
        key: Secret,
        catalog: Catalog,
        *,
        token_required: bool = True,
        previous_key: Secret = _NO_KEY,
        audience: str = AUDIENCE_DEFAULT,
        lifetime_s_max: float | None = None,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Without `token_required` a call that brings no token may do everything; for the other
        parameters see RunTokenVerifier.

        Raises ConfigError for a key that is too short, or missing where tokens are required.
        """
        self._tokens = (
            RunTokenVerifier(
                key, audience=audience, previous_key=previous_key, lifetime_s_max=lifetime_s_max
            )
            if key or token_required
            else None
        )
        self._catalog = catalog
        self._token_required = token_required
        self._now = now

    def offer(self, catalog: Catalog) -> None:
        """Take over what is offered from now on."""
        self._catalog = catalog

    def admit(
        self, text: str, peer: str = "", presenter: Collection[str] | None = None
    ) -> RunToken:
        """Return what the token says; raises UnauthenticatedError, and writes that down with the
        address of the peer, and with its names where they are known."""
        if self._tokens is None or (not text and not self._token_required):
            return self._anyone()
        try:
            return self._tokens.verify(text, now=self._now(), presenter=presenter)
        except UnauthenticatedError as error:
            _audit.warning(
                "a run token was refused",
                extra={
                    "problem": error.metadata["problem"],
                    "peer": peer,
                    "presenter": ", ".join(sorted(presenter or ())),
                },
            )
            raise

    def _anyone(self) -> RunToken:
        return RunToken(
            tenant="anyone",
            run="runs/anonymous",
            depth=0,
            tiers=tuple(self._catalog.tiers),
            tokens_max=None,
            cost_usd_nanos_max=None,
            tokens_spent=0,
            cost_usd_nanos_spent=0,
            expires_at=0.0,
        )


def check_permitted(token: RunToken, catalog: Catalog, wanted: str) -> None:
    """Raise PermissionDeniedError unless the token permits a tier or `models/{model}`."""
    is_permitted = wanted in token.tiers or (
        wanted.startswith(MODEL_PREFIX)
        and is_model_permitted(token, catalog, wanted.removeprefix(MODEL_PREFIX))
    )
    if not is_permitted:
        kind = "model" if wanted.startswith(MODEL_PREFIX) else "tier"
        raise PermissionDeniedError(
            f"{kind}:{wanted}", f"prompt.tier: the run token does not permit {wanted}"
        )


def is_model_permitted(token: RunToken, catalog: Catalog, name: str) -> bool:
    """Whether a deployment is named by the token, or in the pool of a tier that is."""
    return MODEL_PREFIX + name in token.tiers or any(
        tier in token.tiers for tier in catalog.tiers_of(name)
    )
