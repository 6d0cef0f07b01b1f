"""Federated training in one process, without a network: the nodes' training and evaluation, the aggregator's
strategies, and hospitals that attack.

`run` takes hospitals with pictures, or with a trunk's features in the form of pictures (`features`), and whatever
network fits them.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from concilia_aggregator import schedules, strategies
from concilia_client_node import networks, private_training, training
from concilia_client_node.errors import Refused
from concilia_client_node.pictures import Pictures
from concilia_client_node.trainer import Outcome, mix
from concilia_kit.normalisation import STATISTICS
from concilia_kit.wire.jobs import EACH_ROUND_ALIKE, Schedule
from concilia_kit.wire.privacy import Privacy
from concilia_kit.wire.strategy import Strategy as StrategySpec
from concilia_kit.wire.training import LocalTraining, Personal
from torch import nn

from benchmarks import attacks, judging
from benchmarks.judging import Scores
from benchmarks.server import Floats, Layout, Model, Server, Update

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class Hospital:
    """A site's pictures, and the same with the backdoor's pattern."""

    name: str
    training: Pictures
    held_out: Pictures
    stamped_training: torch.Tensor
    stamped_held_out: torch.Tensor


@dataclass(frozen=True)
class Plan:
    """One run. `share` of the hospitals attack; `judged`: last rounds whose scores are averaged."""

    spec: StrategySpec
    local: LocalTraining
    rounds: int
    judged: int
    seed: int
    attack: str = "none"
    share: float = 0.0
    screened: bool = True
    schedule: Schedule = EACH_ROUND_ALIKE
    privacy: tuple[Privacy, ...] | None = None
    """A hospital's each, in their order, where they train with differential privacy."""

    def local_of(self, local: LocalTraining, round_: int) -> LocalTraining:
        """Local training of a round, as the aggregator gives it to hospitals."""
        return schedules.of_round(local, self.schedule, round_, self.rounds)

    def at_once(self) -> LocalTraining:
        """As many epochs as all rounds have, in one."""
        local = self.local.model_copy(update={"epochs": self.rounds * self.local.epochs})
        warm_up = Schedule(whole_job=self.schedule.whole_job, warm_up=self.schedule.warm_up / self.rounds)
        return schedules.of_round(local, warm_up, 1, 1)


@dataclass
class _Node:
    """What a hospital carries from round to round: tensors of its own, SCAFFOLD's variate, FedBuff's version."""

    own: Floats | None = None
    control: Floats | None = None
    began: int = 0
    free_at: float = 0.0


@dataclass
class _Trained:
    model: Model
    outcome: Outcome
    control: Floats | None = None


@dataclass(frozen=True)
class Made:
    """A run's scores, how many rounds had no model, how many updates screening left out, by reason, and whose."""

    scores: Scores
    lost: int
    rejected: dict[str, int] = field(default_factory=dict)


def run(plan: Plan, hospitals: Sequence[Hospital], build: Callable[[int], nn.Module]) -> Made:
    """Train one federation from a seed and judge it. Raises `ValueError` for what there is not."""
    return _Federation(plan, hospitals, build).run()


def federated(
    plan: Plan, hospitals: Sequence[Hospital], build: Callable[[int], nn.Module], each: Callable[[int], None]
) -> nn.Module:
    """The global model of the last round, unjudged; `each` is told the number of every round that is over."""
    federation = _Federation(plan, hospitals, build)
    federation.go(each)
    return federation.network(0)


