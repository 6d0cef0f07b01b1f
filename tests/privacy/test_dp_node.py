"""A node and its budget, against a consortium in memory behind real HTTP: what leaves tells what it cost, and nothing
leaves that goes past."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from concilia_client_node import accounting, dataset, networks, private_training
from concilia_client_node.budget import Account, Budget
from concilia_client_node.local_data import LocalData
from concilia_client_node.service import Hospital
from concilia_client_node.split import SiteChoice
from concilia_client_node.torch_trainer import TorchTrainer
from concilia_kit import digests
from concilia_kit.problems import Problem
from concilia_kit.wire.chain import UpdateSubmission
from concilia_kit.wire.privacy import Privacy
from concilia_kit.wire.progress import Stage
from concilia_kit.wire.training import Architecture, Balance, LocalTraining, TrainTask
from eth_account import Account as Keys
from torch import nn

from tests.unit.client_node.conftest import consortium, drawn_folder, one_thread
from tests.unit.client_node.hospitals import hospital_of

__all__ = ["consortium", "drawn_folder", "one_thread"]  # fixtures

JOB = "ab" * 32
KEY = Keys.from_key("0x" + 63 * "0" + "2")
ASKED = Privacy(noise=1.0, delta=1e-4)
LOCAL = LocalTraining(batch_size=16, image_size=32, balance=Balance.NONE)
Maker = Callable[..., Hospital]


def tiny(_architecture: Architecture, classes: int = 7) -> nn.Module:
    parts = (nn.Conv2d(3, 8, 3, 4), networks.group_norm(8), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*parts, nn.Linear(8, classes))


@pytest.fixture
def task(consortium: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TrainTask:
    monkeypatch.setattr(networks, "build", tiny)
    torch.manual_seed(0)
    networks.save(tiny(Architecture.RESNET18_GN), tmp_path / "base")
    base = consortium.keep((tmp_path / "base").read_bytes())
    consortium.open_round(JOB, 1, base)
    return TrainTask(
        job=JOB,
        round=1,
        architecture=Architecture.RESNET18_GN,
        base=base,
        seed=4,
        deadline=2**40,
        local=LOCAL,
        privacy=ASKED,
    )


@pytest.fixture
def make_hospital(consortium: Any, drawn_folder: Path, tmp_path: Path) -> Iterator[Maker]:
    site = dataset.choose(dataset.read(drawn_folder), SiteChoice.parse("collection:drawn_south"), 0)
    with contextlib.ExitStack() as stack:

        def make(budget: Budget | None = None) -> Hospital:
            data = LocalData(site, "south", tmp_path / "node" / "scratch", 1, 0.02)
            trainer = TorchTrainer(data, torch.device("cpu"), 1)
            hospital = stack.enter_context(hospital_of(consortium, KEY, tmp_path / "node", trainer))
            return replace(hospital, budget=budget or Budget())

        yield make


def account(hospital: Hospital) -> Account:
    return Account(hospital.folder.account, hospital.budget)


def submitted(consortium: Any) -> list[UpdateSubmission]:
    return [UpdateSubmission.model_validate_json(each) for each in consortium.submissions]


def ended(consortium: Any, hospital: Hospital) -> tuple[Stage, str]:
    assert hospital.reporter.flush(10)
    return consortium.progress[-1].stage, consortium.progress[-1].detail


def ask(consortium: Any, hospital: Hospital, task: TrainTask, number: int) -> None:
    if number > 1:
        consortium.open_round(JOB, number, task.base)
    consortium.ask(hospital, task.model_copy(update={"round": number}))


def test_an_update_says_what_it_cost_signed_with_it_and_is_put_down(
    consortium: Any,
    make_hospital: Maker,
    task: TrainTask,
) -> None:
    hospital = make_hospital()
    for number in (1, 2):
        ask(consortium, hospital, task, number)
    entries = account(hospital).entries()
    for number, submission in enumerate(submitted(consortium), start=1):
        spent = submission.metrics.privacy
        assert spent is not None
        assert (submission.metrics.loss, submission.metrics.accuracy) == (None, None)
        assert submission.update.metrics == digests.of_json(submission.metrics.model_dump(mode="json"))
        done = [entry.sampled for entry in entries[:number]]
        assert spent.epsilon == accounting.epsilon(done, ASKED.delta) > 0
        assert (spent.delta, spent.noise, spent.steps) == (ASKED.delta, 1.0, done[0].steps)
        assert spent.rate == pytest.approx(LOCAL.batch_size / submission.metrics.lesions)
        assert entries[number - 1].update == submission.update.digest
    assert len(entries) == 2


def test_a_node_at_its_budget_refuses_before_it_trains_and_after_a_restart(
    consortium: Any,
    make_hospital: Maker,
    task: TrainTask,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    unbounded = make_hospital()
    ask(consortium, unbounded, task, 1)
    one = accounting.epsilon([entry.sampled for entry in account(unbounded).entries()], 1e-5)
    monkeypatch.setattr(private_training, "train", lambda *_, **__: pytest.fail("trained"))
    for budget in (Budget(per_job=one * 1.01), Budget(total=one * 1.01)):
        hospital = make_hospital(budget)
        ask(consortium, hospital, task, 2)
        stage, detail = ended(consortium, hospital)
        assert (stage, "this round would bring" in detail) == (Stage.REFUSED, True)
        assert detail.count(". ") == 0
    assert len(submitted(consortium)) == len(account(unbounded).entries()) == 1


def test_with_a_budget_a_job_without_privacy_gets_nothing(
    consortium: Any,
    make_hospital: Maker,
    task: TrainTask,
) -> None:
    hospital = make_hospital(Budget(total=100))
    consortium.ask(hospital, task.model_copy(update={"privacy": None}))
    assert ended(consortium, hospital) == (
        Stage.REFUSED,
        "this hospital trains with differential privacy only, and the job asks for none",
    )
    assert consortium.submissions == consortium.upload_lengths == []


def test_an_update_that_is_sent_again_after_a_crash_counts_once(
    consortium: Any,
    make_hospital: Maker,
    task: TrainTask,
) -> None:
    consortium.failures["upload"] = [Problem("broken", status=500)]
    with pytest.raises(Problem):
        consortium.ask(make_hospital(), task)
    hospital = make_hospital()
    made = account(hospital).entries()
    assert len(made) == 1, "put down before it left"
    consortium.ask(hospital, task)
    assert [each.update.digest for each in submitted(consortium)] == [made[0].update]
    assert account(hospital).entries() == made
