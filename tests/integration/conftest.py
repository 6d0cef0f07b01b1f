"""The consortium that a node process meets: the double of the unit tests, over real HTTP."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def _double() -> Any:
    path = Path(__file__).parents[1] / "unit" / "client_node" / "consortium_double.py"
    spec = importlib.util.spec_from_file_location("client_node_consortium_double", path)
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules.setdefault(spec.name, importlib.util.module_from_spec(spec))
    if not hasattr(module, "serve"):
        spec.loader.exec_module(module)
    return module


@pytest.fixture
def consortium() -> Iterator[Any]:
    module = _double()
    with module.serve(module.ConsortiumDouble()) as double:
        yield double
