"""A hospital around a trainer that is a double, and what such trainers have in common."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from concilia_client_node.consortium import Consortium
from concilia_client_node.presence import ProgressReporter
from concilia_client_node.service import Hospital
from concilia_client_node.store import NodeFolder
from concilia_client_node.trainer import NOTHING, Carried, Check, Counts, Extent
from concilia_kit import http
from concilia_kit.wire.auth import Audience
from concilia_kit.wire.training import Architecture, Evaluation, LocalTraining, Personal
from eth_account.signers.local import LocalAccount


class Untrained:
    """The part of a `Trainer` that says nothing: it has its pictures, keeps nothing to itself and evaluates nothing."""

    skipped_images: int = 0

    def extent(self, local: LocalTraining) -> Extent:
        return Extent(32, 32)

    def prepare(self, image_size: int, check: Check) -> None:
        check()

    def personal(self, architecture: Architecture, which: Personal) -> frozenset[str]:
        return frozenset()

    def evaluate(
        self,
        architecture: Architecture,
        model: Path,
        image_size: int,
        limits: Evaluation,
        seed: int,
        check: Check,
        carried: Carried = NOTHING,
        trunk: Path | None = None,
        calibrate: bool = False,
    ) -> tuple[Counts, int]:
        raise NotImplementedError


def services_of(consortium: Any, account: LocalAccount, stack: contextlib.ExitStack) -> Consortium:
    """The consortium's services as an account reaches them."""
    auth = stack.enter_context(http.client(consortium.url))

    def client(audience: Audience) -> Any:
        return stack.enter_context(http.client(consortium.url, http.WalletAuth(auth, account, audience)))

    return Consortium(*map(client, (Audience.MODEL, Audience.CHAIN, Audience.AGGREGATOR, Audience.AUTH)))


@contextlib.contextmanager
def hospital_of(consortium: Any, account: LocalAccount, directory: Path, trainer: Any) -> Iterator[Hospital]:
    """A hospital with a folder of its own."""
    folder = NodeFolder(directory)
    folder.open()
    with contextlib.ExitStack() as stack:
        services = services_of(consortium, account, stack)
        reporter = ProgressReporter(services.progress)
        reporter.start()
        yield Hospital(account, services, trainer, folder, reporter, threading.Event())
        reporter.close(10)
        assert not reporter.is_alive()
