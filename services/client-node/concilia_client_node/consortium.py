"""The consortium as a node sees it: four services over HTTP, outbound only, each call signed in as the hospital."""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
from concilia_kit import http
from concilia_kit.problems import Problem, Unavailable
from concilia_kit.signing import Domain
from concilia_kit.wire.auth import Application
from concilia_kit.wire.chain import Acknowledgement, ContractInfo, LedgerRound, Receipt, UpdateSubmission
from concilia_kit.wire.training import EvaluationReport, NodeRegistration, Progress

from concilia_client_node.errors import WeightsError

CHUNK = 2**20
MAX_BASE = 4 * 2**30  # bytes of a base model accepted; the largest architecture here has a fortieth of that
RETRY_SECONDS = 3.0  # within a call; the task queue repeats for longer, and a node must stop within five seconds
_TRANSIENT = frozenset({401, 408, 425, 429})


def transient(problem: Problem) -> bool:
    """Whether the same call may succeed later: the peer is busy, broken or away, or a token just lost its worth."""
    return problem.problem_status >= 500 or problem.problem_status in _TRANSIENT


class FileBody:
    """A file as a request body, read anew by each attempt and never whole in memory."""

    def __init__(self, path: Path, check: Callable[[], None]) -> None:
        self._path = path
        self._check = check

    def __iter__(self) -> Iterator[bytes]:
        with self._path.open("rb") as file:
            while chunk := file.read(CHUNK):
                self._check()
                yield chunk


@dataclass(frozen=True)
class Consortium:
    """The clients of the services; every method raises `Problem` where a service refuses or does not answer."""

    model: httpx.Client
    chain: httpx.Client
    aggregator: httpx.Client
    auth: httpx.Client

    def domain(self) -> Domain:
        """Where the hospital's signatures are valid."""
        info = ContractInfo.model_validate_json(self._call(self.chain, "GET", "/v1/contract").content)
        return Domain(chain_id=info.chain_id, contract=info.address)

    def round(self, job: str, number: int) -> LedgerRound:
        """A round as the ledger has it."""
        return LedgerRound.model_validate_json(self._call(self.chain, "GET", _round(job, number)).content)

    def submit(self, submission: UpdateSubmission) -> Receipt | Acknowledgement:
        """Have a signed update recorded; in a Merkle round it is collected, to be committed with the others."""
        body = submission.model_dump_json()
        answer = self._call(self.chain, "POST", "/v1/updates", content=body, headers=_JSON)
        if answer.status_code == 202:
            return Acknowledgement.model_validate_json(answer.content)
        return Receipt.model_validate_json(answer.content)

    def fetch(self, digest: str, path: Path, check: Callable[[], None]) -> int:
        """Download an artifact and check its hash; its size in bytes. Raises `WeightsError` for other bytes."""
        # A name of its own: a sibling may be fetching the same.
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=path.stem, suffix=".partial")
        os.close(descriptor)
        partial = Path(name)
        try:
            size = self._download(digest, partial, check)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)
        return size

    def _download(self, digest: str, path: Path, check: Callable[[], None]) -> int:
        hasher, size = hashlib.sha256(), 0
        try:
            with self.model.stream("GET", f"/v1/artifacts/{digest}") as response, path.open("wb") as file:
                http.raise_for_problem(response)
                for chunk in response.iter_bytes(CHUNK):
                    check()
                    size += len(chunk)
                    if size > MAX_BASE:
                        raise WeightsError(f"the base model is larger than the {MAX_BASE} bytes accepted")
                    hasher.update(chunk)
                    file.write(chunk)
        except httpx.TransportError as error:
            raise Unavailable(f"the model service broke off ({type(error).__name__})") from error
        if hasher.hexdigest() != digest:
            raise WeightsError("the base model's bytes do not hash to the digest that the task names")
        return size

    def store(self, digest: str, path: Path, check: Callable[[], None]) -> None:
        """Upload a file under its digest, unless it is there already."""
        try:
            self._call(self.model, "HEAD", f"/v1/artifacts/{digest}")
        except Problem as problem:
            if problem.problem_status != 404:
                raise
        else:
            return
        headers = {"Content-Length": str(path.stat().st_size), "Content-Type": "application/octet-stream"}
        self._call(self.model, "PUT", f"/v1/artifacts/{digest}", content=FileBody(path, check), headers=headers)

    def register(self, address: str, registration: NodeRegistration) -> None:
        """Say who this node is and that it is there."""
        body = registration.model_dump_json()
        self._call(self.aggregator, "PUT", f"/v1/nodes/{address}", content=body, headers=_JSON)

    def apply(self, application: Application) -> None:
        """Ask for a role; replaces what this hospital asked for before."""
        self._call(self.auth, "POST", "/v1/applications", content=application.model_dump_json(), headers=_JSON)

    def progress(self, job: str, number: int, progress: Progress) -> None:
        """Say what the node is doing."""
        body = progress.model_dump_json()
        self._call(self.aggregator, "POST", f"{_round(job, number)}/progress", content=body, headers=_JSON)

    def report(self, address: str, report: EvaluationReport) -> None:
        """Hand in the counts of an evaluation."""
        path = f"{_round(report.job, report.round)}/evaluations/{address}"
        self._call(self.aggregator, "PUT", path, content=report.model_dump_json(), headers=_JSON)

    @staticmethod
    def _call(client: httpx.Client, method: str, path: str, **kwargs: object) -> httpx.Response:
        return http.call(client, method, path, retry_seconds=RETRY_SECONDS, **kwargs)


_JSON = {"Content-Type": "application/json"}


def _round(job: str, number: int) -> str:
    return f"/v1/jobs/{job}/rounds/{number}"
