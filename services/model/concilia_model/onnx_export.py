"""`python -m concilia_model.onnx_export`: a stored model as an ONNX file, in a process of its own.

It reads an `OnnxRequest` from standard input and prints an `OnnxExport`. ONNX's libraries come with the extra
`concilia-model[onnx]`; the service has no need of them, and imports none of this.
"""

from __future__ import annotations

import contextlib
import sys
from importlib.util import find_spec
from typing import NoReturn

from concilia_kit.problems import Problem
from concilia_kit.wire.onnx import NOT_INSTALLED, OnnxRequest
from pydantic import ValidationError

LIBRARIES = ("onnx", "onnxruntime", "onnxscript")


def main() -> None:
    """Make one file. Ends with status 1 and one line where that cannot be, 2 where the request is none, 3 where ONNX's
    libraries are missing."""
    missing = [name for name in LIBRARIES if find_spec(name) is None]
    if missing:
        _give_up(NOT_INSTALLED, f"{', '.join(missing)} not installed: pip install 'concilia-model[onnx]'")
    try:
        request = OnnxRequest.model_validate_json(sys.stdin.buffer.read())
    except ValidationError as error:
        _give_up(2, f"no request: {error.errors()[0]['msg']}")
    from concilia_model import onnx_graph  # and with it the extra's libraries

    try:
        with contextlib.redirect_stdout(sys.stderr):  # exporters like to talk
            made = onnx_graph.export(request)
    except Problem as problem:
        _give_up(1, problem.detail)
    except (onnx_graph.ExportError, OSError) as error:
        _give_up(1, str(error))
    sys.stdout.write(made.model_dump_json() + "\n")


def _give_up(status: int, why: str) -> NoReturn:
    sys.stderr.write(f"{' '.join(why.split())}\n")
    raise SystemExit(status)


if __name__ == "__main__":
    main()
