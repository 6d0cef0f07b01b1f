"""How a model's outputs are to be read, where its job calibrated it; pure."""

from __future__ import annotations

from concilia_kit.wire.calibration import CriticalUse
from concilia_kit.wire.jobs import JobView

from concilia_aggregator.card.figures import share, with_limits
from concilia_aggregator.card.intervals import wilson
from concilia_aggregator.card.markdown import bullets, code

_OWN_SHARES = (
    "The network says what speaks for a class, and not how often it comes. Hospitals' held-out pictures were evaluated "
    "by each one's own class shares; where the model is used, it is to be told how many pictures of each class there "
    "are (`class_counts`), or it answers as though those were the consortium's."
)


def reading(job: JobView, model: str) -> str:
    """Sentences about class shares, temperature and thresholds; nothing of a model that is read as it is."""
    found = [each.calibrated.use for each in job.rounds if each.model == model and each.calibrated is not None]
    if not found:
        return bullets([_OWN_SHARES]) if job.spec.own_shares else ""
    use = found[-1]
    told = [
        f"From {use.images} held-out pictures of all sites, in two halves by lesion; what is said of each half is by "
        "what the other one gave.",
        f"Logits are divided by {use.temperature:.3f}. Expected calibration error of the most probable class (15 bins; "
        f"Guo et al. 2017): {share(use.error_before)} as the network is, {share(use.error_after)} with it. "
        f"Cross-entropy: {share(use.loss_before)} and {share(use.loss_after)}.",
    ]
    if job.spec.own_shares:
        told.append(_OWN_SHARES)
    if use.flips:
        told.append("Logits are the mean over a picture and what it may be turned to.")
    if use.critical is not None:
        told.append(_critical(use.critical))
    if use.unusual is not None:
        told.append(
            f"{use.unusual.share:.1%} of held-out pictures are told to be unusual. Pictures that look like what it was "
            "trained on and are none are not told."
        )
    return bullets(told)


def _critical(use: CriticalUse) -> str:
    others = f", specificity {_of(use.specificity, use.negatives)} on {use.negatives} others"
    return (
        f"{code(use.code)} is warned of from a share of {use.threshold:.4f} on, before the division: sensitivity "
        f"{_of(use.sensitivity, use.positives)} on {use.positives} held-out pictures of it"
        f"{others if use.negatives else ''}; {share(use.wanted)} was wanted."
    )


def _of(told: float | None, pictures: int) -> str:
    """A share of so many pictures, with its 95 % interval."""
    return with_limits(wilson(round(told * pictures), pictures)) if told is not None and pictures else share(told)
