"""The life of a task, against a consortium in memory behind real HTTP."""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from concilia_client_node import dataset, networks, presence, submitting, training
from concilia_client_node.consortium import Consortium
from concilia_client_node.errors import Stopped
from concilia_client_node.local_data import LocalData
from concilia_client_node.metrics import NodeMetrics
from concilia_client_node.presence import Heartbeat, ProgressReporter
from concilia_client_node.service import Hospital
from concilia_client_node.split import SiteChoice
from concilia_client_node.store import NodeFolder
from concilia_client_node.torch_trainer import TorchTrainer
from concilia_kit import digests, http, merkle, signing, tensorfile
from concilia_kit.problems import Conflict, Problem, Unavailable, Unprocessable
from concilia_kit.roles import Role
from concilia_kit.signing import Domain
from concilia_kit.wire.auth import Audience
from concilia_kit.wire.chain import RoundStatus, UpdateSubmission
from concilia_kit.wire.progress import Progress, Stage
from concilia_kit.wire.training import Architecture, EvaluateTask, Evaluation, LocalTraining, TrainTask
from eth_account import Account
from eth_account.signers.local import LocalAccount
from prometheus_client import CollectorRegistry
from torch import nn

JOB = "ab" * 32
FAR = 2**40
ACCOUNT: LocalAccount = Account.from_key("0x" + 63 * "0" + "2")
LOCAL = LocalTraining(epochs=1, batch_size=16, image_size=32, max_images=32)
HospitalMaker = Callable[..., Hospital]


