"""A hospital's last word: what it will not do below its floors, and which models it will not train."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from concilia_client_node import dataset, networks, tampering
from concilia_client_node.errors import Refused, WeightsError
from concilia_client_node.floors import Floors
from concilia_client_node.local_data import LocalData
from concilia_client_node.main import floors_of
from concilia_client_node.settings import NodeSettings
from concilia_client_node.split import SiteChoice
from concilia_client_node.trainer import Extent, batches_of
from concilia_kit import tensorfile
from concilia_kit.wire.privacy import Privacy
from concilia_kit.wire.progress import Progress, Stage
from concilia_kit.wire.training import Architecture, LocalTraining, TrainTask
from hypothesis import given
from hypothesis import strategies as st

from .masked_rounds import ACCOUNT, IMAGES, Round, secure_round, tensors

SHARED = Path(__file__).parents[4] / "shared" / "weights" / "mobilenet_v2.imagenet.trunk.safetensors"
OWN = ACCOUNT.address


def of(local: LocalTraining, privacy: Privacy | None = None) -> TrainTask:
    return TrainTask(
        job="ab" * 32,
        round=1,
        architecture=Architecture.RESNET18,
        base="cd" * 32,
        seed=1,
        deadline=1,
        local=local,
        privacy=privacy,
    )


def work(masked: Round, floors: Floors) -> Progress:
    hospital = replace(masked.hospital(), floors=floors)
    masked.consortium.ask(hospital, masked.task)
    return masked.ended(hospital)


# 32 images of 16 lesions at most, batches of 8, one epoch: four steps.
@pytest.mark.parametrize(
    ("floors", "words"),
    [
        (Floors(batch=9), "batches of at least 9, and this job's are of 8"),
        (Floors(lesions=17), "fewer than 17 lesions, and this one is of 16"),
        (Floors(steps=5), "fewer than 5 steps, and this one is of 4"),
    ],
)
def test_a_task_below_a_floor_is_refused_before_it_begins(
    consortium: Any, tmp_path: Path, floors: Floors, words: str
) -> None:
    with secure_round(consortium, tmp_path / "round") as masked:
        ended = work(masked, floors)
        assert ended.stage is Stage.REFUSED
        assert words in ended.detail
        assert (masked.trainer.trained, OWN in masked.room.keys) == (0, False)
        assert not masked.consortium.upload_lengths


def test_a_task_at_its_floors_is_done(consortium: Any, tmp_path: Path) -> None:
    with secure_round(consortium, tmp_path / "round") as masked:
        assert work(masked, Floors(8, 16, 4, secure=True)).stage is Stage.SUBMITTED


def test_a_job_without_secure_aggregation(consortium: Any, tmp_path: Path) -> None:
    with secure_round(consortium, tmp_path / "round") as masked:
        masked.task = masked.task.model_copy(update={"secure": None})
        ended = work(masked, Floors(secure=True))
        assert ended.stage is Stage.REFUSED
        assert "secure aggregation only" in ended.detail
        assert masked.trainer.trained == 0
        assert work(masked, Floors()).stage is Stage.SUBMITTED


def test_what_turns_out_to_be_less_than_it_seemed_does_not_leave(consortium: Any, tmp_path: Path) -> None:
    """Pictures that cannot be decoded are known of only when they are."""
    with secure_round(consortium, tmp_path / "round") as masked:
        masked.trainer.images = IMAGES - 8
        ended = work(masked, Floors(steps=4))
        assert ended.stage is Stage.REFUSED
        assert "this one is of 3" in ended.detail
        assert masked.trainer.trained == 1
        assert not masked.consortium.upload_lengths


def test_a_floor_that_was_raised_holds_for_what_was_trained_before(
    consortium: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with secure_round(consortium, tmp_path / "round") as masked:

        class Killed(BaseException):
            pass

        def killed(*_: object) -> None:
            raise Killed

        monkeypatch.setattr("concilia_client_node.masking.sending", killed)
        with pytest.raises(Killed):
            work(masked, Floors())
        monkeypatch.undo()
        ended = work(masked, Floors(lesions=17))
        assert (ended.stage, masked.trainer.trained) == (Stage.REFUSED, 1)
        assert not masked.consortium.upload_lengths


@given(images=st.integers(2, 500), batch=st.integers(2, 64), epochs=st.integers(1, 5), floor=st.integers(1, 64))
def test_the_smallest_batch_is_what_counts(images: int, batch: int, epochs: int, floor: int) -> None:
    task, extent = of(LocalTraining(batch_size=batch, epochs=epochs)), Extent(images, images)
    sizes = [len(each) for each in torch.tensor_split(torch.arange(images), batches_of(images, batch))]
    try:
        Floors(batch=floor).see_extent(task, extent)
    except Refused:
        assert min(sizes) < floor
    else:
        assert min(sizes) >= floor
    Floors(steps=epochs * len(sizes)).see_extent(task, extent)
    with pytest.raises(Refused):
        Floors(steps=epochs * len(sizes) + 1).see_extent(task, extent)


def test_with_differential_privacy_it_is_the_batch_to_be_expected() -> None:
    """Of 90 lesions in batches of 16 as drawn, six steps see as many as there are."""
    task, extent = of(LocalTraining(batch_size=16), Privacy(noise=1.0)), Extent(400, 90)
    Floors(batch=16, steps=6).see_extent(task, extent)
    with pytest.raises(Refused, match="at least 17"):
        Floors(batch=17).see_extent(task, extent)
    with pytest.raises(Refused, match="of 6"):
        Floors(steps=7).see_extent(task, extent)
    with pytest.raises(Refused, match="are of 10"):
        Floors(batch=16).see_extent(task, Extent(400, 10))


def test_few_images_are_of_few_lesions() -> None:
    extent = Extent(10, 90)
    with pytest.raises(Refused, match="this one is of 10"):
        Floors(lesions=11).see_extent(of(LocalTraining(batch_size=16)), extent)
    Floors(lesions=90).see_extent(of(LocalTraining(batch_size=16), Privacy(noise=1.0)), extent)


def test_what_a_training_may_be_on_is_known_before(drawn_folder: Path, tmp_path: Path) -> None:
    site = dataset.choose(dataset.read(drawn_folder), SiteChoice.parse("all"), 0)
    data = LocalData(site, "all", tmp_path, 1, 0.02)
    lesions = {picture.lesion for picture in site.training}
    assert data.extent(None) == Extent(len(site.training), len(lesions))
    assert data.extent(7) == Extent(7, len(lesions))
    assert data.extent(10**6) == data.extent(None)
    assert data.extent(None).images == sum(data.registration().training_images)


def test_floors_are_settings(tmp_path: Path) -> None:
    asked = {
        "port": 1,
        **{f"{name}_url": "http://localhost:1" for name in ("auth", "model", "chain", "aggregator")},
        **dict.fromkeys(("keystore", "password_file", "data", "directory"), tmp_path),
    }
    assert floors_of(NodeSettings(**asked)) == Floors()
    made = NodeSettings(**asked, min_batch_size=16, min_lesions=200, min_steps=10, secure_only=True)
    assert floors_of(made) == Floors(16, 200, 10, secure=True)


# ------------------------------------------------------------------------------------------------------- base models

Arrays = dict[str, npt.NDArray[Any]]


def copied(model: Arrays) -> None:
    model["w"][3] = model["w"][1] * np.float32(-2.5)


def nearly_copied(model: Arrays) -> None:
    model["w"][3] = model["w"][1] * np.float32(40) + np.float32(1e-4)


def constant(model: Arrays) -> None:
    model["w"][2] = 1 / 20


def not_finite(model: Arrays) -> None:
    model["b"][4] = np.inf


SPOILS: dict[str, tuple[Callable[[Arrays], None], str]] = {
    "rows are copies": (copied, "copies of each other"),
    "rows are nearly copies": (nearly_copied, "copies of each other"),
    "a row measures brightness": (constant, "one number throughout"),
    "a number is infinite": (not_finite, "not finite"),
}


@pytest.mark.parametrize("what", SPOILS)
def test_a_model_that_was_made_to_single_out_pictures(consortium: Any, tmp_path: Path, what: str) -> None:
    spoil, words = SPOILS[what]
    with secure_round(consortium, tmp_path / "round") as masked:
        model = tensors()
        spoil(model)
        tensorfile.write(tmp_path / "spoilt", model)
        base = consortium.keep((tmp_path / "spoilt").read_bytes())
        consortium.open_round(masked.task.job, 1, base)
        masked.task = masked.task.model_copy(update={"base": base, "secure": None})
        ended = work(masked, Floors())
        assert ended.stage is Stage.REFUSED
        assert words in ended.detail
        assert masked.trainer.trained == 0


def test_imprints_in_a_real_network_are_found(tmp_path: Path) -> None:
    """Fowl et al.'s layer in the place of the first half of one that the architecture has."""
    torch.manual_seed(0)
    network = networks.build(Architecture.RESNET18)
    networks.save(network, tmp_path / "honest")
    tampering.see_model(tmp_path / "honest")
    weight = network.get_parameter("layer4.1.conv2.weight")
    with torch.no_grad():
        weight[:256] = weight[0] * torch.linspace(0.5, 2, 256)[:, None, None, None]
    networks.save(network, tmp_path / "imprinting")
    with pytest.raises(WeightsError, match=r"layer4\.1\.conv2\.weight has rows that are copies"):
        tampering.see_model(tmp_path / "imprinting")


@pytest.mark.parametrize("architecture", list(Architecture))
def test_fresh_networks_have_no_such_signs(tmp_path: Path, architecture: Architecture) -> None:
    torch.manual_seed(1)
    networks.save(networks.build(architecture), tmp_path / "fresh")
    tampering.see_model(tmp_path / "fresh")


def test_a_trained_network_has_none(tmp_path: Path) -> None:
    """With kernels that died out in training, which are copies of each other as near as may be."""
    if not SHARED.is_file():
        pytest.skip("no trained weights beside the checkout")
    tampering.see_model(SHARED)


def test_what_died_out_is_passed_over(tmp_path: Path) -> None:
    model = tensors()
    model["w"][1:3] = 1e-12
    tensorfile.write(tmp_path / "model", model | {"nothing": np.zeros((4, 32), np.float32)})
    tampering.see_model(tmp_path / "model")


def test_what_asks_for_nothing_counts_nothing() -> None:
    assert not Floors().any
    assert not Floors(secure=True).any
    assert Floors(steps=2).any
