"""A model as an ONNX file: what it says of pictures is what torch says, and it is nothing but the model."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from concilia_kit import tensorfile
from concilia_kit.classification import LESIONS, Classification, Disease
from concilia_kit.wire.adapter import Adapter
from concilia_kit.wire.calibration import CriticalUse, Use
from concilia_kit.wire.onnx import NOT_INSTALLED, OnnxExport, OnnxRequest
from concilia_kit.wire.training import Architecture
from concilia_model import adapters, architectures, images, onnx_export, onnx_graph
from concilia_model.errors import WeightsDoNotFit
from concilia_model.networks import Networks
from PIL import Image

NET = Architecture.MOBILENET_V2
SIDE = 64
THREE = Classification(
    name="colours",
    classes=tuple(Disease(code=code, name=f"the {code} one") for code in ("red", "green", "blue")),
    mean=(0.5, 0.4, 0.3),
    std=(0.2, 0.3, 0.4),
)


def trained(architecture: Architecture, classes: int, seed: int = 0) -> dict[str, Any]:
    """Tensors of a network that tells pictures apart: its normalisation has seen some, and its head is not tiny."""
    tensors = {
        name: torch.from_numpy(array.copy()) for name, array in architectures.fresh(architecture, seed, classes).items()
    }
    model = architectures.empty(architecture, classes)
    model.load_state_dict(tensors, assign=True)
    seen = torch.from_numpy(onnx_graph.trial_pictures(SIDE)).float() / 255
    for layer in model.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None
            layer.train()
    with torch.no_grad():
        for _ in range(3):
            model(seen)
        model.get_parameter(f"{architectures.HEADS[architecture]}.weight").mul_(20)
    return {name: tensor.numpy() for name, tensor in model.state_dict().items()}


def request(folder: Path, tensors: dict[str, Any], told: Classification, net: Architecture = NET) -> OnnxRequest:
    digest = tensorfile.write(folder / "model.safetensors", tensors, {})
    return OnnxRequest(
        artifact=folder / "model.safetensors",
        trunk=None,
        target=folder / "model.onnx",
        digest=digest,
        job="1" * 64,
        architecture=net,
        image_size=SIDE,
        classification=told,
        notice="not for diagnosis",
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("onnx")


@pytest.fixture(scope="module")
def asked(folder: Path) -> OnnxRequest:
    return request(folder, trained(NET, 3), THREE)


def run(asked: OnnxRequest) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "concilia_model.onnx_export"]
    return subprocess.run(command, input=asked.model_dump_json(), capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def exported(asked: OnnxRequest) -> OnnxExport:
    done = run(asked)
    assert done.returncode == 0, done.stderr
    return OnnxExport.model_validate_json(done.stdout)


def test_what_is_told_of_an_export(asked: OnnxRequest, exported: OnnxExport) -> None:
    assert (exported.model, exported.file) == (asked.digest, asked.target)
    assert (exported.classes, exported.image_size) == (("red", "green", "blue"), SIDE)
    assert exported.bytes == asked.target.stat().st_size
    assert exported.pictures >= 8
    assert 0 <= exported.largest_difference <= onnx_graph.TOLERANCE
    assert [each.name for each in asked.target.parent.iterdir() if each.name.startswith(".")] == []


def photograph(seed: int) -> bytes:
    drawn = np.random.default_rng(seed).integers(0, 256, (6, 9, 3), np.uint8)
    content = io.BytesIO()
    Image.fromarray(drawn).resize((90, 60), Image.Resampling.BICUBIC).save(content, "PNG")
    return content.getvalue()


def integrated(file: Path, content: bytes) -> Any:
    """An integrator's way, with Pillow and onnxruntime alone: probabilities and logits of one picture."""
    scaled = Image.open(io.BytesIO(content)).resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return [each[0] for each in session.run(None, {"picture": np.asarray(scaled).transpose(2, 0, 1)[None]})]


@pytest.mark.parametrize("seed", range(4))
def test_a_picture_gets_what_the_service_says(asked: OnnxRequest, exported: OnnxExport, seed: int) -> None:
    found, _ = integrated(exported.file, photograph(seed))
    expected = Networks(1, 1, 10**6).predict(
        asked.digest, asked.artifact, NET, SIDE, photograph(seed), attention=False, classification=THREE
    )
    assert found == pytest.approx(expected.shares, abs=onnx_graph.TOLERANCE)


def test_pictures_are_told_apart_and_any_number_goes_at_once(exported: OnnxExport) -> None:
    session = onnxruntime.InferenceSession(exported.file, providers=["CPUExecutionProvider"])
    pictures = onnx_graph.trial_pictures(SIDE)
    together, _ = session.run(None, {"picture": pictures})
    assert together.shape == (len(pictures), 3)
    assert np.abs(together - together[0]).max() > 0.05
    assert together.sum(axis=1) == pytest.approx(1, abs=1e-5)
    alone, _ = session.run(None, {"picture": pictures[4:5]})
    assert alone[0] == pytest.approx(together[4], abs=1e-5)


def test_the_file_says_what_it_is_and_nothing_of_where_it_was_made(asked: OnnxRequest, exported: OnnxExport) -> None:
    made = onnx.load(exported.file)
    told = {each.key: each.value for each in made.metadata_props}
    assert told["concilia.model"] == asked.digest
    assert told["concilia.job"] == asked.job
    assert told["concilia.notice"] == "not for diagnosis"
    assert "concilia.critical" not in told
    assert [each["code"] for each in json.loads(told["concilia.classes"])] == ["red", "green", "blue"]
    assert "Pillow" in told["concilia.input"]
    assert [(each.domain, each.version) for each in made.opset_import] == [("", exported.opset)]
    content = exported.file.read_bytes()
    for path in (str(Path(onnx_graph.__file__).parent), str(Path(torch.__file__).parent), "site-packages"):
        assert path.encode() not in content


