"""One consortium of three hospitals for all tests that leave it as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from .world import PORTS, World, running


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[int], int]) -> Iterator[World]:
    with running(tmp_path_factory.mktemp("chaos"), free_ports(PORTS)) as made:
        yield made
