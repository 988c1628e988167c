# Expect: out_of_fuel
# Then: restored
# Limits: fuel=100_000_000 sub_calls=3
"""Goes on asking after the last sub-call that it may make, whatever it is told."""

while True:
    try:
        llm_query("and again")
    except BaseException:
        continue
