"""From a model's tensors to an ONNX graph that takes pictures and gives probabilities, and the proof that it does.

The graph holds all that lies between a picture of the right size and the answer: scaling to [0, 1], normalisation, the
network, the mean over a picture's turns and the temperature where the model is to be used so, softmax. It does not
resize: ONNX's `Resize` does not do what Pillow does to the last bit, and what a model is
given must be what it was measured on; the file's metadata say how.

Source: ONNX's specification (opset 18), torch.onnx's exporter by `torch.export`.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import torch
from concilia_kit import digests
from concilia_kit.classification import VIEWS, Classification, Turns
from concilia_kit.tensorfile import MalformedFile, TensorFile
from concilia_kit.wire.calibration import Use
from concilia_kit.wire.onnx import OnnxExport, OnnxRequest
from torch import nn

from concilia_model import adapters, architectures

OPSET = 18
"""What torch's exporter writes without converting, and runtimes read since 2023."""
INPUT, OUTPUTS = "picture", ("probabilities", "logits")
TOLERANCE = 1e-4
"""Most by which a probability may differ from torch's: the two add float32 in other orders."""
_BATCH = 3  # pictures that are tried together, beside each alone
_PREFIX = "concilia."


class ExportError(Exception):
    """The model cannot be exported, or what was made is not it; the message says why."""


