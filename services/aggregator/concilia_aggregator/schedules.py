"""What a job's schedule makes of local training in a round: how the learning rate goes, and what moves.

Half a cosine from one share of the learning rate to another within a round is what nodes follow; a cosine over the
whole job is given to them in such pieces. Source: Loshchilov and Hutter, "SGDR" (ICLR 2017); for the warm-up Goyal et
al., "Accurate, Large Minibatch SGD" (2017); for keeping statistics Zhong, Chen and Chao, "Making Batch Normalization
Great in Federated Deep Learning" (2023).
"""

from __future__ import annotations

import math

from concilia_kit.wire.jobs import Schedule
from concilia_kit.wire.training import FINAL_RATE, LocalTraining, Statistics, Trained

LEAST = 0.01
"""Share of the learning rate that a job ends with: its last steps move something, too."""


def of_round(local: LocalTraining, schedule: Schedule, round_: int, rounds: int) -> LocalTraining:
    """Local training of round `round_`, from 1, of `rounds`; whatever stood there of what a schedule sets."""
    start, end = 1.0, FINAL_RATE
    if schedule.whole_job:
        start, end = (_cosine(done / rounds) for done in (round_ - 1, round_))
    return local.model_copy(
        update={
            "rate_start": start,
            "rate_end": end,
            "warm_up": schedule.warm_up if round_ == 1 else 0.0,
            "trained": Trained.HEAD if round_ <= schedule.head_rounds else Trained.ALL,
            "statistics": Statistics.KEPT if _kept(schedule, round_) else Statistics.BATCH,
        }
    )


def _kept(schedule: Schedule, round_: int) -> bool:
    return schedule.statistics_rounds is not None and round_ > schedule.statistics_rounds


def _cosine(done: float) -> float:
    return LEAST + (1 - LEAST) * (1 + math.cos(math.pi * done)) / 2
