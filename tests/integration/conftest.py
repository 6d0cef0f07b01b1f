"""The consortium that a node process meets: the double of the unit tests, over real HTTP."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.client_node import consortium_double


@pytest.fixture
def consortium() -> Iterator[Any]:
    with consortium_double.serve(consortium_double.ConsortiumDouble()) as double:
        yield double
