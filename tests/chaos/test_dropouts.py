"""Three of ten hospitals vanish in every round: rounds close with who is left, and the model is about as good.

With HAM10000 and ImageNet's trunk beside the checkout it is real pictures; `DROPOUT_ROUNDS` rounds.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from concilia_client_node import drawn
from concilia_kit.wire.chain import RoundStatus
from concilia_kit.wire.jobs import JobSpec, JobView, Phase
from concilia_kit.wire.models import InitialModelRequest, Weights
from concilia_kit.wire.training import Architecture, Balance, LocalTraining

from .world import PORTS, World, running

SHARED = Path(__file__).parents[3] / "shared"
REAL, TRUNK = SHARED / "data" / "ham10000", SHARED / "weights" / "mobilenet_v2.imagenet.trunk.safetensors"
IS_REAL = REAL.is_dir() and TRUNK.is_file()
HOSPITALS, VANISHING = 10, 3
QUORUM = HOSPITALS - VANISHING
ROUNDS = int(os.environ.get("DROPOUT_ROUNDS", "5"))
DEADLINE_SECONDS = 75 if IS_REAL else 60
LATE_SECONDS = 15
"""After its deadline, until a round that waits for nobody any more must be closed."""
POINTS = 0.02


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory, free_ports: Callable[[int], int]) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("dropouts")
    data = REAL
    if not IS_REAL:
        data = folder / "lesions"
        drawn.write_drawn(data, images=2400, seed=7)
    with running(folder, free_ports(PORTS), HOSPITALS, data) as made:
        yield made


def train(world: World, initial: str, *, quorum: int, vanishing: int) -> JobView:
    # Plain accuracy is compared, so plain accuracy is trained for; a weighted loss trades it for rare classes.
    local = LocalTraining(batch_size=16, learning_rate=0.005, image_size=64, max_images=600, balance=Balance.NONE)
    spec = JobSpec(
        name=f"{vanishing} vanish",
        architecture=Architecture.MOBILENET_V2,
        initial=initial,
        rounds=ROUNDS,
        quorum=quorum,
        deadline_seconds=DEADLINE_SECONDS,
        seed=3,
        evaluate_every=ROUNDS,
        local=local,
    )
    job = world.admin.create_job(spec)
    lots, seen = random.Random(4), 0
    gone: list[str] = []
    while job.phase not in {Phase.FINISHED, Phase.FAILED, Phase.STOPPED}:
        if job.phase is Phase.TRAINING and job.round > seen:
            seen = job.round
            time.sleep(lots.uniform(0.2, 2.0))
            gone = lots.sample([f"node-{at}" for at in range(HOSPITALS)], vanishing)
            for name in gone:
                world.processes[name].vanish()
        elif gone and not (job.phase is Phase.TRAINING and job.round == seen):
            for name in gone:
                world.processes[name].return_()
            gone = []
            for each in world.processes.values():
                each.await_ready(120)
        time.sleep(0.2)
        job = world.admin.job(job.id)
    return job


def test_rounds_close_at_their_quorum_and_the_model_is_about_as_good(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = InitialModelRequest(architecture=Architecture.MOBILENET_V2, seed=1, weights=Weights.RANDOM)
    if IS_REAL:
        asked = asked.model_copy(update={"weights": Weights.FILE, "file": world.admin.upload(TRUNK)})
    initial = world.admin.initial_model(asked).digest
    full = train(world, initial, quorum=HOSPITALS, vanishing=0)
    thinned = train(world, initial, quorum=QUORUM, vanishing=VANISHING)
    assert [full.phase, thinned.phase] == [Phase.FINISHED, Phase.FINISHED], thinned.detail
    counted = []
    for each in world.admin.ledger_job(thinned.id).rounds:
        assert each.status is RoundStatus.CLOSED
        counted.append(len(each.accepted()))
    assert len(counted) == ROUNDS
    assert min(counted) >= QUORUM
    late = [
        each.closed_at.timestamp() - each.deadline for each in thinned.rounds[1:] if each.closed_at and each.deadline
    ]
    assert len(late) == ROUNDS
    assert max(late) < LATE_SECONDS
    scores = [job.rounds[-1].pooled for job in (full, thinned)]
    assert scores[0] is not None
    assert scores[1] is not None
    with capsys.disabled():
        source = "HAM10000" if IS_REAL else "drawn lesions"
        print(
            f"\n{source}, {ROUNDS} rounds of {HOSPITALS} hospitals of which {VANISHING} vanish: counted {counted}, "
            f"closed at most {max(late):.1f} s after the deadline; accuracy {scores[0].accuracy:.3f} of the full run, "
            f"{scores[1].accuracy:.3f}; balanced {scores[0].balanced_accuracy:.3f}, {scores[1].balanced_accuracy:.3f}",
            flush=True,
        )
    assert scores[1].accuracy > scores[0].accuracy - POINTS
