# Expect: raised ZeroDivisionError
# Then: kept
"""Ties a traceback to itself, frame by frame and by way of a context that repeats."""

try:
    1 / 0
except ZeroDivisionError as caught:
    error = caught
trace = error.__traceback__
try:
    trace.tb_next = trace
    raise AssertionError("tied")
except ValueError:
    pass
for _ in range(2_000):
    trace = type(trace)(trace, trace.tb_frame, 0, -1)
error.__context__ = error.__cause__ = KeyError()
error.__cause__.__context__ = error
raise error.with_traceback(trace)
