"""Whose run a call is made for: the run token that it brings, as gRPC carries it."""

from __future__ import annotations

import time
from typing import Any

import grpc

from common.peers import peer_names
from common.run_token import RUN_TOKEN_METADATA, RunToken, RunTokenVerifier


def token_of(tokens: RunTokenVerifier, context: grpc.aio.ServicerContext[Any, Any]) -> RunToken:
    """Return what the call's run token says; raises UnauthenticatedError."""
    metadata = dict(context.invocation_metadata() or ())
    text = str(metadata.get(RUN_TOKEN_METADATA, ""))
    return tokens.verify(text, now=time.time(), presenter=peer_names(context))
