"""The process that holds torch, as the service sees it: started when it is needed, ended when it is idle.

A service that stores and serves files needs a tenth of the memory that torch takes at import, and most of its life it
does nothing else. The calls are those of `networks.Networks`; a process that dies is started again, and what it was
asked is asked once more.
"""

from __future__ import annotations

import importlib.util
import itertools
import socket
import subprocess
import sys
import threading
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from concilia_kit import logs
from concilia_kit.classification import LESIONS, Classification
from concilia_kit.lesions import CLASSES
from concilia_kit.problems import Problem
from concilia_kit.wire.calibration import AS_IT_IS, Use
from concilia_kit.wire.training import ArchitectureName

from concilia_model import frames
from concilia_model.errors import NetworksUnavailable, of_code

_LAST_WORDS = 5.0  # seconds a process has to end after it was told to
_log = logs.get(__name__)

Grids = list[list[list[float]]]


class _Ended(Exception):
    """The process ended before it answered."""


@dataclass(frozen=True, slots=True)
class InitialWeights:
    """A file of initial weights: its digest and size, how many tensors were loaded and made, and from where."""

    digest: str
    size: int
    loaded: int
    fresh: int
    origin: str


@dataclass(frozen=True, slots=True)
class Seen:
    """What a network said of a picture: a share a class, which sum to one, and a map a class where they were asked for.

    Where its use names a critical class, that class's share before any temperature; where a threshold, how odd it found
    the picture.
    """

    shares: list[float]
    maps: Grids | None = None
    critical: float | None = None
    oddity: float | None = None


class NetworkProcess:
    """The calls, each answered by the process. Thread-safe; constructing it starts nothing.

    Every call raises `NetworksUnavailable` where the process cannot be had, and what the call itself raises there.
    """

    def __init__(
        self,
        *,
        threads: int,
        models_in_memory: int,
        max_pixels: int,
        at_once: int,
        idle_seconds: float,
        sealing: tuple[str, str] = ("", ""),
    ) -> None:
        """`threads` of one prediction, `at_once` calls at one time; after `idle_seconds` without one it ends. `sealing`
        names the store's key files, as `Keyring.read` takes them."""
        self._options: dict[str, int | str] = {
            "threads": threads,
            "models": models_in_memory,
            "pixels": max_pixels,
            "at-once": at_once,
            "sealing-key-file": sealing[0],
            "sealing-keys-before": sealing[1],
        }
        self._idle_seconds = idle_seconds
        self._lock = threading.Lock()
        self._worker: _Worker | None = None
        self._idle: threading.Timer | None = None
        self._at_work = 0
        self._broken = ""

    def predict(
        self,
        digest: str,
        path: Path,
        architecture: ArchitectureName,
        side: int,
        picture: bytes,
        *,
        attention: bool,
        trunk: Path | None = None,
        classification: Classification = LESIONS,
        use: Use = AS_IT_IS,
    ) -> Seen:
        """See `Networks.predict`."""
        given = {
            "digest": digest,
            "path": str(path),
            "trunk": _text(trunk),
            "side": side,
            "attention": attention,
            "classification": classification.model_dump(mode="json"),
            "use": use.model_dump(mode="json"),
        }
        return Seen(**self._call("predict", architecture, given, picture))

    def make_initial(
        self,
        architecture: ArchitectureName,
        seed: int,
        target: Path,
        *,
        offered: Path | None = None,
        trunk: Path | None = None,
        named: str | None = None,
        release: str | None = None,
        classes: int = len(CLASSES),
    ) -> InitialWeights:
        """See `Networks.make_initial`."""
        given = {
            "seed": seed,
            "target": str(target),
            "offered": _text(offered),
            "trunk": _text(trunk),
            "named": named,
            "release": release,
            "classes": classes,
        }
        return InitialWeights(**self._call("make_initial", architecture, given))

    def make_adapter(
        self,
        architecture: ArchitectureName,
        seed: int,
        target: Path,
        *,
        trunk: Path,
        digest: str,
        kind: str,
        classes: int = len(CLASSES),
    ) -> InitialWeights:
        """See `Networks.make_adapter`."""
        given = {
            "seed": seed,
            "target": str(target),
            "trunk": str(trunk),
            "digest": digest,
            "kind": kind,
            "classes": classes,
        }
        return InitialWeights(**self._call("make_adapter", architecture, given))

    def check(
        self, architecture: ArchitectureName, path: Path, trunk: Path | None = None, classes: int = len(CLASSES)
    ) -> None:
        """See `Networks.check`."""
        self._call("check", architecture, {"path": str(path), "trunk": _text(trunk), "classes": classes})

    def release(self, architecture: ArchitectureName) -> str:
        """See `Networks.release`."""
        return str(self._call("release", architecture, {}))

    def ready(self) -> None:
        """Raise `NetworksUnavailable` where a call would: torch is not there, or the last process could not begin."""
        broken = self._broken or ("" if importlib.util.find_spec("torch") else "torch is not installed")
        if broken:
            raise NetworksUnavailable(broken)

    def close(self) -> None:
        """End the process."""
        with self._lock:
            worker, self._worker = self._worker, None
            if self._idle is not None:
                self._idle.cancel()
        if worker is not None:
            worker.close()

    @property
    def pid(self) -> int | None:
        """The process, while there is one."""
        worker = self._worker
        return None if worker is None else worker.pid

    def _call(self, call: str, architecture: ArchitectureName, given: dict[str, Any], content: bytes = b"") -> Any:
        asked = {"call": call, "given": {"architecture": str(architecture), **given}}
        with self._lock:
            self._at_work += 1
        try:
            for _ in range(2):
                try:
                    answer = self._take().ask(asked, content).result()
                except _Ended:
                    _log.warning("the process of networks ended", call=call)
                    continue
                return _result(answer)
        finally:
            self._rest()
        raise NetworksUnavailable("the process of networks ended twice at the same call")

    def _take(self) -> _Worker:
        with self._lock:
            if self._worker is None or self._worker.ended:
                if self._worker is not None and not self._worker.began:
                    self._broken = "the process of networks ended before its first answer; see the log"
                self._worker = _Worker(self._options)
            return self._worker

    def _rest(self) -> None:
        with self._lock:
            self._at_work -= 1
            if self._worker is not None and self._worker.began:
                self._broken = ""
            if self._idle is not None:
                self._idle.cancel()
            self._idle = threading.Timer(self._idle_seconds, self._end_if_idle)
            self._idle.daemon = True
            self._idle.start()

    def _end_if_idle(self) -> None:
        with self._lock:
            if self._at_work or self._worker is None:
                return
            worker, self._worker = self._worker, None
        worker.close()


