"""A node at its budget refuses, whatever it is asked for, after a restart and a crash too."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from concilia_client_node import accounting
from concilia_client_node.budget import Account, Budget
from concilia_client_node.errors import Refused
from concilia_client_node.sampling import Sampled
from concilia_client_node.trainer import NOTHING, Outcome
from concilia_kit.wire.privacy import Privacy, Spent
from concilia_kit.wire.training import Architecture, Balance, LocalTraining, TrainTask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

DELTA = 1e-5
ROUND = Sampled(noise=1.0, clip=1.0, rate=0.05, steps=20)
ONE, TWO = (accounting.epsilon([ROUND] * rounds, DELTA) for rounds in (1, 2))


def task(number: int = 1, job: str = "a", privacy: Privacy | None = Privacy(noise=1.0)) -> TrainTask:  # noqa: B008
    return TrainTask(
        job=job * 64,
        round=number,
        architecture=Architecture.RESNET18_GN,
        base="b" * 64,
        seed=1,
        deadline=9,
        local=LocalTraining(balance=Balance.NONE),
        privacy=privacy,
    )


def outcome(sampled: Sampled | None = ROUND) -> Outcome:
    return Outcome(None, None, 10, 5, sampled=sampled)


def account(folder: Path, per_job: float | None = None, total: float | None = None, delta: float = DELTA) -> Account:
    return Account(folder / "account.jsonl", Budget(per_job, total, delta))


def update(number: int) -> str:
    return f"{number:064x}"


def spend(given: Account, number: int, job: str = "a") -> Spent:
    spent = given.spend(task(number, job), outcome(), update(number + 100 * ord(job)))
    assert spent is not None
    return spent


def test_what_an_update_cost_is_of_the_whole_job_so_far(tmp_path: Path) -> None:
    first, second = (spend(account(tmp_path), number) for number in (1, 2))
    assert (first.epsilon, second.epsilon) == (ONE, TWO)
    assert spend(account(tmp_path), 1, "c").epsilon == ONE
    assert (second.noise, second.clip, second.rate, second.steps) == (1.0, 1.0, 0.05, 20)


@pytest.mark.parametrize(
    ("per_job", "total", "words"),
    [
        (TWO + 0.01, None, r"bring the job to ε = \d+\.\d+ at δ = 1e-05, and this hospital spends 2\.\d+ on a job"),
        (None, TWO + 0.01, r"bring all jobs together to ε = .* this hospital spends 2\.\d+ in all"),
    ],
)
def test_a_node_at_its_budget_refuses_before_training_and_after_a_restart(
    tmp_path: Path, per_job: float | None, total: float | None, words: str
) -> None:
    for number in (1, 2):
        account(tmp_path, per_job, total).see(task(number), ROUND)
        spend(account(tmp_path, per_job, total), number)
    for _ in range(2):
        with pytest.raises(Refused, match=words):
            account(tmp_path, per_job, total).see(task(3), ROUND)
    assert len(account(tmp_path).entries()) == 2


def test_another_job_has_its_own_budget_and_all_have_one_together(tmp_path: Path) -> None:
    given = account(tmp_path, per_job=ONE + 0.01, total=TWO + 0.01)
    spend(given, 1, "a")
    with pytest.raises(Refused, match="the job"):
        given.see(task(2, "a"), ROUND)
    given.see(task(1, "c"), ROUND)
    spend(given, 1, "c")
    with pytest.raises(Refused, match="all jobs together"):
        given.see(task(1, "d"), ROUND)


def test_two_trainings_at_a_time_do_not_go_past_it_together(tmp_path: Path) -> None:
    one, other = account(tmp_path, total=TWO - 0.01), account(tmp_path, total=TWO - 0.01)
    one.see(task(1, "a"), ROUND)
    other.see(task(1, "c"), ROUND)
    spend(one, 1, "a")
    with pytest.raises(Refused, match="all jobs together"):
        spend(other, 1, "c")
    assert [entry.job for entry in one.entries()] == ["a" * 64]


def test_a_training_that_is_repeated_counts_again_and_an_update_that_is_sent_again_does_not(tmp_path: Path) -> None:
    given = account(tmp_path, per_job=TWO + 0.01)
    first = given.spend(task(1), outcome(), update(1))
    assert given.spend(task(1), outcome(), update(1)) == first
    again = given.spend(task(1), outcome(), update(2))  # the same round, after a crash that took the first
    assert again is not None
    assert again.epsilon == TWO
    with pytest.raises(Refused):
        given.see(task(1), ROUND)


def test_the_jobs_own_delta_does_not_stretch_the_hospitals_budget(tmp_path: Path) -> None:
    generous = task(privacy=Privacy(noise=1.0, delta=0.009))
    cheaper = accounting.epsilon([ROUND], 0.009)
    assert cheaper < ONE - 0.1
    with pytest.raises(Refused, match=f"δ = {DELTA:g}"):
        account(tmp_path, per_job=ONE - 0.05).see(generous, ROUND)
    spent = account(tmp_path).spend(generous, outcome(), update(1))
    assert spent is not None
    assert (spent.epsilon, spent.delta) == (cheaper, 0.009)


def test_what_is_trained_and_not_what_was_planned_is_put_down(tmp_path: Path) -> None:
    more = ROUND.model_copy(update={"steps": 21})
    account(tmp_path).spend(task(), outcome(more), update(1))
    assert [entry.sampled for entry in account(tmp_path).entries()] == [more]
    with pytest.raises(Refused, match="the training was without"):
        account(tmp_path).spend(task(), outcome(None), update(2))


class Trains:
    """Notes how it is asked to train."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def train(self, *_: object) -> tuple[Outcome, dict[str, object]]:
        self.asked.append("train")
        return Outcome(0.5, 0.5, 10, 5), {}

    def train_privately(self, *given: object) -> tuple[Outcome, dict[str, object]]:
        given[4](ROUND)  # type: ignore[operator]
        self.asked.append("train_privately")
        return outcome(), {}


