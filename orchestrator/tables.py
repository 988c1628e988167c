"""The orchestrator's tables. Only generic types: the same code runs on SQLite and PostgreSQL.

Times are microseconds of Unix time. What clients see of a run is kept as the contract's own
bytes; columns hold only what is searched by.
"""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    false,
    text,
    true,
)

MIGRATIONS = Path(__file__).parent / "migrations"
"""What makes them, for Alembic."""
metadata = MetaData()

contexts = Table(
    "contexts",
    metadata,
    # Of what was made for a child run; see StoredContext.
    Column("offset_bytes", BigInteger, nullable=False, server_default="0"),
    Column("blob_bytes", BigInteger, nullable=False, server_default="0"),
    Column("derived_from", String(64), nullable=False, server_default=""),
    Column("tenant", String(64), primary_key=True),
    Column("context_id", String(64), primary_key=True),
    Column("kind", String(16), nullable=False),
    Column("title", String(256), nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("blake3", String(64), nullable=False),
    Column("blob_key", String(128), nullable=False),
    Column("characters", BigInteger, nullable=False),
    Column("code_point_max", Integer, nullable=False),
    Column("lines", BigInteger, nullable=False),
    Column("malformed_sequences", BigInteger, nullable=False),
    Column("document_count", BigInteger, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    # Null for one that does not expire.
    Column("expires_us", BigInteger, nullable=True),
    # Of its documents' names and metadata; what of that counts as stored by the tenant.
    Column("words_bytes", BigInteger, nullable=False, server_default="0"),
    Index("contexts_newest", "tenant", "created_us", "context_id"),
    Index("contexts_by_blob", "blob_key"),
    Index("contexts_by_expiry", "expires_us"),
)

documents = Table(
    "documents",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("context_id", String(64), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("name", String(1024), nullable=False),
    Column("offset_bytes", BigInteger, nullable=False),
    Column("size_bytes", BigInteger, nullable=False),
    Column("characters", BigInteger, nullable=False),
    Column("code_point_max", Integer, nullable=False),
    Column("metadata", JSON, nullable=False),
)

# The bytes of contexts, as far as they are whole: one row for equal bytes of a tenant.
blobs = Table(
    "blobs",
    metadata,
    Column("blob_key", String(128), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("blake3", String(64), nullable=False),
    # What of it counts as stored by the tenant.
    Column("size_bytes", BigInteger, nullable=False),
    # Set once nothing refers to it: from then on it may be gone, and nothing may begin to.
    Column("removed_us", BigInteger, nullable=True),
    Index(
        "blobs_by_content",
        "tenant",
        "blake3",
        unique=True,
        sqlite_where=text("removed_us IS NULL"),
        postgresql_where=text("removed_us IS NULL"),
    ),
    Index("blobs_removed", "removed_us"),
)

uploads = Table(
    "uploads",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("upload_id", String(36), primary_key=True),
    Column("blob_key", String(128), nullable=False),
    # What its first message announced, so that each later stream announces the same.
    Column("plan", JSON, nullable=False),
    # How often a stream has gone on with it. Only the last one writes.
    Column("epoch", Integer, nullable=False),
    Column("kept_bytes", BigInteger, nullable=False),
    # What of it counts as stored by the tenant.
    Column("reserved_bytes", BigInteger, nullable=False),
    # Set once it has ended.
    Column("context_id", String(64), nullable=True),
    Column("updated_us", BigInteger, nullable=False),
    Index("uploads_oldest", "updated_us"),
)

upload_documents = Table(
    "upload_documents",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("upload_id", String(36), primary_key=True),
    Column("position", Integer, primary_key=True),
    Column("name", String(1024), nullable=False),
    Column("offset_bytes", BigInteger, nullable=False),
    Column("metadata", JSON, nullable=False),
)

# What each tenant stores: its blobs, and what its uploads have reserved.
storage_use = Table(
    "storage_use",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("size_bytes", BigInteger, nullable=False),
)

runs = Table(
    "runs",
    metadata,
    # Ids begin with the time, so their order is the order of creation.
    Column("run_id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("state", Integer, nullable=False),
    # Two parts of one serialized Run: what never changes, and what each step changes.
    Column("head", LargeBinary, nullable=False),
    Column("progress", LargeBinary, nullable=False),
    # The executor that drives it, or drove it last; null while it waits.
    Column("owner", String(128), nullable=True),
    # How often it was taken up. Whoever drives it writes only while this is as it was then.
    Column("epoch", Integer, nullable=False, server_default="0"),
    Column("priority", Integer, nullable=False, server_default="0"),
    # Places that it takes among the runs driven at a time: 0 for a child run, whose parent has one.
    Column("places", Integer, nullable=False, server_default="1"),
    Column("is_stop_wished", Boolean, nullable=False, server_default=false()),
    # What the audit log has of it: 0 nothing, 1 that it was created, 2 that it has ended.
    Column("booked", Integer, nullable=False, server_default="0"),
    # Of a child run; null for a run that a client created.
    Column("parent_id", String(64), nullable=True),
    # Unset when it is about to end: no child is stored of it from then on.
    Column("takes_children", Boolean, nullable=False, server_default=true()),
    # Null for a run that was made before contexts could be deleted.
    Column("context_id", String(64), nullable=True),
    Index("runs_by_context", "tenant", "context_id", "state"),
    Index("runs_by_parent", "parent_id", "run_id"),
    Index("runs_to_book", "booked", "state"),
    Index("runs_newest", "tenant", "run_id"),
    Index("runs_by_state", "state", "run_id"),
)

# What is known of a child run besides the run itself, for its parent and its tokens.
child_runs = Table(
    "child_runs",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("parent_id", String(64), nullable=False),
    Column("root_id", String(64), nullable=False),
    # Of the call that started it: the same call finds it again.
    Column("request_id", String(256), nullable=False),
    # What the runs above it may spend, as their tokens say.
    Column("lineage", JSON, nullable=False),
    # What is kept for it of what its parent has left, until its parent has booked its end.
    Column("tokens_reserved", BigInteger, nullable=False),
    Column("cost_usd_nanos_reserved", BigInteger, nullable=False),
    Column("sub_calls_reserved", BigInteger, nullable=False),
    # Live runs that it and all below it may be.
    Column("live_reserved", Integer, nullable=False),
    # Set with the event by which its parent tells of its end.
    Column("is_booked", Boolean, nullable=False, server_default=false()),
    Index("child_runs_by_request", "tenant", "request_id", unique=True),
    Index("child_runs_by_parent", "parent_id", "is_booked"),
    Index("child_runs_by_root", "root_id"),
)

# Runs whose usage is looked at once more after their end, and what was found then.
late_usage = Table(
    "late_usage",
    metadata,
    Column("run_id", String(64), primary_key=True),
    # Null once it is settled.
    Column("due_us", BigInteger, nullable=True),
    # A serialized UsageSettled, of what the run's events do not tell.
    Column("settled", LargeBinary, nullable=True),
    Index("late_usage_due", "due_us"),
)

executors = Table(
    "executors",
    metadata,
    # A process that drives runs: alive until its lease ends.
    Column("executor_id", String(128), primary_key=True),
    Column("lease_end_us", BigInteger, nullable=False),
)

run_events = Table(
    "run_events",
    metadata,
    Column("run_id", String(64), ForeignKey("runs.run_id"), primary_key=True),
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("event", LargeBinary, nullable=False),
)

run_requests = Table(
    "run_requests",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("request_id", String(256), primary_key=True),
    Column("digest", LargeBinary, nullable=False),
    Column("run_id", String(64), nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Index("run_requests_oldest", "created_us"),
)

audit_log = Table(
    "audit_log",
    metadata,
    Column("sequence", BigInteger, primary_key=True, autoincrement=False),
    Column("entered_us", BigInteger, nullable=False),
    Column("tenant", String(64), nullable=False),
    Column("actor", String(64), nullable=False),
    Column("action", String(64), nullable=False),
    Column("subject", String(160), nullable=False),
    Column("details", Text, nullable=False),
    Column("previous_blake3", String(64), nullable=False),
    Column("blake3", String(64), nullable=False),
    Index("audit_log_by_tenant", "tenant", "sequence"),
    Index("audit_log_by_subject", "subject", "sequence"),
)

# What is known of runs that have ended, without their content: for the views, and kept when the
# runs are deleted.
run_facts = Table(
    "run_facts",
    metadata,
    Column("run_id", String(64), primary_key=True),
    Column("tenant", String(64), nullable=False),
    Column("user_name", String(256), nullable=False),
    Column("profile", String(128), nullable=False),
    Column("depth", Integer, nullable=False),
    Column("state", Integer, nullable=False),
    Column("error_reason", String(64), nullable=False),
    Column("context_bytes", BigInteger, nullable=False),
    # The largest power of ten that is not above it; 0 for less than a thousand.
    Column("context_bytes_from", BigInteger, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("started_us", BigInteger, nullable=False),
    Column("ended_us", BigInteger, nullable=False),
    Column("turns", Integer, nullable=False),
    Column("sub_calls", BigInteger, nullable=False),
    Column("input_tokens", BigInteger, nullable=False),
    Column("output_tokens", BigInteger, nullable=False),
    Column("cost_usd_nanos", BigInteger, nullable=False),
    Index("run_facts_newest", "tenant", "ended_us"),
)

kill_switches = Table(
    "kill_switches",
    metadata,
    Column("target", String(160), primary_key=True),
    Column("reason", String(500), nullable=False),
    Column("created_by", String(64), nullable=False),
    Column("created_us", BigInteger, nullable=False),
)

conversations = Table(
    "conversations",
    metadata,
    Column("tenant", String(64), primary_key=True),
    # Ids begin with the time, so their order is the order of creation.
    Column("conversation_id", String(64), primary_key=True),
    Column("context_id", String(64), nullable=False),
    # The contract's Limits, serialized.
    Column("limits", LargeBinary, nullable=False),
    Column("idle_ttl_us", BigInteger, nullable=False),
    Column("created_us", BigInteger, nullable=False),
    Column("used_us", BigInteger, nullable=False),
    Column("newest_run_id", String(64), nullable=True),
    # What all its runs but the newest took: a serialized Usage, and their sub-calls.
    Column("usage", LargeBinary, nullable=False),
    Column("sub_calls", BigInteger, nullable=False),
    Column("request_id", String(256), nullable=True),
    Column("digest", LargeBinary, nullable=True),
    Index("conversations_by_request", "tenant", "request_id", unique=True),
)

conversation_runs = Table(
    "conversation_runs",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("conversation_id", String(64), primary_key=True),
    Column("run_id", String(64), primary_key=True),
)

# Who has checkpoints in the object store: `runs-{run}` or `conversations-{conversation}`. Written
# before the first byte of a checkpoint is.
checkpoint_owners = Table(
    "checkpoint_owners",
    metadata,
    Column("owner", String(128), primary_key=True),
    Column("tenant", String(64), nullable=False),
    # When they are looked at next; null where all that is stored is needed.
    Column("due_us", BigInteger, nullable=True),
    # Set once the run or conversation is deleted.
    Column("removed_us", BigInteger, nullable=True),
    Index("checkpoint_owners_due", "due_us"),
)

# Calls of host tools: each is made once, and answered from here when it is asked again.
host_tool_calls = Table(
    "host_tool_calls",
    metadata,
    Column("tenant", String(64), primary_key=True),
    Column("request_id", String(256), primary_key=True),
    Column("run_id", String(64), nullable=False),
    # Calls are counted for all of a tree together.
    Column("root_id", String(64), nullable=False),
    Column("tool", String(64), nullable=False),
    # Of tool and arguments: the same request id is the same call.
    Column("request_digest", LargeBinary, nullable=False),
    # False for one that was refused before it was made.
    Column("is_counted", Boolean, nullable=False),
    # One of the two once the call has ended: the result, or a serialized google.rpc.Status.
    Column("result_json", Text, nullable=True),
    Column("error", LargeBinary, nullable=True),
    Column("created_us", BigInteger, nullable=False),
    Index("host_tool_calls_by_root", "root_id", "tool"),
    Index("host_tool_calls_by_run", "run_id"),
)
