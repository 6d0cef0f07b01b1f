"""Jobs and rounds: the order in which they open, reject, close, abort and publish, and every refusal of it."""

from typing import Any

import pytest
from eth_account.signers.local import LocalAccount

from contracts.tests.ledger_harness import COORDINATOR_ROLE, Ledger, Update, digest, refusal

JOB = digest("job")
BASE = digest("base")
GLOBAL = digest("global of round 1")
CONTRIBUTIONS = digest("contributions")
ZERO = bytes(32)
NONE, OPEN, CLOSED, ABORTED = range(4)
NORM_TOO_LARGE = 8

Hospitals = tuple[LocalAccount, ...]


def updates(ledger: Ledger, hospitals: Hospitals) -> list[Update]:
    return [ledger.update(hospital, JOB, BASE) for hospital in hospitals]


def close(ledger: Ledger, hospitals: Hospitals, number: int = 1, base: bytes = BASE, after: bytes = GLOBAL) -> None:
    """Open a round, submit for every hospital and close it."""
    ledger.open(JOB, base, number)
    ledger.submit(*(ledger.update(hospital, JOB, base, round=number) for hospital in hospitals))
    ledger.send("closeRound", JOB, number, after, CONTRIBUTIONS, len(hospitals))


def test_a_round_that_was_never_opened_is_all_zero(ledger: Ledger) -> None:
    assert ledger.view("roundOf", JOB, 1) == (ZERO, 0, 0, 0, 0, NONE)
    assert ledger.view("jobOf", JOB) == (ZERO, 0, False)


def test_the_first_round_opens_on_any_base(ledger: Ledger) -> None:
    deadline = ledger.chain.now + 60
    receipt = ledger.send("openRound", JOB, 1, BASE, deadline, 2)
    assert ledger.events(receipt) == [
        ("RoundOpened", {"job": JOB, "round": 1, "base": BASE, "deadline": deadline, "quorum": 2})
    ]
    assert ledger.view("roundOf", JOB, 1) == (BASE, deadline, 2, 0, 0, OPEN)
    assert ledger.view("jobOf", JOB) == (BASE, 1, False)


@pytest.mark.parametrize(("job", "base", "quorum"), [(ZERO, BASE, 1), (JOB, ZERO, 1), (JOB, BASE, 0)])
def test_open_refuses_what_is_empty(ledger: Ledger, job: bytes, base: bytes, quorum: int) -> None:
    assert ledger.refused("openRound", job, 1, base, ledger.chain.now + 60, quorum) == refusal("EmptyValue")


@pytest.mark.parametrize("number", [0, 2, 2**32 - 1])
def test_rounds_are_numbered_from_one_without_gaps(ledger: Ledger, number: int) -> None:
    refused = ledger.refused("openRound", JOB, number, BASE, ledger.chain.now + 60, 1)
    assert refused == refusal("RoundOutOfOrder", JOB, number, 1)


@pytest.mark.parametrize("number", [1, 3])
def test_a_later_round_neither_repeats_nor_skips(ledger: Ledger, hospitals: Hospitals, number: int) -> None:
    close(ledger, hospitals)
    refused = ledger.refused("openRound", JOB, number, GLOBAL, ledger.chain.now + 60, 1)
    assert refused == refusal("RoundOutOfOrder", JOB, number, 2)


@pytest.mark.parametrize("number", [1, 2])
def test_one_round_at_a_time(ledger: Ledger, number: int) -> None:
    ledger.open(JOB, BASE)
    refused = ledger.refused("openRound", JOB, number, BASE, ledger.chain.now + 60, 1)
    assert refused == refusal("PreviousRoundOpen", JOB, 1)


def test_jobs_do_not_touch_each_other(ledger: Ledger) -> None:
    other = digest("other job")
    ledger.open(JOB, BASE)
    ledger.open(other, GLOBAL)
    ledger.send("abortRound", JOB, 1)
    assert ledger.view("roundOf", other, 1)[-1] == OPEN
    assert ledger.view("jobOf", other) == (GLOBAL, 1, False)


@pytest.mark.parametrize("late", [0, 1])
def test_a_round_opens_with_its_deadline_ahead(ledger: Ledger, late: int) -> None:
    now = ledger.chain.now
    refused = ledger.refused("openRound", JOB, 1, BASE, now - late, 1)
    assert refused == refusal("DeadlinePassed", now - late, now)


def test_the_next_round_starts_from_the_closed_one(ledger: Ledger, hospitals: Hospitals) -> None:
    close(ledger, hospitals)
    refused = ledger.refused("openRound", JOB, 2, BASE, ledger.chain.now + 60, 1)
    assert refused == refusal("BaseMismatch", GLOBAL, BASE)
    ledger.open(JOB, GLOBAL, 2)
    assert ledger.view("jobOf", JOB) == (GLOBAL, 2, False)


