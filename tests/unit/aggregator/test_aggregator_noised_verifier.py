"""The verifier on jobs with noise at the aggregator: it takes the very key, of the very noise that hospitals signed."""

from __future__ import annotations

from pathlib import Path

import pytest
from concilia_aggregator import noising
from concilia_aggregator.folding import Recipe
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.chain import EventName
from concilia_kit.wire.metadata import NOISE
from concilia_kit.wire.privacy import Spent
from concilia_kit.wire.strategy import Strategy, StrategyName

from . import test_aggregator_verifier as jobs
from .conftest import METRICS
from .test_aggregator_verifier import Job, finished, tensors

NOISED = Strategy(name=StrategyName.DP_FEDAVG, radius=0.5, noise=1.0)


def key_of(job: Job, index: int = -1) -> str:
    """The key that a published or an earlier model names."""
    closed = [each for each in job.events if each.name is EventName.ROUND_CLOSED]
    return TensorFile.open(job.path(str(closed[index].arguments["globalDigest"]))).header.metadata[NOISE]


def test_a_job_with_noise_verifies(tmp_path: Path) -> None:
    job = finished(tmp_path, strategy=NOISED)
    verdict = job.verify()
    assert verdict.ok, verdict.findings
    assert key_of(job, 0) != key_of(job)


def test_a_key_that_is_missing_is_named(tmp_path: Path) -> None:
    job = finished(tmp_path, strategy=NOISED)
    key = key_of(job)
    job.path(key).unlink()
    found = job.verify().findings
    assert [(each.round, each.hospital) for each in found] == [(2, None)] * 2
    assert (found[0].digest, "cannot be had" in found[0].what) == (key, True)
    assert found[1].what == "it cannot be folded again: dp_fedavg needs the key of its noise"


def test_a_key_that_was_changed_is_named(tmp_path: Path) -> None:
    job = finished(tmp_path, strategy=NOISED)
    key = key_of(job)
    content = bytearray(job.path(key).read_bytes())
    content[-1] ^= 1
    job.path(key).write_bytes(content)
    found = job.verify().findings
    assert (found[0].digest, "another digest" in found[0].what) == (key, True)
    assert "needs the key of its noise" in found[1].what


@pytest.mark.parametrize("other", ["another key", "no key"])
def test_a_model_that_names_another_key_than_its_noise_is_of_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, other: str
) -> None:
    """A coordinator who would show an auditor a key that is not the one: the digest binds it."""
    shown = tmp_path / "shown"
    if other == "another key":
        noising.write_key(shown)
    else:
        shown.write_bytes(tensors(3))
    digest = Job(tmp_path).put(shown.read_bytes())
    with monkeypatch.context() as patch:
        true_of = Recipe.metadata
        patch.setattr(Recipe, "metadata", lambda made: true_of(made) | ({NOISE: digest} if made.noise else {}))
        job = finished(tmp_path, strategy=NOISED)
    found = job.verify().findings
    words = "folded again it is" if other == "another key" else "is no key of noise"
    assert {each.round for each in found if words in each.what} == {1, 2}


def test_a_key_that_two_rounds_have_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(noising.secrets, "token_bytes", bytes)
        job = finished(tmp_path, strategy=NOISED)
    (found,) = job.verify().findings
    assert (found.round, "is round 1's too" in found.what) == (2, True)


@pytest.mark.parametrize(
    ("made_by", "told", "words"),
    [
        (Strategy(), {}, "made without"),
        (NOISED, {"noise": 1.0}, "of other noise"),
        (NOISED, {"noise": 0.25, "clip": 2.0}, "cut to another length"),
        (NOISED, {}, None),
    ],
    ids=["without noise", "less noise", "another radius", "as told"],
)
def test_noise_that_hospitals_did_not_sign_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, made_by: Strategy, told: dict[str, float], words: str | None
) -> None:
    spent = Spent.model_validate(
        {"epsilon": 9.0, "delta": 1e-5, "noise": 0.5, "clip": 1.0, "rate": 1, "steps": 1, "central": True} | told
    )
    monkeypatch.setattr(jobs, "METRICS", METRICS.model_copy(update={"privacy": spent}))
    found = finished(tmp_path, strategy=made_by).verify().findings
    if words is None:
        assert found == ()
        return
    assert {(each.round, each.hospital is not None) for each in found} == {(1, True), (2, True)}
    assert all(words in each.what for each in found)
