# Expect: out_of_fuel
# Then: spent
# Limits: session_fuel=150_000_000
"""Uses up what all cells of the session have together: no later one gets anything."""

while True:
    pass
