# Expect: completed
# Then: kept
# Limits: memory_mib=96
"""Entities of entities of entities: a billion laughs in half a kilobyte."""

import xml.etree.ElementTree

levels = "".join(f'<!ENTITY l{level} "{f"&l{level - 1};" * 10}">' for level in range(1, 12))
bomb = f'<!DOCTYPE x [<!ENTITY l0 "ha">{levels}]><x>&l11;</x>'
try:
    xml.etree.ElementTree.fromstring(bomb)
    raise AssertionError("it was expanded")
except (xml.etree.ElementTree.ParseError, MemoryError):
    pass
