"""One consortium for all the tests that give it jobs: bringing it up takes longer than most of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.e2e.consortium import World, running


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[int], int]) -> Iterator[World]:
    with running(tmp_path_factory.mktemp("consortium"), free_ports(12)) as made:
        yield made
