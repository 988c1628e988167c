"""An operator's service that runs of a storm call as a tool. It counts what it is asked, and is
slow enough that callers are killed while it works.
"""

from __future__ import annotations

import asyncio
import collections
import json
from pathlib import Path
from typing import Any

from fathom.tools.v1 import tool_service_pb2 as wire
from fathom.tools.v1.tool_service_pb2_grpc import (
    ToolServiceServicer,
    add_ToolServiceServicer_to_server,
)

from common.server import Server
from tests.chaos.marks import Mark
from tests.chaos.scripts import TOOL, said

_WORK_S = 0.3
_PROFILE = """version = 1
description = "Orders things"

[[helpers]]
file = "orders/listed.py"

[tools.{tool}]
endpoint = "{endpoint}"
description = "Orders a thing, and returns its receipt."
arguments = "orders/order.json"
time_max_s = 60
concurrency_max = 64
"""
_ARGUMENTS = {
    "type": "object",
    "properties": {"order": {"type": "string", "minLength": 1}},
    "required": ["order"],
}
_HELPER = '''def listed(receipts):
    """List receipts."""
    return ",".join(receipts)
'''


class Orders(ToolServiceServicer):
    """The service, and what it was asked."""

    def __init__(self) -> None:
        self._ids: dict[str, set[str]] = collections.defaultdict(set)
        self.calls = 0
        """Calls, repeats included."""

    def register(self, server: Server) -> None:
        """Add it to a server."""
        add_ToolServiceServicer_to_server(self, server.grpc)

    @property
    def doubled(self) -> list[str]:
        """Orders that came under several request ids, so that things were ordered twice."""
        return [
            f"{order} was ordered as {sorted(ids)}"
            for order, ids in self._ids.items()
            if len(ids) > 1
        ]

    def count_of(self, mark: Mark) -> int:
        """Return how many things a run has ordered."""
        return sum(Mark.first_in(order) == mark for order in self._ids)

    async def CallTool(self, request: wire.CallToolRequest, context: Any) -> wire.CallToolResponse:
        self.calls += 1
        order = json.loads(request.arguments_json)["order"]
        self._ids[order].add(request.context.request_id)
        await asyncio.sleep(_WORK_S)
        return wire.CallToolResponse(result_json=json.dumps({"receipt": said(order)}))


def write_profile(folder: Path, endpoint: str) -> None:
    """Write the profile that offers the service to runs into a folder."""
    (folder / "orders").mkdir(parents=True)
    (folder / "orders" / "listed.py").write_text(_HELPER)
    (folder / "orders" / "order.json").write_text(json.dumps(_ARGUMENTS))
    (folder / "orders.toml").write_text(_PROFILE.format(tool=TOOL, endpoint=endpoint))
