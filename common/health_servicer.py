"""Health of a server's services by gRPC's own protocol: asked for once, or watched.

gRPC's package keeps whatever name it was ever asked for; this one knows the names it was given.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Any

import grpc
from grpc_health.v1 import health_pb2 as pb
from grpc_health.v1 import health_pb2_grpc

from common.errors import NotFoundError

Context = grpc.aio.ServicerContext[Any, Any]
SERVICE = pb.DESCRIPTOR.services_by_name["Health"].full_name


class Health(health_pb2_grpc.HealthServicer):
    """The service; nothing is there until it is told."""

    def __init__(self) -> None:
        self._names: frozenset[str] = frozenset()
        self._status = pb.HealthCheckResponse.UNKNOWN
        self._changed = asyncio.Event()

    def register(self, server: grpc.aio.Server) -> None:
        """Add it to a server."""
        health_pb2_grpc.add_HealthServicer_to_server(self, server)

    def begin(self, names: Iterable[str]) -> None:
        """Tell that the server serves, under its own name, which is empty, and these."""
        self._names = frozenset({"", *names})
        self._tell(pb.HealthCheckResponse.SERVING)

    def end(self) -> None:
        """Tell that it does no more."""
        self._tell(pb.HealthCheckResponse.NOT_SERVING)

    async def Check(self, request: pb.HealthCheckRequest, _context: Context) -> Any:
        """Tell of a service."""
        if request.service not in self._names:
            raise NotFoundError("such service")
        return pb.HealthCheckResponse(status=self._status)

    async def Watch(self, request: pb.HealthCheckRequest, _context: Context) -> AsyncIterator[Any]:
        """Tell of a service now and whenever that changes."""
        is_known = request.service in self._names
        while True:
            changed = self._changed
            status = self._status if is_known else pb.HealthCheckResponse.SERVICE_UNKNOWN
            yield pb.HealthCheckResponse(status=status)
            await changed.wait()

    def _tell(self, status: Any) -> None:
        self._status = status
        self._changed.set()
        self._changed = asyncio.Event()
