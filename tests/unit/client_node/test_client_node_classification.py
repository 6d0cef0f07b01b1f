"""Hospitals whose pictures are of something else: folders by class, what is said of them, and tasks not theirs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from concilia_client_node import augmentation, check, dataset, drawn, drawn_arrays, layouts, networks
from concilia_client_node.errors import DatasetError
from concilia_client_node.local_data import LocalData
from concilia_client_node.settings import NodeSettings
from concilia_client_node.split import SiteChoice
from concilia_client_node.torch_trainer import TorchTrainer
from concilia_kit.classification import HAM10000, LESIONS, Classification, Declaration, Disease, Layout, Turns
from concilia_kit.wire.progress import Stage
from concilia_kit.wire.training import Architecture, EvaluateTask, Evaluation, LocalTraining, Task, TrainTask
from eth_account import Account
from PIL import Image

from .hospitals import Untrained, hospital_of

ACCOUNT = Account.from_key(b"\x21" * 32)
JOB = "ef" * 32
CHEST = Classification(
    name="chest",
    classes=(Disease(code="normal", name="Normal"), Disease(code="pneumonia", name="Pneumonia")),
    critical="pneumonia",
    mean=(0.5, 0.4, 0.3),
    std=(0.25, 0.2, 0.1),
    turns=Turns.NONE,
)
ALL = SiteChoice.parse("all")


def declare(path: Path, layout: Layout, classification: Classification = CHEST) -> Path:
    path.write_text(Declaration(classification=classification, layout=layout).model_dump_json())
    return path


def picture(path: Path, kind: str = "PNG") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((9, 9), 7, np.uint8)).save(path, kind)


# ------------------------------------------------------------------------------------------------ a folder for a class


def test_a_folder_for_each_class(tmp_path: Path) -> None:
    for number in range(10):
        picture(tmp_path / "normal" / f"{number}.png")
        picture(tmp_path / "pneumonia" / "2024" / f"{number}.JPG", "JPEG")
    picture(tmp_path / ".trash" / "x.png")
    (tmp_path / "normal" / "notes.txt").write_text("no picture")
    (tmp_path / "README.md").write_text("about")
    folder = layouts.read(tmp_path, Declaration(classification=CHEST, layout=Layout.FOLDERS))
    assert (folder.source, folder.classification, len(folder.pictures)) == ("chest", CHEST, 20)
    assert folder.pictures[0].image == folder.pictures[0].lesion == "normal/0.png"
    assert folder.pictures[-1].image == "pneumonia/2024/9.JPG"
    site = dataset.choose(folder, ALL, 0)
    assert dataset.per_class(site.training, 2) == (8, 8)
    assert dataset.per_class(site.held_out, 2) == (2, 2)
    told = LocalData(site, "ward", tmp_path / "scratch", 1, 0.0).registration()
    assert (told.classification, told.training_images) == (CHEST, (8, 8))


def test_a_folder_that_is_no_class_is_named_and_a_class_without_one_is_not(tmp_path: Path) -> None:
    declaration = Declaration(classification=CHEST, layout=Layout.FOLDERS)
    with pytest.raises(DatasetError, match="no pictures in folders named normal, pneumonia"):
        layouts.read(tmp_path, declaration)
    picture(tmp_path / "normal" / "1.png")
    assert len(layouts.read(tmp_path, declaration).pictures) == 1
    picture(tmp_path / "Pneumonia" / "1.png")
    with pytest.raises(DatasetError, match="Pneumonia is no class of chest: normal, pneumonia"):
        layouts.read(tmp_path, declaration)
    with pytest.raises(DatasetError, match="no folder"):
        layouts.read(tmp_path / "nowhere", declaration)


def test_a_table_of_other_classes(tmp_path: Path) -> None:
    rows = ["lesion_id,image_id,dx"]
    for number in range(8):
        rows.append(f"L{number // 2},I{number},{CHEST.codes[number // 2 % 2]}")
        picture(tmp_path / "pictures" / f"I{number}.png")
    (tmp_path / "HAM10000_metadata.csv").write_text("\n".join(rows))
    folder = layouts.read(tmp_path, Declaration(classification=CHEST))
    assert folder.lesions() == {"L0": 0, "L1": 1, "L2": 0, "L3": 1}
    with pytest.raises(DatasetError, match="dx is 'normal', not one of akiec"):
        layouts.read(tmp_path)


@pytest.mark.parametrize("layout", Layout)
def test_a_folder_that_is_gone_is_told(tmp_path: Path, layout: Layout) -> None:
    with pytest.raises(DatasetError):
        layouts.require(tmp_path / "gone", layout)


def test_what_a_node_is_told_names_a_file_or_none(tmp_path: Path) -> None:
    assert layouts.declared(None) == HAM10000
    path = declare(tmp_path / "chest.json", Layout.MEDMNIST)
    assert layouts.declared(path) == Declaration(classification=CHEST, layout=Layout.MEDMNIST)
    path.write_text("{}}")
    with pytest.raises(DatasetError, match="no declaration of a classification"):
        layouts.declared(path)
    urls = {f"{name}_url": "http://127.0.0.1:1" for name in ("auth", "model", "chain", "aggregator")}
    files = dict.fromkeys(("keystore", "password_file", "data", "directory"), tmp_path)
    for given, named in (("", None), (str(path), path)):
        assert NodeSettings(port=1, classification=given, **urls, **files).classification == named  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------ the command line


def run(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False)


@pytest.mark.parametrize("more", [(), ("--colour", "--side", "64")])
def test_a_second_modality_is_drawn_and_checked(tmp_path: Path, more: tuple[str, ...]) -> None:
    declared = ("--classification", str(declare(tmp_path / "chest.json", Layout.MEDMNIST)))
    done = run("concilia_client_node.drawn", str(tmp_path / "new"), *declared, "--images", "60", *more)
    assert (done.returncode, done.stderr) == (0, "")
    shown = tmp_path / "shown.png"
    done = run(
        "concilia_client_node.check", str(tmp_path / "new"), *declared, "--sites", "iid:2", "--picture", str(shown)
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["source"], found["images"]) == ("drawn pictures of chest", 60)
    assert found["lesions_per_class"] == {"normal": 30, "pneumonia": 30}
    assert found["overlapping_lesions"] == 0
    with Image.open(shown) as image:
        assert (image.size, image.mode) == (((64, 64), "RGB") if more else ((28, 28), "L"))
    done = run("concilia_client_node.check", str(tmp_path / "new"))
    assert done.returncode == 2
    assert "no metadata table" in done.stderr


def test_what_cannot_be_drawn_is_said_and_leaves_no_folder(tmp_path: Path) -> None:
    chest = str(declare(tmp_path / "chest.json", Layout.MEDMNIST))
    folders = str(declare(tmp_path / "folders.json", Layout.FOLDERS))
    for arguments in (("--classification", chest, "--images", "19"), ("--classification", folders)):
        assert drawn.main([str(tmp_path / "new"), *arguments]) == 2
        assert not (tmp_path / "new").exists()
    assert drawn.main([str(tmp_path / "new"), "--classification", str(tmp_path / "none.json")]) == 2


# ------------------------------------------------------------------------------------------------------------ pictures


def bright_on_the_left_and_above() -> torch.Tensor:
    pictures = torch.full((256, 3, 32, 32), 40, dtype=torch.uint8)
    pictures[:, :, :16, :] += 60
    pictures[:, :, :, :16] += 120
    return pictures


@pytest.mark.parametrize(
    ("turns", "left", "above"), [(Turns.NONE, True, True), (Turns.MIRROR, False, True), (Turns.FREE, False, False)]
)
def test_training_turns_pictures_as_far_as_they_bear_it(turns: Turns, left: bool, above: bool) -> None:
    """The half that was bright stays so at every picture, or changes sides at some."""
    seen = augmentation.as_training_input(
        bright_on_the_left_and_above(),
        torch.Generator().manual_seed(0),
        LESIONS.model_copy(update={"turns": turns}),
    )
    on_the_left = seen[..., :16].mean((1, 2, 3)) > seen[..., 16:].mean((1, 2, 3))
    upper = seen[:, :, :16].mean((1, 2, 3)) > seen[:, :, 16:].mean((1, 2, 3))
    assert bool(on_the_left.all()) is left
    assert bool(upper.all()) is above
    if not left:
        assert 0.3 < on_the_left.float().mean() < 0.7


def test_inputs_are_normalised_as_declared() -> None:
    pictures = bright_on_the_left_and_above()[:2]
    ours = augmentation.as_input(pictures, CHEST)
    mean, std = torch.tensor(CHEST.mean).view(3, 1, 1), torch.tensor(CHEST.std).view(3, 1, 1)
    torch.testing.assert_close(ours, (pictures / 255 - mean) / std)
    drawn_alike = [
        augmentation.as_training_input(pictures, torch.Generator().manual_seed(1), each)
        for each in (CHEST, CHEST.model_copy(update={"mean": LESIONS.mean, "std": LESIONS.std}))
    ]
    theirs = drawn_alike[1] * torch.tensor(LESIONS.std).view(3, 1, 1) + torch.tensor(LESIONS.mean).view(3, 1, 1)
    torch.testing.assert_close(drawn_alike[0] * std + mean, theirs)


def test_a_hospital_trains_and_evaluates_what_it_declares(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    drawn_arrays.write(data, CHEST, 120, 0)
    site = dataset.choose(layouts.read(data, Declaration(classification=CHEST, layout=Layout.MEDMNIST)), ALL, 0)
    trainer = TorchTrainer(LocalData(site, "ward", tmp_path / "scratch", 1, 0.0), torch.device("cpu"), 1)
    torch.manual_seed(0)
    base = tmp_path / "base.safetensors"
    networks.save(networks.build(Architecture.RESNET18, 2), base)
    local = LocalTraining(epochs=1, batch_size=28, image_size=32, first_loss=True)
    outcome, tensors = trainer.train(Architecture.RESNET18, base, local, 1, lambda _share: None, lambda: None)
    assert outcome.images == outcome.lesions == 84
    assert outcome.first_loss == pytest.approx(np.log(2), abs=0.5)
    assert tensors["fc.weight"].shape == (2, 512)
    counts, overlapping = trainer.evaluate(Architecture.RESNET18, base, 32, Evaluation(), 1, lambda: None)
    assert (counts.images, overlapping) == (36, 0)
    assert np.shape(counts.confusion) == (2, 2)
    assert np.shape(counts.positives) == np.shape(counts.negatives) == (2, 32)
    # Where one class hardly ever comes elsewhere, it is what is seen here; and the other way round.
    for everybody, seen in (((1, 10**9), 0), ((10**9, 1), 1)):
        by_shares = Evaluation(class_counts=everybody)
        shifted, _ = trainer.evaluate(Architecture.RESNET18, base, 32, by_shares, 1, lambda: None)
        assert np.array(shifted.confusion).sum(0)[seen] == 36
    same = tuple(np.bincount(trainer.data.at(32, lambda: None).training.labels).tolist())
    as_it_is, _ = trainer.evaluate(Architecture.RESNET18, base, 32, Evaluation(class_counts=same), 1, lambda: None)
    assert as_it_is == counts
    told, _ = trainer.train(
        Architecture.RESNET18,
        base,
        LocalTraining(image_size=32, max_images=8, class_counts=True),
        1,
        lambda _: None,
        lambda: None,
    )
    assert (told.images, told.class_counts, outcome.class_counts) == (8, same, None)
    # The base of another classification does not fit.
    networks.save(networks.build(Architecture.RESNET18), base)
    with pytest.raises(Exception, match="fc"):
        trainer.train(Architecture.RESNET18, base, local, 1, lambda _share: None, lambda: None)


# -------------------------------------------------------------------------------------------------------------- tasks


@pytest.mark.parametrize("own", [LESIONS, CHEST.model_copy(update={"turns": Turns.FREE})])
@pytest.mark.parametrize("kind", [TrainTask, EvaluateTask])
def test_a_task_of_another_classification_is_refused_before_any_work(
    consortium: Any, tmp_path: Path, own: Classification, kind: Callable[..., Any]
) -> None:
    base = consortium.keep(b"never fetched")
    consortium.open_round(JOB, 1, base)
    common: dict[str, Any] = {
        "job": JOB,
        "round": 1,
        "architecture": Architecture.RESNET18,
        "seed": 1,
        "classification": CHEST,
    }
    if kind is TrainTask:
        task: Task = TrainTask(**common, base=base, deadline=2**33, local=LocalTraining())
    else:
        task = EvaluateTask(**common, model=base, image_size=32, evaluation=Evaluation())
    with hospital_of(consortium, ACCOUNT, tmp_path / "node", Untrained()) as hospital:
        object.__setattr__(hospital, "classification", own)
        consortium.ask(hospital, task)
        assert hospital.reporter.flush(10)
    assert [item.stage for item in consortium.progress] == [Stage.REFUSED]
    detail = consortium.progress[0].detail
    assert detail.startswith("the job's classification is not this hospital's: ")
    assert ("'HAM10000'" if own is LESIONS else "turns") in detail
    assert not consortium.submissions


def test_check_says_nothing_else_of_lesions_than_before(drawn_folder: Path) -> None:
    found = check.report(drawn_folder)
    assert list(found["lesions_per_class"]) == list(LESIONS.codes)
