"""A hospital's part of a round's masking, up to its masked update; what comes after is `unmasking`'s.

Nothing that the aggregator tells is believed: keys are their hospitals' by signature, hospitals are the ledger's, and
whose masks go onto the update is fixed with the first roster and the first sharers that hold up, for good. Whatever
does not hold up ends this hospital's part in the round, in one sentence; its update is then never made or sent.

Each step is on the disk before it is told (`masking_folder`), and the same from there after a crash.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from concilia_kit import encodings, logs, masking, signing
from concilia_kit.masking import Held, MaskingError, Secrets
from concilia_kit.problems import Problem
from concilia_kit.roles import Role
from concilia_kit.tensorfile import TensorFile
from concilia_kit.wire.masking import Masked, MaskingView, Roster, SecureAggregation, SignedKeys, Stage
from concilia_kit.wire.training import TrainTask

from concilia_client_node import leaving
from concilia_client_node.errors import Over, Refused
from concilia_client_node.masking_folder import Own, RoundMasking, Sent
from concilia_client_node.means import Means
from concilia_client_node.store import Trained
from concilia_client_node.trainer import Tensors

WAIT_SECONDS = 3
"""How long a question how far the masking is stays open: a node must stop within five seconds."""

_ORDER = tuple(Stage)
_log = logs.get(__name__)


@dataclass(frozen=True)
class Joined:
    """What a hospital masks its update with: its secrets and keys, the roster, and what it was handed."""

    own: Own
    roster: Roster
    held: Held

    def sees(self, kept: Trained) -> bool:
        """Whether an update is one that was masked so."""
        return kept.masked is not None and kept.masked.roster == self.held.roster


def see_task(task: TrainTask) -> SecureAggregation:
    """Raises `Refused` where a task asks for masks on what cannot have them."""
    if task.secure is None:
        raise Refused("the task has no secure aggregation")
    if task.asynchronous or not task.encoding.plain:
        raise Refused("late or encoded updates cannot be masked: who is in a sum, and its words, must be settled")
    return task.secure


@contextmanager
def handing_in() -> Iterator[None]:
    """Inside, what comes when its stage is over is let go: the view says what became of it."""
    try:
        yield
    except Problem as problem:
        if problem.problem_code != "masking_stage_over":
            raise


@contextmanager
def holding_up() -> Iterator[None]:
    """Inside, what does not hold up in a document of the masking is `Refused`."""
    try:
        yield
    except MaskingError as error:
        raise Refused(f"this hospital leaves the round's masking: {error}") from error


def until_past(means: Means, job: str, number: int, stage: Stage, check: Callable[[], None]) -> MaskingView:
    """The masking's view once it is past a stage. Raises `Refused` where it was given up, `Problem`, and what `check`
    raises."""
    tag = ""
    while True:
        check()
        seen = means.consortium.masking(job, number, tag, WAIT_SECONDS if tag else 0)
        if seen is None:
            continue
        if not (tag := seen.tag):
            means.stop.wait(1.0)
        if seen.view.stage is Stage.ABORTED:
            raise Refused("the round's masking was given up: too few hospitals were left")
        if _ORDER.index(seen.view.stage) > _ORDER.index(stage):
            return seen.view


def join(means: Means, task: TrainTask, check: Callable[[], None]) -> Joined:
    """Go through KEYS and SHARES, or find that this was done. Raises `Refused` where it cannot be, or the one update
    that these masks are for was made and is gone; `Over`, `Problem`, `OSError`, and what `check` raises."""
    secure = see_task(task)
    kept = means.folder.masking.of(task.job, task.round)
    if (joined := joined_before(kept)) is None:
        means.folder.masking.forget(task.job, task.round - 1)  # the ledger has one open round a job
        own = _own(means, task, kept)
        with holding_up():
            joined = _join(means, task, secure, own, kept, check)
    if (joined.own.keys.keys.base, joined.own.keys.keys.hospital) != (task.base, means.address):
        raise Refused("this node has keys of the round for another base model")
    return joined


def joined_before(kept: RoundMasking) -> Joined | None:
    """What `join` came to, where it came to its end. Raises `Refused`."""
    own, roster, held = kept.own, kept.roster, kept.held
    return None if own is None or roster is None or held is None else Joined(own, roster, held)


def see_unsent(means: Means, task: TrainTask) -> None:
    """Raises `Refused` where an update was made that may have left, and is not there any more: another one under the
    same masks would tell what changed between the two."""
    if means.folder.masking.of(task.job, task.round).sent is not None:
        raise Refused(
            "the masked update of this round is gone from the node's disk, and its masks are for one update alone: "
            "this hospital drops out of the round"
        )


def sending(means: Means, task: TrainTask, kept: Trained) -> None:
    """An update is about to leave: from now on no other one is masked so. Raises `Refused`, `OSError`."""
    joined = joined_before(means.folder.masking.of(task.job, task.round))
    if joined is None or not joined.sees(kept):
        raise Refused("the update that is kept was masked by a roster that this node does not know")
    means.folder.flush_update(task.job, task.round)
    means.folder.masking.of(task.job, task.round).keep_sent(Sent(digest=kept.digest))


def write(
    means: Means, task: TrainTask, joined: Joined, tensors: Tensors, samples: int
) -> tuple[encodings.Written, Masked]:
    """Write the masked update in the plain one's place. Raises `Refused`, `OSError`."""
    secure = see_task(task)
    see_unsent(means, task)
    if samples > joined.own.keys.keys.samples:
        raise Refused(f"the update is of {samples} images, more than this hospital's keys of the round say")
    with holding_up():
        written = masking.write(
            means.folder.update(task.job, task.round),
            tensors,
            TensorFile.open(means.folder.base(task.base)),
            masking.masks(joined.own.secrets, joined.roster, means.address, joined.held.sharers),
            joined.roster,
            samples=samples,
            bound=secure.bound,
            norm=secure.norm,
        )
    masked = Masked(roster=joined.held.roster, clipped=written.clipped, norm=secure.norm)
    return encodings.Written(written.digest, written.size, written.size_plain), masked


