# Expect: out_of_fuel
# Then: restored
# Limits: fuel=200_000_000
"""A stop delivered as an exception could be caught; ours is a trap, which Python cannot see."""

while True:
    try:
        while True:
            pass
    except BaseException:
        continue
    finally:
        while True:
            pass
