"""Benchmarks' own programs, run in the process of the tests."""

from __future__ import annotations

import pytest
from concilia_kit import logs


@pytest.fixture(autouse=True)
def _logs_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """A program sets up logging for its process, which this one is not: who comes later captures what is logged."""
    monkeypatch.setattr(logs, "configure", lambda *_: None)
