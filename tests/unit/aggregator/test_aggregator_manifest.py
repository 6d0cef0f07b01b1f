"""A job's id is its manifest's digest, whoever recomputes it, and from whatever the manifest went through."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
import rfc8785
import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from concilia_aggregator import main, rounds, views
from concilia_aggregator.store import Store
from concilia_kit import database
from concilia_kit.wire.jobs import JobManifest, JobSpec, JobView
from concilia_kit.wire.training import Architecture, LocalTraining
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from .conftest import FolderArtifacts, MemoryLedger
from .test_aggregator_service import HOSPITALS, World

SALT = "0123456789abcdef" * 2


@pytest.fixture
def world(tmp_path: Path, ledger: MemoryLedger, artifacts: FolderArtifacts) -> World:
    return World(tmp_path, ledger, artifacts)


def manifest(spec: JobSpec, /, **changes: object) -> JobManifest:
    fields = {
        "spec": spec.model_dump(mode="json"),
        "created_by": HOSPITALS[0],
        "created_at": "2026-11-24T10:00:00+00:00",
        "code": "concilia-aggregator 1.2.3",
        "salt": SALT,
    }
    return JobManifest.model_validate({**fields, **changes})


SPEC = JobSpec(name="j", initial="0" * 64)


def test_the_id_is_what_anybody_computes_from_the_view(world: World) -> None:
    job = world.create(seed=7, target=0.75)
    served = views.job(world.store, world.store.job(job)).model_dump_json()
    told = json.loads(served)["manifest"]
    assert hashlib.sha256(rfc8785.dumps(told)).hexdigest() == job
    assert (told["code"], told["created_by"], told["spec"]["seed"]) == ("concilia-aggregator 1.2.3", HOSPITALS[0], 7)
    view = JobView.model_validate_json(served)
    assert view.manifest is not None
    assert view.manifest.id() == view.id
    assert JobSpec.model_validate(view.manifest.spec) == view.spec
    assert view.manifest.created_at == view.created_at.isoformat()


def test_two_jobs_of_one_description_are_two(world: World) -> None:
    assert world.create() != world.create()


@pytest.mark.parametrize(
    "change",
    [
        {"code": "concilia-aggregator 1.2.4"},
        {"created_by": HOSPITALS[1]},
        {"created_at": "2026-11-24T10:00:01+00:00"},
        {"salt": SALT[::-1]},
        {"spec": SPEC.model_copy(update={"initial": "1" * 64}).model_dump(mode="json")},
        {"spec": SPEC.model_copy(update={"local": LocalTraining(learning_rate=0.002)}).model_dump(mode="json")},
        {"spec": SPEC.model_copy(update={"architecture": Architecture.RESNET18}).model_dump(mode="json")},
    ],
)
def test_whatever_differs_gives_another_id(change: dict[str, object]) -> None:
    assert manifest(SPEC, **change).id() != manifest(SPEC).id()


def test_a_description_of_a_later_day_has_its_id_all_the_same() -> None:
    """Its fields are not this version's: it must be hashed as it is, not as this version would write it."""
    later = {**SPEC.model_dump(mode="json"), "invented": [1.5, None, {"later": True}]}
    again = JobManifest.model_validate_json(manifest(SPEC, spec=later).model_dump_json())
    assert again.spec == later
    assert again.id() == manifest(SPEC, spec=later).id() != manifest(SPEC).id()


@given(
    name=st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=20),
    rate=st.floats(min_value=1e-9, max_value=10),
    target=st.none() | st.floats(min_value=1e-6, max_value=1),
    seed=st.integers(0, 2**32 - 1),
    cap=st.none() | st.integers(1, 2**53 - 1),
)
def test_every_description_can_be_hashed_and_comes_back_the_same(
    name: str, rate: float, target: float | None, seed: int, cap: int | None
) -> None:
    local = LocalTraining(learning_rate=rate, max_images=cap)
    one = manifest(JobSpec(name=name, initial="0" * 64, target=target, seed=seed, local=local))
    assert JobManifest.model_validate_json(one.model_dump_json()).id() == one.id()
    assert hashlib.sha256(rfc8785.dumps(json.loads(one.model_dump_json()))).hexdigest() == one.id()


def test_caps_beyond_what_json_can_hold_are_refused() -> None:
    with pytest.raises(ValidationError):
        LocalTraining(max_images=2**53)


def test_jobs_from_before_there_were_manifests_have_none(tmp_path: Path) -> None:
    engine = database.engine(f"sqlite:///{tmp_path}/old.db")
    config = Config()
    config.set_main_option("script_location", str(main.MIGRATIONS))
    with engine.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, "0002")
        old = {"id": "a" * 64, "spec": json.dumps(SPEC.model_dump(mode="json")), "by": HOSPITALS[0]}
        state = {"phase": "stopped", "head": "0" * 64, "cohort": []}
        connection.execute(
            sa.text(
                "INSERT INTO jobs (id, spec, state, phase, version, created_at, created_by)"
                " VALUES (:id, :spec, :state, 'stopped', 0, 1.0, :by)"
            ),
            {**old, "state": json.dumps(state)},
        )
    database.migrate(engine, main.MIGRATIONS)
    store = Store(engine)
    store.add_job("b" * 64, SPEC, rounds.begin("0" * 64), HOSPITALS[0], manifest(SPEC))
    kept = {view.id: view.manifest for view in views.jobs(store)}
    assert kept == {"a" * 64: None, "b" * 64: manifest(SPEC)}
