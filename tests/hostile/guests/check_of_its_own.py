# Expect: completed
# Then: kept
"""Replaces the check itself: the next cell goes unseen, and runs inside the walls."""

import sys

check = sys.modules.get("fathom_guest.code_check")
if check is not None:
    check.findings = lambda *_: []
