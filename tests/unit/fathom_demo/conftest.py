"""Fixtures of the demo's tests."""

from __future__ import annotations

import pytest
from fathom_demo.corpus import CorpusTruth, write_corpus


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, CorpusTruth]:
    """A corpus of 20,000 lines with 600 records, and the truth about it."""
    path = tmp_path_factory.mktemp("corpus") / "corpus.txt"
    truth = write_corpus(path, 7, lines=20_000, records=600)
    return path.read_text(encoding="utf-8"), truth
