# Expect: completed
# Then: kept
# Limits: fuel=2_000_000_000
"""Constants that the compiler might work out beforehand, before anything can be limited."""

for source in (
    "2 ** 2 ** 100",
    "(1,) * 10 ** 9",
    "'x' * 10 ** 9",
    "1 << 10 ** 9",
    "-(10 ** 10 ** 6)",
):
    compile(source, "folded", "eval")
