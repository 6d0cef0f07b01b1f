"""The consortium as a node sees it: four services over HTTP, outbound only, each call signed in as the hospital."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import httpx
from concilia_kit import http, logs, transfer
from concilia_kit.problems import Problem, Unavailable
from concilia_kit.roles import Role
from concilia_kit.signing import Domain
from concilia_kit.wire.auth import Application, BrokerCredential
from concilia_kit.wire.base import Wire
from concilia_kit.wire.chain import (
    AccountRoles,
    Acknowledgement,
    ContractInfo,
    Holders,
    LedgerRound,
    Receipt,
    UpdateSubmission,
)
from concilia_kit.wire.masking import Consent, MaskingView, Revealed, Shares, SignedKeys
from concilia_kit.wire.nodes import NodeRegistration
from concilia_kit.wire.progress import Progress
from concilia_kit.wire.training import Assignment, EvaluationReport
from pydantic import JsonValue, TypeAdapter, ValidationError

from concilia_client_node.errors import WeightsError

MAX_BASE = 4 * 2**30  # bytes of a base model accepted; the largest architecture here has a fortieth of that
RETRY_SECONDS = 3.0  # within a call; the task queue repeats for longer, and a node must stop within five seconds
_TRANSIENT = frozenset({401, 408, 425, 429})
BASE_CHANGED = "base_changed"
"""The code of other bytes than a model's digest stands for."""
_LATER = frozenset({"artifact_quarantined", "masking_not_ready"})
"""Codes of refusals that others' work will end: who has the right bytes brings them, or the masking goes on."""
_log = logs.get(__name__)


def transient(problem: Problem) -> bool:
    """Whether the same call may succeed later: the peer is busy, broken or away, or a token just lost its worth."""
    return problem.problem_status >= 500 or problem.problem_status in _TRANSIENT or problem.problem_code in _LATER


class Seen(NamedTuple):
    """A round's masking as this hospital is told it, and the tag that stands for it."""

    view: MaskingView
    tag: str


class Asked(NamedTuple):
    """What a hospital is asked for, and the tag that stands for it."""

    tasks: tuple[Assignment, ...]
    tag: str


_LIST = TypeAdapter(list[JsonValue])


