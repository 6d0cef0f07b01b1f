"""A model's outputs as its use has them read: temperature, flips, critical threshold, unusual pictures."""

from __future__ import annotations

import io
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from concilia_client_node import evaluation
from concilia_client_node.pictures import Pictures, decode
from concilia_kit import oddity
from concilia_kit.classification import LESIONS
from concilia_kit.tensorfile import write
from concilia_kit.wire.calibration import AS_IT_IS, CriticalUse, UnusualUse, Use
from concilia_kit.wire.models import ModelRegistration, Prediction
from concilia_kit.wire.training import Architecture
from concilia_model import architectures, images, reading
from concilia_model.network_process import Seen
from concilia_model.predictor import Predictor
from PIL import Image
from pydantic import ValidationError

from .test_model_versions import JOB, initial, picture, predict, publish, register

NET = Architecture.MOBILENET_V2
SIDE = 64
CRITICAL = CriticalUse(
    code="mel", threshold=0.25, wanted=0.9, sensitivity=0.88, specificity=0.7, positives=50, negatives=300
)
USE = Use(
    flips=True,
    images=350,
    temperature=1.7,
    critical=CRITICAL,
    unusual=UnusualUse(threshold=-0.25, share=0.01),
)


def flat() -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (90, 60), (200, 30, 30)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def predictor() -> Predictor:
    return Predictor(2)


@pytest.fixture
def model(tmp_path: Path) -> tuple[str, Path]:
    return write(tmp_path / "model", architectures.fresh(NET, 3)), tmp_path / "model"


def test_a_model_without_use_answers_as_it_always_did(predictor: Predictor, model: tuple[str, Path]) -> None:
    batch = images.prepare(images.decode(picture(), 10**6), SIDE)
    net = architectures.empty(NET)
    net.load_state_dict(
        {name: torch.from_numpy(np.array(a)) for name, a in architectures.fresh(NET, 3).items()}, assign=True
    )
    with torch.inference_mode():
        before = net(batch)[0].double().softmax(0).tolist()
    for attention in (False, True):
        seen = predictor.see(*model, NET, batch, attention=attention)
        assert seen.shares == pytest.approx(before, abs=1e-6)  # where tensors lie in memory decides the last bits
        assert (seen.critical, seen.oddity) == (None, None)
        assert (seen.maps is not None) is attention


def test_a_picture_is_read_as_hospitals_measured_it(
    predictor: Predictor, model: tuple[str, Path], tmp_path: Path
) -> None:
    """The service's logits, and how odd it finds a picture, are the node's."""
    (tmp_path / "picture.png").write_bytes(picture("PNG"))
    decoded = torch.from_numpy(decode(tmp_path / "picture.png", SIDE).copy())[None]
    net = architectures.empty(NET)
    net.load_state_dict(
        {name: torch.from_numpy(np.array(a)) for name, a in architectures.fresh(NET, 3).items()}, assign=True
    )
    theirs = evaluation.logits(net, Pictures(decoded, (0,), ("L",)), 1, torch.device("cpu"), flips=True)[0]
    with closing(oddity.Watch(net)) as watch, torch.inference_mode(), watch.listening() as heard:
        net(evaluation.as_input(decoded))
    batch = images.prepare(images.decode(picture("PNG"), 10**6), SIDE)
    seen = predictor.see(*model, NET, batch, use=USE)
    assert seen.shares == pytest.approx(torch.from_numpy(theirs / 1.7).softmax(0).tolist(), abs=1e-6)
    assert seen.critical == pytest.approx(float(torch.from_numpy(theirs).softmax(0)[4]), abs=1e-6)
    assert seen.oddity == pytest.approx(float(oddity.oddities(heard)[0]), abs=1e-5)
    looked = predictor.see(*model, NET, batch, use=USE, attention=True)
    assert looked.maps is not None
    assert looked.shares == pytest.approx(seen.shares, abs=1e-6)
    assert looked.oddity == pytest.approx(seen.oddity, abs=1e-6)


@pytest.mark.parametrize(("share", "above"), [(0.24999, False), (0.25, True), (1.0, True)])
def test_the_threshold_itself_is_above(share: float, above: bool) -> None:
    said = reading.critical(USE, Seen([1.0], critical=share))
    assert said is not None
    assert (said.above, said.share, said.threshold, said.sensitivity) == (above, share, 0.25, 0.88)