class _Federation:
    def __init__(self, plan: Plan, hospitals: Sequence[Hospital], build: Callable[[int], nn.Module]) -> None:
        if plan.spec.asynchronous and plan.attack != "none":
            raise ValueError("attacks on FedBuff are not simulated: who is late knows no other update of its round")
        self._plan, self._hospitals = plan, hospitals
        self._network = build(plan.seed)
        self._layout = Layout(networks.tensors(self._network))
        self._model = self._layout.model(networks.tensors(self._network))
        self._nodes = [_Node() for _ in hospitals]
        self._generator = np.random.default_rng([plan.seed, 7])
        order = self._generator.permutation(len(hospitals)).tolist()
        self._hostile = sorted(order[: round(plan.share * len(hospitals))]) if plan.attack != "none" else []
        self._attack = attacks.make(plan.attack) if self._hostile else None
        self._memory: dict[str, int] = {}
        self._strategy = strategies.make(plan.spec)
        self._local = self._strategy.local(plan.local)
        statistics = self._layout.mask([name for name in self._network.state_dict() if name.endswith(STATISTICS)])
        self._server = Server(plan.spec, plan.local, len(hospitals), plan.screened, order[-1], statistics)
        self._personal = self._layout.mask(personal(self._network, self._local.personal))
        self._pictures = [self._poisoned(at) if at in self._hostile else h.training for at, h in enumerate(hospitals)]
        self._versions = [self._model]

    def go(self, each: Callable[[int], None]) -> None:
        """All rounds, without judging. Raises `ValueError` for one that has no model."""
        for number in range(1, self._plan.rounds + 1):
            if not self._round(number):
                raise ValueError(f"round {number} has no model")
            each(number)

    def run(self) -> Made:
        """All rounds, and the last ones judged."""
        plan, lost, scores = self._plan, 0, []
        rounds, judged = plan.rounds, plan.judged
        if plan.spec.asynchronous:  # rounds of half the hospitals: as many trainings in twice as many
            rounds, judged = 2 * rounds, 2 * judged
        for number in range(1, rounds + 1):
            lost += not self._round(number)
            self._versions.append(self._model)
            if number > rounds - judged:
                scores.append(judging.judge(self.network, self._hospitals))
        return Made(judging.mean(scores), lost, self._server.rejected)

    def _round(self, number: int) -> bool:
        """Whether there is a new model: the service has none where nothing can be folded, and goes on from the last."""
        trained: dict[int, _Trained] = {}
        asked = self._first(number) if self._plan.spec.asynchronous else range(len(self._hospitals))
        for at in asked:
            if at in self._hostile and (self._attack is None or not self._attack.trains):
                continue
            found = self._train(at, number)
            if found is not None:
                trained[at] = found
        honest = [at for at in trained if at not in self._hostile]
        hostile = [at for at in asked if at in self._hostile and honest]
        updates = [self._update(at, trained[at].model, trained[at].outcome, number) for at in honest]
        if hostile:
            updates += self._attacking(hostile, honest, trained, number)
        updates.sort(key=lambda each: each.hospital)
        try:
            made, accepted = self._server.fold(self._model, updates, number)
        except ValueError:
            return False
        for at in accepted:
            if at in trained and trained[at].control is not None:
                self._nodes[at].control = trained[at].control
        self._model = made
        return True

    def _train(self, at: int, number: int) -> _Trained | None:
        """One hospital's training; None where it diverges."""
        node, base = self._nodes[at], self._base(at, number)
        self._load(base, node.own)
        wrong: Floats | None = None
        if self._local.control:
            nothing = np.zeros_like(base.floats)
            theirs, ours = self._server.control, node.control
            wrong = (nothing if theirs is None else theirs) - (nothing if ours is None else ours)
        local, correction = self._plan.local_of(self._local, number), None
        if wrong is not None:
            correction = self._layout.named(wrong)
        try:
            if self._plan.privacy is not None:
                privacy = self._plan.privacy[at]
                outcome = private_training.train(
                    self._network, self._pictures[at], local, privacy, _CPU, correction=correction
                )
            else:
                seed = mix(self._plan.seed, number, at)
                outcome = training.train(self._network, self._pictures[at], local, seed, _CPU, correction=correction)
        except Refused:
            return None
        model, control = self._layout.model(networks.tensors(self._network)), None
        if wrong is not None and outcome.reach:
            drift = (base.floats.astype(np.float64) - model.floats) / outcome.reach
            control = (drift - wrong).astype(np.float32)
        if self._personal.any():
            node.own = model.floats
            model = replace(model, floats=np.where(self._personal, base.floats, model.floats))
        return _Trained(model, outcome, control)

    def _update(self, at: int, model: Model, outcome: Outcome, number: int) -> Update:
        staleness = number - 1 - self._nodes[at].began if self._plan.spec.asynchronous else 0
        if staleness:
            step = model.floats.astype(np.float64) - self._versions[self._nodes[at].began].floats
            moved = (self._model.floats + step).astype(np.float32)
            model = replace(model, floats=np.where(self._server.statistics, model.floats, moved))
        if self._plan.spec.asynchronous:
            self._nodes[at].began = number
        images = len(self._hospitals[at].training)
        return Update(
            at, model, outcome.images, images, outcome.reach, outcome.first_loss, staleness, outcome.class_counts
        )

    def _attacking(
        self, hostile: Sequence[int], honest: Sequence[int], trained: dict[int, _Trained], number: int
    ) -> list[Update]:
        assert self._attack is not None, "there are hostile hospitals"

        def rows(some: Sequence[int]) -> npt.NDArray[np.float64]:
            vectors = [trained[at].model.floats.astype(np.float64) for at in some if at in trained]
            return np.stack(vectors) - self._model.floats if vectors else np.zeros((0, len(self._model.floats)))

        if self._attack.trains:
            hostile = [at for at in hostile if at in trained]
        if not hostile:
            return []
        crafting = attacks.Crafting(rows(honest), rows(hostile), len(hostile), self._generator, self._memory)
        usual = trained[honest[0]]
        found = []
        with np.errstate(over="ignore", invalid="ignore"):  # what is too large for float32 is the attacker's affair
            for at, row in zip(hostile, self._attack.craft(crafting), strict=True):
                model = Model((self._model.floats + row).astype(np.float32), usual.model.counters)
                images = len(self._hospitals[at].training)
                told = trained[at].outcome if at in trained else usual.outcome
                found.append(replace(self._update(at, model, told, number), samples=images * self._attack.claims))
        return found

    def _first(self, number: int) -> list[int]:
        """Who is done first of FedBuff's hospitals, which take as long as they have pictures: half of them."""
        nodes = self._nodes
        if number == 1:
            for node, hospital in zip(nodes, self._hospitals, strict=True):
                node.free_at = len(hospital.training)
        first = sorted(range(len(nodes)), key=lambda at: (nodes[at].free_at, at))[: math.ceil(len(nodes) / 2)]
        now = max(nodes[at].free_at for at in first)
        for at in first:
            nodes[at].free_at = now + len(self._hospitals[at].training)
        return first

    def _base(self, at: int, number: int) -> Model:
        return self._versions[self._nodes[at].began] if self._plan.spec.asynchronous else self._model

    def _poisoned(self, at: int) -> Pictures:
        clean = self._hospitals[at].training
        labels = np.array(clean.labels, np.int64)
        kind = "" if self._attack is None else self._attack.data
        if kind == "labels":
            return replace(clean, labels=tuple(attacks.flip_labels(labels).tolist()))
        if kind == "pattern":
            chosen = attacks.poisoned(labels, self._generator)
            images = torch.where(
                torch.from_numpy(chosen).view(-1, 1, 1, 1), self._hospitals[at].stamped_training, clean.images
            )
            return replace(clean, images=images, labels=tuple(np.where(chosen, attacks.TARGET, labels).tolist()))
        return clean

    def _load(self, model: Model, own: Floats | None) -> None:
        floats = model.floats if own is None else np.where(self._personal, own, model.floats)
        tensors = self._layout.tensors(replace(model, floats=floats))
        self._network.load_state_dict({name: torch.from_numpy(each) for name, each in tensors.items()})

    def network(self, at: int) -> nn.Module:
        """The network as a hospital uses it; the next one that is asked for is the same object."""
        self._load(self._model, self._nodes[at].own)
        return self._network


