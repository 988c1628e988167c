# Expect: trapped
# Then: restored
"""Takes the runtime's own functions and has them tell the host what is not so."""

import sys

runtime = sys.modules["fathom_guest.host"]
ask = runtime.ask
runtime.ask = lambda request: ask({"call": "ended", "ending": "completed", "variables": 5})
