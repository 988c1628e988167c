"""What is settled with the server before anything is uploaded: which limits a profile brings, and
whether it would take the question at all.
"""

from __future__ import annotations

from dataclasses import replace
from decimal import Decimal

from fathom.orchestrator.v1 import orchestrator_service_pb2, profile_service_pb2, run_pb2

from fathom_client.client import Client
from fathom_client.command.invocation import Invocation
from fathom_client.command.options import DEFAULT_LIMITS
from fathom_client.command.request import Request, trust_line
from fathom_client.figures import NANOS_PER_USD
from fathom_client.limits import Limits


async def settled(
    client: Client, invocation: Invocation, request: Request
) -> tuple[Request, orchestrator_service_pb2.EstimateRunResponse]:
    """Return a request with its limits settled, and what it would take by the server's record.

    Under a profile this says the trust line. Raises CallError for what the creation of the run
    would refuse, so that nobody uploads for hours to learn of a wrong name.
    """
    if request.profile:
        profile = await client.profiles.get(request.profile)
        request = replace(request, limits=request.limits.or_else(_defaults_beside(profile)))
    found = await client.estimate(
        request.question,
        request.inputs if isinstance(request.inputs, str) else request.inputs.upload,
        limits=request.limits,
        root_tier=request.root_tier,
        sub_tier=request.sub_tier,
        answer_schema_json=request.answer_schema_json,
        confidence_min=request.confidence_min,
        profile=request.profile,
    )
    if request.profile:
        in_force = _in_force(request.limits, found.limits)
        invocation.terminal.say(trust_line(request.inputs, in_force))
    return request, found


def _defaults_beside(profile: profile_service_pb2.Profile) -> Limits:
    """Return the command's own defaults for what a profile says nothing of."""
    said_of = {
        field.name
        for limits in (profile.limit_defaults, profile.limit_ceilings)
        for field, _ in limits.ListFields()
    }
    return Limits(
        usd=None if "cost_usd_nanos_max" in said_of else DEFAULT_LIMITS.usd,
        time_s=None if "time_max" in said_of else DEFAULT_LIMITS.time_s,
        turns=None if "turns_max" in said_of else DEFAULT_LIMITS.turns,
    )


def _in_force(asked: Limits, filled_in: run_pb2.Limits) -> Limits:
    """Return what is shown: what was asked for, and of the rest what always is."""
    return asked.or_else(
        Limits(
            usd=Decimal(filled_in.cost_usd_nanos_max) / NANOS_PER_USD,
            time_s=filled_in.time_max.ToNanoseconds() / 1e9,
            turns=filled_in.turns_max,
        )
    )
