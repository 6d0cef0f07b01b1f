"""The ledger as the aggregator uses it: what it asks of the chain service, and the client that asks."""

from __future__ import annotations

from typing import Protocol

import httpx
from concilia_kit.http import call
from concilia_kit.problems import Problem
from concilia_kit.roles import Role
from concilia_kit.signing import Domain
from concilia_kit.wire.chain import (
    ContractInfo,
    EventPage,
    Holders,
    LedgerEvent,
    LedgerJob,
    LedgerRound,
    LedgerUpdate,
    Publication,
    RecordedEvent,
    Rejection,
    RoundClosure,
    RoundOpening,
    RoundStanding,
    Transaction,
)
from pydantic import TypeAdapter

from concilia_aggregator.verification.roles import ROLE_EVENTS

_EVENTS = TypeAdapter(list[LedgerEvent])
_TRANSACTIONS = TypeAdapter(list[Transaction])


class Ledger(Protocol):
    """What the aggregator needs of the chain. Every writing call may be repeated: an effect that is there is kept."""

    def hospitals(self) -> frozenset[str]:
        """Addresses that hold the hospital role now."""
        ...

    def standing(self, job: str, round_: int) -> RoundStanding | None:
        """How far a round is, without its updates; None where it was never opened."""
        ...

    def round(self, job: str, round_: int) -> LedgerRound | None:
        """A round with its updates, None where it was never opened."""
        ...

    def transactions(self, job: str) -> list[Transaction]:
        """What was asked about a job, each with the transaction that carried it; several may name the same."""
        ...

    def open(self, opening: RoundOpening) -> None:
        """Open a round."""
        ...

    def commit(self, job: str, round_: int) -> None:
        """Commit a Merkle round's collected updates. Raises `Problem` 'nothing_collected'."""
        ...

    def reject(self, job: str, round_: int, rejection: Rejection) -> None:
        """Leave a recorded or committed update out."""
        ...

    def close(self, job: str, round_: int, closure: RoundClosure) -> None:
        """Close a round. Raises `Problem` 'contribution_count_mismatch' where an update arrived meanwhile."""
        ...

    def abort(self, job: str, round_: int) -> None:
        """Give a round up."""
        ...

    def publish(self, publication: Publication) -> None:
        """Publish a job's head."""
        ...


class ChainLedger:
    """`Ledger`, and `verification.examiner.Records`, over the chain service's REST interface."""

    def __init__(self, chain: httpx.Client) -> None:
        self._chain = chain
        self._hospitals: tuple[str, frozenset[str]] | None = None  # with the answer's entity tag

    def hospitals(self) -> frozenset[str]:
        """See `Ledger`."""
        known = self._hospitals
        headers = {} if known is None else {"If-None-Match": known[0]}
        answer = call(self._chain, "GET", f"/v1/holders/{Role.HOSPITAL.value}", headers=headers)
        if known is not None and answer.status_code == 304:
            return known[1]
        told = frozenset(Holders.model_validate_json(answer.content).addresses)
        if tag := answer.headers.get("ETag"):
            self._hospitals = tag, told
        return told

    def standing(self, job: str, round_: int) -> RoundStanding | None:
        """See `Ledger`."""
        found = self._found(f"/v1/jobs/{job}/rounds/{round_}/standing")
        return RoundStanding.model_validate_json(found) if found else None

    def round(self, job: str, round_: int) -> LedgerRound | None:
        """See `Ledger`."""
        found = self._found(f"/v1/jobs/{job}/rounds/{round_}")
        return LedgerRound.model_validate_json(found) if found else None

    def transactions(self, job: str) -> list[Transaction]:
        """See `Ledger`."""
        return _TRANSACTIONS.validate_json(call(self._chain, "GET", "/v1/transactions", params={"job": job}).content)

    def open(self, opening: RoundOpening) -> None:
        """See `Ledger`."""
        call(self._chain, "POST", "/v1/rounds", json=opening.model_dump(mode="json"))

    def commit(self, job: str, round_: int) -> None:
        """See `Ledger`."""
        call(self._chain, "POST", f"/v1/rounds/{job}/{round_}/commitment")

    def reject(self, job: str, round_: int, rejection: Rejection) -> None:
        """See `Ledger`."""
        call(self._chain, "POST", f"/v1/rounds/{job}/{round_}/rejections", json=rejection.model_dump(mode="json"))

    def close(self, job: str, round_: int, closure: RoundClosure) -> None:
        """See `Ledger`."""
        call(self._chain, "POST", f"/v1/rounds/{job}/{round_}/closure", json=closure.model_dump(mode="json"))

    def abort(self, job: str, round_: int) -> None:
        """See `Ledger`."""
        call(self._chain, "POST", f"/v1/rounds/{job}/{round_}/abort")

    def publish(self, publication: Publication) -> None:
        """See `Ledger`."""
        call(self._chain, "POST", "/v1/publications", json=publication.model_dump(mode="json"))

    def domain(self) -> Domain:
        """See `Records`."""
        info = ContractInfo.model_validate_json(call(self._chain, "GET", "/v1/contract").content)
        return Domain(chain_id=info.chain_id, contract=info.address)

    def events(self, job: str) -> list[LedgerEvent]:
        """See `Records`."""
        return _EVENTS.validate_json(self._found(f"/v1/jobs/{job}/events") or b"[]")

    def signed(self, job: str) -> list[LedgerUpdate]:
        """See `Records`."""
        found = self._found(f"/v1/jobs/{job}")
        known = LedgerJob.model_validate_json(found).rounds if found else ()
        return [update for item in known for update in item.updates]

    def role_events(self) -> list[RecordedEvent]:
        """See `Records`."""
        found: list[RecordedEvent] = []
        params: dict[str, str | int | list[str]] = {"name": sorted(ROLE_EVENTS), "limit": 1000}
        while True:
            page = EventPage.model_validate_json(call(self._chain, "GET", "/v1/events", params=params).content)
            found += page.events
            if page.before is None:
                return found
            params["before"] = page.before

    def _found(self, path: str) -> bytes | None:
        """What the ledger says, None where it knows nothing of it."""
        try:
            return call(self._chain, "GET", path).content
        except Problem as problem:
            if problem.problem_status == 404:
                return None
            raise
