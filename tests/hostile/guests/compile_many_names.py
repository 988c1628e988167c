# Expect: completed
# Then: kept
"""A function with more variables and constants than any has."""

count = 5_000
source = "def f():\n" + "".join(f"  v{n} = {n}.5\n" for n in range(count)) + "  return locals()"
exec(source)
assert len(f()) == count
