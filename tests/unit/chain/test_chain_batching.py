"""Which orders share a transaction."""

from __future__ import annotations

from concilia_chain import batching
from concilia_chain.calls import Call
from concilia_chain.orders import Order
from concilia_kit.signing import Update
from concilia_kit.wire.chain import UpdateSubmission
from concilia_kit.wire.training import UpdateMetrics
from hypothesis import given
from hypothesis import strategies as st

METRICS = UpdateMetrics(
    loss=0.5,
    accuracy=0.5,
    images=1,
    lesions=1,
    skipped_images=0,
    epochs=1,
    seconds_download=0,
    seconds_training=0,
    seconds_upload=0,
    bytes_download=0,
    bytes_upload=0,
)


def order(number: int, job: int | None) -> Order:
    submission = None
    if job is not None:
        update = Update(
            hospital=f"0x{number + 1:040x}",
            job=f"{job:064x}",
            round=1,
            base="a" * 64,
            digest="b" * 64,
            samples=1,
            metrics="c" * 64,
        )
        submission = UpdateSubmission(update=update, metrics=METRICS, signature="0x00")
    return Order(number, Call(None, "0x", "f"), submission, 100.0 + number, 0)


@given(st.lists(st.none() | st.integers(0, 2), max_size=30), st.integers(1, 7))
def test_every_order_is_in_one_batch_and_a_batch_is_of_one_round(jobs: list[int | None], most: int) -> None:
    orders = [order(number, job) for number, job in enumerate(jobs)]
    made = batching.batches(orders, most)
    assert sorted(each.id for batch in made for each in batch) == [each.id for each in orders]
    for batch in made:
        assert 1 <= len(batch) <= most
        assert [each.id for each in batch] == sorted(each.id for each in batch)
        kinds = {None if each.submission is None else each.submission.update.job for each in batch}
        assert len(kinds) == 1
        assert len(batch) == 1 or kinds != {None}
    alone = [batch[0].id for batch in made if batch[0].submission is None]
    assert alone == sorted(alone)


def test_a_batch_goes_when_it_is_full_or_has_waited() -> None:
    updates = [order(0, 1), order(1, 1)]
    assert batching.due_in(updates[:1], 3, 0.5, 100.25) == 0.25
    assert batching.due_in(updates, 3, 0.5, 101.25) == 0.25  # while they keep coming
    assert batching.due_in(updates, 3, 0.05, 101.0) == 0.0  # but not for ever
    assert batching.due_in(updates, 3, 0.5, 101.5) == 0.0
    assert batching.due_in(updates, 2, 0.5, 100.0) == 0.0
    assert batching.due_in([order(0, None)], 3, 0.5, 100.0) == 0.0


@given(st.lists(st.none() | st.integers(0, 2), max_size=12), st.integers(0, 5))
def test_a_round_is_complete_when_all_that_may_come_wait(jobs: list[int | None], missing: int) -> None:
    orders = [order(number, job) for number, job in enumerate(jobs)]
    complete = batching.complete(orders, lambda _job, _round: missing)
    counts = {job: jobs.count(job) for job in jobs if job is not None}
    assert complete == {(f"{job:064x}", 1) for job, count in counts.items() if count >= missing}
