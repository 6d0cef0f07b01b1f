"""A finished job on a real EVM, made once for the whole run."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from concilia.verification import chain
from concilia.verification.evidence import Evidence


def _module() -> Any:
    name = "cli_finished_job"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, Path(__file__).with_name("finished_job.py"))
        assert spec is not None
        assert spec.loader is not None
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]


@pytest.fixture(scope="session")
def jobs_module() -> Any:
    """`finished_job.py`, which lies beside this file."""
    return _module()


@pytest.fixture(scope="session")
def finished(jobs_module: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The job. What a test changes, it changes in copies."""
    return jobs_module.FinishedJob(tmp_path_factory.mktemp("store")).run()


@pytest.fixture(scope="session")
def merkle_job(jobs_module: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A job whose rounds are both under a commitment."""
    return jobs_module.FinishedJob(tmp_path_factory.mktemp("store"), merkle=frozenset({1, 2})).run()


@pytest.fixture(scope="session")
def merkle_evidence(merkle_job: Any) -> Evidence:
    """What the chain holds of it, headers and receipts included, and its leaves."""
    with closing(merkle_job.node()) as node:
        found = chain.read(node, merkle_job.job, None, None, lambda *_: None, everything=True)
        found = chain.with_wallets(node, found.with_leaves(merkle_job.document()), lambda *_: None)
        found, fault = chain.with_blocks(node, found, lambda *_: None)
    assert fault is None
    return found


@pytest.fixture(scope="session")
def evidence(finished: Any) -> Evidence:
    """What the chain holds of the job, headers and receipts included."""
    with closing(finished.node()) as node:
        found, fault = chain.with_blocks(
            node, chain.read(node, finished.job, None, None, lambda *_: None, everything=True), lambda *_: None
        )
    assert fault is None
    return found


@pytest.fixture(scope="session")
def told(evidence: Evidence, jobs_module: Any) -> Evidence:
    """The same as the services tell it: no calldata and no blocks, but metrics."""
    updates = tuple(item.model_copy(update={"metrics": jobs_module.METRICS}) for item in evidence.updates)
    return evidence.model_copy(update={"origin": "services", "updates": updates, "calldata": None, "blocks": None})


@pytest.fixture(scope="session", autouse=True)
def _state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keys that the command keeps are not this user's."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        yield


@pytest.fixture
def unfinished(jobs_module: Any, tmp_path: Path) -> Any:
    """A ledger of a test's own, on which no job ran."""
    store = tmp_path / "store"
    store.mkdir()
    return jobs_module.FinishedJob(store)
