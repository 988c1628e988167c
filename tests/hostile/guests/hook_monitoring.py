# Expect: trapped
# Then: restored
"""The interpreter's monitoring outlives the cell in the same way."""

import sys

tool = sys.monitoring.DEBUGGER_ID
sys.monitoring.use_tool_id(tool, "hostile")


def refuse(*_):
    raise SystemExit


sys.monitoring.register_callback(tool, sys.monitoring.events.PY_START, refuse)
sys.monitoring.set_events(tool, sys.monitoring.events.PY_START)
