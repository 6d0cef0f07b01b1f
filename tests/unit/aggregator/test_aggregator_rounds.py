"""The job state machine: worked steps, and a random walk against its invariants."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from concilia_aggregator import rounds
from concilia_aggregator.rounds import Facts, JobState, RoundFacts, decide
from concilia_kit.wire.chain import RoundStatus
from concilia_kit.wire.jobs import JobSpec, Phase, Recording
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

A, B, C = "0xa", "0xb", "0xc"
BASE, NEW = "0" * 64, "1" * 64


def spec(**changes: object) -> JobSpec:
    return JobSpec.model_validate(
        {"name": "j", "initial": BASE, "quorum": 2, "rounds": 2, "deadline_seconds": 100, **changes}
    )


def training(**changes: object) -> JobState:
    state = JobState(Phase.TRAINING, BASE, round=1, deadline=1100, cohort=frozenset({A, B, C}))
    return replace(state, **changes)  # type: ignore[arg-type]


def ledger(*recorded: str, accepted: int | None = None, status: RoundStatus = RoundStatus.OPEN) -> RoundFacts:
    return RoundFacts(status, BASE, 1100, frozenset(recorded), len(recorded) if accepted is None else accepted)


def collected(*hospitals: str, accepted: int | None = None, committed: bool = False) -> RoundFacts:
    return replace(ledger(*hospitals, accepted=accepted), merkle=True, committed=committed)


def test_waits_for_enough_hospitals_before_the_baseline() -> None:
    assert isinstance(decide(spec(), rounds.begin(BASE), Facts(1000, frozenset({A}))), rounds.Wait)
    move = decide(spec(), rounds.begin(BASE), Facts(1000, frozenset({A, B})))
    assert move == rounds.AskEvaluations(JobState(Phase.BASELINE, BASE, deadline=1100, cohort=frozenset({A, B})))


def test_baseline_ends_when_all_evaluated_or_in_time() -> None:
    state = JobState(Phase.BASELINE, BASE, deadline=1100, cohort=frozenset({A, B}))
    assert isinstance(decide(spec(), state, Facts(1050, evaluated=frozenset({A}))), rounds.Wait)
    for facts in (Facts(1050, evaluated=frozenset({A, B})), Facts(1101)):
        assert decide(spec(), state, facts) == rounds.Enter(JobState(Phase.OPENING, BASE, round=1))


def test_an_opening_is_planned_before_it_is_made() -> None:
    state = JobState(Phase.OPENING, BASE, round=1)
    planned = decide(spec(), state, Facts(1000, frozenset({A, B})))
    assert planned == rounds.Enter(replace(state, deadline=1100, cohort=frozenset({A, B})))
    assert isinstance(planned, rounds.Enter)
    opened = decide(spec(), planned.state, Facts(1001, frozenset({A, B, C})))
    assert opened == rounds.OpenRound(replace(planned.state, phase=Phase.TRAINING))


def test_over_selection_asks_more_than_it_needs_anew_each_round_and_waits_for_its_quorum() -> None:
    everybody = frozenset(f"0x{number}" for number in range(20))
    asking = spec(quorum=4, over_selection=1.3, rounds=8)
    cohorts = []
    for number in range(1, 9):
        planned = decide(asking, JobState(Phase.OPENING, BASE, round=number), Facts(1000, everybody))
        assert isinstance(planned, rounds.Enter)
        cohorts.append(planned.state.cohort)
        assert planned == decide(asking, JobState(Phase.OPENING, BASE, round=number), Facts(1000, everybody))
    assert {len(cohort) for cohort in cohorts} == {6}
    assert len(set(cohorts)) == 8
    assert all(cohort < everybody for cohort in cohorts)
    state = training(cohort=cohorts[0])
    came = sorted(cohorts[0])
    waiting = decide(asking, state, Facts(1000, everybody, ledger(*came[:4], accepted=3)))
    assert isinstance(waiting, rounds.Wait)
    assert isinstance(decide(asking, state, Facts(1000, everybody, ledger(*came[:4]))), rounds.Enter)


def test_over_selection_asks_all_where_there_are_no_more() -> None:
    planned = decide(spec(over_selection=9.0), JobState(Phase.OPENING, BASE, round=1), Facts(1000, frozenset({A, B})))
    assert planned == rounds.Enter(JobState(Phase.OPENING, BASE, round=1, deadline=1100, cohort=frozenset({A, B})))


def test_a_plan_whose_deadline_passed_is_made_anew() -> None:
    state = JobState(Phase.OPENING, BASE, round=1, deadline=1100, cohort=frozenset({A, B}))
    move = decide(spec(), state, Facts(1100, frozenset({A, C})))
    assert move == rounds.Enter(replace(state, deadline=1200, cohort=frozenset({A, C})))


def test_an_opening_that_is_on_the_ledger_is_taken_over_with_its_deadline() -> None:
    state = JobState(Phase.OPENING, BASE, round=1, deadline=5000, cohort=frozenset({A, B}))
    move = decide(spec(), state, Facts(1000, frozenset({A, B}), ledger()))
    assert move == rounds.OpenRound(replace(state, phase=Phase.TRAINING, deadline=1100))


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(1000, ledger=ledger(A)), rounds.Wait),
        (Facts(1000, ledger=ledger(A, B)), rounds.Wait),  # quorum, and C has time left
        (Facts(1102, ledger=ledger(A, B)), rounds.Wait),  # within the grace
        (Facts(1103, ledger=ledger(A, B)), rounds.Enter),
        (Facts(1000, ledger=ledger(A, B, C)), rounds.Enter),
        (Facts(1103, ledger=ledger(A)), rounds.AbortRound),
        (Facts(1000, ledger=ledger(A, B, C, accepted=1)), rounds.AbortRound),  # nobody left who could come
        (Facts(1000, frozenset({A, "0xd"}), ledger(A, B, C, accepted=1)), rounds.Wait),
        (Facts(1000, ledger=ledger(A, status=RoundStatus.CLOSED)), rounds.Enter),
        (Facts(1000, ledger=ledger(A, status=RoundStatus.ABORTED)), rounds.Enter),
        (Facts(1000), rounds.Wait),
    ],
)
def test_training(facts: Facts, expected: type) -> None:
    assert isinstance(decide(spec(), training(), facts), expected)


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        (Facts(1000, ledger=collected(A, B)), rounds.Wait),  # quorum, and C has time left
        (Facts(1102, ledger=collected(A, B)), rounds.Wait),  # within the grace
        (Facts(1103, ledger=collected(A, B)), rounds.Commit),
        (Facts(1000, ledger=collected(A, B, C)), rounds.Commit),
        (Facts(1103, ledger=collected(A)), rounds.AbortRound),
        (Facts(1100 + rounds.COMMIT_GRACE, ledger=collected(A, B, C)), rounds.Commit),
        (Facts(1101 + rounds.COMMIT_GRACE, ledger=collected(A, B, C)), rounds.AbortRound),
        (Facts(1000, ledger=collected(A, B, C, committed=True)), rounds.Enter),
        (Facts(1000, ledger=collected(A, B, committed=True)), rounds.Enter),  # C cannot come any more
        (Facts(1101 + rounds.COMMIT_GRACE, ledger=collected(A, B, committed=True)), rounds.Enter),
        (Facts(1000, ledger=collected(A, committed=True)), rounds.AbortRound),
        (Facts(1000, frozenset({A, "0xd"}), collected(A, B, C, accepted=1, committed=True)), rounds.AbortRound),
        (Facts(1000, ledger=replace(collected(A, committed=True), status=RoundStatus.CLOSED)), rounds.Enter),
        (Facts(1000, ledger=replace(collected(A, B), status=RoundStatus.ABORTED)), rounds.Enter),
    ],
)
def test_training_in_a_merkle_round(facts: Facts, expected: type) -> None:
    move = decide(spec(), training(), facts)
    assert isinstance(move, expected)
    if facts.ledger and facts.ledger.committed and isinstance(move, rounds.Enter):
        assert move.state.phase is Phase.FOLDING


@pytest.mark.parametrize("state", [training(stopping=True), training(stopping=True, paused=True)])
def test_stopping_gives_up_a_merkle_round_whether_committed_or_not(state: JobState) -> None:
    for facts in (collected(A, B, C), collected(A, B, C, committed=True)):
        assert isinstance(decide(spec(), state, Facts(1000, ledger=facts)), rounds.AbortRound)


def test_a_paused_job_commits_what_was_collected() -> None:
    assert decide(spec(), training(paused=True), Facts(1000, ledger=collected(A, B, C))) == rounds.Commit()


def test_aborted_rounds_in_a_row_fail_the_job() -> None:
    state = training()
    for _ in range(rounds.MAX_ABORTED - 1):
        state = rounds.after_abort(state, "x")
        assert state.phase is Phase.OPENING
    assert rounds.after_abort(state, "x").phase is Phase.FAILED
    assert rounds.after_close(spec(), replace(state, phase=Phase.FOLDING), NEW).aborted == 0


def test_target_or_the_last_round_publishes() -> None:
    evaluated = JobState(Phase.EVALUATING, NEW, round=1, closed=1, deadline=1100, cohort=frozenset({A}))
    facts = Facts(1000, evaluated=frozenset({A}), score=0.8)
    assert decide(spec(), evaluated, facts) == rounds.Enter(JobState(Phase.OPENING, NEW, round=2, closed=1))
    for move in (
        decide(spec(target=0.8), evaluated, facts),
        decide(spec(rounds=1), evaluated, facts),
    ):
        assert isinstance(move, rounds.Enter)
        assert move.state.phase is Phase.PUBLISHING
        assert isinstance(decide(spec(), move.state, facts), rounds.Publish)


def test_rounds_between_evaluations_go_on_at_once() -> None:
    def closed(count: int, **asked: int) -> JobState:
        state = training(phase=Phase.FOLDING, round=count + 1, closed=count - 1, aborted=1)
        return rounds.after_close(spec(rounds=5, **asked), state, NEW)

    assert {closed(count).phase for count in range(1, 6)} == {Phase.EVALUATING}
    phases = [closed(count, evaluate_every=2).phase for count in range(1, 6)]
    assert phases == [Phase.OPENING, Phase.EVALUATING, Phase.OPENING, Phase.EVALUATING, Phase.EVALUATING]
    assert closed(1, evaluate_every=2) == JobState(Phase.OPENING, NEW, round=3, closed=1)


def test_the_untrained_model_is_never_published_for_its_score() -> None:
    state = JobState(Phase.BASELINE, BASE, deadline=1100, cohort=frozenset({A}))
    move = decide(spec(target=0.1), state, Facts(1000, evaluated=frozenset({A}), score=0.9))
    assert isinstance(move, rounds.Enter)
    assert move.state.phase is Phase.OPENING


def test_stopping_gives_an_open_round_up() -> None:
    state = training(stopping=True)
    move = decide(spec(), state, Facts(1000, ledger=ledger(A)))
    assert isinstance(move, rounds.AbortRound)
    assert move.state.phase is Phase.STOPPED
    assert isinstance(decide(spec(), state, Facts(1000)), rounds.Enter)


def test_a_paused_job_begins_nothing() -> None:
    everybody = Facts(1000, frozenset({A, B}))
    asking = rounds.pause(rounds.begin(BASE))
    opening = JobState(Phase.OPENING, BASE, round=1, paused=True)
    planned = replace(opening, deadline=1100, cohort=frozenset({A, B}))
    for state in (asking, opening, planned):
        assert decide(spec(), state, everybody) == rounds.Wait(rounds.PAUSED)
        waiting = replace(state, detail=rounds.PAUSED)
        assert rounds.resume(waiting) == replace(state, paused=False)
        assert not isinstance(decide(spec(), rounds.resume(waiting), everybody), rounds.Wait)


@pytest.mark.parametrize(
    ("state", "facts"),
    [
        (JobState(Phase.BASELINE, BASE, deadline=1100, cohort=frozenset({A})), Facts(1101)),
        (JobState(Phase.OPENING, BASE, round=1), Facts(1000, frozenset({A, B}), ledger())),
        (training(), Facts(1000, ledger=ledger(A, B, C))),
        (training(), Facts(1103, ledger=ledger(A))),
        (JobState(Phase.FOLDING, BASE, round=1), Facts(1000)),
        (JobState(Phase.EVALUATING, NEW, round=1, closed=1), Facts(1000, frozenset({A, B}))),
        (JobState(Phase.EVALUATING, NEW, round=2, closed=2, deadline=1100), Facts(1101)),
        (JobState(Phase.PUBLISHING, NEW, round=2, closed=2), Facts(1000)),
    ],
)
def test_a_paused_job_ends_what_is_under_way(state: JobState, facts: Facts) -> None:
    move = decide(spec(), rounds.pause(state), facts)
    plain = decide(spec(), state, facts)
    assert not isinstance(plain, rounds.Wait)
    assert move == (plain if isinstance(plain, rounds.Fold) else replace(plain, state=rounds.pause(plain.state)))


@pytest.mark.parametrize("phase", sorted(set(Phase) - rounds.TERMINAL))
def test_a_paused_job_can_be_stopped(phase: Phase) -> None:
    state = JobState(phase, BASE, round=1, paused=True, stopping=True)
    move = decide(spec(), state, Facts(1000))
    assert isinstance(move, rounds.Enter)
    assert move.state.phase is Phase.STOPPED


@pytest.mark.parametrize("phase", sorted(rounds.TERMINAL))
def test_an_ended_job_makes_no_move(phase: Phase) -> None:
    with pytest.raises(ValueError, match="makes no move"):
        decide(spec(), JobState(phase, BASE), Facts(0))


class JobWalk(RuleBasedStateMachine):
    """A job in a world where hospitals come, go, submit, are rejected, and the process crashes between effects."""

    @initialize(
        quorum=st.integers(1, 3),
        total=st.integers(1, 3),
        every=st.integers(1, 3),
        recording=st.sampled_from(Recording),
        over_selection=st.none() | st.floats(1, 2),
    )
    def start(self, quorum: int, total: int, every: int, recording: Recording, over_selection: float | None) -> None:
        self.spec = spec(
            quorum=quorum, rounds=total, evaluate_every=every, recording=recording, over_selection=over_selection
        )
        self.merkle = recording is Recording.MERKLE
        self.state = rounds.begin(BASE)
        self.now = 1000.0
        self.live: set[str] = set()
        self.chain: dict[int, dict[str, object]] = {}
        self.evaluated: set[str] = set()
        self.heads = [BASE]
        self.published = 0
        self.asked: list[str] = []  # heads that were to be evaluated

    @rule(who=st.sampled_from([A, B, C]), there=st.booleans())
    def come_or_go(self, who: str, there: bool) -> None:
        (self.live.add if there else self.live.discard)(who)

    @rule(seconds=st.one_of(st.integers(1, 80), st.just(rounds.COMMIT_GRACE)))
    def time_passes(self, seconds: int) -> None:
        self.now += seconds

    @rule(who=st.sampled_from([A, B, C]), good=st.booleans())
    def submit(self, who: str, good: bool) -> None:
        current = self.chain.get(self.state.round)
        if not current or current["status"] is not RoundStatus.OPEN or current["committed"]:
            return
        if self.now <= current["deadline"]:  # type: ignore[operator]
            current["updates"].setdefault(who, good)  # type: ignore[attr-defined]

    @rule(who=st.sampled_from([A, B, C]))
    def evaluate(self, who: str) -> None:
        self.evaluated.add(who)

    @precondition(lambda self: self.state.phase not in rounds.TERMINAL)
    @rule(paused=st.booleans())
    def pause_or_resume(self, paused: bool) -> None:
        self.state = (rounds.pause if paused else rounds.resume)(self.state)
        assert self.state.paused is paused

    def facts(self) -> Facts:
        current = self.chain.get(self.state.round)
        seen = None
        if current:
            updates: dict[str, bool] = current["updates"]  # type: ignore[assignment]
            accepted = len(updates) - len(current["rejected"])  # type: ignore[arg-type]
            seen = RoundFacts(
                current["status"],  # type: ignore[arg-type]
                current["base"],  # type: ignore[arg-type]
                current["deadline"],  # type: ignore[arg-type]
                frozenset(updates),
                accepted,
                merkle=self.merkle,
                committed=bool(current["committed"]),
            )
        return Facts(self.now, frozenset(self.live), seen, frozenset(self.evaluated))

    @precondition(lambda self: self.state.phase not in rounds.TERMINAL)
    @rule(crash=st.booleans())
    def move(self, crash: bool) -> None:
        """One move; with `crash`, its effect happens and its state is lost."""
        move = decide(self.spec, self.state, self.facts())
        after = self.state
        match move:
            case rounds.Wait(reason):
                after = replace(self.state, detail=reason)
            case rounds.Enter(after):
                pass
            case rounds.AskEvaluations(after):
                assert not self.state.paused or self.state.phase is Phase.EVALUATING
                self.evaluated.clear()
                self.asked.append(after.head)
            case rounds.OpenRound(after):
                assert not self.state.paused or after.round in self.chain
                known = self.chain.setdefault(
                    after.round,
                    {
                        "status": RoundStatus.OPEN,
                        "base": after.head,
                        "deadline": after.deadline,
                        "updates": {},
                        "rejected": set(),
                        "committed": False,
                    },
                )
                assert known["deadline"] == after.deadline
            case rounds.Commit():
                current = self.chain[self.state.round]
                assert self.merkle
                assert not current["committed"]
                assert len(current["updates"]) >= self.spec.quorum  # type: ignore[arg-type]
                assert self.now <= current["deadline"] + rounds.COMMIT_GRACE  # type: ignore[operator]
                current["committed"] = True
            case rounds.Fold():
                after = self.fold()
            case rounds.AbortRound(after):
                self.chain[self.state.round]["status"] = RoundStatus.ABORTED
            case rounds.Publish(after):
                assert self.asked[-1] == after.head, "what is published was evaluated"
                self.published += 1
        if not crash:
            self.state = after

    def fold(self) -> JobState:
        current = self.chain[self.state.round]
        if current["status"] is RoundStatus.OPEN:
            assert current["committed"] is self.merkle, "folded what nobody committed"
            updates: dict[str, bool] = current["updates"]  # type: ignore[assignment]
            current["rejected"] = {who for who, good in updates.items() if not good}
            if sum(updates.values()) < self.spec.quorum:
                return replace(self.state, phase=Phase.TRAINING)
            current["status"] = RoundStatus.CLOSED
            self.heads.append(f"{self.state.round:064x}")
        return rounds.after_close(self.spec, self.state, f"{self.state.round:064x}")

    @invariant()
    def rounds_are_gapless_and_chained(self) -> None:
        assert sorted(self.chain) == list(range(1, len(self.chain) + 1))
        closed = [self.chain[n] for n in sorted(self.chain) if self.chain[n]["status"] is RoundStatus.CLOSED]
        assert [item["base"] for item in closed] == self.heads[: len(closed)]

    @invariant()
    def only_the_last_round_is_open(self) -> None:
        is_open = [n for n, item in self.chain.items() if item["status"] is RoundStatus.OPEN]
        assert is_open in ([], [max(self.chain, default=0)])

    @precondition(lambda self: self.state.phase is Phase.TRAINING and self.spec.over_selection is not None)
    @invariant()
    def an_over_selected_round_waits_for_its_quorum_alone(self) -> None:
        assert len(self.state.cohort) <= math.ceil(self.spec.quorum * self.spec.over_selection)
        facts = self.facts()
        if facts.ledger is not None and facts.ledger.accepted >= self.spec.quorum:
            assert not isinstance(decide(self.spec, self.state, facts), rounds.Wait)

    @invariant()
    def only_a_paused_job_says_so(self) -> None:
        assert self.state.paused or self.state.detail != rounds.PAUSED

    @invariant()
    def a_closed_round_had_its_quorum(self) -> None:
        for item in self.chain.values():
            if item["status"] is RoundStatus.CLOSED:
                good = sum(item["updates"].values())  # type: ignore[attr-defined]
                assert good >= self.spec.quorum

    @precondition(lambda self: self.state.phase is Phase.TRAINING)
    @invariant()
    def a_committed_round_is_never_waited_for(self) -> None:
        if self.chain[self.state.round]["committed"]:
            assert not isinstance(decide(self.spec, self.state, self.facts()), rounds.Wait | rounds.Commit)

    @invariant()
    def what_is_finished_was_published_after_all_its_rounds(self) -> None:
        if self.state.phase is Phase.FINISHED:
            assert self.published
            assert self.state.closed == self.spec.rounds


TestJobWalk = JobWalk.TestCase
TestJobWalk.settings = settings(max_examples=200, stateful_step_count=50, deadline=None)  # 10,000 steps
