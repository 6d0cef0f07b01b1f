"""Places in two streams as text: what was written is read again, and nothing else is."""

from __future__ import annotations

import re

import pytest
from concilia_aggregator.positions import START, Position
from hypothesis import example, given
from hypothesis import strategies as st

_NUMBERS = st.integers(0, 2**64 - 1)
_IDS = st.builds(lambda time, sequence: f"{time}-{sequence}", _NUMBERS, _NUMBERS)


@given(_IDS, _IDS)
def test_a_place_is_read_as_it_was_written(ledger: str, job: str) -> None:
    assert Position.parse(str(Position(ledger, job))) == Position(ledger, job)


def test_before_everything() -> None:
    assert Position.parse("0-0_0-0") == Position(START, START)


@given(st.text(max_size=100))
@example("1-2_3-4\n")
@example("\u0661-0_0-0")
def test_any_other_text_is_no_place(text: str) -> None:
    place = Position.parse(text)
    assert (place is None) or re.fullmatch("[0-9]+-[0-9]+_[0-9]+-[0-9]+", text)


@pytest.mark.parametrize("text", ["", "1-2", "1-2_3", f"0-0_{2**64}-0", "-1-0_0-0", "1-2_3-4_5-6", " 1-2_3-4"])
def test_malformed(text: str) -> None:
    assert Position.parse(text) is None
