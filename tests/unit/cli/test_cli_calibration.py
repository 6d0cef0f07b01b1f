"""What a calibration found, and what a model's thresholds say of a picture, as a person reads it."""

from __future__ import annotations

import io

import pytest
from concilia import output
from concilia.commands.models import print_prediction
from concilia_kit.wire.calibration import Calibrated, CriticalUse, Reliability, UnusualUse, Use
from concilia_kit.wire.jobs import JobView, RoundView
from concilia_kit.wire.models import ClassProbability, Critical, Prediction, Unusual
from rich.console import Console

BINS = Reliability(images=(0,) * 14 + (3,), correct=(0,) * 15, confidence=(0,) * 14 + (2.9,))
USE = Use(
    images=240,
    temperature=1.53,
    error_before=0.121,
    error_after=0.0304,
    loss_before=1.2,
    loss_after=1.1,
    critical=CriticalUse(
        code="mel", threshold=0.25, wanted=0.9, sensitivity=0.88, specificity=None, positives=50, negatives=0
    ),
    unusual=UnusualUse(threshold=0.2, share=0.0125),
)


def said(job: JobView) -> list[str]:
    out = io.StringIO()
    output.calibration(job, console=Console(file=out, width=200))
    return [line.rstrip() for line in out.getvalue().splitlines()]


def job(*uses: Use | None) -> JobView:
    found = [None if use is None else Calibrated(use=use, before=BINS, after=BINS) for use in uses]
    rounds = [RoundView.model_construct(round=at, calibrated=each) for at, each in enumerate(found)]
    return JobView.model_construct(rounds=tuple(rounds))


def test_the_last_calibration_is_told() -> None:
    assert said(job(None, Use(images=1, temperature=9), USE)) == [
        "calibrated in round 2 on 240 held-out images: temperature 1.530, expected calibration error 0.121 → 0.030, "
        "loss 1.200 → 1.100",
        "mel is told from 0.250 on: sensitivity 0.880 of 50 images, specificity – of 0",
        "unusual is told of 1.2% of held-out images",
    ]
    assert said(job(None, None)) == []
    assert len(said(job(USE.model_copy(update={"critical": None, "unusual": None})))) == 1


@pytest.mark.parametrize("above", [True, False])
def test_a_prediction_says_what_thresholds_say(above: bool) -> None:
    prediction = Prediction(
        model="ab" * 32,
        job="cd" * 32,
        probabilities=tuple(ClassProbability(code=code, name=code, probability=0.5) for code in ("mel", "nv")),
        milliseconds=1,
        critical=Critical(code="mel", share=0.5, threshold=0.25, above=above, sensitivity=0.9, specificity=0.7),
        unusual=Unusual(oddity=1, threshold=0.2, beyond=above, notice="This may be none." if above else None),
    )
    out = io.StringIO()
    print_prediction(prediction, console=Console(file=out, width=200))
    text = out.getvalue()
    assert f"mel is {'above' if above else 'below'} the threshold for a warning (0.5000, threshold 0.2500)" in text
    assert ("This may be none." in text) is above
    plain = prediction.model_copy(update={"critical": None, "unusual": None})
    out.truncate(0)
    print_prediction(plain, console=Console(file=out, width=200))
    assert "threshold" not in out.getvalue()