def tiny(architecture: Architecture, classes: int = 7) -> nn.Module:
    """A network for the life of a task, which does not depend on its size."""
    width = 4 if architecture is Architecture.MOBILENET_V2 else 8
    trunk = (nn.Conv2d(3, width, 3, 4), nn.BatchNorm2d(width), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return nn.Sequential(*trunk, nn.Linear(width, classes))


@pytest.fixture(autouse=True)
def tiny_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(networks, "build", tiny)


@pytest.fixture
def base_model(tmp_path: Path) -> bytes:
    torch.manual_seed(0)
    path = tmp_path / "base.safetensors"
    networks.save(networks.build(Architecture.MOBILENET_V2), path)
    return path.read_bytes()


@pytest.fixture
def task(consortium: Any, base_model: bytes) -> TrainTask:
    base = consortium.keep(base_model)
    consortium.open_round(JOB, 1, base)
    return TrainTask(
        job=JOB, round=1, architecture=Architecture.MOBILENET_V2, base=base, seed=4, deadline=FAR, local=LOCAL
    )


@pytest.fixture
def make_hospital(consortium: Any, drawn_folder: Path, tmp_path: Path) -> Iterator[HospitalMaker]:
    site = dataset.choose(dataset.read(drawn_folder), SiteChoice.parse("collection:drawn_south"), 0)
    with contextlib.ExitStack() as stack:

        def make(name: str = "node", share: float = 0.02) -> Hospital:
            folder = NodeFolder(tmp_path / name)
            folder.open()
            auth = stack.enter_context(http.client(consortium.url))

            def client(audience: Audience) -> Any:
                return stack.enter_context(http.client(consortium.url, http.WalletAuth(auth, ACCOUNT, audience)))

            services = Consortium(
                client(Audience.MODEL), client(Audience.CHAIN), client(Audience.AGGREGATOR), client(Audience.AUTH)
            )
            reporter = ProgressReporter(services.progress)
            reporter.start()
            stack.callback(close, reporter)
            data = LocalData(site, "south", folder.scratch, 1, share)
            trainer = TorchTrainer(data, torch.device("cpu"), 1)
            return Hospital(ACCOUNT, services, trainer, folder, reporter, threading.Event())

        yield make


def close(reporter: ProgressReporter) -> None:
    """A reporter that outlives its test would call services that are gone."""
    reporter.close(10)
    assert not reporter.is_alive()


@pytest.fixture
def hospital(make_hospital: HospitalMaker) -> Hospital:
    return make_hospital()


class Recorder:
    """A log that keeps what is said."""

    def __init__(self, said: list[str]) -> None:
        self._said = said

    def info(self, sentence: str, **_: object) -> None:
        self._said.append(sentence)

    debug = warning = exception = info


def stages(consortium: Any, hospital: Hospital) -> list[Stage]:
    assert hospital.reporter.flush(10)
    return [item.stage for item in consortium.progress]


def never_train(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training, "train", lambda *_, **__: pytest.fail("trained again"))


def domain() -> Domain:
    return Domain(chain_id=1337, contract="0x" + 39 * "0" + "7")


def test_a_round_ends_with_a_signed_update_whose_bytes_are_stored(
    consortium: Any, hospital: Hospital, task: TrainTask
) -> None:
    consortium.ask(hospital, task)
    submission = UpdateSubmission.model_validate_json(consortium.submissions[0])
    update = submission.update
    assert signing.signer(update, domain(), submission.signature) == ACCOUNT.address == update.hospital
    assert (update.job, update.round, update.base) == (JOB, 1, task.base)
    assert hashlib.sha256(consortium.artifacts[update.digest]).hexdigest() == update.digest != task.base
    assert consortium.upload_lengths == [len(consortium.artifacts[update.digest])]
    assert update.samples == submission.metrics.images == 32
    assert update.metrics == digests.of_json(submission.metrics.model_dump(mode="json"))
    assert submission.metrics.bytes_download == len(consortium.artifacts[task.base])
    assert submission.metrics.bytes_upload == len(consortium.artifacts[update.digest])
    told = stages(consortium, hospital)
    assert (told[0], told[-1]) == (Stage.DOWNLOADING, Stage.SUBMITTED)
    assert not list(hospital.folder.scratch.rglob("*"))  # decoded pictures leave no file behind


def test_two_nodes_with_one_seed_make_the_same_bytes(
    consortium: Any, make_hospital: HospitalMaker, task: TrainTask
) -> None:
    consortium.ask(make_hospital("first"), task)
    consortium.open_round(JOB, 1, task.base)
    consortium.ask(make_hospital("second"), task)
    first, second = (UpdateSubmission.model_validate_json(item).update for item in consortium.submissions)
    assert first.digest == second.digest


def test_a_repeated_task_is_a_success_without_training(
    consortium: Any, make_hospital: HospitalMaker, task: TrainTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    consortium.ask(make_hospital(), task)
    never_train(monkeypatch)
    hospital = make_hospital()
    consortium.ask(hospital, task)
    assert len(consortium.submissions) == 1
    assert stages(consortium, hospital)[-1] is Stage.SUBMITTED
    elsewhere = make_hospital("a lost disk")
    consortium.ask(elsewhere, task)
    assert stages(consortium, elsewhere)[-1] is Stage.SUBMITTED


@pytest.mark.parametrize("place", ["upload", "append", "contract", "submit"])
def test_a_crash_in_the_middle_costs_no_training_and_no_byte(
    consortium: Any, make_hospital: HospitalMaker, task: TrainTask, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    asked_who_asks = [None] if place == "contract" else []
    consortium.failures[place] = [*asked_who_asks, Problem("broken", status=500)]
    with pytest.raises(Problem) as caught:
        consortium.ask(make_hospital(), task)
    assert caught.value.problem_status == 500
    made = digests.of_file(next((make_hospital().folder.scratch.parent / "updates").rglob("*.safetensors")))
    never_train(monkeypatch)
    hospital = make_hospital()
    consortium.ask(hospital, task)
    assert UpdateSubmission.model_validate_json(consortium.submissions[-1]).update.digest == made
    assert stages(consortium, hospital)[-1] is Stage.SUBMITTED


@pytest.mark.parametrize("left", [b"", b"half", None])
def test_what_a_power_cut_took_of_an_update_is_made_again(
    consortium: Any, make_hospital: HospitalMaker, task: TrainTask, left: bytes | None
) -> None:
    """The record of a training may be on the disk and its tensors not: they go there while they are sent."""
    consortium.failures["append"] = [Problem("broken", status=500)]
    with pytest.raises(Problem):
        consortium.ask(make_hospital(), task)
    file = next((make_hospital().folder.scratch.parent / "updates").rglob("*.safetensors"))
    whole = file.read_bytes()
    file.unlink()
    if left is not None:
        file.write_bytes(left or bytes(len(whole)))
    hospital = make_hospital()
    consortium.ask(hospital, task)
    assert file.read_bytes() == whole
    assert stages(consortium, hospital)[-1] is Stage.SUBMITTED


def test_an_update_is_on_the_disk_before_its_hospital_signs_it(
    consortium: Any, hospital: Hospital, task: TrainTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed, real = [], os.fsync

    def note(descriptor: int) -> None:
        flushed.append((Path(f"/proc/self/fd/{descriptor}").readlink().name, len(consortium.submissions)))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", note)
    consortium.ask(hospital, task)
    assert ("update.safetensors", 0) in flushed
    assert len(consortium.submissions) == 1


def test_a_lost_answer_is_followed_by_the_same_bytes(
    consortium: Any, make_hospital: HospitalMaker, task: TrainTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger recorded the update, the answer got lost, and the round as read is from before."""
    consortium.lose_receipts = 1
    before = consortium.rounds[JOB, 1]
    with pytest.raises(Problem):
        consortium.ask(make_hospital(), task)
    after = consortium.rounds[JOB, 1]
    answers = iter([before, after])
    never_train(monkeypatch)
    hospital = make_hospital()
    monkeypatch.setattr(Consortium, "round", lambda *_: next(answers))
    consortium.ask(hospital, task)
    assert len(consortium.submissions) == 2
    assert consortium.submissions[0] == consortium.submissions[1]
    assert stages(consortium, hospital)[-1] is Stage.SUBMITTED


def test_another_update_in_our_name_is_told(
    consortium: Any, make_hospital: HospitalMaker, task: TrainTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    hospital = make_hospital()
    consortium.ask(hospital, task)
    record = hospital.folder.trained(JOB, 1)
    assert record is not None
    hospital.folder.keep_trained(JOB, 1, record.model_copy(update={"digest": "0" * 64}))
    consortium.ask(hospital, task)
    assert stages(consortium, hospital)[-1] is Stage.REFUSED
    assert "another update" in consortium.progress[-1].detail


@pytest.fixture
def merkle_task(consortium: Any, task: TrainTask) -> TrainTask:
    consortium.open_round(JOB, 1, task.base, merkle=True)
    return task


def test_an_update_of_a_merkle_round_is_collected(
    consortium: Any, hospital: Hospital, merkle_task: TrainTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[dict[str, object]] = []
    monkeypatch.setattr(submitting._log, "info", lambda event, **fields: said.append({"event": event, **fields}))
    consortium.ask(hospital, merkle_task)
    assert stages(consortium, hospital)[-1] is Stage.SUBMITTED
    assert "collected" in consortium.progress[-1].detail
    assert consortium.rounds[JOB, 1].collected == (ACCOUNT.address,)
    submission = UpdateSubmission.model_validate_json(consortium.submissions[0])
    leaf = merkle.leaf(merkle.update_data(submission.update, domain(), submission.signature))
    assert [item["leaf"] for item in said if item["event"] == "collected"] == [leaf.hex()]
    consortium.commit(JOB, 1)
    assert consortium.rounds[JOB, 1].root == leaf.hex(), "a tree of one leaf"


def test_a_collected_update_may_be_sent_again(
    consortium: Any, make_hospital: HospitalMaker, merkle_task: TrainTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    consortium.ask(make_hospital(), merkle_task)
    never_train(monkeypatch)
    hospital = make_hospital()
    consortium.ask(hospital, merkle_task)
    assert consortium.submissions[0] == consortium.submissions[1]
    assert stages(consortium, hospital)[-1] is Stage.SUBMITTED
    elsewhere = make_hospital("a lost disk")
    consortium.ask(elsewhere, merkle_task)
    assert len(consortium.submissions) == 2
    assert stages(consortium, elsewhere)[-1] is Stage.SUBMITTED
    consortium.commit(JOB, 1)
    consortium.ask(hospital, merkle_task)
    assert len(consortium.submissions) == 2
    assert stages(consortium, hospital)[-1] is Stage.SUBMITTED


def test_an_acknowledgement_that_was_lost_while_the_round_was_committed(
    consortium: Any, make_hospital: HospitalMaker, merkle_task: TrainTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    consortium.lose_receipts = 1
    before = consortium.rounds[JOB, 1]
    with pytest.raises(Problem):
        consortium.ask(make_hospital(), merkle_task)
    consortium.commit(JOB, 1)
    answers = iter([before, consortium.rounds[JOB, 1]])
    never_train(monkeypatch)
    hospital = make_hospital()
    monkeypatch.setattr(Consortium, "round", lambda *_: next(answers))
    consortium.ask(hospital, merkle_task)
    assert stages(consortium, hospital)[-1] is Stage.SUBMITTED


def test_an_update_that_came_after_the_commitment_is_refused(
    consortium: Any, hospital: Hospital, merkle_task: TrainTask
) -> None:
    consortium.rounds[JOB, 1] = consortium.rounds[JOB, 1].model_copy(update={"root": "0" * 64})
    consortium.ask(hospital, merkle_task)
    assert stages(consortium, hospital)[-1] is Stage.REFUSED
    assert "already_committed" in consortium.progress[-1].detail


def test_another_update_that_was_collected_in_our_name_is_told(
    consortium: Any, hospital: Hospital, merkle_task: TrainTask
) -> None:
    consortium.ask(hospital, merkle_task)
    metrics = hospital.folder.metrics(JOB, 1)
    assert metrics is not None
    hospital.folder.keep_metrics(JOB, 1, metrics.model_copy(update={"seconds_upload": 99.0}))
    consortium.ask(hospital, merkle_task)
    assert stages(consortium, hospital)[-1] is Stage.REFUSED
    assert "already_submitted" in consortium.progress[-1].detail


def test_an_acknowledgement_of_something_else_is_no_success(
    consortium: Any, hospital: Hospital, merkle_task: TrainTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = Consortium.submit

    def mistaken(services: Consortium, submission: UpdateSubmission) -> object:
        return plain(services, submission).model_copy(update={"leaf": "0" * 64})

    monkeypatch.setattr(Consortium, "submit", mistaken)
    consortium.ask(hospital, merkle_task)
    assert stages(consortium, hospital)[-1] is Stage.REFUSED
    assert "not this update's" in consortium.progress[-1].detail


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda c, t: t.model_copy(update={"deadline": 1}), "deadline"),
        (lambda c, t: t.model_copy(update={"round": 2}), "round_unknown"),
        (lambda c, t: t.model_copy(update={"base": "0" * 64}), "another base"),
        (lambda c, t: c.open_round(JOB, 1, t.base, seconds=-5) or t, "deadline"),
    ],
)
def test_a_round_unlike_the_ledgers_is_refused_before_any_work(
    consortium: Any,
    hospital: Hospital,
    task: TrainTask,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Any, TrainTask], TrainTask],
    words: str,
) -> None:
    never_train(monkeypatch)
    consortium.ask(hospital, spoil(consortium, task))
    assert stages(consortium, hospital) == [Stage.REFUSED]
    assert words in consortium.progress[-1].detail
    assert "get" not in consortium.calls


def test_a_closed_round_is_refused(consortium: Any, hospital: Hospital, task: TrainTask) -> None:
    consortium.rounds[JOB, 1] = consortium.rounds[JOB, 1].model_copy(update={"status": RoundStatus.CLOSED})
    consortium.ask(hospital, task)
    assert stages(consortium, hospital) == [Stage.REFUSED]
    assert "closed" in consortium.progress[-1].detail


@pytest.mark.parametrize(
    "refusal",
    [
        Conflict("closed meanwhile", code="round_not_open"),
        Conflict("too late", code="deadline_passed"),
        Unprocessable("no", code="invalid_signature"),
    ],
)
def test_what_the_contract_refuses_ends_the_task(
    consortium: Any, hospital: Hospital, task: TrainTask, refusal: Problem
) -> None:
    consortium.failures["submit"] = [refusal]
    consortium.ask(hospital, task)
    assert stages(consortium, hospital)[-1] is Stage.REFUSED
    assert refusal.problem_code in consortium.progress[-1].detail
    assert consortium.submissions == []


def test_a_base_of_other_bytes_is_told_to_the_store_and_tried_again(
    consortium: Any, hospital: Hospital, task: TrainTask
) -> None:
    content = consortium.artifacts[task.base]
    consortium.artifacts[task.base] += b"!"
    with pytest.raises(Unavailable, match="do not hash"):
        consortium.ask(hospital, task)
    assert consortium.put_aside == {task.base}
    assert not hospital.folder.base(task.base).exists()
    with pytest.raises(Problem) as waiting:
        consortium.ask(hospital, task)
    assert waiting.value.problem_code == "artifact_quarantined"
    assert not hospital.has_ended(task)
    consortium.keep(content)
    consortium.ask(hospital, task)
    assert len(consortium.submissions) == 1
    assert hospital.has_ended(task)


def test_an_update_that_the_store_lost_is_brought_again_as_long_as_it_is_kept(
    consortium: Any, hospital: Hospital, task: TrainTask
) -> None:
    assert not hospital.look_after(task)
    consortium.ask(hospital, task)
    (digest,) = [each for each in consortium.artifacts if each != task.base]
    content = consortium.artifacts[digest]
    assert not hospital.look_after(task)
    consortium.artifacts.pop(digest)
    consortium.parts.clear()
    assert hospital.look_after(task)
    assert consortium.artifacts[digest] == content
    hospital.folder.update(task.job, task.round).unlink()
    del consortium.artifacts[digest]
    assert not hospital.look_after(task)
    assert len(consortium.submissions) == 1


def test_weights_of_another_architecture_are_refused(consortium: Any, hospital: Hospital, task: TrainTask) -> None:
    consortium.ask(hospital, task.model_copy(update={"architecture": Architecture.RESNET18}))
    assert stages(consortium, hospital)[-1] is Stage.REFUSED
    assert consortium.submissions == []


def test_progress_that_cannot_be_told_stops_nothing(consortium: Any, hospital: Hospital, task: TrainTask) -> None:
    consortium.failures["progress"] = [Problem("no", status=422)] * 50
    consortium.ask(hospital, task)
    assert len(consortium.submissions) == 1


def test_a_node_that_is_told_to_stop_stops_and_can_go_on(
    consortium: Any, hospital: Hospital, task: TrainTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches = iter(range(1000))
    as_training_input = training.as_training_input

    def stop_at_the_second(*arguments: Any) -> Any:
        if next(batches) == 1:
            hospital.stop.set()
        return as_training_input(*arguments)

    monkeypatch.setattr(training, "as_training_input", stop_at_the_second)
    with pytest.raises(Stopped):
        consortium.ask(hospital, task.model_copy(update={"local": LOCAL.model_copy(update={"epochs": 50})}))
    assert next(batches) == 2
    hospital.stop.clear()
    consortium.ask(hospital, task)
    assert len(consortium.submissions) == 1


def test_a_deadline_that_passes_during_training_ends_it(consortium: Any, hospital: Hospital, task: TrainTask) -> None:
    ticks = iter(range(10**6))
    late = replace(hospital, clock=lambda: float(next(ticks)))
    consortium.ask(late, task.model_copy(update={"deadline": 30, "local": LOCAL.model_copy(update={"epochs": 100})}))
    assert stages(consortium, hospital)[-1] is Stage.REFUSED
    assert consortium.submissions == []


def test_a_full_disk_is_told_in_words(
    consortium: Any, hospital: Hospital, task: TrainTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensorfile, "write", full)
    consortium.ask(hospital, task)
    assert stages(consortium, hospital)[-1] is Stage.FAILED
    assert consortium.progress[-1].detail == "the node's disk: No space left on device"


def test_a_surprise_is_reported_by_kind_only(
    consortium: Any, hospital: Hospital, task: TrainTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def surprise(*_: object, **__: object) -> None:
        raise RuntimeError("/data/patient_17.jpg")

    monkeypatch.setattr(training, "train", surprise)
    consortium.ask(hospital, task)
    assert stages(consortium, hospital)[-1] is Stage.FAILED
    assert "patient" not in consortium.progress[-1].detail
    assert "RuntimeError" in consortium.progress[-1].detail


def test_a_service_that_does_not_answer_is_worth_another_try(
    consortium: Any, hospital: Hospital, task: TrainTask, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("concilia_client_node.consortium.RETRY_SECONDS", 0.0)
    consortium.failures["get"] = [Unavailable("later")]
    with pytest.raises(Problem):
        consortium.ask(hospital, task)
    consortium.ask(hospital, task)
    assert len(consortium.submissions) == 1


def test_an_evaluation_hands_in_counts_of_the_held_out_lesions(
    consortium: Any, hospital: Hospital, task: TrainTask
) -> None:
    evaluate = EvaluateTask(
        job=JOB,
        round=0,
        architecture=task.architecture,
        model=task.base,
        seed=4,
        image_size=32,
        evaluation=Evaluation(batch_size=16),
    )
    consortium.ask(hospital, evaluate)
    consortium.ask(hospital, evaluate)
    first, second = consortium.evaluations
    assert first.model_copy(update={"seconds": 0}) == second.model_copy(update={"seconds": 0})
    registration = hospital.trainer.data.registration()
    assert first.images == sum(registration.held_out_images)
    assert first.lesions == registration.held_out_lesions
    assert tuple(map(sum, first.confusion)) == registration.held_out_images
    assert first.overlapping_lesions == 0
    assert consortium.calls.count("get") == 1  # the second time the model was there
    assert stages(consortium, hospital)[-1] is Stage.EVALUATED


def test_only_the_last_models_and_updates_are_kept_whole(tmp_path: Path, base_model: bytes) -> None:
    folder = NodeFolder(tmp_path)
    folder.open()
    for number in range(6):
        folder.base(str(number)).write_bytes(b"")
        folder.use_base(str(number))
    assert sorted(path.stem for path in (tmp_path / "bases").iterdir()) == ["3", "4", "5"]
    (tmp_path / "bases" / "half.partial").touch()
    folder.open()
    assert not list(tmp_path.rglob("*.partial"))


# ------------------------------------------------------------------------------------------------------------ presence


def beat_until(hospital: Hospital, refresh: Callable[[], object], done: Callable[[], bool]) -> None:
    """A heartbeat, from its start until something has come true."""
    heartbeat = Heartbeat(
        ACCOUNT.address,
        hospital.trainer.data.registration,
        hospital.consortium.register,
        refresh,
        hospital.consortium.apply,
        hospital.stop,
        seconds=0.01,
        retry_seconds=0.01,
    )
    heartbeat.start()
    for _ in range(1000):
        if done():
            break
        hospital.stop.wait(0.01)
    hospital.stop.set()
    heartbeat.join(10)
    assert not heartbeat.is_alive()
    assert done()


def test_a_node_waits_for_its_enrolment_and_then_registers(consortium: Any, hospital: Hospital) -> None:
    consortium.enrolled = False
    consortium.failures["register"] = [Unavailable("starting")] * 2
    refreshed = threading.Event()

    def refresh() -> None:
        refreshed.set()
        consortium.enrolled = True

    beat_until(hospital, refresh, lambda: len(consortium.registrations) >= 2)
    address, registration = consortium.registrations[-1]
    assert refreshed.is_set()
    assert address == ACCOUNT.address
    assert registration.site == "south"
    assert registration.source == "drawn lesions"
    assert registration.training_lesions > 0


def test_a_node_without_its_role_applies_for_it_once(
    consortium: Any, hospital: Hospital, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    monkeypatch.setattr(presence, "_log", Recorder(said))
    consortium.enrolled = False
    beats = iter(range(5))

    def refresh() -> None:
        consortium.enrolled = next(beats, None) is None

    beat_until(hospital, refresh, lambda: len(consortium.registrations) >= 2)
    ((address, application),) = consortium.applications
    registration = hospital.trainer.data.registration()
    assert consortium.calls.count("register") >= 7
    assert (address, application.role, application.name) == (ACCOUNT.address, Role.HOSPITAL, "south")
    assert application.note == (
        f"drawn lesions: {sum(registration.training_images)} images to train and "
        f"{sum(registration.held_out_images)} to test with, of "
        f"{registration.training_lesions + registration.held_out_lesions} lesions."
    )
    assert said.count("applied for the hospital role; an administrator decides") == 1


def test_an_enrolled_node_applies_for_nothing(consortium: Any, hospital: Hospital) -> None:
    beat_until(hospital, lambda: None, lambda: len(consortium.registrations) >= 3)
    assert consortium.applications == []
    assert "apply" not in consortium.calls


@pytest.mark.parametrize(
    ("failures", "attempts"),
    [
        ([Unavailable("full", code="applications_full")] * 2, 3),  # worth another try
        ([Unprocessable("no", code="invalid_request")], 1),  # refused: it would be refused again
    ],
)
def test_an_application_that_cannot_be_filed_stops_nothing(
    consortium: Any, hospital: Hospital, failures: list[Problem], attempts: int
) -> None:
    consortium.enrolled = False
    consortium.failures["apply"] = list(failures)
    refreshed = iter(range(6))

    def refresh() -> None:
        consortium.enrolled = next(refreshed, None) is None

    beat_until(hospital, refresh, lambda: len(consortium.registrations) >= 1)
    assert consortium.calls.count("apply") == attempts
    assert len(consortium.applications) == attempts - len(failures)


def test_only_the_newest_waits_and_how_tasks_ended() -> None:
    sent: list[tuple[int, float]] = []
    entered, gate = threading.Event(), threading.Event()

    def send(_job: str, number: int, progress: Any) -> None:
        entered.set()
        gate.wait(10)
        sent.append((number, progress.fraction))

    reporter = ProgressReporter(send, pace_seconds=60)
    reporter.start()
    reporter.report(JOB, 1, Progress(stage=Stage.DOWNLOADING, fraction=0))
    assert entered.wait(10)
    for step in range(1, 6):
        reporter.report(JOB, 1, Progress(stage=Stage.TRAINING, fraction=step / 10))
    reporter.report(JOB, 1, Progress(stage=Stage.SUBMITTED, fraction=1))
    reporter.report(JOB, 2, Progress(stage=Stage.DOWNLOADING, fraction=0.2))
    reporter.report(JOB, 2, Progress(stage=Stage.TRAINING, fraction=0.3))
    gate.set()
    assert reporter.flush(10)  # which ends the pause after each
    assert sent == [(1, 0), (1, 1), (2, 0.3)]
    close(reporter)


def test_a_report_that_comes_after_the_end_is_dropped_and_holds_nothing_up() -> None:
    sent: list[Progress] = []
    reporter = ProgressReporter(lambda _job, _number, progress: sent.append(progress), pace_seconds=60)
    reporter.start()
    reporter.report(JOB, 1, Progress(stage=Stage.TRAINING, fraction=0.5))
    close(reporter)
    reporter.report(JOB, 1, Progress(stage=Stage.SUBMITTED, fraction=1))
    assert [progress.stage for progress in sent] == [Stage.TRAINING]


# ---------------------------------------------------------------------------------------------------------- metrics


def test_tasks_seconds_and_images_are_counted(consortium: Any, hospital: Hospital, task: TrainTask) -> None:
    registry = CollectorRegistry()
    node = replace(hospital, metrics=NodeMetrics(registry))
    consortium.ask(node, task)
    consortium.ask(node, task)  # it is on the ledger already: submitted, and not trained again
    consortium.ask(node, task.model_copy(update={"deadline": 1}))
    node.stop.set()
    consortium.open_round("cd" * 32, 1, task.base)
    with pytest.raises(Stopped):
        consortium.ask(node, task.model_copy(update={"job": "cd" * 32}))
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in registry.collect()
        for sample in family.samples
        if sample.name.endswith(("_total", "_count"))
    }
    assert found == {
        ("concilia_node_tasks_total", "train", "submitted"): 2,
        ("concilia_node_tasks_total", "train", "refused"): 1,
        ("concilia_node_tasks_total", "train", "stopped"): 1,
        ("concilia_node_training_seconds_count",): 1,
        ("concilia_node_images_total",): 32,
    }
