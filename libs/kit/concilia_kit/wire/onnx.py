"""A model as an ONNX file: what the process that makes it is given, and what it answers."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from concilia_kit.classification import Classification
from concilia_kit.digests import Digest, JobId
from concilia_kit.wire.base import Wire
from concilia_kit.wire.calibration import Use
from concilia_kit.wire.training import ArchitectureName

NOT_INSTALLED = 3
"""Exit status where the extra's libraries are not there."""


class OnnxRequest(Wire):
    """Make `target` of the safetensors file at `artifact`, an adapter's with its trunk's at `trunk`. Both must have the
    digests that are said of them; `digest` names the model."""

    artifact: Path
    trunk: Path | None
    target: Path
    digest: Digest
    job: JobId
    architecture: ArchitectureName
    image_size: int = Field(ge=32, le=1024)
    classification: Classification
    use: Use | None = None
    notice: str


class OnnxExport(Wire):
    """What was made: the file's own digest, and how far its probabilities are from torch's, at most, over `pictures`
    inputs."""

    model: Digest
    file: Path
    digest: Digest
    bytes: int
    opset: int
    classes: tuple[str, ...]
    image_size: int
    pictures: int
    largest_difference: float
