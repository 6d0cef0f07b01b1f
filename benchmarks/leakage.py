"""What a split by picture would give away: held-out pictures of lesions that the model was trained on.

A node's own split is by lesion (`concilia_client_node.split`), where this is 0.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np
from concilia_client_node.split import HELD_OUT_SHARE


def by_picture(lesions: Sequence[str], seed: int, share: float = HELD_OUT_SHARE) -> float:
    """The share of held-out pictures whose lesion has pictures in training too, if pictures were drawn.

    `lesions`: the lesion of each picture. Raises `ValueError` where nothing would be held out.
    """
    held_out = _held_out(lesions, share)
    order = np.random.default_rng(seed).permutation(len(lesions))
    trained_on = {lesions[position] for position in order[held_out:]}
    return sum(lesions[position] in trained_on for position in order[:held_out]) / held_out


def expected_by_picture(lesions: Sequence[str], share: float = HELD_OUT_SHARE) -> float:
    """The same on average over all draws, exactly: a held-out picture of a lesion with k of the n pictures gives
    nothing away where the other k - 1 are among the m held out too, of which the probability is
    (m-1)/(n-1) * (m-2)/(n-2) * ... (k-1 factors). Raises `ValueError` where nothing would be held out."""
    every, held_out = len(lesions), _held_out(lesions, share)
    kept_together = sum(
        count * math.prod((held_out - other) / (every - other) for other in range(1, count))
        for count in Counter(lesions).values()
    )
    return 1 - kept_together / every


def _held_out(lesions: Sequence[str], share: float) -> int:
    if (held_out := round(len(lesions) * share)) < 1:
        raise ValueError(f"a share of {share} of {len(lesions)} pictures is none")
    return held_out
