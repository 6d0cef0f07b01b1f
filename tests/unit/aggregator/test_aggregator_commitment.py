"""Merkle rounds: a true one verifies; what is changed in leaves, root, count or rejections is found and named."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pymerkle
import pytest
from concilia_aggregator.verification.lineage import BrokenLineage, rebuild
from concilia_aggregator.verification.roles import RoleChanged, RoleHistory
from concilia_kit import merkle, signing
from concilia_kit.wire.chain import EventName, LedgerEvent, LedgerUpdate
from eth_account import Account
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .test_aggregator_verifier import DOMAIN, JOB, KEYS, Job, finished

BOTH = frozenset({1, 2})
STRANGER = Account.from_key(b"\x77" * 32)
Placed = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return finished(tmp_path, BOTH)


def at(job: Job, name: EventName, round_: int = 1) -> int:
    return next(index for index, each in enumerate(job.events) if (each.name, each.round) == (name, round_))


def change(job: Job, name: EventName, **arguments: str | int) -> None:
    index = at(job, name)
    event = job.events[index]
    job.events[index] = event.model_copy(update={"arguments": {**event.arguments, **arguments}})


def places(job: Job) -> list[tuple[int, str | None]]:
    return [(each.round, each.hospital) for each in job.verify().findings]


def turned(text: str, bit: int) -> str:
    raw = bytearray.fromhex(text.removeprefix("0x"))
    raw[bit // 8] ^= 1 << bit % 8
    return ("0x" if text.startswith("0x") else "") + raw.hex()


@pytest.mark.parametrize("committed", [BOTH, frozenset({1}), frozenset({2})])
def test_a_true_job_verifies(tmp_path: Path, committed: frozenset[int]) -> None:
    verdict = finished(tmp_path, committed).verify()
    assert verdict.ok, verdict.findings
    assert (verdict.rounds, verdict.updates, verdict.signatures, verdict.rejected) == (2, 5, 5, 1)


def test_the_root_is_that_of_somebody_elses_implementation(job: Job) -> None:
    """pymerkle's tree of the same data, which takes the verifier's word for nothing."""
    oracle = pymerkle.InmemoryTree(algorithm="sha256")
    for each in job.signed[:3]:
        oracle.append_entry(merkle.update_data(each.update, DOMAIN, each.signature))
    assert job.events[at(job, EventName.UPDATES_COMMITTED)].arguments["root"] == oracle.get_root().hex()


def test_without_its_leaves_a_round_is_one_finding(job: Job) -> None:
    leaves, job.signed = job.signed, [each for each in job.signed if each.update.round == 2]
    (finding,) = job.verify().findings
    assert (finding.round, finding.hospital) == (1, None)
    assert "leaves are needed" in finding.what
    assert "3 updates" in finding.what
    job.signed = leaves
    closed = str(job.events[at(job, EventName.ROUND_CLOSED)].arguments["globalDigest"])
    job.path(closed).write_bytes(b"not the model")
    job.signed = []
    assert (1, None) in [(each.round, each.hospital) for each in job.verify().findings if each.digest == closed]


@Placed
@given(st.data())
def test_any_bit_of_a_leaf_is_found_and_its_hospital_named(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    job = finished(tmp_path_factory.mktemp("store"), BOTH)
    index = data.draw(st.integers(0, len(job.signed) - 1))
    leaf = job.signed[index]
    member = data.draw(st.sampled_from(["signature", "digest", "metrics", "base", "job", "samples", "index"]))
    changed: dict[str, Any]
    if member == "signature":
        bit = data.draw(st.integers(0, 8 * 65 - 1))
        changed = {"signature": turned(leaf.signature, bit)}
    elif member == "index":
        changed = {"index": (leaf.index or 0) ^ (1 << data.draw(st.integers(0, 31)))}
    else:
        old = getattr(leaf.update, member)
        new = (
            old ^ (1 << data.draw(st.integers(0, 63)))
            if member == "samples"
            else turned(old, data.draw(st.integers(0, 255)))
        )
        changed = {"update": leaf.update.model_copy(update={member: new})}
    job.signed[index] = leaf.model_copy(update=changed)
    assert (leaf.update.round, leaf.update.hospital) in places(job)


@Placed
@given(st.data())
def test_any_bit_of_the_commitment_is_found(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    job = finished(tmp_path_factory.mktemp("store"), BOTH)
    told = job.events[at(job, EventName.UPDATES_COMMITTED)].arguments
    if data.draw(st.booleans()):
        change(job, EventName.UPDATES_COMMITTED, root=turned(str(told["root"]), data.draw(st.integers(0, 255))))
    else:
        count = int(told["count"]) ^ (1 << data.draw(st.integers(0, 31)))
        change(job, EventName.UPDATES_COMMITTED, count=count)
    assert 1 in [round_ for round_, _hospital in places(job)]


def test_a_missing_leaf_is_counted(job: Job) -> None:
    gone = job.signed.pop(2)
    found = job.verify().findings
    assert gone.update.round == 1
    assert any("3 leaves are committed, 2 are given" in each.what for each in found)
    assert all(each.round == 1 for each in found)


def test_leaves_in_another_order_are_both_named(job: Job) -> None:
    job.signed[0], job.signed[1] = job.signed[1], job.signed[0]
    named = {hospital for _, hospital in places(job)}
    assert {each.update.hospital for each in job.signed[:2]} <= named


def rewritten(job: Job, make: Callable[[list[LedgerUpdate]], list[LedgerUpdate]]) -> list[str]:
    """Round 1 as a coordinator could have committed it: root and count fit whatever leaves there are."""
    first = make([each for each in job.signed if each.update.round == 1])
    first = [each.model_copy(update={"index": index}) for index, each in enumerate(first)]
    job.signed = [*first, *(each for each in job.signed if each.update.round == 2)]
    leaves = [merkle.leaf(merkle.update_data(each.update, DOMAIN, each.signature)) for each in first]
    change(job, EventName.UPDATES_COMMITTED, root=merkle.root(leaves).hex(), count=len(leaves))
    change(job, EventName.ROUND_CLOSED, count=len(leaves) - 1)
    found = job.verify().findings
    assert all(each.round == 1 for each in found)
    return [f"{each.hospital}: {each.what}" for each in found]


def test_a_hospital_that_is_committed_twice(job: Job) -> None:
    found = rewritten(job, lambda leaves: [leaves[0], leaves[0], *leaves[1:]])
    assert f"{job.signed[0].update.hospital}: it is committed twice" in found


def test_a_commitment_out_of_order(job: Job) -> None:
    found = rewritten(job, lambda leaves: [leaves[1], leaves[0], leaves[2]])
    assert any("is not in ascending order" in each for each in found)


def test_a_leaf_of_another_round(job: Job) -> None:
    """A signature that is the hospital's, replayed."""
    other = next(each for each in job.signed if each.update.round == 2)
    replayed = other.model_copy(update={"update": other.update.model_copy(update={"round": 1})})
    found = rewritten(
        job, lambda leaves: [replayed if each.update.hospital == other.update.hospital else each for each in leaves]
    )
    assert any(each.startswith(other.update.hospital) and "another job, round or base" in each for each in found)


