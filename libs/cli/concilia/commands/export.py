"""`concilia export`: a published model for programs that know nothing of Concilia."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer
from concilia_kit import digests
from concilia_kit.problems import Problem
from concilia_kit.tensorfile import MalformedFile, TensorFile
from concilia_kit.wire.adapter import Adapter
from concilia_kit.wire.models import NOTICE
from concilia_kit.wire.onnx import NOT_INSTALLED, OnnxExport, OnnxRequest

from concilia import output
from concilia.client import Client
from concilia.commands.options import DEFAULT_CONFIG, Config, Json, ModelArgument, client, guarded
from concilia.connection import UsageError

_PROCESS = "concilia_model.onnx_export"
_EXTRA = "exporting needs the model service's code with its extra for ONNX: pip install 'concilia-model[onnx]'"


@guarded
def export(
    onnx: Annotated[Path, typer.Option("--onnx", help="the ONNX file to write; a file that is there is replaced")],
    model: ModelArgument = "latest",
    config: Config = DEFAULT_CONFIG,
    as_json: Json = False,
) -> None:
    """Write a published model as an ONNX file that takes pictures and gives probabilities.

    The file is kept only where its probabilities are torch's. What it takes and gives stands in its metadata.
    """
    if not onnx.absolute().parent.is_dir():
        raise UsageError(f"{onnx.parent} is no folder")
    if find_spec(_PROCESS.partition(".")[0]) is None:
        raise UsageError(_EXTRA)
    to = client(config)
    version = to.find_model(model)
    with tempfile.TemporaryDirectory(prefix="concilia-export-") as scratch:
        with output.spinner(f"fetching model {version.digest[:12]}…"):
            artifact, trunk = fetched(to, version.digest, Path(scratch))
        asked = OnnxRequest(
            artifact=artifact,
            trunk=trunk,
            target=onnx.absolute(),
            digest=version.digest,
            job=version.job,
            architecture=version.architecture,
            image_size=version.image_size,
            classification=version.classification,
            use=version.use,
            notice=NOTICE,
        )
        with output.spinner("exporting, and comparing with torch"):
            made = exported(asked)
    if as_json:
        output.as_json(made)
        return
    output.out.print(f"{onnx}: {made.bytes / 1e6:.1f} MB, sha256 {made.digest}", markup=False, soft_wrap=True)
    output.out.print(
        f"probabilities of {len(made.classes)} classes differ from torch's by {made.largest_difference:.1e} at most, "
        f"on {made.pictures} pictures of {made.image_size} × {made.image_size}",
        markup=False,
    )
    output.out.print(NOTICE, markup=False)


def fetched(to: Client, digest: str, folder: Path) -> tuple[Path, Path | None]:
    """A model's file, and its trunk's where it is an adapter, in a folder; their digests are checked. Raises
    `Problem`."""
    artifact = _downloaded(to, digest, folder)
    try:
        said = Adapter.of(TensorFile.open(artifact).header.metadata)
    except (MalformedFile, ValueError) as error:
        raise Problem(f"the model's file cannot be read: {error}", code="export_failed") from error
    return artifact, None if said is None else _downloaded(to, said.trunk, folder)


def _downloaded(to: Client, digest: str, folder: Path) -> Path:
    target = folder / digest
    to.download(digest, target)
    found = digests.of_file(target)
    if found != digest:
        raise Problem(f"the bytes that came hash to {found}, not to {digest}", status=502, code="digest_mismatch")
    return target


def exported(asked: OnnxRequest) -> OnnxExport:
    """Export in a process of its own, which has torch. Raises `UsageError` where the extra is not installed, `Problem`
    where the model cannot be exported."""
    done = subprocess.run(  # noqa: S603 - this very program, no shell
        [sys.executable, "-m", _PROCESS], input=asked.model_dump_json().encode(), capture_output=True, check=False
    )
    said = done.stderr.decode(errors="replace").strip()
    if done.returncode == NOT_INSTALLED:
        raise UsageError(f"{_EXTRA} ({said})")
    if done.returncode:
        last = said.splitlines()[-1] if said else f"exit status {done.returncode}"
        raise Problem(f"the model was not exported: {last}", code="export_failed")
    return OnnxExport.model_validate_json(done.stdout)
