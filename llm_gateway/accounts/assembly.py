"""The accounts put together: which store, and what is known of earlier spend."""

from __future__ import annotations

from llm_gateway.accounts.memory_store import MemoryAccountStore
from llm_gateway.accounts.quotas import QuotaBook
from llm_gateway.accounts.slices import SlicedAccountStore
from llm_gateway.accounts.sql_store import SqlAccountStore
from llm_gateway.accounts.store import AccountStore
from llm_gateway.ledger.assembly import OpenLedger
from llm_gateway.ledger.usage import UsageReports
from llm_gateway.meter import Meter

IN_DATABASE = "database"
IN_MEMORY = "memory"


def make_meter(where: str, ledger: OpenLedger, quotas: QuotaBook) -> Meter:
    """Return the meter over the store that a setting names: `database`, `memory`, or the URL of a
    Valkey server. What it holds is let go by `Meter.living`."""
    meter = Meter(
        now=ledger.clock.now,
        store=_store(where, ledger),
        books=ledger.ledger,
        quotas=quotas,
        is_in_ledger=where == IN_DATABASE,
    )
    if where == IN_MEMORY:
        # No other process writes to this store; what the dead have left is in the ledger alone.
        ledger.ledger.on_unknown(meter.read_again)
    return meter


def make_quota_book(where: str, ledger: OpenLedger) -> QuotaBook:
    """Return the quotas in the ledger's database."""
    usage = None if where == IN_DATABASE else UsageReports(ledger.database)
    return QuotaBook(ledger.database, usage=usage, now=ledger.clock.now)


def _store(where: str, ledger: OpenLedger) -> AccountStore:
    if where == IN_MEMORY:
        return MemoryAccountStore()
    if where == IN_DATABASE:
        return SlicedAccountStore(SqlAccountStore(ledger.commits))
    # Here, since Valkey's library takes several megabytes, of every gateway.
    from llm_gateway.accounts.valkey_store import ValkeyAccountStore

    return SlicedAccountStore(ValkeyAccountStore.open(where))
