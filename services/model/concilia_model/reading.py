"""How a model's outputs are read, and what its thresholds say of a picture; pure."""

from __future__ import annotations

from concilia_kit.classification import LESIONS, Classification
from concilia_kit.wire.calibration import Use
from concilia_kit.wire.models import Critical, Unusual

from concilia_model.errors import ClassCountsUnfit
from concilia_model.network_process import Seen


def by_counts(use: Use, counts: tuple[int, ...] | None) -> Use:
    """A model's use for a picture from where so many pictures of each class are; None: as the model itself has it.

    Raises `ClassCountsUnfit`.
    """
    if counts is None:
        return use
    if use.class_counts is None:
        raise ClassCountsUnfit("the model was not evaluated by hospitals' own class shares; ask without class_counts")
    if len(counts) != len(use.class_counts):
        raise ClassCountsUnfit(f"{len(counts)} classes are counted; the model tells {len(use.class_counts)} apart")
    return use.model_copy(update={"own_counts": counts})


def critical(use: Use, seen: Seen) -> Critical | None:
    """On which side of its threshold the class lies that must not be missed; None where there is no threshold."""
    if use.critical is None or seen.critical is None:
        return None
    return Critical(
        code=use.critical.code,
        share=seen.critical,
        threshold=use.critical.threshold,
        above=seen.critical >= use.critical.threshold,
        sensitivity=use.critical.sensitivity,
        specificity=use.critical.specificity,
    )


def unusual(use: Use, seen: Seen, classification: Classification) -> Unusual | None:
    """Whether a picture may be none of what the model was trained for; None where there is no threshold."""
    if use.unusual is None or seen.oddity is None:
        return None
    beyond = seen.oddity >= use.unusual.threshold
    return Unusual(
        oddity=seen.oddity,
        threshold=use.unusual.threshold,
        beyond=beyond,
        notice=_notice(classification) if beyond else None,
    )


def _notice(classification: Classification) -> str:
    kind = "dermoscopic picture" if classification == LESIONS else f"picture as '{classification.name}' has them"
    return (
        f"This may be no {kind}: the network finds it odder than nearly all pictures that the model was measured on. "
        "Its probabilities may mean nothing."
    )
