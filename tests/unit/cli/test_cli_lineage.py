"""From a prediction back to the hospitals whose updates are in it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from concilia.app import app
from concilia.commands import evidence as asking
from concilia.commands import lineage as command
from concilia.verification import bundle as bundles
from concilia.verification import services
from concilia.verification.ancestry import Known, trace
from concilia.verification.evidence import Evidence
from concilia_kit import digests
from concilia_kit.problems import NotFound, Unavailable
from concilia_kit.wire.jobs import JobManifest, JobSpec
from typer.testing import CliRunner


def base_of(evidence: Evidence) -> str:
    return next(str(event.arguments["base"]) for event in evidence.of_job() if event.name == "RoundOpened")


def manifest_of(evidence: Evidence, **spec: Any) -> JobManifest:
    asked = JobSpec(name="lesions", initial=base_of(evidence)).model_dump(mode="json") | spec
    return JobManifest(
        spec=asked,
        created_by=evidence.domain.contract,
        created_at="2026-11-24T12:00:00+00:00",
        code="0.1.0",
        salt="0" * 32,
    )


@pytest.mark.parametrize("which", ["finished", "merkle_job"])
def test_a_model_is_told_from_its_first_weights_on(
    which: str, request: pytest.FixtureRequest, jobs_module: Any
) -> None:
    job = request.getfixturevalue(which)
    evidence: Evidence = request.getfixturevalue("evidence" if which == "finished" else "merkle_evidence")
    first, second, third = (each.address for each in jobs_module.HOSPITALS)
    found = trace(job.published, evidence, Known({first: "Vienna"}, "imagenet", base_of(evidence)))
    assert found.faults == ()
    assert found.published
    assert found.initial is not None
    assert (found.initial.digest, found.initial.origin) == (base_of(evidence), "imagenet")
    assert [[each.hospital for each in item.contributors] for item in found.rounds] == [[first, third]] * 2
    assert [(each.hospital, each.reason) for each in found.rounds[0].rejected] == [(second, "non_finite")]
    assert found.rounds[0].contributors[0].site == "Vienna"
    assert found.rounds[0].contributors[1].site is None
    assert [item.base for item in found.rounds] == [base_of(evidence), found.rounds[0].model]
    assert found.rounds[-1].model == job.published
    assert {item.recording for item in found.rounds} == {"each" if which == "finished" else "merkle"}
    assert all(item.unseen == 0 for item in found.rounds)
    (note,) = found.notes
    assert "manifest was not told" in note


def test_a_rounds_model_has_a_lineage_too(finished: Any, evidence: Evidence) -> None:
    published = trace(finished.published, evidence, Known({}))
    earlier = trace(str(published.rounds[0].model), evidence, Known({}))
    assert earlier.rounds == published.rounds[:1]
    assert not earlier.published
    assert any(f"published a later model: {finished.published}" in note for note in earlier.notes)
    assert earlier.faults == ()


def test_leaves_that_nobody_told_are_counted(merkle_job: Any, merkle_evidence: Evidence) -> None:
    thin = merkle_evidence.model_copy(update={"leaves": None})
    found = trace(merkle_job.published, thin, Known({}))
    assert [item.unseen for item in found.rounds] == [3, 2]
    assert any("give their leaves" in note for note in found.notes)
    assert found.faults == ()


def test_leaves_that_are_not_the_ledgers_are_found(merkle_job: Any, merkle_evidence: Evidence) -> None:
    fewer = merkle_evidence.model_copy(update={"leaves": (merkle_evidence.leaves or ())[1:]})
    assert any("another root" in fault for fault in trace(merkle_job.published, fewer, Known({})).faults)


def test_the_manifest_binds_code_and_hyperparameters(finished: Any, evidence: Evidence) -> None:
    """The finished job's own id is no manifest's; of a job with that id all fits."""
    manifest = manifest_of(evidence)
    other = trace(finished.published, evidence, Known({}, manifest=manifest))
    assert other.terms is not None
    assert not other.terms.fits
    assert other.terms.hyperparameters == digests.of_json(manifest.spec)
    assert other.faults == (f"the manifest is that of job {manifest.id()}",)

    events = tuple(
        event.model_copy(update={"arguments": event.arguments | {"job": manifest.id()}})
        if event.arguments.get("job") == evidence.job
        else event
        for event in evidence.events
    )
    its = evidence.model_copy(update={"job": manifest.id(), "events": events})
    found = trace(finished.published, its, Known({}, "random", base_of(evidence), manifest))
    assert (found.faults, found.notes) == ((), ())
    assert found.terms is not None
    assert (found.terms.fits, found.terms.code) == (True, "0.1.0")
    changed = manifest.model_copy(update={"code": "0.1.1"})
    assert trace(finished.published, its, Known({}, manifest=changed)).faults


def test_what_does_not_agree_is_found(finished: Any, evidence: Evidence) -> None:
    elsewhere = manifest_of(evidence, initial="0" * 64)
    found = trace(finished.published, evidence, Known({}, "?", "1" * 64, elsewhere))
    assert any("the model service says" in fault for fault in found.faults)
    assert any("other initial weights" in fault for fault in found.faults)
    assert any("has no round" in fault for fault in trace("2" * 64, evidence, Known({})).faults)
    broken = evidence.model_copy(update={"events": evidence.events[::-1]})
    assert trace(finished.published, broken, Known({})).faults


class Answers(NamedTuple):
    """A client's answers: a value, or what is raised."""

    model: Any
    job: Any
    nodes: Any


