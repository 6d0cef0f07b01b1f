"""A secure round of one hospital whose node is tested and of others that are doubles."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from concilia_client_node.service import Hospital
from concilia_client_node.trainer import NOTHING, Carried, Check, Extent, Outcome, Tensors
from concilia_kit import tensorfile
from concilia_kit.signing import Domain
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.chain import UpdateSubmission
from concilia_kit.wire.masking import SecureAggregation, Stage
from concilia_kit.wire.progress import Progress
from concilia_kit.wire.training import Architecture, LocalTraining, TrainTask
from eth_account import Account
from eth_account.signers.local import LocalAccount

from tests.unit.client_node.hospitals import Untrained, hospital_of
from tests.unit.client_node.room_double import STEP, Peer, Room

JOB = "5e" * 32
FAR = 2**40
ACCOUNT: LocalAccount = Account.from_key("0x" + 63 * "0" + "9")
DOMAIN = Domain(chain_id=1337, contract="0x" + 39 * "0" + "7")
OWN_STEP = np.float32(-0.5)
IMAGES = 32
Arrays = dict[str, npt.NDArray[Any]]


@dataclass
class Adding(Untrained):
    """A trainer that adds a number to each number of its base; each training another one, if it is to."""

    differs: bool = False
    trained: int = 0
    images: int = IMAGES

    def extent(self, local: LocalTraining) -> Extent:
        return Extent(IMAGES, IMAGES // 2)

    def train(
        self,
        architecture: Architecture,
        base: Path,
        local: LocalTraining,
        seed: int,
        progress: Callable[[float], None],
        check: Check,
        carried: Carried = NOTHING,
        trunk: Path | None = None,
    ) -> tuple[Outcome, Tensors]:
        self.trained += 1
        step = OWN_STEP * (self.trained if self.differs else 1)
        file = TensorFile.open(base)
        made = {name: (file.tensor(name) + step).astype(file.tensor(name).dtype) for name in file}
        return Outcome(0.5, 0.75, self.images, IMAGES // 2), made


@dataclass
class Round:
    """One secure round. `hospital()` is the node's process, started (anew) on the node's disk."""

    consortium: Any
    folder: Path
    task: TrainTask
    room: Room
    base: Arrays
    stack: contextlib.ExitStack
    trainer: Adding = field(default_factory=Adding)

    def hospital(self) -> Hospital:
        made = hospital_of(self.consortium, ACCOUNT, self.folder / "node", self.trainer)
        hospital: Hospital = self.stack.enter_context(made)
        return hospital

    def ended(self, hospital: Hospital) -> Progress:
        assert hospital.reporter.flush(10)
        last: Progress = self.consortium.progress[-1]
        return last

    def masked(self) -> UpdateSubmission:
        """The hospital's own submission."""
        mine = [UpdateSubmission.model_validate_json(each) for each in self.consortium.submissions]
        return next(each for each in mine if each.update.hospital == ACCOUNT.address)

    def expected(self, peers: Collection[Peer]) -> Arrays:
        """The mean of own and others' updates by hand."""
        weights = {None: IMAGES, **{each.address: each.samples for each in peers}}
        total = sum(weights.values())
        step = (IMAGES * float(OWN_STEP) + sum(each.samples for each in peers) * float(STEP)) / total
        return {name: tensor + step for name, tensor in self.base.items() if np.issubdtype(tensor.dtype, np.floating)}

    def see_mean(self, peers: Collection[Peer]) -> None:
        found, expected = self.room.mean(), self.expected(peers)
        assert found.keys() == expected.keys()
        for name, tensor in expected.items():
            np.testing.assert_allclose(found[name], tensor, atol=1e-6)


def tensors() -> Arrays:
    rng = np.random.default_rng(2)
    return {
        "w": rng.normal(size=(6, 20)).astype(np.float32),
        "b": rng.normal(size=5).astype(np.float32),
        "n": np.array(3),
    }


@contextlib.contextmanager
def secure_round(
    consortium: Any,
    folder: Path,
    gone: Mapping[int, Collection[Stage]] | None = None,
    peers: int = 3,
    secure: SecureAggregation | None = None,
    **changes: Any,
) -> Iterator[Round]:
    """The round, open. `gone`: which of the others are not there, by their numbers from one, and from which stage."""
    folder.mkdir(exist_ok=True)
    base = tensors()
    tensorfile.write(folder / "model", base)
    digest = consortium.keep((folder / "model").read_bytes())
    consortium.open_round(JOB, 1, digest)
    task = TrainTask(
        job=JOB,
        round=1,
        architecture=Architecture.MOBILENET_V2,
        base=digest,
        seed=4,
        deadline=FAR,
        local=LocalTraining(batch_size=8, image_size=32),
        secure=secure or SecureAggregation(stage_seconds=5),
    ).model_copy(update=changes)
    others = [Peer(number, DOMAIN, (gone or {}).get(number, ())) for number in range(1, peers + 1)]
    room = Room(consortium, task, ACCOUNT.address, others, DOMAIN, folder)
    consortium.rooms[JOB, 1] = room
    consortium.holders = frozenset({ACCOUNT.address, *(each.address for each in others)})
    with contextlib.ExitStack() as stack:
        yield Round(consortium, folder, task, room, base, stack)


def listed(round_: Round, number: int = 1) -> list[dict[str, Any]]:
    path = round_.folder / "node" / "updates" / JOB / str(number) / "leaving.json"
    items: list[dict[str, Any]] = json.loads(path.read_bytes())["items"]
    return items
