# Expect: completed
# Then: kept
"""Sources nested so deeply that the parser would recurse out of its stack."""

refused = 0
for source in (
    "(" * 100_000 + ")" * 100_000,
    "[" * 150 + "]" * 150,
    "-" * 100_000 + "1",
    "not " * 100_000 + "1",
    "a" + ".a" * 100_000,
    "a" + "[0]" * 100_000,
    "a" + "()" * 100_000,
    "1" + "+1" * 100_000,
    "lambda:" * 100_000 + "0",
    "0 if 0 else " * 100_000 + "0",
    "f'{" * 200 + "0" + "}'" * 200,
    "\n".join(" " * depth + "if 1:" for depth in range(200)) + " 0",
    "x" + "**x" * 100_000,
    "*" * 100_000 + "a",
    "await " * 100_000 + "a",
):
    try:
        compile(source, "nested", "exec")
    except (SyntaxError, RecursionError, MemoryError):
        refused += 1
assert refused >= 12, refused