def personal(network: nn.Module, which: Personal) -> frozenset[str]:
    """Names of the tensors that a hospital keeps to itself, as `concilia_client_node.networks.personal` has them of its
    architectures."""
    kinds: dict[Personal, Any] = {Personal.NORMALISATION: nn.BatchNorm2d, Personal.HEAD: nn.Linear}
    if which is Personal.NOTHING:
        return frozenset()
    found = [name for name, module in network.named_modules() if isinstance(module, kinds[which])]
    if which is Personal.HEAD:
        found = found[-1:]
    return frozenset(name for name in network.state_dict() if name.rpartition(".")[0] in found)


def pooled(plan: Plan, hospitals: Sequence[Hospital], build: Callable[[int], nn.Module]) -> Made:
    """What one hospital with everybody's pictures would have: as many epochs as there are rounds times theirs."""
    return Made(_by_one(at_once(plan, together(hospitals), build), hospitals), 0)


def together(hospitals: Sequence[Hospital]) -> Pictures:
    """Everybody's training pictures."""
    return Pictures(
        torch.cat([each.training.images for each in hospitals]),
        tuple(label for each in hospitals for label in each.training.labels),
        tuple(lesion for each in hospitals for lesion in each.training.lesions),
    )


def alone(
    plan: Plan, hospitals: Sequence[Hospital], build: Callable[[int], nn.Module], *, everywhere: bool = False
) -> Made:
    """What hospitals have by themselves, each judged on its own pictures; `everywhere`: on everybody's, and the mean of
    all."""
    trained = [at_once(plan, each.training, build) for each in hospitals]
    if not everywhere:
        return Made(judging.judge(lambda at: trained[at], hospitals), 0)
    return Made(judging.mean([_by_one(network, hospitals) for network in trained]), 0)


def _by_one(network: nn.Module, hospitals: Sequence[Hospital]) -> Scores:
    return judging.judge(lambda at: network, hospitals)


def at_once(
    plan: Plan,
    pictures: Pictures,
    build: Callable[[int], nn.Module],
    progress: Callable[[float], None] = lambda _done: None,
) -> nn.Module:
    """What comes of as many epochs on some pictures, without rounds, as a plan's rounds have together."""
    network = copy.deepcopy(build(plan.seed))
    training.train(network, pictures, plan.at_once(), mix(plan.seed, "together"), _CPU, progress=progress)
    return network
