"""The whole contract against a model of it in Python: any sequence of calls, every refusal as the model predicts it."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from eth_account.signers.local import LocalAccount
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from contracts.tests.ledger_harness import (
    ADMIN_ROLE,
    COORDINATOR_ROLE,
    HOSPITAL_ROLE,
    Chain,
    Ledger,
    Refusal,
    Update,
    account,
    digest,
    refusal,
)

GRACE = 3600
NONE, OPEN, CLOSED, ABORTED = range(4)
ZERO = bytes(32)
JOBS = (digest("job A"), digest("job B"))
BASES = (digest("base A"), digest("base B"))
HOSPITALS = 5

job_numbers = st.sampled_from([0, 0, 0, 1])
members = st.integers(0, HOSPITALS - 1)
# Mostly what a caller who is right would say, now and then one that is not.
seldom = st.sampled_from([False] * 15 + [True])
often = st.sampled_from([True] * 3 + [False])


@dataclass
class ModelRound:
    """What a round must be on the ledger."""

    base: bytes
    deadline: int
    quorum: int
    merkle: bool
    status: int = OPEN
    recorded: set[str] = field(default_factory=set)
    rejected: set[str] = field(default_factory=set)
    committed: list[Update] | None = None
    right: set[str] = field(default_factory=set)  # hospitals at the commitment
    rejected_leaves: set[int] = field(default_factory=set)

    @property
    def submitted(self) -> int:
        return len(self.recorded) if self.committed is None else len(self.committed)

    @property
    def left_out(self) -> int:
        return len(self.rejected) + len(self.rejected_leaves)


@dataclass
class ModelJob:
    """What a job must be on the ledger."""

    head: bytes = ZERO
    rounds: list[ModelRound] = field(default_factory=list)
    closed: int = 0
    published: bool = False


@pytest.fixture(scope="module")
def stage() -> tuple[Ledger, Ledger]:
    """Two ledgers on one chain; the machine goes back to this moment before every run."""
    chain = Chain()
    return Ledger(chain), Ledger(chain)


def machine_on(ledgers: tuple[Ledger, Ledger]) -> type[RuleBasedStateMachine]:
    snapshot = ledgers[0].chain.tester.take_snapshot()

    class LedgerMachine(RuleBasedStateMachine):
        """One ledger under test; its twin is where replayed signatures come from."""

        def __init__(self) -> None:
            super().__init__()
            self.ledger, self.twin = ledgers
            self.chain = self.ledger.chain
            self.chain.tester.revert_to_snapshot(snapshot)
            self.keys = [account(number) for number in range(HOSPITALS)]
            self.jobs = {job: ModelJob() for job in JOBS}
            self.members: set[str] = set()
            self.numbers: dict[str, int] = {}
            self.paused = False
            self.made = 0
            self.called: set[Any] = set()  # first arguments of the calls since the last look

        # -------------------------------------------------------------------------------------------- the moves

        @initialize(count=st.integers(2, HOSPITALS))
        def enrol(self, count: int) -> None:
            for key in self.keys[:count]:
                self.change_role(key.address, True)

        @rule(job=job_numbers, merkle=st.booleans(), quorum=st.integers(1, 2), crowd=st.sets(members, min_size=1))
        def begin(self, job: int, merkle: bool, quorum: int, crowd: set[int]) -> None:
            """A round as it should begin, if nothing is in its way; without it too few sequences come to an end."""
            if self.busy(JOBS[job], self.jobs[JOBS[job]]):
                return
            self.open(job, merkle, False, False, False, quorum, False)
            right = sorted(member for member in crowd if self.keys[member].address in self.members)
            if right and merkle:
                self.commit(job, set(right), "", False, False, False)
            elif right:
                self.submit(job, right, "", 0, 0)

        @rule(member=members, granted=often)
        def role(self, member: int, granted: bool) -> None:
            self.change_role(self.keys[member].address, granted)

        @rule(on=st.sampled_from([False, False, False, True]), wrong=seldom)
        def pause(self, on: bool, wrong: bool) -> None:
            on = on if wrong else not self.paused and on
            if not on and not self.paused and not wrong:
                return
            name = "pause" if on else "unpause"
            sender = self.ledger.coordinator if wrong else self.ledger.admin
            expected = None
            if wrong:
                expected = refusal("AccessControlUnauthorizedAccount", sender, ADMIN_ROLE)
            elif on == self.paused:
                expected = refusal("EnforcedPause" if on else "ExpectedPause")
            if self.call(expected, name, sender=sender):
                self.paused = on

        @rule(seconds=st.sampled_from([1, 1, 60, 60, 3000, 4000, 9000]))
        def wait(self, seconds: int) -> None:
            self.chain.tester.time_travel(self.chain.now + seconds)

        @rule(
            job=job_numbers,
            merkle=st.booleans(),
            skip=seldom,
            other_base=seldom,
            late=seldom,
            quorum=st.sampled_from([1, 2, 3, 0]),
            stranger=seldom,
        )
        def open(
            self, job: int, merkle: bool, skip: bool, other_base: bool, late: bool, quorum: int, stranger: bool
        ) -> None:
            of, model = JOBS[job], self.jobs[JOBS[job]]
            number = len(model.rounds) + 1 + skip
            base = BASES[job] if not model.rounds or other_base else model.head
            now = self.chain.now
            deadline = now - 5 if late else now + 4000
            expected = self.coordination(stranger)
            if expected is None and quorum == 0:
                expected = refusal("EmptyValue")
            if expected is None:
                expected = self.busy(of, model)
            if expected is None and skip:
                expected = refusal("RoundOutOfOrder", of, number, number - 1)
            if expected is None and model.rounds and base != model.head:
                expected = refusal("BaseMismatch", model.head, base)
            if expected is None and late:
                expected = refusal("DeadlinePassed", deadline, now)
            name = "openMerkleRound" if merkle else "openRound"
            if self.call(expected, name, of, number, base, deadline, quorum, sender=self.sender(stranger)):
                model.head = base
                model.rounds.append(ModelRound(base, deadline, quorum, merkle))

        @precondition(lambda self: self.any(lambda stored: stored.status == OPEN))
        @rule(
            job=job_numbers,
            batch=st.lists(members, min_size=1, max_size=3),
            spoilt=st.sampled_from(
                [""] * 6 + ["chain", "contract", "round", "job", "samples", "mirrored", "empty", "idle", "base"]
            ),
            which=st.integers(0, 2),
            past=st.integers(0, 5),
        )
        def submit(self, job: int, batch: list[int], spoilt: str, which: int, past: int) -> None:
            of, model = JOBS[job], self.jobs[JOBS[job]]
            number = max(1, len(model.rounds) - (past == 5))
            stored = self.round(model, number)
            base = stored.base if stored else BASES[job]
            if spoilt == "base":
                base = digest("no base")
            updates = [self.update(member, of, number, base) for member in batch]
            at = which % len(updates)
            if spoilt not in ("", "base"):
                updates[at] = self.spoil(updates[at], self.keys[batch[at]], spoilt)

            expected = refusal("EnforcedPause") if self.paused else self.not_open(of, number, stored)
            if expected is None:
                assert stored is not None
                expected = self.submission_refused(of, number, stored, base, updates, at if spoilt else -1, spoilt)
            if self.call(expected, *self.ledger.submission(*updates), sender=self.ledger.relay):
                assert stored is not None
                stored.recorded |= {update.hospital for update in updates}

        @precondition(lambda self: self.any(lambda stored: stored.status == OPEN))
        @rule(
            job=job_numbers,
            crowd=st.sets(members, min_size=1),
            false=st.sampled_from(["", "", "chain", "mirrored", "empty", "idle"]),
            other_base=seldom,
            nothing=seldom,
            stranger=seldom,
        )
        def commit(
            self, job: int, crowd: set[int], false: str, other_base: bool, nothing: bool, stranger: bool
        ) -> None:
            of, model = JOBS[job], self.jobs[JOBS[job]]
            number = max(1, len(model.rounds))
            stored = self.round(model, number)
            base = digest("no base") if other_base or not stored else stored.base
            first, *rest = sorted(crowd)
            updates = [self.update(member, of, number, base) for member in rest]
            one = self.update(first, of, number, base)
            updates.append(self.spoil(one, self.keys[first], false) if false else one)
            committed = self.ledger.committed(*updates)
            root = ZERO if nothing else committed.tree.root

            expected = self.coordination(stranger)
            if expected is None and nothing:
                expected = refusal("EmptyValue")
            if expected is None:
                expected = self.not_open(of, number, stored)
            if expected is None:
                assert stored is not None
                expected = self.commitment_refused(of, number, stored, base, len(updates))
            if self.call(expected, "commitUpdates", of, number, base, root, len(updates), sender=self.sender(stranger)):
                assert stored is not None
                stored.merkle = True
                stored.committed = list(committed.updates)
                stored.right = {each.hospital for each in updates} & self.members
                if false:
                    stored.right.discard(one.hospital)

        @precondition(lambda self: self.any(lambda stored: bool(stored.recorded)))
        @rule(job=job_numbers, member=members, reason=st.sampled_from([8, 1, 9, 0]), stranger=seldom)
        def reject(self, job: int, member: int, reason: int, stranger: bool) -> None:
            of, model = JOBS[job], self.jobs[JOBS[job]]
            number = max(1, len(model.rounds))
            stored, hospital = self.round(model, number), self.keys[member].address
            expected = self.coordination(stranger) or self.not_open(of, number, stored)
            if expected is None and reason == 0:
                expected = refusal("ReasonMissing")
            if expected is None and stored is not None:
                if hospital not in stored.recorded:
                    expected = refusal("UpdateNotFound", of, number, hospital)
                elif hospital in stored.rejected:
                    expected = refusal("AlreadyRejected", of, number, hospital)
            if self.call(expected, "rejectUpdate", of, number, hospital, reason, sender=self.sender(stranger)):
                assert stored is not None
                stored.rejected.add(hospital)

        @precondition(lambda self: self.any(lambda stored: stored.committed is not None))
        @rule(
            job=job_numbers,
            index=st.integers(0, HOSPITALS),
            shift=seldom,
            reason=st.sampled_from([8, 1, 9, 0]),
            stranger=seldom,
        )
        def reject_leaf(self, job: int, index: int, shift: bool, reason: int, stranger: bool) -> None:
            of, model = JOBS[job], self.jobs[JOBS[job]]
            number = max(1, len(model.rounds))
            stored = self.round(model, number)
            shown, fault = self.shown(of, number, stored, index, shift)
            expected = self.coordination(stranger) or self.not_open(of, number, stored)
            if expected is None and reason == 0:
                expected = refusal("ReasonMissing")
            if expected is None:
                expected = fault
            if expected is None and stored is not None and shown[3] in stored.rejected_leaves:
                expected = refusal("AlreadyRejected", of, number, shown[2][0])
            if self.call(expected, "rejectCommitted", *shown, reason, sender=self.sender(stranger)):
                assert stored is not None
                stored.rejected_leaves.add(shown[3])

        @precondition(lambda self: self.any(lambda stored: stored.committed is not None))
        @rule(job=job_numbers, past=st.integers(0, 2), index=st.integers(0, HOSPITALS), shift=seldom)
        def prove_and_dispute(self, job: int, past: int, index: int, shift: bool) -> None:
            of, model = JOBS[job], self.jobs[JOBS[job]]
            number = max(1, len(model.rounds) - past)
            stored = self.round(model, number)
            shown, fault = self.shown(of, number, stored, index, shift)
            if fault is not None:
                for name in ("proveUpdate", "disputeUpdate"):
                    self.call(fault, name, *shown, sender=self.ledger.relay)
                return
            assert stored is not None
            hospital, file, samples, _, _ = shown[2]
            if hospital in stored.right:
                self.call(None, "proveUpdate", *shown, sender=self.ledger.relay)
                self.call(refusal("NothingToDispute", hospital), "disputeUpdate", *shown, sender=self.ledger.relay)
                return
            self.call(None, "disputeUpdate", *shown, sender=self.ledger.relay)
            error = self.ledger.refused("proveUpdate", *shown, sender=self.ledger.relay)
            if file == ZERO:
                assert error == refusal("EmptyValue")
            elif samples == 0:
                assert error == refusal("NoSamples", hospital)
            else:
                assert error.error in ("InvalidSignature", "NotHospital")

        @precondition(lambda self: self.any(lambda stored: stored.submitted > 0))
        @rule(job=job_numbers, off=st.sampled_from([0, 0, 0, 0, 0, 1]), empty=seldom, stranger=seldom)
        def close(self, job: int, off: int, empty: bool, stranger: bool) -> None:
            of, model = JOBS[job], self.jobs[JOBS[job]]
            number = max(1, len(model.rounds))
            stored = self.round(model, number)
            accepted = stored.submitted - stored.left_out if stored else 0
            self.made += 1
            made = ZERO if empty else digest(f"global {self.made}")
            expected = self.coordination(stranger) or self.not_open(of, number, stored)
            if expected is None and off:
                expected = refusal("ContributionCountMismatch", accepted, accepted + off)
            if expected is None and stored is not None and accepted < stored.quorum:
                expected = refusal("QuorumNotReached", accepted, stored.quorum)
            if expected is None and empty:
                expected = refusal("EmptyValue")
            arguments = (of, number, made, digest("contributions"), accepted + off)
            if self.call(expected, "closeRound", *arguments, sender=self.sender(stranger)):
                assert stored is not None
                stored.status, model.head, model.closed = CLOSED, made, number

        @precondition(lambda self: self.any(lambda stored: stored.submitted > 0))
        @rule(job=job_numbers, willing=seldom, stranger=seldom)
        def abort(self, job: int, willing: bool, stranger: bool) -> None:
            of, model = JOBS[job], self.jobs[JOBS[job]]
            number = max(1, len(model.rounds))
            stored = self.round(model, number)
            expected = self.coordination(stranger) or self.not_open(of, number, stored)
            if expected is None and not willing:
                return  # else most rounds would end before anything happened in them
            if self.call(expected, "abortRound", of, number, sender=self.sender(stranger)):
                assert stored is not None
                stored.status = ABORTED

        @precondition(lambda self: self.any(lambda stored: stored.status == CLOSED))
        @rule(job=job_numbers, other=seldom, willing=seldom)
        def publish(self, job: int, other: bool, willing: bool) -> None:
            of, model = JOBS[job], self.jobs[JOBS[job]]
            what = digest("no model") if other else model.head
            expected = self.coordination(False) or self.busy(of, model)
            if expected is None and (not model.closed or what != model.head):
                expected = refusal("NotHead", model.head, what)
            if expected is None and not willing:
                return  # else most jobs would end before anything happened in them
            if self.call(expected, "publishModel", of, what):
                model.published = True

        # ------------------------------------------------------------------------------------ what must be seen

        @invariant()
        def the_ledger_is_as_the_model(self) -> None:
            for job in self.called & set(self.jobs):
                model = self.jobs[job]
                assert self.ledger.view("jobOf", job) == (model.head, len(model.rounds), model.published)
                if not model.rounds:
                    continue
                number, stored = len(model.rounds), model.rounds[-1]
                assert self.ledger.view("roundOf", job, number) == (
                    stored.base,
                    stored.deadline,
                    stored.quorum,
                    stored.submitted,
                    stored.left_out,
                    stored.status,
                )
                root, count, merkle = self.ledger.view("commitmentOf", job, number)
                assert merkle == stored.merkle
                assert (root != ZERO, count) == (stored.committed is not None, len(stored.committed or ()))
                assert not (stored.recorded and stored.committed)
            self.called.clear()

        def teardown(self) -> None:
            for hospital, number in self.numbers.items():
                assert self.ledger.view("hospitalNumber", hospital) == number
                assert self.ledger.view("hasRole", HOSPITAL_ROLE, hospital) == (hospital in self.members)
            for job, model in self.jobs.items():
                for number, stored in enumerate(model.rounds, start=1):
                    for key in self.keys:
                        status = [key.address in stored.recorded, key.address in stored.rejected]
                        assert self.ledger.view("updateStatus", job, number, key.address) == status

        # -------------------------------------------------------------------------------------------- the model

        def call(self, expected: Refusal | None, name: str, *arguments: Any, sender: str | None = None) -> bool:
            """Make the call; whether it was to succeed. It must end as expected."""
            self.called.update(arguments[:1])
            if expected is None:
                self.ledger.send(name, *arguments, sender=sender)
                return True
            assert self.ledger.refused(name, *arguments, sender=sender) == expected
            return False

        def any(self, holds: Callable[[ModelRound], bool]) -> bool:
            """Whether a rule has something to work on: there is little time, and refusals of nothing are soon seen."""
            return any(holds(stored) for model in self.jobs.values() for stored in model.rounds)

        def sender(self, stranger: bool) -> str:
            return self.ledger.relay if stranger else self.ledger.coordinator

        def later_than(self, limit: int) -> Refusal | None:
            """The refusal for being late, if so."""
            if self.chain.now == limit:  # a dry call sees the latest block's time, a transaction a second more
                self.chain.tester.time_travel(limit + 5)
            return refusal("DeadlinePassed", limit, self.chain.now) if self.chain.now > limit else None

        def coordination(self, stranger: bool) -> Refusal | None:
            if self.paused:
                return refusal("EnforcedPause")
            if stranger:
                return refusal("AccessControlUnauthorizedAccount", self.ledger.relay, COORDINATOR_ROLE)
            return None

        def busy(self, job: bytes, model: ModelJob) -> Refusal | None:
            if model.published:
                return refusal("JobPublished", job)
            if model.rounds and model.rounds[-1].status == OPEN:
                return refusal("PreviousRoundOpen", job, len(model.rounds))
            return None

        def round(self, model: ModelJob, number: int) -> ModelRound | None:
            return model.rounds[number - 1] if number <= len(model.rounds) else None

        def not_open(self, job: bytes, number: int, stored: ModelRound | None) -> Refusal | None:
            return None if stored and stored.status == OPEN else refusal("RoundNotOpen", job, number)

        def submission_refused(
            self,
            job: bytes,
            number: int,
            stored: ModelRound,
            base: bytes,
            updates: list[Update],
            spoilt_at: int,
            spoilt: str,
        ) -> Refusal | None:
            if stored.merkle:
                return refusal("RoundTakesCommitment", job, number)
            if base != stored.base:
                return refusal("BaseMismatch", stored.base, base)
            if late := self.later_than(stored.deadline):
                return late
            seen = set(stored.recorded)
            for at, update in enumerate(updates):
                if at == spoilt_at:
                    if spoilt == "empty":
                        return refusal("EmptyValue")
                    if spoilt == "idle":
                        return refusal("NoSamples", update.hospital)
                    return refusal("InvalidSignature", update.hospital)
                if update.hospital not in self.members:
                    return refusal("NotHospital", update.hospital)
                if update.hospital in seen:
                    return refusal("AlreadySubmitted", job, number, update.hospital)
                seen.add(update.hospital)
            return None

        def commitment_refused(
            self, job: bytes, number: int, stored: ModelRound, base: bytes, count: int
        ) -> Refusal | None:
            if base != stored.base:
                return refusal("BaseMismatch", stored.base, base)
            if stored.committed is not None:
                return refusal("AlreadyCommitted", job, number)
            if stored.recorded:
                return refusal("UpdatesRecorded", job, number, len(stored.recorded))
            if late := self.later_than(stored.deadline + GRACE):
                return late
            if count > len(self.members):
                return refusal("MoreUpdatesThanHospitals", len(self.members), count)
            return None

        def shown(
            self, job: bytes, number: int, stored: ModelRound | None, index: int, shift: bool
        ) -> tuple[tuple[Any, ...], Refusal | None]:
            """A leaf as it is shown to the contract, and what is wrong with it."""
            if stored is None or stored.committed is None:
                some = self.update(0, job, number, BASES[0])
                return (job, number, some.argument(), index, []), refusal("NotCommitted", job, number)
            committed = self.ledger.committed(*stored.committed)
            count = len(stored.committed)
            index = index % count if index < HOSPITALS else index
            if index >= count:
                update = stored.committed[0].argument()
                return (job, number, update, index, []), refusal("IndexOutOfRange", index, count)
            of, part, update, _, proof = committed.shown(index)
            if shift and count > 1:
                wrong = (index + 1) % count
                return (of, part, update, wrong, proof), refusal("NotInCommitment", committed.leaves[index], wrong)
            return (of, part, update, index, proof), None

        def update(self, member: int, job: bytes, number: int, base: bytes) -> Update:
            return self.ledger.update(self.keys[member], job, base, round=number)

        def spoil(self, update: Update, key: LocalAccount, how: str) -> Update:
            """The same claim, with a signature for something else, or a signed claim that is empty."""
            order = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFEBAAEDCE6AF48A03BBFD25E8CD0364141
            r, s, v = update.signature[:32], int.from_bytes(update.signature[32:64], "big"), update.signature[64]
            match how:
                case "empty":
                    return self.ledger.sign(replace(update, digest=ZERO), key)
                case "idle":
                    return self.ledger.sign(replace(update, samples=0), key)
                case "chain":
                    return self.ledger.sign(update, key, chainId=1)
                case "contract":
                    return self.twin.sign(update, key)
                case "round":
                    return replace(
                        update, signature=self.ledger.sign(replace(update, round=update.round + 1), key).signature
                    )
                case "job":
                    other = JOBS[update.job == JOBS[0]]
                    return replace(update, signature=self.ledger.sign(replace(update, job=other), key).signature)
                case "samples":
                    return replace(update, samples=update.samples + 1)
                case _:
                    return replace(update, signature=r + (order - s).to_bytes(32, "big") + bytes([55 - v]))

        def change_role(self, address: str, granted: bool) -> None:
            name = "grantRole" if granted else "revokeRole"
            self.call(None, name, HOSPITAL_ROLE, address, sender=self.ledger.admin)
            (self.members.add if granted else self.members.discard)(address)
            if granted:
                self.numbers.setdefault(address, len(self.numbers) + 1)

    return LedgerMachine


def test_the_ledger_does_what_the_model_says(stage: tuple[Ledger, Ledger]) -> None:
    run_state_machine_as_test(
        machine_on(stage),
        settings=settings(
            max_examples=50,
            stateful_step_count=25,
            phases=[Phase.generate],  # to shrink a failure takes minutes on an EVM; the run that failed is printed
            deadline=None,
            derandomize=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
