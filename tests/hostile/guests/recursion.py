# Expect: raised RecursionError
# Then: kept
"""The plain one, which Python bounds by itself."""


def deeper():
    return deeper()


deeper()
