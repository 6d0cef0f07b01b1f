"""Which masked updates are added up: by what their hospitals signed, and by their files' shape alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from concilia_aggregator.folder import Folder
from concilia_aggregator.masking.screening import Sharers
from concilia_aggregator.screening import Limits
from concilia_kit.masking import METADATA
from concilia_kit.wire.chain import Reason, RoundOpening
from concilia_kit.wire.masking import Masked

from .conftest import METRICS, FolderArtifacts, MemoryLedger, address, model

JOB, ROSTER = "a" * 64, "7" * 64
LIMITS = Limits(max_samples=1000, max_norm_ratio=10)
SIGNED = Masked(roster=ROSTER, clipped=0, norm=2.0)


def words(**changes: Any) -> dict[str, Any]:
    """A masked update: noise, in the shapes of the base's floating tensors."""
    rng = np.random.default_rng(1)
    made = {
        name: rng.integers(-(2**31), 2**31, tensor.shape, np.int32)
        for name, tensor in model(0).items()
        if tensor.dtype == np.float32
    }
    return {name: tensor for name, tensor in {**made, **changes}.items() if tensor is not None}


class Round:
    """A round that takes masked updates of one hospital."""

    def __init__(self, tmp_path: Path, ledger: MemoryLedger, artifacts: FolderArtifacts) -> None:
        self.ledger, self.artifacts = ledger, artifacts
        base = artifacts.add(model(0))
        ledger.open(RoundOpening(job=JOB, round=1, base=base, deadline=2**40, quorum=1))
        self.folder = Folder(artifacts, ledger, tmp_path / "work", LIMITS)
        self.sharers = Sharers(ROSTER, {address(1): 20})

    def judge(
        self,
        digest: str,
        masked: Masked | None = SIGNED,
        hospital: int = 1,
        samples: int = 20,
        sharers: Sharers | None = None,
    ) -> Reason | None:
        metrics = METRICS.model_copy(update={"masked": masked})
        self.ledger.submit(JOB, 1, address(hospital), digest, samples, metrics)
        recorded = self.ledger.rounds[JOB, 1]
        (told,) = self.folder.screen(recorded, {}, sharers=sharers or self.sharers).updates
        (logged,) = self.ledger.rounds[JOB, 1].updates
        assert told.reason == logged.reason
        return told.reason


@pytest.fixture
def round_(tmp_path: Path, ledger: MemoryLedger, artifacts: FolderArtifacts) -> Round:
    return Round(tmp_path, ledger, artifacts)


def test_noise_of_the_right_shape_is_taken_whatever_it_says(round_: Round) -> None:
    assert round_.judge(round_.artifacts.add(words(), {METADATA: ROSTER})) is None


@pytest.mark.parametrize(
    ("tensors", "metadata"),
    [
        (words(), {METADATA: "8" * 64}),
        (words(), None),
        (model(1), {METADATA: ROSTER}),
        (words(**{"norm.num_batches_tracked": np.array(3, np.int64)}), {METADATA: ROSTER}),
        (words(**{"layer.bias": None}), {METADATA: ROSTER}),
        (words(**{"layer.bias": np.zeros(8, np.int32)}), {METADATA: ROSTER}),
        (words(**{"layer.bias": np.zeros(7, np.int64)}), {METADATA: ROSTER}),
    ],
    ids=["another roster", "no roster", "not masked", "a counter too", "a tensor less", "shape", "dtype"],
)
def test_a_file_that_cannot_be_added_up_is_left_out(
    round_: Round, tensors: dict[str, Any], metadata: dict[str, str] | None
) -> None:
    assert round_.judge(round_.artifacts.add(tensors, metadata)) is Reason.MALFORMED_FILE


@pytest.mark.parametrize("masked", [None, Masked(roster="8" * 64, clipped=0)])
def test_a_hospital_that_signed_no_such_roster_is_left_out(round_: Round, masked: Masked | None) -> None:
    assert round_.judge(round_.artifacts.add(words(), {METADATA: ROSTER}), masked) is Reason.MALFORMED_FILE


def test_a_hospital_that_handed_out_no_shares_is_left_out(round_: Round) -> None:
    assert round_.judge(round_.artifacts.add(words(), {METADATA: ROSTER}), hospital=2) is Reason.MALFORMED_FILE


@pytest.mark.parametrize(("samples", "reason"), [(0, Reason.SAMPLE_COUNT), (21, Reason.SAMPLE_COUNT), (20, None)])
def test_an_update_weighs_what_its_keys_said_at_most(round_: Round, samples: int, reason: Reason | None) -> None:
    assert round_.judge(round_.artifacts.add(words(), {METADATA: ROSTER}), samples=samples) is reason


@pytest.mark.parametrize(
    ("norm", "attested", "reason"),
    [
        (None, None, None),
        (2.0, 2.0, None),
        (2.0, None, Reason.NORM_TOO_LARGE),
        (1.0, 2.0, Reason.NORM_TOO_LARGE),
    ],
)
def test_where_changes_are_bounded_hospitals_attest_it(
    round_: Round, norm: float | None, attested: float | None, reason: Reason | None
) -> None:
    digest = round_.artifacts.add(words(), {METADATA: ROSTER})
    sharers = Sharers(ROSTER, {address(1): 20}, norm)
    assert round_.judge(digest, Masked(roster=ROSTER, clipped=0, norm=attested), sharers=sharers) is reason


def test_other_bytes_than_were_signed_are_left_out(round_: Round) -> None:
    digest = round_.artifacts.add(words(), {METADATA: ROSTER})
    round_.artifacts.add(words(), {METADATA: ROSTER})
    path = round_.artifacts.fetch(digest)
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    round_.folder._is_lost = lambda *_: False  # type: ignore[method-assign] # the store always had these
    assert round_.judge(digest) is Reason.DIGEST_MISMATCH


def test_a_file_that_is_not_there_is_left_out(round_: Round) -> None:
    assert round_.judge("1" * 64) is Reason.ARTIFACT_MISSING
