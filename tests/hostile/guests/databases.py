# Expect: completed
# Then: kept
"""A database of the host's, its extensions, and files under other names."""

refused = 0
for attempt in (
    lambda: __import__("sqlite3").connect("/tmp/x.db").execute("create table t (a)"),
    lambda: (
        __import__("sqlite3")
        .connect("file:/etc/passwd?mode=ro", uri=True)
        .execute("select 1 from t")
    ),
    lambda: (
        __import__("sqlite3")
        .connect(":memory:")
        .execute("attach '/etc/passwd' as p")
        .execute("select * from p.t")
    ),
    lambda: __import__("sqlite3").connect(":memory:").enable_load_extension(True) or open("/x"),
    lambda: __import__("dbm").open("/tmp/x", "c"),
    lambda: __import__("shelve").open("/tmp/x"),
):
    try:
        attempt()
    except Exception:
        refused += 1
assert refused == 6, refused