@pytest.mark.parametrize("spoil", [{"samples": 0}, {"digest": "0" * 64}])
def test_an_empty_update_that_no_contract_refused(job: Job, spoil: dict[str, Any]) -> None:
    rejected = job.events[at(job, EventName.UPDATE_REJECTED)].arguments["hospital"]

    def emptied(leaves: list[LedgerUpdate]) -> list[LedgerUpdate]:
        index = next(i for i, each in enumerate(leaves) if each.update.hospital != rejected)
        key = next(each for each in KEYS if each.address == leaves[index].update.hospital)
        update = leaves[index].update.model_copy(update=spoil)
        signature = signing.sign(update, DOMAIN, key)
        leaves[index] = leaves[index].model_copy(update={"update": update, "signature": signature})
        return leaves

    assert any("its update is empty" in each for each in rewritten(job, emptied))


def test_a_rejection_that_names_anothers_leaf(job: Job) -> None:
    index = int(job.events[at(job, EventName.LEAF_REJECTED)].arguments["index"])
    change(job, EventName.LEAF_REJECTED, index=(index + 1) % 3)
    rejected = str(job.events[at(job, EventName.UPDATE_REJECTED)].arguments["hospital"])
    assert (1, rejected) in places(job)
    assert any("was rejected as its own" in each.what for each in job.verify().findings)


def roles(job: Job, *changes: RoleChanged) -> RoleHistory:
    return RoleHistory([*(RoleChanged(0, index, key.address, True) for index, key in enumerate(KEYS)), *changes])


def test_the_role_counts_at_the_commitment(job: Job) -> None:
    """Not when the update was handed in: the contract asks at that place, so that a proof on chain says the same."""
    committed = job.events[at(job, EventName.UPDATES_COMMITTED)]
    rejected = job.events[at(job, EventName.UPDATE_REJECTED)].arguments["hospital"]
    hospital = next(each.address for each in KEYS if each.address != rejected)
    assert job.verify(roles(job)).ok
    before = RoleChanged(committed.block - 1, 9, hospital, False)
    again = RoleChanged(committed.block, committed.log_index + 1, hospital, True)
    (finding,) = job.verify(roles(job, before, again)).findings
    assert (finding.round, finding.hospital) == (1, hospital)
    assert "when it was committed" in finding.what
    after = RoleChanged(committed.block, committed.log_index, hospital, False)
    assert [each.round for each in job.verify(roles(job, after)).findings] == [
        each.update.round for each in job.signed if each.update.hospital == hospital and each.update.round == 2
    ]


