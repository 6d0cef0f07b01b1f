"""What a hospital carries from one round of a job into the next: the rest of an encoding, tensors of its own, and
SCAFFOLD's control variate.

Each round reads what an earlier one left and writes its own. What told others something (a rest, a control variate)
counts only where the ledger says that its update did: else the consortium would go on from what it never saw.

Sources: Karimireddy et al., "SCAFFOLD" (2020), algorithm 1, option II; Li et al., "FedBN" (2021); Arivazhagan et al.,
"Federated Learning with Personalization Layers" (2019).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from concilia_kit import tensorfile
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.chain import LedgerRound, RoundStatus
from concilia_kit.wire.metadata import STATE, state_name
from concilia_kit.wire.training import Personal, TrainTask

from concilia_client_node.errors import WeightsError
from concilia_client_node.store import Kind, NodeFolder
from concilia_client_node.trainer import Carried, Tensors

Control = npt.NDArray[np.float32]
CONTROL = "c"
"""What SCAFFOLD's server remembers of each tensor."""


@dataclass(frozen=True)
class Luggage:
    """Of one hospital. `round_of` tells what the ledger has of a round of a job, and raises `Problem`."""

    folder: NodeFolder
    hospital: str
    round_of: Callable[[str, int], LedgerRound]

    def rest(self, job: str, number: int) -> TensorFile | None:
        """What the last update that counted left out, which this round's adds.

        An update that did not count told nobody anything: what it left out belongs to a training that is lost, and what
        the one before it left out is still to be told. Raises `Problem` where the ledger does not answer.
        """
        return self._counting(Kind.LEFT, job, number)

    def personal(self, job: str, number: int) -> Tensors:
        """Tensors of the hospital's own as its last training left them, whether it counted or not."""
        for earlier in self.folder.earlier(Kind.PERSONAL, job, number):
            if (found := self.folder.open_beside(Kind.PERSONAL, job, earlier)) is not None:
                return {name: found.tensor(name) for name in found}
        return {}

    def into(self, task: TrainTask, fetch: Callable[[str], object]) -> Carried:
        """What goes into a task's training; its base is in the folder, where `fetch` brings an artifact. Raises
        `Problem`, `WeightsError`."""
        personal = self.personal(task.job, task.round) if task.local.personal is not Personal.NOTHING else {}
        if not task.local.control:
            return Carried(personal)
        theirs, ours = self._control(task, fetch), self._own_control(task.job, task.round)
        nothing = np.zeros((), np.float32)
        names = theirs.keys() | ours.keys()
        correction: dict[str, Control] = {
            name: theirs.get(name, nothing) - ours.get(name, nothing) for name in sorted(names)
        }
        return Carried(personal, correction)

    def keep(
        self, task: TrainTask, trained: Tensors, own: frozenset[str], reach: float | None, carried: Carried
    ) -> dict[str, npt.NDArray[Any]]:
        """Keep what this training leaves to the next one; the tensors that are told. Those of `own` are told as the
        base has them. Raises `OSError`."""
        base = TensorFile.open(self.folder.base(task.base))
        if task.local.control and reach:
            tensorfile.write(
                self.folder.beside(Kind.CONTROL, task.job, task.round),
                _next_control(base, trained, reach, carried.correction),
            )
        if not own:
            return dict(trained)
        tensorfile.write(
            self.folder.beside(Kind.PERSONAL, task.job, task.round), {name: trained[name] for name in sorted(own)}
        )
        return {name: base.tensor(name) if name in own else tensor for name, tensor in trained.items()}

    def _control(self, task: TrainTask, fetch: Callable[[str], object]) -> Mapping[str, Control]:
        """The consortium's, which the base's file names, and so the ledger; nothing in the first round."""
        base = TensorFile.open(self.folder.base(task.base))
        digest = base.header.metadata.get(STATE)
        if digest is None:
            return {}
        fetch(digest)
        file = TensorFile.open(self.folder.base(digest))
        found: dict[str, Control] = {}
        if not any(name.startswith(state_name(CONTROL, "")) for name in file):
            return found  # another strategy's, of a job whose model this one began with
        for name, spec in base.header.tensors.items():
            if np.issubdtype(spec.dtype, np.floating):
                kept = file.header.tensors.get(state_name(CONTROL, name))
                if kept is None or (kept.shape, kept.dtype) != (spec.shape, np.dtype(np.float32)):
                    raise WeightsError(f"what the strategy remembers does not fit the model: tensor {name}")
                found[name] = file.tensor(state_name(CONTROL, name))
        return found

    def _own_control(self, job: str, number: int) -> Mapping[str, Control]:
        file = self._counting(Kind.CONTROL, job, number)
        return {} if file is None else {name: file.tensor(name) for name in file}

    def _counting(self, kind: Kind, job: str, number: int) -> TensorFile | None:
        """What the last round left whose update counted; what others left goes."""
        found = None
        for earlier in self.folder.earlier(kind, job, number):
            if found is None and self._counted(job, earlier):
                found = self.folder.open_beside(kind, job, earlier)
            else:
                self.folder.beside(kind, job, earlier).unlink(missing_ok=True)
        return found

    def _counted(self, job: str, number: int) -> bool:
        """Whether this hospital's update of an earlier round went into its model."""
        kept = self.folder.trained(job, number)
        found = self.round_of(job, number)
        return (
            kept is not None
            and found.status is RoundStatus.CLOSED
            and any(
                (item.update.hospital, item.update.digest) == (self.hospital, kept.digest) for item in found.accepted()
            )
        )


def _next_control(base: TensorFile, trained: Tensors, reach: float, correction: Tensors) -> dict[str, Control]:
    """`(base - trained) / reach - (c - c_i)`, c_i being what is kept and c what the server has: option II."""
    found: dict[str, Control] = {}
    for name, tensor in trained.items():
        if np.issubdtype(tensor.dtype, np.floating):
            drift = (base.tensor(name).astype(np.float64) - tensor) / reach
            found[name] = (drift - correction.get(name, np.float32(0))).astype(np.float32)
    return found
