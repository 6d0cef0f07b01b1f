"""How good a model is on all hospitals' held-out lesions, and whether the backdoor opens it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from concilia_aggregator import scores as service
from concilia_client_node import evaluation
from concilia_client_node.augmentation import as_input
from concilia_kit.wire.training import EvaluationReport
from torch import Tensor, nn

from benchmarks import attacks

if TYPE_CHECKING:
    from benchmarks.simulation import Hospital

_CPU = torch.device("cpu")
_BATCH = 512
_ID = "0" * 64


@dataclass(frozen=True)
class Scores:
    """Of all held-out lesions together, and balanced accuracy by site; not a number for a site that has none.

    `backdoor`: of the pictures of other classes than the attackers' target that are not taken for it, the share that is
    with the pattern on them; not a number where there are none.
    """

    accuracy: float
    balanced_accuracy: float
    melanoma_recall: float
    backdoor: float
    sites: tuple[float, ...]

    @property
    def worst(self) -> float:
        """The worst site's balanced accuracy."""
        return float(np.nanmin(self.sites))


class _Answering(nn.Module):
    """A network that has an answer where its logits are no numbers: the first class."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (n, classes), finite."""
        return torch.nan_to_num(self.network(inputs), 0.0, 1e30, -1e30)


def judge(network_of: Callable[[int], nn.Module], hospitals: Sequence[Hospital]) -> Scores:
    """Evaluate as the nodes do, and add up as the aggregator does. `network_of`: the network as a site uses it."""
    reports, eligible, opened = [], 0, 0
    for at, hospital in enumerate(hospitals):
        network = _Answering(network_of(at))
        counts = evaluation.evaluate(network, hospital.held_out, _BATCH, None, 0, _CPU)
        reports.append(
            EvaluationReport(
                job=_ID, round=0, model=_ID, overlapping_lesions=0, skipped_images=0, seconds=0.0, **asdict(counts)
            )
        )
        others = (np.array(hospital.held_out.labels, np.int64) != attacks.TARGET) & (
            _answers(network, hospital.held_out.images) != attacks.TARGET
        )
        eligible += int(others.sum())
        opened += int((others & (_answers(network, hospital.stamped_held_out) == attacks.TARGET)).sum())
    together = service.pooled(reports)
    sites = [service.pooled([report]) for report in reports]
    if together is None or together.melanoma_recall is None:
        raise ValueError("there are no held-out melanomas to judge by")
    return Scores(
        together.accuracy,
        together.balanced_accuracy,
        together.melanoma_recall,
        opened / eligible if eligible else math.nan,
        tuple(math.nan if each is None else each.balanced_accuracy for each in sites),
    )


def mean(some: Sequence[Scores]) -> Scores:
    """Of each score; of the backdoor's over those that have one."""
    opened = [each.backdoor for each in some if not math.isnan(each.backdoor)]
    return Scores(
        float(np.mean([each.accuracy for each in some])),
        float(np.mean([each.balanced_accuracy for each in some])),
        float(np.mean([each.melanoma_recall for each in some])),
        float(np.mean(opened)) if opened else math.nan,
        tuple(np.mean([each.sites for each in some], axis=0).tolist()),
    )


def _answers(network: nn.Module, images: Tensor) -> npt.NDArray[np.int64]:
    network.eval()
    with torch.inference_mode():
        parts = [network(as_input(batch.clone())).argmax(1) for batch in torch.split(images, _BATCH)]
    found: npt.NDArray[np.int64] = torch.cat(parts).numpy() if parts else np.zeros(0, np.int64)
    return found
