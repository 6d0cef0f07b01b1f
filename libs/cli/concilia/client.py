"""The Python client: what the command line does, for scripts.

Every method is one call of a service's REST interface; errors come as `concilia_kit.problems.Problem`.
"""

from __future__ import annotations

import mimetypes
import uuid
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import httpx
from concilia_kit import digests, signing, transfer
from concilia_kit.http import IDEMPOTENCY_KEY, call
from concilia_kit.problems import Problem
from concilia_kit.roles import Role
from concilia_kit.wire.chain import (
    Acknowledgement,
    ContractInfo,
    EventPage,
    InclusionProof,
    LedgerEvent,
    LedgerJob,
    Member,
    Receipt,
    RecordedEvent,
    SignedRoleChange,
    Transaction,
    UpdateSubmission,
)
from concilia_kit.wire.jobs import JobSpec, JobView
from concilia_kit.wire.models import (
    ArtifactCheck,
    InitialModel,
    InitialModelRequest,
    ModelVersion,
    Prediction,
    StorageReport,
)
from concilia_kit.wire.nodes import Node
from concilia_kit.wire.verification import Verification
from eth_account.signers.local import LocalAccount
from pydantic import TypeAdapter

from concilia.connection import Connection

_JOBS = TypeAdapter(list[JobView])
_NODES = TypeAdapter(list[Node])
_EVENTS = TypeAdapter(list[LedgerEvent])
_TRANSACTIONS = TypeAdapter(list[Transaction])
_VERIFICATIONS = TypeAdapter(list[Verification])
_MODELS = TypeAdapter(list[ModelVersion])


