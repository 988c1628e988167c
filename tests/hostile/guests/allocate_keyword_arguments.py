# Expect: completed
# Then: kept
# Limits: memory_mib=96
"""A call with millions of arguments takes its memory in places that rarely see so much."""


def take(*arguments, **named):
    return len(arguments) + len(named)


assert take(*range(300_000)) == 300_000
assert take(**{f"a{number}": 0 for number in range(30_000)}) == 30_000
