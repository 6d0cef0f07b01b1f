"""Whether a task is one that this consortium asks for: signed by a coordinator, of the ledger's own models.

What reaches a node's queue, or is told to it, is believed for neither. Source of the signature: EIP-712, see
`concilia_kit.signing.TaskOrder`.
"""

from __future__ import annotations

from concilia_kit import signing
from concilia_kit.classification import Classification
from concilia_kit.problems import Unavailable
from concilia_kit.roles import Role
from concilia_kit.wire.chain import LedgerRound, RoundStatus
from concilia_kit.wire.training import EvaluateTask, Task, TrainTask, order_of

from concilia_client_node.consortium import Consortium
from concilia_client_node.errors import Over, Refused


def see_who_asks(consortium: Consortium, task: Task, signature: str) -> None:
    """Raises `Refused` where no coordinator of this ledger asks for just this task, `Problem` where none can be asked
    about."""
    try:
        signer = signing.signer(order_of(task), consortium.domain(), signature)
    except ValueError as error:
        raise Refused("the task's signature is none") from error
    if Role.COORDINATOR not in consortium.roles(signer):
        raise Refused(f"no coordinator asks for this task: {signer} signed it, or it was changed since")


def see_what_is_told_apart(task: Task, own: Classification) -> None:
    """Raises `Refused` where a task is of another classification than the hospital's pictures."""
    if unlike := task.classification.unlike(own):
        raise Refused(f"the job's classification is not this hospital's: {unlike}")


def see_open(consortium: Consortium, task: TrainTask, hospital: str, now: float) -> LedgerRound:
    """The task's round, which must be open on its base model, with time left. Raises `Refused`, `Over`, `Problem`."""
    if now > task.deadline:
        raise Over("the task's deadline has passed")
    found = consortium.round(task.job, task.round, hospital)
    if found.status is not RoundStatus.OPEN:
        raise Over(f"the ledger has round {task.round} as {found.status}")
    if found.base != task.base:
        raise Refused("the ledger has another base model for this round")
    if now > found.deadline:
        raise Over("the round's deadline on the ledger has passed")
    return found


def see_closed_with(consortium: Consortium, task: EvaluateTask, hospital: str) -> None:
    """Raises `Refused` where the ledger has another model of an evaluation's round, a `Problem` where it has none yet.
    The initial model's round is none of the ledger's."""
    if task.round == 0:
        return
    found = consortium.round(task.job, task.round, hospital)
    if found.status is not RoundStatus.CLOSED:
        raise Unavailable(f"the ledger has round {task.round} as {found.status}", code="round_not_closed")
    if found.global_digest != task.model:
        raise Refused("the ledger has another model of this round")
