"""What executions have come to and is too large for an event: whole outputs, and values that were
given as final.
"""

from __future__ import annotations

from fathom.orchestrator.v1.run_event_pb2 import CellFinished, ValueRead
from fathom.sandbox.v1.execution_pb2 import FinalValue

from common.errors import NotFoundError
from orchestrator.blobs import BlobMissingError
from orchestrator.runs.log.recorded import Place
from orchestrator.runs.patient_blobs import PatientBlobs

_FINAL_BYTES_MAX = 64 << 10
"""A larger value goes into a blob."""
_FINAL_BLOB_BYTES_MAX = 16 << 20


class KeptResults:
    """The results of one run's executions, each at the place that its execution has."""

    def __init__(self, blobs: PatientBlobs, *, run_id: str) -> None:
        self._blobs = blobs
        self._run_id = run_id

    async def keep_output(self, output: str, place: Place) -> str:
        """Store an output that the model is not shown whole; return its key."""
        key = self._key(place, "txt")
        await self._blobs.put(key, output.encode())
        return key

    async def keep_final(
        self, told: CellFinished | ValueRead, final: FinalValue, place: Place
    ) -> None:
        """Have an event tell of a final value, or of where it is."""
        data = final.SerializeToString()
        if len(data) <= _FINAL_BYTES_MAX:
            told.final_value = data
            return
        told.final_key = self._key(place, "final")
        await self._blobs.put(told.final_key, data)

    async def final(self, told: CellFinished | ValueRead) -> FinalValue | None:
        """Return the final value that an event tells of; None where there is none. Raises
        NotFoundError where it is gone, as with a deleted run that this one is a fork of, and
        ObjectStoreError."""
        if told.HasField("final_value"):
            return FinalValue.FromString(told.final_value)
        if not told.final_key:
            return None
        return FinalValue.FromString(await self._read(told.final_key))

    def _key(self, place: Place, suffix: str) -> str:
        turn, cell = place
        return f"outputs/{self._run_id}/{turn}-{cell}.{suffix}"

    async def _read(self, key: str) -> bytes:
        pieces = self._blobs.read(key, offset=0, size=_FINAL_BLOB_BYTES_MAX)
        try:
            return b"".join([piece async for piece in pieces])
        except BlobMissingError:
            raise NotFoundError(key) from None