class Served(nn.Module):
    """A network as it is served: pictures (n, 3, side, side), uint8, RGB, to probabilities and logits, float32, both
    (n, classes). Logits are the network's own, before any temperature."""

    def __init__(self, network: nn.Module, classification: Classification, use: Use) -> None:
        super().__init__()
        self.network = network
        self._views = VIEWS[classification.turns if use.flips else Turns.NONE]
        self._temperature = use.temperature
        self.register_buffer("mean", torch.tensor(classification.mean).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(classification.std).view(1, 3, 1, 1))

    def forward(self, picture: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The network's answer, in the steps in which the service takes them."""
        batch = (picture.float() / 255 - self.get_buffer("mean")) / self.get_buffer("std")
        views = [self.network(batch.flip(ways) if ways else batch) for ways in self._views]
        logits = views[0] if len(views) == 1 else torch.stack(views).mean(0)
        return (logits / self._temperature).softmax(1), logits


def export(request: OnnxRequest) -> OnnxExport:
    """Make the file, verify it, and only then put it where it is wanted.

    Raises `ExportError`, `WeightsDoNotFit` and `OSError`.
    """
    served = Served(_network(request), request.classification, request.use or Use()).eval()
    made = _graph(served, request)
    folder = request.target.absolute().parent
    with tempfile.TemporaryDirectory(prefix=".onnx-", dir=folder) as scratch:
        file = Path(scratch) / "model.onnx"
        onnx.save(made, file)
        try:
            onnx.checker.check_model(file, full_check=True)
        except onnx.checker.ValidationError as error:
            raise ExportError(f"what was made is no valid ONNX: {error}") from error
        pictures = trial_pictures(request.image_size)
        difference = largest_difference(file, served, pictures)
        if not difference <= TOLERANCE:
            raise ExportError(f"the ONNX file's probabilities differ from torch's by {difference:.2e}: not kept")
        told = OnnxExport(
            model=request.digest,
            file=request.target,
            digest=digests.of_file(file),
            bytes=file.stat().st_size,
            opset=OPSET,
            classes=request.classification.codes,
            image_size=request.image_size,
            pictures=len(pictures),
            largest_difference=difference,
        )
        file.replace(request.target)
    return told


def trial_pictures(side: int) -> npt.NDArray[np.uint8]:
    """Pictures (n, 3, side, side) to compare on: black, white, a ramp, smooth blots as lesions are, and noise."""
    drawn = np.random.default_rng(0)
    ramp = np.broadcast_to(np.linspace(0, 255, side), (3, side, side))
    coarse = torch.from_numpy(drawn.uniform(0, 255, (4, 3, 8, 8)))
    blots = nn.functional.interpolate(coarse, (side, side), mode="bicubic").clamp(0, 255).numpy()
    noise = drawn.uniform(0, 256, (2, 3, side, side))
    plain = np.stack([np.zeros_like(ramp), np.full_like(ramp, 255), ramp])
    return np.concatenate([plain, blots, noise]).astype(np.uint8)


def largest_difference(file: Path, served: Served, pictures: npt.NDArray[np.uint8]) -> float:
    """How far the file's probabilities are from torch's at most, each picture alone and some together; NaN where one
    of them is."""
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    with torch.inference_mode():
        expected = torch.cat([served(torch.from_numpy(each[None]))[0] for each in pictures]).double().numpy()
    alone = np.concatenate([session.run(OUTPUTS[:1], {INPUT: each[None]})[0] for each in pictures])
    together = session.run(OUTPUTS[:1], {INPUT: pictures[:_BATCH]})[0]
    differences = (np.abs(alone - expected).max(), np.abs(together - expected[:_BATCH]).max())
    return float(np.max(differences))


def metadata(request: OnnxRequest) -> dict[str, str]:
    """What is written into the file, by name without the prefix; all text, lists as JSON."""
    side, asked = request.image_size, request.classification
    return {
        "model": request.digest,
        "job": request.job,
        "architecture": str(request.architecture),
        "classification": asked.name,
        "classes": json.dumps([each.model_dump(mode="json") for each in asked.classes]),
        **({} if asked.critical is None else {"critical": asked.critical}),
        "input": (
            f"{INPUT}: uint8, (pictures, 3, {side}, {side}), RGB. The whole upright picture, not cropped, scaled to "
            f"{side} x {side} as Pillow's Image.resize with BILINEAR does it (antialiased, on 8 bits). "
            "Normalisation is in the graph."
        ),
        "output": (
            f"{OUTPUTS[0]}: float32, (pictures, {len(asked.classes)}), in the order of classes; a row sums to 1. "
            f"{OUTPUTS[1]}: of the same shape, before any temperature: the threshold of the class that must not be "
            "missed, where use has one, is of their softmax."
        ),
        **({} if request.use is None else {"use": request.use.model_dump_json()}),
        "notice": request.notice,
    }


def _network(request: OnnxRequest) -> nn.Module:
    if digests.of_file(request.artifact) != request.digest:
        raise ExportError(f"the file that came does not hash to {request.digest}")
    try:
        file = TensorFile.open(request.artifact)
        said = adapters.adapter_of(file)
        if said is not None and (request.trunk is None or digests.of_file(request.trunk) != said.trunk):
            raise ExportError(f"the model is an adapter, and what came with it is not its trunk {said.trunk}")
        expected = architectures.expected(request.architecture, len(request.classification.classes))
        adapters.check(file, None if request.trunk is None else TensorFile.open(request.trunk), expected)
        tensors = adapters.whole(request.artifact, request.trunk)
    except MalformedFile as error:
        raise ExportError(f"the model's file is no safetensors file: {error}") from error
    network = architectures.empty(request.architecture, len(request.classification.classes))
    network.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in tensors.items()}, assign=True)
    return network


def _graph(served: Served, request: OnnxRequest) -> onnx.ModelProto:
    # Two in the example, since one would be taken for a constant.
    example = torch.zeros(2, 3, request.image_size, request.image_size, dtype=torch.uint8)
    program = torch.onnx.export(
        served,
        (example,),
        dynamo=True,
        input_names=[INPUT],
        output_names=list(OUTPUTS),
        dynamic_shapes=({0: torch.export.Dim("pictures", min=1)},),
        opset_version=OPSET,
        verbose=False,
    )
    if program is None:
        raise ExportError("torch's exporter made nothing")
    made = program.model_proto
    _forget_source(made)
    made.doc_string = f"Concilia model {request.digest}. {request.notice}"
    onnx.helper.set_model_props(made, {_PREFIX + name: text for name, text in metadata(request).items()})
    return made


def _forget_source(made: onnx.ModelProto) -> None:
    """Drop what the exporter notes of each node's source: stack traces with this machine's paths."""
    graph = made.graph
    for each in (graph, *graph.node, *graph.initializer, *graph.input, *graph.output, *graph.value_info):
        each.doc_string = ""
        del each.metadata_props[:]
