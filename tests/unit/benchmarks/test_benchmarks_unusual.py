"""Pictures of other kinds are what they are called, and scores are compared as they should be."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks import foreign, unusual
from benchmarks.unusual import Seen

SIDE = 48
LESIONS = np.random.default_rng(0).integers(0, 256, (5, 3, SIDE, SIDE), np.uint8)


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, foreign.Picture]:
    folder: Path = tmp_path_factory.mktemp("photographs")
    Image.new("RGB", (300, 200), "green").save(folder / "green.jpg")
    return foreign.kinds(LESIONS, 6, 3, folder)


def test_every_kind_has_as_many_pictures_of_the_same_shape(kinds: dict[str, foreign.Picture]) -> None:
    assert len(kinds) == 11
    for name, pictures in kinds.items():
        assert (pictures.shape, pictures.dtype) == ((6, 3, SIDE, SIDE), np.uint8), name
    again = foreign.kinds(LESIONS, 6, 3)
    assert all(np.array_equal(again[name], kinds[name]) for name in ("noise", "text", "one colour"))


def test_kinds_are_what_they_are_called(kinds: dict[str, foreign.Picture]) -> None:
    assert np.ptp(kinds["one colour"], axis=(2, 3)).max() == 0
    assert np.array_equal(kinds["grey lesions"][:, 0], kinds["grey lesions"][:, 2])
    negative = {(255 - picture).tobytes() for picture in kinds["lesions in negative"]}
    assert negative <= {picture.tobytes() for picture in LESIONS}
    for picture in kinds["scrambled lesions"]:
        histogram = np.sort(picture.reshape(3, -1))
        assert any(np.array_equal(histogram, np.sort(each.reshape(3, -1))) for each in LESIONS)
        assert not any(np.array_equal(picture, each) for each in LESIONS)
    assert kinds["photographs"][:, 1].min() > 100


def test_the_area_is_the_share_of_pairs_in_their_order() -> None:
    rng = np.random.default_rng(1)
    usual, odd = rng.normal(0, 1, 40), rng.normal(1, 1, 30)
    pairs = np.mean([[one < other for other in odd] for one in usual])
    assert unusual.area(usual, odd) == pytest.approx(pairs)


def test_what_is_caught_is_beyond_what_one_in_a_hundred_is() -> None:
    def seen(values: list[float]) -> Seen:
        return Seen(np.zeros((len(values), 2)), np.zeros((len(values), 2)), np.array(values))

    usual, odd = seen([float(value) for value in range(1000)]), seen([985.0, 995.0, 5000.0, -1.0])
    found = unusual.compare({"oddity": lambda each: each.oddity}, usual, {"other": odd})["oddity"]["other"]
    assert found["caught"] == 0.5
    assert "| other | 75 / 50 |" in unusual.table({"oddity": {"other": found}})