def test_a_rejected_leaf_of_no_hospital_went_nowhere(job: Job) -> None:
    rejected = str(job.events[at(job, EventName.UPDATE_REJECTED)].arguments["hospital"])
    revoked = RoleChanged(job.events[at(job, EventName.UPDATES_COMMITTED)].block - 1, 9, rejected, False)
    back = RoleChanged(job.events[at(job, EventName.ROUND_CLOSED)].block, 9, rejected, True)
    assert job.verify(roles(job, revoked, back)).ok


# ---------------------------------------------------------------------------------- events that no contract emits so


def moved(job: Job, name: EventName, **changes: Any) -> LedgerEvent:
    return job.events[at(job, name)].model_copy(update=changes)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda j: j.events.insert(2, moved(j, EventName.MERKLE_ROUND_OPENED)), "opening"),
        (lambda j: j.events.insert(3, moved(j, EventName.UPDATES_COMMITTED)), "has updates already"),
        (lambda j: j.events.pop(at(j, EventName.LEAF_REJECTED)), "do not go together"),
        (lambda j: j.events.pop(at(j, EventName.UPDATE_REJECTED)), "do not go together"),
        (lambda j: j.events.pop(at(j, EventName.UPDATES_COMMITTED)), "was not there to reject"),
        (lambda j: change(j, EventName.UPDATES_COMMITTED, count=0), "commits nothing"),
        (lambda j: change(j, EventName.LEAF_REJECTED, index=3), "was not there to reject"),
        (lambda j: change(j, EventName.UPDATE_REJECTED, reason=0), "without a reason"),
        (lambda j: change(j, EventName.ROUND_CLOSED, count=3), "2 accepted updates, 3 claimed"),
    ],
)
def test_an_order_the_contract_never_emits(job: Job, spoil: Callable[[Job], object], words: str) -> None:
    spoil(job)
    with pytest.raises(BrokenLineage, match=words):
        rebuild(job.events)
    assert places(job)[0][0] == 1


def test_a_leaf_that_is_rejected_twice(job: Job) -> None:
    index = at(job, EventName.LEAF_REJECTED)
    job.events[index + 1 : index + 1] = job.events[index - 1 : index + 1]
    with pytest.raises(BrokenLineage, match="was not there to reject"):
        rebuild(job.events)


def test_events_that_end_between_a_rejection_and_its_leaf(job: Job) -> None:
    with pytest.raises(BrokenLineage, match="names no leaf"):
        rebuild(job.events[: at(job, EventName.LEAF_REJECTED)])


@pytest.mark.parametrize("committed_first", [True, False])
def test_updates_are_recorded_or_committed_never_both(tmp_path: Path, committed_first: bool) -> None:
    recorded = finished(tmp_path)
    update = recorded.events[at(recorded, EventName.UPDATE_RECORDED)]
    commitment = update.model_copy(update={"name": EventName.UPDATES_COMMITTED, "arguments": {"root": "0", "count": 1}})
    both = (commitment, update) if committed_first else (update, commitment)
    with pytest.raises(BrokenLineage, match=r"takes a commitment|has updates already"):
        rebuild([recorded.events[0], *both])


def test_any_round_may_take_a_commitment(job: Job) -> None:
    """The contract takes one in a round of `openRound` too, as long as nothing was recorded."""
    job.events.pop(at(job, EventName.MERKLE_ROUND_OPENED))
    assert job.verify().ok


def test_many_leaves_are_hashed_as_they_are_read(tmp_path: Path) -> None:
    """More than a page of them, and of a hospital that none of the job's keys is: all but its role agrees."""
    job = finished(tmp_path, BOTH)
    keys = [Account.from_key(index.to_bytes(32, "big")) for index in range(1000, 1070)]
    template = job.signed[0]

    def more(leaves: list[LedgerUpdate]) -> list[LedgerUpdate]:
        for key in keys:
            update = template.update.model_copy(update={"hospital": key.address})
            signed = {"update": update, "signature": signing.sign(update, DOMAIN, key)}
            leaves.append(template.model_copy(update=signed))
        return sorted(leaves, key=lambda each: int(each.update.hospital, 16))

    rejected = str(job.events[at(job, EventName.UPDATE_REJECTED)].arguments["hospital"])
    first = more([each for each in job.signed if each.update.round == 1])
    place = next(index for index, each in enumerate(first) if each.update.hospital == rejected)
    change(job, EventName.LEAF_REJECTED, index=place)
    found = rewritten(job, more)
    assert len(job.signed) > 70
    assert found
    assert all("contribution list" in each or "folded again" in each for each in found)


def test_another_domains_leaves_have_another_root(job: Job) -> None:
    other = DOMAIN.model_copy(update={"chain_id": DOMAIN.chain_id + 1})
    leaves = [merkle.leaf(merkle.update_data(each.update, other, each.signature)) for each in job.signed[:3]]
    change(job, EventName.UPDATES_COMMITTED, root=merkle.root(leaves).hex())
    assert places(job) == [(1, None)]
    assert job.events[0].job == JOB
    assert STRANGER.address not in {each.update.hospital for each in job.signed}