def test_an_aborted_round_leaves_the_head(ledger: Ledger) -> None:
    ledger.open(JOB, BASE)
    assert ledger.events(ledger.send("abortRound", JOB, 1)) == [("RoundAborted", {"job": JOB, "round": 1})]
    assert ledger.view("roundOf", JOB, 1)[-1] == ABORTED
    refused = ledger.refused("openRound", JOB, 2, GLOBAL, ledger.chain.now + 60, 1)
    assert refused == refusal("BaseMismatch", BASE, GLOBAL)
    ledger.open(JOB, BASE, 2)


def test_closing_needs_the_count_the_quorum_and_the_digests(ledger: Ledger, hospitals: Hospitals) -> None:
    deadline = ledger.open(JOB, BASE, quorum=2)
    ledger.submit(*updates(ledger, hospitals))
    ledger.send("rejectUpdate", JOB, 1, hospitals[0].address, NORM_TOO_LARGE)
    assert ledger.view("roundOf", JOB, 1) == (BASE, deadline, 2, 3, 1, OPEN)

    for count in (1, 3):
        refused = ledger.refused("closeRound", JOB, 1, GLOBAL, CONTRIBUTIONS, count)
        assert refused == refusal("ContributionCountMismatch", 2, count)
    for digests in ((ZERO, CONTRIBUTIONS), (GLOBAL, ZERO)):
        assert ledger.refused("closeRound", JOB, 1, *digests, 2) == refusal("EmptyValue")

    receipt = ledger.send("closeRound", JOB, 1, GLOBAL, CONTRIBUTIONS, 2)
    assert ledger.events(receipt) == [
        (
            "RoundClosed",
            {"job": JOB, "round": 1, "globalDigest": GLOBAL, "contributions": CONTRIBUTIONS, "count": 2},
        )
    ]
    assert ledger.view("roundOf", JOB, 1) == (BASE, deadline, 2, 3, 1, CLOSED)
    assert ledger.view("jobOf", JOB) == (GLOBAL, 1, False)


def test_a_rejection_can_cost_the_quorum(ledger: Ledger, hospitals: Hospitals) -> None:
    ledger.open(JOB, BASE, quorum=3)
    ledger.submit(*updates(ledger, hospitals))
    ledger.send("rejectUpdate", JOB, 1, hospitals[2].address, NORM_TOO_LARGE)
    assert ledger.refused("closeRound", JOB, 1, GLOBAL, CONTRIBUTIONS, 2) == refusal("QuorumNotReached", 2, 3)


def test_an_empty_round_cannot_close(ledger: Ledger) -> None:
    ledger.open(JOB, BASE)
    assert ledger.refused("closeRound", JOB, 1, GLOBAL, CONTRIBUTIONS, 0) == refusal("QuorumNotReached", 0, 1)


def test_a_round_may_close_before_and_after_its_deadline(ledger: Ledger, hospitals: Hospitals) -> None:
    close(ledger, hospitals)
    deadline = ledger.open(JOB, GLOBAL, 2)
    ledger.submit(ledger.update(hospitals[0], JOB, GLOBAL, round=2))
    ledger.chain.tester.time_travel(deadline + 10)
    ledger.send("closeRound", JOB, 2, digest("late"), CONTRIBUTIONS, 1)


@pytest.mark.parametrize("reason", range(1, 10))
def test_a_rejection_is_named_with_its_reason(ledger: Ledger, hospitals: Hospitals, reason: int) -> None:
    ledger.open(JOB, BASE)
    ledger.submit(*updates(ledger, hospitals))
    receipt = ledger.send("rejectUpdate", JOB, 1, hospitals[1].address, reason)
    assert ledger.events(receipt) == [
        ("UpdateRejected", {"job": JOB, "round": 1, "hospital": hospitals[1].address, "reason": reason})
    ]
    statuses = [ledger.view("updateStatus", JOB, 1, hospital.address) for hospital in hospitals]
    assert statuses == [[True, False], [True, True], [True, False]]


def test_rejecting_is_refused_without_reason_update_or_need(
    ledger: Ledger, hospitals: Hospitals, stranger: LocalAccount
) -> None:
    ledger.open(JOB, BASE)
    first, second, _ = (hospital.address for hospital in hospitals)
    ledger.submit(ledger.update(hospitals[0], JOB, BASE))

    assert ledger.refused("rejectUpdate", JOB, 1, first, 0) == refusal("ReasonMissing")
    for address in (second, stranger.address):
        refused = ledger.refused("rejectUpdate", JOB, 1, address, NORM_TOO_LARGE)
        assert refused == refusal("UpdateNotFound", JOB, 1, address)
    ledger.send("rejectUpdate", JOB, 1, first, NORM_TOO_LARGE)
    refused = ledger.refused("rejectUpdate", JOB, 1, first, NORM_TOO_LARGE)
    assert refused == refusal("AlreadyRejected", JOB, 1, first)


def test_a_reason_that_is_none_of_the_enum_is_refused(ledger: Ledger, hospitals: Hospitals) -> None:
    ledger.open(JOB, BASE)
    ledger.submit(*updates(ledger, hospitals))
    assert ledger.refused("rejectUpdate", JOB, 1, hospitals[0].address, 10) == refusal("")


