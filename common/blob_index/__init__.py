"""Indexes of blobs: what lies beside a large blob in the object store, under `indexes/text/` or
`indexes/json/` and the blob's key. Whoever has the blob first writes it; whoever reads it checks.
"""
