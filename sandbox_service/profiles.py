"""Profiles: what a session can start with already imported, at no cost to its start.

Each is a warm image of its own, made by rehearsing a few lines of code that also let a library
finish what it does lazily. Each profile goes on from the one before it.
"""

from __future__ import annotations

from types import MappingProxyType

DEFAULT_PROFILE = "base"
"""The standard library alone."""

_NUMPY = """
import numpy as np
import numpy.linalg, numpy.random
values = np.arange(12.0).reshape(3, 4)
str((values @ values.T + 1).mean(axis=0)), repr(values[values > 3]), np.sort(values, axis=None)
np.linalg.norm(values), np.array(["a", "b"]), np.random.default_rng(0).integers(10)
"""
_PANDAS = """
import pandas as pd
table = pd.DataFrame({"name": ["a", "b", "a"], "value": [1, 2, 3]})
repr(table), table.groupby("name")["value"].sum(), table[table["value"] > 1].sort_values("value")
table.merge(table, on="name").describe().to_string(), table["name"].str.upper().value_counts()
pd.read_csv(__import__("io").StringIO(table.to_csv(index=False)))
pd.to_datetime(pd.Series(["2020-01-01", "2020-01-02"])).dt.year
"""
PROFILES = MappingProxyType({DEFAULT_PROFILE: "", "numpy": _NUMPY, "pandas": _PANDAS})
"""The code that each profile rehearses, by name, in the order of their making."""
