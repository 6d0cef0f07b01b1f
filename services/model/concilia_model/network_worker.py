"""`python -m concilia_model.network_worker`: the process that holds torch, started and spoken to by `network_process`.

It serves one socket, which it inherits, until the other side closes it; several calls at one time, each in a thread.
"""

from __future__ import annotations

import argparse
import signal
import socket
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from concilia_kit.classification import Classification
from concilia_kit.problems import Problem
from concilia_kit.sealing import Keyring
from concilia_kit.wire.calibration import Use
from concilia_kit.wire.training import architecture_of

from concilia_model import frames
from concilia_model.networks import Networks


class Calls:
    """The calls by name, from documents and back to documents."""

    def __init__(self, networks: Networks) -> None:
        self._networks = networks

    def answer(self, asked: dict[str, Any], content: bytes) -> dict[str, Any]:
        """What is sent back; a `Problem` as its document, anything else unexpected by its name alone."""
        try:
            return {"id": asked["id"], "result": self._result(asked["call"], asked["given"], content)}
        except Problem as problem:
            return {"id": asked["id"], "problem": problem.document()}
        except Exception as error:
            sys.excepthook(type(error), error, error.__traceback__)
            return {"id": asked["id"], "error": type(error).__name__}

    def _result(self, call: str, given: dict[str, Any], content: bytes) -> Any:
        architecture = architecture_of(given["architecture"])
        match call:
            case "predict":
                seen = self._networks.predict(
                    given["digest"],
                    Path(given["path"]),
                    architecture,
                    given["side"],
                    content,
                    attention=given["attention"],
                    trunk=_path(given["trunk"]),
                    classification=Classification.model_validate(given["classification"]),
                    use=Use.model_validate(given["use"]),
                )
                return asdict(seen)
            case "make_initial":
                made = self._networks.make_initial(
                    architecture,
                    given["seed"],
                    Path(given["target"]),
                    offered=_path(given["offered"]),
                    trunk=_path(given["trunk"]),
                    named=given["named"],
                    release=given["release"],
                    classes=given["classes"],
                )
                return asdict(made)
            case "make_adapter":
                made = self._networks.make_adapter(
                    architecture,
                    given["seed"],
                    Path(given["target"]),
                    trunk=Path(given["trunk"]),
                    digest=given["digest"],
                    kind=given["kind"],
                    classes=given["classes"],
                )
                return asdict(made)
            case "check":
                return self._networks.check(architecture, Path(given["path"]), _path(given["trunk"]), given["classes"])
            case "release":
                return self._networks.release(architecture)
        raise LookupError(call)


def _path(text: str | None) -> Path | None:
    return None if text is None else Path(text)


def serve(line: socket.socket, calls: Calls, at_once: int) -> None:
    """Answer until the other side closes the line."""
    sending = threading.Lock()

    def answer(asked: dict[str, Any], content: bytes) -> None:
        said = calls.answer(asked, content)
        with sending:
            frames.send(line, said)

    with ThreadPoolExecutor(at_once) as pool:
        try:
            while True:
                pool.submit(answer, *frames.receive(line))
        except (frames.FrameError, OSError):
            pool.shutdown(wait=False, cancel_futures=True)


def main() -> None:
    """Serve the socket whose descriptor is given."""
    parser = argparse.ArgumentParser()
    for name in ("descriptor", "threads", "models", "pixels", "at-once"):
        parser.add_argument(f"--{name}", type=int, required=True)
    for name in ("sealing-key-file", "sealing-keys-before"):
        parser.add_argument(f"--{name}", required=True)
    given = parser.parse_args()
    # Ctrl-C goes to the whole group: the service decides when this ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with socket.socket(fileno=given.descriptor) as line:
        keys = Keyring.read(given.sealing_key_file, given.sealing_keys_before)
        serve(line, Calls(Networks(given.threads, given.models, given.pixels, keys)), given.at_once)


if __name__ == "__main__":
    main()
