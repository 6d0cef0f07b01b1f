"""Who saw what of the hospitals' updates, and what differential privacy cost whom, as hospitals signed it; pure."""

from __future__ import annotations

from concilia_aggregator.card.facts import Facts
from concilia_aggregator.card.markdown import code, plain, table

_OWN = (
    "Hospitals trained with differential privacy (DP-SGD). The unit is the lesion, with all its pictures: with one "
    "lesion more or fewer at a hospital, its updates of this job would have come out as they did with nearly the same "
    "probability, by no more than a factor e^ε, but for δ."
)
_CENTRAL = (
    "The aggregator cut hospitals' updates to one length and added noise to their sum (DP-FedAvg). The unit is the "
    "lesion, with all its pictures: with one lesion more or fewer at a hospital, the models of this job would have "
    "come out as they did with nearly the same probability, by no more than a factor e^ε, but for δ; the same holds of "
    "all that a hospital brought. That protects from whoever has the models, and takes trust in the aggregator: it, "
    "and who may read updates, saw them without noise."
)
_NOT_IN = (
    "Not in ε: other jobs, the counts of pictures and lesions that sites tell, held-out lesions and the figures that "
    "they gave, and what settings were chosen by trying."
)


def privacy(facts: Facts) -> str:
    """What a job with secure aggregation or with differential privacy kept to its hospitals; nothing of others."""
    return "\n\n".join(text for text in (_masked(facts), _differential(facts)) if text)


def _masked(facts: Facts) -> str:
    secure = facts.job.spec.secure
    if secure is None or not facts.accepted:
        return ""
    if secure.group is None:
        of = f"of {min(map(len, facts.accepted.values()))} hospitals or more"
    else:
        kept = f"{secure.threshold:.0%}"
        of = f"of groups that began with {secure.group} hospitals or more and kept at least {kept} of them"
    return (
        "Hospitals masked their updates (secure aggregation). Nobody but a hospital itself had its update: the "
        f"aggregator, and who may read updates, had sums {of}. What a sum says of those in it, it says still."
    )


def _differential(facts: Facts) -> str:
    """A table by hospital and what it means."""
    asked, central = facts.job.spec.privacy, facts.job.spec.strategy.central
    if asked is not None:
        what, share, of = _OWN, "share of lesions in a step", f"the clipping norm, {asked.clip:g}"
    elif central is not None:
        what, share = _CENTRAL, "share of lesions in a round"
        of = f"how far one update can move the sum, {2 * central.radius:g}"
    else:
        return ""
    last = {hospital: spent for each in facts.job.rounds for hospital, spent in each.privacy.items()}
    rows = [
        (plain(facts.site(each)), code(each), "–", "–", "–", "–")
        if (spent := last.get(each)) is None
        else (
            plain(facts.site(each)),
            code(each),
            f"{spent.epsilon:.3f}",
            f"{spent.delta:g}",
            f"{spent.noise:g}",
            f"{spent.rate:.3g}",
        )
        for each in sorted({*facts.hospitals, *last}, key=lambda each: (facts.site(each), each))
    ]
    return "\n\n".join(
        (
            what,
            table(("site", "address", "ε of its updates together", "δ", "noise", share), rows),
            "Each hospital's own account, by dp-accounting (privacy loss distributions), signed with its updates. "
            f"Noise in multiples of {of}. {_NOT_IN}",
        )
    )