def train(given: Account, asked: TrainTask, trainer: Trains) -> None:
    given.train(trainer, asked, Path("base"), 1, lambda _: None, lambda: None, NOTHING, None)  # type: ignore[arg-type]


def test_a_budget_refuses_jobs_without_privacy_and_none_takes_them(tmp_path: Path) -> None:
    trainer = Trains()
    for limited in (account(tmp_path, per_job=100), account(tmp_path, total=100)):
        with pytest.raises(Refused, match="with differential privacy only, and the job asks for none"):
            train(limited, task(privacy=None), trainer)
    assert trainer.asked == []
    train(account(tmp_path), task(privacy=None), trainer)
    train(account(tmp_path, total=100), task(), trainer)
    assert trainer.asked == ["train", "train_privately"]
    with pytest.raises(Refused, match="bring the job"):
        train(account(tmp_path, per_job=ONE / 2), task(), trainer)
    assert trainer.asked == ["train", "train_privately"]
    assert account(tmp_path).spend(task(privacy=None), outcome(None), update(1)) is None


def test_noise_that_no_epsilon_can_be_told_of_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounting, "epsilon", lambda _spent, _delta: float("inf"))
    with pytest.raises(Refused, match="no ε to be told"):
        account(tmp_path).see(task(), ROUND)


def test_a_line_that_a_crash_cut_off_is_none_and_one_that_is_damaged_stops_all(tmp_path: Path) -> None:
    path = tmp_path / "account.jsonl"
    spend(account(tmp_path), 1)
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:40])
    assert len(account(tmp_path).entries()) == 1
    assert spend(account(tmp_path), 2).epsilon == TWO
    assert [json.loads(line)["round"] for line in path.read_bytes().splitlines()] == [1, 2]
    path.write_bytes(b"?" + path.read_bytes())
    for act in (lambda: account(tmp_path).see(task(), ROUND), lambda: spend(account(tmp_path), 3)):
        with pytest.raises(OSError, match="cannot be read"):
            act()
    assert path.read_bytes().count(b"\n") == 2


def test_the_account_is_on_the_disk_before_it_is_told_and_nobody_else_may_read_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[bytes] = []
    monkeypatch.setattr("os.fsync", lambda _fd: flushed.append((tmp_path / "account.jsonl").read_bytes()))
    spend(account(tmp_path), 1)
    assert flushed
    assert flushed[0].endswith(b"\n")
    assert (tmp_path / "account.jsonl").stat().st_mode & 0o777 == 0o600


@settings(max_examples=5, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    asked=st.lists(st.tuples(st.sampled_from("acd"), st.sampled_from([1.0, 2.0]), st.integers(1, 60)), max_size=6),
    per_job=st.floats(0.5, 4),
    total=st.floats(0.5, 6),
)
def test_no_order_of_tasks_gets_a_node_past_its_budget(
    tmp_path_factory: pytest.TempPathFactory, asked: list[tuple[str, float, int]], per_job: float, total: float
) -> None:
    folder, refused = tmp_path_factory.mktemp("node"), 0
    for number, (job, noise, steps) in enumerate(asked):
        sampled = Sampled(noise=noise, clip=1.0, rate=0.05, steps=steps)
        given = account(folder, per_job, total)
        try:
            given.see(task(number + 1, job), sampled)
        except Refused:
            refused += 1
            continue
        given.spend(task(number + 1, job), outcome(sampled), update(number))
    entries = account(folder).entries()
    assert len(entries) + refused == len(asked)
    assert accounting.epsilon([entry.sampled for entry in entries], DELTA) <= total
    for job in "acd":
        assert accounting.epsilon([e.sampled for e in entries if e.job == job * 64], DELTA) <= per_job