class _Worker:
    """One process and the thread that reads what it says."""

    def __init__(self, options: dict[str, int | str]) -> None:
        self._line, theirs = socket.socketpair()
        with theirs:
            words = [f"--{name}={value}" for name, value in options.items()]
            self._process = subprocess.Popen(  # noqa: S603 - this very program
                [sys.executable, "-m", "concilia_model.network_worker", "--descriptor", str(theirs.fileno()), *words],
                pass_fds=(theirs.fileno(),),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
            )
        self.pid = self._process.pid
        self.began = False
        self.ended = False
        self._lock = threading.Lock()
        self._sending = threading.Lock()
        self._ids = itertools.count()
        self._asked: dict[int, Future[dict[str, Any]]] = {}
        threading.Thread(target=self._listen, name="networks", daemon=True).start()

    def ask(self, asked: dict[str, Any], content: bytes) -> Future[dict[str, Any]]:
        """What will be answered. Raises `_Ended`, here or there."""
        answer: Future[dict[str, Any]] = Future()
        with self._lock:
            if self.ended:
                raise _Ended
            number = next(self._ids)
            self._asked[number] = answer
        try:
            with self._sending:
                frames.send(self._line, {"id": number, **asked}, content)
        except OSError as error:
            with self._lock:
                self.ended = True  # who listens to it will see so in a moment; the next call must not come here again
                self._asked.pop(number, None)
            raise _Ended from error
        return answer

    def close(self) -> None:
        """End the process; what it was asked and did not answer is not answered."""
        try:
            self._line.shutdown(socket.SHUT_RDWR)
        except OSError:
            return  # it ended by itself
        try:
            self._process.wait(_LAST_WORDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _listen(self) -> None:
        try:
            while True:
                said, _ = frames.receive(self._line)
                self.began = True
                with self._lock:
                    answer = self._asked.pop(said["id"])
                answer.set_result(said)
        except (frames.FrameError, OSError, KeyError):
            pass
        with self._lock:
            self.ended = True
            left, self._asked = self._asked, {}
        self._process.kill()  # one that says what it was not asked for has to go as well
        self._process.wait()
        self._line.close()
        for answer in left.values():
            answer.set_exception(_Ended())


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)


def _result(answer: dict[str, Any]) -> Any:
    if "problem" in answer:
        document = answer["problem"]
        raise of_code(Problem.from_document(document, int(document["status"])))
    if "error" in answer:
        raise RuntimeError(f"the process of networks: {answer['error']}")
    return answer["result"]