@pytest.mark.parametrize(("odd", "beyond"), [(-0.26, False), (-0.25, True), (3.0, True)])
def test_an_unusual_picture_is_noticed_in_words(odd: float, beyond: bool) -> None:
    said = reading.unusual(USE, Seen([1.0], oddity=odd), LESIONS)
    assert said is not None
    assert said.beyond is beyond
    assert (said.notice is not None) is beyond
    assert not beyond or "no dermoscopic picture" in (said.notice or "")
    other = reading.unusual(USE, Seen([1.0], oddity=3.0), LESIONS.model_copy(update={"name": "chests"}))
    assert other is not None
    assert "no picture as 'chests' has them" in (other.notice or "")


def test_nothing_is_said_where_nothing_was_found() -> None:
    assert reading.critical(AS_IT_IS, Seen([1.0], critical=0.9)) is None
    assert reading.unusual(AS_IT_IS, Seen([1.0], oddity=9.0), LESIONS) is None
    assert reading.unusual(USE, Seen([1.0]), LESIONS) is None  # of a network that cannot tell


def test_a_threshold_is_of_the_critical_class() -> None:
    fields = {"job": JOB, "digest": "2" * 64, "architecture": NET, "image_size": 64}
    assert ModelRegistration(**fields, use=USE).use == USE
    with pytest.raises(ValidationError, match="critical class"):
        ModelRegistration(**fields, use=USE.model_copy(update={"critical": CRITICAL.model_copy(update={"code": "nv"})}))


async def test_predictions_of_a_version_with_use(service: Any, ledger_job: Callable[..., Any]) -> None:
    digest = (await initial(service, seed=3)).json()["digest"]
    service.ledger.jobs[JOB] = ledger_job(JOB, digest, [(digest, {"0x" + "a1" * 20: None})])
    told = USE.model_dump(mode="json")
    first = await register(service, JOB, digest, use=told)
    assert first.status_code == 201
    assert first.json()["use"] == told
    # A hospital's late report gives another use; what stands, stands, and is no conflict.
    again = await register(service, JOB, digest, use={**told, "temperature": 1.1})
    assert (again.status_code, again.json()) == (201, first.json())
    assert (await service.http.get(f"/v1/models/{digest}", headers=service.alice)).json()["use"] == told
    answer = Prediction.model_validate((await predict(service, flat())).json())
    assert answer.critical is not None
    assert answer.critical.code == "mel"
    assert answer.unusual is not None
    assert answer.unusual.threshold == -0.25

    refused = await predict(service, flat(), model=digest, class_counts="1,2,3,4,5,6,7")
    assert (refused.status_code, refused.json()["code"]) == (409, "class_counts_unfit")

    plain = await publish(service, ledger_job, job="2" * 64, seed=4)
    said = (await predict(service, flat(), model=plain)).json()
    assert not {"critical", "unusual"} & said.keys()
    assert "use" not in (await service.http.get(f"/v1/models/{plain}", headers=service.alice)).json()


async def test_a_picture_is_answered_by_how_often_classes_come_where_it_is_from(
    service: Any, ledger_job: Callable[..., Any]
) -> None:
    """Bayes' rule, on the answers: each class's share times how much oftener it comes there than everywhere."""
    digest = (await initial(service, seed=3)).json()["digest"]
    service.ledger.jobs[JOB] = ledger_job(JOB, digest, [(digest, {"0x" + "a1" * 20: None})])
    everybody, own = (10, 10, 10, 10, 10, 40, 10), (0, 5, 5, 5, 5, 75, 5)
    use = {"class_counts": everybody}
    assert (await register(service, JOB, digest, use=use)).status_code == 201
    plain = Prediction.model_validate((await predict(service, flat())).json())
    asked = {"class_counts": ",".join(map(str, own))}
    there = Prediction.model_validate((await predict(service, flat(), **asked)).json())
    floored = np.maximum(own, 0.5)
    expected = np.array([each.probability for each in plain.probabilities]) * floored / floored.sum() / everybody
    assert [each.probability for each in there.probabilities] == pytest.approx(expected / expected.sum(), abs=1e-6)

    few = await predict(service, flat(), class_counts="1,2,3")
    assert (few.status_code, few.json()["code"]) == (409, "class_counts_unfit")
    for nonsense in ("1", "1,-2,3", "1,,2", "1, 2", "9" * 13 + ",1"):
        assert (await predict(service, flat(), class_counts=nonsense)).status_code == 422


def test_a_models_counts_are_of_its_classes_and_nobodys_own() -> None:
    fields = {"job": JOB, "digest": "2" * 64, "architecture": NET, "image_size": 64}
    assert ModelRegistration(**fields, use=Use(class_counts=(1,) * 7)).use is not None
    with pytest.raises(ValidationError, match="class_counts of a use"):
        ModelRegistration(**fields, use=Use(class_counts=(1,) * 6))
    with pytest.raises(ValidationError, match="no own_counts"):
        ModelRegistration(**fields, use=Use(own_counts=(1,) * 7))