def test_the_same_model_is_the_same_file(asked: OnnxRequest, exported: OnnxExport, tmp_path: Path) -> None:
    again = onnx_graph.export(asked.model_copy(update={"target": tmp_path / "again.onnx"}))
    assert again.digest == exported.digest


def test_adapter_turns_and_temperature_are_in_the_graph(tmp_path: Path) -> None:
    over = trained(NET, len(LESIONS.classes))
    trunk = tensorfile.write(tmp_path / "trunk", over, {})
    own, _ = adapters.fresh(over, architectures.expected(NET), "lora:2", seed=1)
    own = {name: np.full_like(array, 0.01) if name.endswith("lora_b") else array for name, array in own.items()}
    critical = CriticalUse(
        code="mel", threshold=0.2, wanted=0.9, sensitivity=0.9, specificity=0.5, positives=9, negatives=9
    )
    use = Use(flips=True, temperature=2.0, critical=critical)
    asked = request(tmp_path, own, LESIONS)
    digest = tensorfile.write(asked.artifact, own, Adapter(trunk, "lora:2").metadata())
    asked = asked.model_copy(update={"digest": digest, "trunk": tmp_path / "trunk", "use": use})
    other = tensorfile.write(tmp_path / "other", over, {"another": "file"})
    assert other != trunk
    with pytest.raises(onnx_graph.ExportError, match="not its trunk"):
        onnx_graph.export(asked.model_copy(update={"trunk": tmp_path / "other"}))
    assert not asked.target.exists()

    made = onnx_graph.export(asked)
    network = architectures.empty(NET)
    whole = adapters.whole(asked.artifact, asked.trunk)
    network.load_state_dict({name: torch.from_numpy(array.copy()) for name, array in whole.items()}, assign=True)
    batch = images.prepare(images.decode(photograph(0), 10**6), SIDE)
    with torch.inference_mode():
        seen = [network(batch.flip(ways)) for ways in ((), (3,), (2,), (2, 3))]
    mean = torch.stack(seen).double().mean(0)[0]
    assert max(float((each[0] - mean).abs().max()) for each in seen) > 0.01  # turning tells
    found, logits = integrated(made.file, photograph(0))
    assert logits == pytest.approx(mean.numpy(), abs=1e-3)
    assert found == pytest.approx((mean / 2).softmax(0).numpy(), abs=onnx_graph.TOLERANCE)
    said = Networks(1, 1, 10**6).predict(
        digest, asked.artifact, NET, SIDE, photograph(0), attention=False, trunk=asked.trunk, use=use
    )
    assert found == pytest.approx(said.shares, abs=onnx_graph.TOLERANCE)
    plain = torch.from_numpy(logits).double().softmax(0)  # what the threshold is of
    assert float(plain[LESIONS.codes.index("mel")]) == pytest.approx(said.critical, abs=onnx_graph.TOLERANCE)
    told = {each.key: each.value for each in onnx.load(made.file).metadata_props}
    assert told["concilia.critical"] == "mel"
    assert Use.model_validate_json(told["concilia.use"]) == use


# ------------------------------------------------------------------------------------------------------- refused


def test_other_bytes_are_not_exported(asked: OnnxRequest, tmp_path: Path) -> None:
    other = asked.model_copy(update={"digest": "0" * 64, "target": tmp_path / "model.onnx"})
    done = run(other)
    assert (done.returncode, done.stdout) == (1, "")
    assert "does not hash to" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_number_of_classes_are_not_exported(asked: OnnxRequest, tmp_path: Path) -> None:
    with pytest.raises(WeightsDoNotFit):
        onnx_graph.export(asked.model_copy(update={"classification": LESIONS, "target": tmp_path / "model.onnx"}))


def test_a_file_that_says_something_else_is_not_kept(
    asked: OnnxRequest, exported: OnnxExport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoilt = onnx.load(exported.file)
    last = next(node for node in reversed(spoilt.graph.node) if node.op_type == "Gemm")
    head = next(each for each in spoilt.graph.initializer if each.name == last.input[1])
    head.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(head) * np.float32(0.5), head.name))
    monkeypatch.setattr(onnx_graph, "_graph", lambda *_: spoilt)
    (tmp_path / "model.onnx").write_bytes(b"what was there")
    with pytest.raises(onnx_graph.ExportError, match="differ from torch's"):
        onnx_graph.export(asked.model_copy(update={"target": tmp_path / "model.onnx"}))
    assert (tmp_path / "model.onnx").read_bytes() == b"what was there"
    assert [each.name for each in tmp_path.iterdir()] == ["model.onnx"]


def test_without_the_extra_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(onnx_export, "LIBRARIES", ("onnx", "not_there"))
    with pytest.raises(SystemExit) as ended:
        onnx_export.main()
    assert ended.value.code == NOT_INSTALLED
    assert capsys.readouterr().err == "not_there not installed: pip install 'concilia-model[onnx]'\n"


def test_the_service_has_no_part_of_it() -> None:
    script = (
        "import sys, concilia_model.main, concilia_model.network_worker, concilia_model.onnx_export\n"
        "print([name for name in sys.modules if name.split('.')[0] in ('onnx', 'onnxruntime', 'onnxscript')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
