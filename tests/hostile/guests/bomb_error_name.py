# Expect: completed
# Then: kept
"""Names of exceptions that are long, empty, or no text at all, raised and caught."""

for name in ("x" * 100_000, "", "\ud800", "a\0b"):
    try:
        raise type(name, (Exception,), {}) if name != "a\0b" else ValueError
    except (Exception, SystemExit) as error:
        caught = error
