# Expect: timed_out TimeoutError
# Then: restored
# Context: lazy
# Limits: time_s=0.3
"""The same with literals, which are looked for in another way."""

while True:
    context.count("a")
    context.rfind("no such text")
