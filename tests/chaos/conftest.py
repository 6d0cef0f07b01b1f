"""One consortium of three hospitals for all tests that leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .world import World, running


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with running(tmp_path_factory.mktemp("chaos")) as made:
        yield made