class Client:
    """A consortium as one address sees it. A context manager, where connections should not stay open."""

    def __init__(self, connection: Connection) -> None:
        self._to = connection

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._to.close()

    # ---------------------------------------------------------------------------------------------- jobs and nodes

    def create_job(self, spec: JobSpec) -> JobView:
        """Create a job (administrators), and one alone, whatever becomes of the answer on its way."""
        key = {IDEMPOTENCY_KEY: str(uuid.uuid4())}
        answer = call(self._to.aggregator, "POST", "/v1/jobs", json=spec.model_dump(mode="json"), headers=key)
        return JobView.model_validate_json(answer.content)

    def jobs(self) -> list[JobView]:
        """All jobs, newest first."""
        return _JOBS.validate_json(call(self._to.aggregator, "GET", "/v1/jobs").content)

    def job(self, job: str) -> JobView:
        """One job."""
        return JobView.model_validate_json(call(self._to.aggregator, "GET", f"/v1/jobs/{job}").content)

    def card(self, job: str) -> str:
        """The card of the model that a job published, in Markdown."""
        return call(self._to.aggregator, "GET", f"/v1/jobs/{job}/card").text

    def find_job_of(self, prefix: str) -> JobView:
        """The one job whose published model begins with `prefix`, or whose id does; 'latest' is the newest that has
        published one. Raises `Problem`."""
        published = [job for job in self.jobs() if job.model is not None]
        if prefix == "latest":
            found = published[:1]
        else:
            found = [job for job in published if job.id.startswith(prefix) or str(job.model).startswith(prefix)]
        if not found:
            raise Problem(f"no job has published a model {prefix}", status=404, code="no_model")
        if len(found) > 1:
            raise Problem(f"{len(found)} jobs and models begin with {prefix}", status=409, code="ambiguous")
        return found[0]

    def find_job(self, prefix: str) -> JobView:
        """The one job whose id begins with `prefix`; 'latest' is the newest. Raises `Problem`."""
        found = self.jobs() if prefix == "latest" else [job for job in self.jobs() if job.id.startswith(prefix)]
        if not found:
            raise Problem(f"there is no job {prefix}", status=404, code="job_not_found")
        if prefix != "latest" and len(found) > 1:
            raise Problem(f"{len(found)} jobs begin with {prefix}; give more of the id", status=409, code="ambiguous")
        return found[0]

    def stop_job(self, job: str) -> None:
        """Ask a job to stop (administrators)."""
        call(self._to.aggregator, "POST", f"/v1/jobs/{job}/stop")

    def pause_job(self, job: str) -> None:
        """Have a job end its open round and open no other (administrators)."""
        call(self._to.aggregator, "POST", f"/v1/jobs/{job}/pause")

    def resume_job(self, job: str) -> None:
        """Have a paused job go on (administrators)."""
        call(self._to.aggregator, "POST", f"/v1/jobs/{job}/resume")

    def ask_verification(self, job: str) -> Verification:
        """Have a job recomputed by the aggregator; the verification under way where there is one (administrators,
        auditors)."""
        return Verification.model_validate_json(
            call(self._to.aggregator, "POST", f"/v1/jobs/{job}/verifications").content
        )

    def verifications(self, job: str) -> list[Verification]:
        """A job's verifications by the aggregator, newest first."""
        return _VERIFICATIONS.validate_json(call(self._to.aggregator, "GET", f"/v1/jobs/{job}/verifications").content)

    def verification(self, verification: str) -> Verification:
        """One verification by the aggregator."""
        return Verification.model_validate_json(
            call(self._to.aggregator, "GET", f"/v1/verifications/{verification}").content
        )

    def nodes(self) -> list[Node]:
        """All nodes that ever registered."""
        return _NODES.validate_json(call(self._to.aggregator, "GET", "/v1/nodes").content)

    # -------------------------------------------------------------------------------------------------- the ledger

    def contract(self) -> ContractInfo:
        """The ledger's contract."""
        return ContractInfo.model_validate_json(call(self._to.chain, "GET", "/v1/contract").content)

    @property
    def account(self) -> LocalAccount:
        """The key this client speaks as. Raises `UsageError`."""
        return self._to.account

    def domain(self) -> signing.Domain:
        """Where signatures are valid."""
        info = self.contract()
        return signing.Domain(chain_id=info.chain_id, contract=info.address)

    def member(self, address: str) -> Member:
        """An address and its roles, from the contract."""
        return Member.model_validate_json(call(self._to.chain, "GET", f"/v1/members/{address}").content)

    def change_role(self, role: Role, account: str, *, granted: bool, deadline: int) -> Receipt:
        """Sign a role change with the caller's key and have it relayed (administrators)."""
        admin = self._to.account
        nonce = self.member(admin.address).nonce
        change = signing.RoleChange(role=role, account=account, granted=granted, nonce=nonce, deadline=deadline)
        signed = SignedRoleChange(
            change=change, admin=admin.address, signature=signing.sign(change, self.domain(), admin)
        )
        answer = call(self._to.chain, "POST", "/v1/role-changes", json=signed.model_dump(mode="json"))
        return Receipt.model_validate_json(answer.content)

    def submit_update(self, submission: UpdateSubmission) -> Receipt | Acknowledgement:
        """Have a signed update relayed (hospitals); in a Merkle round it is collected, to be committed with others."""
        answer = call(self._to.chain, "POST", "/v1/updates", json=submission.model_dump(mode="json"))
        if answer.status_code == 202:
            return Acknowledgement.model_validate_json(answer.content)
        return Receipt.model_validate_json(answer.content)

    def ledger_job(self, job: str) -> LedgerJob:
        """A job as the ledger has it."""
        return LedgerJob.model_validate_json(call(self._to.chain, "GET", f"/v1/jobs/{job}").content)

    def events(self, job: str) -> list[LedgerEvent]:
        """A job's events in chain order."""
        return _EVENTS.validate_json(call(self._to.chain, "GET", f"/v1/jobs/{job}/events").content)

    def recorded_events(
        self, to_block: int, *, names: Sequence[str] = (), account: str | None = None
    ) -> list[RecordedEvent]:
        """The contract's events up to a block, membership included, in chain order: all, or those of some names and
        about one account."""
        found: list[RecordedEvent] = []
        params: dict[str, str | int | Sequence[str]] = {"to_block": to_block, "limit": 1000}
        if names:
            params["name"] = names
        if account is not None:
            params["account"] = account
        while True:
            page = EventPage.model_validate_json(call(self._to.chain, "GET", "/v1/events", params=params).content)
            found += page.events
            if page.before is None:
                return found[::-1]
            params["before"] = page.before

    def proof(self, job: str, round_: int, hospital: str) -> InclusionProof:
        """Shows that a hospital's update is under a Merkle round's commitment."""
        answer = call(self._to.chain, "GET", f"/v1/jobs/{job}/rounds/{round_}/proofs/{hospital}")
        return InclusionProof.model_validate_json(answer.content)

    def transactions(self, job: str) -> list[Transaction]:
        """A job's transactions."""
        return _TRANSACTIONS.validate_json(call(self._to.chain, "GET", "/v1/transactions", params={"job": job}).content)

    # ------------------------------------------------------------------------------------------------------ models

    def upload(self, path: Path) -> str:
        """Store a safetensors file; returns its digest. Raises `OSError`, `Problem`."""
        digest = digests.of_file(path)
        transfer.upload(self._to.model, digest, path)
        return digest

    def download(self, digest: str, target: Path) -> None:
        """Fetch an artifact into a file, which the caller must hash. Raises `Problem`."""
        transfer.download(self._to.model, digest, target, verify=False)

    def check_artifact(self, digest: str) -> ArtifactCheck:
        """Have a stored artifact hashed again. Raises `Problem`: `artifact_quarantined` where it was found to have
        changed before, `artifact_removed` where it was deleted by policy."""
        return ArtifactCheck.model_validate_json(
            call(self._to.model, "POST", f"/v1/artifacts/{digest}/check", timeout=httpx.Timeout(600)).content
        )

    def storage(self, keep_updates_days: float | None = None) -> StorageReport:
        """What is stored and what the policy deletes next, or would if updates were kept for so many days
        (administrators, coordinators, auditors)."""
        params = {} if keep_updates_days is None else {"keep_updates_days": keep_updates_days}
        return StorageReport.model_validate_json(call(self._to.model, "GET", "/v1/storage", params=params).content)

    def initial_model(self, request: InitialModelRequest) -> InitialModel:
        """Have initial weights made (administrators)."""
        answer = call(
            self._to.model,
            "POST",
            "/v1/initial-models",
            json=request.model_dump(mode="json"),
            timeout=httpx.Timeout(600),  # torchvision's release may have to be downloaded first
        )
        return InitialModel.model_validate_json(answer.content)

    def model(self, digest: str) -> ModelVersion:
        """A published model with its lineage."""
        return ModelVersion.model_validate_json(call(self._to.model, "GET", f"/v1/models/{digest}").content)

    def find_model(self, prefix: str) -> ModelVersion:
        """The one published model whose digest begins with `prefix`; 'latest' is the newest. Raises `Problem`."""
        known = _MODELS.validate_json(call(self._to.model, "GET", "/v1/models").content)
        found = known[:1] if prefix == "latest" else [each for each in known if each.digest.startswith(prefix)]
        if not found:
            what = "no model is published yet" if prefix == "latest" else f"no published model is {prefix}"
            raise Problem(what, status=404, code="no_model")
        if len({each.digest for each in found}) > 1:
            raise Problem(f"{len(found)} models begin with {prefix}; give more of it", status=409, code="ambiguous")
        return found[0]

    def predict(
        self, image: Path, model: str | None = None, *, attention: bool = False, class_counts: str | None = None
    ) -> Prediction:
        """A probability for each class of a picture (clinicians), and a map of where the network looked for it if that
        is asked for; by how many pictures of each class there are where it is from, if that is given, with commas.
        Raises `OSError`, `Problem`."""
        asked = {"model": model, "attention": "true" if attention else None, "class_counts": class_counts}
        media_type = mimetypes.guess_type(image.name)[0] or "application/octet-stream"
        answer = call(
            self._to.model,
            "POST",
            "/v1/predictions",
            params={name: value for name, value in asked.items() if value is not None},
            files={"image": ("image", image.read_bytes(), media_type)},
        )
        return Prediction.model_validate_json(answer.content)