def _own(means: Means, task: TrainTask, kept: RoundMasking) -> Own:
    """Secrets and signed keys, kept or made."""
    if (found := kept.own) is not None:
        return found
    means.folder.masking.forget_oldest()
    secrets = Secrets.new()
    samples = means.trainer.extent(task.local).images
    if samples < 1:
        raise Refused("there are no training images")
    keys = masking.advertise(
        secrets, hospital=means.address, job=task.job, round_=task.round, base=task.base, samples=samples
    )
    signature = signing.sign(keys.statement(), means.consortium.domain(), means.account)
    own = Own(secrets=secrets, keys=SignedKeys(keys=keys, signature=signature))
    kept.keep_own(own)
    return own


def _join(
    means: Means,
    task: TrainTask,
    secure: SecureAggregation,
    own: Own,
    kept: RoundMasking,
    check: Callable[[], None],
) -> Joined:
    here = task.job, task.round
    before = means.consortium.masking(*here)
    if before is not None and before.view.stage is Stage.KEYS:
        leaving.list_keys(means.folder, own.keys)
        with handing_in():
            means.consortium.advertise(*here, means.address, own.keys)
    view = until_past(means, *here, Stage.KEYS, check)
    roster = view.roster or kept.roster
    if roster is None or means.address not in roster.hospitals:
        raise Over("the round's masking began without this hospital, whose keys came too late")
    if kept.roster is None:
        see_roster(means, task, secure, own, roster)
    kept.keep_roster(roster)
    if view.stage is Stage.SHARES:
        shares = masking.share(own.secrets, roster, means.address)
        leaving.list_shares(means.folder, *here, shares)
        with handing_in():
            means.consortium.share(*here, means.address, shares)
        view = until_past(means, *here, Stage.SHARES, check)
    if view.stage is not Stage.INPUTS or view.sharers is None or means.address not in view.sharers:
        raise Over("the round's masking went on without this hospital, whose shares came too late")
    if view.roster is not None and view.roster != roster:
        raise Refused("the round's masking has another roster now than the one that this hospital shared by")
    held = masking.open_parcels(own.secrets, roster, means.address, view.sharers, view.parcels)
    kept.keep_held(held)
    _log.info("masking joined", job=task.job, round=task.round, members=len(roster.members), roster=held.roster)
    return Joined(own, roster, held)


def see_roster(means: Means, task: TrainTask, secure: SecureAggregation, own: Own, roster: Roster) -> None:
    """Whether a roster may be masked by. Raises `Refused`, `MaskingError`, `Problem`."""
    masking.check_roster(roster, own.keys, secure, means.consortium.domain())
    first = roster.members[0].keys
    if (first.job, first.round, first.base) != (task.job, task.round, task.base):
        raise Refused("the roster is of another round than the task")
    strangers = set(roster.hospitals) - means.consortium.holders(Role.HOSPITAL)
    if strangers:
        raise Refused(
            f"{len(strangers)} of the roster's {len(roster.members)} members do not hold the hospital role by the "
            f"ledger, {min(strangers)} among them"
        )
