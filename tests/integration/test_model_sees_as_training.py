"""What prediction feeds a model equals, bit for bit, what evaluation during training fed it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from concilia_client_node.augmentation import as_input
from concilia_client_node.pictures import decode
from concilia_model import images
from PIL import Image

pytestmark = pytest.mark.integration


@pytest.mark.parametrize(("size", "side"), [((600, 450), 224), ((600, 450), 64), ((50, 70), 96), ((33, 33), 33)])
@pytest.mark.parametrize("kind", ["jpg", "png"])
def test_the_same_input(tmp_path: Path, size: tuple[int, int], side: int, kind: str) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8)
    path = tmp_path / f"lesion.{kind}"
    Image.fromarray(noise).save(path)
    trained_on = as_input(torch.from_numpy(decode(path, side).copy()).unsqueeze(0))
    predicted_on = images.prepare(images.decode(path.read_bytes(), 10**6), side)
    assert torch.equal(predicted_on, trained_on)
