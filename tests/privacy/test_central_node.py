"""A node whose job leaves the noise to the aggregator: it accounts for it, refuses where its hospital has no trust in
it or no more budget, and tells no more than it must."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from concilia_client_node import accounting
from concilia_client_node.budget import Budget, Entry
from concilia_client_node.errors import Refused
from concilia_client_node.main import budget_of
from concilia_client_node.sampling import Sampled, central
from concilia_client_node.service import Hospital
from concilia_client_node.settings import NodeSettings
from concilia_client_node.store import NodeFolder
from concilia_client_node.torch_trainer import TorchTrainer
from concilia_client_node.trainer import Outcome
from concilia_kit import digests
from concilia_kit.encodings import SALT
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.privacy import CentralNoise, Privacy, Spent
from concilia_kit.wire.progress import Stage
from concilia_kit.wire.training import LocalTraining, TrainTask

from tests.privacy import test_dp_budget as budgets
from tests.privacy.test_dp_node import (
    JOB,
    account,
    ask,
    consortium,
    drawn_folder,
    ended,
    make_hospital,
    one_thread,
    submitted,
    task,
)

__all__ = ["consortium", "drawn_folder", "make_hospital", "one_thread", "task"]  # fixtures

ASKED = CentralNoise(radius=0.5, noise=20.0, delta=1e-4)
ROUND = central(ASKED)
DELTA = 1e-5
ONE, TWO = (accounting.epsilon([ROUND] * count, DELTA) for count in (1, 2))
Maker = Callable[..., Hospital]


@pytest.fixture
def noised(task: TrainTask) -> TrainTask:
    """Of a job with any training, which it need not be careful of."""
    local = LocalTraining(batch_size=16, image_size=32)
    return task.model_copy(update={"privacy": None, "central": ASKED, "local": local})


def of_job(number: int = 1, job: str = "a", asked: CentralNoise | None = ASKED) -> TrainTask:
    return budgets.task(number, job, None).model_copy(update={"central": asked})


# -------------------------------------------------------------------------------------------------- the account


def test_a_round_costs_what_one_update_replaced_does(tmp_path: Path) -> None:
    given = budgets.account(tmp_path)
    outcome = Outcome(None, None, 10, 5, sampled=ROUND)
    told = [given.spend(of_job(number), outcome, budgets.update(number)) for number in (1, 2)]
    assert told == [
        Spent(
            epsilon=accounting.epsilon([ROUND] * count, ASKED.delta),
            delta=ASKED.delta,
            noise=10.0,
            clip=1.0,
            rate=1.0,
            steps=1,
            central=True,
        )
        for count in (1, 2)
    ]
    assert [(entry.sampled, entry.central) for entry in given.entries()] == [(ROUND, True)] * 2


def test_the_lines_of_an_account_that_knows_no_other_noise_are_what_they_were(tmp_path: Path) -> None:
    budgets.spend(budgets.account(tmp_path), 1)
    text = (tmp_path / "account.jsonl").read_text()
    assert "central" not in text
    assert Entry.model_validate_json(text).central is False


@pytest.mark.parametrize("budget", [{"per_job": 100.0}, {"total": 100.0}])
def test_a_node_with_a_budget_refuses_noise_that_is_not_its_own_unless_it_was_told_to_trust_it(
    tmp_path: Path, budget: dict[str, float]
) -> None:
    trainer = budgets.Trains()
    wary = budgets.account(tmp_path, **budget)
    with pytest.raises(Refused, match="with noise of its own only, and the job leaves it to the aggregator"):
        budgets.train(wary, of_job(), trainer)
    trusting = budgets.Account(tmp_path / "account.jsonl", Budget(**budget, central=True))
    budgets.train(trusting, of_job(), trainer)
    with pytest.raises(Refused, match="the job asks for none"):
        budgets.train(trusting, of_job(asked=None), trainer)
    budgets.train(budgets.account(tmp_path), of_job(), trainer)  # without a budget it takes part
    assert trainer.asked == ["train", "train"]


@pytest.mark.parametrize("budget", [{"per_job": TWO + 0.01}, {"total": TWO + 0.01}])
def test_it_counts_towards_the_budget_and_a_node_that_is_there_refuses(
    tmp_path: Path, budget: dict[str, float]
) -> None:
    given = budgets.Account(tmp_path / "account.jsonl", Budget(**budget, central=True))
    outcome = Outcome(None, None, 10, 5, sampled=ROUND)
    for number in (1, 2):
        given.see_task(of_job(number), budgets.Trains())  # type: ignore[arg-type]
        given.spend(of_job(number), outcome, budgets.update(number))
    trainer = budgets.Trains()
    for act in (
        lambda: given.see_task(of_job(3), trainer),  # type: ignore[arg-type]
        lambda: budgets.train(given, of_job(3), trainer),
        lambda: given.spend(of_job(3), outcome, budgets.update(3)),
    ):
        with pytest.raises(Refused, match="this round would bring"):
            act()
    assert trainer.asked == []
    assert len(given.entries()) == 2


def test_noise_of_both_kinds_adds_up(tmp_path: Path) -> None:
    own = Sampled(noise=1.0, clip=1.0, rate=0.05, steps=20)
    both = accounting.epsilon([own, ROUND], DELTA)
    assert both > max(ONE, accounting.epsilon([own], DELTA))
    given = budgets.Account(tmp_path / "account.jsonl", Budget(total=both - 0.01, central=True))
    budgets.spend(given, 1, "c")
    with pytest.raises(Refused, match="all jobs together"):
        given.see(of_job(), ROUND)


def test_what_was_measured_on_training_pictures_is_not_told(tmp_path: Path) -> None:
    class Measures(budgets.Trains):
        def train(self, *_: object) -> tuple[Outcome, dict[str, object]]:
            return Outcome(0.5, 0.25, 10, 5, reach=0.1, first_loss=2.0), {}

    given = budgets.account(tmp_path)
    outcome, _ = given.train(
        Measures(),  # type: ignore[arg-type]
        of_job(),
        Path("base"),
        1,
        lambda _: None,
        lambda: None,
        budgets.NOTHING,
        None,
    )
    assert outcome == Outcome(None, None, 10, 5, reach=0.1, sampled=ROUND)


@pytest.mark.parametrize(("text", "trusts"), [("1", True), ("0", False), (None, False)])
def test_the_hospital_says_so_in_a_setting_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, trusts: bool
) -> None:
    if text is not None:
        monkeypatch.setenv("CONCILIA_NODE_CENTRAL_NOISE", text)
    local = "http://127.0.0.1:1"
    settings = NodeSettings(
        port=1,
        auth_url=local,
        model_url=local,
        chain_url=local,
        aggregator_url=local,
        keystore=tmp_path,
        password_file=tmp_path,
        data=tmp_path,
        directory=tmp_path,
        epsilon_total=3,
    )
    assert budget_of(settings) == Budget(total=3, central=trusts)


# ------------------------------------------------------------------------------------------------------- the node


def test_with_central_noise_an_update_says_what_it_cost_and_no_loss(
    consortium: Any, make_hospital: Maker, noised: TrainTask
) -> None:
    hospital = make_hospital()
    for number in (1, 2):
        ask(consortium, hospital, noised, number)
    told = submitted(consortium)
    assert len(told) == len(account(hospital).entries()) == 2
    for number, submission in enumerate(told, start=1):
        spent = submission.metrics.privacy
        assert spent is not None
        assert spent.central
        assert spent.epsilon == accounting.epsilon([ROUND] * number, ASKED.delta)
        assert (submission.metrics.loss, submission.metrics.accuracy) == (None, None)
        assert submission.update.metrics == digests.of_json(submission.metrics.model_dump(mode="json"))


def test_two_updates_of_the_same_pictures_have_two_digests(
    consortium: Any, make_hospital: Maker, noised: TrainTask, tmp_path: Path
) -> None:
    """Digests are on the ledger, and training is deterministic: who can guess the pictures must not see it there."""
    found = []
    for folder in ("one", "other"):
        hospital = make_hospital()
        hospital = replace(hospital, folder=NodeFolder(tmp_path / folder))
        hospital.folder.open()
        consortium.ask(hospital, noised)
        found.append(TensorFile.open(hospital.folder.update(JOB, 1)))
        consortium.open_round(JOB, 1, noised.base)  # as if it had not been recorded
        consortium.submissions.clear()
    one, other = found
    assert {name: one.tensor(name).tobytes() for name in one} == {name: other.tensor(name).tobytes() for name in other}
    salts = [each.header.metadata[SALT] for each in found]
    assert salts[0] != salts[1]
    assert {*map(len, salts)} == {64}


@pytest.mark.parametrize("privacy", [None, Privacy(noise=1.0, delta=1e-4)])
def test_updates_of_other_jobs_have_no_salt(
    consortium: Any, make_hospital: Maker, task: TrainTask, privacy: Privacy | None
) -> None:
    hospital = make_hospital()
    consortium.ask(hospital, task.model_copy(update={"privacy": privacy}))
    assert len(submitted(consortium)) == 1
    assert SALT not in TensorFile.open(hospital.folder.update(JOB, 1)).header.metadata


def test_a_node_that_has_no_trust_in_it_refuses_and_says_why(
    consortium: Any, make_hospital: Maker, noised: TrainTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchTrainer, "train", lambda *_, **__: pytest.fail("trained"))
    hospital = make_hospital(Budget(total=100))
    consortium.ask(hospital, noised)
    stage, detail = ended(consortium, hospital)
    assert (stage, "with noise of its own only" in detail) == (Stage.REFUSED, True)
    assert detail.count(". ") == 0
    assert submitted(consortium) == account(hospital).entries() == []


def test_a_node_at_its_budget_refuses_before_it_trains(
    consortium: Any, make_hospital: Maker, noised: TrainTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    ask(consortium, make_hospital(), noised, 1)
    monkeypatch.setattr(TorchTrainer, "train", lambda *_, **__: pytest.fail("trained"))
    for budget in (Budget(per_job=ONE * 1.01, central=True), Budget(total=ONE * 1.01, central=True)):
        hospital = make_hospital(budget)
        ask(consortium, hospital, noised, 2)
        stage, detail = ended(consortium, hospital)
        assert (stage, "this round would bring" in detail) == (Stage.REFUSED, True)
    assert len(submitted(consortium)) == 1