class ClientDouble:
    def __init__(self, answers: Answers) -> None:
        self._answers = answers

    def model(self, _digest: str) -> Any:
        return self._told(self._answers.model)

    def job(self, _job: str) -> Any:
        return self._told(self._answers.job)

    def nodes(self) -> Any:
        return self._told(self._answers.nodes)

    @staticmethod
    def _told(value: Any) -> Any:
        if isinstance(value, Exception):
            raise value
        return value


class Bag:
    """An answer of which a few members matter."""

    def __init__(self, **members: Any) -> None:
        self.__dict__.update(members)


@pytest.fixture
def run(evidence: Evidence, finished: Any, jobs_module: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """The command; the services tell of the finished job unless told."""
    site = Bag(address=jobs_module.HOSPITALS[0].address, registration=Bag(site="Vienna [west]"))
    usual = Answers(
        Bag(job=evidence.job, initial=base_of(evidence), initial_origin="imagenet: 100 tensors"),
        Bag(manifest=manifest_of(evidence)),
        [site],
    )

    def invoke(*arguments: object, **changes: Any) -> Any:
        monkeypatch.setattr(command, "client", lambda _config: ClientDouble(usual._replace(**changes)))
        monkeypatch.setattr(services, "read", lambda _to, job: evidence.model_copy(update={"job": job}))
        monkeypatch.setattr(asking, "Node", lambda _url: finished.node())
        told = CliRunner().invoke(app, ["lineage", *map(str, arguments)])
        assert isinstance(told.exception, SystemExit | None), told.exception
        return told

    return invoke


def test_the_command_takes_a_prediction(run: Any, finished: Any, tmp_path: Path) -> None:
    prediction = tmp_path / "prediction.json"
    prediction.write_text(json.dumps({"model": finished.published, "job": finished.job, "probabilities": []}))
    told = run(prediction, job=Bag(manifest=None))
    assert told.exit_code == 0, told.output
    assert f"model {finished.published}" in told.output
    assert "Vienna [west] (0x" in told.output
    assert "left out, non_finite" in told.output
    assert "imagenet: 100 tensors" in told.output
    found = json.loads(run(finished.published, "--json", job=Bag(manifest=None)).stdout)
    assert [item["round"] for item in found["rounds"]] == [1, 2]


def test_a_manifest_of_another_job_ends_with_1(run: Any, finished: Any) -> None:
    told = run(finished.published)
    assert told.exit_code == 1
    assert "another job's manifest" in told.output
    assert "FOUND the manifest is that of job" in told.output


def test_what_a_service_does_not_tell_is_a_note(run: Any, finished: Any) -> None:
    away = Unavailable("away")
    told = run(finished.published, model=away, job=away, nodes=away)
    assert told.exit_code == 1  # who made it nobody can tell then
    named = run(finished.published, "--job", finished.job, model=away, job=away)
    assert named.exit_code == 0, named.output
    assert "the model service does not tell" in named.output
    assert "the aggregator does not tell" in named.output
    assert run(finished.published, model=NotFound("no such model")).exit_code == 1


def test_neither_service_nor_chain_for_a_bundle_and_no_service_for_a_chain(
    run: Any, finished: Any, evidence: Evidence, tmp_path: Path
) -> None:
    path = tmp_path / "b.zip"
    bundles.write(evidence, None, path, lambda *_: None)
    for arguments in (["--offline", path], ["--rpc", "http://node", "--job", finished.job]):
        told = run(finished.published, *arguments)
        assert told.exit_code == 0, told.output
        assert "origin not told" in told.output


def test_what_cannot_be_asked(run: Any, finished: Any, evidence: Evidence, tmp_path: Path) -> None:
    path = tmp_path / "b.zip"
    bundles.write(evidence, None, path, lambda *_: None)
    (tmp_path / "p.json").write_text("{}")
    model = finished.published
    for arguments, words in (
        ([tmp_path / "none"], "neither a model's digest nor a file"),
        ([tmp_path / "p.json"], "is no prediction"),
        ([model, "--rpc", "http://node"], "name the job with --job"),
        ([model, "--contract", "0x" + "12" * 20], "go with --rpc"),
        ([model, "--offline", path, "--rpc", "http://node"], "asks no chain"),
        ([model, "--offline", path, "--job", "0" * 64], "is of job"),
        ([model, "--job", "0" * 64], "not of"),
    ):
        told = run(*arguments)
        assert (told.exit_code, words in told.output) == (2, True), told.output