def _readable(told: JsonValue) -> Assignment | None:
    """A task, None where it is none that this version knows: the others are done all the same."""
    try:
        return Assignment.model_validate(told)
    except ValidationError as error:
        _log.error("malformed task passed over", faults=[fault["msg"] for fault in error.errors()[:3]])
        return None


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

    def roles(self, address: str) -> frozenset[Role]:
        """The roles that an address holds by the ledger's events."""
        answer = self._call(self.chain, "GET", f"/v1/members/{address}/roles")
        return frozenset(AccountRoles.model_validate_json(answer.content).roles)

    def round(self, job: str, number: int, hospital: str) -> LedgerRound:
        """A round as the ledger has it, with this hospital's update alone: however many others there are."""
        answer = self._call(self.chain, "GET", _round(job, number), params={"hospital": hospital})
        return LedgerRound.model_validate_json(answer.content)

    def whole_round(self, job: str, number: int) -> LedgerRound:
        """A round as the ledger has it, with everybody's updates."""
        return LedgerRound.model_validate_json(self._call(self.chain, "GET", _round(job, number)).content)

    def holders(self, role: Role) -> frozenset[str]:
        """Addresses that hold a role by the ledger's events."""
        answer = self._call(self.chain, "GET", f"/v1/holders/{role.value}")
        return frozenset(Holders.model_validate_json(answer.content).addresses)

    def submit(self, submission: UpdateSubmission) -> Receipt | Acknowledgement:
        """Have a signed update recorded; in a Merkle round it is collected, to be committed with the others."""
        body = submission.model_dump_json()
        answer = self._call(self.chain, "POST", "/v1/updates", content=body, headers=_JSON)
        if answer.status_code == 202:
            return Acknowledgement.model_validate_json(answer.content)
        return Receipt.model_validate_json(answer.content)

    def fetch(
        self,
        digest: str,
        path: Path,
        check: Callable[[], None],
        progress: Callable[[float], None] = lambda _fraction: None,
        what: str = "base model",
    ) -> int:
        """Download an artifact and check its hash; its size in bytes. What came before a break is not fetched again.
        `what` it is, for words.

        Other bytes are told to the service, which puts a file aside that has changed. Until who has the right ones
        brings them again, and for other bytes that the line made, this raises `Unavailable`; and `WeightsError` for a
        model that is too large.
        """
        try:
            return transfer.download(
                self.model,
                digest,
                path,
                check=check,
                progress=progress,
                patience=RETRY_SECONDS,
                max_bytes=MAX_BASE,
            ).size
        except transfer.TooLarge as error:
            raise WeightsError(f"the {what} is not accepted: {error}") from error
        except transfer.WrongBytes as error:
            self._call(self.model, "POST", f"/v1/artifacts/{digest}/check")
            names = "the task" if what == "base model" else "the base model"
            raise Unavailable(f"the {what} is not what {names} names: {error}", code=BASE_CHANGED) from error

    def store(
        self,
        digest: str,
        path: Path,
        check: Callable[[], None],
        progress: Callable[[float], None] = lambda _fraction: None,
    ) -> None:
        """Upload a file under its digest, unless it is there already. What came before a break is not sent again."""
        transfer.upload(self.model, digest, path, check=check, progress=progress, patience=RETRY_SECONDS)

    def has(self, digest: str) -> bool:
        """Whether the model service can give an artifact's bytes to who asks."""
        try:
            self._call(self.model, "GET", f"/v1/artifacts/{digest}/info")
        except Problem as problem:
            if problem.problem_status == 404:
                return False
            raise
        return True

    def register(self, address: str, registration: NodeRegistration) -> None:
        """Say who this node is and that it is there."""
        body = registration.model_dump_json()
        self._call(self.aggregator, "PUT", f"/v1/nodes/{address}", content=body, headers=_JSON)

    def tasks(self, address: str, known: str = "", wait: int = 0) -> Asked | None:
        """What this hospital is asked for now; None where that is still what the tag `known` stands for, after `wait`
        seconds. Raises `ValueError` for an answer that is none."""
        headers = {"If-None-Match": f'"{known}"'} if known else {}
        path = f"/v1/nodes/{address}/tasks"
        answer = self._call(self.aggregator, "GET", path, params={"wait": wait}, headers=headers)
        if answer.status_code == 304:
            return None
        told = _LIST.validate_json(answer.content)
        return Asked(tuple(filter(None, map(_readable, told))), answer.headers.get("etag", "").strip('"'))

    def apply(self, application: Application) -> None:
        """Ask for a role; replaces what this hospital asked for before."""
        self._call(self.auth, "POST", "/v1/applications", content=application.model_dump_json(), headers=_JSON)

    def broker_credential(self) -> BrokerCredential:
        """A user at the broker that may work at this hospital's queue."""
        return BrokerCredential.model_validate_json(self._call(self.auth, "POST", "/v1/broker-credentials").content)

    def progress(self, job: str, number: int, progress: Progress) -> None:
        """Say what the node is doing."""
        body = progress.model_dump_json()
        self._call(self.aggregator, "POST", f"{_round(job, number)}/progress", content=body, headers=_JSON)

    def report(self, address: str, report: EvaluationReport) -> None:
        """Hand in the counts of an evaluation."""
        path = f"{_round(report.job, report.round)}/evaluations/{address}"
        self._call(self.aggregator, "PUT", path, content=report.model_dump_json(), headers=_JSON)

    def masking(self, job: str, number: int, known: str = "", wait: int = 0) -> Seen | None:
        """Where a round's masking stands; None where that is still what the tag `known` stands for, after `wait`
        seconds."""
        headers = {"If-None-Match": known} if known else {}
        answer = self._call(self.aggregator, "GET", _masking(job, number), params={"wait": wait}, headers=headers)
        if answer.status_code == 304:
            return None
        return Seen(MaskingView.model_validate_json(answer.content), answer.headers.get("etag", ""))

    def advertise(self, job: str, number: int, address: str, keys: SignedKeys) -> None:
        """Hand in keys of a round."""
        self._mask(job, number, f"keys/{address}", keys)

    def share(self, job: str, number: int, address: str, shares: Shares) -> None:
        """Hand in sealed shares."""
        self._mask(job, number, f"shares/{address}", shares)

    def consent(self, job: str, number: int, address: str, consent: Consent) -> None:
        """Hand in a signature under who is in a round's sum."""
        self._mask(job, number, f"consents/{address}", consent)

    def reveal(self, job: str, number: int, address: str, revealed: Revealed) -> None:
        """Hand in what unmasks a round's sum."""
        self._mask(job, number, f"reveals/{address}", revealed)

    def _mask(self, job: str, number: int, path: str, document: Wire) -> None:
        body = document.model_dump_json()
        self._call(self.aggregator, "PUT", f"{_masking(job, number)}/{path}", content=body, headers=_JSON)

    @staticmethod
    def _call(client: httpx.Client, method: str, path: str, **kwargs: object) -> httpx.Response:
        return http.call(client, method, path, retry_seconds=RETRY_SECONDS, **kwargs)


_JSON = {"Content-Type": "application/json"}


def _round(job: str, number: int) -> str:
    return f"/v1/jobs/{job}/rounds/{number}"


def _masking(job: str, number: int) -> str:
    return f"{_round(job, number)}/masking"