def test_an_update_of_one_round_is_none_of_the_next(ledger: Ledger, hospitals: Hospitals) -> None:
    close(ledger, hospitals)
    ledger.open(JOB, GLOBAL, 2)
    assert ledger.view("updateStatus", JOB, 2, hospitals[0].address) == [False, False]
    refused = ledger.refused("rejectUpdate", JOB, 2, hospitals[0].address, NORM_TOO_LARGE)
    assert refused == refusal("UpdateNotFound", JOB, 2, hospitals[0].address)


def test_what_is_not_open_takes_nothing(ledger: Ledger, hospitals: Hospitals) -> None:
    first = hospitals[0].address
    late = ledger.update(hospitals[0], JOB, BASE)
    calls = [
        ("rejectUpdate", JOB, 1, first, NORM_TOO_LARGE),
        ("closeRound", JOB, 1, GLOBAL, CONTRIBUTIONS, 0),
        ("abortRound", JOB, 1),
        ledger.submission(late),
    ]
    not_open = refusal("RoundNotOpen", JOB, 1)
    assert [ledger.refused(*call) for call in calls] == [not_open] * len(calls)

    snapshot = ledger.chain.tester.take_snapshot()
    close(ledger, hospitals)
    assert [ledger.refused(*call) for call in calls] == [not_open] * len(calls)

    ledger.chain.tester.revert_to_snapshot(snapshot)
    ledger.open(JOB, BASE)
    ledger.send("abortRound", JOB, 1)
    assert [ledger.refused(*call) for call in calls] == [not_open] * len(calls)


def test_publishing_names_the_round_that_made_the_model(ledger: Ledger, hospitals: Hospitals) -> None:
    close(ledger, hospitals)
    ledger.open(JOB, GLOBAL, 2)
    assert ledger.refused("publishModel", JOB, GLOBAL) == refusal("PreviousRoundOpen", JOB, 2)
    ledger.send("abortRound", JOB, 2)
    assert ledger.refused("publishModel", JOB, BASE) == refusal("NotHead", GLOBAL, BASE)

    receipt = ledger.send("publishModel", JOB, GLOBAL)
    assert ledger.events(receipt) == [("ModelPublished", {"job": JOB, "round": 1, "digest": GLOBAL})]
    assert ledger.view("jobOf", JOB) == (GLOBAL, 2, True)


def test_a_published_job_is_over(ledger: Ledger, hospitals: Hospitals) -> None:
    close(ledger, hospitals)
    ledger.send("publishModel", JOB, GLOBAL)
    assert ledger.refused("publishModel", JOB, GLOBAL) == refusal("JobPublished", JOB)
    refused = ledger.refused("openRound", JOB, 2, GLOBAL, ledger.chain.now + 60, 1)
    assert refused == refusal("JobPublished", JOB)


def test_nothing_to_publish_without_a_closed_round(ledger: Ledger) -> None:
    assert ledger.refused("publishModel", JOB, ZERO) == refusal("NotHead", ZERO, ZERO)
    ledger.open(JOB, BASE)
    ledger.send("abortRound", JOB, 1)
    assert ledger.refused("publishModel", JOB, BASE) == refusal("NotHead", BASE, BASE)


def test_only_the_coordinator_runs_rounds(ledger: Ledger, hospitals: Hospitals) -> None:
    calls: list[tuple[Any, ...]] = [
        ("openRound", JOB, 1, BASE, ledger.chain.now + 60, 1),
        ("rejectUpdate", JOB, 1, hospitals[0].address, NORM_TOO_LARGE),
        ("closeRound", JOB, 1, GLOBAL, CONTRIBUTIONS, 0),
        ("abortRound", JOB, 1),
        ("publishModel", JOB, GLOBAL),
    ]
    for sender in (ledger.deployer, ledger.admin, ledger.relay):
        expected = refusal("AccessControlUnauthorizedAccount", sender, COORDINATOR_ROLE)
        assert [ledger.refused(*call, sender=sender) for call in calls] == [expected] * len(calls)


def test_a_pause_stops_rounds_and_updates(ledger: Ledger, hospitals: Hospitals) -> None:
    ledger.open(JOB, BASE)
    first = hospitals[0].address
    ledger.submit(ledger.update(hospitals[0], JOB, BASE))
    ledger.send("pause", sender=ledger.admin)
    calls = [
        ("openRound", digest("other"), 1, BASE, ledger.chain.now + 60, 1),
        ("rejectUpdate", JOB, 1, first, NORM_TOO_LARGE),
        ("closeRound", JOB, 1, GLOBAL, CONTRIBUTIONS, 1),
        ("abortRound", JOB, 1),
        ("publishModel", JOB, GLOBAL),
        ledger.submission(ledger.update(hospitals[1], JOB, BASE)),
    ]
    assert [ledger.refused(*call) for call in calls] == [refusal("EnforcedPause")] * len(calls)
    ledger.send("unpause", sender=ledger.admin)
    ledger.send("closeRound", JOB, 1, GLOBAL, CONTRIBUTIONS, 1)
