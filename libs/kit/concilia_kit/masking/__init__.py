"""Secure aggregation: what hospitals' nodes and the aggregator compute at each stage, without network, clock or disk
but for the files of updates.

Documents are those of `concilia_kit.wire.masking`. `participant` is what a node does, `unmasking` what the aggregator
and whoever verifies does; `graph` says who shares secrets and masks with whom; `writing` writes a masked update.

Sources: Bonawitz et al., "Practical Secure Aggregation for Privacy-Preserving Machine Learning" (CCS 2017); Bell et
al., "Secure Single-Server Aggregation with (Poly)Logarithmic Overhead" (CCS 2020).
"""

from __future__ import annotations

from concilia_kit.masking.errors import MaskingError
from concilia_kit.masking.graph import Graph, graph, is_possible
from concilia_kit.masking.pairing import Secrets, check_points
from concilia_kit.masking.participant import (
    Held,
    advertise,
    check_consents,
    check_roster,
    check_sharers,
    check_shares,
    check_survivors,
    masks,
    open_parcels,
    reveal,
    share,
)
from concilia_kit.masking.stream import Mask
from concilia_kit.masking.unmasking import check_revealed, check_unmasking, is_enough, reconstruct, total_masks
from concilia_kit.masking.writing import METADATA, WrittenMasked, masked_like, roster_of, write

__all__ = [
    "METADATA",
    "Graph",
    "Held",
    "Mask",
    "MaskingError",
    "Secrets",
    "WrittenMasked",
    "advertise",
    "check_consents",
    "check_points",
    "check_revealed",
    "check_roster",
    "check_sharers",
    "check_shares",
    "check_survivors",
    "check_unmasking",
    "graph",
    "is_enough",
    "is_possible",
    "masked_like",
    "masks",
    "open_parcels",
    "reconstruct",
    "reveal",
    "roster_of",
    "share",
    "total_masks",
    "write",
]
