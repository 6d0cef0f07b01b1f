"""A federation in one process for measuring encodings: the nodes' training and evaluation, the aggregator's fold.

What a job does but for moving and recording: every hospital trains from the global model, its update is encoded, read
back and folded, and what the encoding left out goes into its next one.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from concilia_aggregator import scores
from concilia_aggregator.folding import Recipe, fold
from concilia_client_node import check, dataset
from concilia_client_node.local_data import LocalData
from concilia_client_node.torch_trainer import TorchTrainer
from concilia_client_node.trainer import mix
from concilia_kit import encodings, tensorfile
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.encoding import Encoding
from concilia_kit.wire.strategy import Strategy
from concilia_kit.wire.training import Architecture, Balance, Evaluation, EvaluationReport, LocalTraining
from concilia_model import architectures, weights

_JOB = "0" * 64
_BLOCK = 1 << 18  # elements read at a time
UNREADABLE = 0.02  # share of a site's pictures that may be missing


@dataclass(frozen=True)
class Setting:
    """What all runs of a measurement have in common."""

    architecture: Architecture
    weights: str
    image_size: int
    images: int
    epochs: int
    batch_size: int
    learning_rate: float
    rounds: int
    judged: int
    held_out: int | None

    @property
    def local(self) -> LocalTraining:
        """Every hospital's part of a round."""
        return LocalTraining(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            image_size=self.image_size,
            max_images=self.images,
            balance=Balance.SAMPLING,
        )

    def document(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self) | {"architecture": self.architecture.value}


@dataclass
class _Cost:
    """What one encoding cost, over all updates of a run."""

    size: list[int]
    encode: list[float]
    decode: list[float]


def sites(data: Path, scratch: Path) -> dict[str, TorchTrainer]:
    """A trainer a site: the data's collections, else four random shares."""
    folder = dataset.read(data)
    trainers = {}
    for choice in check.choices(folder, "auto"):
        site = dataset.choose(folder, choice, 0)
        site.accept(0, UNREADABLE)
        local = LocalData(site, site.name[:64], scratch, 1, UNREADABLE)
        trainers[site.name] = TorchTrainer(local, torch.device("cpu"), 1)
    return trainers


def run(
    setting: Setting,
    trainers: dict[str, TorchTrainer],
    seed: int,
    encoding: Encoding,
    folder: Path,
    tell: Callable[[str], None],
) -> dict[str, Any]:
    """Train one federation; scores of the judged rounds, bytes and seconds an update with zstd and without."""
    began = time.monotonic()
    base = folder / "base.safetensors"
    tensorfile.write(base, _initial(setting, seed))
    costs = {option: _Cost([], [], []) for option in (encoding, encoding.model_copy(update={"zstd": True}))}
    judged, plain = [], 0
    for number in range(1, setting.rounds + 1):
        start = TensorFile.open(base)
        updates, samples = [], []
        for name, trainer in trainers.items():
            outcome, tensors = trainer.train(
                setting.architecture, base, setting.local, mix(seed, number, name), lambda _: None, lambda: None
            )
            before = folder / f"{name}.before"
            path = folder / f"{name}.update"
            for option, cost in costs.items():
                target = path if option == encoding else folder / f"{name}.other"
                left = folder / f"{name}.left" if option == encoding and encoding.feedback else None
                kept = TensorFile.open(before) if before.exists() else None
                started = time.perf_counter()
                written = encodings.encode(target, option, tensors, start, kept, left)
                cost.encode.append(time.perf_counter() - started)
                cost.size.append(written.size)
                cost.decode.append(_decode(target, start))
                plain = written.size_plain
            if number == 1:
                _same(path, folder / f"{name}.other", start)
            if encoding.feedback:
                (folder / f"{name}.left").replace(before)
            updates.append(TensorFile.open(path))
            samples.append(outcome.images)
        fold(updates, samples, Recipe(setting.architecture, number, Strategy()), folder / "model", base=start)
        (folder / "model").replace(base)
        words = f"round {number} of {setting.rounds}"
        if number > setting.rounds - setting.judged:
            score = _evaluate(setting, trainers, seed, number, base)
            judged.append(score)
            words += f", balanced accuracy {score['balanced_accuracy']:.3f}"
        tell(words)
    return {
        "seed": seed,
        "encoding": str(encoding),
        "balanced_accuracy": statistics.mean(score["balanced_accuracy"] for score in judged),
        "auc": statistics.mean(score["auc"] for score in judged),
        "loss": statistics.mean(score["loss"] for score in judged),
        "judged": judged,
        "bytes_plain": plain,
        "updates": len(trainers) * setting.rounds,
        "costs": {
            str(option): {
                "bytes": statistics.mean(cost.size),
                "seconds_encode": statistics.median(cost.encode),
                "seconds_decode": statistics.median(cost.decode),
            }
            for option, cost in costs.items()
        },
        "seconds": time.monotonic() - began,
    }


def _initial(setting: Setting, seed: int) -> dict[str, Any]:
    """Fresh weights from the seed, under those of a file where one is named, as the model service makes them."""
    fresh = architectures.fresh(setting.architecture, seed)
    if setting.weights == "random":
        return dict(fresh)
    file = TensorFile.open(Path(setting.weights))
    fitted = weights.fit(
        {name: np.array(file.tensor(name)) for name in file},
        architectures.expected(setting.architecture),
        fresh,
        architectures.HEADS[setting.architecture],
    )
    return dict(fitted.tensors)


def _decode(path: Path, base: TensorFile) -> float:
    """Seconds to open an update and read all of it once."""
    started = time.perf_counter()
    reader = encodings.reader(TensorFile.open(path), base)
    for name, spec in reader.tensors.items():
        for start in range(0, spec.size, _BLOCK):
            reader.block(name, start, start + _BLOCK).max()
    return time.perf_counter() - started


def _same(one: Path, other: Path, base: TensorFile) -> None:
    """zstd changes no bit of what is decoded: so one training measures both. Raises `RuntimeError` where it does."""
    first, second = (encodings.reader(TensorFile.open(path), base) for path in (one, other))
    for name, spec in first.tensors.items():
        if first.block(name, 0, spec.size).tobytes() != second.block(name, 0, spec.size).tobytes():
            raise RuntimeError(f"{name} is decoded otherwise with zstd")


def _evaluate(
    setting: Setting, trainers: dict[str, TorchTrainer], seed: int, number: int, model: Path
) -> dict[str, Any]:
    reports: Sequence[EvaluationReport] = [
        _report(setting, trainer, mix(seed, name), number, model) for name, trainer in trainers.items()
    ]
    pooled = scores.pooled(reports)
    if pooled is None:
        raise RuntimeError("no site has held-out images")
    areas = [area for area in pooled.auc if area is not None]
    return {
        "round": number,
        "balanced_accuracy": pooled.balanced_accuracy,
        "auc": statistics.mean(areas),
        "loss": pooled.loss,
        "recall": pooled.recall,
        "images": pooled.images,
    }


def _report(setting: Setting, trainer: TorchTrainer, seed: int, number: int, model: Path) -> EvaluationReport:
    limits = Evaluation(max_images=setting.held_out)
    counts, overlapping = trainer.evaluate(setting.architecture, model, setting.image_size, limits, seed, lambda: None)
    return EvaluationReport(
        job=_JOB,
        round=number,
        model=_JOB,
        overlapping_lesions=overlapping,
        skipped_images=trainer.skipped_images,
        seconds=0.0,
        **asdict(counts),
    )
