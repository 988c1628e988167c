"""What an attempt needs before a provider is asked: a slot, room under every limit, and a line in
the ledger that says what it may take.

Where nothing is in the way all three are had at once, the last two in one transaction. Else they
are waited for one after the other, money first, so that no slot is kept from those who have it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from llm_gateway.calls import Call
from llm_gateway.catalog import Deployment
from llm_gateway.demands import Demand
from llm_gateway.ledger.claim import Claim
from llm_gateway.meter import Asking, Meter
from llm_gateway.reservation import Reservation
from llm_gateway.tokens import input_tokens_at_most
from llm_gateway.upstreams import Upstream

_OUTPUT_TOKENS_MIN = 256
"""An answer shorter than this is no use to a caller who did not ask for one."""


@dataclasses.dataclass(frozen=True)
class Start:
    """Leave to ask. A slot of the upstream belongs to it."""

    reservation: Reservation
    """What may be taken."""
    exchange_id: str
    """What the ledger calls the exchange."""


class Starter:
    """Gives attempts leave to begin."""

    def __init__(self, meter: Meter, *, output_tokens_default: int) -> None:
        """`output_tokens_default` is for prompts and deployments that name no number."""
        self._meter = meter
        self._output_tokens_default = output_tokens_default

    async def start(
        self, call: Call, claim: Claim, upstream: Upstream, fallbacks: Sequence[Upstream] = ()
    ) -> Start:
        """Return once an attempt may begin; raises what meter and claim raise, and then holds
        nothing.

        As much is held as the dearest of `fallbacks` may take, so that the call can go on there.
        Near a limit, where there is no room for that, it is what the upstream itself may take.
        """
        demand = self.demand(call, upstream.deployment)
        dearest = self._with_fallbacks(call, demand, fallbacks)
        start = await self._start_at_once(call, claim, upstream, dearest)
        if start is None and dearest is not demand:
            start = await self._start_at_once(call, claim, upstream, demand)
        return start or await self._start_in_turn(call, claim, upstream, demand)

    async def _start_at_once(
        self, call: Call, claim: Claim, upstream: Upstream, demand: Demand
    ) -> Start | None:
        """Return None where something must be waited for; then nothing is held."""
        asking = await self._meter.asking(call.token, demand)
        if self._meter.has_line(call.token) or not upstream.enter_at_once():
            return None
        try:
            start = await self._reserve_and_write(claim, upstream.deployment.name, asking)
        except BaseException:
            upstream.leave()
            raise
        if start is None:
            upstream.leave()
        return start

    async def _reserve_and_write(self, claim: Claim, model: str, asking: Asking) -> Start | None:
        demand, posted = asking.demand, None
        if self._meter.is_in_ledger:
            # Posted first and awaited last: so it shares the reservation's transaction, or is the
            # only one where that needs none. Where there is no room it stands for a moment all the
            # same, and a gateway that dies in it has a call booked that was not made.
            posted = claim.post_hold(model, demand.worst, demand.output_tokens_max)
        reservation = None
        try:
            reservation = await self._meter.reserve_at_once(asking)
            if posted is not None:
                exchange_id = await claim.confirm(posted)
                if reservation is None:
                    claim.drop_hold(exchange_id, model)
            elif reservation is not None:
                # Not before: what another gateway reads of a new run must be counted once.
                exchange_id = await claim.hold(reservation, model)
        except BaseException:
            if reservation is not None:
                reservation.release()
            raise
        return None if reservation is None else Start(reservation, exchange_id)

    async def _start_in_turn(
        self, call: Call, claim: Claim, upstream: Upstream, demand: Demand
    ) -> Start:
        await claim.check()
        reservation = await self._meter.reserve(call.token, demand)
        try:
            await upstream.enter(call.token.tenant)
            try:
                return Start(reservation, await claim.hold(reservation, upstream.deployment.name))
            except BaseException:
                upstream.leave()
                raise
        except BaseException:
            reservation.release()
            raise

    def _with_fallbacks(self, call: Call, demand: Demand, fallbacks: Sequence[Upstream]) -> Demand:
        """Return a demand that holds what the dearest may take; the same where none is dearer."""
        worst = demand.worst
        for other in fallbacks:
            worst = worst.at_least(self.demand(call, other.deployment).worst)
        return demand if worst == demand.worst else dataclasses.replace(demand, fallback=worst)

    def demand(self, call: Call, deployment: Deployment) -> Demand:
        """Return what an attempt with a deployment may take."""
        prompt = call.prompt
        usual = deployment.output_tokens_default or self._output_tokens_default
        wanted = prompt.output_tokens_max or usual
        wanted = min(wanted, deployment.output_tokens_max or wanted)
        will_do = wanted if prompt.output_tokens_max else min(wanted, _OUTPUT_TOKENS_MIN)
        return Demand(
            input_tokens_max=prompt.input_tokens_bound,
            output_tokens_max=wanted,
            output_tokens_min=will_do,
            price=deployment.price,
            tier=prompt.tier,
            count=lambda: input_tokens_at_most(prompt, deployment),
        )
