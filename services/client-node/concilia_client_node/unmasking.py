"""A hospital's part in taking a sum's masks off: it agrees to who is in the sum, and once enough others agreed to the
very same, reveals the shares that it holds.

What it reveals of another hospital is a share of one of two secrets, by whether that one is in the sum. Shares of both
would unmask that hospital's update alone. So it agrees to one list a round, ever, and only to the one that the ledger
has; and it reveals nothing before as many of its group agreed to that list as nobody can have agree to another one.

Source: Bonawitz et al. (2017), rounds 3 and 4.
"""

from __future__ import annotations

from collections.abc import Callable

from concilia_kit import digests, masking, signing
from concilia_kit.problems import Unavailable
from concilia_kit.signing import Domain
from concilia_kit.wire.chain import LedgerRound, LedgerUpdate, RoundStatus
from concilia_kit.wire.masking import Consent, Stage, Survivors
from concilia_kit.wire.progress import Stage as Progressing
from concilia_kit.wire.training import UnmaskTask

from concilia_client_node import leaving
from concilia_client_node.errors import Over, Refused
from concilia_client_node.masking import Joined, handing_in, holding_up, joined_before, until_past
from concilia_client_node.masking_folder import RoundMasking
from concilia_client_node.means import Means


def unmask(means: Means, task: UnmaskTask) -> None:
    """Carry the task out. Raises `NodeError`, `Problem`, `OSError`."""
    check = means.check_until(task.deadline)
    check()
    with means.folder.alone(task.job, task.round, check), holding_up():
        _unmask(means, task, check)


def _unmask(means: Means, task: UnmaskTask, check: Callable[[], None]) -> None:
    means.tell(task, Progressing.UNMASKING, 0.0)
    kept = means.folder.masking.of(task.job, task.round)
    joined = joined_before(kept)
    if joined is None or kept.sent is None:
        raise Refused("this node masked no update of that round, or its secrets of it are gone")
    survivors, domain = task.survivors, means.consortium.domain()
    if (survivors.job, survivors.round) != (task.job, task.round):
        raise Refused("the list of who is in the sum is of another round than the task")
    if kept.agreed is None:
        masking.check_survivors(survivors, joined.roster, means.address, joined.held)
        see_ledger(means.consortium.whole_round(task.job, task.round), joined, kept.sent.digest, survivors, domain)
    elif kept.agreed != survivors:
        raise Refused("this hospital agreed to another sum of the round, and agrees to no second one")
    kept.keep_agreed(survivors)
    _agree(means, survivors, domain)
    means.tell(task, Progressing.UNMASKING, 0.5)
    view = until_past(means, task.job, task.round, Stage.CONSENT, check)
    if view.stage is not Stage.REVEAL:
        means.end(task, Progressing.SUBMITTED, "the sum was unmasked already")
        return
    if view.survivors is not None and view.survivors != survivors:
        raise Refused("the round's masking has another sum now than the one that this hospital agreed to")
    masking.check_consents(view.consents, survivors, joined.roster, means.address, domain)
    _reveal(means, kept, joined, survivors)
    means.end(
        task, Progressing.SUBMITTED, f"agreed to the sum of {len(survivors.survivors)} hospitals, and unmasked it"
    )


def _agree(means: Means, survivors: Survivors, domain: Domain) -> None:
    consent = Consent(hospital=means.address, signature=signing.sign(survivors.statement(), domain, means.account))
    here, counts = (survivors.job, survivors.round), (len(survivors.survivors), len(survivors.dropped))
    leaving.list_consent(means.folder, *here, consent, *counts)
    with handing_in():  # a node that comes back may find that the others were enough
        means.consortium.consent(*here, means.address, consent)


def _reveal(means: Means, kept: RoundMasking, joined: Joined, survivors: Survivors) -> None:
    revealed = masking.reveal(joined.held, joined.roster, means.address, survivors)
    kept.keep_revealed(revealed)
    here = survivors.job, survivors.round
    leaving.list_revealed(means.folder, *here, revealed)
    with handing_in():
        means.consortium.reveal(*here, means.address, revealed)


def see_ledger(found: LedgerRound, joined: Joined, own: str, survivors: Survivors, domain: Domain) -> None:
    """Whether the ledger's accepted updates of a round are exactly those of the survivors, each signed by its hospital
    as masked by the same roster; `own` is the digest of this hospital's. Raises `Refused`, `Over`, `Unavailable`."""
    if found.status is not RoundStatus.OPEN:
        raise Over(f"the ledger has round {found.round} as {found.status}")
    if found.merkle and found.root is None:
        raise Unavailable("the round's updates are not committed yet", code="round_not_committed")
    accepted = {item.update.hospital: item for item in found.accepted()}
    others = set(accepted) - {*survivors.survivors, *survivors.dropped}
    if others:  # whose masks are none of this round's, and may submit all the same: rejected once that is seen
        raise Unavailable("the ledger has accepted updates that nobody masked", code="round_not_settled")
    if len(accepted) != len(found.accepted()) or set(accepted) != set(survivors.survivors):
        raise Refused(
            f"the sum is to be of {len(survivors.survivors)} hospitals, and the ledger's accepted updates of the round "
            f"are {len(accepted)}, or others"
        )
    for hospital, item in accepted.items():
        if not _is_masked_so(item, joined, survivors, domain):
            raise Refused(f"the ledger's update of {hospital} is not signed by it as masked by this round's roster")
    if (mine := accepted.get(joined.own.keys.keys.hospital)) is None or mine.update.digest != own:
        raise Refused("the ledger has another update of this hospital than the one that it sent")


def _is_masked_so(item: LedgerUpdate, joined: Joined, survivors: Survivors, domain: Domain) -> bool:
    update, metrics = item.update, item.metrics
    if metrics is None or metrics.masked is None or metrics.masked.roster != joined.held.roster:
        return False
    if (update.job, update.round, update.base) != (survivors.job, survivors.round, joined.own.keys.keys.base):
        return False
    if digests.of_json(metrics.model_dump(mode="json")) != update.metrics:
        return False
    try:
        return signing.signer(update, domain, item.signature) == update.hospital
    except ValueError:
        return False
