# Expect: completed
# Then: kept
# Limits: memory_mib=128
"""A few characters of format that ask for gigabytes."""

refused = 0
for make in (
    lambda: "{:>2000000000}".format("x"),
    lambda: f"{'x':>{10**9}}",
    lambda: "%2000000000d" % 1,
    lambda: "%.2000000000f" % 1.0,
    lambda: f"{1.0:.2000000000f}",
    lambda: "{0.__class__.__base__:>{1}}".format(1, 10**9),
    lambda: "{a" + "[a" * 10_000 + "]" * 10_000 + "}".format(a={}),
    lambda: "x".center(2**31 - 1),
    lambda: "\t".expandtabs(2**31 - 1),
    lambda: "x".zfill(2**31 - 1),
    lambda: "ab".replace("", "x" * 100_000) * 100_000,
    lambda: ",".join(["x" * 1_000_000] * 10_000),
):
    try:
        make()
    except (MemoryError, OverflowError, ValueError, TypeError, KeyError, RecursionError):
        refused += 1
assert refused >= 10, refused
