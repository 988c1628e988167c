# Expect: completed
# Then: kept
"""Entities and inclusions that name files and addresses of the host."""

import lxml.etree

seen = 0
for parser in (lxml.etree.XMLParser(load_dtd=True, no_network=False, resolve_entities=True), None):
    for place in ("file:///etc/passwd", "/etc/passwd", "http://127.0.0.1/", "/proc/self/environ"):
        text = f'<!DOCTYPE x [<!ENTITY e SYSTEM "{place}">]><x>&e;</x>'
        try:
            tree = lxml.etree.fromstring(text.encode(), parser)
            seen += bool("".join(tree.itertext()))
        except lxml.etree.XMLSyntaxError:
            continue
assert not seen, seen
