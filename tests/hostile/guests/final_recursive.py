# Expect: completed
# Then: kept
"""An answer that contains itself, by way of a list, a dictionary and an attribute."""

endless = [1, {"again": None}]
endless[1]["again"] = endless
FINAL(endless)
