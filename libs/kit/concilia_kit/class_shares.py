"""How often each class comes at a hospital, and what that says of a picture from there.

Networks that were trained with logits adjusted by each hospital's own class shares (`objectives.logit_adjustment`) know
what speaks for a class, and nothing of how often it comes. Where a picture is from says that: to its logits belongs the
logarithm of the hospital's share of each class by the consortium's. Argmax is then the answer of the best balanced
accuracy over all hospitals' pictures together.

Sources: Saerens, Latinne and Decaestecker, "Adjusting the Outputs of a Classifier to New a Priori Probabilities"
(Neural Computation 14, 2002), equation 2.4; Menon et al., "Long-tail learning via logit adjustment" (ICLR 2021).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

ABSENT = 0.5
"""Pictures that a class without any is taken to have: its share has a logarithm, and none is no proof of never."""


def shift(own: Sequence[int], everybody: Sequence[int]) -> npt.NDArray[np.float64]:
    """What is added to logits: log(own share / everybody's share), float64 (classes,), from pictures by class.

    Raises `ValueError` where the two are of different numbers of classes, or a count is negative.
    """
    if len(own) != len(everybody):
        raise ValueError(f"{len(own)} classes are counted at the hospital, and {len(everybody)} in the consortium")
    return _log_shares(own) - _log_shares(everybody)


def _log_shares(counts: Sequence[int]) -> npt.NDArray[np.float64]:
    pictures = np.array(counts, np.float64)
    if (pictures < 0).any():
        raise ValueError("pictures of a class are fewer than none")
    pictures = np.maximum(pictures, ABSENT)
    found: npt.NDArray[np.float64] = np.log(pictures / pictures.sum())
    return found
