"""What a run's calls took that were cut off, from the gateway's ledger, told before the run ends.

The log tells of every call that ended while the run waited for it. What the ledger has beyond that
is written down as one event; a run that is driven again asks anew and adds only what is missing.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterable, Mapping

from fathom.gateway.v1.generation_pb2 import CallUsage, Usage
from fathom.orchestrator.v1.run_event_pb2 import CutOffUsage, UsageSettled

from common.errors import ReceivedError
from common.run_token import ORCHESTRATOR, RunToken, RunTokenSigner
from orchestrator.runs.amounts import add_usage, is_nothing, move_usage
from orchestrator.runs.children.lineage import Lineage
from orchestrator.runs.log.journal import RunJournal
from orchestrator.runs.log.record import RunRecord
from orchestrator.runs.log.recorded import RecordedEvents
from orchestrator.runs.ports import CallBooks

_GRACE_S = 0.3
"""For a provider to say what a call took. A run that is cancelled is to end within a second."""
_TIMEOUT_S = 1.0
"""With what booking takes; a gateway that is away is waited for no longer, since the run's usage is
looked at once more after its end."""
_TOKEN_S = 60.0
_TURN_DIGITS_MAX = 6
_log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settlement:
    """Completes the usage of runs."""

    books: CallBooks
    """The gateway's ledger."""
    signer: RunTokenSigner
    """Signs what permits to ask."""

    async def complete(
        self,
        tenant: str,
        record: RunRecord,
        journal: RunJournal,
        lineage: Lineage | None,
        *,
        waited_s: float,
    ) -> None:
        """Set a run's usage to all that its calls took and those of its child runs; where that
        cannot be known, the run says so. Its work is over, for `waited_s` by now."""
        grace_s = max(0.0, _GRACE_S - waited_s)
        try:
            settled = await self.missing(
                tenant, record, journal.recorded, lineage, grace_s=grace_s, timeout_s=_TIMEOUT_S
            )
        except ReceivedError as error:
            _log.warning(
                "what calls took that were cut off is not known",
                extra={"run": record.head.name, "reason": error.reason_name},
            )
            settled = UsageSettled(incomplete=True)
        journal.settle_usage(settled)

    async def missing(
        self,
        tenant: str,
        record: RunRecord,
        recorded: RecordedEvents,
        lineage: Lineage | None,
        *,
        grace_s: float,
        timeout_s: float,
    ) -> UsageSettled:
        """Return what the ledger has of a run's calls beyond what its events tell; raises
        ReceivedError where it does not answer."""
        found = await self.books.settle_calls(
            f"{record.run_id}/",
            run_token=self._token(tenant, record, lineage),
            grace_s=grace_s,
            timeout_s=timeout_s,
        )
        return UsageSettled(usages=_untold(found.calls, recorded), incomplete=found.open_calls > 0)

    def _token(self, tenant: str, record: RunRecord, lineage: Lineage | None) -> str:
        token = RunToken(
            tenant=tenant,
            run=lineage.root if lineage is not None else record.head.name,
            depth=record.head.depth,
            tiers=(),
            tokens_max=0,
            cost_usd_nanos_max=0,
            tokens_spent=0,
            cost_usd_nanos_spent=0,
            expires_at=time.time() + _TOKEN_S,
            presenters=(ORCHESTRATOR,),
        )
        return self.signer.mint(token)


def _untold(calls: Iterable[CallUsage], recorded: RecordedEvents) -> list[CutOffUsage]:
    """Return what the ledger has beyond what the log tells, by turn, tier and model."""
    booked: dict[int, dict[tuple[str, str], Usage]] = {}
    for call in calls:
        by_model = booked.setdefault(_turn_of(call.request_id), {})
        add_usage(by_model.setdefault((call.tier, call.model), Usage()), call.usage)
    return [
        CutOffUsage(turn=turn, tier=tier, model=model, usage=usage)
        for turn, by_model in sorted(booked.items())
        for (tier, model), usage in _beyond(by_model, recorded.told_in(turn)).items()
    ]


def _beyond(
    booked: Mapping[tuple[str, str], Usage], told: Mapping[tuple[str, str], Usage]
) -> dict[tuple[str, str], Usage]:
    """Return what is booked and not told. What was told without a model, of calls that failed, is
    taken from the models of its tier, and then from any."""
    left = {key: Usage() for key in booked}
    for key, usage in booked.items():
        left[key].CopyFrom(usage)
    for (tier, model), usage in told.items():
        rest = Usage()
        rest.CopyFrom(usage)
        for key in sorted(left, key=lambda key: (key != (tier, model), key[0] != tier, key)):
            move_usage(rest, left[key])
    return {key: usage for key, usage in left.items() if not is_nothing(usage)}


def _turn_of(request_id: str) -> int:
    """Return the turn of a call, which stands after the run in its request id; 0 for one that a
    worker made up."""
    turn = request_id.split("/")[1]
    return int(turn) if turn.isdecimal() and len(turn) <= _TURN_DIGITS_MAX else 0
