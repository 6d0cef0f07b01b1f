"""A network of timm from its initial weights to its ONNX file: the model service makes it, hospitals train it on drawn
pictures, their updates are folded, the model is evaluated, asked and exported."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from concilia_aggregator import scores
from concilia_aggregator.folding import Recipe, fold
from concilia_client_node import dataset, drawn
from concilia_client_node.local_data import LocalData
from concilia_client_node.split import SiteChoice
from concilia_client_node.torch_trainer import TorchTrainer
from concilia_kit import tensorfile
from concilia_kit.adapters import layout
from concilia_kit.classification import LESIONS
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.onnx import OnnxRequest
from concilia_kit.wire.strategy import Strategy
from concilia_kit.wire.training import Evaluation, EvaluationReport, LocalTraining
from concilia_model import architectures, onnx_graph
from concilia_model.networks import Networks
from PIL import Image

pytestmark = pytest.mark.integration

NET = "timm:resnet10t"
SIDE = 32
LOCAL = LocalTraining(batch_size=16, image_size=SIDE, learning_rate=0.02, max_images=48)


@pytest.fixture(scope="module")
def trainers(tmp_path_factory: pytest.TempPathFactory) -> list[TorchTrainer]:
    folder = tmp_path_factory.mktemp("timm")
    drawn.write_drawn(folder / "lesions", images=240, seed=3)
    made = []
    for name in ("drawn_south", "drawn_west"):
        site = dataset.choose(dataset.read(folder / "lesions"), SiteChoice.parse(f"collection:{name}"), 0)
        made.append(TorchTrainer(LocalData(site, name, folder, 1, 0.02), torch.device("cpu"), 1))
    return made


def report(counts: Any, overlapping: int, trainer: TorchTrainer) -> EvaluationReport:
    return EvaluationReport(
        job="0" * 64,
        round=1,
        model="0" * 64,
        overlapping_lesions=overlapping,
        skipped_images=trainer.skipped_images,
        seconds=0.0,
        **dataclasses.asdict(counts),
    )


def test_from_initial_weights_to_onnx(trainers: list[TorchTrainer], tmp_path: Path) -> None:
    service = Networks(1, 1, 10**6)
    initial = tmp_path / "initial"
    service.make_initial(NET, 5, initial)

    updates, samples = [], []
    for number, trainer in enumerate(trainers):
        outcome, tensors = trainer.train(NET, initial, LOCAL, number, lambda _: None, lambda: None)
        update = tmp_path / f"update{number}"
        tensorfile.write(update, tensors)
        updates.append(TensorFile.open(update))
        samples.append(outcome.images)
    model = tmp_path / "model.safetensors"
    digest = fold(updates, samples, Recipe(NET, 1, Strategy()), model, base=TensorFile.open(initial))
    assert Recipe.of(TensorFile.open(model)).architecture == NET
    service.check(NET, model)
    mean = sum(
        update.tensor("fc.weight").astype(np.float64) * share for update, share in zip(updates, samples, strict=True)
    ) / sum(samples)
    np.testing.assert_allclose(TensorFile.open(model).tensor("fc.weight"), mean, rtol=1e-6)

    reports = []
    for trainer in trainers:
        counts, overlapping = trainer.evaluate(NET, model, SIDE, Evaluation(), 1, lambda: None, calibrate=True)
        assert overlapping == 0
        reports.append(report(counts, overlapping, trainer))
    pooled = scores.pooled(reports)
    assert pooled is not None
    assert pooled.images == sum(each.images for each in reports) > 20

    out = io.BytesIO()
    Image.fromarray(drawn.draw("mel", np.random.default_rng(1), np.random.default_rng(2))).save(out, "PNG")
    seen = service.predict(digest, model, NET, SIDE, out.getvalue(), attention=True)
    assert sum(seen.shares) == pytest.approx(1)
    assert np.array(seen.maps).shape == (7, 1, 1)

    request = OnnxRequest(
        artifact=model,
        trunk=None,
        target=tmp_path / "model.onnx",
        digest=digest,
        job="1" * 64,
        architecture=NET,
        image_size=SIDE,
        classification=LESIONS,
        notice="not for diagnosis",
    )
    exported = onnx_graph.export(request)
    assert exported.largest_difference <= onnx_graph.TOLERANCE
    session = onnxruntime.InferenceSession(exported.file, providers=["CPUExecutionProvider"])
    scaled = Image.open(io.BytesIO(out.getvalue())).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    found = session.run(None, {"picture": np.asarray(scaled).transpose(2, 0, 1)[None]})[0][0]
    assert found == pytest.approx(seen.shares, abs=onnx_graph.TOLERANCE)
    assert session.get_modelmeta().custom_metadata_map["concilia.architecture"] == NET


@pytest.mark.parametrize("kind", ["norms", "lora:4"])
def test_an_adapter_over_it_is_trained_and_merged(trainers: list[TorchTrainer], tmp_path: Path, kind: str) -> None:
    service = Networks(1, 1, 10**6)
    whole = service.make_initial(NET, 5, tmp_path / "whole")
    service.make_adapter(NET, 5, tmp_path / "adapter", trunk=tmp_path / "whole", digest=whole.digest, kind=kind)
    _, tensors = trainers[0].train(
        NET, tmp_path / "adapter", LOCAL, 1, lambda _: None, lambda: None, trunk=tmp_path / "whole"
    )
    assert tensors.keys() == layout(architectures.expected(NET), kind).keys()
    file = TensorFile.open(tmp_path / "adapter")
    tensorfile.write(tmp_path / "after", tensors, file.header.metadata)
    service.check(NET, tmp_path / "after", tmp_path / "whole")
    assert not np.array_equal(tensors["fc.weight"], file.tensor("fc.weight"))
